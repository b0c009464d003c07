# SPDX-License-Identifier: Apache-2.0
"""Observer: listens to a running graph for some seconds and returns a snapshot of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import rclpy
from lifecycle_msgs.srv import GetState
from nav_msgs.msg import Odometry
from rcl_interfaces.msg import ParameterValue
from rcl_interfaces.srv import GetParameters
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, Imu
from tf2_msgs.msg import TFMessage

from g2vlm_ros.images.decoding import ImageError
from g2vlm_ros.parameter_schema import parameters_of
from g2vlm_ros.records import DropReason
from g2vlm_ros.ros.conversions import images
from g2vlm_ros.ros.doctor.snapshot import SENSOR_TYPES, Endpoint, Graph, ImageSamples
from g2vlm_ros.settings import Settings

ANSWER_S = 5.0
"""How long a service of the node may take; a node that loads a model does not answer."""
MAX_SAMPLES = 2000
"""Images kept per camera: more say nothing new."""
STATIC = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
BEST_EFFORT_TF = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)
SENSOR_KINDS = {
    "odometry_topic": Odometry,
    "depth_topic": Image,
    "imu_topic": Imu,
    "mask_topic": Image,
}
"""Of the sensors whose messages are counted."""
PARAMETER_FIELDS = (
    None,
    "bool_value",
    "integer_value",
    "double_value",
    "string_value",
    "byte_array_value",
    "bool_array_value",
    "integer_array_value",
    "double_array_value",
    "string_array_value",
)
"""ParameterValue's field for each ParameterType."""


