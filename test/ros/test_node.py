# SPDX-License-Identifier: Apache-2.0
"""The node over real DDS: frames in, clouds and poses out, bad input counted, never a crash."""

import asyncio
import math
import time

import numpy as np
import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("torch", reason="the golden checkpoint runs on the torch backend here")

from g2vlm_tests.harness import SMALL, Bench, bench, image  # noqa: E402

START_S = 1000.0


def stream(testbed, count, start=START_S, camera="camera", step=0.1):
    """Send `count` frames 0.1 s apart and wait for the device after each: none is superseded."""
    for k in range(count):
        testbed.send(f"/{camera}/image_raw", image(start + k * step, frame_id=f"{camera}_optical"))
        testbed.settle()


def test_frames_become_a_cloud_with_their_stamp_frame_fields_and_points():
    from sensor_msgs.msg import PointCloud2

    with bench(**{"cloud.max_edge_step": 0.0, "voxel.max_edge_step": 0.0}) as testbed:
        testbed.listen(PointCloud2, "/perception/points")
        stream(testbed, 2)
        testbed.until(lambda: testbed.received["/perception/points"], "a cloud")
        point_cloud = testbed.received["/perception/points"][0]
    assert point_cloud.header.frame_id == "map"
    assert (point_cloud.header.stamp.sec, point_cloud.header.stamp.nanosec) == (1000, 100_000_000)
    assert [f.name for f in point_cloud.fields] == ["x", "y", "z", "rgb", "confidence"]
    # 64x48 photographs become 56x42 views; nothing is left out without an edge filter.
    assert point_cloud.width * point_cloud.height == 2 * 56 * 42 and point_cloud.is_dense
    assert (
        len(point_cloud.data) == point_cloud.width * point_cloud.point_step == point_cloud.row_step
    )
    xyz = np.frombuffer(point_cloud.data, np.float32).reshape(-1, 5)[:, :3]
    assert np.isfinite(xyz).all() and xyz.std() > 0


def test_points_that_stay_on_a_device_give_the_same_cloud(monkeypatch):
    """The device is the processor, its kernels those of a GPU; depth is fused there."""
    from sensor_msgs.msg import PointCloud2

    from benchmarks.host_cuda import HostCuda
    from g2vlm_ros.inference.points_on_device import PointKernels
    from g2vlm_ros.inference.tensorrt.device_memory import DeviceMemory
    from g2vlm_ros.inference.torch_backend import TorchBackend
    from g2vlm_ros.kernels.device_points import DevicePoints

    asked, received, packed = [], [], DevicePoints.packed

    def counted(points, views, *arguments):
        asked.append(views)
        return packed(points, views, *arguments)

    opened, kernels = TorchBackend.__init__, PointKernels(DeviceMemory(HostCuda()))

    def with_device(backend, network):
        opened(backend, network, points=kernels)

    monkeypatch.setattr(DevicePoints, "packed", counted)
    for _ in range(2):
        with bench(**{"cloud.max_edge_step": 1.0}) as testbed:
            testbed.listen(PointCloud2, "/perception/points")
            stream(testbed, 2)
            testbed.until(
                lambda testbed=testbed: testbed.received["/perception/points"], "a cloud"
            )
            received += testbed.received["/perception/points"]
        monkeypatch.setattr(TorchBackend, "__init__", with_device)
    assert len(asked) == 1 and len(received) == 2
    assert received[0].width > 100 and received[0] == received[1]


