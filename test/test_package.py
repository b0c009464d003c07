# SPDX-License-Identifier: Apache-2.0
"""The package describes itself truly: dependencies, versions, targets, no trace of a machine."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = ElementTree.parse(ROOT / "package.xml").getroot()

# Import name -> rosdep key, where they differ.
ROSDEP_KEYS = {
    "PIL": "python3-pil",
    "cv2": "python3-opencv",
    "numpy": "python3-numpy",
    "transforms3d": "python3-transforms3d",
    "yaml": "python3-yaml",
}
# Not in rosdep: README names them for pip.
PIP_ONLY = {
    "anyio",
    "cuda",
    "matplotlib",
    "mcp",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "pycuda",
    "rosbags",
    "safetensors",
    "tensorrt",
    "tensorrt_rtx",
    "tokenizers",
    "torch",
    "tqdm",
    "triton_python_backend_utils",  # inside Triton only
    "tritonclient",
    "viser",
    "websockets",
}

USED_WITHOUT_IMPORT = {
    "ros2launch": "the command that starts launch/perception.launch.py",
    "rosidl_default_runtime": "what generated interfaces need to run",
}
"""Dependencies that no line of Python imports, each with its reason."""
CONDITION = r'(python_version (<|>=) "3\.\d+"|platform_machine == "\w+")'
PINNED = rf"[A-Za-z0-9._-]+==[\w.]+(; {CONDITION}( and {CONDITION})*)?"


def dependencies(*kinds: str) -> set[str]:
    return {element.text for element in MANIFEST if element.tag in kinds}


def third_party_imports() -> set[str]:
    names = set()
    for file in [*ROOT.glob("g2vlm_ros/**/*.py"), *ROOT.glob("launch/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"g2vlm_ros"}


def kept_files() -> list[Path]:
    """The text files of the project: what git would keep, without asking git."""
    skipped = {
        ".git",
        ".venv",
        ".venv-kilted",
        "build",
        "install",
        "log",
        "__pycache__",
        "demo_output",
    }
    skipped |= {"bench_output", ".hypothesis", ".pytest_cache", ".ruff_cache"}
    suffixes = {".py", ".md", ".txt", ".xml", ".toml", ".yaml", ".yml", ".rviz", ".msg", ".srv"}
    suffixes |= {".action", ".json", ".sh", ""}
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [
            name for name in folders if name not in skipped and not name.endswith(".egg-info")
        ]
        files = [name for name in files if name not in skipped]  # a worktree has a file .git
        found += [path for name in files if (path := Path(folder, name)).suffix in suffixes]
    return found


def test_manifest_is_complete() -> None:
    assert MANIFEST.tag == "package"
    assert MANIFEST.get("format") == "3"
    for tag in ("name", "version", "description", "maintainer", "license", "url", "author"):
        assert MANIFEST.findtext(tag), f"package.xml lacks <{tag}>"
    assert MANIFEST.findtext("name") == "g2vlm_ros"
    assert MANIFEST.findtext("export/build_type") == "ament_cmake"
    assert MANIFEST.findtext("member_of_group") == "rosidl_interface_packages"


def test_manifest_names_what_the_code_imports() -> None:
    named = dependencies("depend", "exec_depend")
    missing = {
        name
        for name in third_party_imports() - PIP_ONLY
        if ROSDEP_KEYS.get(name, name) not in named
    }
    assert not missing, f"package.xml has no exec_depend for the imports {sorted(missing)}"


def test_manifest_names_nothing_that_nobody_uses() -> None:
    used = {ROSDEP_KEYS.get(name, name) for name in third_party_imports()}
    unused = dependencies("exec_depend") - used - USED_WITHOUT_IMPORT.keys()
    assert not unused, f"package.xml depends on {sorted(unused)}, which no file imports"


def test_manifest_names_what_cmake_and_the_interfaces_use() -> None:
    cmake = (ROOT / "CMakeLists.txt").read_text()
    found = set(re.findall(r"find_package\((\w+)", cmake))
    assert found <= dependencies("depend", "buildtool_depend", "build_depend", "test_depend")
    interfaces = [file for kind in ("msg", "srv", "action") for file in ROOT.glob(f"{kind}/*")]
    used = {
        package
        for file in interfaces
        for package in re.findall(r"^(\w+)/\w+", file.read_text(), re.MULTILINE)
    }
    assert used <= dependencies("depend")
    assert all(re.search(rf"DEPENDENCIES.*\b{package}\b", cmake) for package in used)


def test_version_is_the_same_everywhere() -> None:
    import g2vlm_ros

    assert MANIFEST.findtext("version") == g2vlm_ros.__version__
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed, so setup.py cannot be asked")
    command = [sys.executable, "setup.py", "--version"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.strip().splitlines()[-1] == g2vlm_ros.__version__


@pytest.mark.parametrize(
    "file", sorted(ROOT.glob("requirements/*.txt")), ids=lambda file: file.name
)
def test_requirements_are_pinned(file: Path) -> None:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.fullmatch(PINNED, line), line


def test_every_package_that_tests_install_has_its_licence() -> None:
    page = (ROOT / "docs" / "licences.md").read_text().lower()
    groups = ("base", "ros", "torch", "viewer", "test", "side_by_side")
    text = "\n".join((ROOT / "requirements" / f"{group}.txt").read_text() for group in groups)
    names = set(re.findall(r"^([A-Za-z0-9._-]+)==", text, re.MULTILINE))
    absent = sorted(name for name in names if f"\n| {name.lower()} |" not in page)
    assert not absent, f"run tools/licences.py: {absent}"


def test_no_file_knows_a_machine_or_an_index() -> None:
    # Put together here, so that this file does not name them itself.
    places = [
        "/" + "work/",
        "/" + "home/",
        "/" + "root/",
        "pypi" + ".org",
        "download." + "pytorch",
    ]
    places += ["files.python" + "hosted", "debian" + ".org", "/tmp" + "/dev"]
    for file in kept_files():
        text = file.read_text(errors="replace")
        named = [place for place in places if place in text]
        assert not named, f"{file.relative_to(ROOT)} names {named}"


@pytest.mark.parametrize("target", ["demo", "test", "build", "bench", "lint", "clean"])
def test_make_targets_exist(target: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command = ["make", "--dry-run", target]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert output.returncode == 0, output.stderr
    assert target in ("clean", "lint") or f"setup_env.py {target}" in output.stdout


def test_an_old_python_can_read_the_set_up() -> None:
    """It refuses old Pythons with a sentence, so they must get as far as that."""
    ast.parse((ROOT / "tools" / "setup_env.py").read_text(), feature_version=(3, 7))


def test_a_module_added_after_the_build_is_found_and_a_deleted_one_is_not(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("setup_env", ROOT / "tools" / "setup_env.py")
    setup_env = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup_env)
    root, venv = tmp_path / "root", tmp_path / "venv"
    monkeypatch.setattr(setup_env, "ROOT", root)
    monkeypatch.setattr(setup_env, "VENV", venv)
    installed = venv / "lib" / "python3.11" / "site-packages" / "g2vlm_ros"
    for folder in (root / "g2vlm_ros" / "ros" / "new", root / "config", installed / "ros"):
        folder.mkdir(parents=True)
    (root / "g2vlm_ros" / "ros" / "new" / "module.py").write_text("")
    (root / "g2vlm_ros" / "ros" / "kernel.cpp").write_text("")
    (root / "config" / "robot.yaml").write_text("")
    (installed / "ros" / "deleted.py").symlink_to(root / "g2vlm_ros" / "ros" / "deleted.py")
    (installed / "msg.py").write_text("generated")
    setup_env.link_added_files()
    setup_env.link_added_files()
    assert (installed / "ros" / "new" / "module.py").is_file()
    assert (venv / "share" / "g2vlm_ros" / "config" / "robot.yaml").is_file()
    assert {path.name for path in (installed / "ros").iterdir()} == {"new"}
    assert (installed / "msg.py").read_text() == "generated"


def test_ci_runs_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text()


def test_executables_have_modules() -> None:
    line = re.search(r"set\(executables ([^)]+)\)", (ROOT / "CMakeLists.txt").read_text())
    pairs = [pair.split("=") for pair in line[1].split()]
    assert {"perception", "replay", "export_onnx", "build_engines"} <= {n for n, _ in pairs}
    for _, module in pairs:
        file = ROOT.joinpath("g2vlm_ros", *module.split(".")).with_suffix(".py")
        tree = ast.parse(file.read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert "main" in names, f"g2vlm_ros.{module} has no main()"


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=["check", "format"])
def test_ruff_is_content(arguments: list[str]) -> None:
    if importlib.util.find_spec("ruff") is None:
        pytest.skip("ruff is not installed; `make lint` installs it")
    command = [sys.executable, "-m", "ruff", *arguments, "--no-cache", "."]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def pins() -> dict[str, set[str]]:
    """Name of a distribution -> the versions that requirements/*.txt and constraints.txt allow."""
    allowed: dict[str, set[str]] = {}
    for file in (ROOT / "requirements").glob("*.txt"):
        for name, version in re.findall(r"^([\w.-]+)==([\w.]+)", file.read_text(), re.M):
            allowed.setdefault(canonical(name), set()).add(version)
    return allowed


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def brought_along(group: str) -> dict[str, str]:
    """Name -> version of every installed distribution that a requirements file leads to."""
    from packaging.requirements import Requirement

    text = (ROOT / "requirements" / f"{group}.txt").read_text()
    lines = [line for line in text.splitlines() if "==" in line and not line.startswith("#")]
    waiting, installed = [Requirement(line) for line in lines], {}
    while waiting:
        requirement = waiting.pop()
        name = canonical(requirement.name)
        if name in installed or (requirement.marker and not requirement.marker.evaluate()):
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        installed[name] = distribution.version
        extras = requirement.extras or {""}
        for line in distribution.requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(
                needed.marker.evaluate({"extra": extra}) for extra in extras
            ):
                needed.marker = None
                waiting.append(needed)
    return installed


@pytest.mark.parametrize("group", ["base", "ros", "test", "viewer"])
def test_what_requirements_bring_along_is_pinned_too(group: str) -> None:
    """Two set-ups on different days are alike. torch's CUDA libraries are left to torch."""
    pytest.importorskip("packaging")
    if not (ROOT / ".venv").is_dir() or sys.prefix != str(ROOT / ".venv"):
        pytest.skip("not the environment that tools/setup_env.py installs")
    allowed = pins()
    wrong = {
        name: version
        for name, version in brought_along(group).items()
        if version not in allowed.get(name, ())
    }
    assert not wrong, f"not pinned in requirements/constraints.txt: {wrong}"


HASHED_GROUPS = ("base", "ros", "viewer", "test")
HASH_LINE = re.compile(r"([A-Za-z0-9._-]+)==(\S+) --hash=sha256:[0-9a-f]{64}")


@pytest.mark.parametrize(
    "file", sorted(ROOT.glob("requirements/hashes/*.txt")), ids=lambda file: file.name
)
def test_hashes_are_of_the_pinned_versions(file: Path) -> None:
    """Else REQUIRE_HASHES=1 would install something else; tools/write_hashes.py writes them."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    assert all(HASH_LINE.fullmatch(line) for line in lines)
    hashed = {canonicalize_name(name): version for name, version in map(split_pin, lines)}
    digits = re.match(r"py3(\d+)-", file.name)[1]
    python = {"python_version": f"3.{digits}", "platform_machine": "x86_64"}
    wrong = []
    for name in (*HASHED_GROUPS, "constraints"):
        for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            pin = Requirement(line)
            if pin.marker is not None and not pin.marker.evaluate(python):
                continue
            version = hashed.get(canonicalize_name(pin.name))
            absent = version is None and name != "constraints"
            if absent or version is not None and not pin.specifier.contains(version):
                wrong.append(f"{line} ({version})")
    assert not wrong, f"{file.name} is not of {wrong}; run tools/write_hashes.py with this Python"


def split_pin(line: str) -> tuple[str, str]:
    """(name, version) of a hashed line."""
    return HASH_LINE.fullmatch(line).groups()
