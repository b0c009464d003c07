# SPDX-License-Identifier: Apache-2.0
"""How the camera turned between two views, from features that both show; needs no guess to start.

SIFT (Lowe, IJCV 2004) with the square roots of its descriptors (Arandjelovic & Zisserman, CVPR
2012), then the pose from points and pixels by RANSAC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from g2vlm_ros.records import Intrinsics, Reconstruction

WIDTH_PX = 224
"""Views are searched for features at this width, larger and smaller ones alike."""
MAX_FEATURES = 500
MIN_CONTRAST, MAX_EDGE = 0.005, 20.0
"""As OpenCV's SIFT scales them: weaker, and more edge-like, features than by default."""
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
    """float64 (n, 2) at WIDTH_PX."""
    descriptor: np.ndarray
    """float32 (n, 128) of length 1."""
    point_u: np.ndarray
    """float64 (n, 3) in the optical frame."""
    matrix: np.ndarray | None
    """K of the camera at WIDTH_PX."""


def matched_poses(result: Reconstruction, poses: np.ndarray) -> np.ndarray:
    """Poses (N, 4, 4) whose turns agree with the features of each view and an earlier one.

    Where a view turned otherwise than its pose says, it and all later views turn with it; where
    the camera was, as the earlier view sees it, stays: features tell that less well. The same
    array where none did.
    """
    views = [
        _features(*view)
        for view in zip(result.colours, result.local_points_u, result.intrinsics, strict=True)
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


def _features(image: np.ndarray, points: np.ndarray, camera: Intrinsics | None) -> _Features:
    height, width = image.shape[:2]
    size = WIDTH_PX, round(WIDTH_PX * height / width)
    smooth = cv2.INTER_CUBIC if width < WIDTH_PX else cv2.INTER_AREA
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), size, interpolation=smooth)
    sift = cv2.SIFT_create(
        nfeatures=MAX_FEATURES, contrastThreshold=MIN_CONTRAST, edgeThreshold=MAX_EDGE
    )
    found, descriptor = sift.detectAndCompute(grey, None)
    pixel = np.array([each.pt for each in found]).reshape(-1, 2)
    if descriptor is None:
        descriptor = np.zeros((0, 128), np.float32)
    descriptor = np.sqrt(descriptor / np.maximum(descriptor.sum(1, keepdims=True), 1.0))
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
    kept = np.flatnonzero(mutual & (1 - first < RATIO**2 * (1 - second)))
    if len(kept) < MIN_INLIERS:
        return None
    found, vector, _, inliers = cv2.solvePnPRansac(
        source.point_u[kept],
        target.pixel[best[kept]],
        target.matrix,
        None,
        iterationsCount=500,
        reprojectionError=REACH_PX,
        confidence=0.999,
        flags=cv2.SOLVEPNP_AP3P,
    )
    if not found or len(inliers) < MIN_INLIERS:
        return None
    return cv2.Rodrigues(vector)[0]
