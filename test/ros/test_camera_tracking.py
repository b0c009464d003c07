# SPDX-License-Identifier: Apache-2.0
"""Poses at the camera's rate, over real DDS, with true geometry in the network's place."""

from __future__ import annotations

import numpy as np
import pytest
from g2vlm_tests.walk_views import NodePerception, walk_views

from g2vlm_ros.evaluation.stand_in import StandInErrors

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy", reason="needs ROS 2")

from g2vlm_tests.harness import bench  # noqa: E402

WINDOW_GAP_S = 0.5
"""Between the views of windows: several frames."""


@pytest.fixture
def true_geometry(monkeypatch):
    from g2vlm_ros.ros import perception_node

    def opened(settings):
        return NodePerception(walk_views(), StandInErrors())

    monkeypatch.setattr(perception_node, "open_and_warm_up", opened)


def send(testbed, frame):
    from g2vlm_ros.ros.conversions import geometry, images

    header = geometry.header(frame.stamp_ns, "optical")
    testbed.send("/camera/image_raw", images.rgb_image(header, frame.image()))


def listen(testbed):
    from geometry_msgs.msg import PoseWithCovarianceStamped
    from nav_msgs.msg import Odometry
    from tf2_msgs.msg import TFMessage

    testbed.listen(PoseWithCovarianceStamped, "/perception/pose")
    testbed.listen(Odometry, "/perception/odometry")
    testbed.listen(TFMessage, "/tf")


def stamp_ns(message):
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def walk(testbed, frames):
    for frame in frames:
        send(testbed, frame)
        testbed.settle()
        testbed.until(testbed.node.tracking_rests, "the tracker to rest")


def test_every_frame_has_a_pose_and_stamps_only_grow(true_geometry) -> None:
    frames = walk_views()
    options = {"window.min_gap_s": WINDOW_GAP_S, "window.max_age_s": 20.0,
               "map.metres_per_unit": 0.0, "map.refine_poses": False}  # fmt: skip
    with bench(**options) as testbed:
        listen(testbed)
        walk(testbed, frames)
        poses, transforms = testbed.received["/perception/pose"], testbed.received["/tf"]
        testbed.until(
            lambda: poses and stamp_ns(poses[-1]) == frames[-1].stamp_ns, "the last pose"
        )
        windows, counts = testbed.node.counts().windows, testbed.node.tracking_counts()
        assert not testbed.received["/perception/odometry"], "lengths are no metres"
    stamps = [stamp_ns(pose) for pose in poses]
    assert windows < 6 and len(stamps) > 10 and counts.tracked >= 10
    assert stamps == sorted(set(stamps))
    of_camera = [stamp_ns(t.transforms[0]) for t in transforms]
    assert of_camera == sorted(set(of_camera)) and len(of_camera) > 10
    variances = {stamp: pose.pose.covariance[0] for stamp, pose in zip(stamps, poses, strict=True)}
    assert all(value > 0 for value in variances.values())


def test_off_means_windows_only(true_geometry) -> None:
    frames = walk_views()
    options = {"window.min_gap_s": WINDOW_GAP_S, "window.max_age_s": 20.0,
               "pose.between_windows": False}  # fmt: skip
    with bench(**options) as testbed:
        listen(testbed)
        walk(testbed, frames)
        poses = testbed.received["/perception/pose"]
        testbed.until(lambda: len(poses) >= 3, "poses of windows")
        assert testbed.node.tracking_counts() is None
        assert len(poses) <= testbed.node.counts().used < 6


def test_odometry_is_in_metres_and_in_its_own_frame(true_geometry) -> None:
    from g2vlm_ros.ros.conversions import geometry, images

    frames = walk_views()
    options = {"window.min_gap_s": WINDOW_GAP_S, "window.max_age_s": 20.0, "depth_topic": "/depth"}
    with bench(**options) as testbed:
        listen(testbed)
        for frame in frames:
            header = geometry.header(frame.stamp_ns, "optical")
            testbed.publish("/depth", images.depth_image(header, frame.depth_m()))
            walk(testbed, [frame])
        odometry = testbed.received["/perception/odometry"]
        testbed.until(lambda: len(odometry) >= 3, "odometry in metres")
        testbed.node.trigger_deactivate()
        count = len(odometry)
        header = geometry.header(frames[-1].stamp_ns + 10**8, "optical")
        testbed.publish("/camera/image_raw", images.rgb_image(header, frames[-1].image()))
        assert testbed.node.tracking_counts() is None and len(odometry) == count
    assert {m.header.frame_id for m in odometry} == {"g2vlm_odom"}
    assert {m.child_frame_id for m in odometry} == {"optical_g2vlm"}
    number = {frame.stamp_ns: frame for frame in frames}
    first, last = number[stamp_ns(odometry[0])], number[stamp_ns(odometry[-1])]
    moved = np.linalg.inv(geometry.pose_matrix(odometry[0].pose.pose))
    moved = moved @ geometry.pose_matrix(odometry[-1].pose.pose)
    true = np.linalg.inv(first.world_from_camera) @ last.world_from_camera
    assert np.linalg.norm(true[:3, 3]) > 0.1
    assert np.linalg.norm(moved[:3, 3] - true[:3, 3]) < 0.03
    assert odometry[-1].twist.covariance[0] > 0
