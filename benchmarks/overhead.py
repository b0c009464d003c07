# SPDX-License-Identifier: Apache-2.0
"""What a window costs the node outside the engines, by part; results/overhead.json.

Four views at 518x392 of a walk through a simulated home. The engines are a STAND-IN that knows the
true geometry and whose time does not count; everything else is the node's own: images to model
size, confidence, joint, map, and the bytes of `~/points` by numpy (which a backend that packs
clouds itself does on the device). Messages are not sent.
"""

from __future__ import annotations

import argparse
import array
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np

from benchmarks.home_map import ExactPerception
from benchmarks.question_cost import GOLDEN
from benchmarks.record import record
from g2vlm_ros.checkpoint.config import PATCH_PX, ModelConfig
from g2vlm_ros.checkpoint.tokenizer import Tokenizer
from g2vlm_ros.demo.sim.scenes import make_scene
from g2vlm_ros.demo.sim.splits import home_seed
from g2vlm_ros.dense_map.dense_map import DenseMap
from g2vlm_ros.geometry import point_cloud
from g2vlm_ros.inference.tensorrt.device_memory import DeviceMemory
from g2vlm_ros.inference.tensorrt.point_packing import PointPacker
from g2vlm_ros.perception import Perception
from g2vlm_ros.pipeline import MappedWindow, MappingPipeline
from g2vlm_ros.records import RawGeometry
from g2vlm_ros.settings import Settings

CAMERA_PX, WIDTH_PX = 640, 518
GOAL_MS = 5.0
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
    chosen, result, views = Settings().cloud, update.result, list(update.trusted_views)
    return point_cloud.pack(
        result.local_points_u,
        result.colours,
        result.confidence,
        result.valid(chosen.max_edge_step),
        views=views,
        poses=update.map_from_camera[views],
        scale=update.placement.map_from_window.scale,
        min_confidence=chosen.min_confidence,
        out=out,
    )


def walk(home: int, views: int) -> dict[str, Any]:
    """Medians over the windows of a walk, milliseconds: of the clock, and of the processor."""
    settings = Settings.from_flat({"window.max_age_s": 10.0, "model.image_width_px": WIDTH_PX})
    exact = ExactPerception(make_scene(home_seed("heldout", home)), views, CAMERA_PX)
    engines = ReadyEngines(exact)
    live = MappingPipeline(Perception(engines, Tokenizer.open(GOLDEN), settings), settings)
    dense_map, clock, processor = DenseMap(settings), defaultdict(list), defaultdict(list)
    message = None
    for number in range(views):
        live.offer(exact.frame(number))
        engines.spent_s, times = 0.0, [now()]
        if (update := live.step()) is None:
            continue
        times.append(now())
        dense_map.add(update)
        times.append(now())
        message = packed(update, message)
        times.append(now())
        (step, step_processor), *rest = np.diff(times, axis=0).tolist()
        stages = update.stage_times_s
        own = {name: spent for name, spent in stages.items() if name not in ENGINES}
        own["images_to_model_size"] = step - sum(stages.values())
        used = {"step": step_processor - engines.spent_s}
        for name, (spent, spent_processor) in zip(("map", "points"), rest, strict=True):
            own[name], used[name] = spent, spent_processor
        for booked, parts in ((clock, own), (processor, used)):
            for name, spent in {**parts, "all": sum(parts.values())}.items():
                booked[name].append(1000 * spent)
    clock_ms, processor_ms = (
        {name: round(float(np.median(spent)), 1) for name, spent in booked.items()}
        for booked in (clock, processor)
    )
    return {
        "windows": len(clock["all"]),
        "views": settings.window.views,
        "size": [WIDTH_PX, 392],
        "clock_ms": clock_ms,
        "processor_ms": processor_ms,
        "goal_ms": GOAL_MS,
        "within_goal": clock_ms["all"] <= GOAL_MS,
    }


def now() -> tuple[float, float]:
    """Seconds of the clock and of this process on the processor."""
    return time.perf_counter(), time.process_time()


def packing(
    device: DeviceMemory, size: tuple[int, int], views: list[int]
) -> Iterator[dict[str, Any]]:
    """Clouds packed on a device, uploads and the copy back included, and by numpy."""
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

    def on_device() -> np.ndarray:
        affines = point_cloud.affines(views, poses)
        return packer.pack(there, range(views), colours, confidence, affines, *limits)

    def by_numpy() -> np.ndarray:
        valid = point_cloud.valid_points(points, confidence, *limits)
        packed = point_cloud.pack(points, colours, confidence, valid, poses=poses)
        return np.frombuffer(packed, np.uint8)

    got, want = (run().view(np.float32).reshape(-1, 5) for run in (on_device, by_numpy))
    same = got.shape == want.shape and np.allclose(got[:, :3], want[:, :3], rtol=1e-5)
    same = same and np.array_equal(got[:, 3:].view(np.uint32), want[:, 3:].view(np.uint32))
    return {
        "what": "packing",
        "views": views,
        "points": len(want),
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
    chosen = parser.parse_args()
    result = walk(chosen.home, chosen.views)
    print(record("overhead", result).name, result["clock_ms"], result["processor_ms"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