def test_every_topic_carries_what_its_name_says():
    from g2vlm_ros.msg import ReconstructionStatus
    from geometry_msgs.msg import PoseArray, PoseWithCovarianceStamped
    from nav_msgs.msg import Path
    from sensor_msgs.msg import CameraInfo, Image
    from tf2_msgs.msg import TFMessage

    kinds = {
        "/perception/pose": PoseWithCovarianceStamped,
        "/perception/path": Path,
        "/perception/window_poses": PoseArray,
        "/perception/depth/image": Image,
        "/perception/depth/camera_info": CameraInfo,
        "/perception/status": ReconstructionStatus,
        "/tf": TFMessage,
    }
    with bench() as testbed:
        for topic, kind in kinds.items():
            testbed.listen(kind, topic)
        stream(testbed, 3)
        actual = testbed.received
        testbed.until(lambda: len(actual["/perception/pose"]) == 3, "one pose per frame")
        testbed.until(lambda: all(actual[topic] for topic in kinds), "every topic")
        testbed.until(lambda: actual["/perception/status"][-1].window_id == 2, "the last status")
        status = actual["/perception/status"][-1]
        path, poses = actual["/perception/path"][-1], actual["/perception/window_poses"][-1]
        depth, info = (
            actual["/perception/depth/image"][-1],
            actual["/perception/depth/camera_info"][-1],
        )
        transform = actual["/tf"][-1].transforms[0]
    stamps = [p.header.stamp.nanosec for p in actual["/perception/pose"]]
    assert stamps == [0, 100_000_000, 200_000_000]
    assert len(path.poses) == 3 and len(poses.poses) == 2
    place = poses.poses[-1].position
    for same in (path.poses[-1].pose.position, actual["/perception/pose"][-1].pose.pose.position):
        assert math.dist((same.x, same.y, same.z), (place.x, place.y, place.z)) < 1e-9
    q = poses.poses[0].orientation
    assert math.isclose(math.hypot(q.x, q.y, q.z, q.w), 1.0, abs_tol=1e-6)
    assert (depth.encoding, depth.width, depth.height) == ("32FC1", 56, 42)
    assert depth.header.frame_id == "camera_optical" and info.header == depth.header
    assert (transform.header.frame_id, transform.child_frame_id) == ("map", "camera_optical_g2vlm")
    assert status.view_cameras == ["camera"] * 2 and status.backend.startswith("torch cpu")
    assert status.frames_received == status.frames_used == 3
    assert status.scale_state == ReconstructionStatus.SCALE_RELATIVE
    assert math.isnan(status.metres_per_unit) and status.model_version.startswith("A@")
    assert {"encode_geometry", "geometry", "heads"} <= set(status.stage_names)


def test_a_known_scale_is_published_as_metric():
    from g2vlm_ros.msg import ReconstructionStatus

    with bench(**{"map.metres_per_unit": 0.5}) as testbed:
        topic = "/perception/status"
        from geometry_msgs.msg import PoseArray

        testbed.listen(PoseArray, "/perception/window_poses")
        testbed.listen(ReconstructionStatus, topic)
        stream(testbed, 2)
        testbed.until(
            lambda: testbed.received[topic] and testbed.received[topic][-1].window_id, "status"
        )
        status = testbed.received[topic][-1]
    assert status.scale_state == ReconstructionStatus.SCALE_METRIC
    assert (status.metres_per_unit, status.scale_source) == (0.5, "fixed")


def test_organised_clouds_come_one_per_view_with_its_stamp():
    from sensor_msgs.msg import PointCloud2

    with bench(**{"cloud.organised": True, "cloud.stride_px": 2}) as testbed:
        testbed.listen(PointCloud2, "/perception/points")
        stream(testbed, 2)
        testbed.until(lambda: len(testbed.received["/perception/points"]) == 2, "two clouds")
        clouds = testbed.received["/perception/points"]
    assert [(c.width, c.height) for c in clouds] == [(28, 21)] * 2
    assert [c.header.stamp.nanosec for c in clouds] == [0, 100_000_000]


def test_nobody_listens_nothing_is_computed_until_somebody_does():
    from sensor_msgs.msg import PointCloud2

    with bench() as testbed:
        stream(testbed, 6)
        assert testbed.node.counts().windows == 0
        testbed.listen(PointCloud2, "/perception/points")
        stream(testbed, 1, start=START_S + 0.6)
        testbed.until(lambda: testbed.node.counts().windows == 1, "a window")


BAD = {
    "encoding": {"encoding": "rainbow8"},
    "truncated": {"data": b"123"},
    "size": {"width": 0, "height": 0, "step": 0, "data": b""},
    "step": {"step": 10},
    "huge": {"width": 100_000, "height": 100_000, "step": 300_000},
}


def test_bad_images_are_counted_by_reason_and_good_ones_go_on():
    from sensor_msgs.msg import PointCloud2

    with bench() as testbed:
        testbed.listen(PointCloud2, "/perception/points")
        for k, fields in enumerate(BAD.values()):
            testbed.send("/camera/image_raw", image(START_S + k, **fields))
        testbed.send("/camera/image_raw", image(0.0))
        testbed.settle()
        counts = testbed.node.counts()
        assert sum(counts.dropped.values()) == len(BAD) + 1 and counts.used == 0
        assert counts.dropped["encoding"] == 1 and counts.dropped["stamp"] == 1
        assert counts.dropped["truncated"] >= 1 and counts.dropped["size"] >= 2
        stream(testbed, 2, start=START_S + 50)
        testbed.until(lambda: testbed.received["/perception/points"], "a cloud after all")


