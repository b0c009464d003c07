# SPDX-License-Identifier: Apache-2.0
"""`~/query/picture`: what the last answer rests on, drawn for whoever looks."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import Image

from g2vlm_ros.query import answer_image
from g2vlm_ros.query.context import ViewSelection
from g2vlm_ros.query.types import Result
from g2vlm_ros.ros.conversions import geometry, images
from g2vlm_ros.ros.publishers import LATCHED

LOOK_S = 0.2
"""How often it is asked whether somebody has come who looks."""
APART_NS = 1000
"""Between two answers at one instant: a float of seconds still tells them apart."""


class AnswerImagePublisher:
    """The topic with the newest answer's picture: drawn only once somebody subscribes to it.

    A picture is stamped with the instant of its answer, which no two answers share: an asker
    finds its own by `stamp + age_s` of the response.
    """

    def __init__(self, node: LifecycleNode):
        self._node = node
        self._publisher = node.create_lifecycle_publisher(Image, "~/query/picture", LATCHED)
        self._timer = node.create_timer(LOOK_S, self._draw_if_seen)
        self._undrawn: tuple[int, Callable[[], np.ndarray], str] | None = None
        self.pictures_drawn = 0
        """How many pictures were drawn."""
        self._last_ns = 0
        self._lock = threading.Lock()

    def stamp_ns(self) -> int:
        """Now, or just after the last answer where the clock has not moved since."""
        now_ns = self._node.get_clock().now().nanoseconds
        if 0 <= self._last_ns - now_ns < 1_000_000:
            now_ns = self._last_ns + APART_NS
        self._last_ns = now_ns
        return now_ns

    def show(
        self, answered_ns: int, question: str, result: Result, selection: ViewSelection
    ) -> None:
        """Keep an answer in place of the last one; draw it now if somebody looks."""
        frame = selection.frames[answer_image.views_of(result, selection.points.viewer)[0]]
        with self._lock:
            self._undrawn = (
                answered_ns,
                lambda: picture(question, result, selection),
                frame.frame_id,
            )
        self._draw_if_seen()

    def seen(self) -> bool:
        """Whether somebody subscribes."""
        return self._publisher.get_subscription_count() > 0

    def forget(self) -> None:
        """Let the answer go that was not drawn yet."""
        with self._lock:
            self._undrawn = None

    def close(self) -> None:
        """Take the topic away."""
        self._node.destroy_timer(self._timer)
        self._node.destroy_publisher(self._publisher)
        self.forget()

    def _draw_if_seen(self) -> None:
        with self._lock:
            if self._undrawn is None or not self._publisher.get_subscription_count():
                return
            answered_ns, draw, frame_id = self._undrawn
            self._undrawn = None
            header = geometry.header(answered_ns, frame_id)
            message = images.rgb_image(header, draw())
            self.pictures_drawn += 1
            self._publisher.publish(message)


def picture(question: str, result: Result, selection: ViewSelection) -> np.ndarray:
    """uint8 (h, w, 3) RGB: the views that show what an answer rests on, and its words."""
    views = answer_image.views_of(result, selection.points.viewer)
    panels = []
    for view in views:
        marks = answer_image.marks_of(result, view, selection.corners)
        panels.append((selection.image(view), marks))
    lines = answer_image.lines_of(question, result, selection.points.metric)
    return answer_image.draw(panels, lines)
