# SPDX-License-Identifier: Apache-2.0
"""Frames followed between windows, as the node does it, and how far their poses are off."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from g2vlm_ros.datasets.sequence import SequenceFrame
from g2vlm_ros.evaluation.map_record import MapRecord, ViewKey
from g2vlm_ros.evaluation.trajectory_metrics import consistency, rms
from g2vlm_ros.mapping.camera_tracker import CameraTracker, TrackedPose
from g2vlm_ros.mapping.tracking_template import tracking_reference
from g2vlm_ros.mapping.window_pose import MappedWindow

LATENCY_NS = 400_000_000
"""From a window's newest stamp to its pose, as on a small computer: frames of that time are
followed against the window before."""


class FramesBetween:
    """One tracker per camera over a sequence."""

    def __init__(self, record: MapRecord):
        self._record = record
        self._trackers: defaultdict[str, CameraTracker] = defaultdict(CameraTracker)
        self._due: deque[MappedWindow] = deque()
        self._motions: list[tuple[ViewKey, ViewKey, TrackedPose, bool]] = []
        self._failures: Counter[str] = Counter()
        self._spent_s: list[float] = []

    def add(self, update: MappedWindow) -> None:
        """A window has been mapped; frames know of it LATENCY_NS after its newest stamp."""
        self._due.append(update)

    def follow(self, frame: SequenceFrame) -> None:
        """One frame, in the order of the stamps."""
        while self._due and self._due[0].window.stamp_ns + LATENCY_NS <= frame.stamp_ns:
            self._refer_to(self._due.popleft())
        tracker = self._trackers[frame.camera]
        if tracker.reference is None:
            return
        grey = cv2.cvtColor(frame.image(), cv2.COLOR_RGB2GRAY)
        start_s = time.process_time()
        outcome = tracker.track(grey, frame.stamp_ns)
        self._spent_s.append(time.process_time() - start_s)
        if not isinstance(outcome, TrackedPose):
            self._failures[outcome] += 1
            return
        reference, view = tracker.reference, (frame.camera, frame.stamp_ns)
        pose, covariance = outcome.map_from_camera, outcome.covariance
        self._record.add_tracked(reference.map_id, view, pose, covariance)
        self._motions.append(
            ((frame.camera, reference.stamp_ns), view, outcome,
             self._record.metric(reference.map_id))
        )  # fmt: skip

    def _refer_to(self, update: MappedWindow) -> None:
        frames = update.window.frames
        newest = {frames[i].camera: i for i in update.trusted_views}
        for camera, view in newest.items():
            reference = tracking_reference(update, view)
            if reference is not None:
                rescaled = update.placement.scale.rescaled
                self._trackers[camera].set_reference(reference, rescaled)

    def results(
        self, map_id: int, true: Mapping[ViewKey, np.ndarray], unit_m: float
    ) -> dict[str, Any]:
        """Figures of the frames of one map; lengths as the sequence's.

        Errors are of poses as they were published, beside those of the windows' newest views
        (`windows_rmse_m`); `motion_...` are of the motion since the reference alone.
        unit_m: metres per unit of a map that is not in metres.
        """
        record = self._record
        between = record.published(map_id, true, unit_m, tracked=True)
        windows = record.published(map_id, true, unit_m)
        shifts, turns, shares = [], [], []
        for before, view, tracked, metric in self._motions:
            way = np.linalg.inv(true[before]) @ true[view]
            way[:3, 3] /= 1.0 if metric else unit_m
            off = np.linalg.inv(way) @ tracked.reference_from_camera
            shifts.append(np.linalg.norm(off[:3, 3]) * (1.0 if metric else unit_m))
            turns.append(np.linalg.norm(cv2.Rodrigues(off[:3, :3])[0]))
            shares.append(tracked.inlier_share)
        return {
            "between_frames": len(between),
            "between_failures": dict(self._failures),
            "between_rmse_m": unit_m * _errors(between),
            "windows_rmse_m": unit_m * _errors(windows),
            "between_covariance_ratio": consistency(between).covariance_ratio,
            "between_nees_position": consistency(between).nees_position,
            "between_nees_rotation": consistency(between).nees_rotation,
            "motion_rmse_m": rms(shifts),
            "motion_rmse_deg": float(np.rad2deg(rms(turns))),
            "inlier_share": float(np.median(shares)) if shares else np.nan,
            "between_ms": 1e3 * float(np.median(self._spent_s)) if self._spent_s else np.nan,
        }


def _errors(published: list) -> float:
    """Root mean square of the positions, map units."""
    return rms(
        [
            np.linalg.norm(p.map_from_camera[:3, 3] - p.true_map_from_camera[:3, 3])
            for p in published
        ]
    )