def test_stamps_out_of_order_twice_and_jumping_back():
    from sensor_msgs.msg import PointCloud2

    with bench() as testbed:
        testbed.listen(PointCloud2, "/perception/points")
        for seconds in (START_S, START_S, START_S - 0.5, 1.0, 1.1):
            testbed.send("/camera/image_raw", image(seconds))
        testbed.settle()
        testbed.until(lambda: testbed.received["/perception/points"], "a cloud in the new time")
        counts, point_cloud = testbed.node.counts(), testbed.received["/perception/points"][-1]
    assert counts.dropped == {"duplicate": 1, "out_of_order": 1, "clock_jump": 1}
    assert point_cloud.header.stamp.sec == 1


def test_an_undecodable_frame_is_left_out_of_its_window():
    import cv2
    from g2vlm_tests.harness import photograph
    from sensor_msgs.msg import CompressedImage, PointCloud2

    from g2vlm_ros.ros.conversions import geometry

    def compressed(seconds, spoil=False):
        data = bytearray(cv2.imencode(".png", photograph(int(seconds * 10)))[1].tobytes())
        if spoil:
            data[60:-40] = b"\0" * (len(data) - 100)
        header = geometry.header(round(seconds * 1e9), "optical")
        return CompressedImage(header=header, format="png", data=bytes(data))

    with bench(image_transport="compressed") as testbed:
        testbed.listen(PointCloud2, "/perception/points")
        for k in range(4):
            topic = "/camera/image_raw/compressed"
            testbed.send(topic, compressed(START_S + 0.1 * k, spoil=k == 1))
            testbed.settle()
        testbed.until(lambda: len(testbed.received["/perception/points"]) >= 2, "clouds")
        assert testbed.node.counts().dropped["undecodable"] == 1


def test_wrong_camera_info_is_reported_and_a_right_one_is_used():
    from sensor_msgs.msg import CameraInfo

    def info(focal):
        k = [focal, 0.0, 31.5, 0.0, focal, 23.5, 0.0, 0.0, 1.0]
        return CameraInfo(width=64, height=48, k=k)

    with bench() as testbed:
        testbed.listen(CameraInfo, "/perception/depth/camera_info")
        testbed.publish("/camera/camera_info", info(math.nan))
        stream(testbed, 2)
        testbed.publish("/camera/camera_info", info(60.0))
        testbed.until(
            lambda: testbed.node.cameras.received["camera/camera_info"] == 2, "the calibration"
        )
        stream(testbed, 2, start=START_S + 0.5)
        testbed.until(lambda: len(testbed.received["/perception/depth/camera_info"]) >= 2, "infos")
        found = testbed.received["/perception/depth/camera_info"][-1]
    assert found.k[0] == pytest.approx(60 * 56 / 64)


def test_two_cameras_make_windows_of_both():
    from g2vlm_ros.msg import ReconstructionStatus
    from sensor_msgs.msg import PointCloud2

    with bench(cameras=["left", "right"], **{"window.overlap": 0}) as testbed:
        testbed.listen(PointCloud2, "/perception/points")
        testbed.listen(ReconstructionStatus, "/perception/status")
        testbed.send("/right/image_raw", image(START_S + 0.01))
        testbed.send("/left/image_raw", image(START_S))
        testbed.settle()
        status = testbed.received["/perception/status"]
        testbed.until(lambda: status and status[-1].window_id == 1, "a window")
        assert status[-1].view_cameras == ["left", "right"]


def test_reset_forgets_and_starts_a_new_map():
    from g2vlm_ros.msg import ReconstructionStatus
    from nav_msgs.msg import Path
    from std_srvs.srv import Trigger

    with bench() as testbed:
        testbed.listen(Path, "/perception/path")
        testbed.listen(ReconstructionStatus, "/perception/status")
        stream(testbed, 4)
        testbed.until(lambda: len(testbed.received["/perception/path"]) >= 1, "a path")
        before = testbed.received["/perception/status"][-1].map_id
        assert testbed.call(Trigger, "/perception/reset", Trigger.Request()).success
        stream(testbed, 2, start=START_S + 1)
        testbed.until(
            lambda: testbed.received["/perception/status"][-1].map_id > before, "a new map"
        )
        testbed.until(
            lambda: len(testbed.received["/perception/path"][-1].poses) == 2,
            "a path of the new map",
        )


