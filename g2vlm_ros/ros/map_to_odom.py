# SPDX-License-Identifier: Apache-2.0
"""map -> odom (REP-105): where the map has the frame that the robot's odometry counts in.

Others publish odom -> base, which drifts but never jumps; what the map corrects, a place found
again included, moves odom in the map instead of the robot in odom.
"""

from __future__ import annotations

import numpy as np
from geometry_msgs.msg import TransformStamped
from std_msgs.msg import Header

from g2vlm_ros.mapping.window_pose import MappedWindow
from g2vlm_ros.records import ScaleState, newest_view
from g2vlm_ros.ros.conversions import geometry


class MapToOdom:
    """Keeps the transform of the newest window; unknown while lost, and without metres."""

    def __init__(self, map_frame: str):
        self._map_frame = map_frame
        self._map_from_odom: np.ndarray | None = None

    def clear(self) -> None:
        """Nothing tells where odom lies."""
        self._map_from_odom = None

    def update(self, update: MappedWindow) -> None:
        """Take the newest trusted view that has odometry and a mount; without one nothing changes.

        Lengths of a map without metres cannot carry odometry's: then nothing is known.
        """
        frames = update.window.frames
        views = [i for i in update.trusted_views if frames[i].odom_from_camera is not None]
        if update.placement.scale.state is not ScaleState.METRIC:
            self.clear()
        elif views:
            newest = newest_view(frames, views)
            camera_from_odom = np.linalg.inv(frames[newest].odom_from_camera)
            self._map_from_odom = update.map_from_camera[newest] @ camera_from_odom

    def transform(self, odometry: Header) -> TransformStamped | None:
        """For the stamp and frame of a message of odometry, so that both parts of the way from
        the map to the robot are there at once; None while it is not known."""
        if self._map_from_odom is None or odometry.frame_id in ("", self._map_frame):
            return None
        header = Header(stamp=odometry.stamp, frame_id=self._map_frame)
        return geometry.transform_message(header, odometry.frame_id, self._map_from_odom)
