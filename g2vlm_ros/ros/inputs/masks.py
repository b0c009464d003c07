# SPDX-License-Identifier: Apache-2.0
"""Masks of what moves, by another node, matched to the frames of their camera."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
from sensor_msgs.msg import Image

from g2vlm_ros.ros.conversions import geometry
from g2vlm_ros.ros.inputs.unmatched import UnmatchedFrames

KEPT = 32
"""Masks kept: three seconds of a camera at 10 Hz."""
ENCODINGS = ("mono8", "8UC1")


class MaskImages:
    """Gives a frame the mask of its frame_id nearest in time; non-zero pixels are ignored.

    A segmenter is slower than its camera: the mask is looked up when a window needs it.
    slop_s: most difference of the stamps. warn: gets one sentence about what is amiss. max_px:
    pixels of a mask at most.
    """

    def __init__(self, slop_s: float, warn: Callable[[str], None], max_px: int):
        self._max_px = max_px
        self._slop_ns, self._warn = slop_s * 1e9, warn
        self._unmatched = UnmatchedFrames(warn)
        self._masks: deque[tuple[int, str, np.ndarray]] = deque(maxlen=KEPT)
        self._requests: deque[tuple[int, str]] = deque(maxlen=2)

    def update(self, message: Image) -> None:
        """Take a mask in: sensor_msgs/Image mono8 of any size with the frame's aspect."""
        shape = message.height, message.step
        fits = 0 < message.width <= message.step and shape[0] * shape[1] <= len(message.data)
        fits &= 0 < message.width * message.height <= self._max_px
        if message.encoding not in ENCODINGS or not fits:
            self._warn(
                f"a mask is {message.encoding!r}, {message.width}x{message.height} in "
                f"{len(message.data)} bytes, and is not used; it must be a mono8 image of at most "
                f"{self._max_px} pixels (max_image_px)"
            )
            return
        pixels = np.frombuffer(message.data, np.uint8, shape[0] * shape[1]).reshape(shape)
        mask = pixels[:, : message.width] != 0
        stamp_ns = geometry.stamp_ns(message.header.stamp)
        self._masks.append((stamp_ns, message.header.frame_id, mask))

    def of(self, stamp_ns: int, frame_id: str) -> Callable[[], np.ndarray | None]:
        """What `Frame.ignored` of a frame is."""
        if len(self._requests) == self._requests.maxlen:
            # The mask of a frame comes after it: the frame before the last is looked at.
            earlier = self._requests[0]
            matched = self._nearest(*earlier) is not None
            self._unmatched.note(matched, lambda: self._why_unmatched(*earlier))
        self._requests.append((stamp_ns, frame_id))
        return lambda: self._nearest(stamp_ns, frame_id)

    def _nearest(self, stamp_ns: int, frame_id: str) -> np.ndarray | None:
        masks = [m for m in list(self._masks) if m[1] == frame_id]
        nearest = min(masks, key=lambda m: abs(m[0] - stamp_ns), default=None)
        if nearest is None or abs(nearest[0] - stamp_ns) > self._slop_ns:
            return None
        return nearest[2]

    def _why_unmatched(self, stamp_ns: int, frame_id: str) -> str:
        if not self._masks:
            return "no mask comes; compare mask_topic with the topics that exist, and QoS"
        mask_ns, mask_frame, _ = self._masks[-1]
        return (
            f"masks match no frame: the newest is of {mask_frame!r} at {mask_ns * 1e-9:.3f} s, "
            f"the frame of {frame_id!r} at {stamp_ns * 1e-9:.3f} s; frame_id must be the same, "
            f"stamps within window.sync_slop_s = {self._slop_ns * 1e-9:g} s"
        )