class Observer:
    """Looks at one perception node and what surrounds it, from outside.

    node is a fresh node that nobody spins; the observer spins it. Its own subscriptions take
    whatever QoS is offered, so that they see what the perception node may not.
    """

    def __init__(self, node: Node, target: str):
        self._node = node
        self._graph = Graph(target if target.startswith("/") else f"/{target}")

    def look(self, seconds: float) -> Graph:
        """Listen for so long (after the answers of the node) and return what was seen."""
        graph = self._graph
        self._spin_until(lambda: graph.node in self._names(), ANSWER_S)
        graph.nodes = self._names()
        if graph.node in graph.nodes:
            graph.state = self._state()
            graph.parameters = self._parameters()
        self._listen()
        start = time.monotonic()
        self._spin_until(lambda: False, seconds)
        graph.seconds = time.monotonic() - start
        graph.nodes = self._names()
        self._collect_endpoints()
        return graph

    def _names(self) -> list[str]:
        pairs = self._node.get_node_names_and_namespaces()
        return [f"{space.rstrip('/')}/{name}" for name, space in pairs]

    def _spin_until(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            rclpy.spin_once(self._node, timeout_sec=0.05)

    def _call(self, kind: type, name: str, request: Any) -> Any:
        """The response, or None where the node does not answer in time."""
        client = self._node.create_client(kind, f"{self._graph.node}/{name}")
        try:
            self._spin_until(client.service_is_ready, ANSWER_S)
            if not client.service_is_ready():
                return None
            future = client.call_async(request)
            self._spin_until(future.done, ANSWER_S)
            return future.result() if future.done() else None
        finally:
            self._node.destroy_client(client)

    def _state(self) -> str:
        response = self._call(GetState, "get_state", GetState.Request())
        return response.current_state.label if response else ""

    def _parameters(self) -> dict[str, Any]:
        names = [name for name, _ in parameters_of(Settings)] + ["use_sim_time"]
        response = self._call(GetParameters, "get_parameters", GetParameters.Request(names=names))
        if response is None or len(response.values) != len(names):
            return {}
        pairs = zip(names, map(value_of, response.values), strict=True)
        return {name: value for name, value in pairs if value is not None}

    def _listen(self) -> None:
        node, graph = self._node, self._graph
        for qos in (BEST_EFFORT_TF, STATIC):
            topic = "/tf_static" if qos is STATIC else "/tf"
            node.create_subscription(
                TFMessage, topic, lambda message, t=topic: self._on_tf(message, t), qos
            )
        compressed = graph.parameters.get("image_transport") == "compressed"
        kind = CompressedImage if compressed else Image
        max_px = graph.parameters.get("max_image_px")
        for camera in graph.configured_cameras():
            samples = graph.cameras.setdefault(camera, ImageSamples())
            node.create_subscription(
                kind,
                graph.image_topic(camera),
                lambda message, s=samples: on_image(message, s, max_px),
                qos_profile_sensor_data,
            )
            node.create_subscription(
                CameraInfo,
                graph.topic(f"{camera}/camera_info"),
                lambda message, s=samples: on_camera_info(message, s),
                qos_profile_sensor_data,
            )

        for name, kind in SENSOR_KINDS.items():
            if graph.parameters.get(name):
                self._count(name, kind)

    def _count(self, name: str, kind: type) -> None:
        """Count the messages of a sensor; not where another type is on its topic."""
        graph = self._graph
        topic = graph.topic(graph.parameters[name])
        publishers = self._node.get_publishers_info_by_topic(topic)
        if not publishers or any(each.topic_type != SENSOR_TYPES[name] for each in publishers):
            return

        def count(_: bytes) -> None:
            graph.sensor_messages[name] = graph.sensor_messages.get(name, 0) + 1

        self._node.create_subscription(kind, topic, count, qos_profile_sensor_data, raw=True)

    def _on_tf(self, message: TFMessage, topic: str) -> None:
        for each in message.transforms:
            self._graph.parents.setdefault(each.child_frame_id, set()).add(each.header.frame_id)
            if topic == "/tf_static":
                self._graph.static_frames.add(each.child_frame_id)

    def _collect_endpoints(self) -> None:
        own_name = self._node.get_fully_qualified_name()
        for topic, _ in self._node.get_topic_names_and_types():
            for table, ask in (
                (self._graph.publishers, self._node.get_publishers_info_by_topic),
                (self._graph.subscriptions, self._node.get_subscriptions_info_by_topic),
            ):
                endpoints = [endpoint_of(info) for info in ask(topic)]
                table[topic] = [each for each in endpoints if each.node != own_name]


def endpoint_of(info: Any) -> Endpoint:
    """An Endpoint of rclpy's TopicEndpointInfo."""
    qos = info.qos_profile
    return Endpoint(
        f"{info.node_namespace.rstrip('/')}/{info.node_name}",
        info.topic_type,
        qos.reliability == ReliabilityPolicy.RELIABLE,
        qos.durability == DurabilityPolicy.TRANSIENT_LOCAL,
    )


def value_of(value: ParameterValue) -> Any:
    """A parameter's value; None where it is not set."""
    name = PARAMETER_FIELDS[value.type] if value.type < len(PARAMETER_FIELDS) else None
    return getattr(value, name) if name else None


def on_image(message: Image | CompressedImage, samples: ImageSamples, max_px: int | None) -> None:
    """Note one image, and what the node would drop it for; stamps have a check of their own."""
    if len(samples.received_s) >= MAX_SAMPLES:
        return
    stamp = message.header.stamp
    samples.received_s.append(time.time())
    samples.stamps_s.append(stamp.sec + stamp.nanosec * 1e-9)
    samples.frame_ids.add(message.header.frame_id)
    samples.bytes = len(message.data)
    raw = isinstance(message, Image)
    frame_from = images.frame_from_image if raw else images.frame_from_compressed
    try:
        frame_from(message, "", max_px=max_px, intrinsics=None)
    except ImageError as error:
        if error.reason is not DropReason.STAMP:
            samples.refusals.add(str(error))
    if raw:
        samples.size = (message.width, message.height)


def on_camera_info(message: CameraInfo, samples: ImageSamples) -> None:
    """Note one calibration."""
    if message.width and message.height:
        samples.info_size = (message.width, message.height)
    samples.distorted = any(abs(value) > 1e-9 for value in message.d)
