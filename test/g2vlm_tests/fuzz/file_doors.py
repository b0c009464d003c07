# SPDX-License-Identifier: Apache-2.0
"""Doors that need no ROS: files of checkpoints, maps and recordings, pictures, words."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from g2vlm_tests.fuzz.door import (
    GOLDEN,
    ROOT,
    SCALARS,
    Door,
    altered,
    as_json,
    damaged,
    in_checkpoint,
    in_file,
    in_folder,
    scratch,
)
from g2vlm_tests.fuzz.keyframe_doors import keyframe_doors
from hypothesis import strategies as st


def picture(ending: str) -> bytes:
    """A small picture as a file."""
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    return cv2.imencode(ending, pixels)[1].tobytes()


def small_map() -> bytes:
    """A saved map with some hundred voxels."""
    from g2vlm_ros.dense_map.map_files import MapInfo, save_map
    from g2vlm_ros.records import ScaleState

    voxel_map, rng = empty_map(), np.random.default_rng(0)
    points = rng.normal(size=(300, 3)).astype(np.float32)
    colours = rng.integers(0, 256, points.shape, dtype=np.uint8)
    voxel_map.integrate(points, colours, np.ones(300, np.float32), np.zeros(3), 10**18, 0)
    path = scratch() / "whole.npz"
    save_map(path, voxel_map, MapInfo("map", ScaleState.METRIC, 1.0))
    return path.read_bytes()


def empty_map() -> Any:
    from g2vlm_ros.dense_map.voxel_map import VoxelMap

    return VoxelMap(0.05, 16 << 20)


def saved_objects() -> Any:
    """What a map file says of remembered objects, as a JSON tree."""
    from g2vlm_ros.query.map_object import MapObject
    from g2vlm_ros.query.object_file import to_bytes

    objects = [
        MapObject(
            id=k + 1,
            label="chair",
            centre=np.arange(3.0),
            size=np.ones(3),
            yaw_rad=0.3,
            covariance=np.eye(3),
            map_id=0,
            window_id=4,
            first_seen_ns=1,
            last_seen_ns=2,
        )
        for k in range(2)
    ]
    return json.loads(to_bytes(objects))


def remembered(content: bytes) -> None:
    """Objects of a file, found and named as questions do."""
    from g2vlm_ros.dense_map.rooms import RoomMap
    from g2vlm_ros.geometry.sim3 import Sim3
    from g2vlm_ros.query.object_file import from_bytes, to_bytes
    from g2vlm_ros.query.object_memory import ObjectMemory

    memory = ObjectMemory(10)
    objects, rooms = from_bytes(content, Sim3.identity())
    memory.replace_all(objects)
    RoomMap().restore(rooms)
    for thing in memory.find("chair", None, 0, True):
        thing.place_in_words()
        thing.as_object3d()
    to_bytes(memory.objects())


def answered(case: tuple[str, list[str]]) -> None:
    """A question about a known room to a model that says these words, in turn."""
    from itertools import cycle

    from g2vlm_tests.known_room import BOXES, Model, ask

    from g2vlm_ros.query.grounding import OutOfTimeError
    from g2vlm_ros.query.types import Abstention

    class Talker(Model):
        words = cycle(case[1])

        def __call__(self, prompt: str, marks: object) -> str:
            super().__call__(prompt, marks)
            return next(self.words)

    try:
        result = ask(case[0], model=Talker(), boxes=BOXES[:2], names=["red chair", "table"])
    except (Abstention, OutOfTimeError):
        return
    if result.number is not None and not np.isfinite(result.number.value):
        raise AssertionError(f"an answer of {result.number.value}")
    if result.pose is not None and not np.isfinite(result.pose).all():
        raise AssertionError("an answer's pose is not finite")


QUESTIONS = (
    "How far is the red chair?",
    "How many chairs are there?",
    "Where is the lamp?",
    "Is the red chair to the left of the table?",
    "How wide is the gap between the red chair and the table?",
    "Which is closer, the table or the lamp?",
    "What colour is the table?",
    "Go to the red chair",
)


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
    return [*checkpoint_doors(), *picture_doors(), *word_doors(), *map_doors()]


def checkpoint_doors() -> list[Door]:
    """Files beside the weights, and of engines."""
    from g2vlm_ros.checkpoint.config import ModelConfig
    from g2vlm_ros.checkpoint.digest import weight_files
    from g2vlm_ros.checkpoint.input_sizes import InputSizes
    from g2vlm_ros.checkpoint.onnx_manifest import Manifest
    from g2vlm_ros.checkpoint.tokenizer import Tokenizer
    from g2vlm_ros.export.build_plan import BuildPlan

    index = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "c.safetensors"}}
    sizes = {"image_width_px": 224, "semantic_width_px": 168}

    def json_door(name: str, file: str, read: Any, tree: Any = None, batch: int = 200) -> Door:
        tree = json.loads((GOLDEN / file).read_text()) if tree is None else tree
        inputs = altered(tree).map(as_json) | damaged(as_json(tree))
        return Door(name, inputs, in_checkpoint(file, read), batch=batch)

    def merges(folder: Path) -> object:
        (folder / "tokenizer.json").unlink(missing_ok=True)
        return Tokenizer.open(folder)

    plan = (ROOT / "engines" / "plan.yaml").read_bytes()
    return [
        json_door("checkpoint config", "text_config.json", ModelConfig.read),
        json_door("encoder config", "vit_config.json", ModelConfig.read),
        json_door("input sizes", "input_sizes.json", InputSizes.read, sizes),
        json_door("ONNX manifest", "onnx.manifest", Manifest.read),
        json_door("index of weights", "model.safetensors.index.json", weight_files, index),
        json_door("tokenizer", "tokenizer.json", Tokenizer.open, batch=50),
        json_door("tokenizer config", "tokenizer_config.json", Tokenizer.open, batch=50),
        Door(
            "tokenizer merges",
            damaged((GOLDEN / "merges.txt").read_bytes()),
            in_checkpoint("merges.txt", merges),
            batch=50,
        ),
        Door(
            "engine plan",
            altered(yaml.safe_load(plan)).map(lambda tree: yaml.safe_dump(tree).encode())
            | damaged(plan),
            in_file("plan.yaml", lambda path: BuildPlan.read(path, "jetson_orin")),
        ),
        engine_record_door(),
    ]


def engine_record_door() -> Door:
    """The record beside an engine."""
    from g2vlm_ros.inference.tensorrt.engine_metadata import (
        FORMAT,
        EngineError,
        EngineMetadata,
    )

    record = dict.fromkeys(EngineMetadata.__dataclass_fields__, "text")
    record |= {"format": FORMAT, "size": [56, 42], "engine_bytes": 10, "verified": {"depth": 0.1}}
    record |= {"inputs": {"images": ["float32", [2, 3]]}, "outputs": {}, "profiles": []}
    return Door(
        "engine record",
        altered(record).map(as_json) | damaged(as_json(record)),
        in_file("engine.json", EngineMetadata.read),
        (EngineError,),
    )


def picture_doors() -> list[Door]:
    """Compressed pictures, and folders and videos of them."""
    from g2vlm_ros.images.decoding import decode_compressed
    from g2vlm_ros.images.sources import open_source

    def frames(path: Path) -> None:
        for _ in open_source(path):
            pass

    video = scratch() / "whole.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (32, 24))
    for number in range(3):
        writer.write(np.full((24, 32, 3), 60 * number, np.uint8))
    writer.release()
    (scratch() / "pictures").mkdir(exist_ok=True)
    return [
        Door("pictures, JPEG", damaged(picture(".jpg")), lambda b: decode_compressed(b, "jpeg")),
        Door("pictures, PNG", damaged(picture(".png")), lambda b: decode_compressed(b, "png")),
        Door("picture files", damaged(picture(".png")), in_file("pictures/1.png", frames)),
        Door("videos", damaged(video.read_bytes()), in_file("damaged.avi", frames)),
    ]


def word_doors() -> list[Door]:
    """What people ask and write into parameters, and what the model says."""
    from g2vlm_ros.parameter_schema import parameters_of
    from g2vlm_ros.query.question_parser import parse
    from g2vlm_ros.query.request_forms import plan_of
    from g2vlm_ros.settings import Settings

    names = st.sampled_from([name for name, _ in parameters_of(Settings)]) | st.text(max_size=12)
    values = SCALARS | st.lists(SCALARS, max_size=4)
    kinds = st.sampled_from("distance size where left_of between closer count gap fits".split())
    plans = st.tuples(kinds | st.text(max_size=8), st.lists(WORDS, max_size=4))
    asked = st.tuples(st.sampled_from(QUESTIONS) | WORDS, st.lists(WORDS, min_size=1, max_size=4))
    return [
        Door("parameters", st.dictionaries(names, values, max_size=6), Settings.from_flat),
        Door("model answers", WORDS, parsed_answer),
        Door("answers about a room", asked, answered, batch=50),
        Door("questions", WORDS, parse),
        Door("structured questions", plans, lambda plan: plan_of(*plan)),
    ]


def map_doors() -> list[Door]:
    """Saved maps and objects, and recorded sequences with true poses."""
    from g2vlm_ros.dense_map.map_files import load_objects

    objects = saved_objects()
    return [
        Door("map files", damaged(small_map()), in_file("map.npz", load_into_empty)),
        Door("objects of map files", damaged(small_map()), in_file("map.npz", load_objects)),
        Door(
            "saved objects", altered(objects).map(as_json) | damaged(as_json(objects)), remembered
        ),
        *keyframe_doors(),
        *recording_doors(),
    ]


def recording_doors() -> list[Door]:
    """Sequences that `python -m g2vlm_ros.evaluate` reads, one file of each damaged."""
    from g2vlm_tests import posed_sequences as formats

    from g2vlm_ros.datasets.open_sequence import open_sequence

    def frames(folder: Path) -> None:
        for frame in open_sequence(folder).frames[:3]:
            frame.image()

    drive = tiny_drive()

    def door(name: str, write: Any, file: str) -> Door:
        content, enter = in_folder(name.split(",")[0], lambda at: write(at, drive), file, frames)
        return Door(f"sequence, {name}", damaged(content), enter, batch=50)

    return [
        door("TUM", formats.write_tum, "groundtruth.txt"),
        door("TUM, list", formats.write_tum, "rgb.txt"),
        door("EuRoC", formats.write_euroc, "mav0/cam0/data.csv"),
        door("EuRoC, mount", formats.write_euroc, "mav0/cam0/sensor.yaml"),
        door("nerfstudio", formats.write_nerfstudio, "transforms.json"),
        door("HoloLens", formats.write_hololens, "poses.txt"),
        door("MCAP", partial(write_bag, mcap=True), "bag.mcap"),
        door("db3", partial(write_bag, mcap=False), "bag.db3"),
        door("metadata", partial(write_bag, mcap=True), "metadata.yaml"),
    ]


def write_bag(folder: Path, drive: Any, mcap: bool) -> Path:
    from g2vlm_tests.posed_sequences import write_bag as write

    return write(folder / "bag", drive, mcap)


def tiny_drive() -> Any:
    """Three pictures of noise along a line."""
    from g2vlm_tests.posed_sequences import FIRST_NS, STEP_NS, Drive

    from g2vlm_ros.records import Intrinsics

    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, 0, 3] = np.arange(3)
    images = np.random.default_rng(0).integers(0, 255, (3, 12, 16, 3), np.uint8)
    camera = Intrinsics(14.0, 14.0, 7.5, 5.5, 16, 12)
    return Drive(camera, poses, images, np.ones((3, 12, 16)), FIRST_NS + STEP_NS * np.arange(3))


def load_into_empty(path: Path) -> None:
    from g2vlm_ros.dense_map.map_files import load_map

    load_map(path, empty_map())


def torch_doors() -> list[Door]:
    """Weights: read by the same room that holds the network."""
    from g2vlm_ros.model.weights import stored_tensors

    whole = (GOLDEN / "model.safetensors").read_bytes()
    head = whole[: 8 + int.from_bytes(whole[:8], "little") + 4096]
    tree = json.loads(head[8 : 8 + int.from_bytes(head[:8], "little")])
    few = dict(list(tree.items())[:6])

    def with_length(header: bytes) -> bytes:
        return len(header).to_bytes(8, "little") + header + bytes(4096)

    return [
        Door("safetensors", damaged(head), in_checkpoint("model.safetensors", stored_tensors)),
        Door(
            "safetensors header",
            altered(few).map(as_json).map(with_length),
            in_checkpoint("model.safetensors", stored_tensors),
        ),
    ]