def test_a_device_that_is_gone_for_good_makes_the_node_inactive(monkeypatch):
    from g2vlm_ros.msg import ReconstructionStatus
    from lifecycle_msgs.srv import GetState
    from sensor_msgs.msg import PointCloud2

    from g2vlm_ros.perception import Perception
    from g2vlm_ros.records import BackendGoneError

    with bench(status_period_s=0.1) as testbed:

        def fail(*_):
            raise BackendGoneError("the GPU fell off the bus")

        monkeypatch.setattr(Perception, "reconstruct", fail)
        testbed.listen(PointCloud2, "/perception/points")
        testbed.listen(ReconstructionStatus, "/perception/status")
        for k in range(2):
            testbed.publish("/camera/image_raw", image(START_S + k, frame_id="camera_optical"))
        state = lambda: testbed.call(GetState, "/perception/get_state", GetState.Request())  # noqa: E731
        testbed.until(lambda: state().current_state.label == "inactive", "the node to be inactive")
        told = testbed.received["/perception/status"][-1].message
        assert told == "BackendGoneError: the GPU fell off the bus"
        assert testbed.node.device_gone()  # then `main` ends with DEVICE_GONE_EXIT_CODE


def test_lifecycle_tour_twice_leaves_nothing_behind():
    from rclpy.lifecycle import TransitionCallbackReturn
    from sensor_msgs.msg import PointCloud2

    testbed = Bench()
    try:
        topics = None
        for tour in range(3):
            testbed.start()
            testbed.listen(PointCloud2, "/perception/points")
            stream(testbed, 2, start=START_S + 10 * tour)
            testbed.until(
                lambda t=tour: len(testbed.received["/perception/points"]) > t, "a cloud"
            )
            for transition in (testbed.node.trigger_deactivate, testbed.node.trigger_cleanup):
                assert transition() == TransitionCallbackReturn.SUCCESS
            testbed.peer.destroy_subscription(list(testbed.peer.subscriptions)[-1])
            mine = {
                "publishers": len(list(testbed.node.publishers)),
                "subscriptions": len(list(testbed.node.subscriptions)),
                "timers": len(list(testbed.node.timers)),
                "services": len(list(testbed.node.services)),
            }
            assert topics in (None, mine)
            topics = mine
    finally:
        testbed.close()


def test_configure_fails_with_a_sentence_and_can_be_tried_again(tmp_path):
    from rclpy.lifecycle import TransitionCallbackReturn
    from rclpy.parameter import Parameter

    testbed = Bench(**{"model.checkpoint": str(tmp_path / "missing")})
    try:
        assert testbed.node.trigger_configure() == TransitionCallbackReturn.FAILURE
        change = [Parameter("model.checkpoint", value=SMALL["model.checkpoint"])]
        assert testbed.node.set_parameters(change)[0].successful
        testbed.start()
    finally:
        testbed.close()


def test_wrong_parameters_are_refused_with_name_value_and_bound():
    import rclpy
    from rclpy.parameter import Parameter

    from g2vlm_ros.parameter_schema import SettingError

    with pytest.raises(SettingError, match="window.views is 77; it must lie in 1 to 32"):
        Bench(**{"window.views": 77})
    rclpy.try_shutdown()
    with bench(**{"window.min_gap_s": 1}) as testbed:
        assert testbed.node.get_parameter("window.min_gap_s").value == 1.0
        result = testbed.node.set_parameters([Parameter("window.views", value=4)])[0]
        assert not result.successful and "unconfigured" in result.reason
    testbed = Bench()
    try:
        result = testbed.node.set_parameters([Parameter("window.views", value=99)])[0]
        assert not result.successful and "32, value: 99" in result.reason
    finally:
        testbed.close()


def test_unknown_and_former_parameters_are_reported(monkeypatch):
    from rclpy.impl.rcutils_logger import RcutilsLogger

    warnings = []
    monkeypatch.setattr(
        RcutilsLogger, "warning", lambda self, text, **_: warnings.append(text) or True
    )
    Bench(**{"window.vews": 3, "map.min_joint_quality": 0.2}).close()
    assert "parameter 'window.vews' is not known; its value is not used" in warnings
    assert any("is called 'map.min_registration_quality' now: rename" in w for w in warnings)


