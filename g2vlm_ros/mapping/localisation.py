# SPDX-License-Identifier: Apache-2.0
"""Whether the robot knows where it is: LOST, RELOCALISING or LOCALISED, and the way between them.

The robot is to be in the saved map that was loaded, or else in the first map of the session. While
windows lie in another map they are looked for in it; once one is recognised, `GraphSlam` makes the
two maps one. Device thread only, but for `give_hint`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.mapping.graph_slam import GraphSlam
from g2vlm_ros.mapping.keyframes import SAVED_MAP, Keyframe, pose_gap
from g2vlm_ros.mapping.map_view import MapView
from g2vlm_ros.mapping.relocalisation import (
    Place,
    PlaceHint,
    SearchResult,
    confirms,
    search,
)
from g2vlm_ros.mapping.window_pose import (
    Localisation,
    LocalisationState,
    LoopOutcome,
    MappedWindow,
    SearchOutcome,
    StartReason,
)
from g2vlm_ros.records import newest_view

HINT_WINDOWS = 20
"""Windows that a hint is believed for: after that many tries without a find it was wrong."""
CONFIRM_WINDOWS = 3
"""Within so many windows a second one has to confirm a place."""
DOUBT_WINDOWS = 5
"""For so many windows after an ambiguous one, two have to say the same place."""
NEAR_VIEWS = 6
"""Keyframes around the robot that a window is compared with to correct its drift..."""
CORRECTION_GAP = 5
"""...every so many windows; each one where nothing else corrects it (`map.mode` localization)."""
NEAR_M, NEAR_RAD = 1.5, np.deg2rad(60.0)


class Localiser:
    """Keeps the state, and searches while it is not LOCALISED."""

    def __init__(self, fixed_map: bool = False):
        """fixed_map: `map.mode` is localization."""
        self._fixed_map = fixed_map
        self.searches: Counter[SearchOutcome] = Counter()
        self.clear()

    @property
    def now(self) -> Localisation:
        """What is known (any thread)."""
        return self._now

    def clear(self, saved_map: bool = False) -> None:
        """Start over: with nothing, or somewhere in a saved map."""
        lost = saved_map or self._fixed_map
        state = LocalisationState.LOST if lost else LocalisationState.LOCALISED
        by = "saved_map" if saved_map else "no_saved_map" if lost else "start"
        self._now = Localisation(state, by=by, placed=not lost)
        self._hint: PlaceHint | None = None
        self._hint_windows = 0
        self._pending: tuple[int, int, Sim3] | None = None
        self._last_ambiguous: int | None = None
        self._last_correction = 0

    def lose(self, saved_map: bool) -> None:
        """Start over, LOST until a window tells more, since windows failed one after another.

        saved_map: the robot is looked for in it.
        """
        self.clear(saved_map)
        by = str(StartReason.WINDOWS_FAILED)
        if saved_map or not self._fixed_map:  # else no map is there to be in
            self._now = Localisation(LocalisationState.LOST, by=by, placed=False)

    def give_hint(self, hint: PlaceHint) -> None:
        """Where somebody says that the robot is (any thread): only places near it are believed."""
        self._hint, self._hint_windows = hint, HINT_WINDOWS

    @property
    def hinted(self) -> bool:
        """Whether a hint waits that no window has been tried with."""
        return self._hint is not None and self._hint_windows == HINT_WINDOWS

    def update(
        self, mapped: MappedWindow, slam: GraphSlam, keyframes: Sequence[Keyframe]
    ) -> MappedWindow:
        """A window just placed, maybe recognised in the map where the robot is to be."""
        map_id = mapped.placement.map_id
        maps = {slam.map_id_of(k.window_id) for k in keyframes if k.window_id in slam}
        if SAVED_MAP in slam:
            maps.add(slam.map_id_of(SAVED_MAP))
        home = min(maps, default=map_id)
        if map_id == home and not (self._fixed_map and SAVED_MAP not in slam):
            mapped = self._keep(mapped, slam, keyframes)
        elif map_id != home:
            mapped = self._look(mapped, slam, keyframes, home)
        return replace(mapped, localisation=self._now)

    def _keep(
        self, mapped: MappedWindow, slam: GraphSlam, keyframes: Sequence[Keyframe]
    ) -> MappedWindow:
        """A window in the map where the robot is to be; drift in a saved map is corrected."""
        if self._now.state is not LocalisationState.LOCALISED or not self._now.since_ns:
            by = "loop" if self._now.since_ns else "start"
            self._turn(LocalisationState.LOCALISED, mapped, by, None, placed=True)
        if SAVED_MAP not in slam or slam.map_id_of(SAVED_MAP) != mapped.placement.map_id:
            return mapped
        gap = 1 if self._fixed_map else CORRECTION_GAP
        if mapped.window.id - self._last_correction < gap:
            return mapped
        self._last_correction = mapped.window.id
        return self._correct(mapped, slam, keyframes)

    def _correct(
        self, mapped: MappedWindow, slam: GraphSlam, keyframes: Sequence[Keyframe]
    ) -> MappedWindow:
        """Hold the window to the saved map where its keyframes show the same."""
        newest = _newest_trusted(mapped)
        here = mapped.map_from_camera[newest]
        saved = [
            MapView(k, slam.map_from(SAVED_MAP)) for k in keyframes if k.window_id == SAVED_MAP
        ]
        gaps = [pose_gap(v.map_from_camera, here, NEAR_M, NEAR_RAD) for v in saved]
        near = [saved[i] for i in np.argsort(gaps)[:NEAR_VIEWS] if gaps[i] < 1]
        if not near:
            return mapped
        search_result = search(near, mapped.result, mapped.trusted_views, newest)
        place = search_result.place
        if search_result.outcome is not SearchOutcome.LOCALISED or not confirms(
            mapped.placement.map_from_window, place.map_from_window, mapped.result
        ):
            return mapped
        return hold_to_place(mapped, slam, place)[0]

    def _look(
        self,
        mapped: MappedWindow,
        slam: GraphSlam,
        keyframes: Sequence[Keyframe],
        home: int,
    ) -> MappedWindow:
        """Search the window in the other maps, the one where the robot is to be first."""
        map_id = mapped.placement.map_id
        if self._now.state is LocalisationState.LOCALISED:
            by = str(mapped.placement.new_map or "no_shared_view")
            placed = SAVED_MAP not in slam and not self._fixed_map
            self._turn(LocalisationState.LOST, mapped, by, None, placed)
        others: dict[int, list[MapView]] = {}
        for keyframe in keyframes:
            if keyframe.window_id in slam and slam.map_id_of(keyframe.window_id) != map_id:
                view = MapView(keyframe, slam.map_from(keyframe.window_id))
                others.setdefault(slam.map_id_of(keyframe.window_id), []).append(view)
        newest, best = _newest_trusted(mapped), SearchResult(SearchOutcome.NO_KEYFRAMES)
        for other in sorted(others):
            search_result = search(
                others[other], mapped.result, mapped.trusted_views, newest, self._hint
            )
            self.searches[search_result.outcome] += 1
            if search_result.outcome is SearchOutcome.LOCALISED or other == home:
                best = search_result
            if search_result.outcome is SearchOutcome.LOCALISED:
                break
        self._hint_windows -= self._hint is not None
        if self._hint_windows <= 0:
            self._hint = None
        return self._follow(best, mapped, slam, home)

    def _follow(
        self, search_result: SearchResult, mapped: MappedWindow, slam: GraphSlam, home: int
    ) -> MappedWindow:
        """What a search changes."""
        outcome, place = search_result.outcome, search_result.place
        if outcome is SearchOutcome.AMBIGUOUS:
            self._last_ambiguous = mapped.window.id
        if outcome is SearchOutcome.LOCALISED and self._doubted(mapped):
            outcome = SearchOutcome.UNCONFIRMED
        sure = outcome is SearchOutcome.LOCALISED
        if outcome is SearchOutcome.UNCONFIRMED:
            sure = place.held and self._confirmed(place, mapped, slam)
            if not sure:
                target = slam.map_id_of(place.keyframe.window_id)
                self._pending = mapped.window.id, target, place.map_from_window
                self._turn(LocalisationState.RELOCALISING, mapped, "keyframe", outcome)
        if sure:
            mapped, joined = hold_to_place(mapped, slam, place)
            if joined is not LoopOutcome.CLOSED:
                outcome = SearchOutcome.CONTRADICTS_MAP
            elif mapped.placement.map_id == home:
                self._pending, self._hint = None, None
                self._turn(LocalisationState.LOCALISED, mapped, "keyframe", outcome, placed=True)
                self._last_correction = mapped.window.id
                return mapped
        elif outcome is SearchOutcome.UNCONFIRMED:
            return mapped
        waited = mapped.window.id - self._pending[0] if self._pending else CONFIRM_WINDOWS
        if self._now.state is LocalisationState.RELOCALISING and waited >= CONFIRM_WINDOWS:
            self._pending = None
            self._turn(LocalisationState.LOST, mapped, "unconfirmed", outcome)
        self._now = replace(self._now, search=outcome)
        return mapped

    def _doubted(self, mapped: MappedWindow) -> bool:
        """Whether two places fitted a moment ago: one window then decides nothing, unless a hint
        says which of them it is."""
        if self._last_ambiguous is None or self._hint is not None:
            return False
        return mapped.window.id - self._last_ambiguous <= DOUBT_WINDOWS

    def _confirmed(self, place: Place, mapped: MappedWindow, slam: GraphSlam) -> bool:
        """Whether a window before, and the way since, says the same."""
        if self._pending is None:
            return False
        node, target, map_from_node = self._pending
        if mapped.window.id - node > CONFIRM_WINDOWS or node not in slam:
            return False
        if target != slam.map_id_of(place.keyframe.window_id):
            return False
        way = slam.between(mapped.window.id, node)
        if way is None:
            return False
        expected = map_from_node @ way.inverse()
        return confirms(expected, place.map_from_window, mapped.result)

    def _turn(
        self,
        state: LocalisationState,
        mapped: MappedWindow,
        by: str,
        outcome: SearchOutcome | None,
        placed: bool | None = None,
    ) -> None:
        """Into another state, since this window."""
        placed = self._now.placed if placed is None else placed
        since_ns = self._now.since_ns if state is self._now.state else mapped.window.stamp_ns
        self._now = Localisation(state, since_ns or mapped.window.stamp_ns, by, outcome, placed)


def hold_to_place(
    mapped: MappedWindow, slam: GraphSlam, place: Place
) -> tuple[MappedWindow, LoopOutcome]:
    """Hold a window to the keyframe of its place, if the map agrees (`GraphSlam.localise`)."""
    target = place.keyframe.window_id
    target_from_map = slam.map_from(target).inverse()
    move = target_from_map.adjoint()
    placement, outcome = slam.localise(
        mapped.window.id,
        target,
        target_from_map @ place.map_from_window,
        move @ place.covariance @ move.T,
        mapped.result,
        mapped.placement,
    )
    return replace(mapped, placement=placement), outcome


def _newest_trusted(mapped: MappedWindow) -> int:
    return newest_view(mapped.window.frames, mapped.trusted_views)
