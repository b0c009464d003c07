# SPDX-License-Identifier: Apache-2.0
"""Relocalisation: where a window lies in a map by its keyframes; wrong is worse than lost.

Keyframes that look like the window are compared with it feature by feature: a pose from the map's
points and the view's pixels (RANSAC), refined over all views and keyframes that agree, and then
judged by whether the map's surfaces are where the window sees surfaces. Two places that fit about
as well are ambiguous, and none of them is believed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from g2vlm_ros.geometry.sim3 import Sim3, cross_matrix
from g2vlm_ros.mapping.covisibility import depth_ratio
from g2vlm_ros.mapping.keyframes import Keyframe, pose_gap, view_descriptor
from g2vlm_ros.mapping.view_features import ViewFeatures, match_features, view_features
from g2vlm_ros.mapping.view_images import ViewImage
from g2vlm_ros.mapping.window_pose import SearchOutcome
from g2vlm_ros.records import Reconstruction

CANDIDATES = 24
"""Keyframes whose features are compared, the most similar first: 50 ms of one core."""
PLACES = 4
"""Hypotheses that are refined and judged."""
MIN_MATCHES = 10
"""Features of one keyframe and one view that agree, below which there is no hypothesis."""
REACH_PX = 3.0
"""How far a pose may put a map's point from its feature, at the features' width."""
MAX_ITERATIONS = 400
STEPS = 6
"""Of the refinement; it starts within a few pixels."""
PIXEL_STD = 1.5
"""Of a feature's place, with the error of the map's point seen from a little aside."""
DEPTH_STD = 0.08
"""Of the logarithm of a depth by the network."""
SAME_SURFACE = 0.12
"""Relative difference of depth up to which map and window show the same surface."""
APART, APART_RAD = 0.3, np.deg2rad(20.0)
"""Poses farther apart, as a share of the window's median range, are different places."""
MIN_INLIERS = 24
"""Wrong homes reached 18 features, with the agreement that is asked for, of 600 windows against
maps of other validation homes; 95 of 100 right ones have more than 33 in each of the four."""
MIN_AGREEMENT = 0.75
"""Share of the map's points in view that lie on the window's surfaces, of those that do or that it
sees through."""
MIN_SHARED = 0.25
"""Share of a keyframe's points that lie on the window's surfaces."""
SURE_INLIERS = 40
"""With so many a window is believed alone; with fewer, once a second one confirms it."""
RIVAL = 0.5
"""Another place with this share of the best one's inliers makes both ambiguous."""
SYSTEMATIC = np.array([0.01] * 3 + [0.015] * 3 + [0.02])
"""Assumed error of keyframe and view as a whole: radians, fraction of the range, log scale."""
NEAR_HINT = 4.0
"""A keyframe may be so much farther from a hint, map units, and still show what a camera there
sees."""


@dataclass(frozen=True)
class PlaceHint:
    """Where somebody says that the robot is."""

    position: np.ndarray
    """float64 (2,): x, y in the map."""
    reach: float
    """Farthest that a camera of the robot may be from it, map units."""

    def allows(self, position: np.ndarray, slack: float = 0.0) -> bool:
        """Whether a camera (3,) may be there, or so much farther away."""
        return bool(np.linalg.norm(position[:2] - self.position) <= self.reach + slack)


@dataclass(frozen=True)
class Place:
    """A hypothesis of where a window lies."""

    map_from_window: Sim3
    keyframe: Keyframe
    """The one that shows most of it."""
    inliers: int
    agreement: float
    """0..1, see MIN_AGREEMENT."""
    shared: float
    """0..1, see MIN_SHARED."""
    covariance: np.ndarray
    """float64 (7, 7) of d in ``truth = Sim3.exp(d) @ map_from_window``, about the map's origin."""
    map_from_camera: np.ndarray
    """float64 (4, 4): of the window's newest view."""

    @property
    def plausible(self) -> bool:
        """Whether it may be the place."""
        return (
            self.inliers >= MIN_INLIERS
            and self.agreement >= MIN_AGREEMENT
            and self.shared >= MIN_SHARED
        )

    @property
    def sure(self) -> bool:
        """Whether one window is enough."""
        return self.plausible and self.inliers >= SURE_INLIERS


