# SPDX-License-Identifier: Apache-2.0
"""The browser viewer: messages to what is shown, and the page itself in headless Chromium."""

from __future__ import annotations

import importlib.util
import math
import shutil
import socket
import threading
import time
from urllib.parse import urlsplit

import numpy as np
import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy", reason="needs ROS 2")

from g2vlm_tests import browser  # noqa: E402
from g2vlm_tests.harness import image, photograph  # noqa: E402

STAMP_NS = 7_000_000_000
RED, GREEN = (220, 30, 30), (30, 200, 40)
TIMEOUT_S = 60.0
needs_viser = pytest.mark.skipif(
    importlib.util.find_spec("viser") is None, reason="PyPI package viser is missing"
)


def cloud_message(positions, colours, frame_id="map"):
    from g2vlm_ros.dense_map.map_changes import POINT
    from g2vlm_ros.ros.conversions import clouds, geometry

    points = np.zeros(len(positions), POINT)
    for axis, name in enumerate("xyz"):
        points[name] = np.asarray(positions)[:, axis]
    red, green, blue = np.asarray(colours, np.uint32).T
    points["rgb"] = red << 16 | green << 8 | blue
    return clouds.packed_cloud(geometry.header(STAMP_NS, frame_id), points)


def status_message(cameras=("left", "right"), stamps_ns=(STAMP_NS - 5, STAMP_NS), **fields):
    from g2vlm_ros.msg import ReconstructionStatus

    from g2vlm_ros.ros.conversions import geometry

    return ReconstructionStatus(
        header=geometry.header(STAMP_NS, "map"),
        window_id=3,
        view_cameras=list(cameras),
        view_stamps=[geometry.stamp(ns) for ns in stamps_ns],
        **fields,
    )


def pose_at(x, y=0.0, z=0.0):
    """map_from_camera that looks along the map's x axis."""
    from g2vlm_ros.geometry.sim3 import ZUP_FROM_OPTICAL

    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = ZUP_FROM_OPTICAL, (x, y, z)
    return pose


def info_message(frame_id="optical", width=80, height=60, focal_px=60.0):
    from g2vlm_ros.records import Intrinsics
    from g2vlm_ros.ros.conversions import geometry, images

    camera = Intrinsics(focal_px, focal_px, (width - 1) / 2, (height - 1) / 2, width, height)
    return images.camera_info(geometry.header(STAMP_NS, frame_id), camera, width, height)


# Messages to content


def test_cloud_keeps_finite_points_and_their_colours():
    from g2vlm_ros.ros.viewer.scene import Cloud

    positions = np.array([[1, 2, 3], [np.nan, 0, 0], [4, 5, 6]], np.float32)
    cloud = Cloud.of(cloud_message(positions, [RED, GREEN, (1, 2, 3)]))
    np.testing.assert_array_equal(cloud.positions, positions[[0, 2]])
    np.testing.assert_array_equal(cloud.colours, [RED, (1, 2, 3)])


def test_cloud_without_colour_is_refused_by_name():
    from g2vlm_ros.ros.viewer.scene import Cloud

    message = cloud_message([[0, 0, 0]], [RED])
    message.fields = [field for field in message.fields if field.name != "rgb"]
    with pytest.raises(ValueError, match="lacks rgb"):
        Cloud.of(message)


@pytest.mark.parametrize("most", [1, 7, 99, 100])
def test_thinning_keeps_at_most_what_is_asked_from_everywhere(most):
    from g2vlm_ros.ros.viewer.scene import Cloud

    line = np.linspace(0, 1, 100)[:, None] * np.ones(3)
    thin = Cloud(line, np.zeros((100, 3), np.uint8)).thinned(most)
    assert 0 < len(thin.positions) <= most == min(most, 100)
    assert len(thin.colours) == len(thin.positions)
    assert most < 7 or thin.positions[-1, 0] > 0.8


