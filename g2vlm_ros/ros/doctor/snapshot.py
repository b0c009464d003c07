# SPDX-License-Identifier: Apache-2.0
"""Graph: what the doctor saw of a running ROS graph. Collected by `observer.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

IMAGE_TYPES = {"raw": "sensor_msgs/msg/Image", "compressed": "sensor_msgs/msg/CompressedImage"}
SENSOR_TYPES = {
    "odometry_topic": "nav_msgs/msg/Odometry",
    "depth_topic": "sensor_msgs/msg/Image",
    "imu_topic": "sensor_msgs/msg/Imu",
    "mask_topic": "sensor_msgs/msg/Image",
    "query.detections_topic": "vision_msgs/msg/Detection2DArray",
}
"""Parameter that names a topic -> the type that the node subscribes to there."""


@dataclass(frozen=True)
class Endpoint:
    """A publisher or subscription of a topic."""

    node: str
    """Full name, "/front/usb_cam"."""
    type: str
    reliable: bool = True
    transient_local: bool = False


@dataclass
class ImageSamples:
    """Images and calibration of one camera that came while the doctor listened."""

    stamps_s: list[float] = field(default_factory=list)
    received_s: list[float] = field(default_factory=list)
    frame_ids: set[str] = field(default_factory=set)
    size: tuple[int, int] = (0, 0)
    bytes: int = 0
    info_size: tuple[int, int] | None = None
    distorted: bool = False
    refusals: set[str] = field(default_factory=set)
    """Why the node would drop some of them, in its own words."""

    def rate_hz(self) -> float:
        """Images per second by time of receipt; 0 below two images."""
        if len(self.received_s) < 2:
            return 0.0
        span = self.received_s[-1] - self.received_s[0]
        return (len(self.received_s) - 1) / span if span > 0 else 0.0


@dataclass
class Graph:
    """What the doctor saw of the graph."""

    node: str
    """Full name of the perception node, "/perception"."""
    nodes: list[str] = field(default_factory=list)
    """Full names of all nodes, twice where two have one name."""
    state: str = ""
    """Label of the lifecycle state; empty where the node did not say."""
    parameters: dict[str, Any] = field(default_factory=dict)
    publishers: dict[str, list[Endpoint]] = field(default_factory=dict)
    """Topic -> its publishers."""
    subscriptions: dict[str, list[Endpoint]] = field(default_factory=dict)
    cameras: dict[str, ImageSamples] = field(default_factory=dict)
    """Camera (as in the parameter) -> what it sent."""
    sensor_messages: dict[str, int] = field(default_factory=dict)
    """Parameter of SENSOR_TYPES -> messages that came; only where a publisher has the type."""
    parents: dict[str, set[str]] = field(default_factory=dict)
    """Child frame -> every parent that /tf or /tf_static gave it."""
    static_frames: set[str] = field(default_factory=set)
    """Child frames of /tf_static."""
    seconds: float = 0.0
    """How long was listened."""

    def topic(self, name: str) -> str:
        """A topic name as the node resolves it: relative ones in the node's namespace."""
        return name if name.startswith("/") else f"{self.node.rsplit('/', 1)[0]}/{name}"

    def image_topic(self, camera: str) -> str:
        compressed = self.parameters.get("image_transport") == "compressed"
        return self.topic(f"{camera}/image_raw{'/compressed' if compressed else ''}")

    def image_type(self) -> str:
        return IMAGE_TYPES[self.parameters.get("image_transport", "raw")]

    def configured_cameras(self) -> list[str]:
        return list(self.parameters.get("cameras", []))
