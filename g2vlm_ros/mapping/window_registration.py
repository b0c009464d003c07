# SPDX-License-Identifier: Apache-2.0
"""Registration of a window to the ones before: by the views that they share.

A window of a poor registration is refused, and so are views that no overlap connects with the
shared ones: better a new map than a wrong pose.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from g2vlm_ros.geometry.registration import RelativePose, ViewSample, register_views, sample_view
from g2vlm_ros.mapping.covisibility import Covisibility, measure_covisibility
from g2vlm_ros.mapping.window_pose import StartReason
from g2vlm_ros.records import Frame, Reconstruction, Window, newest_view
from g2vlm_ros.settings import MapSettings

REMEMBERED_WINDOWS = 4
"""Earlier windows that a new one may be joined to by shared views."""
UNIT_WINDOWS = 8
"""Windows over which the units of single views are compared."""

ViewKey = tuple[str, int]
"""A view is the same in two windows by its camera and its stamp."""


@dataclass(frozen=True)
class Constraint:
    """What holds a window to earlier ones."""

    relative_poses: dict[int, RelativePose]
    """By earlier window; none where a new map has to start."""
    trusted: tuple[bool, ...]
    """Per view: whether overlaps connect it with the views that place the window."""
    reason: StartReason | None = None
    """Why no shared view joins the window; None where one does."""
    by_odometry: bool = False
    """Whether odometry stands in for shared views."""

    @property
    def target(self) -> int | None:
        """The earlier window that is registered best, or None."""
        return max(self.relative_poses, key=lambda n: self.relative_poses[n].quality, default=None)

    @property
    def scale_drift(self) -> float:
        """Deviation of the logarithm of the unit that the window takes over; 0 at a start."""
        variances = [pose.covariance[6, 6] for pose in self.relative_poses.values()]
        return float(np.sqrt(min(variances, default=0.0)))


class WindowRegistrar:
    """Registers windows to the last few; learns how far views and their units disagree."""

    def __init__(self, settings: MapSettings):
        self._settings = settings
        self._recent: deque[tuple[int, dict[ViewKey, ViewSample]]] = deque(
            maxlen=REMEMBERED_WINDOWS
        )
        self._newest: tuple[int, dict[ViewKey, ViewSample]] = (0, {})
        """The window that `constrain` was asked about last."""
        self._spread = 1.0
        self._unit_variance, self._unit_windows = 0.0, 0

    def constrain(self, window: Window, result: Reconstruction) -> Constraint:
        """Accepted relative poses to earlier windows, and trust of each view."""
        frames = window.frames
        self._newest = window.id, _samples(window, result)
        remembered = {key for _, views in self._recent for key in views}
        shared = [i for i, frame in enumerate(frames) if view_key(frame) in remembered]
        # A camera that is back, or new, may look elsewhere than those that carry the map on.
        cameras = {frames[i].camera for i in shared or range(len(frames))}
        newest = newest_view(frames, [i for i, f in enumerate(frames) if f.camera in cameras])
        overlap = measure_covisibility(result)
        self._learn_units(overlap)
        min_shared = self._settings.min_view_overlap
        reached = overlap.reachable(shared, min_shared)
        alone = tuple(overlap.reachable([newest], min_shared).tolist())
        if not shared:
            reason = StartReason.NO_SHARED_VIEW if remembered else StartReason.FIRST
            return Constraint({}, alone, reason)
        if not reached[newest]:
            return Constraint({}, alone, StartReason.NO_OVERLAP)
        relative_poses = self._register_recent(self._newest[1])
        if not relative_poses:
            return Constraint({}, alone, StartReason.POOR_REGISTRATION)
        return Constraint(relative_poses, tuple(reached.tolist()))

    def register(self, pairs: Sequence[tuple[ViewSample, ViewSample]]) -> RelativePose | None:
        """The relative pose over pairs of views; None below `map.min_registration_*`."""
        try:
            pose = register_views(pairs, self._spread, float(np.sqrt(self._unit_variance)))
        except ValueError:
            return None
        if len(pairs) > 1:
            self._spread = pose.spread
        limits = self._settings
        if (
            pose.inliers < limits.min_registration_inliers
            or pose.quality < limits.min_registration_quality
        ):
            return None
        return pose

    def remember(self, new_map: bool) -> None:
        """Later windows may be joined to the newest one; in a new map it is the only one."""
        if new_map:
            self._recent.clear()
        self._recent.append(self._newest)

    def _register_recent(self, samples: dict[ViewKey, ViewSample]) -> dict[int, RelativePose]:
        relative_poses = {}
        for node, views in self._recent:
            shared = [(samples[k], views[k]) for k in samples if k in views]
            pose = self.register(shared) if shared else None
            if pose is not None:
                relative_poses[node] = pose
        return relative_poses

    def _learn_units(self, overlap: Covisibility) -> None:
        """How far the units of single views lie apart in their window, over the last windows."""
        apart = overlap.stretch[np.isfinite(overlap.stretch)]
        if len(apart):
            self._unit_windows = min(self._unit_windows + 1, UNIT_WINDOWS)
            variance = float(np.mean(apart**2)) / 2
            self._unit_variance += (variance - self._unit_variance) / self._unit_windows


def view_key(frame: Frame) -> ViewKey:
    """Camera and stamp."""
    return frame.camera, frame.stamp_ns


def _samples(window: Window, result: Reconstruction) -> dict[ViewKey, ViewSample]:
    return {view_key(f): sample_view(result, i) for i, f in enumerate(window.frames)}
