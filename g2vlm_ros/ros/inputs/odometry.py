# SPDX-License-Identifier: Apache-2.0
"""Where a camera was at a moment, by the robot's odometry and the camera's place on it."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable

import numpy as np
from nav_msgs.msg import Odometry

from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.ros.conversions import geometry
from g2vlm_ros.ros.inputs.static_tf import StaticTf
from g2vlm_ros.ros.inputs.unmatched import UnmatchedFrames

MAX_GAP_NS = 500_000_000
"""A message this far from a frame's stamp says nothing about it."""
KEPT_MESSAGES = 1000
MAX_PAUSE_NS = 10_000_000_000
"""Between two messages; one further ahead has a wrong stamp, unless the next agrees with it."""


class OdometryPoses:
    """Poses by stamp, interpolated between messages; warn gets one sentence of what is amiss."""

    def __init__(self, frames: StaticTf, warn: Callable[[str], None]):
        self._frames, self._warn = frames, warn
        self._base = ""
        self._strange_ns: int | None = None
        """Stamp of the last message, where it was not believed."""
        self._unmatched = UnmatchedFrames(warn)
        self._poses: deque[tuple[int, np.ndarray]] = deque(maxlen=KEPT_MESSAGES)

    def update(self, message: Odometry) -> None:
        """Take a message in.

        One whose stamp is not after the last one's, or far ahead of it, is out of order, or its
        stamp is wrong, and is left out; the next in agreement with it shows that the clock jumped.
        """
        try:
            pose = geometry.pose_matrix(message.pose.pose)
        except ValueError as error:
            self._warn(f"odometry gives the scale only, it has no orientation: {error}")
            pose = np.full((4, 4), np.nan)
            pose[:3, 3] = geometry.position(message.pose.pose.position)
        stamp_ns = geometry.stamp_ns(message.header.stamp)
        if not self._believed(stamp_ns):
            return
        self._base = message.child_frame_id
        self._poses.append((stamp_ns, pose))

    def _believed(self, stamp_ns: int) -> bool:
        """Whether a message of this stamp follows those before it, or a jump of the clock."""
        last_ns = self._poses[-1][0] if self._poses else None
        if last_ns is None or last_ns < stamp_ns <= last_ns + MAX_PAUSE_NS:
            self._strange_ns = None
            return True
        strange_ns, self._strange_ns = self._strange_ns, stamp_ns
        if strange_ns is None or not strange_ns < stamp_ns <= strange_ns + MAX_PAUSE_NS:
            return False
        self._poses.clear()
        self._strange_ns = None
        return True

    def camera_at(self, stamp_ns: int, frame_id: str) -> dict[str, np.ndarray]:
        """What a Frame gets: `odom_from_camera`, or `position_m` of the robot, or nothing."""
        pose = self._pose_at(stamp_ns)
        usable = pose is not None and bool(np.isfinite(pose[:3, 3]).all())
        self._unmatched.note(usable, lambda: self._why_unmatched(stamp_ns, pose))
        if not usable:
            return {}
        if np.isnan(pose).any():
            return {"position_m": pose[:3, 3]}
        base_from_camera = self._frames.between(self._base, frame_id)
        if base_from_camera is None:
            self._warn(
                f"no fixed transform between odometry's frame {self._base!r} and camera frame "
                f"{frame_id!r}: odometry gives the scale, but cannot carry the map over gaps; "
                "publish it on /tf_static"
            )
            return {"position_m": pose[:3, 3]}
        odom_from_camera = pose @ base_from_camera
        if not np.isfinite(odom_from_camera).all():
            return {}
        return {"odom_from_camera": odom_from_camera}

    def _why_unmatched(self, stamp_ns: int, pose: np.ndarray | None) -> str:
        if pose is not None:
            return f"odometry is not used: its position is {pose[:3, 3].tolist()}, not finite"
        if not self._poses:
            return "no odometry comes; compare odometry_topic with the topics that exist, and QoS"
        newest_ns = self._poses[-1][0]
        return (
            f"odometry matches no frame: its newest stamp is {newest_ns * 1e-9:.3f} s, the "
            f"frame's is {stamp_ns * 1e-9:.3f} s, and they may differ by "
            f"{MAX_GAP_NS * 1e-9:g} s; both clocks must be the same"
        )

    def _pose_at(self, stamp_ns: int) -> np.ndarray | None:
        """odom_from_base (4, 4) at a stamp, or of the nearest message within MAX_GAP_NS."""
        poses = list(self._poses)
        place = bisect_left(poses, stamp_ns, key=lambda m: m[0])
        beside = poses[max(0, place - 1) : place + 1]
        near = [m for m in beside if abs(m[0] - stamp_ns) <= MAX_GAP_NS]
        if len(near) < 2:
            return near[0][1] if near else None
        (start_ns, start), (end_ns, end) = near
        share = (stamp_ns - start_ns) / (end_ns - start_ns)
        pose = (1 - share) * start + share * end
        if np.isfinite(pose).all():
            turn = Sim3(1.0, start[:3, :3].T @ end[:3, :3], np.zeros(3))
            pose[:3, :3] = start[:3, :3] @ Sim3.exp(share * turn.log()).rotation
        return pose