def test_the_ceiling_can_be_left_out():
    from g2vlm_ros.ros.viewer.scene import Cloud

    heights = np.linspace(0, 2.5, 1001)
    cloud = Cloud(np.stack([0 * heights, 0 * heights, heights], 1), np.zeros((1001, 3), np.uint8))
    assert cloud.below(1.0) is cloud
    assert cloud.below(0.8).positions[:, 2].max() == pytest.approx(2.0, abs=0.03)


def test_overview_sees_everything():
    from g2vlm_ros.ros.viewer.scene import Cloud, overview

    rng = np.random.default_rng(0)
    positions = rng.uniform((-3, 2, 0), (9, 7, 2.5), (500, 3))
    eye, target = overview(Cloud(positions, np.zeros((500, 3), np.uint8)))
    rays, axis = positions - eye, target - eye
    cosine = rays @ axis / np.linalg.norm(rays, axis=1) / np.linalg.norm(axis)
    assert np.degrees(np.arccos(cosine.min())) < 75 / 2 * 1.3, "75 degrees high, wider than high"
    assert eye[2] > positions[:, 2].max()


def views_with(photographs, poses, status, info=None):
    from g2vlm_ros.ros.conversions import geometry, images
    from g2vlm_ros.ros.viewer.scene import ViewFrustums

    views = ViewFrustums()
    for camera, number, ns in photographs:
        message = image(ns * 1e-9, number=number)
        message.header.stamp = geometry.stamp(ns)
        views.add_image(images.frame_from_image(message, camera))
    views.add_calibration(info or info_message())
    views.add_poses(geometry.pose_array(geometry.header(STAMP_NS, "map"), poses))
    views.add_status(status)
    return views


def test_each_view_has_the_image_of_its_camera_and_moment():
    photographs = [("left", 1, STAMP_NS - 5), ("right", 2, STAMP_NS - 5), ("right", 3, STAMP_NS)]
    poses = np.stack([pose_at(1), pose_at(2)])
    frusta = views_with(photographs, poses, status_message()).frusta()
    assert [frustum.camera for frustum in frusta] == ["left", "right"]
    for frustum, number, pose in zip(frusta, (1, 3), poses, strict=True):
        shown = frustum.image.mean((0, 1))
        np.testing.assert_allclose(shown, photograph(number).mean((0, 1)), atol=2)
        np.testing.assert_allclose(frustum.map_from_camera, pose, atol=1e-9)
        assert frustum.fov_rad == pytest.approx(2 * math.atan(30 / 60))
        assert frustum.image.shape == (120, 160, 3)


def test_poses_of_another_window_are_not_drawn():
    from g2vlm_ros.ros.conversions import geometry

    poses = np.stack([pose_at(1), pose_at(2)])
    views = views_with([("left", 1, STAMP_NS)], poses, status_message())
    other = status_message()
    other.header.stamp = geometry.stamp(STAMP_NS + 1)
    views.add_status(other)
    assert views.frusta() is None


def test_a_view_without_image_or_calibration_is_left_out():
    poses = np.stack([pose_at(1), pose_at(2)])
    only_right = [("right", 3, STAMP_NS)]
    assert [f.camera for f in views_with(only_right, poses, status_message()).frusta()] == [
        "right"
    ]
    elsewhere = info_message(frame_id="another_camera")
    assert views_with(only_right, poses, status_message(), elsewhere).frusta() == []


def test_images_are_bounded_and_the_newest_stay():
    from g2vlm_ros.records import Frame
    from g2vlm_ros.ros.viewer.scene import IMAGES_PER_CAMERA, ViewFrustums

    views, pixels = ViewFrustums(), np.zeros((4, 6, 3), np.uint8)
    for number in range(IMAGES_PER_CAMERA + 50):
        views.add_image(Frame(1 + number, "left", "optical", lambda: pixels))
    stamps_ns = views.stamps_ns("left")
    assert len(stamps_ns) == IMAGES_PER_CAMERA and max(stamps_ns) == IMAGES_PER_CAMERA + 50


