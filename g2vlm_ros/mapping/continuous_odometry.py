# SPDX-License-Identifier: Apache-2.0
"""Odometry by the camera: tracked motions added up, so that it drifts but never jumps (REP-105).

What the map corrects moves the odometry frame in the map, not the pose in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from g2vlm_ros.geometry.sim3 import cross_matrix
from g2vlm_ros.mapping.camera_tracker import TrackedPose

STEP_STD_M, STEP_STD_RAD = 0.002, 0.002
"""Of the motion between two frames at best: noise of tracks..."""
STEP_SHARE = 0.03
"""...and its share of the way and of the turn, which depth and lens have wrong."""


@dataclass(frozen=True)
class OdometryEstimate:
    """A pose in the odometry frame, and how it changes."""

    stamp_ns: int
    odom_from_camera: np.ndarray
    """float64 (4, 4), metres."""
    covariance: np.ndarray
    """float64 (6, 6): x y z, rotation about x y z of the odometry frame, since its start."""
    map_from_odom: np.ndarray
    """float64 (4, 4): where the map has the odometry frame now."""
    twist: np.ndarray | None
    """float64 (6,): m/s and rad/s in the camera's axes; None without a frame before."""
    twist_covariance: np.ndarray | None


class ContinuousOdometry:
    """Adds up the motions of one camera. Lengths must be metres."""

    def __init__(self) -> None:
        self._last: OdometryEstimate | None = None

    def add(self, tracked: TrackedPose) -> OdometryEstimate:
        """The estimate at a tracked pose. The first one begins where the map has the camera.

        After a pause in tracking the motion is that of the poses in the map.
        """
        last = self._last
        if last is None:
            estimate = OdometryEstimate(
                tracked.stamp_ns, tracked.map_from_camera, np.zeros((6, 6)), np.eye(4), None, None
            )
        elif tracked.last_from_camera is None or tracked.last_stamp_ns != last.stamp_ns:
            map_from_last = last.map_from_odom @ last.odom_from_camera
            step = np.linalg.inv(map_from_last) @ tracked.map_from_camera
            estimate = _stepped(last, tracked, step, None)
        else:
            seconds = (tracked.stamp_ns - last.stamp_ns) * 1e-9
            estimate = _stepped(last, tracked, tracked.last_from_camera, seconds)
        self._last = estimate
        return estimate


def _stepped(
    last: OdometryEstimate, tracked: TrackedPose, step: np.ndarray, seconds: float | None
) -> OdometryEstimate:
    pose = last.odom_from_camera @ step
    vector = cv2.Rodrigues(step[:3, :3])[0][:, 0]
    std_m = STEP_STD_M + STEP_SHARE * float(np.linalg.norm(step[:3, 3]))
    std_rad = STEP_STD_RAD + STEP_SHARE * float(np.linalg.norm(vector))
    noise = np.diag([std_m**2] * 3 + [std_rad**2] * 3) / tracked.inlier_share
    carry = np.eye(6)
    carry[:3, 3:] = -cross_matrix(pose[:3, 3] - last.odom_from_camera[:3, 3])
    covariance = carry @ last.covariance @ carry.T + noise
    twist = twist_covariance = None
    if seconds is not None:
        twist = np.concatenate([step[:3, 3], vector]) / seconds
        twist_covariance = noise / seconds**2
    map_from_odom = tracked.map_from_camera @ np.linalg.inv(pose)
    return OdometryEstimate(
        tracked.stamp_ns, pose, covariance, map_from_odom, twist, twist_covariance
    )
