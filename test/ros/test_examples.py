# SPDX-License-Identifier: Apache-2.0
"""The examples run against a node; each is short, and examples/README.md lists them all."""

from __future__ import annotations

import importlib.util
import re
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from g2vlm_tests.harness import GOLDEN, bench, image  # noqa: E402

pytestmark = pytest.mark.ros
EXAMPLES = Path(__file__).parents[2] / "examples"
MAX_LINES = 60


def example(name):
    """The module of an example; skipped where a package that it needs is missing."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def driving_robot(**settings):
    """A node in metres with a camera that keeps sending; the first window is there."""
    with bench(**{"map.metres_per_unit": 1.0, **settings}) as robot:
        over = threading.Event()
        thread = threading.Thread(target=drive, args=(robot, over))
        thread.start()
        try:
            yield robot
        finally:
            over.set()
            thread.join()


def drive(robot, over):
    count = 0
    while not over.wait(0.1):
        robot.publish("camera/image_raw", image(time.time(), number=count))
        count += 1


@pytest.fixture(scope="module")
def robot():
    with driving_robot() as robot:
        yield robot


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.stem)
def test_an_example_is_short_and_documented(file):
    text = file.read_text()
    compile(text, str(file), "exec")
    assert file.stem == "go_to" or len(text.splitlines()) <= MAX_LINES
    assert f"python3 examples/{file.name}" in text or file.stem == "go_to"
    assert f"`{file.name}" in (EXAMPLES / "README.md").read_text()


def test_the_list_names_no_other():
    listed = set(re.findall(r"^\| `(\w+\.py)", (EXAMPLES / "README.md").read_text(), re.M))
    assert listed == {file.name for file in EXAMPLES.glob("*.py")}


def test_watch_cloud(robot, capsys):
    assert example("watch_cloud").main(["/perception", "2"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    # Random weights may put nothing in front of the camera.
    assert len(lines) >= 2
    assert all("points in 'map'" in line or line == "an empty cloud" for line in lines)


def test_record_poses(robot, tmp_path):
    file = tmp_path / "poses.txt"
    assert example("record_poses").main([str(file), "3"]) == 0
    rows = [list(map(float, line.split())) for line in file.read_text().splitlines()]
    assert len(rows) >= 3 and all(len(row) == 8 for row in rows)
    assert abs(rows[0][0] - time.time()) < 120  # stamps of acquisition
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)


def test_ask_once(robot, capsys):
    code = example("ask_once").main(["What", "do", "you", "see?"])
    shown = capsys.readouterr().out
    assert ("words alone" in shown or "measured" in shown) if code == 0 else "no answer" in shown


def test_ask_with_box(robot, capsys):
    assert example("ask_with_box").main(["camera", "32", "24", "30", "20"]) in (0, 1)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 3 and all(line.startswith("How ") for line in shown)
    assert all(line.split("?")[1].strip() for line in shown)


def test_follow_answer(robot, capsys):
    code = example("follow_answer").main(["What do you see?"])
    assert code in (0, 1)
    assert capsys.readouterr().out.strip()


def test_save_and_load_map(robot, tmp_path, capsys):
    example("watch_cloud").main(["/perception", "2"])
    assert example("save_and_load_map").main([str(tmp_path / "map.npz")]) == 0
    assert re.search(r"saved \d+ points .*\nloaded \d+ points", capsys.readouterr().out)


def test_edit_map(robot, capsys):
    for _ in range(15):  # random weights may put nothing in front of the camera for a while
        example("watch_cloud").main(["/perception", "2"])
        capsys.readouterr()
        if example("edit_map").main(["0", "0", "0", "100"]) == 0:
            break
        assert "the map is empty" in capsys.readouterr().out
    removed, back = re.findall(r"(\d+) voxels", capsys.readouterr().out)
    assert int(removed) > 0 and removed == back


def test_reconstruct_folder(tmp_path, capsys):
    from g2vlm_tests.point_files import read_ply

    cloud, demo = tmp_path / "scene.ply", EXAMPLES.parent / "engines" / "demo"
    frames = Path(GOLDEN).parents[1] / "frames"
    assert example("reconstruct_folder").main([str(demo), str(frames), str(cloud), "112"]) == 0
    count = int(re.search(r"(\d+) points", capsys.readouterr().out)[1])
    assert len(read_ply(cloud)[0]) == count > 1000
    (tmp_path / "empty").mkdir()
    assert example("reconstruct_folder").main([str(demo), str(tmp_path / "empty")]) == 1
