# SPDX-License-Identifier: Apache-2.0
"""Doors of what other nodes of a robot say: detections, masks, where RViz says that it is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from g2vlm_tests.fuzz.door import FLOATS, Door, damaged
from g2vlm_tests.fuzz.file_doors import WORDS
from g2vlm_tests.fuzz.message_doors import ENCODINGS, WireError, images
from geometry_msgs.msg import PoseWithCovarianceStamped
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message

from g2vlm_ros.mapping.ignored_pixels import resized_mask, united
from g2vlm_ros.ros.initial_pose import InitialPose
from g2vlm_ros.ros.inputs.detections import Detections
from g2vlm_ros.ros.inputs.label_masks import LabelMasks
from g2vlm_ros.ros.inputs.masks import MaskImages

SIZE = (32, 24)
"""Width and height of the views that masks are for."""
MASKS = ("mono8", "8UC1") * 5
"""More often than what no mask has."""
LOG = SimpleNamespace(warning=lambda *_, **__: None, info=lambda *_: None)
NODE = SimpleNamespace(get_logger=lambda: LOG, create_subscription=lambda *_: None)


def robot_doors() -> list[Door]:
    """None of them may refuse with an error: nobody waits for one."""
    return [
        Door("Detection2DArray", st.lists(detections(), max_size=3), take_detections, ()),
        Door(
            "mask Image",
            st.lists(images((*MASKS, *ENCODINGS)), min_size=1, max_size=3),
            take_masks,
            (),
        ),
        Door("initial pose", initial_poses(), take_initial_pose, ()),
        Door(
            "CDR PoseWithCovarianceStamped",
            damaged(serialize_message(pose_in_map())),
            initial_pose_from_wire,
            (WireError,),
        ),
    ]


def detections() -> st.SearchStrategy:
    """vision_msgs/Detection2DArray, by its fields: the package need not be installed."""
    words = WORDS | st.text(max_size=9)
    hypotheses = st.builds(SimpleNamespace, class_id=words, score=FLOATS)
    results = st.lists(hypotheses.map(lambda one: SimpleNamespace(hypothesis=one)), max_size=3)
    places = st.builds(SimpleNamespace, x=FLOATS, y=FLOATS)
    centres = places.map(lambda place: SimpleNamespace(position=place, theta=0.0))
    boxes = st.builds(SimpleNamespace, center=centres, size_x=FLOATS, size_y=FLOATS)
    one = st.builds(SimpleNamespace, bbox=boxes, results=results)
    stamps = st.builds(
        SimpleNamespace, sec=st.integers(-(2**31), 2**31 - 1), nanosec=st.integers(0, 2**32 - 1)
    )
    frames = st.sampled_from(["optical", ""]) | st.text(max_size=4)
    headers = st.builds(SimpleNamespace, frame_id=frames, stamp=stamps)
    return st.builds(SimpleNamespace, header=headers, detections=st.lists(one, max_size=4))


def take_detections(received: list[Any]) -> None:
    """What a question and the map's masks get of the newest."""
    listener = Detections(NODE, "")
    masks = LabelMasks(listener, "chair, red")
    for message in received:
        listener.receive(message)
        stamp_ns = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        for box in listener.boxes(stamp_ns, message.header.frame_id):
            assert np.isfinite(box.corners).all() and 0 <= box.score <= 1 and box.label.strip()
        mask = masks.of(stamp_ns, message.header.frame_id, SIZE)()
        assert mask is None or mask.shape == SIZE[::-1]


def take_masks(received: list[Any]) -> None:
    """What a window gets of masks: pixels of its own size."""
    sentences: list[str] = []
    listener = MaskImages(0.1, sentences.append, 1_000_000)
    for message in received:
        message.header.frame_id, message.header.stamp.sec = "optical", 7
        listener.update(message)
    part = listener.of(7 * 10**9, "optical")
    mask = united([part, part])
    assert mask is not None or sentences
    if mask is not None:
        assert resized_mask(mask, SIZE).shape == SIZE[::-1]


def pose_in_map() -> PoseWithCovarianceStamped:
    message = PoseWithCovarianceStamped()
    message.header.frame_id = "map"
    return message


def initial_pose_from_wire(content: bytes) -> None:
    try:
        message = deserialize_message(content, PoseWithCovarianceStamped)
    except Exception as error:
        raise WireError(str(error)) from error
    take_initial_pose(message)


@st.composite
def initial_poses(draw: Any) -> PoseWithCovarianceStamped:
    message = PoseWithCovarianceStamped()
    message.header.frame_id = draw(st.sampled_from(["map", "map", "odom", ""]))
    point = message.pose.pose.position
    point.x, point.y = draw(FLOATS), draw(FLOATS)
    for index in draw(st.lists(st.sampled_from([0, 1, 6, 7, 35]), max_size=4)):
        message.pose.covariance[index] = draw(FLOATS)
    return message


def take_initial_pose(message: PoseWithCovarianceStamped) -> None:
    hints: list[Any] = []
    InitialPose(NODE, "map", hints.append).update(message)
    for hint in hints:
        assert np.isfinite(hint.position).all() and 0 < hint.reach < 1e3
