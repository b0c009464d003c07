# SPDX-License-Identifier: Apache-2.0
"""Depth images and an IMU beside the cameras: metres and an upright map, over real DDS."""

import gc

import numpy as np
import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy", reason="needs ROS 2")

from g2vlm_tests.harness import bench, image  # noqa: E402

START_S = 1000.0
NS = 10**9
DEPTH = "/perception/depth/image"


def depth_message(metres, seconds, encoding="32FC1", frame_id="optical", **fields):
    """A depth image; 16UC1 in millimetres."""
    from sensor_msgs.msg import Image

    from g2vlm_ros.ros.conversions import geometry

    kind, unit = {"32FC1": ("<f4", 1.0), "16UC1": ("<u2", 1e-3)}[encoding]
    values = np.nan_to_num(metres) / unit
    pixels = (values if kind == "<f4" else np.rint(values)).astype(kind)
    message = Image(
        header=geometry.header(round(seconds * NS), frame_id),
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        step=pixels.strides[0],
        data=pixels.tobytes(),
    )
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def imu_message(seconds, acceleration=(0.0, 0.0, 9.81), frame_id="imu", **fields):
    from sensor_msgs.msg import Imu

    from g2vlm_ros.ros.conversions import geometry

    message = Imu(header=geometry.header(round(seconds * NS), frame_id), **fields)
    vector = message.linear_acceleration
    vector.x, vector.y, vector.z = map(float, acceleration)
    return message


def static(parent, child, rotation):
    from geometry_msgs.msg import TransformStamped

    from g2vlm_ros.geometry.sim3 import quaternion_xyzw

    transform = TransformStamped(child_frame_id=child)
    transform.header.frame_id = parent
    turn = transform.transform.rotation
    turn.x, turn.y, turn.z, turn.w = map(float, quaternion_xyzw(rotation))
    return transform


def turn(axis, angle):
    from g2vlm_ros.demo.sim.analytic_hall import rotation

    return rotation(angle * np.eye(3)[axis])


def depth_of(message):
    return np.frombuffer(message.data, np.float32).reshape(message.height, message.width)


def first_window(testbed):
    for k in range(2):
        testbed.send("/camera/image_raw", image(START_S + 0.1 * k))
    testbed.settle()
    testbed.until(lambda: testbed.received[DEPTH], "depth of the first window")
    return depth_of(testbed.received[DEPTH][-1])


def depth_listener(testbed):
    from sensor_msgs.msg import Image

    testbed.listen(Image, DEPTH)


def test_depth_images_make_metres():
    pytest.importorskip("torch", reason="the golden checkpoint runs on the torch backend here")
    from g2vlm_ros.msg import ReconstructionStatus

    with bench() as testbed:
        depth_listener(testbed)
        relative = first_window(testbed)
    with bench(depth_topic="/camera/depth") as testbed:
        depth_listener(testbed)
        testbed.listen(ReconstructionStatus, "/perception/status")
        testbed.publish("/camera/depth", depth_message(2.5 * relative, START_S + 0.105))
        testbed.until(lambda: testbed.node.cameras.received["/camera/depth"], "the depth image")
        metric = first_window(testbed)
        status = testbed.received["/perception/status"]
        testbed.until(lambda: status and status[-1].window_id == 1, "the status")
        assert status[-1].scale_state == ReconstructionStatus.SCALE_METRIC
        assert status[-1].scale_source == ReconstructionStatus.SOURCE_DEPTH
    known = np.isfinite(relative)
    assert np.median(metric[known] / relative[known]) == pytest.approx(2.5, rel=0.01)


def test_an_imu_makes_the_map_upright():
    pytest.importorskip("torch", reason="the golden checkpoint runs on the torch backend here")
    from geometry_msgs.msg import PoseArray
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from tf2_msgs.msg import TFMessage

    from g2vlm_ros.ros.conversions import geometry

    base_from_imu, base_from_camera = turn(0, 0.4), turn(1, 0.9) @ turn(0, -1.5)
    up_in_base = np.array([0.6, 0.0, 0.8])
    with bench(imu_topic="/imu", **{"window.views": 1, "window.overlap": 0}) as testbed:
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        tf = testbed.peer.create_publisher(TFMessage, "/tf_static", latched)
        transforms = [
            static("base", "imu", base_from_imu),
            static("base", "optical", base_from_camera),
        ]
        tf.publish(TFMessage(transforms=transforms))
        mounts = testbed.node.cameras.mounts
        testbed.until(lambda: mounts.between("imu", "optical") is not None, "the transforms")
        testbed.publish("/imu", imu_message(START_S, 9.7 * base_from_imu.T @ up_in_base))
        testbed.until(lambda: testbed.node.cameras.received["/imu"], "the sample")
        testbed.listen(PoseArray, "/perception/window_poses")
        testbed.send("/camera/image_raw", image(START_S))
        testbed.until(lambda: testbed.received["/perception/window_poses"], "a pose")
        pose = geometry.pose_matrix(testbed.received["/perception/window_poses"][0].poses[0])
    np.testing.assert_allclose(pose[2, :3], base_from_camera.T @ up_in_base, atol=1e-4)


# Pairing and gravity without a node --------------------------------------------------------------