def test_without_frames_or_activity_there_is_no_geometry():
    from g2vlm_ros.srv import GetPoints
    from rclpy.lifecycle import TransitionCallbackReturn

    name, request = "/perception/get_points", GetPoints.Request(camera="camera")
    empty = Bench()
    try:
        empty.start()
        assert empty.call(GetPoints, name, request).error_code == 9904
        assert empty.node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
        assert empty.call(GetPoints, name, request).error_code == 9908
    finally:
        empty.close()


def test_the_map_and_its_grid_are_latched_and_saved_in_every_format(tmp_path):
    from g2vlm_ros.srv import SaveMap
    from nav_msgs.msg import OccupancyGrid
    from sensor_msgs.msg import PointCloud2

    from g2vlm_ros.ros.publishers import LATCHED

    with bench(
        **{"map.metres_per_unit": 1.0, "voxel.publish_period_s": 0.1, "voxel.max_edge_step": 0.0}
    ) as testbed:
        testbed.listen(PointCloud2, "/perception/points")
        stream(testbed, 3)
        testbed.listen(PointCloud2, "/perception/map", LATCHED)
        testbed.listen(OccupancyGrid, "/perception/occupancy", LATCHED)
        actual = testbed.received
        testbed.until(
            lambda: actual["/perception/map"] and actual["/perception/occupancy"], "the map"
        )
        point_cloud, grid = actual["/perception/map"][-1], actual["/perception/occupancy"][-1]
        saved = {
            kind: testbed.call(
                SaveMap, "/perception/save_map", SaveMap.Request(path=str(tmp_path / f"m.{kind}"))
            )
            for kind in ("ply", "pcd", "npz")
        }
    assert point_cloud.header.frame_id == grid.header.frame_id == "map"
    assert (
        point_cloud.width * point_cloud.point_step == len(point_cloud.data)
        and point_cloud.width > 100
    )
    assert grid.info.width * grid.info.height == len(grid.data) and grid.info.resolution > 0
    assert set(grid.data) <= {-1, 0, 100}
    assert {answer.points for answer in saved.values()} == {point_cloud.width}


def test_a_second_node_of_the_same_name_is_named_in_the_log_once(monkeypatch):
    import rclpy
    from rcl_interfaces.msg import Log

    from g2vlm_ros.ros import name_clash

    with bench(status_period_s=0.1) as testbed:
        lines = []

        def hear(line):
            if "another node is named" in line.msg:
                lines.append(line.msg)

        testbed.peer.create_subscription(Log, "/rosout", hear, 100)
        other = rclpy.create_node("perception", namespace="/two", context=testbed.context)
        time.sleep(0.5)
        assert not lines, "in another namespace it is another node"
        second = rclpy.create_node("perception", context=testbed.context, enable_rosout=False)
        time.sleep(1.0)
        assert not lines, "it may be one that was killed a moment ago"
        monkeypatch.setattr(name_clash, "LEASE_S", 0.0)
        testbed.until(lambda: lines, "a word")
        time.sleep(0.5)
        assert len(lines) == 1 and "named /perception:" in lines[0]
        for node in (second, other):
            node.destroy_node()


@pytest.mark.parametrize("error", ["InvalidHandle", "RCLError"])
def test_a_destroyed_event_handler_does_not_end_the_executor(error):
    """What rclpy still lists after its destruction leaves itself out of the wait set."""
    from rclpy.impl.implementation_singleton import rclpy_implementation

    from g2vlm_ros.ros.rclpy_workarounds import safe_waitable

    class Handler:
        destroyed = False

        def add_to_wait_set(self, wait_set):
            if self.destroyed:
                raise getattr(rclpy_implementation, error)("it is destroyed")
            wait_set.append(self)

        def is_ready(self, wait_set):
            return wait_set.index(self) == 0

        def take_data(self):
            if self.destroyed:
                raise getattr(rclpy_implementation, error)("it is destroyed")
            return "data"

        async def execute(self, data):
            executed.append(data)

    executed = []
    handler = safe_waitable(Handler())
    wait_set = []
    assert not handler.is_ready(wait_set), "never added"
    handler.add_to_wait_set(wait_set)
    assert handler.is_ready(wait_set)
    asyncio.run(handler.execute(handler.take_data()))
    assert executed == ["data"]
    handler.destroyed = True
    handler.add_to_wait_set([])
    assert not handler.is_ready([])
    asyncio.run(handler.execute(handler.take_data()))
    assert executed == ["data"], "there is nothing to execute any more"
