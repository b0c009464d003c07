# SPDX-License-Identifier: Apache-2.0
"""Keyframes: views of the drive that are kept, small in memory, to know places again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import cv2
import numpy as np

from g2vlm_ros.geometry.registration import ViewSample
from g2vlm_ros.mapping.view_features import NO_FEATURES, ViewFeatures
from g2vlm_ros.records import Frame, Reconstruction

SAVED_MAP = 0
"""The window of all keyframes of a saved map, whose frame is the map's; windows count from 1."""
JPEG_QUALITY = 95
"""What the network sees of a keyframe must be what it saw of the view."""
THUMBNAIL_PX = (16, 12)
"""Width and height of the grey thumbnail that stands in for a descriptor."""
MIN_MOTION = 0.15
"""A keyframe differs from the last by this fraction of the median range..."""
MIN_TURN = np.deg2rad(15.0)
"""...or by this angle."""


@dataclass(frozen=True)
class Keyframe:
    """A view of a placed window that is kept."""

    window_id: int
    frame: Frame
    """Its image is decoded from a compressed copy."""
    sample: ViewSample
    """In the frame of its window."""
    window_from_camera: np.ndarray
    """float64 (4, 4): its rigid pose there."""
    descriptor: np.ndarray
    """float32 (C,) of length 1."""
    find_features: Callable[[], ViewFeatures] = lambda: NO_FEATURES
    """Gives `features`; it may search the view for them."""
    jpeg: bytes = b""
    """The view, as `frame` decodes it."""
    covariance: np.ndarray = field(default_factory=lambda: np.zeros((6, 6)))
    """float64 (6, 6) of its pose in the map when it was kept, as `WindowPose.covariance`."""
    order: int = 0
    """Its window's place in time: that of a saved map is below 0."""

    @property
    def features(self) -> ViewFeatures:
        """With their points in the optical frame, in the unit of the window."""
        return self.find_features()


class KeyframeStore:
    """At most `limit` keyframes, spread evenly over the windows since the start."""

    def __init__(self, limit: int):
        self._limit = limit
        self._keyframes: list[Keyframe] = []
        self._last_pose: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._keyframes)

    def is_new(self, map_from_camera: np.ndarray, reach: float) -> bool:
        """Whether a view at this pose (4, 4) shows something else than the last keyframe.

        reach: median range of the view in map units.
        """
        if self._last_pose is None:
            return True
        return pose_gap(map_from_camera, self._last_pose, MIN_MOTION * reach, MIN_TURN) > 1

    def __iter__(self) -> Iterator[Keyframe]:
        return iter(self._keyframes)

    def load(self, keyframes: Sequence[Keyframe]) -> int:
        """Those of a saved map in place of all others; how many are kept.

        Half of the room stays free: otherwise every new one would drop one of them.
        """
        self.clear()
        step = max(1, -(-2 * len(keyframes) // self._limit))
        self._keyframes = list(keyframes[::step])
        return len(self._keyframes)

    def add(self, keyframe: Keyframe, map_from_camera: np.ndarray) -> None:
        """Keep a view; the one whose neighbours are nearest in time makes room."""
        self._last_pose = map_from_camera
        self._keyframes.append(keyframe)
        if len(self._keyframes) > self._limit:
            orders = np.array([k.order for k in self._keyframes])
            self._keyframes.pop(1 + int(np.argmin(orders[2:] - orders[:-2])))

    @property
    def window_ids(self) -> list[int]:
        """Windows of the keyframes, oldest first."""
        return [k.window_id for k in self._keyframes]

    def up_to(self, window_id: int) -> list[Keyframe]:
        """Keyframes of windows up to an id."""
        return [k for k in self._keyframes if k.window_id <= window_id]

    def beside(self, keyframe: Keyframe) -> Keyframe | None:
        """The neighbour in time that looks most like a keyframe, or None."""
        at = next(i for i, k in enumerate(self._keyframes) if k is keyframe)
        near = self._keyframes[max(at - 1, 0) : at] + self._keyframes[at + 1 : at + 2]
        return max(near, key=lambda k: float(k.descriptor @ keyframe.descriptor), default=None)

    def forget(self, window_ids: Iterable[int]) -> None:
        """Drop the keyframes of windows that the map no longer holds."""
        ids = set(window_ids)
        self._keyframes = [k for k in self._keyframes if k.window_id not in ids]

    def clear(self) -> None:
        """Drop everything."""
        self._keyframes, self._last_pose = [], None


def pose_gap(a: np.ndarray, b: np.ndarray, motion: float, turn: float) -> float:
    """Distance of two poses (4, 4) over `motion` or angle over `turn` (rad), the larger."""
    cosine = (np.trace(a[:3, :3].T @ b[:3, :3]) - 1) / 2
    angle = np.arccos(np.clip(cosine, -1, 1))
    return float(max(np.linalg.norm(a[:3, 3] - b[:3, 3]) / motion, angle / turn))


def view_descriptor(result: Reconstruction, view: int) -> np.ndarray:
    """float32 (C,) of length 1, near where views look alike: the network's or a grey thumbnail."""
    if result.descriptors is not None:
        row = result.descriptors[view]
    else:
        grey = result.colours[view].mean(-1).astype(np.float32)
        row = cv2.resize(grey, THUMBNAIL_PX, interpolation=cv2.INTER_AREA).reshape(-1)
        row = row - row.mean()
    return (row / max(float(np.linalg.norm(row)), 1e-9)).astype(np.float32)


def compressed(image: np.ndarray, width_px: int) -> bytes:
    """A JPEG of an RGB image, at most `width_px` wide."""
    height, width = image.shape[:2]
    if width > width_px:
        size = (width_px, max(1, round(height * width_px / width)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    encoded, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not encoded:
        raise ValueError(f"an image of {width}x{height} cannot be compressed as JPEG")
    return data.tobytes()


def decoder(jpeg: bytes) -> Callable[[], np.ndarray]:
    """Gives the RGB image of a JPEG back later; ValueError then, where it is damaged."""
    return partial(_decompressed, jpeg)


def _decompressed(jpeg: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"a JPEG of {len(jpeg)} bytes cannot be decoded")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
