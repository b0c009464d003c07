# SPDX-License-Identifier: Apache-2.0
"""Checks of what cameras and other sensors send, and of where metres come from."""

from __future__ import annotations

import os
from collections.abc import Iterator

from g2vlm_ros.ros.doctor.findings import Finding, error, ok, warning
from g2vlm_ros.ros.doctor.snapshot import SENSOR_TYPES, Graph
from g2vlm_ros.ros.middleware import fastdds_profile

LARGE_IMAGE_BYTES = 512 << 10
"""Best-effort messages above this are dropped by Fast DDS with its default profile."""
SCALE_PARAMETERS = ("map.metres_per_unit", "map.camera_height_m")
SCALE_TOPICS = ("odometry_topic", "depth_topic", "map.rig_baselines")
STEADY = ("odometry_topic", "depth_topic", "imu_topic")
"""Sensors that always send; detectors and segmenters may have nothing to say."""


def check_images(graph: Graph) -> Iterator[Finding]:
    """Images that the node drops, that the network should not see like this, or that DDS loses."""
    for camera, samples in graph.cameras.items():
        for sentence in sorted(samples.refusals)[:1]:
            yield error(
                "image",
                f"images of {camera} are dropped: {sentence}",
                "change the driver's settings, or put a node in between that converts them",
            )
        if samples.distorted:
            yield warning(
                "distortion",
                f"camera_info of {camera} has lens distortion; it is not undone",
                "put image_proc's rectify in between and use image_rect",
            )
        if samples.info_size and samples.size != (0, 0) and samples.info_size != samples.size:
            yield error(
                "calibration",
                f"camera_info of {camera} is for {samples.info_size[0]}x{samples.info_size[1]}, "
                f"its images are {samples.size[0]}x{samples.size[1]}",
                "calibrate at the size that the driver sends, or scale the calibration",
            )
        publishers = graph.publishers.get(graph.image_topic(camera), [])
        if samples.bytes > LARGE_IMAGE_BYTES and any(not each.reliable for each in publishers):
            yield warning(
                "image_size",
                f"{camera} sends {samples.bytes / 1e6:.1f} MB per image with best effort",
                f"FASTDDS_DEFAULT_PROFILES_FILE=config/{fastdds_profile(os.environ)} for driver "
                "and node, or image_transport: compressed",
            )


def check_scale(graph: Graph) -> Iterator[Finding]:
    """There is something that gives metres."""
    parameters = graph.parameters
    numbers = [name for name in SCALE_PARAMETERS if parameters.get(name)]
    sources = [name for name in SCALE_TOPICS if parameters.get(name)]
    if not numbers and not sources:
        yield warning(
            "scale",
            "nothing gives metres: lengths stay in model units, metric questions are refused",
            "set one of odometry_topic, depth_topic, map.camera_height_m, map.rig_baselines, "
            "map.metres_per_unit",
        )
        return
    yield ok("scale", f"from {', '.join([*sources, *numbers])}")


def check_sensors(graph: Graph) -> Iterator[Finding]:
    """Topics of other sensors that the parameters name have publishers, of the type, that send."""
    for name, kind in SENSOR_TYPES.items():
        if not graph.parameters.get(name):
            continue
        topic = graph.topic(graph.parameters[name])
        publishers = graph.publishers.get(topic, [])
        other = [each for each in publishers if each.type != kind]
        if not publishers:
            yield error(
                "sensor_topic",
                f"{name} is {topic}, which nobody publishes",
                "correct the name (ros2 topic list -t), or empty the parameter",
            )
        elif other:
            yield error(
                "sensor_type",
                f"{name} is {topic}, which is {other[0].type} by {other[0].node}, not {kind}",
                "name the topic of that type (ros2 topic list -t), or empty the parameter",
            )
        elif name in STEADY and not graph.sensor_messages.get(name):
            yield error(
                "sensor_silent",
                f"{topic} ({name}) has a publisher and sent nothing in {graph.seconds:.0f} s",
                "look at the log of its driver; ros2 topic hz " + topic,
            )
