# SPDX-License-Identifier: Apache-2.0
"""Messages <-> records, with the real message classes and parsers of our own."""

from __future__ import annotations

import array
import os
import struct
import sys
import types

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: rclpy is not importable")
pytest.importorskip("sensor_msgs.msg", reason="needs ROS 2: sensor_msgs is not importable")

from builtin_interfaces.msg import Time
from nav_msgs.msg import Path
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, RegionOfInterest

from g2vlm_ros.geometry.sim3 import rotation_from_xyzw
from g2vlm_ros.images import decoding
from g2vlm_ros.images.decoding import ImageError
from g2vlm_ros.records import Intrinsics
from g2vlm_ros.ros.conversions import clouds, cv_bridge_fallback, geometry, images

pytestmark = pytest.mark.ros

STAMP_NS = 1_700_000_000_123_456_789
H, W = 6, 8


def raw(pixels: str = "rgb8", padding: int = 4, **changes: object) -> Image:
    """An image message of random bytes in the encoding `pixels`, with some fields changed."""
    layout = decoding.ENCODINGS[pixels]
    step = W * layout.pixel_bytes + padding
    rows = H * 3 // 2 if layout.half_chroma else H
    data = np.random.default_rng(len(pixels)).integers(0, 256, step * rows, np.uint8)
    msg = Image(height=H, width=W, encoding=pixels, step=step)
    msg.header = geometry.header(STAMP_NS, "front_optical")
    msg.data = array.array("B", data.tobytes())
    for name, value in changes.items():
        setattr(msg, name, value)
    return msg


def pose(seed: int = 0) -> np.ndarray:
    out = np.eye(4)
    values = np.random.default_rng(seed).normal(size=7)
    out[:3, :3], out[:3, 3] = rotation_from_xyzw(values[:4]), values[4:]
    return out


def quaternion(msg) -> list[float]:
    return [msg.x, msg.y, msg.z, msg.w]


def position(msg) -> list[float]:
    return [msg.x, msg.y, msg.z]


def test_stamps_keep_every_nanosecond():
    msg = geometry.stamp(STAMP_NS)
    assert (msg.sec, msg.nanosec) == (1_700_000_000, 123_456_789)
    assert geometry.stamp_ns(msg) == STAMP_NS
    assert geometry.stamp_ns(Time(sec=-2, nanosec=500_000_000)) == -1_500_000_000


@pytest.mark.parametrize("ns", [-1, 2**31 * 10**9])
def test_times_outside_the_message_are_refused(ns):
    with pytest.raises(ValueError, match=str(ns)):
        geometry.stamp(ns)


@pytest.mark.parametrize("encoding", sorted(decoding.ENCODINGS))
def test_a_raw_image_becomes_a_frame_with_its_pixels(encoding):
    msg = raw(encoding)
    frame = images.frame_from_image(msg, "front")
    assert (frame.stamp_ns, frame.camera, frame.frame_id) == (STAMP_NS, "front", "front_optical")
    expected = decoding.decode(msg.data, encoding, W, H, msg.step)
    np.testing.assert_array_equal(frame.decode(), expected)


def test_a_big_endian_image_is_read_as_such():
    msg = raw("mono16", is_bigendian=1)
    expected = decoding.decode(msg.data, "mono16", W, H, msg.step, True)
    np.testing.assert_array_equal(images.frame_from_image(msg, "front").decode(), expected)
    assert (expected != decoding.decode(msg.data, "mono16", W, H, msg.step, False)).any()


def test_reading_an_rgb_image_copies_nothing():
    msg = raw("rgb8")
    pixels = images.frame_from_image(msg, "front").decode()
    assert np.shares_memory(pixels, np.frombuffer(msg.data, np.uint8))


