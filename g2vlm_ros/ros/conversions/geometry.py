# SPDX-License-Identifier: Apache-2.0
"""Stamps, headers, poses, transforms and paths as messages, and back.

Time is integer nanoseconds. Poses are (4, 4) matrices ``parent_from_child``, whose parent is the
frame of the header.
"""

from __future__ import annotations

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import (
    Point,
    Pose,
    PoseArray,
    PoseStamped,
    PoseWithCovarianceStamped,
    Quaternion,
    Transform,
    TransformStamped,
)
from nav_msgs.msg import Path
from std_msgs.msg import Header

from g2vlm_ros.geometry.sim3 import quaternion_xyzw, rotation_from_xyzw

_SECOND_NS = 1_000_000_000


def stamp(ns: int) -> Time:
    """A message time of integer nanoseconds; ValueError where its fields cannot hold it."""
    seconds, rest = divmod(int(ns), _SECOND_NS)
    if not 0 <= seconds < 2**31:
        raise ValueError(f"time {ns} ns must lie between 0 and 2^31 seconds")
    return Time(sec=seconds, nanosec=rest)


def stamp_ns(time: Time) -> int:
    """Integer nanoseconds of a message time."""
    return time.sec * _SECOND_NS + time.nanosec


def header(ns: int, frame_id: str) -> Header:
    """The header of data acquired at `ns` in a frame."""
    return Header(stamp=stamp(ns), frame_id=frame_id)


def position(point: Point) -> np.ndarray:
    """A Point as float64 (3,)."""
    return np.array([point.x, point.y, point.z])


def pose_matrix(pose: Pose) -> np.ndarray:
    """A Pose as parent_from_child, float64 (4, 4)."""
    turn, matrix = pose.orientation, np.eye(4)
    matrix[:3, :3] = rotation_from_xyzw(np.array([turn.x, turn.y, turn.z, turn.w]))
    matrix[:3, 3] = position(pose.position)
    return matrix


def transform_matrix(transform: Transform) -> np.ndarray:
    """A Transform as parent_from_child, float64 (4, 4)."""
    turn, move, matrix = transform.rotation, transform.translation, np.eye(4)
    matrix[:3, :3] = rotation_from_xyzw(np.array([turn.x, turn.y, turn.z, turn.w]))
    matrix[:3, 3] = move.x, move.y, move.z
    return matrix


def pose_message(pose: np.ndarray) -> Pose:
    """A Pose of parent_from_child (4, 4)."""
    msg = Pose(orientation=_quaternion(pose))
    msg.position.x, msg.position.y, msg.position.z = map(float, pose[:3, 3])
    return msg


def pose_stamped(header: Header, pose: np.ndarray) -> PoseStamped:
    """A PoseStamped of parent_from_child (4, 4)."""
    return PoseStamped(header=header, pose=pose_message(pose))


def pose_with_covariance(
    header: Header, pose: np.ndarray, covariance: np.ndarray
) -> PoseWithCovarianceStamped:
    """A pose with its covariance (6, 6) in the order x, y, z, roll, pitch, yaw (REP-103)."""
    covariance = np.asarray(covariance, dtype=np.float64)
    if covariance.shape != (6, 6) or not np.isfinite(covariance).all():
        raise ValueError(f"covariance {covariance.shape} must be (6, 6) and finite")
    msg = PoseWithCovarianceStamped(header=header)
    msg.pose.pose = pose_message(pose)
    msg.pose.covariance = covariance.ravel()
    return msg


def pose_array(header: Header, poses: np.ndarray) -> PoseArray:
    """A PoseArray of parent_from_child (N, 4, 4)."""
    return PoseArray(header=header, poses=[pose_message(pose) for pose in poses])


def append(path: Path, pose: PoseStamped, max_poses: int) -> None:
    """Add a pose to a path, whose header it gives, and drop the oldest above `max_poses`."""
    path.header = pose.header
    path.poses.append(pose)
    del path.poses[:-max_poses]


def transform_message(header: Header, child_frame_id: str, pose: np.ndarray) -> TransformStamped:
    """A TransformStamped of parent_from_child (4, 4)."""
    msg = TransformStamped(header=header, child_frame_id=child_frame_id)
    msg.transform.rotation = _quaternion(pose)
    place = msg.transform.translation
    place.x, place.y, place.z = map(float, pose[:3, 3])
    return msg


def _quaternion(pose: np.ndarray) -> Quaternion:
    x, y, z, w = quaternion_xyzw(pose[:3, :3]).tolist()
    return Quaternion(x=x, y=y, z=z, w=w)
