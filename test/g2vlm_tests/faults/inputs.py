# SPDX-License-Identifier: Apache-2.0
"""Faults of cameras, sensors, clocks and neighbours on the graph."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import rclpy
from g2vlm_tests.faults.robot import Case, Robot, Seen
from geometry_msgs.msg import TransformStamped
from nav_msgs.msg import Odometry
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from tf2_msgs.msg import TFMessage

NAN = float("nan")


@contextmanager
def neighbour(name: str) -> Iterator[Node]:
    """Another node on the graph, in a participant of its own."""
    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    node = rclpy.create_node(name, context=context, start_parameter_services=False)
    try:
        yield node
    finally:
        node.destroy_node()
        rclpy.try_shutdown(context=context)


def clock_jump(it: Robot) -> Seen:
    before = it.status.map_id
    it.offset_s = 3600.0
    time.sleep(0.15)
    it.offset_s = 0.0
    going = it.works(4)
    return Seen(f"map {before} before, {it.status.map_id} after", going)


def clock_back(it: Robot) -> Seen:
    it.offset_s = -20.0
    going = it.works(2)
    it.offset_s = 0.0
    return Seen("went on in the past and again now", going and it.works(2))


def other_type(it: Robot) -> Seen:
    with neighbour("other_driver") as node:
        publisher = node.create_publisher(CompressedImage, "/camera/image_raw", 10)
        for _ in range(20):
            publisher.publish(CompressedImage(format="jpeg", data=b"no picture"))
            time.sleep(0.05)
    return it.works_again("went on")


def spoilt_images(it: Robot) -> Seen:
    choice = random.Random(0)

    def spoil(message: Image) -> None:
        kind = choice.randrange(4)
        if kind == 0:
            message.encoding = "no encoding"
        elif kind == 1:
            message.step = 1
        elif kind == 2:
            message.data = b""
        else:
            message.height = 2**31

    it.spoil = spoil
    time.sleep(2)
    it.spoil = None
    going = it.works()
    reasons = ", ".join(it.status.drop_reasons)
    return Seen(f"dropped: {reasons}"[:90], going and it.status.frames_dropped > 0)


def silent_camera(it: Robot) -> Seen:
    it.silent = True
    time.sleep(3.0)
    waited = it.rests()
    it.silent = False
    return Seen("no window without frames, then windows", waited and it.works())


def two_drivers(it: Robot) -> Seen:
    with neighbour("second_driver") as node:
        publisher = node.create_publisher(Image, "/camera/image_raw", 10)
        for number in range(30):
            now_s = time.time()
            message = Image(height=60, width=80, step=240, encoding="bgr8")
            message.header.frame_id = "elsewhere"
            message.header.stamp.sec = int(now_s)
            message.data = bytes([number]) * (240 * 60)
            publisher.publish(message)
            time.sleep(0.05)
    return it.works_again("went on")


def other_size(it: Robot) -> Seen:
    def grow(message: Image) -> None:
        rows = bytes(message.data)
        message.data, message.height = rows * 2, 2 * message.height

    it.spoil = grow
    larger = it.works()
    it.spoil = None
    return Seen("windows of the new size and of the old one again", larger and it.works())


def broken_calibration(it: Robot) -> Seen:
    for k in ([NAN] * 9, [0.0] * 9, [-1.0] * 9, [1e300] * 9):
        info = CameraInfo(height=48, width=64, k=k)
        info.header.frame_id = "optical"
        for _ in range(3):
            it.camera_info.publish(info)
            time.sleep(0.1)
    return it.works_again("went on")


def broken_odometry(it: Robot) -> Seen:
    for x, w in ((NAN, 1.0), (1e308, 1.0), (0.0, 0.0), (float("inf"), NAN), (100.0, 1.0)):
        for _ in range(4):
            message = Odometry(child_frame_id="base_link")
            now_s = time.time()
            message.header.stamp.sec = int(now_s)
            message.header.stamp.nanosec = int(now_s % 1 * 1e9)
            message.pose.pose.position.x = x
            message.pose.pose.orientation.w = w
            it.odometry.publish(message)
            time.sleep(0.05)
    return it.works_again("went on")


def static_transform(parent: str, child: str, x: float) -> TransformStamped:
    edge = TransformStamped(child_frame_id=child)
    edge.header.frame_id = parent
    edge.transform.translation.x = x
    return edge


def broken_tf(it: Robot) -> Seen:
    bad = static_transform("base_link", "optical", NAN)
    loop = static_transform("optical", "base_link", 0.0)
    it.tf.publish(TFMessage(transforms=[bad, loop, loop]))
    return it.works_again("went on")


def two_parents(it: Robot) -> Seen:
    for parent, x in (("base_link", 1.0), ("head", 2.0), ("base_link", 1e30), ("base_link", 0.2)):
        it.tf.publish(TFMessage(transforms=[static_transform(parent, "optical", x)]))
        time.sleep(0.2)
    return it.works_again("went on")


def flapping(it: Robot) -> Seen:
    for _ in range(40):
        subscription = it.node.create_subscription(
            PointCloud2, "/perception/map", lambda _: None, 1
        )
        time.sleep(0.05)
        it.node.destroy_subscription(subscription)
    return it.works_again("went on")


def twin(it: Robot) -> Seen:
    with neighbour("perception"):
        time.sleep(1.0)
    return it.works_again("went on")


def crowd(it: Robot) -> Seen:
    for _ in range(10):
        with neighbour("passer_by") as node:
            node.create_subscription(PointCloud2, "/perception/points", lambda _: None, 1)
            time.sleep(0.1)
    return it.works_again("went on")


CASES = (
    Case("stamps of 0.15 s one hour ahead", "goes on", clock_jump),
    Case("stamps jump 20 s back, and forth again", "goes on", clock_back),
    Case("a publisher of another type on the camera's topic", "goes on", other_type),
    Case("a second driver on the camera's topic, other size and frame", "goes on", two_drivers),
    Case("2 s of damaged images", "dropped with reasons; goes on", spoilt_images),
    Case("the camera is silent for 4 s", "waits; goes on", silent_camera),
    Case("the camera changes its size and back", "goes on with each", other_size),
    Case("camera_info of NaN, 0, -1, 1e300", "goes on", broken_calibration),
    Case("odometry of NaN, inf, 1e308, no orientation, 100 m off", "goes on", broken_odometry),
    Case("/tf_static with NaN and a loop", "goes on", broken_tf),
    Case("/tf_static gives the camera two parents, and 1e30 m", "goes on", two_parents),
    Case("40 subscribers of ~/map come and go in 2 s", "goes on", flapping),
    Case("10 participants come and go", "goes on", crowd),
    Case("a second node called perception comes and goes", "goes on", twin),
)
