# SPDX-License-Identifier: Apache-2.0
"""Inputs that do not fit are named and not used; what is forgotten is taken back from topics."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from g2vlm_tests.harness import bench, image

pytest.importorskip("rclpy")

START_S = 100.0
QUICK = {"voxel.publish_period_s": 0.1, "map.metres_per_unit": 1.0, "voxel.max_edge_step": 0.0}


class Listener:
    """Sentences that an input warned of."""

    def __init__(self):
        self.sentences = []

    def __call__(self, sentence):
        self.sentences.append(sentence)


@pytest.fixture
def warn():
    return Listener()


@pytest.fixture
def cameras(monkeypatch):
    """Cameras without a node: what they subscribe to, offer and log."""
    from g2vlm_ros.ros.inputs.cameras import Cameras
    from g2vlm_ros.settings import Settings

    logged, frames, rejected, callbacks = [], [], [], {}
    log = SimpleNamespace(warning=lambda text, **_: logged.append(text), error=logged.append)
    node = SimpleNamespace(
        get_logger=lambda: log,
        create_subscription=lambda kind, topic, take, *_, **__: callbacks.update({topic: take}),
        destroy_subscription=lambda _: None,
    )
    settings = Settings.from_flat({"cameras": ["left", "right"], "window.overlap": 1})
    Cameras(node, settings, frames.append, rejected.append)

    def receive(topic, message):
        callbacks[topic](message)

    return SimpleNamespace(receive=receive, logged=logged, frames=frames, rejected=rejected)


def calibration(width=64, height=48, focal=60.0, **fields):
    from sensor_msgs.msg import CameraInfo

    k = [focal, 0.0, (width - 1) / 2, 0.0, focal, (height - 1) / 2, 0.0, 0.0, 1.0]
    return CameraInfo(width=width, height=height, k=k, **fields)


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (320, 180), (48, 64)])
def test_a_calibration_of_another_shape_is_warned_of_once_and_not_used(cameras, width, height):
    cameras.receive("left/camera_info", calibration(width, height))
    for k in range(3):
        cameras.receive("left/image_raw", image(START_S + k))
    assert [frame.intrinsics for frame in cameras.frames] == [None] * 3
    assert len(cameras.logged) == 1
    assert f"{width}x{height}" in cameras.logged[0] and "64x48" in cameras.logged[0]


@pytest.mark.parametrize("scale", [1, 2])
def test_a_calibration_of_the_same_shape_is_used(cameras, scale):
    cameras.receive("left/camera_info", calibration(64 * scale, 48 * scale))
    cameras.receive("left/image_raw", image(START_S))
    assert cameras.frames[0].intrinsics is not None and not cameras.logged


def test_every_camera_with_a_fisheye_is_named_whatever_its_coefficients(cameras):
    for camera in ("left", "right", "left"):
        info = calibration(distortion_model="equidistant", d=[0.0] * 4)
        cameras.receive(f"{camera}/camera_info", info)
    assert [line.split(":")[0] for line in cameras.logged] == ["left", "right"]
    assert all("distortion" in line for line in cameras.logged)


def test_what_comes_in_a_message_forges_no_line_of_the_log(cameras):
    forged = "rainbow8\n[FATAL] [perception]: the robot is on fire\x1b[2J"
    cameras.receive("left/image_raw", image(START_S, encoding=forged))
    assert cameras.rejected == ["encoding"]
    assert "\n" not in cameras.logged[0] and "\x1b" not in cameras.logged[0]
    assert "\\n[FATAL]" in cameras.logged[0]


def transforms(x, parent="base_link", child="optical"):
    from geometry_msgs.msg import TransformStamped
    from tf2_msgs.msg import TFMessage

    stamped = TransformStamped(child_frame_id=child)
    stamped.header.frame_id = parent
    stamped.transform.translation.x = x
    stamped.transform.rotation.w = 1.0
    return TFMessage(transforms=[stamped])


@pytest.mark.parametrize("x", [math.inf, -math.inf, math.nan, 1e30, 1e300])
def test_an_absurd_static_transform_is_refused_and_a_right_one_taken(warn, x):
    from g2vlm_ros.ros.inputs.static_tf import StaticTf

    tree = StaticTf(warn)
    tree.update(transforms(x))
    assert tree.between("base_link", "optical") is None
    assert "optical" in warn.sentences[0] and "1000" in warn.sentences[0]
    tree.update(transforms(0.3))
    assert tree.between("base_link", "optical")[0, 3] == 0.3
    tree.update(transforms(x))
    assert tree.between("base_link", "optical")[0, 3] == 0.3, "the last good one stays"


def depth_message(seconds, frame_id):
    from sensor_msgs.msg import Image

    from g2vlm_ros.ros.conversions import geometry

    header = geometry.header(round(seconds * 1e9), frame_id)
    return Image(header=header, height=1, width=1, encoding="32FC1", step=4, data=bytes(4))


@pytest.mark.parametrize(
    ("frame_id", "late_s", "words"),
    [
        ("depth_optical", 0.0, ["'depth_optical'", "'optical'", "frame_id"]),
        ("optical", 0.05, ["window.sync_slop_s", "their newest stamp is 100.75", "100.7"]),
        ("optical", 0.0, []),
    ],
)
def test_depth_that_matches_no_frame_says_why_within_ten_frames(warn, frame_id, late_s, words):
    from g2vlm_ros.ros.inputs.depth import DepthImages

    depth = DepthImages(0.02, warn, 10**6)
    for k in range(10):
        moment_s = START_S + 0.1 * k
        depth.of(round(moment_s * 1e9), "optical")
        depth.update(depth_message(moment_s + late_s, frame_id))
    assert bool(warn.sentences) == bool(words)
    assert all(word in warn.sentences[0] for word in words)


@pytest.mark.parametrize(("value", "words"), [(2000, ""), (20_000, "tenths of them")])
def test_depth_in_tenths_of_a_millimetre_is_recognised(warn, value, words):
    from sensor_msgs.msg import Image

    from g2vlm_ros.ros.conversions import geometry
    from g2vlm_ros.ros.inputs.depth import DepthImages

    depth, stamp_ns = DepthImages(0.02, warn, 10**6), round(START_S * 1e9)
    pixels = np.full((6, 8), value, "<u2")
    header = geometry.header(stamp_ns, "optical")
    depth.update(
        Image(header=header, height=6, width=8, encoding="16UC1", step=16, data=pixels.tobytes())
    )
    assert depth.of(stamp_ns, "optical")()[0, 0] == pytest.approx(value * 1e-3)
    assert bool(warn.sentences) == bool(words) and words in "".join(warn.sentences)


def test_odometry_with_other_stamps_says_so_within_ten_frames(warn):
    from nav_msgs.msg import Odometry

    from g2vlm_ros.ros.inputs.odometry import OdometryPoses
    from g2vlm_ros.ros.inputs.static_tf import StaticTf

    odometry = OdometryPoses(StaticTf(warn), warn)
    for k in range(10):
        message = Odometry(child_frame_id="base_link")
        message.pose.pose.orientation.w = 1.0
        odometry.update(message)
        assert odometry.camera_at(round((START_S + k) * 1e9), "optical") == {}
    assert "0.000 s" in warn.sentences[0] and "107.000 s" in warn.sentences[0]


def test_no_imu_message_at_all_is_said(warn):
    from g2vlm_ros.ros.inputs.imu import ImuGravity
    from g2vlm_ros.ros.inputs.static_tf import StaticTf

    imu = ImuGravity(StaticTf(warn), warn)
    for k in range(10):
        assert imu.up_at(round((START_S + k) * 1e9), "optical") is None
    assert "imu_topic" in warn.sentences[0]


def test_a_reset_takes_back_map_path_and_grid_from_listeners_and_late_joiners():
    from nav_msgs.msg import OccupancyGrid, Path
    from sensor_msgs.msg import PointCloud2
    from std_srvs.srv import Trigger

    from g2vlm_ros.ros.publishers import LATCHED

    kinds = {"map": PointCloud2, "occupancy": OccupancyGrid, "path": Path}
    with bench(**QUICK) as testbed:
        actual = testbed.received
        for name, kind in kinds.items():
            testbed.listen(kind, f"/perception/{name}", LATCHED)
        testbed.listen(PointCloud2, "/perception/map_updates", 100)
        for k in range(4):
            testbed.send("/camera/image_raw", image(START_S + 0.1 * k, frame_id="camera_optical"))
        testbed.until(
            lambda: all(actual[f"/perception/{n}"] for n in (*kinds, "map_updates")), "a map"
        )
        testbed.settle()
        assert actual["/perception/map"][-1].width > 0 and actual["/perception/path"][-1].poses
        assert testbed.call(Trigger, "/perception/reset", Trigger.Request()).success

        def forgotten(received):
            grid = received["/perception/occupancy"]
            return (
                received["/perception/map"][-1].width == 0
                and not received["/perception/path"][-1].poses
                and not {0, 100} & set(grid[-1].data)
            )

        testbed.until(lambda: forgotten(actual), "empty messages")
        changes = actual["/perception/map_updates"]
        row = np.frombuffer(changes[-1].data, np.dtype([("xyz", "<3f4"), ("rest", "<3i4")]))
        assert len(row) == 1 and np.isnan(row["xyz"]).all() and row["rest"][0, 2] == -1
        late = {f"/perception/{name}": [] for name in kinds}
        for name, kind in kinds.items():
            topic = f"/perception/{name}"
            testbed.peer.create_subscription(kind, topic, late[topic].append, LATCHED)
        testbed.until(lambda: all(late.values()), "what late joiners get")
        assert forgotten(late)
        testbed.send("/camera/image_raw", image(START_S + 5))
        testbed.send("/camera/image_raw", image(START_S + 5.1))
        testbed.until(lambda: actual["/perception/map"][-1].width > 0, "the next map")


def test_activating_again_takes_back_the_map_that_no_window_continues():
    from nav_msgs.msg import Path
    from sensor_msgs.msg import PointCloud2

    from g2vlm_ros.ros.publishers import LATCHED

    with bench(**QUICK) as testbed:
        testbed.listen(PointCloud2, "/perception/map", LATCHED)
        testbed.listen(Path, "/perception/path", LATCHED)
        maps, paths = testbed.received["/perception/map"], testbed.received["/perception/path"]
        for k in range(3):
            testbed.send("/camera/image_raw", image(START_S + 0.1 * k))
            testbed.settle()
        testbed.until(lambda: maps and paths and maps[-1].width and paths[-1].poses, "a map")
        testbed.node.trigger_deactivate()
        assert maps[-1].width and paths[-1].poses, "it is true until the robot maps again"
        testbed.node.trigger_activate()
        testbed.until(lambda: not maps[-1].width and not paths[-1].poses, "empty messages")
        late = []
        testbed.peer.create_subscription(PointCloud2, "/perception/map", late.append, LATCHED)
        testbed.until(lambda: late, "what late joiners get")
        assert late[-1].width == 0


def test_no_grid_is_published_before_lengths_are_metres():
    from nav_msgs.msg import OccupancyGrid
    from sensor_msgs.msg import PointCloud2

    from g2vlm_ros.ros.publishers import LATCHED

    with bench(**{**QUICK, "map.metres_per_unit": 0.0}) as testbed:
        testbed.listen(OccupancyGrid, "/perception/occupancy", LATCHED)
        testbed.listen(PointCloud2, "/perception/map", LATCHED)
        for k in range(4):
            testbed.send("/camera/image_raw", image(START_S + 0.1 * k))
        testbed.until(lambda: testbed.received["/perception/map"], "the map")
        assert not testbed.received["/perception/occupancy"]


def test_two_cameras_of_one_frame_id_are_named_and_tf_holds_one():
    from tf2_msgs.msg import TFMessage

    with bench(cameras=["left", "right"], **{"window.overlap": 0}) as testbed:
        testbed.listen(TFMessage, "/tf")
        for k in range(2):
            testbed.send("/left/image_raw", image(START_S + k, frame_id="cam"))
            testbed.send("/right/image_raw", image(START_S + k, 7 + k, frame_id="cam"))
            testbed.settle()
        testbed.until(lambda: testbed.received["/tf"], "/tf")
        children = [[t.child_frame_id for t in m.transforms] for m in testbed.received["/tf"]]
        assert all(names == ["cam_g2vlm"] for names in children)
        assert testbed.node.outputs.shared_frames == {"cam": ("left", "right")}


def test_a_reset_takes_back_the_last_answer_and_its_place():
    from g2vlm_ros.msg import SpatialExample
    from g2vlm_ros.srv import SpatialQuery
    from geometry_msgs.msg import PoseStamped
    from std_srvs.srv import Trigger

    from g2vlm_ros.ros.publishers import LATCHED

    kinds = {"last_answer": SpatialExample, "last_target": PoseStamped}
    with bench(**QUICK) as testbed:
        request = SpatialQuery.Request(question="Where is the chair?", max_wait_s=20.0)
        testbed.call(SpatialQuery, "/perception/query", request)
        assert testbed.call(Trigger, "/perception/reset", Trigger.Request()).success
        testbed.settle()
        late = {name: [] for name in kinds}
        for name, kind in kinds.items():
            topic = f"/perception/query/{name}"
            testbed.peer.create_subscription(kind, topic, late[name].append, LATCHED)
        testbed.until(lambda: all(late.values()), "what late joiners get")
        assert late["last_answer"][-1].question == late["last_answer"][-1].answer == ""
        assert math.isnan(late["last_target"][-1].pose.position.x)


@pytest.mark.parametrize("covariance", [1.7e308, math.inf, math.nan, -1e300])
def test_an_initial_pose_beyond_all_bounds_is_refused(covariance):
    from geometry_msgs.msg import PoseWithCovarianceStamped

    from g2vlm_ros.ros.initial_pose import InitialPose

    warnings, hints = [], []
    log = SimpleNamespace(warning=warnings.append, info=lambda _: None)
    node = SimpleNamespace(get_logger=lambda: log, create_subscription=lambda *_: None)
    listener = InitialPose(node, "map", hints.append)
    message = PoseWithCovarianceStamped()
    message.header.frame_id = "map"
    listener.update(message)
    assert len(hints) == 1 and not warnings
    message.pose.covariance[0] = message.pose.covariance[7] = covariance
    listener.update(message)
    assert len(hints) == 1 and "must be finite and within 1e+06 m" in warnings[0]


def test_a_clock_that_disagrees_is_named():
    from g2vlm_ros.ros.remarks import clock_remark

    assert "3600.0 s ahead" in clock_remark(-3600.0) and "clock" in clock_remark(-3600.0)
    assert "use_sim_time" in clock_remark(1_795_817_088.0)
    assert clock_remark(0.3) == clock_remark(40.0) == clock_remark(-0.1) == ""


def test_a_camera_too_slow_for_its_window_is_told_what_to_raise():
    from g2vlm_ros.ros.input_rate import FrameRate
    from g2vlm_ros.settings import Settings

    rate = FrameRate(Settings())
    for second in range(20):
        rate.update(float(second), second // 2)
    assert rate.period_s == pytest.approx(2.0, rel=0.2)
    assert "window.max_age_s above" in rate.remark()
    quick = FrameRate(Settings())
    for second in range(20):
        quick.update(float(second), 5 * second)
    assert quick.remark() == ""
