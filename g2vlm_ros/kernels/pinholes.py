# SPDX-License-Identifier: Apache-2.0
"""Pinhole cameras of point maps (pinhole.cpp)."""

from __future__ import annotations

import numpy as np

from g2vlm_ros.kernels.checks import call, i64, input_array, positive, shape_of


def pinholes_of_points(points: np.ndarray, step: int) -> np.ndarray:
    """float64 (N, 4): fx, fy, cx, cy by least squares of points (N, H, W, 3); not finite where
    no camera explains them."""
    views, height, width, _ = shape_of(points, "points", (None, None, None, 3))
    points = input_array(points, "points", np.float32, (views, height, width, 3))
    pinholes = np.empty((views, 4))
    call(
        "pinholes_of_points",
        None,
        points,
        i64(views),
        i64(height),
        i64(width),
        i64(positive(step, "step")),
        pinholes,
    )
    return pinholes
