# SPDX-License-Identifier: Apache-2.0
"""Each input that is configured and contributes nothing says why within ten frames."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy", reason="needs ROS 2")

from g2vlm_tests.harness import image  # noqa: E402

START_S = 1000.0
NS = 10**9


class Rig:
    """The inputs of a node, without the node: what arrives, what is logged, which frames."""

    def __init__(self, **settings):
        from g2vlm_ros.ros.inputs.cameras import Cameras
        from g2vlm_ros.settings import Settings

        self.logged, self.frames, self._callbacks = [], [], {}
        log = SimpleNamespace(warning=self._warn, error=self._warn)
        node = SimpleNamespace(
            get_logger=lambda: log,
            create_subscription=self._subscribe,
            destroy_subscription=lambda _: None,
        )
        flat = {"window.overlap": 1, **settings}
        Cameras(node, Settings.from_flat(flat), self.frames.append, lambda _: None)

    def _warn(self, sentence, **_):
        self.logged.append(sentence)

    def _subscribe(self, _kind, topic, callback, *_, **__):
        self._callbacks[topic] = callback

    def receive(self, topic, message):
        self._callbacks[topic](message)


def header(seconds, frame_id):
    from g2vlm_ros.ros.conversions import geometry

    return geometry.header(round(seconds * NS), frame_id)


def odometry(seconds, x=1.0, turn=1.0):
    from nav_msgs.msg import Odometry

    message = Odometry(header=header(seconds, "odom"), child_frame_id="base_link")
    message.pose.pose.position.x = x
    message.pose.pose.orientation.w = turn
    return message


def imu(seconds, up=9.81):
    from sensor_msgs.msg import Imu

    message = Imu(header=header(seconds, "imu"))
    message.orientation_covariance[0] = -1.0
    message.linear_acceleration.z = up
    return message


def pixels(seconds, encoding="32FC1", value=2.0, frame_id="optical"):
    from sensor_msgs.msg import Image

    kind = {"32FC1": np.float32, "16UC1": np.uint16, "mono8": np.uint8, "rgb8": np.uint8}[encoding]
    array = np.full((48, 64, 3 if encoding == "rgb8" else 1), value, kind)
    step = array.nbytes // 48
    fields = {"height": 48, "width": 64, "encoding": encoding, "step": step}
    return Image(header=header(seconds, frame_id), data=array.tobytes(), **fields)


def calibration(width, height):
    from sensor_msgs.msg import CameraInfo

    k = [60.0, 0.0, width / 2, 0.0, 60.0, height / 2, 0.0, 0.0, 1.0]
    return CameraInfo(width=width, height=height, k=k)


def nothing(_seconds):
    return None


TOPICS = {"odometry_topic": "/odom", "imu_topic": "/imu", "depth_topic": "/d", "mask_topic": "/m"}
FAULTS = [
    ("odometry_topic", nothing, "no odometry comes; compare odometry_topic"),
    ("odometry_topic", lambda s: odometry(0.0), "odometry matches no frame"),
    ("odometry_topic", lambda s: odometry(s - 0.6), "both clocks must be the same"),
    (
        "odometry_topic",
        lambda s: odometry(s, x=math.nan),
        "its position is [nan, 0.0, 0.0], not finite",
    ),
    ("odometry_topic", lambda s: odometry(s, x=-math.inf), "not finite"),
    ("odometry_topic", lambda s: odometry(s, turn=0.0), "gives the scale only"),
    ("odometry_topic", odometry, "no fixed transform between odometry's frame 'base_link'"),
    ("imu_topic", nothing, "no usable imu message comes; compare imu_topic"),
    ("imu_topic", lambda s: imu(0.0), "imu matches no frame"),
    ("imu_topic", lambda s: imu(s, up=0.0), "imu measures 0.00 m/s²"),
    ("imu_topic", lambda s: imu(s, up=math.nan), "imu measures nan m/s²"),
    ("imu_topic", imu, "no fixed transform between imu frame 'imu'"),
    ("depth_topic", nothing, "no depth image comes; compare depth_topic"),
    ("depth_topic", lambda s: pixels(0.0), "depth images match no frame"),
    ("depth_topic", lambda s: pixels(s, frame_id="depth_optical"), "frame_id is 'depth_optical'"),
    ("depth_topic", lambda s: pixels(s, "rgb8"), "depth image of 'optical' is not used"),
    ("depth_topic", lambda s: pixels(s, value=2000.0), "its median is 2000 m"),
    ("depth_topic", lambda s: pixels(s, value=math.nan), "has no pixel above 0 m"),
    ("depth_topic", lambda s: pixels(s, "16UC1", value=0), "has no pixel above 0 m"),
    ("depth_topic", lambda s: pixels(s, "16UC1", value=20_000), "tenths of them"),
    ("mask_topic", nothing, "no mask comes; compare mask_topic"),
    ("mask_topic", lambda s: pixels(0.0, "mono8"), "masks match no frame"),
    ("mask_topic", lambda s: pixels(s, "mono8", frame_id="other"), "newest is of 'other'"),
    ("mask_topic", lambda s: pixels(s, "rgb8"), "it must be a mono8 image"),
]


@pytest.mark.parametrize(("parameter", "fault", "words"), FAULTS)
def test_ten_identical_faults_of_a_sensor_are_explained(parameter, fault, words):
    topic = TOPICS[parameter]
    rig = Rig(**{parameter: topic})
    for k in range(10):
        seconds = START_S + 0.1 * k
        message = fault(seconds)
        if message is not None:
            rig.receive(topic, message)
        rig.receive("camera/image_raw", image(seconds))
        if (depth := rig.frames[-1].depth) is not None:
            depth()  # as a window does, see `Frame.depth`
    said = [sentence for sentence in rig.logged if words in sentence]
    assert len(said) == 1, rig.logged


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (lambda: calibration(1280, 720), "camera: camera_info is of 1280x720 px"),
        (lambda: calibration(0, 0), "camera: camera_info is not used"),
    ],
)
def test_ten_calibrations_that_cannot_be_used_are_explained_once(info, words):
    rig = Rig()
    for k in range(10):
        rig.receive("camera/camera_info", info())
        rig.receive("camera/image_raw", image(START_S + 0.1 * k))
    assert all(frame.intrinsics is None for frame in rig.frames)
    assert len([sentence for sentence in rig.logged if words in sentence]) == 1, rig.logged


def test_cameras_of_a_rig_without_transforms_are_named():
    rig = Rig(cameras=["left", "right"])
    for k in range(10):
        for camera in ("left", "right"):
            rig.receive(f"{camera}/image_raw", image(START_S + 0.1 * k, frame_id=camera))
    said = [s for s in rig.logged if "between camera frames 'left' and 'right' (right)" in s]
    assert len(said) == 1 and "/tf_static" in said[0]


def test_inputs_that_work_are_not_spoken_of():
    from geometry_msgs.msg import TransformStamped
    from tf2_msgs.msg import TFMessage

    rig = Rig(**TOPICS)
    for child in ("imu", "optical"):
        transform = TransformStamped(header=header(0.0, "base_link"), child_frame_id=child)
        transform.transform.rotation.w = 1.0
        rig.receive("/tf_static", TFMessage(transforms=[transform]))
    for k in range(20):
        seconds = START_S + 0.1 * k
        for topic, message in (
            ("/odom", odometry(seconds)),
            ("/imu", imu(seconds)),
            ("/d", pixels(seconds)),
            ("/m", pixels(seconds, "mono8", value=1)),
            ("camera/camera_info", calibration(64, 48)),
            ("camera/image_raw", image(seconds)),
        ):
            rig.receive(topic, message)
        assert rig.frames[-1].depth() is not None and rig.frames[-1].up is not None
    assert not rig.logged
