# SPDX-License-Identifier: Apache-2.0
"""Two nodes of one name in the graph: ROS allows them, and neither works as it should."""

from __future__ import annotations

from rclpy.node import Node


class NameClash:
    """Says in the node's log that another one has its name, once for as long as that lasts."""

    def __init__(self, node: Node):
        self._node = node
        self._said = False

    def check(self) -> None:
        """Look at the graph."""
        name = self._node.get_name(), self._node.get_namespace()
        clash = self._node.get_node_names_and_namespaces().count(name) > 1
        if clash and not self._said:
            self._node.get_logger().error(
                f"another node is named {self._node.get_fully_qualified_name()}: each answers "
                "questions and requests meant for the other, and their topics mix; end one, or "
                "start it in another namespace"
            )
        self._said = clash