def test_calibration_and_odometry_ride_along():
    camera, place = Intrinsics(5.0, 5.0, 4.0, 3.0, W, H), np.array([1.0, 2.0, 3.0])
    frame = images.frame_from_image(raw(), "front", intrinsics=camera, position_m=place)
    assert frame.intrinsics is camera
    np.testing.assert_array_equal(frame.position_m, place)


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("encoding", {"encoding": "8UC3"}),
        ("size", {"width": 0}),
        ("size", {"step": 3 * W - 1}),
        ("truncated", {"data": array.array("B", bytes(10))}),
        ("size", {"width": 2**31, "height": 2**31}),
        ("stamp", {"header": geometry.Header()}),
        ("stamp", {"header": geometry.Header(stamp=Time(sec=-5))}),
    ],
)
def test_bad_headers_are_refused_before_any_pixel_is_read(reason, changes):
    with pytest.raises(ImageError) as caught:
        images.frame_from_image(raw(**changes), "front", max_px=10_000)
    assert caught.value.reason == reason


def compressed(data: bytes, format: str) -> CompressedImage:
    msg = CompressedImage(format=format, data=array.array("B", data))
    msg.header = geometry.header(STAMP_NS, "front_optical")
    return msg


@pytest.mark.parametrize(("extension", "tolerance"), [(".png", 0), (".jpg", 4)])
def test_a_compressed_image_becomes_a_frame(extension, tolerance):
    rgb = np.broadcast_to(np.uint8([20, 150, 120]), (32, 48, 3))
    file = cv2.imencode(extension, np.ascontiguousarray(rgb[..., ::-1]))[1].tobytes()
    frame = images.frame_from_compressed(compressed(file, "jpeg"), "front", max_px=32 * 48)
    assert frame.stamp_ns == STAMP_NS
    assert np.abs(frame.decode().astype(int) - rgb).max() <= tolerance
    with pytest.raises(ImageError) as caught:
        images.frame_from_compressed(compressed(file[:-40], "jpeg"), "front")
    assert caught.value.reason == "truncated"


def fake_bridge(monkeypatch, answer) -> None:
    """A usable cv_bridge whose bridge gives `answer(msg, encoding)`."""
    bridge = types.SimpleNamespace(imgmsg_to_cv2=answer)
    monkeypatch.setattr(cv_bridge_fallback, "usable_bridge", lambda: bridge)


ONLY_OURS = {"rgb8", "uyvy", "yuyv", "nv12", "nv21"}
"""Encodings that cv_bridge of some supported ROS distribution does not convert."""


def write_cv_bridge(folder, monkeypatch, body) -> None:
    """A package cv_bridge that a child process finds as well."""
    (folder / "cv_bridge.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{os.environ.get('PYTHONPATH', '')}")
    cv_bridge_fallback.usable_bridge.cache_clear()
    monkeypatch.delitem(sys.modules, "cv_bridge", raising=False)


@pytest.fixture(autouse=True)
def forget_the_bridge():
    yield
    cv_bridge_fallback.usable_bridge.cache_clear()


def foreign():
    """An image in an encoding that only cv_bridge knows."""
    return Image(
        header=geometry.header(STAMP_NS, "optical"),
        height=2,
        width=2,
        encoding="bgr16",
        step=12,
        data=bytes(24),
    )


@pytest.mark.parametrize("encoding", sorted(decoding.ENCODINGS))
def test_encodings_that_we_know_never_touch_cv_bridge(monkeypatch, encoding):
    monkeypatch.setattr(
        cv_bridge_fallback, "usable_bridge", lambda: pytest.fail("cv_bridge was asked")
    )
    message = raw(encoding, padding=0)
    expected = decoding.decode(message.data, encoding, W, H, message.step)
    np.testing.assert_array_equal(images.frame_from_image(message, "front").decode(), expected)


def test_an_encoding_that_we_do_not_know_is_left_to_cv_bridge(monkeypatch):
    pixels = np.full((2, 2, 3), 7, np.uint8)
    fake_bridge(monkeypatch, lambda msg, target: pixels if target == "rgb8" else None)
    assert images.frame_from_image(foreign(), "front").decode() is pixels
    short = foreign()
    short.data = bytes(10)
    with pytest.raises(ImageError) as caught:
        images.frame_from_image(short, "front")
    assert caught.value.reason == "truncated"


