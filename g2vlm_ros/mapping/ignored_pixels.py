# SPDX-License-Identifier: Apache-2.0
"""Pixels that somebody says to ignore, people above all: nothing is believed of them.

They are not valid and their confidence is 0, so that they neither enter clouds, map and occupancy
nor carve rays, join windows, close loops, refine poses, or are followed between windows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import cv2
import numpy as np

from g2vlm_ros.kernels.agreement import pick_halves, pick_points
from g2vlm_ros.kernels.checks import nearest_pixels
from g2vlm_ros.kernels.device_maps import DeviceConfidence
from g2vlm_ros.records import Frame, Reconstruction


def with_ignored(result: Reconstruction, frames: Sequence[Frame]) -> Reconstruction:
    """The window with what the masks of its frames say, and confidence 0 there; the same object
    where there is no mask. Masks have any size; a pixel of the window counts as set where any of
    its share is."""
    masks = [None if frame.ignored is None else frame.ignored() for frame in frames]
    if all(mask is None for mask in masks):
        return result
    ignored = np.zeros(result.confidence.shape, bool)
    for view, mask in enumerate(masks):
        if mask is not None:
            ignored[view] = resized_mask(mask, ignored.shape[:0:-1])
    return distrusted(replace(result, ignored=ignored))


def distrusted(result: Reconstruction) -> Reconstruction:
    """The window with confidence 0 at its ignored pixels."""
    if result.ignored is None:
        return result
    confidence = result.confidence
    if isinstance(confidence, DeviceConfidence):
        return replace(result, confidence=confidence.without(result.ignored))
    return replace(result, confidence=np.where(result.ignored, np.float32(0.0), confidence))


class BelievedPoints:
    """The points of one view of a window in its optical frame, NaN at ignored pixels."""

    def __init__(self, result: Reconstruction, view: int):
        self._points, self._view = result.local_points_u, view
        self._ignored = None if result.ignored is None else result.ignored[view]

    def __getitem__(self, pixels: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """float32 (n, 3): at int rows (n,) and columns (n,)."""
        return self._believed(self._points[(self._view, *pixels)], pixels)

    def at_size(self, size: tuple[int, int]) -> np.ndarray:
        """float32 (rows, columns, 3): those nearest to the pixels of a size (columns, rows)."""
        points = pick_points(self._points, size[1], size[0], [self._view])[0]
        return self._believed(points, self._nearest(size))

    def halves_at_size(self, size: tuple[int, int]) -> np.ndarray:
        """The same as float16, cut off at the largest of these."""
        points = pick_halves(self._points, size[1], size[0], self._view)
        return self._believed(points, self._nearest(size))

    def _nearest(self, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
        height, width = self._points.shape[1:3]
        return np.ix_(nearest_pixels(size[1], height), nearest_pixels(size[0], width))

    def _believed(self, points: np.ndarray, pixels: tuple[np.ndarray, ...]) -> np.ndarray:
        if self._ignored is None:
            return points
        nowhere = points.dtype.type(np.nan)
        return np.where(self._ignored[pixels][..., None], nowhere, points)


def united(parts: Sequence[Callable[[], np.ndarray | None]]) -> np.ndarray | None:
    """What any of several masks of an image says, each of its own size; None where there is
    none."""
    masks = [mask for part in parts if (mask := part()) is not None]
    if not masks:
        return None
    size = max(mask.shape[::-1] for mask in masks)
    return np.logical_or.reduce([resized_mask(mask, size) for mask in masks])


def resized_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool at a size (columns, rows): whether a pixel's share of a mask (h, w) is set anywhere."""
    if mask.shape[::-1] == size:
        return mask
    share = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return share > 0
