# SPDX-License-Identifier: Apache-2.0
"""True depth and poses with errors like a network's, in the network's place.

Judges everything behind the network on real pixels where there are no weights for them. Every
window comes in a unit and a frame of its own, as from the network.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields

import cv2
import numpy as np

from g2vlm_ros.datasets.sequence import SequenceError, SequenceFrame
from g2vlm_ros.geometry.camera import unproject
from g2vlm_ros.geometry.confidence import multi_view_confidence
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.images.preprocessing import PATCH_PX
from g2vlm_ros.records import RawGeometry, Reconstruction

WIDTH_PX = 252
"""Of the views, as a small network has them; a multiple of PATCH_PX."""
THUMBNAIL_PX = (16, 12)
"""Survives the compression of stored keyframes."""
FIELD_SHAPE = (4, 6)
"""Knots of the smooth error of a view's depth."""


def parse_numbers(record: type, text: str, option: str) -> dict[str, float]:
    """Fields of a dataclass by "name=number,..."; ValueError names `option` and what is wrong.

    A field takes the type of its default, 0 or more.
    """
    kinds = {field.name: type(field.default) for field in fields(record)}
    values: dict[str, float] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, word = entry.partition("=")
        try:
            value = kinds[name.strip()](word)
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{option} has {entry!r}; it takes NAME=NUMBER of {', '.join(kinds)}"
            ) from error
        if not 0 <= value < np.inf:
            raise ValueError(f"{option} has {entry!r}; it must be 0 or more")
        values[name.strip()] = value
    return values


@dataclass(frozen=True)
class StandInErrors:
    """Standard deviations of what is wrong, drawn anew for each view of each window.

    A draw depends on the seed and on which frames a window has, on nothing else: a network that is
    asked twice says the same, and what the pipeline asks besides redraws no window.
    """

    turn: float = 0.0
    """Degrees about each axis."""
    shift: float = 0.0
    """Of each coordinate of a camera's place, as a share of the window's median depth."""
    depth: float = 0.0
    """Relative: of a view's depth as a whole, and again of a smooth field over the view."""
    blur: float = 0.0
    """Pixels by which depth is blurred (Gauss), as over edges."""
    every: int = 1
    """Every n-th frame of the sequence is used."""
    seed: int = 0

    @classmethod
    def parse(cls, text: str) -> StandInErrors:
        """Of "turn=1,shift=0.015,depth=0.04"; ValueError names what is not understood."""
        values = parse_numbers(cls, text, "--stand-in")
        if values.get("every", 1) < 1:
            raise ValueError("--stand-in has every=0; it must be at least 1")
        return cls(**values)


