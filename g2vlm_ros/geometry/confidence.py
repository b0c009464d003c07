# SPDX-License-Identifier: Apache-2.0
"""How far the points of a window can be trusted, from the agreement of its views.

The released model has no confidence head. A point that is right lands, seen from another view, on
that view's own surface; the relative depth error there becomes a confidence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from g2vlm_ros.kernels import agreement
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
    return agreement.multi_view_confidence(
        local_points,
        relative_affines(window_from_camera),
        pinholes(intrinsics),
        GRID_PX,
        AGREEMENT_STEP,
        EDGE_STEP,
    )


def relative_affines(window_from_camera: np.ndarray) -> np.ndarray:
    """float32 (N, N, 3, 4): [j, i] takes points of view i to the camera of view j."""
    poses = window_from_camera.astype(np.float64)
    relative = np.linalg.inv(poses)[:, None] @ poses[None]
    return relative[:, :, :3].astype(np.float32)


def pinholes(intrinsics: Sequence[Intrinsics | None]) -> np.ndarray:
    """float32 (N, 4): fx, fy, cx, cy as the kernels have them, 0 where there is no camera."""
    return np.array(
        [[c.fx_px, c.fy_px, c.cx_px, c.cy_px] if c else [0.0] * 4 for c in intrinsics], np.float32
    )