@pytest.mark.parametrize(
    "body", ["import os; os.kill(os.getpid(), 11)", "raise ImportError('undefined symbol')"]
)
def test_a_cv_bridge_that_crashes_is_tried_in_a_child_and_never_imported(
    monkeypatch, tmp_path, body
):
    write_cv_bridge(tmp_path, monkeypatch, body)
    assert cv_bridge_fallback.usable_bridge() is None
    with pytest.raises(ImageError, match="'bgr16' is not one of"):
        images.frame_from_image(foreign(), "front")
    assert "cv_bridge" not in sys.modules
    bgr = raw("bgr8", padding=0)
    assert images.frame_from_image(bgr, "front").decode().shape == (H, W, 3)


def test_a_failing_cv_bridge_is_an_image_error(monkeypatch):
    def fail(msg, target):
        raise TypeError("boost says no")

    fake_bridge(monkeypatch, fail)
    with pytest.raises(ImageError, match="boost says no") as caught:
        images.frame_from_image(foreign(), "front").decode()
    assert caught.value.reason == "undecodable"


@pytest.mark.parametrize("encoding", sorted(set(decoding.ENCODINGS) - ONLY_OURS))
def test_cv_bridge_and_opencv_give_the_same_pixels(encoding):
    bridge = pytest.importorskip("cv_bridge", reason="cv_bridge is not installed").CvBridge()
    msg = raw(encoding, padding=0)
    ours = decoding.decode(msg.data, encoding, W, H, msg.step)
    np.testing.assert_array_equal(bridge.imgmsg_to_cv2(msg, "rgb8"), ours)


def calibration(**changes: object) -> CameraInfo:
    msg = CameraInfo(width=640, height=480, distortion_model="plumb_bob")
    msg.k = [500.0, 0.0, 320.0, 0.0, 510.0, 240.0, 0.0, 0.0, 1.0]
    for name, value in changes.items():
        setattr(msg, name, value)
    return msg


def with_k(index: int, value: float) -> CameraInfo:
    msg = calibration()
    msg.k[index] = value
    return msg


def test_a_calibration_is_read_and_written():
    camera = images.intrinsics_from_info(calibration())
    assert camera == Intrinsics(500.0, 510.0, 320.0, 240.0, 640, 480)
    info = images.camera_info(geometry.header(STAMP_NS, "front"), camera, 640, 480)
    assert images.intrinsics_from_info(info) == camera
    assert geometry.stamp_ns(info.header.stamp) == STAMP_NS
    np.testing.assert_array_equal(info.p.reshape(3, 4)[:, :3], camera.matrix())
    np.testing.assert_array_equal(info.r.reshape(3, 3), np.eye(3))
    assert list(info.d) == [0.0] * 5


def test_an_uncalibrated_camera_is_none_both_ways():
    assert images.intrinsics_from_info(with_k(0, 0.0)) is None
    info = images.camera_info(geometry.header(1, "front"), None, 640, 480)
    assert (info.width, info.height) == (640, 480)
    assert not info.k.any()
    assert images.intrinsics_from_info(info) is None


@pytest.mark.parametrize(
    ("msg", "words"),
    [
        (with_k(0, np.nan), "K = .*nan"),
        (with_k(5, np.inf), "K = .*inf"),
        (with_k(0, -500.0), "-500"),
        (with_k(4, 0.0), "focal lengths 500.0, 0.0"),
        (with_k(1, 3.0), "skew"),
        # They were taken, and the rays of the view were not finite.
        (with_k(2, 1e300), "centre .*1e.300"),
        (with_k(0, 1e-300), "focal lengths must be 6.4 to 64000 px"),
        (with_k(4, 1e9), "1000000000.0"),
        (calibration(d=[np.nan]), "D = .*nan"),
        (calibration(width=0), "0x480"),
    ],
)
def test_a_wrong_calibration_is_refused_with_its_value(msg, words):
    with pytest.raises(ValueError, match=words):
        images.intrinsics_from_info(msg)