@dataclass(frozen=True)
class SearchResult:
    """What a search says."""

    outcome: SearchOutcome
    place: Place | None = None
    """The best one, where there is any that is plausible."""
    rival: Place | None = None
    """The other one, where AMBIGUOUS."""


@dataclass(frozen=True)
class MapView:
    """A keyframe where it lies in the map."""

    keyframe: Keyframe
    map_from_window: Sim3
    """Of the keyframe's window."""

    @property
    def map_from_camera(self) -> np.ndarray:
        """float64 (4, 4), rigid."""
        return self.map_from_window.apply_pose(self.keyframe.window_from_camera)

    def points(self) -> np.ndarray:
        """float64 (n, 3): of its features, in the map."""
        local = self.map_from_window.scale * self.keyframe.features.point_u
        pose = self.map_from_camera
        return local @ pose[:3, :3].T + pose[:3, 3]


@dataclass(frozen=True)
class _Matches:
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
    focal_px: float


def search(
    map_views: Sequence[MapView],
    result: Reconstruction,
    views: Sequence[int],
    newest: int,
    hint: PlaceHint | None = None,
) -> SearchResult:
    """The place of a window among the views of one map.

    views: those of the window whose poses are trusted; newest: the one whose place is judged.
    hint: only places that it allows are considered.
    """
    if not map_views:
        return SearchResult(SearchOutcome.NO_KEYFRAMES)
    allowed = [
        v for v in map_views if hint is None or hint.allows(v.map_from_camera[:3, 3], NEAR_HINT)
    ]
    candidates = most_similar(allowed, result, views)
    if not candidates:
        return SearchResult(SearchOutcome.NOT_FOUND)
    order = [newest, *sorted(set(views) - {newest}, reverse=True)]
    features = {
        v: view_features(
            ViewImage(result.colours[v]), result.local_points_u[v], result.intrinsics[v]
        )
        for v in order
    }
    places = find_places(candidates, result, features)
    if hint is not None:
        places = [p for p in places if hint.allows(p.map_from_camera[:3, 3])]
    return judge(places)


def find_places(
    candidates: Sequence[MapView], result: Reconstruction, features: dict[int, ViewFeatures]
) -> list[Place]:
    """Where a window may lie, the most features first, no two of them the same place."""
    pairs = matched_pairs(candidates, features)
    places: list[Place] = []
    for hypothesis in _hypotheses(pairs, features, result):
        if any(_same(hypothesis, place.map_from_window, result) for place in places):
            continue
        place = _refined(hypothesis, candidates, pairs, features, result)
        if place is None:
            continue
        if not any(_same(place.map_from_window, p.map_from_window, result) for p in places):
            places.append(place)
        if len(places) == PLACES:
            break
    return sorted(places, key=lambda place: -place.inliers)


def _hypotheses(
    pairs: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]],
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


def judge(places: Sequence[Place]) -> SearchResult:
    """What follows from places, the best first, that lie apart from each other."""
    plausible = [p for p in places if p.plausible]
    if not plausible:
        return SearchResult(SearchOutcome.NOT_FOUND)
    best = plausible[0]
    rivals = [p for p in plausible[1:] if p.inliers >= RIVAL * best.inliers]
    if rivals:
        return SearchResult(SearchOutcome.AMBIGUOUS, best, rivals[0])
    outcome = SearchOutcome.LOCALISED if best.sure else SearchOutcome.UNCONFIRMED
    return SearchResult(outcome, best)


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


