# SPDX-License-Identifier: Apache-2.0
"""Odometry by stamp, and the place of a camera on the robot, without a node."""

import numpy as np
import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy", reason="ROS 2 is missing")

from geometry_msgs.msg import Quaternion  # noqa: E402
from nav_msgs.msg import Odometry  # noqa: E402
from tf2_msgs.msg import TFMessage  # noqa: E402

from g2vlm_ros.demo.sim.wheel_odometry import base_poses  # noqa: E402
from g2vlm_ros.geometry.sim3 import ZUP_FROM_OPTICAL  # noqa: E402
from g2vlm_ros.ros.conversions import geometry  # noqa: E402
from g2vlm_ros.ros.inputs.odometry import OdometryPoses  # noqa: E402
from g2vlm_ros.ros.inputs.rig import RigMounts  # noqa: E402
from g2vlm_ros.ros.inputs.static_tf import StaticTf  # noqa: E402

NS = 10**9
MOUNT = np.eye(4)
MOUNT[:3, :3], MOUNT[:3, 3] = ZUP_FROM_OPTICAL, (0.2, 0.0, 0.5)


def message(seconds, x, y, yaw):
    made = Odometry(header=geometry.header(round(seconds * NS), "odom"), child_frame_id="base")
    made.pose.pose = geometry.pose_message(base_poses([(x, y)], np.array([yaw]))[0])
    return made


@pytest.fixture
def heard():
    """Odometry at 1 s and 1.2 s, a quarter turn apart; and the warnings."""
    warnings = []
    frames = StaticTf(warnings.append)
    poses = OdometryPoses(frames, warnings.append)
    poses.update(message(1.0, 0.0, 0.0, 0.0))
    poses.update(message(1.2, 1.0, 2.0, np.pi / 2))
    return poses, frames, warnings


def mounted(frames):
    """base -> mast -> optical, in two steps."""
    mast, step = np.eye(4), np.eye(4)
    mast[2, 3] = 0.4
    step[:] = np.linalg.inv(mast) @ MOUNT
    header = geometry.header(0, "base")
    frames.update(TFMessage(transforms=[geometry.transform_message(header, "mast", mast)]))
    header = geometry.header(0, "mast")
    frames.update(TFMessage(transforms=[geometry.transform_message(header, "optical", step)]))


def shift_x(poses, seconds):
    """Where the robot was along x at a moment; None where nothing tells."""
    return poses.camera_at(round(seconds * NS), "optical").get("position_m", [None])[0]


@pytest.mark.parametrize("wrong_s", [0.9, 1.1, 3600.0, 2_000_000_000.0])
def test_one_wrong_stamp_is_left_out_and_nothing_else(heard, wrong_s):
    poses, _, _ = heard
    poses.update(message(wrong_s, 50.0, 0.0, 0.0))
    assert shift_x(poses, 1.05) == pytest.approx(0.25)
    poses.update(message(1.4, 2.0, 2.0, 0.0))
    assert shift_x(poses, 1.3) == pytest.approx(1.5)


def test_two_stamps_in_agreement_are_a_clock_that_jumped(heard):
    poses, _, _ = heard
    for seconds, x in ((0.1, 5.0), (0.2, 6.0), (0.3, 7.0)):
        poses.update(message(seconds, x, 0.0, 0.0))
    assert shift_x(poses, 0.25) == pytest.approx(6.5)
    assert shift_x(poses, 1.05) is None


def test_a_pose_between_messages_lies_between_them(heard):
    poses, frames, _ = heard
    mounted(frames)
    found = poses.camera_at(round(1.05 * NS), "optical")["odom_from_camera"]
    expected = base_poses([(0.25, 0.5)], np.array([np.pi / 8]))[0] @ MOUNT
    np.testing.assert_allclose(found, expected, atol=1e-6)
    at_once = poses.camera_at(round(1.2 * NS), "optical")["odom_from_camera"]
    np.testing.assert_allclose(
        at_once, base_poses([(1.0, 2.0)], np.array([np.pi / 2]))[0] @ MOUNT, atol=1e-6
    )


