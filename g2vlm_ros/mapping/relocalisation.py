# SPDX-License-Identifier: Apache-2.0
"""Relocalisation: where a window lies in a map by its keyframes; wrong is worse than lost.

Keyframes that look like the window are compared with it feature by feature: a pose from the map's
points and the view's pixels (RANSAC), refined over all views and keyframes that agree, and then
judged by whether the map's surfaces are where the window sees surfaces. Two places that fit about
as well are ambiguous, and none of them is believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.mapping.covisibility import depth_ratio
from g2vlm_ros.mapping.ignored_pixels import BelievedPoints
from g2vlm_ros.mapping.keyframes import Keyframe, pose_gap
from g2vlm_ros.mapping.map_view import MapView
from g2vlm_ros.mapping.place_fit import fit_place
from g2vlm_ros.mapping.place_matching import (
    MIN_MATCHES,
    FeatureMatches,
    all_matches,
    hypotheses,
    matched_pairs,
    most_similar,
)
from g2vlm_ros.mapping.view_features import ViewFeatures, view_features
from g2vlm_ros.mapping.view_images import ViewImage
from g2vlm_ros.mapping.window_pose import SearchOutcome
from g2vlm_ros.records import Reconstruction

PLACES = 4
"""Hypotheses that are refined and judged."""
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
MAX_CARRIED = np.deg2rad(30.0)
"""Turn between the newest view and the nearest one that the map holds, up to which the window's
own poses carry a place from one to the other. In two validation homes none of 210 pairs of views
within 30 degrees is off by more than 5, and 6 of 112 farther ones are, by up to 18."""
RIVAL = 0.5
"""Another place with this share of the best one's inliers makes both ambiguous."""
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
    carried_rad: float = 0.0
    """Turn between that view and the nearest one in which MIN_MATCHES of the features lie."""

    @property
    def held(self) -> bool:
        """Whether the map's features themselves, nearly, say where the newest view is."""
        return self.carried_rad <= MAX_CARRIED

    @property
    def plausible(self) -> bool:
        """Whether it may be the place."""
        return self.inliers >= MIN_INLIERS and self.surfaces_fit

    @property
    def surfaces_fit(self) -> bool:
        """Whether the map's surfaces are where the window sees surfaces."""
        return self.agreement >= MIN_AGREEMENT and self.shared >= MIN_SHARED

    @property
    def sure(self) -> bool:
        """Whether one window is enough."""
        return self.plausible and self.held and self.inliers >= SURE_INLIERS


@dataclass(frozen=True)
class SearchResult:
    """What a search says."""

    outcome: SearchOutcome
    place: Place | None = None
    """The best one, where there is any that is plausible."""
    rival: Place | None = None
    """The other one, where AMBIGUOUS."""


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
    places = find_places_of(candidates, result, views, newest)
    if hint is not None:
        places = [p for p in places if hint.allows(p.map_from_camera[:3, 3])]
    return judge(places)


def find_places_of(
    candidates: Sequence[MapView], result: Reconstruction, views: Sequence[int], newest: int
) -> list[Place]:
    """`find_places` by these views of a window, whose features are searched, the newest first."""
    order = [newest, *sorted(set(views) - {newest}, reverse=True)]
    features = {
        v: view_features(
            ViewImage(result.colours[v]), BelievedPoints(result, v), result.intrinsics[v]
        )
        for v in order
    }
    return find_places(candidates, result, features)


def find_places(
    candidates: Sequence[MapView], result: Reconstruction, features: dict[int, ViewFeatures]
) -> list[Place]:
    """Where a window may lie, the most features first, no two of them the same place."""
    pairs = matched_pairs(candidates, features)
    if not pairs:
        return []
    matches, views = all_matches(pairs, features, result), list(features)
    places: list[Place] = []
    for hypothesis in hypotheses(pairs, features, result):
        if any(_same(hypothesis, place.map_from_window, result) for place in places):
            continue
        place = _refined(hypothesis, candidates, matches, views, result)
        if place is None:
            continue
        if not any(_same(place.map_from_window, p.map_from_window, result) for p in places):
            places.append(place)
        if len(places) == PLACES:
            break
    return sorted(places, key=lambda place: -place.inliers)


def judge(places: Sequence[Place]) -> SearchResult:
    """What follows from places, the best first, that lie apart from each other."""
    plausible = [p for p in places if p.plausible]
    if not plausible:
        return SearchResult(SearchOutcome.NOT_FOUND)
    best = plausible[0]
    # A rival that would not be believed itself is a doubt all the same: where a map is bent, the
    # surfaces of one of two twins lie beside those of the window.
    rivals = [p for p in places if p is not best and p.inliers >= RIVAL * best.inliers]
    if rivals:
        return SearchResult(SearchOutcome.AMBIGUOUS, best, rivals[0])
    outcome = SearchOutcome.LOCALISED if best.sure else SearchOutcome.UNCONFIRMED
    return SearchResult(outcome, best)


def _same(one: Sim3, other: Sim3, result: Reconstruction) -> bool:
    """Whether two hypotheses put a window at the same place."""
    local = result.window_from_camera[-1].astype(np.float64)
    reach = APART * one.scale * float(result.view_depths_u[-1])
    return pose_gap(one.apply_pose(local), other.apply_pose(local), reach, APART_RAD) < 1


def _refined(
    start: Sim3,
    candidates: Sequence[MapView],
    matches: FeatureMatches,
    views: Sequence[int],
    result: Reconstruction,
) -> Place | None:
    """The place nearest to a hypothesis by all views and keyframes, and how well it fits."""
    fit = fit_place(start, matches, result)
    if fit is None:
        return None
    by_keyframe = np.bincount(matches.keyframes[fit.inlier], minlength=len(candidates))
    near = np.argsort(-by_keyframe)[:3]
    agreement, shared = surfaces_agree(
        fit.map_from_window, [candidates[i] for i in near if by_keyframe[i]], result, views
    )
    local = result.window_from_camera[views[0]].astype(np.float64)
    best = candidates[int(by_keyframe.argmax())].keyframe
    return Place(
        fit.map_from_window,
        best,
        fit.count,
        agreement,
        shared,
        fit.covariance,
        fit.map_from_window.apply_pose(local),
        _carried_rad(np.bincount(matches.views[fit.inlier]), views[0], result),
    )


def _carried_rad(inliers: np.ndarray, newest: int, result: Reconstruction) -> float:
    """`Place.carried_rad`; inliers: int (n,), by view of the window."""
    rotations = result.window_from_camera[:, :3, :3].astype(np.float64)
    turns = [
        float(np.linalg.norm(cv2.Rodrigues(rotations[view].T @ rotations[newest])[0]))
        for view in np.flatnonzero(inliers >= MIN_MATCHES)
    ]
    return min(turns, default=np.pi)


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
