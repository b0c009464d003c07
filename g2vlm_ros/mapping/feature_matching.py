# SPDX-License-Identifier: Apache-2.0
"""How the camera turned between two views, from features that both show; needs no guess to start.

Features are matched by their descriptors (`view_features`), then the pose comes from points and
pixels by RANSAC.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import cv2
import numpy as np

from g2vlm_ros.mapping.ignored_pixels import BelievedPoints
from g2vlm_ros.mapping.view_features import ViewFeatures, match_features, view_features
from g2vlm_ros.mapping.view_images import ViewImage
from g2vlm_ros.records import Reconstruction

REACH_PX = 4.0
"""How far a pose may put a point from its match."""
MIN_INLIERS = 12
APART = np.cos(np.deg2rad(5.0))
"""A pose whose turn differs by less is left as it is: tracks are finer than features."""


def matched_poses(
    result: Reconstruction,
    images: Sequence[ViewImage],
    poses: np.ndarray,
    linked: np.ndarray | None = None,
) -> np.ndarray:
    """Poses (N, 4, 4) whose turns agree with the features of each view and an earlier one.

    Where a view turned otherwise than its pose says, it and all later views turn with it; where
    the camera was, as the earlier view sees it, stays: features tell that less well. linked: bool
    (N, N), pairs whose poses tracks confirm; as long as no view was turned, those with an earlier
    one need no features, whose search is dear. The same array where no view turned.
    """
    unturned = poses

    @cache
    def features(view: int) -> ViewFeatures:
        points = BelievedPoints(result, view)
        return view_features(images[view], points, result.intrinsics[view])

    for j in range(1, len(poses)):
        if poses is unturned and linked is not None and linked[j, :j].any():
            continue
        i, turn = _turn_to_earlier(features, j)
        if turn is None:
            continue
        relative = np.linalg.inv(poses[i]) @ poses[j]
        if (np.trace(relative[:3, :3].T @ turn) - 1) / 2 < APART:
            relative[:3, :3] = turn
            moved = poses[i] @ relative @ np.linalg.inv(poses[j])
            poses = np.concatenate([poses[:j], moved @ poses[j:]])
    return poses


def _turn_to_earlier(
    features: Callable[[int], ViewFeatures], j: int
) -> tuple[int, np.ndarray | None]:
    """The latest earlier view i that shares enough with view j, and the turn (3, 3) i_from_j."""
    if len(features(j)) >= MIN_INLIERS:
        for i in reversed(range(j)):
            turn = _turn(features(i), features(j))
            if turn is not None:
                return i, turn.T
    return 0, None


def _turn(source: ViewFeatures, target: ViewFeatures) -> np.ndarray | None:
    """target_from_source (3, 3); None where too few features agree on it."""
    if target.matrix is None:
        return None
    matches = match_features(source, target)
    if len(matches) < MIN_INLIERS:
        return None
    solved, vector, _, inliers = cv2.solvePnPRansac(
        source.point_u[matches[:, 0]],
        target.pixel[matches[:, 1]],
        target.matrix,
        None,
        iterationsCount=500,
        reprojectionError=REACH_PX,
        confidence=0.999,
        flags=cv2.SOLVEPNP_AP3P,
    )
    if not solved or len(inliers) < MIN_INLIERS:
        return None
    return cv2.Rodrigues(vector)[0]
