# SPDX-License-Identifier: Apache-2.0
"""What a window costs the node outside the engines, by part; results/overhead.json.

Four views at 518x392 of a walk through a simulated home. The engines are a STAND-IN that knows the
true geometry and whose time does not count; everything else is the node's own: images to model
size, confidence, placing, map, and the bytes of `~/points` (which a backend that packs clouds
itself does on the device). The result is the ratio to an earlier commit, run in turns with it.
Messages are made, but not sent. Beside it `peers`: what other libraries take for a joint and for
voxels, where they are installed. Needs git.
"""

from __future__ import annotations

import argparse
import array
import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.home_map import ExactPerception
from benchmarks.peers import peers
from benchmarks.question_cost import GOLDEN
from benchmarks.record import record
from g2vlm_ros.checkpoint.config import PATCH_PX, ModelConfig
from g2vlm_ros.checkpoint.tokenizer import Tokenizer
from g2vlm_ros.demo.sim.scenes import make_scene
from g2vlm_ros.demo.sim.splits import home_seed
from g2vlm_ros.dense_map.dense_map import DenseMap
from g2vlm_ros.dense_map.map_changes import change_rows
from g2vlm_ros.geometry import point_cloud
from g2vlm_ros.inference.tensorrt.device_memory import DeviceMemory
from g2vlm_ros.inference.tensorrt.point_packing import PointPacker
from g2vlm_ros.mapping.window_pose import MappedWindow
from g2vlm_ros.perception import Perception
from g2vlm_ros.pipeline import MappingPipeline
from g2vlm_ros.records import RawGeometry
from g2vlm_ros.settings import Settings

CAMERA_PX, WIDTH_PX = 640, 518
GOAL_MS = 35.0
"""A tenth of what the window cost at BASE on the machine that measured it."""
BASE = "c869de8"
"""The last commit before the kernels."""
ROOT = Path(__file__).resolve().parents[1]
CLOUD = Settings().cloud
ENGINES = ("encode_geometry", "geometry", "heads")


class ReadyEngines:
    """Stages that look the true geometry up; features and hidden states are numbers of views."""

    backend, chosen_because = "stand-in", "its time does not count"

    def __init__(self, exact: ExactPerception):
        self._exact, self.config = exact, ModelConfig.read(GOLDEN)
        self.times_s: dict[str, float] = {}
        self.spent_s = 0.0

    def new_cache(self) -> ReadyEngines:
        return self

    fork = new_cache

    def language(self, *_: Any) -> None: ...

    def encode_geometry(self, images: np.ndarray) -> list[int]:
        start = time.process_time()
        numbers = self._exact.scene(list(images))
        self.spent_s += time.process_time() - start
        return numbers

    def geometry(self, features: list[int], *_: Any) -> list[int]:
        return features

    def heads(self, hidden: list[int], grid_hw: tuple[int, int]) -> RawGeometry:
        start, size = time.process_time(), (grid_hw[1] * PATCH_PX, grid_hw[0] * PATCH_PX)
        raw = self._exact.reconstruct(hidden).geometry
        local = [cv2.resize(p, size, interpolation=cv2.INTER_NEAREST) for p in raw.local_points_u]
        self.spent_s += time.process_time() - start
        return RawGeometry(np.stack(local), raw.window_from_camera, raw.rotation9)

    def describe(self, features: list[int]) -> np.ndarray:
        return np.ones((len(features), 64), np.float32)


def packed(update: MappedWindow, out: array.array | None = None) -> array.array:
    """The bytes of the window's cloud, as `~/points` has them; `out` is a message's memory."""
    cloud, result, views = CLOUD, update.result, list(update.trusted_views)
    return point_cloud.pack(
        result.local_points_u,
        result.colours,
        result.confidence,
        result.valid(cloud.max_edge_step),
        views=views,
        poses=update.map_from_camera[views],
        scale=update.placement.map_from_window.scale,
        min_confidence=cloud.min_confidence,
        out=out,
    )


