# SPDX-License-Identifier: Apache-2.0
"""How the camera turned between two views, from features that both show; needs no guess to start.

Features are matched by their descriptors (`view_images`), then the pose comes from points and
pixels by RANSAC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from g2vlm_ros.mapping.view_images import ViewImage
from g2vlm_ros.records import Intrinsics, Reconstruction

RATIO = 0.8
"""A match is this much nearer than the second nearest feature."""
REACH_PX = 4.0
"""How far a pose may put a point from its match."""
MIN_INLIERS = 12
APART = np.cos(np.deg2rad(5.0))
"""A pose whose turn differs by less is left as it is: tracks are finer than features."""


@dataclass(frozen=True)
class _Features:
    """n features of one view."""

    pixel: np.ndarray
    """float64 (n, 2) at the feature size."""
    descriptor: np.ndarray
    """float32 (n, 128) of length 1."""
    point_u: np.ndarray
    """float64 (n, 3) in the optical frame."""
    matrix: np.ndarray | None
    """K of the camera at the feature size."""


def matched_poses(
    result: Reconstruction, images: Sequence[ViewImage], poses: np.ndarray
) -> np.ndarray:
    """Poses (N, 4, 4) whose turns agree with the features of each view and an earlier one.

    Where a view turned otherwise than its pose says, it and all later views turn with it; where
    the camera was, as the earlier view sees it, stays: features tell that less well. The same
    array where none did.
    """
    views = [
        _features(*view)
        for view in zip(images, result.local_points_u, result.intrinsics, strict=True)
    ]
    for j in range(1, len(poses)):
        i, turn = _turn_to_earlier(views, j)
        if turn is None:
            continue
        relative = np.linalg.inv(poses[i]) @ poses[j]
        if (np.trace(relative[:3, :3].T @ turn) - 1) / 2 < APART:
            relative[:3, :3] = turn
            moved = poses[i] @ relative @ np.linalg.inv(poses[j])
            poses = np.concatenate([poses[:j], moved @ poses[j:]])
    return poses


def _turn_to_earlier(views: Sequence[_Features], j: int) -> tuple[int, np.ndarray | None]:
    """The latest earlier view i that shares enough with view j, and the turn (3, 3) i_from_j."""
    for i in reversed(range(j)):
        turn = _turn(views[i], views[j])
        if turn is not None:
            return i, turn.T
    return 0, None


def _features(image: ViewImage, points: np.ndarray, camera: Intrinsics | None) -> _Features:
    pixel, descriptor = image.features
    (height, width), size = image.shape, image.feature_size
    at = ((pixel + 0.5) * (width / size[0], height / size[1])).astype(int)
    at = np.clip(at, 0, (width - 1, height - 1))
    point = points[at[:, 1], at[:, 0]].astype(np.float64)
    return _Features(pixel, descriptor, point, camera and camera.resized(*size).matrix())


def _turn(source: _Features, target: _Features) -> np.ndarray | None:
    """target_from_source (3, 3); None where too few features agree on it."""
    if target.matrix is None or min(len(source.pixel), len(target.pixel)) < MIN_INLIERS:
        return None
    alike = source.descriptor @ target.descriptor.T
    best = alike.argmax(1)
    first, second = -np.partition(-alike, 1, axis=1)[:, :2].T
    mutual = alike.argmax(0)[best] == np.arange(len(best))
    matches = np.flatnonzero(mutual & (1 - first < RATIO**2 * (1 - second)))
    if len(matches) < MIN_INLIERS:
        return None
    success, vector, _, inliers = cv2.solvePnPRansac(
        source.point_u[matches],
        target.pixel[best[matches]],
        target.matrix,
        None,
        iterationsCount=500,
        reprojectionError=REACH_PX,
        confidence=0.999,
        flags=cv2.SOLVEPNP_AP3P,
    )
    if not success or len(inliers) < MIN_INLIERS:
        return None
    return cv2.Rodrigues(vector)[0]
