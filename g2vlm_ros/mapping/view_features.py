# SPDX-License-Identifier: Apache-2.0
"""Features of a view with the points that they show, and which of two views' are the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from g2vlm_ros.mapping.ignored_pixels import BelievedPoints
from g2vlm_ros.mapping.view_images import ViewImage
from g2vlm_ros.records import Intrinsics

RATIO = 0.8
"""A match is this much nearer than the second nearest feature."""
DESCRIPTOR_SIZE = 128


@dataclass(frozen=True)
class ViewFeatures:
    """n features of one view."""

    pixel: np.ndarray
    """float64 (n, 2) at the feature size."""
    descriptor: np.ndarray
    """float32 (n, 128) of length 1."""
    point_u: np.ndarray
    """float64 (n, 3) in the optical frame."""
    matrix: np.ndarray | None
    """K (3, 3) of the camera at the feature size; None where no pinhole fits."""

    def __len__(self) -> int:
        return len(self.pixel)


NO_FEATURES = ViewFeatures(
    np.zeros((0, 2)), np.zeros((0, DESCRIPTOR_SIZE), np.float32), np.zeros((0, 3)), None
)


def view_features(
    image: ViewImage, points: np.ndarray | BelievedPoints, camera: Intrinsics | None
) -> ViewFeatures:
    """Features of a view with its points float32 (H, W, 3); those without a point are left out."""
    pixel, descriptor = image.features
    (height, width), size = image.shape, image.feature_size
    at = ((pixel + 0.5) * (width / size[0], height / size[1])).astype(int)
    at = np.clip(at, 0, (width - 1, height - 1))
    point = points[at[:, 1], at[:, 0]].astype(np.float64)
    has_point = np.isfinite(point).all(1)
    matrix = camera and camera.resized(*size).matrix()
    return ViewFeatures(pixel[has_point], descriptor[has_point], point[has_point], matrix)


class FeatureSearch:
    """The search of one view for features, done when they are first asked for.

    Most keyframes are never compared with anything, and a search costs more than all else that is
    done with them. Until then the view is kept as small as the search takes it, which needs no
    more memory than its features.
    """

    def __init__(self, image: ViewImage, points: np.ndarray, camera: Intrinsics | None):
        """points: float16 (rows, columns, 3) of `ViewImage.feature_size`, optical frame: good to
        a thousandth."""
        self._view = image.small_grey(), points, camera
        self._features = NO_FEATURES

    def __call__(self) -> ViewFeatures:
        """The features (any thread)."""
        view = self._view
        if view is not None:
            grey, points, camera = view
            self._features = view_features(ViewImage(grey), points, camera)
            self._view = None
        return self._features


def match_features(source: ViewFeatures, target: ViewFeatures) -> np.ndarray:
    """int64 (m, 2): indices of features that are each other's nearest, and clearly so."""
    if min(len(source), len(target)) < 2:
        return np.zeros((0, 2), np.int64)
    alike = source.descriptor @ target.descriptor.T
    best = alike.argmax(1)
    first, second = -np.partition(-alike, 1, axis=1)[:, :2].T
    mutual = alike.argmax(0)[best] == np.arange(len(best))
    matched_rows = np.flatnonzero(mutual & (1 - first < RATIO**2 * (1 - second)))
    return np.stack([matched_rows, best[matched_rows]], axis=1)