def test_path_is_lines_between_its_poses():
    from nav_msgs.msg import Path

    from g2vlm_ros.ros.conversions import geometry
    from g2vlm_ros.ros.viewer.scene import path_segments

    head = geometry.header(STAMP_NS, "map")
    path = Path(poses=[geometry.pose_stamped(head, pose_at(x)) for x in (0, 1, 3)])
    np.testing.assert_allclose(path_segments(path)[..., 0], [[0, 1], [1, 3]])
    assert path_segments(Path()).shape == (0, 2, 3)


def test_nothing_is_called_metres_before_it_is():
    from g2vlm_ros.msg import ReconstructionStatus

    from g2vlm_ros.ros.viewer.scene import status_lines

    relative = status_lines(status_message(scale_state=ReconstructionStatus.SCALE_RELATIVE))
    assert relative["Scale"] == "relative: lengths are model units"
    metric = status_lines(
        status_message(
            scale_state=ReconstructionStatus.SCALE_METRIC,
            scale_source="camera_height",
            scale_relative_std=0.031,
            latency_s=0.256,
        )
    )
    assert metric["Scale"] == "metres from camera height ±3.1%"
    assert metric["Latency"] == "0.26 s" and "Problem" not in metric
    assert status_lines(ReconstructionStatus())["Scale"] == "unknown"


def test_what_people_write_is_no_markup():
    from g2vlm_ros.msg import SpatialExample

    from g2vlm_ros.ros.viewer.scene import answer_lines, table

    asked = SpatialExample(question="<script>x()</script>", answer="1 < 2 & 'so'")
    shown = table(answer_lines(asked))
    assert "<script" not in shown and "&lt;script&gt;" in shown and "1 &lt; 2 &amp;" in shown


# The node