PARTS = {
    "decoding and stillness": (
        "g2vlm_ros.pipeline:MappingPipeline._decode",
        "g2vlm_ros.pipeline:MappingPipeline._finish",
    ),
    "image quality": ("g2vlm_ros.images.quality:ImageQualityFilter.fault",),
    "resize": ("g2vlm_ros.perception:resize_views",),
    "cameras of views": ("g2vlm_ros.perception:intrinsics_of_views",),
    "confidence": ("g2vlm_ros.perception:multi_view_confidence",),
    "pose refinement, less its parts": ("g2vlm_ros.mapping.pose_refinement:PoseRefiner.refine",),
    "tracks": ("g2vlm_ros.mapping.pose_refinement:follow_corners",),
    "features": ("g2vlm_ros.mapping.pose_refinement:matched_poses",),
    "adjustment": ("g2vlm_ros.mapping.window_adjustment:WindowAdjustment.solve",),
    "placing, less its parts": ("g2vlm_ros.mapping.graph_slam:GraphSlam.place",),
    "registration": ("g2vlm_ros.mapping.window_registration:register_views",),
    "covisibility": ("g2vlm_ros.mapping.window_registration:measure_covisibility",),
    "surfaces and up": (
        "g2vlm_ros.mapping.gravity_alignment:surfaces_of",
        "g2vlm_ros.mapping.gravity_alignment:structure_up",
    ),
    "floor": ("g2vlm_ros.mapping.gravity_alignment:find_floor",),
    "loop closure": ("g2vlm_ros.pipeline:MappingPipeline._close_loop",),
    "keyframe": ("g2vlm_ros.pipeline:MappingPipeline._remember",),
    "depth fusion": ("g2vlm_ros.pipeline:fuse_depth",),
    "valid points": ("g2vlm_ros.records:Reconstruction.valid",),
    "map, less its parts": ("g2vlm_ros.dense_map.dense_map:DenseMap.add",),
    "map in a new unit": ("g2vlm_ros.dense_map.dense_map:DenseMap._resize",),
    "cells and merge": ("g2vlm_ros.dense_map.voxel_map:VoxelMap.integrate_views",),
    "free space": ("g2vlm_ros.dense_map.voxel_map:VoxelMap.carve",),
    "occupancy fans": ("g2vlm_ros.dense_map.occupancy:OccupancyMapper.observe",),
    "points": ("g2vlm_ros.geometry.point_cloud:pack",),
}
"""What of a window's processor time is told apart: names of parts, and the functions they are."""


class Parts:
    """Processor time of PARTS, without that of parts inside them."""

    def __init__(self) -> None:
        self.spent_s: dict[str, float] = defaultdict(float)
        self._inner = [0.0]
        self._before: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Parts:
        for part, names in PARTS.items():
            for name in names:
                module, _, path = name.partition(":")
                *owners, attribute = path.split(".")
                owner = importlib.import_module(module)
                for each in owners:
                    owner = getattr(owner, each)
                function = getattr(owner, attribute)
                self._before.append((owner, attribute, function))
                setattr(owner, attribute, self._timed(part, function))
        return self

    def __exit__(self, *_: object) -> None:
        for owner, attribute, function in self._before:
            setattr(owner, attribute, function)

    def _timed(self, part: str, function: Callable) -> Callable:
        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.process_time()
            self._inner.append(0.0)
            try:
                return function(*arguments, **named)
            finally:
                time_s = time.process_time() - start
                self.spent_s[part] += time_s - self._inner.pop()
                self._inner[-1] += time_s

        return timed


def walk(home: int, views: int) -> dict[str, Any]:
    """Medians over the windows of a walk, milliseconds of the processor."""
    settings = Settings.from_flat({"window.max_age_s": 10.0, "model.image_width_px": WIDTH_PX})
    exact = ExactPerception(make_scene(home_seed("heldout", home)), views, CAMERA_PX)
    engines = ReadyEngines(exact)
    live = MappingPipeline(Perception(engines, Tokenizer.open(GOLDEN), settings), settings)
    dense_map, booked = DenseMap(settings), defaultdict(list)
    message, version = None, None
    for number in range(views):
        live.offer(exact.frame(number))
        engines.spent_s = 0.0
        with Parts() as parts:
            times = [time.process_time()]
            if (update := live.step()) is None:
                continue
            times.append(time.process_time())
            dense_map.add(update)
            times.append(time.process_time())
            message = packed(update, message)
            times.append(time.process_time())
        outputs = {"map_updates": time.process_time()}
        change, version = dense_map.changes(version)
        change_rows(change)
        outputs["map"] = time.process_time()
        dense_map.points()
        outputs["occupancy"] = time.process_time()
        dense_map.occupancy()
        ends = [*list(outputs.values())[1:], time.process_time()]
        step, into_map, points = np.diff(times).tolist()
        step -= engines.spent_s
        times_s = {"step": step, "map": into_map, "points": points}
        times_s["all"] = step + into_map + points
        told_apart = dict.fromkeys(PARTS, 0.0) | dict(parts.spent_s)
        told_apart["rest"] = times_s["all"] - sum(told_apart.values())
        times_s |= {f"part: {name}": seconds for name, seconds in told_apart.items()}
        times_s |= {
            f"message: {name}": end - start
            for (name, start), end in zip(outputs.items(), ends, strict=True)
        }
        for name, seconds in times_s.items():
            booked[name].append(1000 * seconds)
    return {
        "windows": len(booked["all"]),
        "views": settings.window.views,
        "size": [WIDTH_PX, 392],
        "voxels": len(dense_map.points()),
        "processor_ms": {name: round(float(np.median(s)), 2) for name, s in booked.items()},
        "processor_ms_mean": round(float(np.mean(booked["all"])), 2),
        "processor_ms_of_windows": [round(ms, 1) for ms in booked["all"]],
    }


