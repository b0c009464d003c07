# SPDX-License-Identifier: Apache-2.0
"""What a detector node sees: its recent vision_msgs/Detection2DArray, matched to the views."""

from __future__ import annotations

import heapq
import math
import threading
from collections import deque
from typing import Any, NamedTuple

from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data

from g2vlm_ros.query.context import ViewSelection
from g2vlm_ros.query.types import Detection
from g2vlm_ros.ros.conversions import geometry
from g2vlm_ros.ros.inputs.unmatched import UnmatchedFrames, printable

KEPT = 64
"""Messages kept: of two cameras at 10 Hz those of three seconds."""
MAX_GAP_NS = 50_000_000
"""A detection this far from a view's stamp is not of that view."""
MIN_GAP_NS = 10_000_000
"""Of two messages of one camera: what comes faster than any camera would push out the messages of
views that wait for their window."""
WARN_PERIOD_S = 30.0
"""Between two warnings: a detector that publishes only what it finds may be silent for a while."""
MAX_BOXES = 64
"""Boxes kept of a message, the surest: each is measured in the points, some 1 ms."""
MAX_LABEL = 128
"""Characters of a label that are kept."""


class DetectionBox(NamedTuple):
    """One labelled box in pixels of the camera image."""

    corners: tuple[float, float, float, float]
    label: str
    score: float


class Detections:
    """Listens to a detector's topic; without vision_msgs, or without a topic, it sees nothing."""

    def __init__(self, node: Node, topic: str):
        self._node, self._subscription = node, None
        self._messages: deque[tuple[str, int, list[DetectionBox]]] = deque(maxlen=KEPT)
        self._lock = threading.Lock()
        self._unmatched = UnmatchedFrames(self._warn)
        if not topic:
            return
        try:
            from vision_msgs.msg import Detection2DArray
        except ImportError:
            node.get_logger().error(
                f"query.detections_topic is '{topic}' but vision_msgs is not installed; install "
                "it, or leave the parameter empty"
            )
            return
        self._subscription = node.create_subscription(
            Detection2DArray, topic, self.receive, qos_profile_sensor_data
        )

    @property
    def listening(self) -> bool:
        """Whether there is a topic."""
        return self._subscription is not None

    def close(self) -> None:
        """Stop listening."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)

    def receive(self, message: Any) -> None:
        """Keep the MAX_BOXES surest boxes of a Detection2DArray; those without a label, a size or
        a finite place are left out. Messages with one stamp are one; a later one that follows by
        less than MIN_GAP_NS is left out."""
        camera, stamp_ns = message.header.frame_id, geometry.stamp_ns(message.header.stamp)
        boxes = boxes_of(message)
        with self._lock:
            last = next((each for each in reversed(self._messages) if each[0] == camera), None)
            gap_ns = MIN_GAP_NS if last is None else abs(stamp_ns - last[1])
            if gap_ns == 0:
                last[2][:] = _surest([*last[2], *boxes])
            elif gap_ns >= MIN_GAP_NS:
                self._messages.append((camera, stamp_ns, _surest(boxes)))

    def clear(self) -> None:
        """Forget what was seen."""
        with self._lock:
            self._messages.clear()

    def of(self, selection: ViewSelection) -> tuple[Detection, ...]:
        """The detections in the views of a selection, by camera frame and stamp."""
        return tuple(
            Detection(selection.region(view, box.corners), box.label, box.score)
            for view, frame in enumerate(selection.frames)
            for box in self.boxes(frame.stamp_ns, frame.frame_id)
        )

    def boxes(self, stamp_ns: int, frame_id: str) -> list[DetectionBox]:
        """What was detected in the image of a frame, at most MAX_GAP_NS from its stamp."""
        with self._lock:
            messages = [message for message in self._messages if message[0] == frame_id]
        nearest = min(messages, key=lambda message: abs(message[1] - stamp_ns), default=None)
        matched = nearest is not None and abs(nearest[1] - stamp_ns) <= MAX_GAP_NS
        if self.listening:
            self._unmatched.note(matched, lambda: self._why_unmatched(stamp_ns, frame_id))
        return list(nearest[2]) if matched else []

    def _why_unmatched(self, stamp_ns: int, frame_id: str) -> str:
        with self._lock:
            newest = self._messages[-1] if self._messages else None
        if newest is None:
            return (
                "no detections come; compare query.detections_topic with the topics that exist, "
                "and QoS"
            )
        return (
            f"detections match no view: the newest is of {newest[0]!r} at "
            f"{newest[1] * 1e-9:.3f} s, the view of {frame_id!r} at {stamp_ns * 1e-9:.3f} s; "
            f"frame_id must be the camera's, and stamps within {MAX_GAP_NS * 1e-9:g} s of its"
        )

    def _warn(self, sentence: str) -> None:
        self._node.get_logger().warning(printable(sentence), throttle_duration_sec=WARN_PERIOD_S)


def _surest(boxes: list[DetectionBox]) -> list[DetectionBox]:
    return heapq.nlargest(MAX_BOXES, boxes, key=lambda box: box.score)


def boxes_of(message: Any) -> list[DetectionBox]:
    """The boxes of a Detection2DArray with their best label, in either layout of vision_msgs."""
    detections = []
    for detection in message.detections:
        named = [_hypothesis(result) for result in detection.results]
        if not named:
            continue
        score, label = max(named)
        centre = detection.bbox.center
        centre = getattr(centre, "position", centre)
        half_u, half_v = detection.bbox.size_x / 2, detection.bbox.size_y / 2
        corners = (centre.x - half_u, centre.y - half_v, centre.x + half_u, centre.y + half_v)
        finite = all(map(math.isfinite, (*corners, score)))
        if label.strip() and half_u > 0 and half_v > 0 and finite:
            name = " ".join(label.split())[:MAX_LABEL]
            detections.append(DetectionBox(corners, name, min(max(score, 0.0), 1.0)))
    return detections


def _hypothesis(result: Any) -> tuple[float, str]:
    named = getattr(result, "hypothesis", result)
    return float(named.score), str(getattr(named, "class_id", getattr(named, "id", "")))
