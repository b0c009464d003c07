# SPDX-License-Identifier: Apache-2.0
"""What a run of the pipeline said over time: windows by map, and each pose as it was published."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from g2vlm_ros.evaluation.trajectory_metrics import PublishedPose, fit_poses
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.mapping.window_pose import MappedWindow
from g2vlm_ros.records import ScaleState

ViewKey = tuple[str, int]
"""Camera and stamp."""


@dataclass(frozen=True)
class _Window:
    """A window of a map."""

    id: int
    views: tuple[ViewKey, ...]
    trusted: tuple[int, ...]
    window_from_camera: np.ndarray


@dataclass(frozen=True)
class _Published:
    """A pose as it was published, and the map's first views then."""

    map_id: int
    view: ViewKey
    map_from_camera: np.ndarray
    covariance: np.ndarray
    metric: bool
    first_views: tuple[ViewKey, ...]
    first_poses: np.ndarray
    """float64 (k, 4, 4)."""


class MapRecord:
    """Windows as they lie after all corrections, and poses as they were first published."""

    def __init__(self) -> None:
        self._windows: dict[int, list[_Window]] = defaultdict(list)
        self._places: dict[int, Sim3] = {}
        self._published: list[_Published] = []
        self._tracked: list[_Published] = []
        self._metric: dict[int, bool] = {}
        self.reasons: list[str] = []
        """Why each map began."""

    @property
    def maps(self) -> list[int]:
        """Ids of the maps, the one with the most views first."""
        return sorted(self._windows, key=lambda map_id: -len(self.track(map_id)))

    def add(self, update: MappedWindow) -> None:
        """Take in one window."""
        placement, frames = update.placement, update.window.frames
        map_id = placement.map_id
        if placement.new_map:
            self.reasons.append(placement.new_map)
        if placement.merged_map_id is not None:
            joined = self._windows.pop(placement.merged_map_id, [])
            self._windows[map_id] = sorted(
                self._windows[map_id] + joined, key=lambda window: window.id
            )
        self._places[update.window.id] = placement.map_from_window
        self._places.update(placement.corrections)
        views = tuple((frame.camera, frame.stamp_ns) for frame in frames)
        poses = update.result.window_from_camera.astype(np.float64)
        window = _Window(update.window.id, views, update.trusted_views, poses)
        self._windows[map_id].append(window)
        self._metric[map_id] = placement.scale.state is ScaleState.METRIC
        newest = update.window.newest
        if self._windows[map_id][0] is not window:
            pose, covariance = update.map_from_camera[newest], placement.covariance[newest]
            self._published.append(self._published_now(map_id, views[newest], pose, covariance))

    def add_tracked(
        self, map_id: int, view: ViewKey, map_from_camera: np.ndarray, covariance: np.ndarray
    ) -> None:
        """Take in a pose that was published between windows."""
        if self._windows[map_id]:
            pose = self._published_now(map_id, view, map_from_camera, covariance)
            self._tracked.append(pose)

    def _published_now(
        self, map_id: int, view: ViewKey, map_from_camera: np.ndarray, covariance: np.ndarray
    ) -> _Published:
        first = self._windows[map_id][0]
        return _Published(
            map_id,
            view,
            map_from_camera,
            covariance,
            self._metric[map_id],
            tuple(first.views[i] for i in first.trusted),
            self._poses(first)[list(first.trusted)],
        )

    def metric(self, map_id: int) -> bool:
        """Whether a map is in metres."""
        return self._metric[map_id]

    def track(self, map_id: int) -> dict[ViewKey, np.ndarray]:
        """map_from_camera float64 (4, 4) of all trusted views, in order of time."""
        poses: dict[ViewKey, np.ndarray] = {}
        for window in self._windows[map_id]:
            estimates = self._poses(window)
            poses |= {window.views[i]: estimates[i] for i in window.trusted}
        return dict(sorted(poses.items(), key=lambda item: item[0][1]))

    def published(
        self,
        map_id: int,
        true: Mapping[ViewKey, np.ndarray],
        unit_m: float,
        tracked: bool = False,
    ) -> list[PublishedPose]:
        """The newest pose of each window after the first of a map, beside the truth; or those
        tracked between windows.

        The truth is laid onto the views of the map's first window, not onto the whole track: a
        covariance is relative to where the map began. unit_m: metres per unit where the map was
        not in metres when it said so.
        """
        poses = []
        for each in self._tracked if tracked else self._published:
            if each.map_id != map_id:
                continue
            first = np.stack([true[view] for view in each.first_views])
            scale = 1.0 if each.metric else 1.0 / unit_m
            map_from_world = fit_poses(first, each.first_poses, scale)
            goal = map_from_world.apply_pose(true[each.view])
            poses.append(PublishedPose(each.map_from_camera, each.covariance, goal))
        return poses

    def _poses(self, window: _Window) -> np.ndarray:
        return self._places[window.id].apply_pose(window.window_from_camera)
