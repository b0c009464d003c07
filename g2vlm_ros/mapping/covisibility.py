# SPDX-License-Identifier: Apache-2.0
"""Covisibility: which views of one reconstruction see the same surfaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from g2vlm_ros.geometry.camera import project
from g2vlm_ros.geometry.confidence import pinholes
from g2vlm_ros.kernels.agreement import covisibility
from g2vlm_ros.records import Reconstruction

POINTS_PER_VIEW = 600
"""Points of a view that are compared: a share is then good to 2 %."""
SAME_SURFACE = 0.1
"""Relative depth difference up to which two views show the same surface."""
NEAR_SURFACE = 0.4
"""Relative depth difference up to which it may be the same surface, in another unit."""
MIN_POINTS = 30
"""Fewer points give no median and no correlation that means anything."""


@dataclass(frozen=True)
class Covisibility:
    """How far the views of one window show the same things."""

    shared: np.ndarray
    """float64 (N, N): share of view i's points that lie on view j's surface; NaN where view j has
    no intrinsics."""
    alike: np.ndarray
    """float64 (N, N): correlation of brightness at those points; NaN where too few or flat."""
    stretch: np.ndarray
    """float64 (N, N): logarithm of the depth of view i's points over that of view j's surface;
    NaN where too few are near it."""

    def reachable(self, start: Sequence[int], min_shared: float) -> np.ndarray:
        """bool (N,): views that a chain of overlaps connects with `start`; unknown counts."""
        linked = ~(np.fmax(self.shared, self.shared.T) < min_shared)
        reached = np.zeros(len(linked), bool)
        reached[list(start)] = True
        for _ in range(len(linked)):
            reached = reached | linked[reached].any(0)
        return reached


def measure_covisibility(result: Reconstruction) -> Covisibility:
    """Every view's points projected into every other view: depth and brightness compared."""
    height, width = result.local_points_u.shape[1:3]
    step = max(1, int(np.sqrt(height * width / POINTS_PER_VIEW)))
    return Covisibility(
        *covisibility(
            result.local_points_u,
            result.colours,
            result.window_from_camera,
            pinholes(result.intrinsics),
            step=step,
            agreement=SAME_SURFACE,
            nearness=NEAR_SURFACE,
            min_points=MIN_POINTS,
        )
    )


def depth_ratio(
    result: Reconstruction, view: int, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where a view sees points (n, 3) of its window, and how far off its surface they are.

    Rows and columns (n,), and float64 (n,): the logarithm of a point's depth over that of the
    surface at its pixel; NaN outside the image.
    """
    height, width = result.local_points_u.shape[1:3]
    pose = result.window_from_camera[view].astype(np.float64)
    in_camera = (points - pose[:3, 3]) @ pose[:3, :3]
    pixel = np.nan_to_num(project(in_camera, result.intrinsics[view]), nan=-1.0).round()
    inside = (pixel >= 0).all(1) & (pixel[:, 0] < width) & (pixel[:, 1] < height)
    column, row = np.where(inside[:, None], pixel, 0).astype(int).T
    surface = result.local_points_u[view, row, column, 2]
    off = np.log(np.maximum(in_camera[:, 2], 1e-9) / surface)
    return row, column, np.where(inside, off, np.nan)