def test_region_of_interest_and_binning_keep_the_rays_of_the_pixels():
    roi = RegionOfInterest(x_offset=100, y_offset=60, width=400, height=200)
    camera = images.intrinsics_from_info(calibration(roi=roi, binning_x=2, binning_y=4))
    assert (camera.width_px, camera.height_px) == (200, 50)
    # The binned pixel (0, 0) gathers sensor columns 100 and 101 and rows 60 to 63.
    ray = [(100.5 - 320) / 500, (61.5 - 240) / 510]
    actual = [(0 - camera.cx_px) / camera.fx_px, (0 - camera.cy_px) / camera.fy_px]
    np.testing.assert_allclose(actual, ray)


def test_distortion_is_noticed():
    assert not images.is_distorted(calibration(d=[0.0] * 5))
    assert images.is_distorted(calibration(d=[0.0, -0.1, 0.0, 0.0, 0.0]))
    assert images.is_distorted(calibration(distortion_model="equidistant", d=[0.0] * 4))


def test_intrinsics_of_another_size_are_refused():
    with pytest.raises(ValueError, match="640x480"):
        images.camera_info(
            geometry.header(1, "f"), Intrinsics(1.0, 1.0, 0.0, 0.0, 640, 480), 320, 240
        )


@pytest.fixture
def maps() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    valid = np.ones((2, H, W), bool)
    valid[1, 2, 3] = False
    return (
        rng.normal(size=(2, H, W, 3)).astype(np.float32),
        rng.integers(0, 256, (2, H, W, 3), dtype=np.uint8),
        rng.random((2, H, W), dtype=np.float32),
        valid,
    )


def cloud_over_the_wire(maps, **options) -> PointCloud2:
    msg = clouds.cloud_message(geometry.header(STAMP_NS, "map"), *maps, **options)
    return deserialize_message(serialize_message(msg), PointCloud2)


def cloud_points(msg: PointCloud2) -> np.ndarray:
    """(rows, columns, 5) of a cloud, by its own description of its fields."""
    assert all(field.datatype == 7 and field.count == 1 for field in msg.fields)
    data = bytes(msg.data)
    return np.array(
        [
            [
                [
                    struct.unpack_from(
                        "<f", data, v * msg.row_step + u * msg.point_step + field.offset
                    )[0]
                    for field in msg.fields
                ]
                for u in range(msg.width)
            ]
            for v in range(msg.height)
        ]
    )


def test_a_dense_cloud_describes_itself(maps):
    points, _, confidence, valid = maps
    msg = cloud_over_the_wire(maps)
    assert (msg.height, msg.width) == (1, valid.sum())
    assert [field.name for field in msg.fields] == ["x", "y", "z", "rgb", "confidence"]
    assert msg.is_dense and not msg.is_bigendian
    assert (msg.header.frame_id, geometry.stamp_ns(msg.header.stamp)) == ("map", STAMP_NS)
    assert len(msg.data) == msg.row_step * msg.height
    actual = cloud_points(msg)[0]
    np.testing.assert_array_equal(actual[:, :3], points[valid])
    np.testing.assert_array_equal(actual[:, 4], confidence[valid])


def test_an_organised_cloud_keeps_rows_and_columns(maps):
    points, _, _, valid = maps
    msg = cloud_over_the_wire(maps, organised=True)
    assert (msg.height, msg.width, msg.is_dense) == (2 * H, W, False)
    actual = cloud_points(msg)[..., :3].reshape(points.shape)
    np.testing.assert_array_equal(actual, np.where(valid[..., None], points, np.float32(np.nan)))
    whole = cloud_over_the_wire((*maps[:3], np.ones_like(valid)), organised=True)
    assert whole.is_dense


