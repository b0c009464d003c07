"""Views worth remembering: which of them look like the newest one, and whether two views overlap.

When the camera returns to a place, a keyframe of that place and the newest view go through the
network together once more; `view_overlap` then says whether they really show the same surfaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from g2vlm_ros.core.alignment import ViewSample
from g2vlm_ros.core.datatypes import Frame, Reconstruction
from g2vlm_ros.core.geometry import project

OVERLAP_POINTS = 600
AGREEMENT = 0.1
"""Relative depth difference up to which two views show the same surface."""
NEAR = 0.4
"""Relative depth difference up to which it may be the same surface, in another unit."""
LEAST_POINTS = 30
LOOP_OVERLAP = 0.15
"""Least share of a view that both sides of a loop must show."""
LEAST_ALIKE = 0.5
"""Least correlation of brightness between the two sides of a loop."""
JPEG_QUALITY = 95
THUMBNAIL_PX = (16, 12)
LEAST_MOTION, LEAST_TURN = 0.15, np.deg2rad(15.0)
"""A keyframe differs from the last by this fraction of the median range, or this angle."""


@dataclass(frozen=True)
class Keyframe:
    """A remembered view of a placed window."""

    window_id: int
    frame: Frame
    """Its image is decoded from a compressed copy."""
    sample: ViewSample
    """In the frame of its window."""
    descriptor: np.ndarray
    """float32 (C,) of length 1."""


class KeyframeStore:
    """At most `limit` keyframes, spread evenly over the windows since the start."""

    def __init__(self, limit: int):
        self._limit = limit
        self._kept: list[Keyframe] = []
        self._last: tuple[np.ndarray, float] | None = None

    def __len__(self) -> int:
        return len(self._kept)

    def is_new(self, map_from_camera: np.ndarray, reach: float) -> bool:
        """Whether a view at this pose (4, 4) shows something else than the last keyframe.

        reach: median range of the view in map units.
        """
        if self._last is None:
            return True
        last, _ = self._last
        moved = np.linalg.norm(map_from_camera[:3, 3] - last[:3, 3])
        cosine = (np.trace(map_from_camera[:3, :3].T @ last[:3, :3]) - 1) / 2
        return bool(moved > LEAST_MOTION * reach or cosine < np.cos(LEAST_TURN))

    def add(self, keyframe: Keyframe, map_from_camera: np.ndarray, reach: float) -> None:
        """Remember a view; the one whose neighbours are nearest in time makes room."""
        self._last = (map_from_camera, reach)
        self._kept.append(keyframe)
        if len(self._kept) > self._limit:
            ids = np.array([k.window_id for k in self._kept])
            self._kept.pop(1 + int(np.argmin(ids[2:] - ids[:-2])))

    def find(self, descriptor: np.ndarray, up_to_window: int) -> tuple[Keyframe, float] | None:
        """The most similar keyframe of windows up to an id, and its cosine similarity."""
        old = [k for k in self._kept if k.window_id <= up_to_window]
        old = [k for k in old if k.descriptor.shape == descriptor.shape]
        if not old:
            return None
        similarity = np.stack([k.descriptor for k in old]) @ descriptor
        best = int(similarity.argmax())
        return old[best], float(similarity[best])

    def beside(self, keyframe: Keyframe) -> Keyframe | None:
        """The neighbour in time that looks most like a keyframe, or None."""
        at = next(i for i, k in enumerate(self._kept) if k is keyframe)
        near = self._kept[max(at - 1, 0) : at] + self._kept[at + 1 : at + 2]
        return max(near, key=lambda k: float(k.descriptor @ keyframe.descriptor), default=None)

    def forget(self, window_ids: Iterable[int]) -> None:
        """Drop the keyframes of windows that the map no longer holds."""
        gone = set(window_ids)
        self._kept = [k for k in self._kept if k.window_id not in gone]

    def clear(self) -> None:
        """Drop everything."""
        self._kept, self._last = [], None


def unit_descriptors(result: Reconstruction) -> np.ndarray:
    """float32 (N, C) of length 1: the network's, or else thumbnails in grey."""
    if result.descriptors is not None:
        rows = result.descriptors
    else:
        grey = result.colours.mean(-1).astype(np.float32)
        small = [cv2.resize(g, THUMBNAIL_PX, interpolation=cv2.INTER_AREA) for g in grey]
        rows = np.stack(small).reshape(len(small), -1)
        rows = rows - rows.mean(1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.maximum(length, 1e-9)).astype(np.float32)


