# SPDX-License-Identifier: Apache-2.0
"""A keyframe where it lies in the map: what a window is compared with to find its place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.mapping.keyframes import Keyframe


@dataclass(frozen=True)
class MapView:
    """A keyframe where it lies in the map."""

    keyframe: Keyframe
    map_from_window: Sim3
    """Of the keyframe's window."""

    @property
    def map_from_camera(self) -> np.ndarray:
        """float64 (4, 4), rigid."""
        return self.map_from_window.apply_pose(self.keyframe.window_from_camera)

    def points(self) -> np.ndarray:
        """float64 (n, 3): of its features, in the map."""
        local = self.map_from_window.scale * self.keyframe.features.point_u
        pose = self.map_from_camera
        return local @ pose[:3, :3].T + pose[:3, 3]
