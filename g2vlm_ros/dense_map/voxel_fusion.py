# SPDX-License-Identifier: Apache-2.0
"""Point maps of posed views, as the voxel map takes them in: summed up by cell, weighted by
confidence, so that neither the number of pixels nor their order matters (kernels/cells.cpp)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from g2vlm_ros.kernels.cells import CellSums
from g2vlm_ros.kernels.device_points import DevicePoints

SAMPLES_PER_VOXEL = 1.0
"""Pixels along the edge of a voxel beyond which more of them add nothing. Twice as many cost the
map's update twice as much and changed neither accuracy nor completeness (benchmarks demo_map)."""


@dataclass(frozen=True)
class PointViews:
    """Point maps of N views of a window, and how V of them are placed in the map."""

    points: np.ndarray | DevicePoints
    """float32 (N, H, W, 3) in the optical frames and the window's unit."""
    colours: np.ndarray
    """uint8 (N, H, W, 3)"""
    confidence: np.ndarray
    """float32 (N, H, W): 0..1, NaN where unknown."""
    valid: np.ndarray | None
    """bool (N, H, W): what may enter the map; None for points on a device, which finds it by
    max_edge_step and ignored."""
    views: Sequence[int]
    """Which V of the views enter."""
    affines: np.ndarray
    """float32 (V, 3, 4): the unit's scale and the pose, from optical frame to map."""
    pixels_per_unit: np.ndarray
    """float64 (V,): focal length over scale, so that of one map unit at depth 1; 0 where the
    camera is unknown and every pixel is to be taken."""
    min_confidence: float = 0.0
    """Below it points stay out, and those of unknown confidence too unless it is 0."""
    contradicted: float = 0.0
    """Known confidence below which points stay out; an unknown one passes."""
    max_depth_u: float = np.inf
    """Points farther along the optical axis stay out; in the window's unit."""
    max_edge_step: float = 0.0
    """As in `Reconstruction.valid`; 0 keeps depth steps."""
    ignored: np.ndarray | None = None
    """bool (N, H, W), as in `Reconstruction`."""

    def summed(
        self, sums: CellSums, voxel_size: float, stamp_ns: int, window: int
    ) -> tuple[np.ndarray, int, int]:
        """CELL (m,), points added, points out of the map's range; made where the points lie."""
        which = (self.views, self.affines, self.pixels_per_unit * (voxel_size / SAMPLES_PER_VOXEL))
        limits = {
            "voxel_size": voxel_size,
            "stamp_ns": stamp_ns,
            "window": window,
            "min_confidence": self.min_confidence,
            "contradicted": self.contradicted,
            "max_depth": self.max_depth_u,
        }
        maps = (self.colours, self.confidence)
        if isinstance(self.points, DevicePoints):
            step = self.max_edge_step
            return self.points.cells(*maps, self.ignored, *which, max_edge_step=step, **limits)
        return sums.of_views(self.points, *maps, self.valid, *which, **limits)

    @classmethod
    def of_points(
        cls, points: np.ndarray, colours: np.ndarray, confidence: np.ndarray
    ) -> PointViews:
        """Points (..., 3) that lie in the map already; invalid ones are to be left out before."""
        points = np.asarray(points, np.float32).reshape(1, 1, -1, 3)
        shape = points.shape[:3]
        if np.size(colours) != points.size or np.size(confidence) * 3 != points.size:
            raise ValueError(
                f"{shape[2]} points, {np.size(colours) // 3} colours and {np.size(confidence)} "
                "confidences given; it must be one number"
            )
        return cls(
            points,
            np.asarray(colours, np.uint8).reshape(*shape, 3),
            np.asarray(confidence, np.float32).reshape(shape),
            np.ones(shape, bool),
            [0],
            np.eye(3, 4, dtype=np.float32)[None],
            np.zeros(1),
        )
