# SPDX-License-Identifier: Apache-2.0
"""Replay over real DDS: what is published, when, with which stamps; and what is refused."""

from __future__ import annotations

import sys
import threading
import time
from itertools import pairwise

import cv2
import numpy as np
import pytest

pytestmark = pytest.mark.ros

TIMEOUT_S = 20.0
SECOND_NS = 1_000_000_000


def photograph(number, height=24, width=32):
    """uint8 (height, width, 3) RGB of one colour that tells its number."""
    return np.full((height, width, 3), (10 * number, 100, 250 - 10 * number), np.uint8)


def write_images(folder, count=5, name="{:02d}.png"):
    folder.mkdir(exist_ok=True)
    for number in range(count):
        path = folder / name.format(number)
        cv2.imwrite(str(path), photograph(number)[..., ::-1])
    return folder


def write_video(path, count=6, rate_hz=20.0):
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), rate_hz, (32, 24))
    if not video.isOpened():
        pytest.skip("this OpenCV writes no video")
    for number in range(count):
        video.write(photograph(number)[..., ::-1])
    video.release()
    return path


def write_bag(
    path, topics=("/cam/image_raw",), storage="sqlite3", count=4, info=True, step_s=0.05
):
    """A recording with `count` bgr8 images per topic, stamped from 100 s on."""
    rosbag2 = pytest.importorskip("rosbags.rosbag2", reason="PyPI package rosbags is missing")
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    types = store.types
    plugin = rosbag2.StoragePlugin[storage.upper()]
    with rosbag2.Writer(path, version=9, storage_plugin=plugin) as writer:

        def connection(topic, kind):
            return writer.add_connection(topic, kind, typestore=store)

        def header(number):
            ns = 100 * SECOND_NS + round(number * step_s * SECOND_NS)
            stamp = types["builtin_interfaces/msg/Time"](ns // SECOND_NS, ns % SECOND_NS)
            return ns, types["std_msgs/msg/Header"](stamp, "cam_optical")

        infos = connection("/cam/camera_info", CAMERA_INFO) if info else None
        images = [connection(topic, IMAGE) for topic in topics]
        for number in range(count):
            ns, head = header(number)
            if infos:
                message = _bag_info(types, head, 300.0 + number)
                writer.write(infos, ns, store.serialize_cdr(message, CAMERA_INFO))
            pixels = photograph(number)[..., ::-1].reshape(-1)
            message = types[IMAGE](head, 24, 32, "bgr8", 0, 96, pixels)
            for image in images:
                writer.write(image, ns + 1000, store.serialize_cdr(message, IMAGE))
    return path


IMAGE, CAMERA_INFO = "sensor_msgs/msg/Image", "sensor_msgs/msg/CameraInfo"


def _bag_info(types, header, focal_px):
    k = np.array([focal_px, 0, 16, 0, focal_px, 12, 0, 0, 1.0])
    p = np.array([focal_px, 0, 16, 0, 0, focal_px, 12, 0, 0, 0, 1.0, 0])
    roi = types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    return types[CAMERA_INFO](
        header, 24, 32, "plumb_bob", np.zeros(5), k, np.eye(3).ravel(), p, 0, 0, roi
    )


class Audience:
    """A replay node and a subscriber of everything it publishes."""

    def __init__(self, ros, settings, camera="camera", compressed=False):
        from rclpy.executors import MultiThreadedExecutor
        from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
        from rosgraph_msgs.msg import Clock
        from sensor_msgs.msg import CameraInfo, CompressedImage, Image
        from std_msgs.msg import Bool

        best_effort = QoSProfile(depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.images, self.infos, self.clock_ns, self.finished = [], [], [], []
        self.peer = ros.create_node("audience")
        self.executor = MultiThreadedExecutor(num_threads=2)
        self.executor.add_node(self.peer)
        self._thread = threading.Thread(target=self.executor.spin, daemon=True)
        self._thread.start()
        listen = self.peer.create_subscription
        listen(Clock, "/clock", lambda m: self.clock_ns.append(ns(m.clock)), best_effort)
        listen(CameraInfo, f"{camera}/camera_info", self.infos.append, best_effort)
        listen(Bool, "/replay/finished", lambda m: self.finished.append(m.data), latched)
        self.replay = make_replay(settings)
        self.executor.add_node(self.replay)
        self.until(lambda: self.finished, "~/finished")
        kind, suffix = (CompressedImage, "/compressed") if compressed else (Image, "")
        listen(kind, f"{camera}/image_raw{suffix}", self.images.append, best_effort)

    def until(self, condition, what):
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline, f"waited {TIMEOUT_S} s for {what}"
            time.sleep(0.01)

    def until_finished(self):
        self.until(lambda: self.finished[-1], "the end of the recording")
        for kind in (self.images, self.infos):
            self.until(lambda kind=kind: len(kind) >= self.replay.published, "the last message")

    def pause(self, value):
        from std_srvs.srv import SetBool

        client = self.peer.create_client(SetBool, "/replay/pause")
        assert client.wait_for_service(TIMEOUT_S)
        future = client.call_async(SetBool.Request(data=value))
        self.until(future.done, "an answer of ~/pause")
        return future.result()

    def close(self):
        self.executor.shutdown()
        self._thread.join(timeout=5)
        self.replay.destroy_node()
        self.peer.destroy_node()


def make_replay(settings):
    from rclpy.parameter import Parameter

    from g2vlm_ros.ros.replay.replay_node import ReplayNode

    values = {name: str(v) if name == "path" else v for name, v in settings.items()}
    return ReplayNode(parameter_overrides=[Parameter(k, value=v) for k, v in values.items()])


@pytest.fixture
def audience(ros):
    made = []

    def make(settings, **options):
        made.append(Audience(ros, settings, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def ns(stamp):
    return stamp.sec * SECOND_NS + stamp.nanosec


def rgb(message):
    from g2vlm_ros.ros.conversions import images

    return images.frame_from_image(message, "camera").decode()


def stamps(messages):
    return [ns(message.header.stamp) for message in messages]


def test_folder_becomes_a_camera(audience, tmp_path):
    before_ns = time.time_ns()
    seen = audience(
        {"path": write_images(tmp_path / "i"), "rate_hz": 50.0, "camera": "rig/left"},
        camera="rig/left",
    )
    seen.until_finished()
    assert len(seen.images) == 5 and seen.replay.published == 5
    for number, message in enumerate(seen.images):
        np.testing.assert_array_equal(rgb(message), photograph(number))
        assert (message.encoding, message.header.frame_id) == ("rgb8", "rig_left_optical_frame")
    assert before_ns < stamps(seen.images)[0] and stamps(seen.images)[-1] < time.time_ns()
    assert stamps(seen.images) == sorted(stamps(seen.images))
    assert stamps(seen.images)[-1] - before_ns >= 4 * SECOND_NS / 50, "not faster than 50 Hz"
    assert stamps(seen.infos) == stamps(seen.images)
    info = seen.infos[0]
    assert (info.width, info.height, info.k[0]) == (32, 24, 0.0), "uncalibrated"
    assert not seen.clock_ns
    assert seen.replay.finished and not seen.replay.failure and not seen.replay.ended


def test_nothing_is_played_to_nobody(ros, tmp_path):
    replay = make_replay({"path": write_images(tmp_path / "i"), "rate_hz": 100.0})
    time.sleep(0.2)
    assert replay.published == 0
    replay.destroy_node()


def test_video_in_sim_time(audience, tmp_path):
    seen = audience({"path": write_video(tmp_path / "v.avi"), "sim_time": True})
    seen.until_finished()
    expected = [SECOND_NS + round(number * SECOND_NS / 20) for number in range(6)]
    assert stamps(seen.images) == expected
    seen.until(lambda: seen.clock_ns[-1] == expected[-1], "time to stand at the last frame")
    assert seen.clock_ns == sorted(seen.clock_ns)
    assert set(expected) <= set(seen.clock_ns)
    steps = [b - a for a, b in pairwise(sorted(set(seen.clock_ns)))]
    assert len(steps) > 8, "time goes on between frames too"


@pytest.mark.parametrize("storage", ["sqlite3", "mcap"])
def test_bag_keeps_pixels_stamps_and_calibration(audience, tmp_path, storage):
    bag = write_bag(tmp_path / "bag", storage=storage)
    seen = audience({"path": bag, "sim_time": True})
    seen.until_finished()
    assert stamps(seen.images) == [100 * SECOND_NS + n * 50_000_000 for n in range(4)]
    assert {(m.encoding, m.header.frame_id) for m in seen.images} == {("bgr8", "cam_optical")}
    np.testing.assert_array_equal(rgb(seen.images[2]), photograph(2))
    assert [info.k[0] for info in seen.infos] == [300.0, 301.0, 302.0, 303.0]
    assert seen.clock_ns == sorted(seen.clock_ns) and seen.clock_ns[0] >= 100 * SECOND_NS


def test_single_mcap_file_without_metadata(audience, tmp_path):
    file = next(write_bag(tmp_path / "bag", storage="mcap", info=False).glob("*.mcap"))
    moved = file.rename(tmp_path / "alone.mcap")
    seen = audience({"path": moved, "rate_hz": 100.0})
    seen.until_finished()
    assert len(seen.images) == 4 and seen.infos[0].k[0] == 0.0


def test_transports(audience, tmp_path):
    settings = {"path": write_bag(tmp_path / "bag"), "transport": "compressed", "rate_hz": 100.0}
    seen = audience(settings, compressed=True)
    seen.until_finished()
    from g2vlm_ros.ros.conversions import images

    for number, message in enumerate(seen.images):
        assert "jpeg" in message.format
        decoded = images.frame_from_compressed(message, "camera").decode()
        assert np.abs(decoded.astype(int) - photograph(number)).max() < 6


def test_loop_goes_on_in_time(audience, tmp_path):
    seen = audience(
        {"path": write_images(tmp_path / "i", 3), "rate_hz": 50.0, "loop": True, "sim_time": True}
    )
    seen.until(lambda: len(seen.images) >= 8, "a third pass")
    assert seen.clock_ns == sorted(seen.clock_ns)
    steps = [b - a for a, b in pairwise(stamps(seen.images[:8]))]
    assert steps == [SECOND_NS // 50] * 7
    np.testing.assert_array_equal(rgb(seen.images[3]), photograph(0))
    assert not seen.replay.finished and not any(seen.finished)


def test_pause_holds_frames_and_time(audience, tmp_path):
    seen = audience(
        {
            "path": write_images(tmp_path / "i", 3),
            "rate_hz": 50.0,
            "sim_time": True,
            "start_paused": True,
        }
    )
    time.sleep(0.2)
    assert not seen.images
    assert seen.pause(False).success
    seen.until_finished()
    last_ns = stamps(seen.images)[-1]
    seen.until(lambda: seen.clock_ns[-1] == last_ns, "time to stand at the last frame")
    time.sleep(0.1)
    assert seen.clock_ns[-1] == last_ns
    assert seen.pause(False).success, "resuming at the end plays again"
    seen.until(lambda: len(seen.images) == 6, "a second pass")
    assert seen.clock_ns == sorted(seen.clock_ns)


def test_without_pause_at_end_it_ends(audience, tmp_path):
    seen = audience(
        {"path": write_images(tmp_path / "i"), "rate_hz": 100.0, "pause_at_end": False}
    )
    seen.until(lambda: seen.replay.ended, "the end")
    assert seen.replay.finished and not seen.pause(False).success


CALIBRATION = """
image_width: {width}
image_height: 24
camera_name: test
distortion_model: plumb_bob
camera_matrix: {{rows: 3, cols: 3, data: [{fx}, 0, 15.5, 0, 30, 11.5, 0, 0, 1]}}
distortion_coefficients: {{rows: 1, cols: 5, data: [0.1, 0, 0, 0, 0]}}
rectification_matrix: {{rows: 3, cols: 3, data: [1, 0, 0, 0, 1, 0, 0, 0, 1]}}
projection_matrix: {{rows: 3, cols: 4, data: [30, 0, 15.5, 0, 0, 30, 11.5, 0, 0, 0, 1, 0]}}
"""


def write_calibration(path, width=32, fx=30):
    path.write_text(CALIBRATION.format(width=width, fx=fx))
    return str(path)


def test_calibration_file(audience, tmp_path):
    calibration = write_calibration(tmp_path / "c.yaml")
    seen = audience(
        {
            "path": write_images(tmp_path / "i"),
            "camera_info": calibration,
            "rate_hz": 100.0,
            "frame_id": "front",
        }
    )
    seen.until_finished()
    info = seen.infos[-1]
    assert (info.k[0], info.k[2], info.d[0], info.p[5]) == (30.0, 15.5, 0.1, 30.0)
    assert info.header.frame_id == seen.images[-1].header.frame_id == "front"


def test_calibration_of_another_size_ends_playing(audience, tmp_path):
    calibration = write_calibration(tmp_path / "c.yaml", width=64)
    seen = audience({"path": write_images(tmp_path / "i"), "camera_info": calibration})
    seen.until_finished()
    assert "64x24" in seen.replay.failure and "32x24" in seen.replay.failure
    assert seen.replay.ended and not seen.images


def test_a_picture_with_a_damaged_body_is_left_out_and_named(audience, tmp_path, caplog):
    folder = write_images(tmp_path / "i")
    broken = folder / "03.png"
    broken.write_bytes(broken.read_bytes()[:60])
    seen = audience({"path": folder, "rate_hz": 50.0})
    seen.until_finished()
    assert not seen.replay.failure
    assert len(seen.images) == len(list(folder.iterdir())) - 1
    assert "03.png is left out" in caplog.text


def test_a_folder_without_one_good_picture_fails_and_says_so(audience, tmp_path):
    folder = write_images(tmp_path / "i", 2)
    for picture in folder.iterdir():
        picture.write_bytes(picture.read_bytes()[:60])
    seen = audience({"path": folder, "rate_hz": 50.0})
    seen.until_finished()
    assert "none of its pictures can be decoded" in seen.replay.failure


def test_recordings_that_cannot_be_played_name_the_remedy(ros, tmp_path):
    (tmp_path / "old.bag").write_bytes(b"#ROSBAG V2.0\n")
    (tmp_path / "a.db3.zstd").write_bytes(b"x")
    (tmp_path / "cut.mcap").write_bytes(b"\x89MCAP0\r\n" + b"x" * 50)
    two = tmp_path / "two"
    two.mkdir()
    for name in ("a_0.db3", "a_1.db3"):
        (two / name).write_bytes(b"SQLite format 3\0")
    unnamed = tmp_path / "unnamed"
    unnamed.mkdir()
    (unnamed / "metadata.yaml").write_text(
        "rosbag2_bagfile_information:\n  version: 8\n  storage_identifier: ''\n"
    )
    assert "ROS 1" in refusal({"path": tmp_path / "old.bag"})
    assert "zstd -d" in refusal({"path": tmp_path / "a.db3.zstd"})
    assert "mcap recover" in refusal({"path": tmp_path / "cut.mcap"})
    assert "ros2 bag reindex" in refusal({"path": two})
    assert "storage_identifier" in refusal({"path": unnamed})


def refusal(settings):
    with pytest.raises((ValueError, OSError)) as caught:
        make_replay(settings).destroy_node()
    return str(caught.value)


def test_refused_paths(ros, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "not.mcap").write_bytes(b"not a recording at all")
    (tmp_path / "cut.db3").write_bytes(b"SQLite format 3\0" + b"x" * 100)
    assert "path is empty" in refusal({"camera": "c"})
    assert "nowhere does not exist" in refusal({"path": tmp_path / "nowhere"})
    assert "gone.mcap does not exist" in refusal({"path": tmp_path / "gone.mcap"})
    assert "no readable image" in refusal({"path": tmp_path / "empty"})
    assert "not.mcap cannot be read" in refusal({"path": tmp_path / "not.mcap"})
    assert "cut.db3 cannot be read" in refusal({"path": tmp_path / "cut.db3"})


def test_refused_topics(ros, tmp_path):
    two = write_bag(tmp_path / "two", topics=("/a/image_raw", "/b/image_raw"))
    message = refusal({"path": two})
    assert "/a/image_raw (4 messages)" in message and "/b/image_raw" in message
    assert "'/c'" in refusal({"path": two, "topic": "/c"})
    make_replay({"path": two, "topic": "b/image_raw"}).destroy_node()
    none = write_bag(tmp_path / "none", topics=())
    assert "no image topic" in refusal({"path": none})
    folder = write_images(tmp_path / "i")
    assert "no ROS recording" in refusal({"path": folder, "topic": "/a/image_raw"})


def test_recording_without_rosbags_says_what_to_install(ros, tmp_path, monkeypatch):
    bag = write_bag(tmp_path / "bag")
    monkeypatch.setitem(sys.modules, "rosbags.rosbag2", None)
    assert "pip install rosbags" in refusal({"path": bag})


def test_truncated_recording(audience, tmp_path):
    bag = write_bag(tmp_path / "bag", storage="mcap", count=40, info=False)
    file = next(bag.glob("*.mcap"))
    file.write_bytes(file.read_bytes()[:-2000])
    message = refusal({"path": file})
    assert "cannot be read as a recording" in message
    message = refusal({"path": bag})
    assert f"mcap recover {file}" in message, "also where metadata.yaml was written"


def test_a_recording_whose_file_was_renamed_names_the_remedy(ros, tmp_path):
    bag = write_bag(tmp_path / "bag")
    next(bag.glob("*.db3")).rename(bag / "other.db3")
    assert f"ros2 bag reindex {bag}" in refusal({"path": bag})


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("rate_hz", -1.0, "0.0 to 1000.0"),
        ("rate_hz", "fast", "float"),
        ("loop", 1, "bool"),
        ("transport", "theora", "raw, compressed"),
        ("camera", "", "camera is empty"),
        ("camera_info", "/nowhere.yaml", "does not exist"),
    ],
)
def test_refused_parameters(ros, tmp_path, name, value, word):
    folder = write_images(tmp_path / "i", 1)
    message = refusal({"path": folder, name: value})
    assert name in message and word in message


def test_parameters_cannot_change_while_playing(ros, tmp_path):
    from rclpy.parameter import Parameter

    replay = make_replay({"path": write_images(tmp_path / "i", 1)})
    results = replay.set_parameters([Parameter("rate_hz", value=5.0)])
    replay.destroy_node()
    assert not results[0].successful


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda text: "just text", "no calibration"),
        (lambda text: "a: [", "not YAML"),
        (lambda text: text.replace("plumb_bob", "thin_prism"), "thin_prism"),
        (lambda text: text.replace("[30, 0, 15.5", "[-30, 0, 15.5", 1), "above 0"),
        (lambda text: text.replace("0.1, 0, 0, 0, 0", "0.1, .nan"), "distortion_coefficients"),
        (lambda text: text.replace("image_width: 32", "image_width: wide"), "image_width"),
        (lambda text: text.replace("projection_matrix", "other"), "projection_matrix"),
    ],
)
def test_refused_calibration(ros, tmp_path, change, word):
    from g2vlm_ros.ros.replay.calibration import read_camera_info

    path = tmp_path / "c.yaml"
    path.write_text(change(CALIBRATION.format(width=32, fx=30)))
    with pytest.raises(ValueError, match=word):
        read_camera_info(path)
