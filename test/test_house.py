"""The house: who may import whom, and how large a file may grow (CONTRIBUTING.md says why)."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "g2vlm_ros"
LONGEST_FILE = 420

# Room -> the rooms it may import. Modules directly in g2vlm_ros are rooms of their own.
ARROWS = {
    "core": {"core"},
    "model": {"core", "model"},
    "runtime": {"core", "runtime"},
    "perception": {"core", "runtime"},
    "live": {"core", "perception", "runtime"},
    "scene_map": {"core", "live"},
    "dialogues": {"core", "live", "perception"},
    "offline": {"core", "perception"},
    "ros": {"core", "dialogues", "live", "perception", "ros", "scene_map"},
    "sim": {"core", "sim"},
    "export": {"core", "export", "model", "perception", "runtime"},
    "train": {"core", "model", "perception", "runtime", "sim", "train"},
}
# Single files that may open one more door.
DOORS = {
    "runtime/torch_stages.py": {"model"},
    "perception.py": {"offline"},  # its command line
    "ros/node.py": {"runtime"},  # to open the stages
    # The simulated robot of the demo and what knows its truth; the node never imports them.
    "ros/sim_camera.py": {"sim"},
    "ros/interview.py": {"sim"},
    "ros/witness.py": {"sim"},
}
INTERFACES = {"action", "msg", "srv"}
MESSAGE_PACKAGES = ("_msgs", "_interfaces", "_srvs")
TORCH_ROOMS = {"export", "model", "sim", "train"}


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file: Path, top_level_only: bool = False) -> set[str]:
    """Full names of the modules a file imports; `from a import b` counts as a.b."""
    tree = ast.parse(file.read_text())
    nodes = list(at_import_time(tree)) if top_level_only else list(ast.walk(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parts = ["g2vlm_ros", *file.relative_to(PACKAGE).parts][: -node.level]
                module = ".".join([*parts, module] if module else parts)
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def at_import_time(node: ast.AST):
    """The nodes that run when the module is imported: not in functions, not for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from at_import_time(child)


def rooms_imported(file: Path) -> set[str]:
    parts = [name.split(".") for name in imported(file) if name.startswith("g2vlm_ros.")]
    return {part[1] for part in parts} - {"__version__"}


@pytest.mark.parametrize("file", files(), ids=name_of)
def test_imports_follow_the_arrows(file: Path) -> None:
    room = room_of(file)
    if room == "__init__":
        assert not rooms_imported(file), "the package imports nothing when it is imported"
        return
    assert room in ARROWS, f"{room} is a new room; give it its arrows in this test"
    allowed = ARROWS[room] | DOORS.get(name_of(file), set())
    if room == "ros":
        allowed |= INTERFACES
    forbidden = rooms_imported(file) - allowed
    assert not forbidden, f"{name_of(file)} imports {sorted(forbidden)}"


@pytest.mark.parametrize("file", files(), ids=name_of)
def test_only_ros_imports_ros(file: Path) -> None:
    tops = {name.split(".")[0] for name in imported(file)}
    ros = {
        top
        for top in tops
        if top in ("rclpy", "cv_bridge", "tf2_ros", "launch", "sensor_msgs_py")
        or top.endswith(MESSAGE_PACKAGES)
    }
    assert room_of(file) == "ros" or not ros, f"{name_of(file)} imports {sorted(ros)}"


@pytest.mark.parametrize("file", files(), ids=name_of)
def test_torch_and_tensorrt_stay_in_their_rooms(file: Path) -> None:
    tops = {name.split(".")[0] for name in imported(file, top_level_only=True)}
    may_torch = room_of(file) in TORCH_ROOMS or name_of(file) == "runtime/torch_stages.py"
    assert may_torch or "torch" not in tops, f"{name_of(file)} imports torch when imported"
    everywhere = {name.split(".")[0] for name in imported(file)}
    may_tensorrt = name_of(file) in ("runtime/engine.py", "export/build.py")
    assert may_tensorrt or not everywhere & {"tensorrt", "tensorrt_rtx"}


def test_core_needs_no_heavy_library() -> None:
    """Every library that core imports is one of the few it is allowed."""
    allowed = {"PIL", "cv2", "g2vlm_ros", "numpy", "safetensors", "tokenizers"}
    allowed |= {"transforms3d", "yaml"}
    for file in (PACKAGE / "core").rglob("*.py"):
        others = {name.split(".")[0] for name in imported(file)} - sys.stdlib_module_names
        assert others <= allowed, f"{name_of(file)} imports {sorted(others - allowed)}"


def test_files_stay_readable() -> None:
    long = {
        name_of(file): lines
        for file in files()
        if (lines := len(file.read_text().splitlines())) > LONGEST_FILE
    }
    assert not long, f"longer than {LONGEST_FILE} lines, to be split: {long}"


def test_no_room_for_odds_and_ends() -> None:
    names = {part.removesuffix(".py") for file in files() for part in file.parts}
    assert not names & {"utils", "util", "common", "helpers", "helper", "misc"}