def in_process(folder: Path, home: int, views: int) -> dict[str, Any]:
    """`walk` of the project in `folder`, in a process of its own, one thread."""
    code = (
        "import json, cv2; cv2.setNumThreads(1); from benchmarks.overhead import walk; "
        f"print(json.dumps(walk({home}, {views})))"
    )
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    environment = dict(os.environ, PYTHONPATH=str(folder), **threads)
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, stdout=subprocess.PIPE,
        check=True,
    )  # fmt: skip
    return json.loads(run.stdout.splitlines()[-1])


def compared(home: int, views: int, base: str, rounds: int) -> dict[str, Any]:
    """Ours against an earlier commit on the same walk, in turns: medians, and their ratio."""
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "archive", base], cwd=ROOT, capture_output=True, check=True
        )
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        for _ in range(rounds):
            theirs.append(in_process(Path(folder), home, views))
            ours.append(in_process(ROOT, home, views))
    base_ms = [run["processor_ms"]["all"] for run in theirs]
    ratios = [one / other["processor_ms"]["all"] for one, other in zip(base_ms, ours, strict=True)]
    middle = sorted(ours, key=lambda run: run["processor_ms"]["all"])[len(ours) // 2]
    return {
        **middle,
        "base": base,
        "base_processor_ms": round(float(np.median(base_ms)), 1),
        "base_over_ours": round(float(np.median(ratios)), 2),
        "base_over_ours_of_rounds": [round(ratio, 2) for ratio in ratios],
    }


def packing(
    device: DeviceMemory, size: tuple[int, int], views: list[int]
) -> Iterator[dict[str, Any]]:
    """Clouds packed on a device, the copy back included, and by numpy."""
    packer = PointPacker(device)
    return (pack_views(device, packer, count, *size) for count in views)


def pack_views(
    device: DeviceMemory, packer: PointPacker, views: int, width: int, height: int
) -> dict[str, Any]:
    """One cloud both ways: the same points, and how long each way takes."""
    rng, limits = np.random.default_rng(0), (0.3, 0.05)
    points = rng.normal(0, 0.1, (views, height, width, 3)).astype(np.float32)
    points[..., 2] = 2 + 0.2 * points[..., 2]
    colours = rng.integers(0, 256, points.shape, np.uint8)
    confidence = rng.random(points.shape[:3], np.float32)
    poses, there = np.tile(np.eye(4), (views, 1, 1)), device.upload(points, "FLOAT", "points")
    maps = device.upload(colours, "UINT8", "colours"), device.upload(confidence, "FLOAT", "")

    def on_device() -> np.ndarray:
        affines = point_cloud.affines(views, poses)
        return packer.pack(there, *maps, None, range(views), affines, *limits)

    def by_numpy() -> np.ndarray:
        valid = point_cloud.valid_points(points, confidence, *limits)
        packed = point_cloud.pack(points, colours, confidence, valid, poses=poses)
        return np.frombuffer(packed, np.uint8)

    outputs, expected = (run().view(np.float32).reshape(-1, 5) for run in (on_device, by_numpy))
    same = outputs.shape == expected.shape and np.allclose(
        outputs[:, :3], expected[:, :3], rtol=1e-5
    )
    same = same and np.array_equal(outputs[:, 3:].view(np.uint32), expected[:, 3:].view(np.uint32))
    return {
        "what": "packing",
        "views": views,
        "points": len(expected),
        "passed": bool(same),
        "kernels_s": device.times_s["pack_points"],
        "seconds": median_s(on_device),
        "numpy_s": median_s(by_numpy),
    }


def median_s(run: Callable[[], Any], rounds: int = 7) -> float:
    """Median time of a call that has run before."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--home", type=int, default=8, help="index of a held-out home")
    parser.add_argument("--views", type=int, default=24)
    parser.add_argument("--base", default=BASE, help="commit to compare with; empty for none")
    parser.add_argument("--rounds", type=int, default=3, help="times that both are run")
    options = parser.parse_args()
    if options.base:
        result = compared(options.home, options.views, options.base, options.rounds)
    else:
        result = in_process(ROOT, options.home, options.views)
    result["peers"] = peers(options.home, CAMERA_PX)
    result |= {"goal_ms": GOAL_MS, "within_goal": result["processor_ms"]["all"] <= GOAL_MS}
    print(record("overhead", result).read_text())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
