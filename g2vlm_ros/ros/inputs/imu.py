# SPDX-License-Identifier: Apache-2.0
"""Which way is up in a camera's axes, by an IMU that /tf_static ties to the camera."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
from geometry_msgs.msg import Quaternion, Vector3
from sensor_msgs.msg import Imu

from g2vlm_ros.geometry.sim3 import rotation_from_xyzw
from g2vlm_ros.ros.conversions import geometry
from g2vlm_ros.ros.inputs.static_tf import StaticTf
from g2vlm_ros.ros.inputs.unmatched import UnmatchedFrames

GRAVITY = 9.81
MAX_OFF = 0.1
"""Share by which the mean acceleration may differ from gravity."""
AVERAGED_NS = 500_000_000
"""Samples this near a frame's stamp count, so that shaking averages out."""
KEPT_SAMPLES = 1000


class ImuGravity:
    """Up at a moment, from samples of one IMU.

    Its orientation is taken where its covariance says that there is one (REP-145), the
    accelerometer otherwise. warn: gets one sentence about why there is no up.
    """

    def __init__(self, frames: StaticTf, warn: Callable[[str], None]):
        self._frames, self._warn = frames, warn
        self._imu_frame = ""
        self._unmatched = UnmatchedFrames(warn)
        self._samples: deque[tuple[int, np.ndarray]] = deque(maxlen=KEPT_SAMPLES)

    def update(self, message: Imu) -> None:
        """Take a sample in."""
        self._imu_frame = message.header.frame_id
        if message.orientation_covariance[0] > 0:
            try:
                up = GRAVITY * _rotation(message.orientation)[2]
            except ValueError as error:
                self._warn(f"imu orientation is not used: {error}")
                return
        elif message.linear_acceleration_covariance[0] != -1:
            up = _vector(message.linear_acceleration)
        else:
            self._warn("imu has neither orientation nor acceleration, by its covariances")
            return
        self._samples.append((geometry.stamp_ns(message.header.stamp), up))

    def up_at(self, stamp_ns: int, frame_id: str) -> np.ndarray | None:
        """Unit float64 (3,) in the axes of a frame; None where it is not known."""
        near = [up for ns, up in list(self._samples) if abs(ns - stamp_ns) <= AVERAGED_NS]
        self._unmatched.note(bool(near), lambda: self._why_unmatched(stamp_ns))
        if not near:
            return None
        up = np.mean(near, axis=0)
        strength = float(np.linalg.norm(up))
        if not abs(strength - GRAVITY) <= MAX_OFF * GRAVITY:
            self._warn(
                f"imu measures {strength:.2f} m/s² on average; within 10 % of {GRAVITY} it says "
                "which way is up"
            )
            return None
        camera_from_imu = self._frames.between(frame_id, self._imu_frame)
        if camera_from_imu is None:
            self._warn(
                f"no fixed transform between imu frame {self._imu_frame!r} and camera frame "
                f"{frame_id!r}; publish it on /tf_static"
            )
            return None
        return camera_from_imu[:3, :3] @ up / strength

    def _why_unmatched(self, stamp_ns: int) -> str:
        if not self._samples:
            return "no usable imu message comes; compare imu_topic with the topics that exist"
        return (
            f"imu matches no frame: its newest stamp is {self._samples[-1][0] * 1e-9:.3f} s, the "
            f"frame's is {stamp_ns * 1e-9:.3f} s, and they may differ by "
            f"{AVERAGED_NS * 1e-9:g} s; both clocks must be the same"
        )


def _rotation(turn: Quaternion) -> np.ndarray:
    return rotation_from_xyzw(np.array([turn.x, turn.y, turn.z, turn.w]))


def _vector(vector: Vector3) -> np.ndarray:
    return np.array([vector.x, vector.y, vector.z])
