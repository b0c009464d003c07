# SPDX-License-Identifier: Apache-2.0
"""Windows of a walk from the heads' output to the map, with their points on a device and on the
host: whether both make the same map, the bytes that come to the host, and the host's time.

The network is the stand-in of `benchmarks.overhead`, whose time does not count, nor does laying
its points onto the device, which a network's are on already. `benchmarks.gpu` runs it as a line
of its part "points".
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks.home_map import ExactPerception
from benchmarks.overhead import CAMERA_PX, WIDTH_PX, ReadyEngines
from benchmarks.question_cost import GOLDEN
from g2vlm_ros.checkpoint.tokenizer import Tokenizer
from g2vlm_ros.demo.sim.scenes import make_scene
from g2vlm_ros.demo.sim.splits import home_seed
from g2vlm_ros.dense_map.dense_map import DenseMap
from g2vlm_ros.inference.points_on_device import PointKernels
from g2vlm_ros.inference.tensorrt.cuda import Cuda
from g2vlm_ros.inference.tensorrt.device_memory import DeviceMemory
from g2vlm_ros.kernels.cells import keys_of_points
from g2vlm_ros.perception import Perception
from g2vlm_ros.pipeline import MappingPipeline
from g2vlm_ros.records import RawGeometry
from g2vlm_ros.settings import Settings

HOME, FRAMES = 8, 16
SETTLED = 2
"""Windows before those that are measured: memory and tables grow, and everything is new."""
GOAL_MS = 10.0
"""Of the host's processor in a window, with a GPU."""


class EnginesOnDevice(ReadyEngines):
    """The stand-in, whose heads leave their points on a device."""

    def __init__(self, exact: ExactPerception, kernels: PointKernels | None):
        super().__init__(exact)
        self._kernels = kernels

    def heads(self, hidden: list[int], grid_hw: tuple[int, int]) -> RawGeometry:
        raw = super().heads(hidden, grid_hw)
        if self._kernels is None:
            return raw
        start, memory = time.process_time(), self._kernels.memory
        before = memory.bytes_up

        def lay() -> Any:
            array = memory.upload(raw.local_points_u, "FLOAT", "points")
            memory.synchronize()
            return self._kernels.points(array)

        points = memory.guarded(lay)
        memory.bytes_up = before
        self.spent_s += time.process_time() - start
        return replace(raw, local_points_u=points)


@dataclass
class Drive:
    """What the windows of a walk brought."""

    host_ms: list[float] = field(default_factory=list)
    bytes_down: list[Counter[str]] = field(default_factory=list)
    bytes_up: list[int] = field(default_factory=list)
    poses: list[np.ndarray] = field(default_factory=list)
    points: np.ndarray = field(default_factory=lambda: np.empty(0))
    voxel_size: float = 0.0


def drive(cuda: Cuda | None, frames: int = FRAMES) -> Drive:
    """The walk with its points on a device, or on the host; depth images say how long a metre
    is."""
    settings = Settings.from_flat({"window.max_age_s": 10.0, "model.image_width_px": WIDTH_PX})
    exact = ExactPerception(make_scene(home_seed("heldout", HOME)), frames, CAMERA_PX)
    memory = None if cuda is None else DeviceMemory(cuda)
    kernels = None if memory is None else PointKernels(memory)
    engines, result = EnginesOnDevice(exact, kernels), Drive()
    pipeline = MappingPipeline(Perception(engines, Tokenizer.open(GOLDEN), settings), settings)
    dense_map = DenseMap(settings)
    for number in range(frames):
        depth_m = exact.depth_m[number]
        pipeline.offer(replace(exact.frame(number), depth=lambda depth_m=depth_m: depth_m))
        down, up = (Counter(memory.bytes_down), memory.bytes_up) if memory else (Counter(), 0)
        engines.spent_s, start = 0.0, time.process_time()
        update = pipeline.step()
        if update is None:
            continue
        dense_map.add(update)
        result.host_ms.append(1e3 * (time.process_time() - start - engines.spent_s))
        result.poses.append(update.map_from_camera)
        if memory:
            result.bytes_down.append(memory.bytes_down - down)
            result.bytes_up.append(memory.bytes_up - up)
    result.points, result.voxel_size = dense_map.points(), dense_map.voxel_size
    return result


def windows_on_device(cuda: Cuda, frames: int = FRAMES) -> dict[str, Any]:
    """Both ways, one after the other."""
    with cuda.active():
        there, here = drive(cuda, frames), drive(None, frames)
    first = min(SETTLED, len(there.poses) - 1)
    settled = sorted(there.bytes_down[first:], key=Counter.total)
    middle = settled[len(settled) // 2]
    share = _share_of_same_voxels(there, here)
    off = max(float(np.abs(a - b).max()) for a, b in zip(there.poses, here.poses, strict=True))
    return {
        "what": "windows with points on the device",
        "size": [WIDTH_PX, round(WIDTH_PX * 0.75 / 14) * 14],
        "windows": len(settled),
        "bytes_to_host": middle.total(),
        "bytes_to_host_by_what": dict(middle.most_common()),
        "bytes_to_device": int(np.median(there.bytes_up[first:])),
        "host_ms": round(float(np.median(there.host_ms[first:])), 2),
        "host_ms_goal": GOAL_MS,
        "host_ms_with_points_on_the_host": round(float(np.median(here.host_ms[first:])), 2),
        "poses_off": off,
        "share_equal": share,
        "passed": bool(share > 0.999 and off < 1e-4),
    }


def _share_of_same_voxels(one: Drive, other: Drive) -> float:
    """Cells that both maps have, of all that either has."""
    keys = []
    for each in (one, other):
        places = np.stack([each.points[axis] for axis in "xyz"], 1).astype(np.float64)
        keys.append(keys_of_points(places, other.voxel_size))
    return len(np.intersect1d(*keys)) / max(len(np.union1d(*keys)), 1)
