# SPDX-License-Identifier: Apache-2.0
"""Two nodes of one name in the graph: ROS allows them, and neither works as it should."""

from __future__ import annotations

import math
import time

from rclpy.node import Node

LEASE_S = 25.0
"""A node whose process was killed stays in the graph for Fast DDS's lease of 20 s: the one that
was started in its place has no rival."""


class NameClash:
    """Says in the node's log that another one has its name, once for as long as that lasts."""

    def __init__(self, node: Node):
        self._node = node
        self._since_s = math.inf
        self._said = False

    def check(self) -> None:
        """Look at the graph."""
        name = self._node.get_name(), self._node.get_namespace()
        if self._node.get_node_names_and_namespaces().count(name) < 2:
            self._since_s, self._said = math.inf, False
            return
        now_s = time.monotonic()
        self._since_s = min(self._since_s, now_s)
        if not self._said and now_s - self._since_s >= LEASE_S:
            self._said = True
            self._node.get_logger().error(
                f"another node is named {self._node.get_fully_qualified_name()}: each answers "
                "questions and requests meant for the other, and their topics mix; end one, or "
                "start it in another namespace"
            )
