# SPDX-License-Identifier: Apache-2.0
"""/initialpose, as RViz sends it: where somebody says that the robot is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.node import Node

from g2vlm_ros.mapping.relocalisation import PlaceHint

CAMERA_REACH_M = 1.0
"""The pose is the robot's, and the camera sits somewhere on it..."""
DEVIATIONS = 3.0
"""...and so many of its deviations are allowed beside that."""
MAX_PLACE_M = 1e6
"""Of the map's origin; no map reaches so far, and squares of more would overflow."""
MAX_STD_M = 50.0
"""A covariance beyond that says nothing."""


class InitialPose:
    """Subscribes; `give_hint` gets what is sound, the log what is not."""

    def __init__(self, node: Node, map_frame: str, give_hint: Callable[[PlaceHint], None]):
        self._node, self._map_frame, self._give_hint = node, map_frame, give_hint
        self._subscription = node.create_subscription(
            PoseWithCovarianceStamped, "initialpose", self.update, 1
        )

    def close(self) -> None:
        """Stop listening."""
        self._node.destroy_subscription(self._subscription)

    def update(self, message: PoseWithCovarianceStamped) -> None:
        """Take a message in."""
        frame, point = message.header.frame_id, message.pose.pose.position
        position = np.array([point.x, point.y])
        covariance = np.asarray(message.pose.covariance, np.float64).reshape(6, 6)[:2, :2]
        log = self._node.get_logger()
        if frame != self._map_frame:
            log.warning(f"/initialpose is in frame {frame!r}; it must be in {self._map_frame!r}")
            return
        sound = (
            np.abs(position).max() <= MAX_PLACE_M and np.abs(covariance).max() <= MAX_PLACE_M**2
        )
        if not sound:  # as it is where a number is none
            log.warning(
                f"/initialpose is ignored: position {position.tolist()} and covariance must be "
                f"finite and within {MAX_PLACE_M:g} m"
            )
            return
        std_m = float(np.sqrt(max(np.linalg.eigvalsh((covariance + covariance.T) / 2)[-1], 0.0)))
        reach_m = CAMERA_REACH_M + DEVIATIONS * min(std_m, MAX_STD_M)
        self._give_hint(PlaceHint(position, reach_m))
        log.info(
            f"/initialpose: places within {reach_m:.1f} m of ({point.x:.1f}, {point.y:.1f}) are "
            "believed, the next time that the robot is looked for"
        )
