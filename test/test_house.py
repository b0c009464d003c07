# SPDX-License-Identifier: Apache-2.0
"""The house: who may import whom; CONTRIBUTING.md holds the table."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "g2vlm_ros"
TORCH_ROOMS = {"demo", "export", "model"}
TORCH_FILES = {
    "inference/torch_backend.py",
    "inference/torch_cache.py",
    "inference/torch_decoding.py",
    "inference/torch_fusion.py",
    "inference/torch_graphs.py",
    "inference/torch_points.py",
}
LAZY_FILES = {
    "inference/backend.py",
    "inference/tensorrt/versions.py",
}
"""Files that import by name at run time: our backends, and whichever TensorRT is installed."""
TENSORRT_PLACES = ("inference/tensorrt/", "export/build_engines.py")
INTERFACES = {"action", "msg", "srv"}
ROS_PACKAGES = {"cv_bridge", "launch", "rclpy", "sensor_msgs_py", "tf2_ros"}
MESSAGE_PACKAGES = ("_msgs", "_interfaces", "_srvs")
PUBLIC_UNDERSCORES = {"_replace"}
"""Of a named tuple; the underscore only keeps it apart from the fields."""
BARE_PARTICIPLES = set(
    "made found told known seen chosen whole wanted heard got given drawn came kept own".split()
)
"""Say nothing of what a name holds; as adjectives of a noun (`fused_depth`) they are welcome."""
LIGHT_ROOMS = ("checkpoint", "dense_map", "geometry", "images", "mapping", "query")
LIGHT_LIBRARIES = {
    "PIL",
    "cv2",
    "g2vlm_ros",
    "numpy",
    "safetensors",
    "tokenizers",
    "transforms3d",
    "yaml",
}


def arrows() -> dict[str, set[str]]:
    """Room -> the rooms it may import, from the table in CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)
    rooms = {room for room, _ in rows}
    table = {}
    for room, cell in rows:
        table[room] = rooms if cell == "all rooms" else set(re.findall(r"`(\w+)`", cell))
    return table


ARROWS = arrows()


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
    if not top_level_only:
        names |= modules_named(tree)
    return names


def modules_named(tree: ast.AST) -> set[str]:
    """Our modules that a file which uses import_module names in strings."""
    if not any(
        isinstance(node, ast.Name) and node.id in ("import_module", "importlib")
        for node in ast.walk(tree)
    ):
        return set()
    strings = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return {text for text in strings if re.fullmatch(r"g2vlm_ros(\.\w+)+", text)}


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
def test_imports_follow_the_table(file: Path) -> None:
    room = room_of(file)
    if room == "__init__":
        assert not rooms_imported(file), "the package imports nothing when it is imported"
        return
    assert room in ARROWS, f"{room} is a new room; give it a row in CONTRIBUTING.md"
    allowed = ARROWS[room] | {room}
    if room in ("demo", "ros"):
        allowed |= INTERFACES
    forbidden = rooms_imported(file) - allowed
    assert not forbidden, f"{name_of(file)} imports {sorted(forbidden)}"


def test_no_arrow_of_the_table_leads_back() -> None:
    """The rooms can be put in a row in which each imports only those before it."""
    left = {room: set(others) - {room} for room, others in ARROWS.items()}
    while left:
        free = {room for room, others in left.items() if not others & left.keys()}
        assert free, f"these import each other in a circle: {sorted(left)}"
        left = {room: others for room, others in left.items() if room not in free}


def test_every_arrow_of_the_table_is_used() -> None:
    used = {room: set() for room in ARROWS}
    for file in files():
        used.get(room_of(file), set()).update(rooms_imported(file))
    unused = {
        room: sorted(others - used[room])
        for room, others in ARROWS.items()
        if room != "demo" and others - used[room]
    }
    assert not unused, f"arrows that no import needs: {unused}"


@pytest.mark.parametrize("file", files(), ids=name_of)
def test_only_ros_and_the_demo_import_ros(file: Path) -> None:
    tops = {name.split(".")[0] for name in imported(file)}
    ros = {top for top in tops if top in ROS_PACKAGES or top.endswith(MESSAGE_PACKAGES)}
    at_home = name_of(file).startswith(("ros/", "demo/nodes/"))
    assert at_home or not ros, f"{name_of(file)} imports {sorted(ros)}"


@pytest.mark.parametrize("file", files(), ids=name_of)
def test_torch_and_tensorrt_stay_in_their_rooms(file: Path) -> None:
    at_start = {name.split(".")[0] for name in imported(file, top_level_only=True)}
    may_torch = room_of(file) in TORCH_ROOMS or name_of(file) in TORCH_FILES
    assert may_torch or "torch" not in at_start, f"{name_of(file)} imports torch when imported"
    everywhere = {name.split(".")[0] for name in imported(file)}
    may_tensorrt = name_of(file).startswith(TENSORRT_PLACES)
    assert may_tensorrt or not everywhere & {"tensorrt", "tensorrt_rtx"}


def test_few_files_import_by_name() -> None:
    lazy = {name_of(file) for file in files() if "import_module(" in file.read_text()}
    assert lazy <= LAZY_FILES, sorted(lazy - LAZY_FILES)


@pytest.mark.parametrize("room", LIGHT_ROOMS)
def test_rooms_without_a_network_need_no_heavy_library(room: str) -> None:
    for file in (PACKAGE / room).rglob("*.py"):
        others = {name.split(".")[0] for name in imported(file)} - sys.stdlib_module_names
        heavy = others - LIGHT_LIBRARIES
        assert not heavy, f"{name_of(file)} imports {sorted(heavy)}"


@pytest.mark.parametrize("file", files(), ids=name_of)
def test_data_has_nouns(file: Path) -> None:
    """A local, a parameter or an attribute is called what it is, not what was done to it."""
    bare = []
    for node in ast.walk(ast.parse(file.read_text())):
        name = ""
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.attr
        elif isinstance(node, ast.arg):
            name = node.arg
        if name.strip("_") in BARE_PARTICIPLES:
            bare.append(f"line {node.lineno}: {name}")
    assert not bare, f"{name_of(file)} names no thing in {bare}"


def test_tests_use_what_is_public() -> None:
    """A private attribute of another object is reached into nowhere: it gets a seam instead."""
    private = []
    for file in sorted((ROOT / "test").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = private_names(node) - PUBLIC_UNDERSCORES
            private += [f"{file.relative_to(ROOT)}:{node.lineno} {name}" for name in names]
    assert not private, private


def private_names(node: ast.AST) -> set[str]:
    """What it reaches into: `other._name`, `from a import _name`, `setattr(other, "_name")`."""
    names: set[str] = set()
    if isinstance(node, ast.Attribute):
        own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        names = set() if own else {node.attr}
    elif isinstance(node, ast.ImportFrom):
        names = {alias.name for alias in node.names}
    elif isinstance(node, ast.Call):
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if called in ("getattr", "setattr", "delattr", "patch", "object"):
            strings = [each.value for each in node.args if isinstance(each, ast.Constant)]
            names = {text.split(".")[-1] for text in strings if isinstance(text, str)}
    return {name for name in names if re.fullmatch(r"_[a-z]\w*|_[A-Z]\w*", name)}


def test_no_room_for_odds_and_ends() -> None:
    names = {part.removesuffix(".py") for file in files() for part in file.parts}
    assert not names & {"utils", "util", "common", "helpers", "helper", "misc"}