def matched_pairs(
    candidates: Sequence[MapView], features: dict[int, ViewFeatures]
) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
    """By (index of a map's view, view of the window): its points (n, 3) in the map, and which of
    them are which features, int (m, 2). Only where MIN_MATCHES match."""
    pairs = {}
    for index, candidate in enumerate(candidates):
        points = candidate.points()
        for view, each in features.items():
            if each.matrix is None:
                continue
            matches = match_features(candidate.keyframe.features, each)
            if len(matches) >= MIN_MATCHES:
                pairs[index, view] = points, matches
    return pairs


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
    seen = features.point_u[matches[:, 1], 2]
    good = (depth > 0) & (seen > 0)
    if good.sum() < MIN_MATCHES:
        return None
    scale = float(np.exp(np.median(np.log(depth[good] / seen[good]))))
    local = result.window_from_camera[view].astype(np.float64)
    rotation = pose[:3, :3] @ local[:3, :3].T
    return Sim3(scale, rotation, pose[:3, 3] - scale * rotation @ local[:3, 3])


def _same(one: Sim3, other: Sim3, result: Reconstruction) -> bool:
    """Whether two hypotheses put a window at the same place."""
    local = result.window_from_camera[-1].astype(np.float64)
    reach = APART * one.scale * float(np.median(result.local_points_u[-1, ::8, ::8, 2]))
    return pose_gap(one.apply_pose(local), other.apply_pose(local), reach, APART_RAD) < 1


def _refined(
    start: Sim3,
    candidates: Sequence[MapView],
    pairs: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]],
    features: dict[int, ViewFeatures],
    result: Reconstruction,
) -> Place | None:
    """The place nearest to a hypothesis by all views and keyframes, and how well it fits."""
    matches = _all_matches(pairs, features, result)
    fit = start
    for _ in range(STEPS):
        error, jacobian, pivot = _errors(fit, matches)
        weight = _weights(error)
        if (weight > 0).sum() < MIN_MATCHES:
            return None
        hessian = np.einsum("nki,n,nkj->ij", jacobian, weight, jacobian)
        pull = np.einsum("nki,n,nk->i", jacobian, weight, error)
        step = -np.linalg.solve(hessian + 1e-9 * np.trace(hessian) * np.eye(7), pull)
        shift = Sim3(1.0, np.eye(3), pivot)
        fit = shift @ Sim3.exp(step) @ shift.inverse() @ fit
    error, jacobian, pivot = _errors(fit, matches)
    inlier = np.linalg.norm(error[:, :2], axis=1) * PIXEL_STD < REACH_PX
    inlier &= np.abs(error[:, 2]) < 3
    count = _distinct(matches, inlier)
    if count < MIN_MATCHES:
        return None
    covariance = _covariance(fit, matches, error, jacobian, pivot, inlier, result)
    by_keyframe = np.bincount(matches.keyframes[inlier], minlength=len(candidates))
    near = np.argsort(-by_keyframe)[:3]
    agreement, shared = surfaces_agree(
        fit, [candidates[i] for i in near if by_keyframe[i]], result, list(features)
    )
    newest = next(iter(features))
    local = result.window_from_camera[newest].astype(np.float64)
    best = candidates[int(by_keyframe.argmax())].keyframe
    return Place(fit, best, count, agreement, shared, covariance, fit.apply_pose(local))


def _all_matches(
    pairs: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]],
    features: dict[int, ViewFeatures],
    result: Reconstruction,
) -> _Matches:
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
            )
        )
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return _Matches(*columns, focal_px=float(next(iter(features.values())).matrix[0, 0]))


