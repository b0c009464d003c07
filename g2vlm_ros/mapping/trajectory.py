# SPDX-License-Identifier: Apache-2.0
"""Trajectory of camera poses; loops, metres and gravity move the earlier ones."""

from __future__ import annotations

from collections import deque

import numpy as np

from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.mapping.window_pose import WindowPose


class Trajectory:
    """Poses of the newest views of one map, at most `length` of them."""

    def __init__(self, length: int):
        self._views: deque[tuple[int, int, np.ndarray]] = deque(maxlen=length)
        self._places: dict[int, Sim3] = {}
        self._map_id = -1

    def add(self, window: int, placement: WindowPose, views: list[tuple[int, np.ndarray]]) -> bool:
        """Adds (stamp_ns, window_from_camera (4, 4)) of a window's new views, in order of time.

        Whether earlier poses changed as well. A new map starts over.
        """
        changed = placement.map_id != self._map_id
        if changed:
            self._map_id = placement.map_id
            self._views.clear()
            self._places.clear()
        for moved, place in placement.corrections:
            if moved in self._places:
                self._places[moved] = place
                changed = True
        self._places[window] = placement.map_from_window
        self._views.extend((stamp_ns, window, pose) for stamp_ns, pose in views)
        windows = {window for _, window, _ in self._views}
        self._places = {w: place for w, place in self._places.items() if w in windows}
        return changed

    def poses(self, newest: int | None = None) -> list[tuple[int, np.ndarray]]:
        """(stamp_ns, map_from_camera (4, 4)) of all views, or of the newest few, oldest first."""
        views = list(self._views) if newest is None else list(self._views)[-newest:]
        return [(stamp, self._places[window].apply_pose(pose)) for stamp, window, pose in views]
