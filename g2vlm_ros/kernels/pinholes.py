# SPDX-License-Identifier: Apache-2.0
"""Pinhole cameras of point maps (pinhole.cpp)."""

from __future__ import annotations

import numpy as np

from g2vlm_ros.kernels.checks import call, i64, input_array, positive, shape_of
from g2vlm_ros.kernels.device_points import DevicePoints
from g2vlm_ros.kernels.records import ROW_LINES


def pinholes_of_points(points: np.ndarray | DevicePoints, step: int) -> np.ndarray:
    """float64 (N, 4): fx, fy, cx, cy by least squares of points (N, H, W, 3); not finite where
    no camera explains them."""
    views, height, width, _ = shape_of(points, "points", (None, None, None, 3))
    rows = -(-height // positive(step, "step"))
    if isinstance(points, DevicePoints):
        lines = points.lines_of_rows(step)
    else:
        points = input_array(points, "points", np.float32, (views, height, width, 3))
        lines = np.empty((views, rows), ROW_LINES)
        size = i64(views), i64(height), i64(width)
        call("lines_of_rows", None, points, *size, i64(step), lines)
    pinholes = np.empty((views, 4))
    call("pinholes_of_lines", None, lines, i64(views), i64(rows), pinholes)
    return pinholes


def points_on_rays(
    points: np.ndarray | DevicePoints, pinholes: np.ndarray
) -> np.ndarray | DevicePoints:
    """Points float32 (N, H, W, 3) moved onto the rays of their pixels, where pinholes float32
    (N, 4) are known (fx above 0); depths stay."""
    if isinstance(points, DevicePoints):
        return points.on_rays(pinholes)
    views, height, width, _ = shape_of(points, "points", (None, None, None, 3))
    pinholes = input_array(pinholes, "pinholes", np.float32, (views, 4))
    moved = np.array(points, np.float32, order="C")
    call("set_rays", None, moved, i64(views), i64(height), i64(width), pinholes)
    return moved