@pytest.fixture
def paired():
    from g2vlm_ros.ros.inputs.depth import DepthImages

    warnings = []
    return DepthImages(0.02, warnings.append, 10**6), warnings


@pytest.mark.parametrize("encoding", ["32FC1", "16UC1"])
@pytest.mark.parametrize("early", [True, False])
def test_depth_is_paired_whichever_comes_first(paired, encoding, early):
    images, warnings = paired
    expected = np.array([[0.5, 1.25, 3.0], [0.0, 2.0, 7.125]])
    if not early:
        depth = images.of(round(START_S * NS), "optical")
    for off_s, scale, frame in ((-0.015, 3, "optical"), (0.01, 1, "optical"), (0.0, 5, "other")):
        images.update(depth_message(scale * expected, START_S + off_s, encoding, frame))
    if early:
        depth = images.of(round(START_S * NS), "optical")
    np.testing.assert_allclose(depth(), expected, atol=1e-6)
    assert images.of(round((START_S + 1) * NS), "optical")() is None and not warnings


def test_depth_in_millimetres_as_floats_is_named_and_not_used(paired):
    images, warnings = paired
    expected = np.array([[0.5, 1.25, 3.0], [0.0, 2.0, 7.125]])
    images.update(depth_message(1000 * expected, START_S, "32FC1"))
    assert images.of(round(START_S * NS), "optical")() is None
    (warning,) = warnings
    assert all(
        word in warning for word in ("'optical'", "2000 m", "200 m", "millimetres", "16UC1")
    )


def test_big_endian_depth_with_padded_rows(paired):
    images, _ = paired
    expected = np.array([[0.5, 1.25], [3.0, 4.0]])
    rows = np.full((2, 12), 255, np.uint8)
    rows[:, :8] = expected.astype(">f4").view(np.uint8)
    images.update(depth_message(expected, START_S, is_bigendian=1, step=12, data=rows.tobytes()))
    np.testing.assert_array_equal(images.of(round(START_S * NS), "optical")(), expected)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"encoding": "rgb8"}, "32FC1, 16UC1"),
        ({"data": b"123"}, "3 bytes"),
        ({"width": 0}, "1x1 to max_image_px"),
        ({"step": 1}, "rows of 1 bytes"),
    ],
)
def test_bad_depth_images_are_named_and_not_used(paired, fields, words):
    images, warnings = paired
    message = depth_message(np.ones((2, 2)), START_S)
    for name, value in fields.items():
        setattr(message, name, value)
    images.update(message)
    assert words in warnings[0] and images.of(round(START_S * NS), "optical")() is None


def test_depth_of_frames_that_are_gone_is_not_kept(paired):
    images, _ = paired
    for k in range(100):
        images.of(round((START_S + k) * NS), "optical")
        images.update(depth_message(np.ones((2, 2)), START_S + k))
    gc.collect()
    assert images.frames_waiting() <= 1, "only the newest one, to say why it found no depth"
    assert images.images_kept() < 10


@pytest.fixture
def gravity():
    from g2vlm_ros.ros.inputs.imu import ImuGravity
    from g2vlm_ros.ros.inputs.static_tf import StaticTf

    warnings = []
    frames = StaticTf(warnings.append)
    return ImuGravity(frames, warnings.append), warnings


def test_acceleration_is_averaged_over_what_is_near(gravity):
    imu, warnings = gravity
    rng = np.random.default_rng(0)
    for k in range(100):
        shake = rng.normal(0, 2.0, 3)
        imu.update(imu_message(START_S + 0.005 * k, np.array([0, -9.81, 0]) + shake))
    imu.update(imu_message(START_S + 5, (9.81, 0, 0)))
    up = imu.up_at(round((START_S + 0.25) * NS), "imu")
    assert np.degrees(np.arccos(-up[1])) < 4 and np.linalg.norm(up) == pytest.approx(1)
    assert imu.up_at(round((START_S + 2) * NS), "imu") is None and not warnings


def test_orientation_counts_where_the_imu_has_one(gravity):
    from g2vlm_ros.geometry.sim3 import quaternion_xyzw

    imu, _ = gravity
    world_from_imu = turn(2, 1.0) @ turn(0, 0.5)
    message = imu_message(START_S, (0, 0, 9.81))
    q = message.orientation
    q.x, q.y, q.z, q.w = map(float, quaternion_xyzw(world_from_imu))
    message.orientation_covariance[0] = 0.01
    imu.update(message)
    up = imu.up_at(round(START_S * NS), "imu")
    np.testing.assert_allclose(up, world_from_imu[2], atol=1e-12)


def test_an_imu_that_measures_no_gravity_is_named(gravity):
    imu, warnings = gravity
    at = round(START_S * NS)
    imu.update(imu_message(START_S, (0, 0, 1.0)))
    assert imu.up_at(at, "imu") is None and "1.00 m/s²" in warnings.pop()


def test_why_an_imu_is_not_used_is_said(gravity):
    imu, warnings = gravity
    at = round(START_S * NS)
    imu.update(imu_message(START_S))
    assert imu.up_at(at, "optical") is None and "/tf_static" in warnings.pop()
    blind = imu_message(START_S)
    blind.orientation_covariance[0] = blind.linear_acceleration_covariance[0] = -1.0
    imu.update(blind)
    assert "neither" in warnings.pop()