def test_near_the_ends_the_nearest_message_counts_and_far_from_them_none(heard):
    poses, frames, _ = heard
    mounted(frames)
    after = poses.camera_at(round(1.6 * NS), "optical")["odom_from_camera"]
    np.testing.assert_allclose(after[:2, 3], [1.0, 2.2], atol=1e-6)
    assert poses.camera_at(round(0.7 * NS), "optical")["odom_from_camera"][0, 3] == 0.2
    assert poses.camera_at(round(0.4 * NS), "optical") == {}
    assert poses.camera_at(round(1.8 * NS), "optical") == {}


def test_without_a_mount_only_the_robots_position_is_known_and_that_is_said(heard):
    poses, _, warnings = heard
    known = poses.camera_at(round(1.1 * NS), "optical")
    assert known.keys() == {"position_m"}
    np.testing.assert_allclose(known["position_m"], [0.5, 1.0, 0.0], atol=1e-9)
    assert "'base'" in warnings[0] and "/tf_static" in warnings[0]


def test_a_clock_that_jumps_back_starts_over(heard):
    poses, frames, _ = heard
    mounted(frames)
    poses.update(message(0.4, 6.0, 0.0, 0.0))
    poses.update(message(0.5, 7.0, 0.0, 0.0))
    assert poses.camera_at(NS, "optical")["odom_from_camera"][0, 3] == 7.2


def test_odometry_without_orientation_gives_the_scale_only(heard):
    poses, frames, warnings = heard
    mounted(frames)
    bare = message(1.4, 3.0, 2.0, 0.0)
    bare.pose.pose.orientation = Quaternion(x=0.0, y=0.0, z=0.0, w=0.0)
    poses.update(bare)
    assert "scale only" in warnings[0]
    for seconds, x in ((1.4, 3.0), (1.3, 2.0)):
        known = poses.camera_at(round(seconds * NS), "optical")
        assert known.keys() == {"position_m"}
        np.testing.assert_allclose(known["position_m"], [x, 2.0, 0.0], atol=1e-9)
    bare.header.stamp, bare.pose.pose.position.x = geometry.stamp(round(1.5 * NS)), float("nan")
    poses.update(bare)
    assert poses.camera_at(round(1.5 * NS), "optical") == {}


def test_cameras_of_a_rig_lie_in_the_first_ones_frame():
    warnings = []
    frames = StaticTf(warnings.append)
    mounted(frames)
    right = MOUNT.copy()
    right[1, 3] = -0.3
    header = geometry.header(0, "base")
    frames.update(TFMessage(transforms=[geometry.transform_message(header, "right", right)]))
    rig = RigMounts("front", frames, warnings.append)
    assert rig.mount("side", "right") is None, "the first camera has not come yet"
    np.testing.assert_allclose(rig.mount("front", "optical"), np.eye(4), atol=1e-9)
    pose = rig.mount("side", "right")
    np.testing.assert_allclose(pose[:3, 3], (0.3, 0, 0), atol=1e-9)
    np.testing.assert_allclose(pose[:3, :3], np.eye(3), atol=1e-9)
    assert not warnings


def test_a_camera_without_a_fixed_transform_is_named_within_ten_frames():
    warnings = []
    rig = RigMounts("front", StaticTf(warnings.append), warnings.append)
    for _ in range(10):
        rig.mount("front", "optical")
        rig.mount("side", "right")
    assert warnings and "'optical' and 'right' (side)" in warnings[0]
    assert "/tf_static" in warnings[0]


def test_names_of_static_transforms_are_bounded(monkeypatch):
    from g2vlm_ros.ros.inputs import static_tf

    monkeypatch.setattr(static_tf, "MAX_FRAMES", 3)
    warnings = []
    frames = StaticTf(warnings.append)
    header = geometry.header(0, "base")
    for name in "abcd":
        frames.update(TFMessage(transforms=[geometry.transform_message(header, name, MOUNT)]))
    assert frames.between("base", "c") is not None and frames.between("base", "d") is None
    assert len(warnings) == 1 and "more than 3 frames" in warnings[0]