class StandInPerception:
    """In place of `Perception`: knows every view by its looks, and what is true there."""

    backend = "stand-in: true geometry with errors"

    def __init__(
        self, frames: Sequence[SequenceFrame], errors: StandInErrors, width_px: int = WIDTH_PX
    ):
        if not frames or any(frame.depth_m is None for frame in frames):
            raise SequenceError(
                "the sequence has frames without depth, which the stand-in needs; evaluate a "
                "checkpoint on it, or name its depth topic"
            )
        self._errors = errors
        self._keys = [(frame.stamp_ns, frame.camera) for frame in frames]
        self._poses = np.stack([frame.world_from_camera for frame in frames])
        intrinsics = frames[0].intrinsics
        rows = max(1, round(width_px * intrinsics.height_px / intrinsics.width_px / PATCH_PX))
        self._size = width_px, rows * PATCH_PX
        self._cameras = [frame.intrinsics.resized(*self._size) for frame in frames]
        self._views, self.depths_m, small = [], [], []
        for frame in frames:
            image = frame.image()
            self._views.append(cv2.resize(image, self._size, interpolation=cv2.INTER_AREA))
            small.append(_thumbnail(image))
            depth_m = _filled(frame.depth_m(), self._size)
            if errors.blur:
                depth_m = cv2.GaussianBlur(depth_m, (0, 0), errors.blur)
            self.depths_m.append(depth_m)
        self._small = np.stack(small)
        rows, columns = np.mgrid[0 : self._size[1], 0 : self._size[0]]
        self._pixels = np.stack([columns, rows], -1)
        self.spent_s = 0.0
        """CPU seconds spent here, which are not the pipeline's."""

    def scene(self, images: Sequence[np.ndarray]) -> list[int]:
        """Which views these are."""
        start = time.process_time()
        differences = (np.abs(self._small - _thumbnail(image)).sum((1, 2, 3)) for image in images)
        numbers = [int(np.argmin(difference)) for difference in differences]
        self.spent_s += time.process_time() - start
        return numbers

    def reconstruct(self, numbers: Sequence[int]) -> Reconstruction:
        """Their geometry with errors, in a random unit and frame."""
        start = time.process_time()
        unit = self._window_unit(numbers)
        reach_m = float(np.median([np.median(self.depths_m[n]) for n in numbers]))
        local, poses = [], []
        for n, draw in zip(numbers, self._draws(numbers), strict=True):
            local.append(unproject(self._pixels, self._depth_m(n, draw), self._cameras[n]))
            poses.append(unit.apply_pose(self._pose(n, draw, reach_m)))
        local = (unit.scale * np.stack(local)).astype(np.float32)
        poses = np.stack(poses)
        nine = poses[:, :3, :3].reshape(-1, 9).astype(np.float32)
        raw = RawGeometry(local, poses.astype(np.float32), nine)
        cameras = tuple(self._cameras[n] for n in numbers)
        confidence = multi_view_confidence(raw.local_points_u, raw.window_from_camera, cameras)
        views = np.stack([self._views[n] for n in numbers])
        self.spent_s += time.process_time() - start
        return Reconstruction(raw, views, confidence, cameras, {})

    def _window_unit(self, numbers: Sequence[int]) -> Sim3:
        """The unit and frame in which a window comes."""
        rng = self._generator(sorted(self._keys[n] for n in numbers))
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        turn *= np.sign(np.linalg.det(turn))
        return Sim3(float(rng.uniform(0.3, 3)), turn, rng.normal(size=3))

    def _draws(self, numbers: Sequence[int]) -> list[_ViewDraw]:
        """Of each view; one that a window has twice errs in two ways."""
        window, repeats, draws = sorted(self._keys[n] for n in numbers), Counter(), []
        for n in numbers:
            draws.append(_ViewDraw.of(self._generator(window, self._keys[n], repeats[n])))
            repeats[n] += 1
        return draws

    def _generator(self, *identity: object) -> np.random.Generator:
        """A stream of its own for each seed and identity, whatever was drawn before."""
        digest = hashlib.sha256(repr((self._errors.seed, *identity)).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest, "little"))

    def _pose(self, number: int, draw: _ViewDraw, reach_m: float) -> np.ndarray:
        """world_from_camera with errors, in metres."""
        pose = self._poses[number].copy()
        turn = cv2.Rodrigues(draw.turn * np.radians(self._errors.turn))[0]
        pose[:3, :3] = pose[:3, :3] @ turn
        pose[:3, 3] += draw.shift * self._errors.shift * reach_m
        return pose

    def _depth_m(self, number: int, draw: _ViewDraw) -> np.ndarray:
        depth_m, share = self.depths_m[number], self._errors.depth
        if not share:
            return depth_m
        field = cv2.resize(draw.knots, self._size, interpolation=cv2.INTER_CUBIC)
        return np.maximum(depth_m * (1 + share * draw.depth) * (1 + share * field), 1e-3)


@dataclass(frozen=True)
class _ViewDraw:
    """Normal errors of a view in standard deviations."""

    turn: np.ndarray
    """(3,)"""
    shift: np.ndarray
    """(3,)"""
    depth: float
    """Of the view as a whole."""
    knots: np.ndarray
    """float32 FIELD_SHAPE"""

    @classmethod
    def of(cls, rng: np.random.Generator) -> _ViewDraw:
        """All are drawn, so that none changes with the size of another."""
        turn, shift, depth = rng.normal(size=3), rng.normal(size=3), float(rng.normal())
        return cls(turn, shift, depth, rng.normal(size=FIELD_SHAPE).astype(np.float32))


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """float32 (12, 16, 3)."""
    return cv2.resize(image, THUMBNAIL_PX, interpolation=cv2.INTER_AREA).astype(np.float32)


def _filled(depth_m: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float32 at a size (width, height); unknown pixels get the nearest known depth."""
    depth_m = cv2.resize(depth_m, size, interpolation=cv2.INTER_NEAREST_EXACT)
    hole = (depth_m <= 0).astype(np.uint8)
    if hole.all():
        raise SequenceError("a depth image knows no depth at all; leave its frame out")
    if hole.any():
        _, labels = cv2.distanceTransformWithLabels(
            hole, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
        )
        values = np.zeros(labels.max() + 1, np.float32)
        values[labels[hole == 0]] = depth_m[hole == 0]
        depth_m = values[labels]
    return depth_m
