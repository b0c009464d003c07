# SPDX-License-Identifier: Apache-2.0
"""The simulated camera over real DDS: what it publishes agrees with itself and with the truth."""

from __future__ import annotations

import threading
import time
from collections import defaultdict

import numpy as np
import pytest

pytestmark = pytest.mark.ros
rclpy = pytest.importorskip("rclpy", reason="ROS 2 is missing")

from geometry_msgs.msg import PoseStamped  # noqa: E402
from nav_msgs.msg import Odometry  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from sensor_msgs.msg import CameraInfo, Image  # noqa: E402
from tf2_msgs.msg import TFMessage  # noqa: E402

from g2vlm_ros.demo.nodes.sim_camera_node import SimCamera, SimCameraSettings  # noqa: E402
from g2vlm_ros.geometry.camera import unproject  # noqa: E402
from g2vlm_ros.parameter_schema import SettingError  # noqa: E402
from g2vlm_ros.ros.conversions import geometry  # noqa: E402
from g2vlm_ros.ros.inputs.odometry import OdometryPoses  # noqa: E402
from g2vlm_ros.ros.inputs.static_tf import StaticTf  # noqa: E402


@pytest.fixture(scope="module")
def drive():
    """The first seconds of a walk with two cameras: messages by topic, and the node."""
    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    listener = rclpy.create_node("listener", context=context)
    received = defaultdict(list)
    for kind, topic in (
        (Image, "/left/image_raw"),
        (Image, "/right/image_raw"),
        (CameraInfo, "/left/camera_info"),
        (Odometry, "/odom"),
        (PoseStamped, "/sim_camera/truth/pose"),
        (Image, "/sim_camera/truth/depth/image"),
        (Clock, "/clock"),
    ):
        listener.create_subscription(kind, topic, received[topic].append, qos_profile_sensor_data)
    latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    listener.create_subscription(TFMessage, "/tf_static", received["/tf_static"].append, latched)
    settings = {
        "cameras": ["left:40", "right:-40"],
        "width_px": 56,
        "sim_time": True,
        "speed": 4.0,
        "split": "validation",
        "home": 1,
        "odometry_noise": 0.0,
    }
    overrides = [Parameter(name, value=value) for name, value in settings.items()]
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(listener)
    spinning = threading.Thread(target=executor.spin, daemon=True)
    spinning.start()
    camera = SimCamera(context=context, parameter_overrides=overrides)
    until = time.monotonic() + 60
    while len(received["/right/image_raw"]) < 12 and time.monotonic() < until:
        time.sleep(0.05)
    camera.destroy_node()
    executor.shutdown()
    listener.destroy_node()
    rclpy.try_shutdown(context=context)
    return received, camera


def by_stamp(received):
    return {geometry.stamp_ns(message.header.stamp): message for message in received}


def test_every_message_belongs_to_a_moment(drive):
    received, camera = drive
    assert len(received["/right/image_raw"]) >= 12
    for topic in ("/left/image_raw", "/odom", "/sim_camera/truth/pose", "/left/camera_info"):
        assert by_stamp(received[topic]).keys() <= camera.moments.keys()
    clock = [geometry.stamp_ns(message.clock) for message in received["/clock"]]
    assert clock == sorted(clock) and clock[0] >= 1_000_000_000
    stamps = sorted(by_stamp(received["/left/image_raw"]))
    assert np.diff(stamps).min() == 200_000_000


