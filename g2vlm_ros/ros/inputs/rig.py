# SPDX-License-Identifier: Apache-2.0
"""Where the cameras of a robot sit, relative to the first one, by /tf_static."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from g2vlm_ros.ros.inputs.static_tf import StaticTf
from g2vlm_ros.ros.inputs.unmatched import UnmatchedFrames


class RigMounts:
    """Fixed poses of several cameras; warn gets one sentence where there is none."""

    def __init__(self, leader: str, frames: StaticTf, warn: Callable[[str], None]):
        """leader: the camera in whose frame the others lie."""
        self._leader, self._frames = leader, frames
        self._unmatched = UnmatchedFrames(warn)
        self._leader_frame = ""

    def mount(self, camera: str, frame_id: str) -> np.ndarray | None:
        """Pose of a camera in the optical frame of the first one, float64 (4, 4) metres.

        None before the first one's first image, and where no fixed transforms connect the two.
        """
        if camera == self._leader:
            self._leader_frame = frame_id
        if not self._leader_frame:
            return None
        pose = self._frames.between(self._leader_frame, frame_id)
        if camera != self._leader:
            self._unmatched.note(pose is not None, lambda: self._why_unmatched(camera, frame_id))
        return pose

    def _why_unmatched(self, camera: str, frame_id: str) -> str:
        return (
            f"no fixed transform between camera frames {self._leader_frame!r} and {frame_id!r} "
            f"({camera}): their views are not held together; publish it on /tf_static"
        )
