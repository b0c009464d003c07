# SPDX-License-Identifier: Apache-2.0
"""README and docs say what the code does: topics, services, commands, files and numbers exist."""

import re
import runpy
from pathlib import Path

import pytest

from g2vlm_ros.parameter_schema import parameters_of
from g2vlm_ros.settings import Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "engines").rglob("*.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "examples" / "README.md",
]
PAGES = [page for page in PAGES if page.exists()]
MAX_README_LINES = 150
NOT_PARAMETERS = {"map.png", "map.ply", "window.py"}


def rows(heading):
    """First cells of the table under a heading of docs/interfaces.md, without backticks."""
    text = (ROOT / "docs" / "interfaces.md").read_text()
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [cell.strip("`") for cell in re.findall(r"^\| (`[^|]+`) \|", section, re.M)]


@pytest.mark.ros
def test_every_topic_and_service():
    pytest.importorskip("rclpy", reason="needs ROS 2")
    from g2vlm_ros.ros.publishers import Publishers

    topics = {topic for _, topic, _ in Publishers.TOPICS.values()}
    inputs = {"<camera>/image_raw", "<camera>/camera_info", "/initialpose"}
    others = {"~/status", "/diagnostics", "~/query/last_target"}
    others |= {"~/query/last_answer", "~/query/picture"}
    node = "".join(
        (ROOT / "g2vlm_ros" / "ros" / name).read_text()
        for name in ("perception_node.py", "query_server.py", "object_services.py")
    )
    named = {f"~/{name}" for name in re.findall(r'"~/([a-z_]+)"', node)}
    published = {"~/status", "~/objects", "~/object_markers", "~/object_detections"}
    assert set(rows("Topics")) == topics | inputs | others | (named & published)
    assert set(rows("Services")) == named - published


def test_the_front_page_stays_short():
    assert len(README.splitlines()) <= MAX_README_LINES
    assert "have never been run here" in README[:2500]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_and_command_it_points_to_is_there(page):
    text = page.read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    for module in re.findall(r"python3? -m ((?:g2vlm_ros|benchmarks)[\w.]*)", text):
        path = ROOT / module.rstrip(".").replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for name in re.findall(r"python3? -m benchmarks ([a-z]\w*)", text):
        assert (ROOT / "benchmarks" / f"{name}.py").exists(), name
    for script in re.findall(r"python3? ((?:tools|examples)/\w+\.py)", text):
        assert (ROOT / script).exists(), script
    executables = re.search(r"set\(executables ([^)]+)\)", (ROOT / "CMakeLists.txt").read_text())[
        1
    ]
    for name in re.findall(r"ros2 run g2vlm_ros (\w+)", text):
        assert f"{name}=" in executables, name
    targets = (ROOT / "Makefile").read_text()
    for name in re.findall(r"`(?:[A-Z_]+=\S+ )*make ([a-z]+)", text):
        assert f"\n{name}:" in targets, name


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.parent in (ROOT, ROOT / "docs")], ids=lambda page: page.name
)
def test_every_parameter_it_names_exists(page):
    names = {name for name, _ in parameters_of(Settings)}
    groups = {name.split(".")[0] for name in names if "." in name}
    named = set(re.findall(rf"`((?:{'|'.join(sorted(groups))})\.[a-z_]+)`", page.read_text()))
    assert named <= names | NOT_PARAMETERS, sorted(named - names)


def test_launch_arguments_it_names_exist():
    launch = (ROOT / "launch" / "perception.launch.py").read_text()
    for page in PAGES:
        for line in re.findall(r"ros2 launch g2vlm_ros [^\n`#]+", page.read_text()):
            for argument in re.findall(r"(\w+):=", line):
                assert f'"{argument}"' in launch, f"{page.name}: {argument}"


def test_results_are_what_the_benchmarks_wrote():
    module = runpy.run_path(str(ROOT / "tools" / "write_results.py"))
    sentence = "run python3 tools/write_results.py"
    assert (ROOT / "docs" / "results.md").read_text() == module["page"](), sentence
    assert module["front_page"](README) == README, sentence
