# SPDX-License-Identifier: Apache-2.0
"""Poses at the camera's rate: frames followed between windows on a thread of their own.

Sensor callbacks hand a frame over and return; while one is being followed, only the newest of each
camera waits. References come from the windows that the device's thread makes.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import cv2

from g2vlm_ros.mapping.camera_tracker import (
    CameraTracker,
    TrackedPose,
    TrackingFailure,
)
from g2vlm_ros.mapping.continuous_odometry import ContinuousOdometry, OdometryEstimate
from g2vlm_ros.mapping.tracking_template import tracking_reference
from g2vlm_ros.mapping.window_pose import MappedWindow
from g2vlm_ros.records import Frame, ScaleState
from g2vlm_ros.settings import Settings

JOIN_S = 2.0
"""How long closing waits for the frame that is being followed."""
NS_PER_S = 1_000_000_000


@dataclass(frozen=True)
class TrackingCounts:
    """Frames since activation, and what the newest ones told."""

    tracked: int = 0
    skipped: int = 0
    """Came while another one was being followed."""
    failures: Counter[str] = field(default_factory=Counter)
    """Frames without a pose, by `TrackingFailure`."""
    newest: str = ""
    """Why the newest frame has no pose; empty where it has one."""
    inlier_share: float = float("nan")
    frame_ms: float = float("nan")
    """Both of the newest tracked frame."""


@dataclass
class _Followed:
    """One camera."""

    tracker: CameraTracker = field(default_factory=CameraTracker)
    metric: bool = False
    next_ns: int = 0
    """No frame before this stamp: `pose.max_rate_hz`."""


class CameraTracking:
    """Follows the frames of all cameras; `publish` gets each pose, the odometry of the first
    camera with it where lengths are metres, and the session of the map."""

    def __init__(
        self,
        settings: Settings,
        publish: Callable[[Frame, TrackedPose, OdometryEstimate | None, int], None],
        listened: Callable[[], bool],
        failed: Callable[[str, BaseException], None],
    ):
        self._publish, self._listened, self._failed = publish, listened, failed
        self._leader = settings.cameras[0]
        self._period_ns = NS_PER_S / settings.pose.max_rate_hz
        self._back_ns = settings.window.max_age_s * NS_PER_S
        self._cameras = {camera: _Followed() for camera in settings.cameras}
        self._odometry = ContinuousOdometry()
        self._session = 0
        self._frames: dict[str, Frame] = {}
        self._updates: deque[MappedWindow] = deque()
        self._counts = TrackingCounts()
        self._skipped = 0
        self._open, self._busy = True, False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="camera tracking", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; nothing is published afterwards, unless the frame in work takes over JOIN_S."""
        with self._condition:
            self._open = False
            self._condition.notify()
        self._thread.join(JOIN_S)

    def offer(self, frame: Frame) -> None:
        """A frame as it came (any thread)."""
        with self._condition:
            self._skipped += frame.camera in self._frames
            self._frames[frame.camera] = frame
            self._condition.notify()

    def add(self, update: MappedWindow) -> None:
        """A window has been mapped (any thread)."""
        with self._condition:
            self._updates.append(update)
            self._condition.notify()

    def reset(self, session: int) -> None:
        """Forget the map; windows of earlier sessions come to nothing (any thread)."""
        with self._condition:
            self._session = session
            self._updates.clear()
            self._condition.notify()

    def counts(self) -> TrackingCounts:
        """Since the start (any thread)."""
        with self._condition:
            return self._counts

    def rests(self) -> bool:
        """Whether nothing waits or is in work (any thread)."""
        with self._condition:
            return not (self._busy or self._frames or self._updates)

    # The thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        session = 0
        while True:
            with self._condition:
                self._busy = False
                self._condition.wait_for(self._has_work)
                if not self._open:
                    return
                self._busy = True
                updates, frames = list(self._updates), list(self._frames.values())
                self._updates.clear()
                self._frames.clear()
                forgotten, session = session != self._session, self._session
            try:
                if forgotten:
                    self._forget()
                for update in updates:
                    if update.session >= session:
                        self._refer_to(update)
                for frame in frames:
                    self._follow(frame, session)
            except Exception as error:
                self._failed("following frames", error)

    def _has_work(self) -> bool:
        return bool(self._frames or self._updates) or not self._open

    def _forget(self) -> None:
        for camera in self._cameras.values():
            camera.tracker.clear()
        self._odometry = ContinuousOdometry()

    def _refer_to(self, update: MappedWindow) -> None:
        """Compare frames with the newest views of a window."""
        placement, frames = update.placement, update.window.frames
        newest = {frames[i].camera: i for i in update.trusted_views}
        for name, view in newest.items():
            reference = tracking_reference(update, view)
            if reference is not None:
                camera = self._cameras[name]
                camera.metric = placement.scale.state is ScaleState.METRIC
                camera.tracker.set_reference(reference, placement.scale.rescaled)

    def _follow(self, frame: Frame, session: int) -> None:
        camera = self._cameras[frame.camera]
        reference = camera.tracker.reference
        if reference is not None and frame.stamp_ns < reference.stamp_ns - self._back_ns:
            camera.tracker.clear()  # the clock went back
            camera.next_ns = 0
        if frame.stamp_ns < camera.next_ns or not self._listened():
            return
        camera.next_ns = frame.stamp_ns + round(0.9 * self._period_ns)
        if camera.tracker.reference is None:
            self._count(TrackingFailure.NO_REFERENCE)
            return
        start_s = time.perf_counter()
        try:
            grey = cv2.cvtColor(frame.decode(), cv2.COLOR_RGB2GRAY)
        except ValueError:
            return  # counted where the window is made
        outcome = camera.tracker.track(grey, frame.stamp_ns)
        self._count(outcome, 1e3 * (time.perf_counter() - start_s))
        if isinstance(outcome, TrackedPose):
            metric = camera.metric and frame.camera == self._leader
            odometry = self._odometry.add(outcome) if metric else None
            if self._open:
                self._publish(frame, outcome, odometry, session)

    def _count(self, outcome: TrackedPose | TrackingFailure, frame_ms: float = 0.0) -> None:
        with self._condition:
            last = self._counts
            if isinstance(outcome, TrackedPose):
                self._counts = TrackingCounts(
                    last.tracked + 1, self._skipped, last.failures, "", outcome.inlier_share,
                    frame_ms,
                )  # fmt: skip
            else:
                failures = last.failures + Counter([str(outcome)])
                self._counts = TrackingCounts(
                    last.tracked, self._skipped, failures, str(outcome), last.inlier_share,
                    last.frame_ms,
                )  # fmt: skip
