# SPDX-License-Identifier: Apache-2.0
"""Views worth remembering: which of them show the newest one's place, and whether two overlap.

When the camera returns to a place, a keyframe of that place and the newest view go through the
network together once more; `measure_covisibility` then says whether they really show the same
surfaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from g2vlm_ros.geometry.camera import project
from g2vlm_ros.geometry.confidence import pinholes
from g2vlm_ros.geometry.registration import ViewSample
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.kernels import api
from g2vlm_ros.records import Frame, Reconstruction

OVERLAP_POINTS = 600
AGREEMENT = 0.1
"""Relative depth difference up to which two views show the same surface."""
NEAR = 0.4
"""Relative depth difference up to which it may be the same surface, in another unit."""
MIN_POINTS = 30
LOOP_EXPECTED, EXPECTED_EVERY = 0.3, 4
"""Least share of a keyframe's points that the map puts before a view's surfaces, for a loop to be
tried, and how many points stand for one that is counted."""
LOOP_MOTION, LOOP_TURN = 0.3, np.deg2rad(40.0)
"""Farthest such a keyframe may be, as a fraction of the view's median range and as an angle: the
demo checkpoint's bridges are mostly right within, mostly wrong beyond."""
LOOP_OVERLAP = 0.15
"""Least share of a view that both sides of a loop must show."""
MIN_ALIKE = 0.5
"""Least correlation of brightness between the two sides of a loop."""
JPEG_QUALITY = 95
THUMBNAIL_PX = (16, 12)
MIN_MOTION, MIN_TURN = 0.15, np.deg2rad(15.0)
"""A keyframe differs from the last by this fraction of the median range, or this angle."""


@dataclass(frozen=True)
class Keyframe:
    """A remembered view of a placed window."""

    window_id: int
    frame: Frame
    """Its image is decoded from a compressed copy."""
    sample: ViewSample
    """In the frame of its window."""
    window_from_camera: np.ndarray
    """float64 (4, 4): its rigid pose there."""
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
        return _apart(map_from_camera, last, MIN_MOTION * reach, MIN_TURN) > 1

    def add(self, keyframe: Keyframe, map_from_camera: np.ndarray, reach: float) -> None:
        """Remember a view; the one whose neighbours are nearest in time makes room."""
        self._last = (map_from_camera, reach)
        self._kept.append(keyframe)
        if len(self._kept) > self._limit:
            ids = np.array([k.window_id for k in self._kept])
            self._kept.pop(1 + int(np.argmin(ids[2:] - ids[:-2])))

    def up_to(self, window_id: int) -> list[Keyframe]:
        """Keyframes of windows up to an id."""
        return [k for k in self._kept if k.window_id <= window_id]

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


def by_appearance(
    keyframes: Sequence[Keyframe], descriptor: np.ndarray
) -> tuple[Keyframe, float] | None:
    """The keyframe most similar to a descriptor (C,) of length 1, and its cosine similarity."""
    known = [k for k in keyframes if k.descriptor.shape == descriptor.shape]
    if not known:
        return None
    similarity = np.stack([k.descriptor for k in known]) @ descriptor
    best = int(similarity.argmax())
    return known[best], float(similarity[best])


def by_pose(
    keyframes: Sequence[Keyframe],
    result: Reconstruction,
    view: int,
    placed: Callable[[int], Sim3 | None],
) -> Keyframe | None:
    """The keyframe nearest to a view by the map, of those that it expects to share LOOP_EXPECTED.

    placed: the view's window from an older one by its id; None where the map connects them not.
    None if none is within LOOP_MOTION and LOOP_TURN, beyond which networks join views badly.
    """
    pose = result.window_from_camera[view].astype(np.float64)
    motion = LOOP_MOTION * float(np.median(result.local_points_u[view, ::8, ::8, 2]))
    best, least = None, 1.0
    for each in keyframes if result.intrinsics[view] is not None else ():
        move = placed(each.window_id)
        if move is None:
            continue
        apart = _apart(move.apply_pose(each.window_from_camera), pose, motion, LOOP_TURN)
        if apart <= least:
            points = move.apply(each.sample.points_u[::EXPECTED_EVERY])
            _, _, off = _against(result, view, points)
            if (np.abs(off) < NEAR).mean() >= LOOP_EXPECTED:
                best, least = each, apart
    return best


def _apart(a: np.ndarray, b: np.ndarray, motion: float, turn: float) -> float:
    """Distance of two poses (4, 4) over `motion` or angle over `turn` (rad), the larger."""
    cosine = (np.trace(a[:3, :3].T @ b[:3, :3]) - 1) / 2
    angle = np.arccos(np.clip(cosine, -1, 1))
    return float(max(np.linalg.norm(a[:3, 3] - b[:3, 3]) / motion, angle / turn))


def normalised_descriptors(result: Reconstruction) -> np.ndarray:
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
class Covisibility:
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


def measure_covisibility(result: Reconstruction) -> Covisibility:
    """Every view's points projected into every other view: depth and brightness compared."""
    height, width = result.local_points_u.shape[1:3]
    step = max(1, int(np.sqrt(height * width / OVERLAP_POINTS)))
    return Covisibility(
        *api.covisibility(
            result.local_points_u,
            result.colours,
            result.window_from_camera,
            pinholes(result.intrinsics),
            step=step,
            agreement=AGREEMENT,
            nearness=NEAR,
            min_points=MIN_POINTS,
        )
    )


def _against(
    result: Reconstruction, view: int, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns (n,) where a view sees points (n, 3) of its window, and float64 (n,) the
    logarithm of their depth over that of its surface there; NaN outside the image."""
    height, width = result.local_points_u.shape[1:3]
    pose = result.window_from_camera[view].astype(np.float64)
    moved = (points - pose[:3, 3]) @ pose[:3, :3]
    pixel = np.nan_to_num(project(moved, result.intrinsics[view]), nan=-1.0).round()
    inside = (pixel >= 0).all(1) & (pixel[:, 0] < width) & (pixel[:, 1] < height)
    column, row = np.where(inside[:, None], pixel, 0).astype(int).T
    surface = result.local_points_u[view, row, column, 2]
    off = np.log(np.maximum(moved[:, 2], 1e-9) / surface)
    return row, column, np.where(inside, off, np.nan)


def loop_refusal(bridge: Reconstruction, old: int) -> str:
    """Why the old and the new views of a bridge do not show the same place, or ""."""
    overlap = measure_covisibility(bridge)
    shared = np.fmax(overlap.shared[:old, old:], overlap.shared[old:, :old].T)
    if not np.nanmax(shared, initial=0.0) >= LOOP_OVERLAP:
        return "no_overlap"
    best = np.unravel_index(np.nanargmax(shared), shared.shape)
    i, j = int(best[0]), old + int(best[1])
    alike = np.nanmax([overlap.alike[i, j], overlap.alike[j, i], -1.0])
    return "" if alike >= MIN_ALIKE else "looks_different"
