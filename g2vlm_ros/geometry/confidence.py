# SPDX-License-Identifier: Apache-2.0
"""How far the points of a window can be trusted, from the agreement of its views.

The released model has no confidence head. A point that is right lands, seen from another view, on
that view's own surface; the relative depth error there becomes a confidence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from g2vlm_ros.geometry.camera import depth_edges, project
from g2vlm_ros.records import Intrinsics

AGREEMENT_STEP = 0.05
"""Relative depth error at which the confidence of a point falls to 1/e."""
EDGE_STEP = 0.1
"""Relative depth step that counts as an edge, where the network smears surfaces."""
GRID_PX = 4
"""Agreement is computed on every GRID_PX-th pixel and repeated between."""


def multi_view_confidence(
    local_points: np.ndarray,
    window_from_camera: np.ndarray,
    intrinsics: Sequence[Intrinsics | None],
) -> np.ndarray:
    """float32 (N, H, W): 0..1, NaN where no other view sees the point.

    local_points: float32 (N, H, W, 3), optical frames. window_from_camera: (N, 4, 4). A point
    behind another view's surface is hidden there and says nothing. Pixels at depth edges are
    halved. Views without intrinsics take no part.
    """
    views, height, width, _ = local_points.shape
    coarse = local_points[:, ::GRID_PX, ::GRID_PX]
    total = np.zeros(coarse.shape[:3], np.float32)
    seen = np.zeros(coarse.shape[:3], np.float32)
    for i in range(views):
        for j in range(views):
            if i != j and intrinsics[j] is not None:
                camera_j_from_i = np.linalg.inv(window_from_camera[j]) @ window_from_camera[i]
                agreement = _agreement(
                    coarse[i], camera_j_from_i, local_points[j, ..., 2], intrinsics[j]
                )
                known = np.isfinite(agreement)
                total[i] += np.where(known, agreement, 0)
                seen[i] += known
    with np.errstate(invalid="ignore"):
        mean = np.where(seen > 0, total / seen, np.float32(np.nan))
    mean[depth_edges(coarse[..., 2], EDGE_STEP)] *= 0.5
    full = mean.repeat(GRID_PX, axis=1).repeat(GRID_PX, axis=2)
    return np.ascontiguousarray(full[:, :height, :width], dtype=np.float32)


def _agreement(
    points: np.ndarray, other_from_camera: np.ndarray, depth: np.ndarray, camera: Intrinsics
) -> np.ndarray:
    """float32 (h, w) agreement of points with another view's depth; NaN where unseen or hidden."""
    height, width = depth.shape
    moved = points @ other_from_camera[:3, :3].T + other_from_camera[:3, 3]
    pixel = project(moved, camera)
    inside = (
        np.isfinite(pixel).all(-1)
        & (pixel > -0.5).all(-1)
        & (pixel[..., 0] < width - 0.5)
        & (pixel[..., 1] < height - 0.5)
    )
    column, row = np.where(inside[..., None], pixel, 0).round().astype(int).transpose(2, 0, 1)
    surface = depth[row, column]
    error = (moved[..., 2] - surface) / surface
    hidden = error > 3 * AGREEMENT_STEP
    agreement = np.exp(-np.abs(error) / AGREEMENT_STEP)
    return np.where(inside & ~hidden, agreement, np.nan).astype(np.float32)
