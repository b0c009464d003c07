# SPDX-License-Identifier: Apache-2.0
"""Depth images paired with the frames of their camera, whichever of the two comes first."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sensor_msgs.msg import Image

from g2vlm_ros.images.decoding import ImageError
from g2vlm_ros.mapping.scale_measurements import MAX_DEPTH_M
from g2vlm_ros.ros.conversions import geometry, images
from g2vlm_ros.ros.inputs.unmatched import UnmatchedFrames

Read = Callable[[], "np.ndarray | None"]
"""Decodes an image: float32 (height, width) metres, or None where it is not in metres."""
EARLY_IMAGES = 8
"""Depth images kept that no frame has asked for yet."""
WAITING_FRAMES = 64
LIKELY_DEPTH_M = 15.0
"""Median of a 16UC1 image up to which it is taken for millimetres without a word: depth cameras
see some 10 m, and tenths of a millimetre make 20 m of a room of 2 m."""


@dataclass(eq=False)
class _Wanted:
    """A frame that may get a depth image; it lives as long as the frame."""

    stamp_ns: int
    frame_id: str
    off_ns: float
    """By how much the stamps differ; before one came, the most they may."""
    read: Read | None = None

    def depth(self) -> np.ndarray | None:
        """float32 (height, width) metres, or None where none came or it is not in metres."""
        return None if self.read is None else self.read()

    def take(self, stamp_ns: int, frame_id: str, read: Read) -> None:
        off_ns = abs(stamp_ns - self.stamp_ns)
        if frame_id == self.frame_id and off_ns <= self.off_ns:
            self.off_ns, self.read = off_ns, read


class DepthImages:
    """Gives a frame the depth image of its frame_id (registered to it) nearest in time.

    Memory holds the images of frames that still exist, and a few that came before their frame.
    slop_s: most difference of the stamps. warn: gets one sentence about an image that is none.
    max_px: pixels of an image at most.
    """

    def __init__(self, slop_s: float, warn: Callable[[str], None], max_px: int):
        self._max_px = max_px
        self._slop_ns, self._warn = slop_s * 1e9, warn
        self._unmatched = UnmatchedFrames(warn)
        self._newest: tuple[int, str] | None = None
        self._last: _Wanted | None = None
        self._early: deque[tuple[int, str, Read]] = deque(maxlen=EARLY_IMAGES)
        self._requests: deque[weakref.ref[_Wanted]] = deque(maxlen=WAITING_FRAMES)

    def update(self, message: Image) -> None:
        """Take a depth image in."""
        try:
            read = images.depth_reader(message, self._max_px)
        except ImageError as error:
            self._warn(f"depth image of {message.header.frame_id!r} is not used: {error}")
            return
        stamp_ns, frame_id = geometry.stamp_ns(message.header.stamp), message.header.frame_id
        millimetres = message.encoding == "16UC1"
        image = (stamp_ns, frame_id, lambda: self._in_metres(read(), frame_id, millimetres))
        self._early.append(image)
        self._newest = image[:2]
        for request in filter(None, (each() for each in self._requests)):
            request.take(*image)

    def of(self, stamp_ns: int, frame_id: str) -> Read:
        """What `Frame.depth` of a frame is."""
        # A depth image may come after its frame: the frame before this one is looked at.
        before = self._last
        if before is not None:
            matched, frame = before.read is not None, (before.stamp_ns, before.frame_id)
            self._unmatched.note(matched, lambda: self._why_unmatched(*frame))
        request = _Wanted(stamp_ns, frame_id, self._slop_ns)
        for image in self._early:
            request.take(*image)
        self._requests.append(weakref.ref(request))
        self._last = request
        return request.depth

    def frames_waiting(self) -> int:
        """How many frames that may still get an image are remembered."""
        return sum(request() is not None for request in self._requests)

    def images_kept(self) -> int:
        """How many images are kept for frames that come after them."""
        return len(self._early)

    def _in_metres(
        self, depth_m: np.ndarray, frame_id: str, millimetres: bool
    ) -> np.ndarray | None:
        """The image, or None, with a warning, where its values can be no metres."""
        positive = depth_m[np.isfinite(depth_m) & (depth_m > 0)]
        median_m = float(np.median(positive)) if positive.size else 0.0
        if median_m > LIKELY_DEPTH_M and millimetres:
            self._warn(
                f"depth image of {frame_id!r} has a median of {median_m:.0f} m; 16UC1 must be in "
                "millimetres, is it in tenths of them? Convert it where it is"
            )
        if not positive.size:
            self._warn(
                f"depth image of {frame_id!r} has no pixel above 0 m: is the projector off, or "
                "all too near?"
            )
        if median_m <= MAX_DEPTH_M:
            return depth_m
        self._warn(
            f"depth image of {frame_id!r} is not used: its median is {median_m:.0f} m, more than "
            f"the {MAX_DEPTH_M:g} m that depth can be; 32FC1 must be in metres (REP-118), "
            "millimetres are 16UC1"
        )
        return None

    def _why_unmatched(self, stamp_ns: int, frame_id: str) -> str:
        if self._newest is None:
            return "no depth image comes; compare depth_topic with the topics that exist, and QoS"
        depth_ns, depth_frame = self._newest
        if depth_frame != frame_id:
            return (
                f"depth images match no frame: their frame_id is {depth_frame!r}, the camera's is "
                f"{frame_id!r}; depth must be registered to the camera and carry its frame_id"
            )
        return (
            f"depth images match no frame: their newest stamp is {depth_ns * 1e-9:.3f} s, the "
            f"frame's is {stamp_ns * 1e-9:.3f} s, and they may differ by window.sync_slop_s = "
            f"{self._slop_ns * 1e-9:g} s"
        )
