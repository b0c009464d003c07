# SPDX-License-Identifier: Apache-2.0
"""Doors with ROS: messages, their bytes on the wire, calibration files, recordings, agents."""

from __future__ import annotations

from functools import partial
from typing import Any

import yaml
from g2vlm_ros.action import AnswerSpatialQuery
from g2vlm_ros.srv import (
    EditMap,
    EditObject,
    FindObjects,
    GetPoints,
    LoadMap,
    SaveMap,
    SpatialQuery,
)
from g2vlm_tests.fuzz.door import FLOATS, TREES, Door, altered, damaged, in_file, in_folder
from g2vlm_tests.fuzz.file_doors import WORDS, picture, tiny_drive, write_bag
from geometry_msgs.msg import Quaternion, Transform, TransformStamped, Vector3
from hypothesis import strategies as st
from nav_msgs.msg import Odometry
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, Imu
from tf2_msgs.msg import TFMessage

from g2vlm_ros.ros.conversions import geometry
from g2vlm_ros.ros.conversions import images as image_conversions
from g2vlm_ros.ros.service_errors import RequestError

ENCODINGS = (
    "rgb8 bgr8 rgba8 bgra8 mono8 mono16 bayer_rggb8 bayer_gbrg8 yuv422 yuv422_yuy2 uyvy yuyv nv12 "
    "nv21 nv24 8UC3 16UC1 32FC1 64FC3"
).split()
CALIBRATION = {
    "image_width": 640,
    "image_height": 480,
    "distortion_model": "plumb_bob",
    "camera_matrix": {"rows": 3, "cols": 3, "data": [500, 0, 320, 0, 500, 240, 0, 0, 1]},
    "rectification_matrix": {"rows": 3, "cols": 3, "data": [1, 0, 0, 0, 1, 0, 0, 0, 1]},
    "projection_matrix": {"data": [500, 0, 320, 0, 0, 500, 240, 0, 0, 0, 1, 0]},
    "distortion_coefficients": {"rows": 1, "cols": 5, "data": [0, 0, 0, 0, 0]},
}


class WireError(Exception):
    """Bytes that are no message of the type: rclpy raises, and nothing of ours sees them."""


def ros_doors() -> list[Door]:
    """Messages as Python objects, and every other door that needs the interfaces."""
    return [*image_doors(), *sensor_doors(), *wire_doors(), *replay_doors(), agent_door()]


SIZES = st.sampled_from([0, 1, 2**31]) | st.integers(0, 2**32 - 1)


@st.composite
def images(draw: Any, encodings: tuple[str, ...] = tuple(ENCODINGS)) -> Image:
    """Images whose sizes fit their data, or nearly, or not at all."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    step = width * draw(st.integers(1, 8))
    fields = {
        "height": height,
        "width": width,
        "step": step,
        "encoding": draw(st.sampled_from(encodings)),
        "is_bigendian": draw(st.integers(0, 1)),
        "data": bytes(range(256)) * 5,
    }
    fields["data"] = fields["data"][: height * step + draw(st.integers(0, 2)) * height * step // 2]
    wrong = {
        **dict.fromkeys(("height", "width", "step"), SIZES),
        "encoding": st.text(max_size=10),
        "data": st.binary(max_size=600),
    }
    for name in draw(st.lists(st.sampled_from(sorted(wrong)), max_size=2)):
        fields[name] = draw(wrong[name])
    return Image(**fields)


def frame(message: Image | CompressedImage) -> None:
    """A camera's message as the node reads it."""
    make = image_conversions.frame_from_image
    if isinstance(message, CompressedImage):
        make = image_conversions.frame_from_compressed
    make(message, "camera", max_px=1_000_000, intrinsics=None).decode()