def compressed(image: np.ndarray, width_px: int) -> Callable[[], np.ndarray]:
    """Gives the RGB image back later, at most `width_px` wide, from a JPEG in memory."""
    height, width = image.shape[:2]
    if width > width_px:
        size = (width_px, max(1, round(height * width_px / width)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise ValueError(f"an image of {width}x{height} cannot be compressed as JPEG")
    return partial(_decompressed, data)


def _decompressed(data: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


@dataclass(frozen=True)
class Overlap:
    """How far the views of one window show the same things."""

    shared: np.ndarray
    """float64 (N, N): share of view i's points that lie on view j's surface; NaN where view j has
    no intrinsics."""
    alike: np.ndarray
    """float64 (N, N): correlation of brightness at those points; NaN where too few or flat."""
    stretch: np.ndarray
    """float64 (N, N): logarithm of the depth of view i's points over that of view j's surface;
    NaN where too few are near it."""

    def reachable(self, start: Sequence[int], least_shared: float) -> np.ndarray:
        """bool (N,): views that a chain of overlaps connects with `start`; unknown counts."""
        linked = ~(np.fmax(self.shared, self.shared.T) < least_shared)
        reached = np.zeros(len(linked), bool)
        reached[list(start)] = True
        for _ in range(len(linked)):
            reached = reached | linked[reached].any(0)
        return reached


def view_overlap(result: Reconstruction) -> Overlap:
    """Every view's points projected into every other view: depth and brightness compared."""
    views, height, width, _ = result.local_points_u.shape
    step = max(1, int(np.sqrt(height * width / OVERLAP_POINTS)))
    points = result.local_points_u[:, ::step, ::step].reshape(views, -1, 3)
    own = result.colours[:, ::step, ::step].mean(-1).reshape(views, -1)
    poses = result.window_from_camera.astype(np.float64)
    shared, alike, stretch = np.full((3, views, views), np.nan)
    for j, camera in enumerate(result.intrinsics):
        if camera is None:
            continue
        shared[j, j] = alike[j, j] = 1.0
        for i in set(range(views)) - {j}:
            other_from_own = np.linalg.inv(poses[j]) @ poses[i]
            moved = points[i] @ other_from_own[:3, :3].T + other_from_own[:3, 3]
            pixel = np.nan_to_num(project(moved, camera), nan=-1.0).round()
            inside = (pixel >= 0).all(1) & (pixel[:, 0] < width) & (pixel[:, 1] < height)
            column, row = np.where(inside[:, None], pixel, 0).astype(int).T
            surface = result.local_points_u[j, row, column, 2]
            off = np.log(np.maximum(moved[:, 2], 1e-9) / surface)
            same = inside & (np.abs(off) < AGREEMENT)
            near = off[inside & (np.abs(off) < NEAR)]
            stretch[i, j] = np.median(near) if len(near) >= LEAST_POINTS else np.nan
            shared[i, j] = same.mean()
            alike[i, j] = _correlation(own[i][same], result.colours[j, row, column][same].mean(-1))
    return Overlap(shared, alike, stretch)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < LEAST_POINTS or a.std() < 1 or b.std() < 1:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def loop_refusal(bridge: Reconstruction, old: int) -> str:
    """Why the old and the new views of a bridge do not show the same place, or ""."""
    overlap = view_overlap(bridge)
    shared = np.fmax(overlap.shared[:old, old:], overlap.shared[old:, :old].T)
    if not np.nanmax(shared, initial=0.0) >= LOOP_OVERLAP:
        return "no_overlap"
    best = np.unravel_index(np.nanargmax(shared), shared.shape)
    i, j = int(best[0]), old + int(best[1])
    alike = np.nanmax([overlap.alike[i, j], overlap.alike[j, i], -1.0])
    return "" if alike >= LEAST_ALIKE else "looks_different"
