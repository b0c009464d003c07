# SPDX-License-Identifier: Apache-2.0
"""Features of the map that a window shows again, and where they put it: hypotheses of its place.

One keyframe and one view give a pose each, from the map's points and the view's pixels (RANSAC);
the unit of the window follows from its depths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.mapping.keyframes import view_descriptor
from g2vlm_ros.mapping.map_view import MapView
from g2vlm_ros.mapping.view_features import ViewFeatures, match_features
from g2vlm_ros.records import Reconstruction

CANDIDATES = 24
"""Keyframes whose features are compared, the most similar first: 50 ms of one core."""
MIN_MATCHES = 10
"""Features of one keyframe and one view that agree, below which there is no hypothesis."""
REACH_PX = 3.0
"""How far a pose may put a map's point from its feature, at the features' width."""
MAX_ITERATIONS = 400

Pairs = dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]
"""By (index of a map's view, view of the window): its points (n, 3) in the map, and which of them
are which features, int (m, 2)."""


@dataclass(frozen=True)
class FeatureMatches:
    """Features of the map that a window shows again."""

    points: np.ndarray
    """float64 (n, 3), map."""
    pixels: np.ndarray
    """float64 (n, 2), normalised: at depth 1."""
    depths_u: np.ndarray
    """float64 (n,): what the window says."""
    poses: np.ndarray
    """float64 (n, 4, 4): window_from_camera of the view."""
    keyframes: np.ndarray
    """int (n,): index of the map's view."""
    views: np.ndarray
    """int (n,): of the window."""
    focal_px: float


def most_similar(
    map_views: Sequence[MapView], result: Reconstruction, views: Sequence[int]
) -> list[MapView]:
    """At most CANDIDATES of the map's views, those that look most like any of a window's first."""
    rows = [view_descriptor(result, view) for view in views]
    comparable = [v for v in map_views if v.keyframe.descriptor.shape == rows[0].shape]
    if not comparable:
        return list(map_views[-CANDIDATES:])
    similarity = np.stack([v.keyframe.descriptor for v in comparable]) @ np.stack(rows).T
    order = np.argsort(-similarity.max(1), kind="stable")[:CANDIDATES]
    return [comparable[i] for i in order]


def matched_pairs(candidates: Sequence[MapView], features: dict[int, ViewFeatures]) -> Pairs:
    """Only where MIN_MATCHES match."""
    pairs: Pairs = {}
    for index, candidate in enumerate(candidates):
        points = candidate.points()
        for view, each in features.items():
            if each.matrix is None:
                continue
            matches = match_features(candidate.keyframe.features, each)
            if len(matches) >= MIN_MATCHES:
                pairs[index, view] = points, matches
    return pairs


def hypotheses(
    pairs: Pairs,
    features: dict[int, ViewFeatures],
    result: Reconstruction,
) -> Iterator[Sim3]:
    """map_from_window by one keyframe and one view each, those with most matches first."""
    for (_, view), (points, matches) in sorted(pairs.items(), key=lambda p: -len(p[1][1])):
        pose = _pose(points, features[view], matches)
        if pose is None:
            continue
        hypothesis = _in_map(pose, result, view, points, features[view], matches)
        if hypothesis is not None:
            yield hypothesis


def _pose(points: np.ndarray, view: ViewFeatures, matches: np.ndarray) -> np.ndarray | None:
    """map_from_camera (4, 4) by RANSAC; None where too few matches agree."""
    solved, vector, shift, inliers = cv2.solvePnPRansac(
        points[matches[:, 0]],
        view.pixel[matches[:, 1]],
        view.matrix,
        None,
        iterationsCount=MAX_ITERATIONS,
        reprojectionError=REACH_PX,
        confidence=0.999,
        flags=cv2.SOLVEPNP_AP3P,
    )
    if not solved or inliers is None or len(inliers) < MIN_MATCHES:
        return None
    rotation = cv2.Rodrigues(vector)[0].T
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, -(rotation @ shift[:, 0])
    return pose


def _in_map(
    pose: np.ndarray,
    result: Reconstruction,
    view: int,
    points: np.ndarray,
    features: ViewFeatures,
    matches: np.ndarray,
) -> Sim3 | None:
    """map_from_window of a window whose view lies at a pose (4, 4); its unit by the depths."""
    depth = (points[matches[:, 0]] - pose[:3, 3]) @ pose[:3, 2]
    depth_u = features.point_u[matches[:, 1], 2]
    good = (depth > 0) & (depth_u > 0)
    if good.sum() < MIN_MATCHES:
        return None
    scale = float(np.exp(np.median(np.log(depth[good] / depth_u[good]))))
    local = result.window_from_camera[view].astype(np.float64)
    rotation = pose[:3, :3] @ local[:3, :3].T
    return Sim3(scale, rotation, pose[:3, 3] - scale * rotation @ local[:3, 3])


def all_matches(
    pairs: Pairs,
    features: dict[int, ViewFeatures],
    result: Reconstruction,
) -> FeatureMatches:
    """Of all pairs, in one table."""
    parts = []
    for (index, view), (points, matches) in pairs.items():
        each = features[view]
        at = each.pixel[matches[:, 1]]
        centre, focal = each.matrix[:2, 2], each.matrix[[0, 1], [0, 1]]
        pose = result.window_from_camera[view].astype(np.float64)
        parts.append(
            (
                points[matches[:, 0]],
                (at - centre) / focal,
                each.point_u[matches[:, 1], 2],
                np.broadcast_to(pose, (len(at), 4, 4)),
                np.full(len(at), index),
                np.full(len(at), view),
            )
        )
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    # Not any view's: one whose focal length is unknown has no matches.
    (_, view), *_ = pairs
    return FeatureMatches(*columns, focal_px=float(features[view].matrix[0, 0]))
