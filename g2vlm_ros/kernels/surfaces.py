# SPDX-License-Identifier: Apache-2.0
"""Flat surfaces with their normals, and the upright that they agree on (surfaces.cpp)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from g2vlm_ros.kernels.checks import (
    I64,
    call,
    f64,
    i64,
    input_array,
    positive,
    shape_of,
)
from g2vlm_ros.kernels.device_points import DevicePoints
from g2vlm_ros.kernels.records import NORMAL


def surfaces(
    points: np.ndarray | DevicePoints,
    poses: np.ndarray,
    *,
    reach: int,
    step: int,
    max_bend: float,
    side: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(places float64 (n, 3), normals float64 (n, 3), blocks int64 (n,)) in the window's frame.

    Every step-th pixel of points float32 (N, H, W, 3) whose depth bends by less than max_bend of
    itself over `reach` pixels to either side; poses float32 (N, 4, 4) window_from_camera. A block
    is one of side x side patches of a view.
    """
    views, height, width, _ = shape_of(points, "points", (None, None, None, 3))
    if not isinstance(points, DevicePoints):
        points = input_array(points, "points", np.float32, (views, height, width, 3))
    poses = input_array(poses, "poses", np.float32, (views, 4, 4))
    reach, step = positive(reach, "reach"), positive(step, "step")
    middle = points[:, reach : height - reach : step, reach : width - reach : step]
    grid = middle.shape[:3]
    sizes = [i64(n) for n in (*grid, height, width, reach, step)]
    if isinstance(points, DevicePoints):
        of_pixels = points.normals(poses, reach, step, max_bend)
    else:
        of_pixels = np.empty(grid, NORMAL)
        call("surface_normals", None, points, poses, *sizes, f64(max_bend), of_pixels)
    room = int(np.prod(grid))
    # Of an array the middle is a view, whose first address and strides the kernel gets.
    strides = np.array(middle.strides, np.int64) // points.dtype.itemsize
    places, normals = np.empty((room, 3)), np.empty((room, 3))
    blocks = np.empty(room, np.int64)
    size = call(
        "surfaces",
        I64,
        middle,
        strides,
        of_pixels,
        poses,
        *sizes,
        i64(positive(side, "side")),
        places,
        normals,
        blocks,
    )
    return places[:size], normals[:size], blocks[:size]


def structure_up(
    normals: np.ndarray, near: np.ndarray, gates_rad: Sequence[float], soft_rad: float, open: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """(up (3,), off_rad (n,), walls (3, 3), weight of level surfaces) of normals float64 (n, 3).

    near (3,) unit: where the search starts; see surfaces.cpp.
    """
    count, _ = shape_of(normals, "normals", (None, 3))
    normals = input_array(normals, "normals", np.float64, (count, 3))
    up = np.array(input_array(near, "near", np.float64, (3,)))
    gates = np.array(gates_rad, np.float64)
    off, walls, level = np.empty(count), np.empty((3, 3)), np.empty(1)
    call(
        "structure_up",
        None,
        normals,
        i64(count),
        gates,
        i64(len(gates)),
        f64(soft_rad),
        f64(open),
        up,
        off,
        walls,
        level,
    )
    return up, off, walls, float(level[0])
