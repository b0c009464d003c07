# SPDX-License-Identifier: Apache-2.0
"""A receiver of a map's change sets: its copy is what the map should be."""

from __future__ import annotations

import numpy as np

from g2vlm_ros.dense_map.map_changes import POINT, ChangeSet, points_of


class PointMirror:
    """The map as packed points, by id, brought up to date by change sets. Holes are NaN."""

    def __init__(self) -> None:
        self.revision = 0
        self._points = np.empty(0, POINT)
        self._end = 0

    def apply(self, change: ChangeSet) -> None:
        """Bring the mirror to `change.revision`; ValueError when it starts after this mirror."""
        if change.since > self.revision and not change.start_over:
            raise ValueError(
                f"the change set starts at revision {change.since}, the copy is at "
                f"{self.revision}; ask for changes since {self.revision}"
            )
        if change.start_over:
            self._points = np.empty(0, POINT)
            self._end = 0
        self._grow(change.ids_end)
        self._points["x"][change.removed] = np.nan
        self._points[change.ids] = points_of(change.voxels)
        self.revision = change.revision

    def points(self) -> np.ndarray:
        """POINT (n,) by id, holes included (x NaN); a read-only view until the next `apply`."""
        view = self._points[: self._end]
        view.flags.writeable = False
        return view

    def dense(self) -> np.ndarray:
        """POINT (n,) without holes, a copy."""
        points = self._points[: self._end]
        return points[~np.isnan(points["x"])]

    def _grow(self, end: int) -> None:
        if end > len(self._points):
            grown = np.zeros(max(end, 3 * len(self._points) // 2), POINT)
            grown["x"] = np.nan
            grown[: self._end] = self._points[: self._end]
            self._points = grown
        self._end = max(self._end, end)