def test_an_empty_cloud_is_a_valid_message(maps):
    msg = cloud_over_the_wire((*maps[:3], np.zeros_like(maps[3])))
    assert (msg.height, msg.width, len(msg.data)) == (1, 0, 0)


def test_a_published_message_is_filled_again_in_place(maps):
    msg = clouds.cloud_message(geometry.header(1, "map"), *maps, organised=True)
    memory = msg.data
    again = clouds.cloud_message(geometry.header(2, "odom"), *maps, out=msg)
    assert again is msg and again.data is memory
    assert again == clouds.cloud_message(geometry.header(2, "odom"), *maps)


def test_sensor_msgs_py_reads_our_clouds(maps):
    point_cloud2 = pytest.importorskip(
        "sensor_msgs_py.point_cloud2", reason="sensor_msgs_py is not installed"
    )
    actual = point_cloud2.read_points(cloud_over_the_wire(maps), field_names=["x", "y", "z"])
    want = maps[0][maps[3]]
    np.testing.assert_array_equal(np.stack([actual[n] for n in "xyz"], axis=-1), want)


def test_a_depth_image_is_metres_with_nan_for_unknown():
    depth = np.arange(12, dtype=np.float32).reshape(3, 4) + 1
    depth[0] = [0.0, -1.0, np.inf, np.nan]
    msg = images.depth_image(geometry.header(STAMP_NS, "front"), depth)
    msg = deserialize_message(serialize_message(msg), Image)
    assert (msg.encoding, msg.height, msg.width, msg.step) == ("32FC1", 3, 4, 16)
    assert not msg.is_bigendian
    actual = np.array(struct.unpack("<12f", bytes(msg.data))).reshape(3, 4)
    assert np.isnan(actual[0]).all()
    np.testing.assert_array_equal(actual[1:], depth[1:])


def test_poses_reach_every_message_type():
    header, matrix = geometry.header(STAMP_NS, "map"), pose()
    covariance = np.diag(np.arange(6.0)) + 0.25
    with_covariance = geometry.pose_with_covariance(header, matrix, covariance)
    transform = geometry.transform_message(header, "front_g2vlm", matrix)
    stamped = geometry.pose_stamped(header, matrix)
    many = geometry.pose_array(header, np.stack([pose(1), matrix]))
    for actual in (with_covariance.pose.pose, stamped.pose, many.poses[1]):
        np.testing.assert_allclose(position(actual.position), matrix[:3, 3])
        np.testing.assert_allclose(
            rotation_from_xyzw(quaternion(actual.orientation)), matrix[:3, :3], atol=1e-12
        )
    assert transform.child_frame_id == "front_g2vlm"
    np.testing.assert_allclose(position(transform.transform.translation), matrix[:3, 3])
    assert quaternion(transform.transform.rotation) == quaternion(stamped.pose.orientation)
    np.testing.assert_array_equal(with_covariance.pose.covariance.reshape(6, 6), covariance)
    assert {m.header.frame_id for m in (with_covariance, transform, stamped, many)} == {"map"}


@pytest.mark.parametrize("covariance", [np.eye(3), np.full((6, 6), np.nan)])
def test_a_covariance_that_is_none_is_refused(covariance):
    with pytest.raises(ValueError, match="finite"):
        geometry.pose_with_covariance(geometry.header(1, "map"), pose(), covariance)


def test_a_path_keeps_the_newest_poses():
    path = Path()
    for second in range(1, 6):
        header = geometry.header(second * 10**9, "map")
        geometry.append(path, geometry.pose_stamped(header, pose(second)), max_poses=3)
    assert [p.header.stamp.sec for p in path.poses] == [3, 4, 5]
    assert path.header.stamp.sec == 5 and path.header.frame_id == "map"
    assert len(deserialize_message(serialize_message(path), Path).poses) == 3
