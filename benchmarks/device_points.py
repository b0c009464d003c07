# SPDX-License-Identifier: Apache-2.0
"""A window's points from the heads' output to cells of the map, on a device and on the host.

`benchmarks.gpu` runs it as its part "points": whether both ways give the same, the kernels' time,
and the time of a window both ways.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.overhead import median_s
from g2vlm_ros.geometry.confidence import (
    AGREEMENT_STEP,
    EDGE_STEP,
    GRID_PX,
    relative_affines,
)
from g2vlm_ros.inference.points_on_device import PointKernels
from g2vlm_ros.inference.tensorrt.cuda import Cuda
from g2vlm_ros.inference.tensorrt.device_memory import DeviceMemory
from g2vlm_ros.kernels.agreement import fuse_points, multi_view_confidence
from g2vlm_ros.kernels.cells import PACKED_CELL_BYTES, CellSums
from g2vlm_ros.kernels.device_points import DevicePoints
from g2vlm_ros.kernels.packing import valid_points
from g2vlm_ros.mapping.depth_fusion import TOLERANCE, WIDTH_PX
from g2vlm_ros.settings import Settings

SIZE_M, EDGE = 0.02, Settings().voxel.max_edge_step


class Room:
    """Views that move along a wavy wall two units away, with some pixels that are not finite."""

    def __init__(self, views: int, width: int, height: int):
        rng, focal = np.random.default_rng(0), 0.8 * width
        u, v = np.meshgrid(np.arange(width), np.arange(height))
        self.poses = np.tile(np.eye(4, dtype=np.float32), (views, 1, 1))
        self.poses[:, 0, 3] = 0.1 * np.arange(views)
        self.lenses = np.tile(np.float32([focal, focal, width / 2, height / 2]), (views, 1))
        x, y = (u - width / 2) / focal, (v - height / 2) / focal
        depth = 2 + 0.3 * np.sin(3 * (2 * x + self.poses[:, 0, 3, None, None])) + 0.2 * np.cos(y)
        depth = depth + rng.normal(0, 0.01, depth.shape)
        self.points = np.stack([x * depth, y * depth, depth], -1).astype(np.float32)
        self.points[:, 5, 7] = np.nan
        self.colours = rng.integers(0, 256, self.points.shape, np.uint8)
        self.colours.flags.writeable = False
        self.per_depth = np.full(views, focal * SIZE_M)

    def fused(self, points: np.ndarray | DevicePoints) -> tuple[Any, np.ndarray]:
        """The points as the map takes them, and their confidence."""
        height, width = points.shape[1:3]
        scale = min(1.0, WIDTH_PX / width)
        size = round(scale * height), round(scale * width)
        relative = relative_affines(self.poses)
        small = self.lenses * np.float32(scale)
        agreement = GRID_PX, AGREEMENT_STEP, EDGE_STEP
        confidence = multi_view_confidence(points, relative, self.lenses, *agreement)
        return fuse_points(points, relative, small, size, EDGE_STEP, TOLERANCE), confidence

    def cells(self, points: np.ndarray | DevicePoints, sums: CellSums) -> np.ndarray:
        """CELL of all views, in the order of their keys."""
        fused, confidence = self.fused(points)
        views = range(len(self.poses))
        which = views, np.ascontiguousarray(self.poses[:, :3]), self.per_depth
        limits = {"voxel_size": SIZE_M, "stamp_ns": 1, "window": 1, "min_confidence": 0.0,
                  "contradicted": 0.05, "max_depth": np.inf}  # fmt: skip
        if isinstance(fused, DevicePoints):
            named = {"max_edge_step": EDGE, **limits}
            cells, _, _ = fused.cells(self.colours, confidence, None, *which, **named)
        else:
            maps = fused, self.colours, confidence, valid_points(fused, EDGE)
            cells, _, _ = sums.of_views(*maps, *which, **limits)
        return cells


def window_on_device(cuda: Cuda, views: int, width: int, height: int) -> dict[str, Any]:
    """Both ways with the same points."""
    room, sums = Room(views, width, height), CellSums()
    with cuda.active():
        device = DeviceMemory(cuda)
        kernels = PointKernels(device)
        array = device.upload(room.points, "FLOAT", "points")

        def there() -> np.ndarray:
            return room.cells(kernels.points(array), sums)

        def here() -> np.ndarray:
            return room.cells(room.points, sums)

        actual, expected = (_sorted(run()) for run in (there, here))
        return {
            "what": "points on the device",
            "size": [width, height],
            "views": views,
            "cells": len(expected),
            "bytes_of_points": room.points.nbytes,
            "bytes_of_cells": PACKED_CELL_BYTES * len(expected),
            **_compared(actual, expected),
            "fuse_s": device.times_s["fuse_depth"],
            "cells_s": device.times_s["map_cells"],
            "seconds": median_s(there),
            "host_s": median_s(here),
        }


def _sorted(cells: np.ndarray) -> np.ndarray:
    return cells[np.argsort(cells["key"])].copy()


def _compared(actual: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    """Cells of both ways: all of the same points, means within a hundred thousandth of a voxel.

    A GPU may round a point on the border of two cells to the other one's side.
    """
    shared, at, there = np.intersect1d(actual["key"], expected["key"], return_indices=True)
    actual, other = actual[at], expected[there]
    same = actual["count"] == other["count"]
    means = [each["position"] / each["weight"][:, None] for each in (actual, other)]
    off = np.abs(means[0] - means[1])[same].max(initial=0.0) / SIZE_M
    equal = len(shared) == len(expected) == len(actual) and bool(same.all())
    share = 2 * same.sum() / (len(expected) + len(actual)) if len(expected) else 1.0
    return {"equal": equal, "share_equal": share, "mean_off_voxels": float(off),
            "passed": bool(share > 0.999 and off < 1e-5)}  # fmt: skip