def image_doors() -> list[Door]:
    compressed = st.builds(
        CompressedImage, format=st.text(max_size=12), data=damaged(picture(".png"))
    )
    infos = st.builds(
        CameraInfo,
        height=st.integers(0, 2**32 - 1),
        width=st.integers(0, 2**32 - 1),
        distortion_model=st.text(max_size=8),
        d=st.lists(FLOATS, max_size=8),
        k=st.lists(FLOATS, min_size=9, max_size=9),
        p=st.lists(FLOATS, min_size=12, max_size=12),
        binning_x=st.integers(0, 2**32 - 1),
    )
    return [
        Door("Image", images(), frame),
        Door("CompressedImage", compressed, frame),
        Door(
            "depth Image",
            images(),
            lambda message: image_conversions.depth_reader(message, 1_000_000)(),
        ),
        Door("CameraInfo", infos, image_conversions.intrinsics_from_info),
    ]


class Sensors:
    """TF, odometry, IMU and depth as the node holds them; whatever comes, it may be asked."""

    def __init__(self) -> None:
        from g2vlm_ros.ros.inputs.depth import DepthImages
        from g2vlm_ros.ros.inputs.imu import ImuGravity
        from g2vlm_ros.ros.inputs.odometry import OdometryPoses
        from g2vlm_ros.ros.inputs.static_tf import StaticTf

        ignore = [].append
        self.tf = StaticTf(ignore)
        self.odometry = OdometryPoses(self.tf, ignore)
        self.imu = ImuGravity(self.tf, ignore)
        self.depth = DepthImages(0.1, ignore, 1_000_000)

    def take(self, message: Any) -> None:
        """A message to whoever listens to its type, and what a frame would get of it then."""
        takers = {TFMessage: self.tf, Odometry: self.odometry, Imu: self.imu, Image: self.depth}
        if type(message) in takers:
            takers[type(message)].update(message)
        self.tf.between("base", "optical")
        self.odometry.camera_at(10**9, "optical")
        self.imu.up_at(10**9, "optical")
        self.depth.of(10**9, "optical")()


def transforms() -> st.SearchStrategy:
    return st.builds(
        Transform,
        translation=st.builds(Vector3, x=FLOATS, y=FLOATS, z=FLOATS),
        rotation=st.builds(Quaternion, x=FLOATS, y=FLOATS, z=FLOATS, w=FLOATS),
    )


@st.composite
def sensor_messages(draw: Any) -> list[Any]:
    """Some messages of a robot in any order, their values made up, their frames tied by chance."""
    frames = st.sampled_from(["base", "optical", "imu", "", "map"])
    messages_of_a_robot = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from([TFMessage, Odometry, Imu]))
        if kind is TFMessage:
            each = TransformStamped(child_frame_id=draw(frames), transform=draw(transforms()))
            each.header.frame_id = draw(frames)
            messages_of_a_robot.append(TFMessage(transforms=[each]))
            continue
        message = kind()
        message.header.frame_id, message.header.stamp.sec = draw(frames), draw(st.integers(0, 3))
        placed = draw(transforms())
        if kind is Odometry:
            message.child_frame_id = draw(frames)
            message.pose.pose.orientation = placed.rotation
            position = message.pose.pose.position
            position.x, position.y = placed.translation.x, placed.translation.y
        else:
            message.orientation = placed.rotation
            message.linear_acceleration = placed.translation
        messages_of_a_robot.append(message)
    return messages_of_a_robot


def sensor_doors() -> list[Door]:
    def take_all(received: list[Any]) -> None:
        sensors = Sensors()
        for message in received:
            sensors.take(message)

    return [
        Door("Transform", transforms(), geometry.transform_matrix),
        Door("TF, odometry, IMU", sensor_messages(), take_all),
    ]


