# SPDX-License-Identifier: Apache-2.0
"""Fixed transforms of /tf_static: where one part of the robot lies in another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tf2_msgs.msg import TFMessage

from g2vlm_ros.ros.conversions import geometry

MAX_DISTANCE_M = 1000.0
"""Between two parts of a robot; beyond it a transform is a mistake, and would end in the map."""
MAX_FRAMES = 10_000
"""Kept: a robot has some hundred, and names come from outside."""


class StaticTf:
    """The tree of fixed transforms heard so far; warn gets one sentence about a bad one."""

    def __init__(self, warn: Callable[[str], None]):
        self._warn = warn
        self._parents: dict[str, tuple[str, np.ndarray]] = {}

    def update(self, message: TFMessage) -> None:
        """Take transforms in."""
        for each in message.transforms:
            try:
                pose = geometry.transform_matrix(each.transform)
            except ValueError as error:
                self._warn(f"/tf_static of {each.child_frame_id!r} is not used: {error}")
                continue
            if not np.abs(pose[:3, 3]).max() <= MAX_DISTANCE_M:
                self._warn(
                    f"/tf_static of {each.child_frame_id!r} is not used: its translation is "
                    f"{pose[:3, 3].tolist()} m; it must be finite and at most "
                    f"{MAX_DISTANCE_M:g} m"
                )
                continue
            if len(self._parents) >= MAX_FRAMES and each.child_frame_id not in self._parents:
                self._warn(
                    f"/tf_static has more than {MAX_FRAMES} frames: those after are not kept"
                )
                return
            self._parents[each.child_frame_id] = (each.header.frame_id, pose)

    def between(self, target: str, source: str) -> np.ndarray | None:
        """target_from_source float64 (4, 4); None where no fixed transforms connect them."""
        (root, root_from_target), (other, root_from_source) = map(self._to_root, (target, source))
        if root != other:
            return None
        return np.linalg.inv(root_from_target) @ root_from_source

    def _to_root(self, frame: str) -> tuple[str, np.ndarray]:
        """The farthest ancestor, and root_from_frame (4, 4)."""
        pose, visited = np.eye(4), {frame}
        while frame in self._parents:
            frame, step = self._parents[frame]
            pose = step @ pose
            if frame in visited:
                break
            visited.add(frame)
        return frame, pose
