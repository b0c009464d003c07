# SPDX-License-Identifier: Apache-2.0
"""A client's ear for `~/query/picture`, which finds the picture of its own answer."""

from __future__ import annotations

import threading
import time
from collections import deque

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image

from g2vlm_ros.ros.client.errors import PictureMissedError, UnreachableError
from g2vlm_ros.ros.conversions import geometry
from g2vlm_ros.srv import SpatialQuery

PICTURES = 8
"""Of answers that are kept while one's own is waited for."""
PICTURE_S = 15.0
"""How long a picture may take after its answer: large ones are cut into many datagrams."""
SAME_INSTANT_NS = 500
"""An answer's instant comes as a float of its age, a picture's in whole nanoseconds."""


class AnswerImages:
    """The newest pictures of answers, whoever asked, from its making on; `close` when done."""

    def __init__(self, node: Node, topic: str, discovery_s: float):
        """discovery_s: how long to look for a publisher before UnreachableError."""
        self._node = node
        self._received: deque[Image] = deque(maxlen=PICTURES)
        self._arrival = threading.Condition()
        qos = QoSProfile(depth=PICTURES, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._subscription = node.create_subscription(Image, topic, self.keep, qos)
        deadline = time.monotonic() + discovery_s
        while not node.count_publishers(topic):
            if time.monotonic() > deadline:
                self.close()
                raise UnreachableError(f"{topic} is not offered; start the perception node")
            time.sleep(0.02)

    def of(self, answer: SpatialQuery.Response, timeout_s: float = PICTURE_S) -> Image:
        """The picture of an answer: the one stamped with its instant.

        PictureMissedError as soon as the picture of a later answer is there instead: the node
        keeps the newest only for a listener that it has not found yet.
        """
        instant_ns = geometry.stamp_ns(answer.stamp) + round(answer.age_s * 1e9)

        def own() -> Image | None:
            return next((p for p in self._received if _after_ns(p, instant_ns) == 0), None)

        def missed() -> bool:
            return any(_after_ns(p, instant_ns) > 0 for p in self._received)

        with self._arrival:
            self._arrival.wait_for(lambda: own() or missed(), timeout_s)
            picture = own()
        if picture is None:
            raise PictureMissedError(
                "the picture of the answer did not come: others were asked about meanwhile; ask "
                "again"
            )
        return picture

    def close(self) -> None:
        """Stop listening."""
        self._node.destroy_subscription(self._subscription)

    def keep(self, picture: Image) -> None:
        """A picture came; the oldest goes where PICTURES are kept."""
        with self._arrival:
            self._received.append(picture)
            self._arrival.notify_all()


def _after_ns(picture: Image, instant_ns: int) -> int:
    """By how much a picture is of a later answer; 0 for the answer of that instant."""
    after_ns = geometry.stamp_ns(picture.header.stamp) - instant_ns
    return 0 if abs(after_ns) <= SAME_INSTANT_NS else after_ns
