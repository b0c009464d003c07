# SPDX-License-Identifier: Apache-2.0
"""The points of a window in the map, view by view, and regions of its images.

Everything is in the map frame (z up) and in map units: metres when `PointMap.metric`, else right
up to one factor. A region is a pixel or a box of a view at model size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from g2vlm_ros.mapping.window_pose import WindowPose
from g2vlm_ros.records import Reconstruction, ScaleState


@dataclass(frozen=True)
class Region:
    """A pixel (both corners equal) or a box of a view, corners (u, v) in model pixels."""

    view: int
    low_px: tuple[float, float]
    high_px: tuple[float, float]

    @property
    def is_pixel(self) -> bool:
        """Whether it is a single pixel, which has a place but no size."""
        return self.low_px == self.high_px


@dataclass(frozen=True)
class PointMap:
    """The points of a window in the map, and what is known about their error."""

    points: np.ndarray
    """float32 (N, H, W, 3), map frame and units."""
    depth: np.ndarray
    """float32 (N, H, W): along the optical axis of each view, map units."""
    confidence: np.ndarray
    """float32 (N, H, W): 0..1, NaN where unknown."""
    map_from_camera: np.ndarray
    """float64 (N, 4, 4), rigid."""
    viewer: int
    """Index of the newest view."""
    metric: bool
    scale_std: float
    """Relative standard deviation of the metres; 0 where not known."""
    floor_z: float = float("nan")
    pose_covariance: np.ndarray | None = None
    """float64 (N, 3, 3) of the camera positions in the map, or None."""

    @classmethod
    def of_window(
        cls, result: Reconstruction, placement: WindowPose, stamps_ns: Sequence[int]
    ) -> PointMap:
        """The point map of a placed window; stamps of its views say which is the newest."""
        place = placement.map_from_window
        std = placement.scale.relative_std
        covariance = placement.covariance
        has_covariance = covariance.shape[0] == result.views and np.isfinite(covariance).all()
        return cls(
            place.apply(result.points_u()),
            result.local_points_u[..., 2] * np.float32(place.scale),
            np.asarray(result.confidence),
            placement.camera_poses(result.window_from_camera),
            max(range(len(stamps_ns)), key=lambda i: stamps_ns[i]),
            placement.scale.state == ScaleState.METRIC,
            float(std) if np.isfinite(std) else 0.0,
            placement.floor_z,
            covariance[:, :3, :3] if has_covariance else None,
        )

    @property
    def size_px(self) -> tuple[int, int]:
        """(width, height) of a view at model size."""
        return self.points.shape[2], self.points.shape[1]

    @property
    def viewer_pose(self) -> np.ndarray:
        """map_from_camera (4, 4) of the newest view."""
        return self.map_from_camera[self.viewer]

    def part(self, views: Sequence[int], newest: int) -> PointMap:
        """Some of the views; `newest` is the newest one's index among them."""
        index = list(views)
        poses = None if self.pose_covariance is None else self.pose_covariance[index]
        return replace(
            self,
            points=self.points[index],
            depth=self.depth[index],
            confidence=self.confidence[index],
            map_from_camera=self.map_from_camera[index],
            viewer=newest,
            pose_covariance=poses,
        )