def test_depth_and_poses_agree_between_moments(drive):
    """A point of one view, moved by the true poses, lies on the depth of a later view."""
    received, camera = drive
    poses, depths = (
        by_stamp(received[f"/sim_camera/truth/{name}"]) for name in ("pose", "depth/image")
    )
    first, later = sorted(poses.keys() & depths.keys())[:4:3]
    lens, agreed, seen = camera.camera, 0, 0
    shape = lens.height_px, lens.width_px
    depth = {t: np.frombuffer(depths[t].data, np.float32).reshape(shape) for t in (first, later)}
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    points = unproject(np.stack([columns, rows], -1).astype(float), depth[first], lens)
    world = geometry.pose_matrix(poses[first].pose)
    there = np.linalg.inv(geometry.pose_matrix(poses[later].pose)) @ world
    moved = points.reshape(-1, 3) @ there[:3, :3].T + there[:3, 3]
    u, v = (lens.matrix() @ (moved / moved[:, 2:]).T)[:2].round().astype(int)
    inside = (moved[:, 2] > 0.1) & (u >= 0) & (u < shape[1]) & (v >= 0) & (v < shape[0])
    seen = inside.sum()
    ratio = moved[inside, 2] / depth[later][v[inside], u[inside]]
    agreed = (np.abs(ratio - 1) < 0.03).sum()
    assert seen > 300 and agreed > 0.8 * seen


def test_odometry_moves_as_the_camera_does(drive):
    received, _ = drive
    poses, odom = by_stamp(received["/sim_camera/truth/pose"]), by_stamp(received["/odom"])
    for stamp in poses.keys() & odom.keys():
        true, wheel = poses[stamp].pose.position, odom[stamp].pose.pose.position
        assert (true.x, true.y) == pytest.approx((wheel.x, wheel.y), abs=1e-6)
    assert odom[stamp].header.frame_id == "odom" and odom[stamp].child_frame_id == "base_link"


def test_odometry_and_mount_give_the_pose_of_each_camera(drive):
    """The mount leaves out that the camera sways by half a degree."""
    received, _ = drive
    warnings = []
    frames = StaticTf(warnings.append)
    for message in received["/tf_static"]:
        frames.update(message)
    odometry = OdometryPoses(frames, warnings.append)
    for _, message in sorted(by_stamp(received["/odom"]).items()):
        odometry.update(message)
    poses = by_stamp(received["/sim_camera/truth/pose"])
    for stamp in poses.keys() & by_stamp(received["/odom"]).keys():
        pose = odometry.camera_at(stamp, "left_optical_frame")["odom_from_camera"]
        true = geometry.pose_matrix(poses[stamp].pose)
        np.testing.assert_allclose(pose[:3, 3], true[:3, 3], atol=1e-6)
        assert np.trace(pose[:3, :3].T @ true[:3, :3]) > 1 + 2 * np.cos(np.deg2rad(2))
    left_from_right = frames.between("left_optical_frame", "right_optical_frame")
    assert np.degrees(np.arccos(left_from_right[2, 2])) == pytest.approx(80, abs=3)
    assert not warnings


def test_two_cameras_look_apart(drive):
    received, camera = drive
    left, right = (by_stamp(received[f"/{side}/image_raw"]) for side in ("left", "right"))
    stamp = min(left.keys() & right.keys())
    assert left[stamp].header.frame_id == "left_optical_frame"
    assert bytes(left[stamp].data) != bytes(right[stamp].data)
    yaw = camera.scene.walk.yaw_rad[round(camera.moments[stamp].time_s * 10)]
    ahead = camera.moments[stamp].world_from_camera[:3, 2]
    turn = np.angle(np.exp(1j * (np.arctan2(ahead[1], ahead[0]) - yaw)))
    assert np.rad2deg(turn) == pytest.approx(40, abs=4), "of the first camera, to the left"


def test_wrong_settings_are_named():
    with pytest.raises(SettingError, match="left:north"):
        SimCameraSettings(cameras=["left:north"])
    with pytest.raises(SettingError, match="cameras is empty"):
        SimCameraSettings(cameras=[])


def test_a_walk_that_loops_goes_back_the_way_it_came():
    from itertools import islice

    from g2vlm_ros.demo.nodes.sim_camera_node import there_and_back

    assert list(islice(there_and_back(range(0, 8, 2)), 10)) == [0, 2, 4, 6, 4, 2, 0, 2, 4, 6]