def _errors(fit: Sim3, matches: _Matches) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors (n, 3) over their deviations: pixel x, y, log depth; by the motion (7,) of the window
    in the map about a pivot (3,), (n, 3, 7); and the pivot. What lies behind a camera is far off.
    """
    pivot = fit.apply(matches.poses[:, :3, 3].mean(0))
    inverse = fit.inverse()
    turn = matches.poses[:, :3, :3]
    local = np.einsum("nji,nj->ni", turn, inverse.apply(matches.points) - matches.poses[:, :3, 3])
    z = np.maximum(local[:, 2], 1e-6)
    sigma = PIXEL_STD / matches.focal_px
    projected = local[:, :2] / z[:, None]
    error = np.concatenate(
        [
            (projected - matches.pixels) / sigma,
            (np.log(z / np.maximum(matches.depths_u, 1e-6)) / DEPTH_STD)[:, None],
        ],
        axis=1,
    )
    error[local[:, 2] <= 0] = 1e3
    arm = matches.points - pivot
    motion = np.concatenate(
        [
            np.stack([cross_matrix(a) for a in arm]),
            np.broadcast_to(-np.eye(3), (len(arm), 3, 3)),
            -arm[:, :, None],
        ],
        axis=2,
    )
    linear = inverse.scale * np.einsum("nji,jk->nik", turn, inverse.rotation)
    moved = linear @ motion
    by_point = np.zeros((len(z), 3, 3))
    by_point[:, 0, 0] = by_point[:, 1, 1] = 1 / (z * sigma)
    by_point[:, 0, 2], by_point[:, 1, 2] = (-projected / (z[:, None] * sigma)).T
    by_point[:, 2, 2] = 1 / (z * DEPTH_STD)
    return error, by_point @ moved, pivot


def _weights(error: np.ndarray) -> np.ndarray:
    """(n,) of a Cauchy loss, 0 far outside."""
    squared = (error**2).sum(1)
    return np.where(squared < 400, 1 / (1 + squared / 6), 0.0)


def _distinct(matches: _Matches, inlier: np.ndarray) -> int:
    """How many different features of the window agree: one that several keyframes show is one."""
    rows = np.concatenate([matches.pixels[inlier], matches.poses[inlier, :3, 3]], axis=1)
    return len(np.unique(rows.round(6), axis=0))


def _covariance(
    fit: Sim3,
    matches: _Matches,
    error: np.ndarray,
    jacobian: np.ndarray,
    pivot: np.ndarray,
    inlier: np.ndarray,
    result: Reconstruction,
) -> np.ndarray:
    """(7, 7) about the map's origin: features of one keyframe err alike, and count as few."""
    j, e, group = jacobian[inlier], error[inlier], matches.keyframes[inlier]
    weight = _weights(e)
    hessian = np.einsum("nki,n,nkj->ij", j, weight, j) + 1e-6 * np.eye(7)
    # Features of one patch of a view err alike.
    patch = np.round(matches.pixels[inlier] * 4).astype(int)
    keys = np.concatenate([patch, group[:, None]], axis=1)
    _, blocks = np.unique(keys, axis=0, return_inverse=True)
    pulls = np.zeros((blocks.max() + 1, 7))
    np.add.at(pulls, blocks.reshape(-1), np.einsum("nki,n,nk->ni", j, weight, e))
    inverse = np.linalg.inv(hessian)
    spread = inverse @ (pulls.T @ pulls) @ inverse
    reach = fit.scale * float(np.median(result.local_points_u[:, ::8, ::8, 2]))
    local = spread + np.diag((SYSTEMATIC * ([1.0] * 3 + [reach] * 3 + [1.0])) ** 2)
    move = Sim3(1.0, np.eye(3), pivot).adjoint()
    return move @ local @ move.T


def surfaces_agree(
    fit: Sim3, map_views: Sequence[MapView], result: Reconstruction, views: Sequence[int]
) -> tuple[float, float]:
    """Whether the map's surfaces are where a window sees surfaces: (agreement, shared), 0..1.

    agreement: of the map's points that a view should show, the share that lies on its surface;
    what lies behind is hidden and does not count. shared: of the best keyframe's points.
    """
    on_surface = seen_through = 0
    shared = 0.0
    inverse = fit.inverse()
    for map_view in map_views:
        sample = map_view.keyframe.sample.points_u[::4].astype(np.float64)
        in_window = inverse.apply(map_view.map_from_window.apply(sample))
        best = 0.0
        for view in views:
            if result.intrinsics[view] is None:
                continue
            _, _, off = depth_ratio(result, view, in_window)
            on = int((np.abs(off) < SAME_SURFACE).sum())
            on_surface += on
            seen_through += int((off <= -SAME_SURFACE).sum())
            best = max(best, on / max(len(sample), 1))
        shared = max(shared, best)
    return on_surface / max(on_surface + seen_through, 1), shared


def confirms(first: Sim3, second: Sim3, result: Reconstruction) -> bool:
    """Whether two hypotheses of the same window's place, by different windows, agree."""
    return _same(first, second, result) and abs(np.log(first.scale / second.scale)) < 0.2
