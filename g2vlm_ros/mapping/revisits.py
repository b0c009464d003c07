# SPDX-License-Identifier: Apache-2.0
"""Places of the same map seen again from farther away than a network joins views: by features.

`loop_closure` asks the network about old and new views together, which holds close to the old
view only. Features with the points that the map knows for them hold from a room's width. A place
found so is believed with fewer of them than a lost robot needs where the map expects it there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.mapping.covisibility import NEAR_SURFACE, depth_ratio
from g2vlm_ros.mapping.graph_slam import GraphSlam
from g2vlm_ros.mapping.keyframes import SAVED_MAP, Keyframe, pose_gap
from g2vlm_ros.mapping.map_view import MapView
from g2vlm_ros.mapping.relocalisation import (
    Place,
    confirms,
    find_places_of,
    judge,
)
from g2vlm_ros.mapping.window_pose import MappedWindow, SearchOutcome
from g2vlm_ros.records import newest_view

MAX_MOTION = 1.0
"""Farthest that a keyframe may be, as a share of the newest view's median range..."""
MAX_TURN = np.deg2rad(45.0)
"""...and as an angle: features of surfaces seen more aslant are no longer the same."""
DRIFT = 2.0
"""Standard deviations by which the map may have drifted, which both grow by."""
MIN_EXPECTED = 0.1
"""Least share of a keyframe's points that the map puts near the view's surfaces: drift hides many
of them."""
NEAR_VIEWS = 6
"""Keyframes that are compared, the nearest first."""
NEWS = 14.07
"""Squared error, in its own deviations, from which on a place is news: 95 % of chi square with
the seven unknowns of a similarity."""
RETRY_WINDOWS = 3
"""From a search that found nothing to the next one."""


class RevisitSearch:
    """When old keyframes around the robot are compared with the newest window. Device thread."""

    def __init__(self, gap_windows: int):
        """gap_windows: between a window and what counts as old, and between two closures."""
        self._gap = gap_windows
        self.clear()

    def clear(self) -> None:
        """Nothing was tried."""
        self._next = 0

    def closed(self, window_id: int) -> None:
        """A loop was closed, by whatever means."""
        self._next = window_id + self._gap

    def find(
        self, mapped: MappedWindow, slam: GraphSlam, keyframes: Sequence[Keyframe]
    ) -> Place | None:
        """Where the window lies by what old keyframes around it show; None where that is unsure or
        no news, or nothing is due or near."""
        window = mapped.window
        if window.id < self._next:
            return None
        near = self._near(mapped, slam, keyframes)
        if not near:
            return None
        self._next = window.id + RETRY_WINDOWS
        newest = newest_view(window.frames, mapped.trusted_views)
        places = find_places_of(near, mapped.result, mapped.trusted_views, newest)
        verdict, expected = judge(places), mapped.placement.map_from_window
        if verdict.outcome is SearchOutcome.UNCONFIRMED:
            if not confirms(expected, verdict.place.map_from_window, mapped.result):
                return None
        elif verdict.outcome is not SearchOutcome.LOCALISED:
            return None
        return verdict.place if _tells_more(verdict.place, expected) else None

    def _near(
        self, mapped: MappedWindow, slam: GraphSlam, keyframes: Sequence[Keyframe]
    ) -> list[MapView]:
        """Old keyframes of the window's map that should show what its newest view shows."""
        result, node = mapped.result, mapped.window.id
        newest = newest_view(mapped.window.frames, mapped.trusted_views)
        if result.intrinsics[newest] is None:
            return []
        here = result.window_from_camera[newest].astype(np.float64)
        place_std, turn_std = _drift(mapped, newest)
        reach = MAX_MOTION * float(result.view_depths_u[newest])
        reach, turn = reach + DRIFT * place_std, MAX_TURN + DRIFT * turn_std
        near = []
        for keyframe in keyframes:
            old = keyframe.window_id == SAVED_MAP or keyframe.window_id <= node - self._gap
            move = slam.between(node, keyframe.window_id) if old else None
            if move is None:
                continue
            pose = move.apply_pose(keyframe.window_from_camera)
            gap = pose_gap(pose, here, reach, turn)
            if gap > 1:
                continue
            _, _, off = depth_ratio(result, newest, move.apply(keyframe.sample.points_u[::4]))
            if (np.abs(off) < NEAR_SURFACE).mean() >= MIN_EXPECTED:
                near.append((gap, keyframe))
        near.sort(key=lambda entry: entry[0])
        return [MapView(k, slam.map_from(k.window_id)) for _, k in near[:NEAR_VIEWS]]


def _drift(mapped: MappedWindow, view: int) -> tuple[float, float]:
    """Deviations of a view's place (window's units) and orientation (rad) in the map."""
    covariance = mapped.placement.covariance[view]
    place = float(np.sqrt(np.trace(covariance[:3, :3]))) / mapped.placement.map_from_window.scale
    return place, float(np.sqrt(np.trace(covariance[3:, 3:])))


def _tells_more(place: Place, expected: Sim3) -> bool:
    """Whether a place is off from where the map has the window by more than its own error: a find
    that is no better than the map would only bend it."""
    off = (place.map_from_window @ expected.inverse()).log()
    return float(off @ np.linalg.solve(place.covariance, off)) > NEWS
