# SPDX-License-Identifier: Apache-2.0
"""Where a target frame lies in the map: the map itself, cameras of a window, and what tf knows.

tf2_ros is used where it is installed; without it only the first two are served.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rclpy.node import Node
from rclpy.time import Time

from g2vlm_ros.records import Frame, newest_view
from g2vlm_ros.ros.conversions import geometry


class TfLookupError(LookupError):
    """A frame cannot be reached from the map; one sentence with the remedy."""


class TfLookup:
    """Transforms from the map frame."""

    def __init__(self, node: Node, map_frame: str):
        self.map_frame = map_frame
        self._buffer = self._listener = None
        try:
            from tf2_ros import Buffer, TransformListener
        except ImportError:
            return
        self._buffer = Buffer(node=node)
        self._listener = TransformListener(self._buffer, node)

    def close(self) -> None:
        """Stop listening to tf."""
        if self._listener is not None:
            self._listener.unregister()

    def target_from_map(
        self, target: str, frames: Sequence[Frame], map_from_camera: np.ndarray, stamp_ns: int
    ) -> np.ndarray:
        """float64 (4, 4); `frames` are the views, posed by map_from_camera (N, 4, 4).

        A camera's frame is that of its newest view. Raises FrameError.
        """
        if target in ("", self.map_frame):
            return np.eye(4)
        views = [i for i, frame in enumerate(frames) if frame.frame_id == target]
        if views:
            newest = newest_view(frames, views)
            return np.linalg.inv(map_from_camera[newest])
        frame_ids = ", ".join(
            sorted({self.map_frame, *(frame.frame_id for frame in frames)} - {""})
        )
        if self._buffer is None:
            raise TfLookupError(
                f"target_frame '{target}' is none of {frame_ids}, and tf2_ros is not installed "
                "here; ask in one of these frames"
            )
        try:
            stamped = self._buffer.lookup_transform(
                target, self.map_frame, Time.from_msg(geometry.stamp(stamp_ns))
            )
        except Exception as error:  # tf2's exceptions share no base that Python sees everywhere
            raise TfLookupError(
                f"no transform from '{self.map_frame}' to target_frame '{target}' at the stamp of "
                f"the window ({error}); publish it on /tf or ask in one of {frame_ids}"
            ) from error
        return geometry.transform_matrix(stamped.transform)