def wire_doors() -> list[Door]:
    """Damaged CDR bytes of every type that the node takes, then what the node does with them."""
    from g2vlm_ros.ros import query_request

    def read(kind: type, use: Any, content: bytes) -> None:
        try:
            message = deserialize_message(content, kind)
        except Exception as error:
            raise WireError(str(error)) from error
        use(message)

    def check(request: Any) -> None:
        query_request.check(request, ["camera"], 10**18)

    def door(message: Any, use: Any) -> Door:
        kind = type(message)
        enter = partial(read, kind, use)
        name = kind.__name__.replace("_Request", "")
        return Door(f"CDR {name}", damaged(serialize_message(message)), enter, REFUSALS)

    image = Image(height=4, width=5, step=15, encoding="rgb8", data=bytes(60))
    edge = TransformStamped(child_frame_id="optical")
    edge.header.frame_id = "base"
    asked = {"question": "How far is the chair?", "max_age_s": 5.0, "max_wait_s": 1.0}
    doors = [
        door(image, frame),
        door(CompressedImage(format="png", data=picture(".png")), frame),
        door(CameraInfo(k=[1.0] * 9, d=[0.0] * 5), image_conversions.intrinsics_from_info),
        door(TFMessage(transforms=[edge, edge]), lambda message: Sensors().take(message)),
        door(Odometry(child_frame_id="base"), lambda message: Sensors().take(message)),
        door(Imu(), lambda message: Sensors().take(message)),
        door(SpatialQuery.Request(**asked), check),
        door(AnswerSpatialQuery.Goal(**asked), check),
    ]
    for kind in (GetPoints, SaveMap, LoadMap, EditMap, FindObjects, EditObject):
        doors.append(door(kind.Request(), serialize_message))
    return doors


REFUSALS = (ValueError, OSError, RequestError, WireError)


def replay_doors() -> list[Door]:
    """Recordings and calibration files that `replay` plays."""
    from g2vlm_ros.ros.replay.calibration import read_camera_info
    from g2vlm_ros.ros.replay.source import Recording

    def play(path: Any) -> None:
        for _ in Recording(str(path), topic="/camera/image_raw"):
            pass

    def bag(storage: str) -> Door:
        file = "*.mcap" if storage == "MCAP" else "*.db3"
        make = partial(write_bag, drive=tiny_drive(), mcap=storage == "MCAP")
        content, enter = in_folder(f"replay_{storage}", make, file, play)
        return Door(f"replay, {storage}", damaged(content), enter, batch=50)

    inputs = altered(CALIBRATION).map(lambda tree: yaml.safe_dump(tree).encode())
    inputs |= damaged(yaml.safe_dump(CALIBRATION).encode())
    calibration = in_file("calibration.yaml", read_camera_info)
    return [Door("calibration YAML", inputs, calibration), bag("MCAP"), bag("db3")]


def agent_door() -> Door:
    """What a language model writes into a tool call: refused in words, or a message that fits."""
    from g2vlm_ros.ros.client import agent_tools
    from g2vlm_ros.ros.client.client import request
    from g2vlm_ros.ros.client.fields import message

    class Robot:
        def ask(self, question: Any, **fields: Any) -> SpatialQuery.Response:
            serialize_message(request(question, **fields))
            return SpatialQuery.Response(number=float("nan"))

        def locate(self, thing: Any, **fields: Any) -> SpatialQuery.Response:
            return self.ask(f"Where is the {thing}?", **fields)

        def find(self, words: Any, **fields: Any) -> FindObjects.Response:
            serialize_message(message(FindObjects.Request, words=words, **fields))
            return FindObjects.Response()

    arguments = st.dictionaries(
        st.sampled_from([*agent_tools.fields(), "thing", "name"]) | st.text(max_size=6),
        WORDS | TREES | st.sampled_from(["POINT", "VIEWER", 1.0, 2]),
        max_size=4,
    )
    tools = st.sampled_from(["ask", "locate", "measure", "look", "find"]) | st.text(max_size=5)
    run = agent_tools.answered(Robot())
    return Door("agent calls", st.tuples(tools, arguments), lambda call: run(*call))
