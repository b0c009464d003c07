# SPDX-License-Identifier: Apache-2.0
"""Fuzzing: every door for data from outside, with inputs that hypothesis makes up.

A door may take an input or refuse it with one of its kinds of error; anything else that comes out
is a fault. `make fuzz MINUTES=n` shares the time among the doors and prints a table; a slice with
fixed seeds runs in the tests (test_fuzz.py).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import hypothesis
import numpy as np
import yaml
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "A"
ROOT = Path(__file__).parents[2]
FLOATS = st.floats(width=64) | st.sampled_from([0.0, -0.0, 1e-308, 1e308, float("nan")])
SCALARS = st.none() | st.booleans() | st.integers() | FLOATS | st.text(max_size=20)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)
ENCODINGS = (
    "rgb8 bgr8 rgba8 bgra8 mono8 mono16 bayer_rggb8 bayer_gbrg8 yuv422 yuv422_yuy2 uyvy yuyv nv12 "
    "nv21 nv24 8UC3 16UC1 32FC1 64FC3"
).split()


@dataclass(frozen=True)
class Door:
    """One place where data of others comes in."""

    name: str
    inputs: st.SearchStrategy
    enter: Callable[[Any], object]
    refusals: tuple[type[Exception], ...] = (ValueError, OSError)


def escapes(door: Door, examples: int, seed: int | None = None) -> None:
    """Put so many made-up inputs through a door; raises what is no refusal.

    With seed None the inputs are the same in every run.
    """

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=seed is None,
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


# Damage --------------------------------------------------------------------------------------


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


def as_json(tree: Any) -> bytes:
    return json.dumps(tree).encode()


# Doors without ROS ---------------------------------------------------------------------------


def picture(ending: str) -> bytes:
    """A small picture as a file."""
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    return cv2.imencode(ending, pixels)[1].tobytes()


def small_map() -> bytes:
    """A saved map."""
    from g2vlm_ros.dense_map.map_files import MapInfo, save_map
    from g2vlm_ros.records import ScaleState

    path = scratch() / "whole.npz"
    save_map(path, empty_map(), MapInfo("map", ScaleState.METRIC, 1.0))
    return path.read_bytes()


def empty_map() -> Any:
    from g2vlm_ros.dense_map.voxel_map import VoxelMap

    return VoxelMap(0.05, 16 << 20)


def parsed_answer(text: str) -> None:
    from g2vlm_ros.query import answer_parser, point_parser

    for parse in (
        answer_parser.length,
        answer_parser.angle,
        answer_parser.count,
        answer_parser.yes_no,
        answer_parser.directions,
        answer_parser.denies,
        answer_parser.says_absent,
        point_parser.pointed,
    ):
        parse(text)


WORDS = st.lists(
    st.sampled_from(
        "the a red chair table is 2.1 metres 3 and half left of behind how far wide many 1e999 "
        "-0 ½ between no yes degrees <box> (12,34) [0.1, 0.2] point at not twenty one hundred "
        "there which closer feet ' \" ∞ ２".split(" ")
    )
    | st.text(max_size=8),
    max_size=24,
).map(" ".join)


def doors() -> list[Door]:
    """Every door that needs no ROS."""
    from g2vlm_ros.checkpoint.config import ModelConfig
    from g2vlm_ros.checkpoint.digest import weight_files
    from g2vlm_ros.checkpoint.onnx_manifest import Manifest
    from g2vlm_ros.export.build_plan import BuildPlan
    from g2vlm_ros.images.decoding import decode_compressed
    from g2vlm_ros.parameter_schema import parameters_of
    from g2vlm_ros.query.question_parser import parse
    from g2vlm_ros.settings import Settings

    config = json.loads((GOLDEN / "text_config.json").read_text())
    manifest = json.loads((GOLDEN / "onnx.manifest").read_text())
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "c.safetensors"}}
    names = st.sampled_from([name for name, _ in parameters_of(Settings)]) | st.text(max_size=12)
    values = SCALARS | st.lists(SCALARS, max_size=4)
    plan = (ROOT / "engines" / "plan.yaml").read_bytes()
    return [
        Door("pictures, JPEG", damaged(picture(".jpg")), lambda b: decode_compressed(b, "jpeg")),
        Door("pictures, PNG", damaged(picture(".png")), lambda b: decode_compressed(b, "png")),
        Door("parameters", st.dictionaries(names, values, max_size=6), Settings.from_flat),
        Door(
            "checkpoint config",
            altered(config).map(as_json) | damaged(as_json(config)),
            in_checkpoint("text_config.json", ModelConfig.read),
        ),
        Door(
            "ONNX manifest",
            altered(manifest).map(as_json) | damaged(as_json(manifest)),
            in_checkpoint("onnx.manifest", Manifest.read),
        ),
        Door(
            "index of weights",
            altered(index).map(as_json) | damaged(as_json(index)),
            in_checkpoint("model.safetensors.index.json", weight_files),
        ),
        Door(
            "engine plan",
            damaged(plan),
            in_file("plan.yaml", lambda path: BuildPlan.read(path, "jetson_orin")),
        ),
        Door("model answers", WORDS, parsed_answer),
        Door("questions", WORDS, parse),
        Door(
            "map files",
            damaged(small_map()),
            in_file("map.npz", load_into_empty),
        ),
    ]


def load_into_empty(path: Path) -> None:
    from g2vlm_ros.dense_map.map_files import load_map

    load_map(path, empty_map())


def torch_doors() -> list[Door]:
    """Weights: read by the same room that holds the network."""
    from g2vlm_ros.model.weights import stored_tensors

    whole = (GOLDEN / "model.safetensors").read_bytes()
    head = whole[: 8 + int.from_bytes(whole[:8], "little") + 4096]
    return [
        Door(
            "safetensors header",
            damaged(head),
            in_checkpoint("model.safetensors", stored_tensors),
        )
    ]


# Doors with ROS ------------------------------------------------------------------------------


def ros_doors() -> list[Door]:
    """Messages, and files that replay reads."""
    from sensor_msgs.msg import CameraInfo, CompressedImage, Image

    from g2vlm_ros.ros.conversions import geometry, images
    from g2vlm_ros.ros.replay.calibration import read_camera_info

    image_messages = st.builds(
        Image,
        height=st.integers(0, 40) | st.integers(0, 2**32 - 1),
        width=st.integers(0, 40) | st.integers(0, 2**32 - 1),
        step=st.integers(0, 200) | st.integers(0, 2**32 - 1),
        encoding=st.sampled_from(ENCODINGS) | st.text(max_size=10),
        is_bigendian=st.integers(0, 1),
        data=st.binary(max_size=6000),
    )
    compressed = st.builds(
        CompressedImage, format=st.text(max_size=12), data=damaged(picture(".png"))
    )
    infos = st.builds(
        CameraInfo,
        height=st.integers(0, 2**32 - 1),
        width=st.integers(0, 2**32 - 1),
        distortion_model=st.text(max_size=8),
        d=st.lists(FLOATS, max_size=8),
        k=st.lists(FLOATS, min_size=9, max_size=9),
        p=st.lists(FLOATS, min_size=12, max_size=12),
        binning_x=st.integers(0, 2**32 - 1),
    )
    calibration = {
        "image_width": 640,
        "image_height": 480,
        "camera_matrix": {"rows": 3, "cols": 3, "data": [500, 0, 320, 0, 500, 240, 0, 0, 1]},
        "distortion_coefficients": {"rows": 1, "cols": 5, "data": [0, 0, 0, 0, 0]},
    }

    def frame(message: Image | CompressedImage) -> None:
        make = images.frame_from_image
        if isinstance(message, CompressedImage):
            make = images.frame_from_compressed
        decode = make(message, "camera", max_px=1_000_000, intrinsics=None).image
        if callable(decode):
            decode()

    return [
        Door("Image", image_messages, frame),
        Door("CompressedImage", compressed, frame),
        Door("depth Image", image_messages, lambda message: images.depth_reader(message)()),
        Door("CameraInfo", infos, images.intrinsics_from_info),
        Door("Transform", transforms(), geometry.transform_matrix),
        Door(
            "calibration YAML",
            altered(calibration).map(lambda tree: yaml.safe_dump(tree).encode())
            | damaged(yaml.safe_dump(calibration).encode()),
            in_file("calibration.yaml", read_camera_info),
        ),
    ]


def transforms() -> st.SearchStrategy:
    from geometry_msgs.msg import Quaternion, Transform, Vector3

    return st.builds(
        Transform,
        translation=st.builds(Vector3, x=FLOATS, y=FLOATS, z=FLOATS),
        rotation=st.builds(Quaternion, x=FLOATS, y=FLOATS, z=FLOATS, w=FLOATS),
    )


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 where something came out of a door that is no refusal."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="of all doors together")
    parser.add_argument("--seed", type=int, default=None, help="to begin with; else the clock's")
    options = parser.parse_args(arguments)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders complain of every damaged picture
    everything = [*doors(), *torch_doors(), *ros_doors()]
    share_s = 60 * options.minutes / len(everything)
    faults, total = 0, 0
    print(f"| {'door':<20} | examples | what came out |\n|---|---|---|")
    for door in everything:
        start, examples, outcome = time.monotonic(), 0, "taken or refused"
        seed = int(time.time()) if options.seed is None else options.seed
        while time.monotonic() - start < share_s:
            try:
                escapes(door, 200, seed)
            except Exception as error:
                line = (str(error).splitlines() or [""])[0][:80]
                outcome, faults = f"**{type(error).__name__}: {line}** (seed {seed})", faults + 1
                break
            examples, seed = examples + 200, seed + 1
        total += examples
        print(f"| {door.name:<20} | {examples:8d} | {outcome} |", flush=True)
    print(f"\n{total} examples in {len(everything)} doors, {faults} faults")
    shutil.rmtree(scratch(), ignore_errors=True)
    return int(faults > 0)


if __name__ == "__main__":
    raise SystemExit(main())