def test_without_viser_it_says_what_to_install(monkeypatch):
    from g2vlm_ros.ros.viewer import viewer_node

    monkeypatch.setattr(viewer_node.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pip install viser"):
        viewer_node.start(0)


@needs_viser
def test_a_taken_port_is_refused_by_name():
    from g2vlm_ros.ros.viewer import viewer_node

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot serve at 127.0.0.1:{port} .*port"):
            viewer_node.start(port)


@pytest.fixture
def viewer(ros):
    """A spinning viewer at a free port, and a peer node to publish from."""
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.parameter import Parameter

    from g2vlm_ros.ros.viewer.viewer_node import ViewerNode

    viewer = ViewerNode(parameter_overrides=[Parameter("port", value=0)])
    peer = ros.create_node("peer")
    executor = SingleThreadedExecutor()  # as main() has it
    for node in (viewer, peer):
        executor.add_node(node)
    spinning = threading.Thread(target=executor.spin, daemon=True)
    spinning.start()
    yield viewer, peer
    executor.shutdown()
    spinning.join(timeout=5)
    for node in (viewer, peer):
        node.destroy_node()


def until(condition, what):
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {TIMEOUT_S} s for {what}"
        time.sleep(0.2)


class Impostor:
    """Publishes what a perception node with one camera would: a wall, half red and half green."""

    def __init__(self, peer):
        from g2vlm_ros.msg import ReconstructionStatus, SpatialExample
        from geometry_msgs.msg import PoseArray
        from nav_msgs.msg import Path
        from sensor_msgs.msg import CameraInfo, Image, PointCloud2

        from g2vlm_ros.ros.publishers import LATCHED

        self._peer = peer
        self.publishers = {
            topic: peer.create_publisher(kind, topic, qos)
            for kind, topic, qos in (
                (PointCloud2, "perception/map", LATCHED),
                (Path, "perception/path", LATCHED),
                (PoseArray, "perception/window_poses", 2),
                (CameraInfo, "perception/depth/camera_info", 2),
                (ReconstructionStatus, "perception/status", LATCHED),
                (SpatialExample, "perception/query/last_answer", LATCHED),
                (Image, "front/image_raw", 2),
            )
        }

    def listeners(self, topic):
        return self.publishers[topic].get_subscription_count()

    def publish_latched(self):
        from g2vlm_ros.msg import SpatialExample
        from nav_msgs.msg import Path

        from g2vlm_ros.ros.conversions import geometry

        across, up = (axis.ravel() for axis in np.mgrid[-3:3:200j, 0:3:100j])
        wall = np.stack([4 + 0 * up, across, up], -1)
        colours = np.where(across[:, None] < 0, RED, GREEN)
        head = geometry.header(STAMP_NS, "map")
        path = Path(poses=[geometry.pose_stamped(head, pose_at(x, 0, 1.5)) for x in (0, 1)])
        self.publishers["perception/map"].publish(cloud_message(wall, colours))
        self.publishers["perception/path"].publish(path)
        self.publishers["perception/query/last_answer"].publish(
            SpatialExample(question="How far is <b>the wall</b>?", answer="4.0 m")
        )
        self.publishers["perception/status"].publish(self.status())

    def status(self):
        return status_message(["front"], [STAMP_NS], scale_state=1, model_version="impostor")

    def publish_view(self):
        from g2vlm_ros.ros.conversions import geometry

        poses = geometry.pose_array(geometry.header(STAMP_NS, "map"), pose_at(1, 0, 1.5)[None])
        self.publishers["front/image_raw"].publish(image(STAMP_NS * 1e-9, number=5))
        self.publishers["perception/depth/camera_info"].publish(info_message())
        self.publishers["perception/window_poses"].publish(poses)
        self.publishers["perception/status"].publish(self.status())


def coloured(picture, colour):
    """How many pixels of a screenshot are about of a colour, shading aside."""
    hue = picture / np.maximum(picture.sum(-1, keepdims=True), 60)
    return int((np.abs(hue - np.array(colour) / sum(colour)).max(-1) < 0.08).sum())


@needs_viser
def test_it_listens_only_while_somebody_watches_and_only_here(viewer):
    viewer, peer = viewer
    impostor = Impostor(peer)
    impostor.publish_latched()
    time.sleep(1.0)
    assert impostor.listeners("perception/map") == 0
    url = urlsplit(viewer.address)
    port = url.port
    assert (url.scheme, url.hostname) == ("http", "127.0.0.1")
    with socket.create_connection(("127.0.0.1", port), timeout=5) as here:
        assert here.getpeername()[0] == "127.0.0.1"
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port), timeout=5)


@needs_viser
@pytest.mark.skipif(shutil.which(browser.NAME) is None, reason=f"{browser.NAME} is not on PATH")
def test_the_browser_shows_points_in_colour_views_and_words(viewer, tmp_path):
    from g2vlm_ros.ros.viewer.viewer_node import VIEW_COLOUR

    viewer, peer = viewer
    impostor = Impostor(peer)
    impostor.publish_latched()
    with browser.browse(viewer.address, tmp_path) as page:
        until(lambda: impostor.listeners("perception/map"), "the viewer to listen")
        until(lambda: impostor.listeners("front/image_raw"), "the camera that the status names")
        for colour in (RED, GREEN):
            until(lambda c=colour: coloured(page.screenshot(), c) > 2000, "coloured points")
        assert coloured(page.screenshot(), VIEW_COLOUR) < 20

        def frustum_drawn():
            impostor.publish_view()
            return coloured(page.screenshot(), VIEW_COLOUR) > 60

        until(frustum_drawn, "the camera's frustum")
        until(lambda: "How far is <b>the wall</b>?" in page.text(), "the question as it is")
        words = page.text()
        assert "4.0 m" in words and "model units" in words and "impostor" in words
    until(lambda: not impostor.listeners("perception/map"), "the viewer to stop listening")
