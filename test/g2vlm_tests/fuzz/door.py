# SPDX-License-Identifier: Apache-2.0
"""Doors for data from outside, and inputs that hypothesis makes up for them.

A door may take an input or refuse it with one of its kinds of error; anything else that comes out
is a fault.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "A"
ROOT = Path(__file__).parents[3]
FLOATS = st.floats(width=64) | st.sampled_from([0.0, -0.0, 1e-308, 1e308, float("nan")])
SCALARS = st.none() | st.booleans() | st.integers() | FLOATS | st.text(max_size=20)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)


@dataclass(frozen=True)
class Door:
    """One place where data of others comes in."""

    name: str
    inputs: st.SearchStrategy
    enter: Callable[[Any], object]
    refusals: tuple[type[Exception], ...] = (ValueError, OSError)
    batch: int = 200
    """Examples between two looks at the clock; fewer where one takes long."""


def escapes(door: Door, examples: int, seed: int | None = None) -> None:
    """Put so many made-up inputs through a door; raises what is no refusal.

    With seed None the inputs are the same in every run.
    """

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=seed is None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
    )
    @given(door.inputs)
    def once(value: Any) -> None:
        try:
            door.enter(value)
        except door.refusals:
            pass

    (once if seed is None else hypothesis.seed(seed)(once))()


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """Content with some bytes changed, cut out, doubled or cut off."""
    data = bytearray(content)
    for _ in range(draw(st.integers(0, 8))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.integers(0, 3))
        if kind == 0 and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == 1:
            data[at:at] = draw(st.binary(max_size=16))
        elif kind == 2:
            del data[at : at + draw(st.integers(1, 64))]
        else:
            del data[at:]
    return bytes(data)


@st.composite
def altered(draw: Any, tree: Any) -> Any:
    """A JSON tree in which some values became others or went."""
    if isinstance(tree, dict):
        return {
            key: draw(altered(value)) for key, value in tree.items() if draw(st.integers(0, 30))
        }
    if isinstance(tree, list) and tree:
        return [draw(altered(value)) for value in tree[:40]]
    return draw(TREES) if not draw(st.integers(0, 15)) else tree


def as_json(tree: Any) -> bytes:
    return json.dumps(tree).encode()


@cache
def scratch() -> Path:
    """A folder for files that doors read."""
    return Path(tempfile.mkdtemp(prefix="g2vlm_fuzz_"))


def in_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Enter a door through a file with these bytes."""

    def enter(content: bytes) -> object:
        path = scratch() / name
        path.write_bytes(content)
        return read(path)

    return enter


def in_checkpoint(file: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Enter through one file of a checkpoint folder whose other files are whole."""
    folder = scratch() / f"checkpoint_{file}"

    def enter(content: bytes) -> object:
        if not folder.exists():
            folder.mkdir()
            for path in GOLDEN.iterdir():
                if path.is_file() and path.name != "model.safetensors":
                    shutil.copy(path, folder)
                elif path.is_file():
                    (folder / path.name).symlink_to(path)
        target = folder / file
        if target.is_symlink():
            target.unlink()
        target.write_bytes(content)
        return read(folder)

    return enter


def in_folder(
    name: str, make: Callable[[Path], Path], file: str, read: Callable[[Path], object]
) -> tuple[bytes, Callable[[bytes], object]]:
    """What `file` of a folder holds that `make` writes, and the way in through it."""
    root = Path(tempfile.mkdtemp(prefix=name, dir=scratch()))
    folder = make(root)
    (target,) = folder.glob(file)
    content = target.read_bytes()

    def enter(changed: bytes) -> object:
        target.write_bytes(changed)
        return read(folder)

    return content, enter
