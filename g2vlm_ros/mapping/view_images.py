# SPDX-License-Identifier: Apache-2.0
"""What the image of a view shows, whatever the network says of it: grey, corners, features.

Windows overlap, so that half of a window's views were in the one before; what was computed for
them, and the tracks between them, are kept for one window.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property

import cv2
import numpy as np

MIN_WIDTH_PX, WIDTH_PX = 160, 256
"""Views are tracked at the whole fraction of their width that is nearest to the second, and at
least at the first; patches need pixels."""
MAX_CORNERS, MIN_DISTANCE_PX, MIN_STRENGTH = 450, 5, 0.001
"""Corners of a view: how many at most, how far apart, and how strong against the strongest."""
FEATURE_WIDTH_PX = 224
"""Views are searched for features at this width, larger and smaller ones alike."""
MAX_FEATURES = 500
MIN_CONTRAST, MAX_EDGE = 0.005, 20.0
"""As OpenCV's SIFT scales them: weaker, and more edge-like, features than by default."""
Flow = tuple[np.ndarray, np.ndarray]
"""Pixels float32 (n, 2) of one view, and where another one shows the same."""


class ViewImage:
    """One view; grey, corners and features are computed when they are first asked for."""

    def __init__(self, image: np.ndarray):
        """image: uint8 (h, w, 3) RGB, or (h, w) grey."""
        self.shape = image.shape[:2]
        self._grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image

    @property
    def tracked_size(self) -> tuple[int, int]:
        """Columns and rows at which the view is tracked."""
        height, width = self.shape
        shrunk = max(1, round(width / WIDTH_PX))
        scale = max(1.0, MIN_WIDTH_PX / width) / shrunk
        return round(scale * width), round(scale * height)

    @cached_property
    def grey(self) -> np.ndarray:
        """uint8 at the tracked size."""
        return _resized(self._grey, self.tracked_size)

    @cached_property
    def corners(self) -> np.ndarray:
        """float32 (n, 2) pixels of `grey`, the strongest first."""
        corners = cv2.goodFeaturesToTrack(
            self.grey, MAX_CORNERS, MIN_STRENGTH, MIN_DISTANCE_PX, blockSize=5
        )
        return np.zeros((0, 2), np.float32) if corners is None else corners.reshape(-1, 2)

    @property
    def feature_size(self) -> tuple[int, int]:
        """Columns and rows at which the view is searched for features."""
        height, width = self.shape
        return FEATURE_WIDTH_PX, round(FEATURE_WIDTH_PX * height / width)

    def small_grey(self) -> np.ndarray:
        """uint8 at `feature_size`: all that the search for features takes."""
        return _resized(self._grey, self.feature_size)

    @cached_property
    def features(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixels float64 (n, 2) at `feature_size`, and descriptors float32 (n, 128) of length 1:
        SIFT (Lowe, IJCV 2004), square roots (Arandjelovic & Zisserman, CVPR 2012)."""
        sift = cv2.SIFT_create(
            nfeatures=MAX_FEATURES, contrastThreshold=MIN_CONTRAST, edgeThreshold=MAX_EDGE
        )
        keypoints, descriptor = sift.detectAndCompute(self.small_grey(), None)
        pixel = np.array([each.pt for each in keypoints]).reshape(-1, 2)
        if descriptor is None:
            descriptor = np.zeros((0, 128), np.float32)
        return pixel, np.sqrt(descriptor / np.maximum(descriptor.sum(1, keepdims=True), 1.0))


class ViewMemory:
    """Images and tracks of the last window's views, by what identifies a view."""

    def __init__(self) -> None:
        self._images: dict[Hashable, ViewImage] = {}
        self._flows: dict[tuple[Hashable, Hashable], Flow] = {}

    def images(self, colours: np.ndarray, keys: Sequence[Hashable]) -> list[ViewImage]:
        """One per view of colours uint8 (N, h, w, 3); without keys all are new."""
        if not keys:
            return [ViewImage(view) for view in colours]
        images = []
        for key, view in zip(keys, colours, strict=True):
            image = self._images.get(key)
            same = image is not None and image.shape == view.shape[:2]
            images.append(image if same else ViewImage(view))
        return images

    def flows(self, keys: Sequence[Hashable]) -> dict[tuple[int, int], Flow]:
        """Tracks between views that the window before had both, by their places in this one."""
        places = {key: place for place, key in enumerate(keys)}
        return {
            (places[i], places[j]): flow
            for (i, j), flow in self._flows.items()
            if i in places and j in places
        }

    def keep(
        self,
        keys: Sequence[Hashable],
        images: Sequence[ViewImage],
        flows: dict[tuple[int, int], Flow],
    ) -> None:
        """Remember this window instead of the one before; nothing changes without keys."""
        if keys:
            self._images = dict(zip(keys, images, strict=True))
            self._flows = {(keys[i], keys[j]): flow for (i, j), flow in flows.items()}

    def clear(self) -> None:
        """Forget all."""
        self._images.clear()
        self._flows.clear()


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape[1::-1] == size:
        return image
    smaller = image.shape[1] > size[0]
    method = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    return cv2.resize(image, size, interpolation=method)
