"""Which way is up in a camera's axes, by an IMU that /tf_static ties to the camera."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
from geometry_msgs.msg import Quaternion, Vector3
from sensor_msgs.msg import Imu
from tf2_msgs.msg import TFMessage

from g2vlm_ros.core.geometry import rotation_from_xyzw
from g2vlm_ros.ros import convert

GRAVITY = 9.81
MOST_OFF = 0.1
"""Share by which the mean acceleration may differ from gravity."""
AVERAGED_NS = 500_000_000
"""Samples this near a frame's stamp count, so that shaking averages out."""
KEPT_SAMPLES = 1000


class Gravity:
    """Up at a moment, from samples of one IMU.

    Its orientation is taken where its covariance says that there is one (REP-145), the
    accelerometer otherwise. warn: gets one sentence about why there is no up.
    """

    def __init__(self, warn: Callable[[str], None]):
        self._warn = warn
        self._imu_frame = ""
        self._samples: deque[tuple[int, np.ndarray]] = deque(maxlen=KEPT_SAMPLES)
        self._parents: dict[str, tuple[str, np.ndarray]] = {}

    def hear(self, message: Imu) -> None:
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
        self._samples.append((convert.stamp_ns(message.header.stamp), up))

    def hear_static(self, message: TFMessage) -> None:
        """Take fixed transforms in."""
        for each in message.transforms:
            try:
                turn = _rotation(each.transform.rotation)
            except ValueError as error:
                self._warn(f"/tf_static of '{each.child_frame_id}' is not used: {error}")
                continue
            self._parents[each.child_frame_id] = (each.header.frame_id, turn)

    def up_at(self, stamp_ns: int, frame_id: str) -> np.ndarray | None:
        """Unit float64 (3,) in the axes of a frame; None where it is not known."""
        near = [up for ns, up in list(self._samples) if abs(ns - stamp_ns) <= AVERAGED_NS]
        if not near:
            return None
        up = np.mean(near, axis=0)
        strength = float(np.linalg.norm(up))
        if not abs(strength - GRAVITY) <= MOST_OFF * GRAVITY:
            self._warn(
                f"imu measures {strength:.2f} m/s² on average; within 10 % of {GRAVITY} it says "
                "which way is up"
            )
            return None
        (root, root_from_imu), (other, root_from_camera) = map(
            self._to_root, (self._imu_frame, frame_id)
        )
        if root != other:
            self._warn(
                f"no fixed transform between imu frame '{self._imu_frame}' and camera frame "
                f"'{frame_id}'; publish it on /tf_static"
            )
            return None
        return root_from_camera.T @ root_from_imu @ up / strength

    def _to_root(self, frame: str) -> tuple[str, np.ndarray]:
        """The farthest ancestor over fixed transforms, and root_from_frame (3, 3)."""
        turn, seen = np.eye(3), {frame}
        while frame in self._parents:
            frame, step = self._parents[frame]
            turn = step @ turn
            if frame in seen:
                break
            seen.add(frame)
        return frame, turn


def _rotation(turn: Quaternion) -> np.ndarray:
    return rotation_from_xyzw(np.array([turn.x, turn.y, turn.z, turn.w]))


def _vector(vector: Vector3) -> np.ndarray:
    return np.array([vector.x, vector.y, vector.z])
