# SPDX-License-Identifier: Apache-2.0
"""What a view proves empty: which points its rays pass, seen as a depth image."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from g2vlm_ros.records import Intrinsics, frozen

RELATIVE_SLACK = 0.05
"""A surface must lie behind a point by this fraction of its depth to prove the point gone."""
TILES = 32
"""Across the image, for the quick sieve."""
TILES_AROUND = 3


@dataclass(frozen=True)
class DepthView:
    """One posed depth image; lengths in map units."""

    depth: np.ndarray
    """float32 (H, W): z in the optical frame; NaN or not above 0 where unknown."""
    confidence: np.ndarray
    """float32 (H, W): 0..1, NaN where unknown."""
    map_from_camera: np.ndarray
    """float64 (4, 4), rigid."""
    camera: Intrinsics
    """For the H x W image."""
    stamp_ns: int

    def __post_init__(self) -> None:
        size = (self.camera.height_px, self.camera.width_px)
        for name, shape, dtype in (
            ("depth", size, np.float32),
            ("confidence", size, np.float32),
            ("map_from_camera", (4, 4), np.float64),
        ):
            view = frozen(getattr(self, name), f"DepthView.{name}", shape, dtype)
            object.__setattr__(self, name, view)

    @property
    def origin(self) -> np.ndarray:
        """float64 (3,): the camera's place in the map."""
        return self.map_from_camera[:3, 3]

    def trusted_depth(self, min_confidence: float) -> np.ndarray:
        """float32 (H, W): the depth where it is known with confidence, else 0."""
        known = (self.depth > 0) & np.isfinite(self.depth) & (self.confidence >= min_confidence)
        return np.where(known, self.depth, np.float32(0))


class Sight:
    """Tests points against the free space of one view.

    A pixel proves only what lies in front of the nearest surface in its 3 x 3 neighbourhood, and
    nothing where one of these is unknown: depth edges and half-pixel errors remove nothing.
    """

    def __init__(self, view: DepthView, min_confidence: float, slack: float):
        """`slack`: map units a surface must lie behind a point, besides RELATIVE_SLACK."""
        self._view, self._slack = view, slack
        depth = view.trusted_depth(min_confidence)
        self._reach = float(depth.max(initial=0.0))
        camera = view.camera
        corner = np.hypot(camera.width_px / camera.fx_px, camera.height_px / camera.fy_px)
        self.range = self._reach * float(np.hypot(1.0, corner))
        """No ray goes farther (the principal point lies in the image)."""
        self._nearest = cv2.erode(
            depth, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0.0
        )
        self._tile = max(1, view.camera.width_px // TILES)
        self._farthest = _farthest_around(self._nearest, self._tile)

    def passes(self, points: np.ndarray) -> np.ndarray:
        """bool (n,): points (n, 3) that a ray passed on its way to a surface clearly behind."""
        x, y, z = self._in_camera(points)
        u, v, inside = self._pixels(x, y, z, 0)
        clear = z * np.float32(1 + RELATIVE_SLACK) + np.float32(self._slack)
        return inside & (self._nearest[v, u] > clear)

    def may_pass(self, centres: np.ndarray, radius: float) -> np.ndarray:
        """Indices of balls (n, 3) that may hold points that `passes`; a quick sieve for blocks.

        Far balls hidden behind everything around them in the image are left out.
        """
        x, y, z = self._in_camera(centres)
        near = np.flatnonzero((z > -radius) & (z < self._reach + radius))
        x, y, z = x[near], y[near], z[near]
        footprint = max(self._view.camera.fx_px, self._view.camera.fy_px) * radius
        footprint = footprint / np.maximum(z, np.float32(radius))
        u, v, inside = self._pixels(x, y, np.maximum(z, np.float32(radius)), footprint)
        open_view = self._farthest[v // self._tile, u // self._tile] > z - radius
        open_view |= footprint > TILES_AROUND * self._tile
        return near[inside & open_view]

    def _in_camera(self, points: np.ndarray) -> np.ndarray:
        """float32 (3, n): coordinates in the optical frame."""
        pose = self._view.map_from_camera
        local = points - pose[:3, 3].astype(points.dtype)
        return pose[:3, :3].T.astype(np.float32) @ local.T.astype(np.float32)

    def _pixels(
        self, x: np.ndarray, y: np.ndarray, z: np.ndarray, margin_px: np.ndarray | float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixel (u, v) clipped to the image, and whether it lay within a margin of it."""
        camera = self._view.camera
        with np.errstate(divide="ignore", invalid="ignore"):
            u = x / z * np.float32(camera.fx_px) + np.float32(camera.cx_px)
            v = y / z * np.float32(camera.fy_px) + np.float32(camera.cy_px)
        right, bottom = camera.width_px - 1, camera.height_px - 1
        inside = (z > 0) & (u >= -0.5 - margin_px) & (u <= right + 0.5 + margin_px)
        inside &= (v >= -0.5 - margin_px) & (v <= bottom + 0.5 + margin_px)
        u = np.where(inside, np.clip(np.rint(u), 0, right), 0).astype(np.intp)
        v = np.where(inside, np.clip(np.rint(v), 0, bottom), 0).astype(np.intp)
        return u, v, inside


def _farthest_around(depth: np.ndarray, tile: int) -> np.ndarray:
    """float32 (H / tile, W / tile), rounded up: the largest depth TILES_AROUND tiles around."""
    height, width = depth.shape
    padded = np.pad(depth, ((0, -height % tile), (0, -width % tile)))
    tiles = padded.reshape(padded.shape[0] // tile, tile, -1, tile).max((1, 3))
    side = 2 * TILES_AROUND + 1
    return cv2.dilate(tiles, np.ones((side, side), np.uint8))
