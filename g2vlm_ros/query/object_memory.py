# SPDX-License-Identifier: Apache-2.0
"""Objects that were seen, at their places in the map, and whether they are still there.

An object is confirmed after MIN_SIGHTINGS. Loops move objects with the window that saw them last.
Lengths are metres; windows without are left out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.mapping.keyframes import pose_gap
from g2vlm_ros.pipeline import PerceivedWindow
from g2vlm_ros.query import likelihoods, object_association, object_belief
from g2vlm_ros.query.context import ViewSelection
from g2vlm_ros.query.grounding import MARKED_PLACE
from g2vlm_ros.query.map_object import (
    MapObject,
    ObjectState,
    in_room,
    matching,
    transformed,
)
from g2vlm_ros.query.object_measurement import Object3D
from g2vlm_ros.query.object_sightings import Sighting, sightings_of
from g2vlm_ros.query.point_map import PointMap
from g2vlm_ros.records import Intrinsics, ScaleState

RECENT_WINDOWS = 64
"""So many of the newest windows may still be asked about: where they lie is kept."""
MOVED_M, MOVED_RAD = 0.05, 0.02
"""A window that a loop moved by more lies elsewhere than what was measured in it."""
NO_MAP = -1
"""Before the first window: what is loaded then lies in the map that comes."""
LOADED = 0
"""Window of loaded objects; windows of this session count from 1, so no correction moves them."""


class ObjectMemory:
    """What was seen of the current map, at most `max_objects`; thread-safe."""

    def __init__(self, max_objects: int):
        self._max = max_objects
        self._objects: dict[int, MapObject] = {}
        self._places: dict[int, Sim3] = {}
        self._map_id = NO_MAP
        self._next_id = 1
        self._version = 0
        self._lock = threading.RLock()

    def __len__(self) -> int:
        """All that are held, of maps put aside and not yet confirmed ones too."""
        return len(self._objects)

    @property
    def version(self) -> int:
        """Differs after every change."""
        return self._version

    def objects(self) -> tuple[MapObject, ...]:
        """The confirmed ones of the current map, oldest first."""
        with self._lock:
            return tuple(each for each in self._here() if each.confirmed)

    @property
    def map_id(self) -> int:
        """The map that `objects` lie in."""
        return self._map_id

    def find(
        self,
        words: str = "",
        room: str = "",
        contains: Any = None,
        seen_since_ns: int = 0,
        with_gone: bool = False,
    ) -> list[MapObject]:
        """Confirmed objects by words, room (name or number), region and time, likeliest first.

        contains(points (n, 3)): bool (n,), which centres are wanted; None = all.
        """
        objects = self.objects()
        if words:
            objects = matching(objects, words)
        else:
            objects = sorted(objects, key=lambda each: (-each.belief, -each.last_seen_ns))
        if room:
            objects = [each for each in objects if in_room(each, room)]
        if contains is not None and objects:
            inside = contains(np.array([each.centre for each in objects]))
            objects = [each for each, keep in zip(objects, inside, strict=True) if keep]
        return [
            each
            for each in objects
            if (with_gone or each.there) and each.last_seen_ns >= seen_since_ns
        ]

    def locate(self, room_of: Callable[[np.ndarray], list[tuple[int, str]]]) -> None:
        """Look up the rooms. room_of(places (n, 2)): id and name of each; (0, "") for none."""
        with self._lock:
            here = self._here()
            if not here:
                return
            rooms = room_of(np.array([each.centre[:2] for each in here]))
            for each, (room, name) in zip(here, rooms, strict=True):
                if (each.room, each.room_name) != (room, name):
                    self._objects[each.id] = replace(each, room=room, room_name=name)
                    self._version += 1

    def rename(self, object_id: int, name: str) -> None:
        """Give a name, or take it back; KeyError for an unknown id."""
        with self._lock:
            self._objects[object_id] = replace(self._objects[object_id], name=name)
            self._version += 1

    def delete(self, object_id: int) -> None:
        """Forget one; KeyError for an unknown id."""
        with self._lock:
            del self._objects[object_id]
            self._version += 1

    def look_again(self, object_id: int) -> None:
        """Doubt one until a window sees its place; KeyError for an unknown id."""
        with self._lock:
            doubted = replace(self._objects[object_id], evidence=0.0, look_again=True)
            self._objects[object_id] = doubted
            self._version += 1

    def clear(self) -> None:
        """Forget all. Ids go on counting."""
        with self._lock:
            self._objects.clear()
            self._places.clear()
            self._version += 1

    # A window --------------------------------------------------------------------------------

    def observe(
        self,
        update: PerceivedWindow,
        points: PointMap,
        sightings: Sequence[Sighting],
        detected_views: Iterable[int] = (),
    ) -> None:
        """Take a window in: what it corrects, what it shows, and what it shows to be gone.

        points: of all its views. detected_views: those that a detector has looked at.
        """
        placement = update.placement
        if placement.scale.state is not ScaleState.METRIC or not self._max:
            return
        with self._lock:
            if self._map_id == NO_MAP:
                self._merge_maps(NO_MAP, placement.map_id)
            self._map_id = placement.map_id
            if placement.merged_map_id is not None:
                self._merge_maps(placement.merged_map_id, placement.map_id)
            self._correct(dict(placement.corrections))
            self._places[update.window.id] = placement.map_from_window
            ids = self._associate(sightings, update, update.result.intrinsics, points)
            views = [view for view in update.new_views if view in update.trusted_views]
            self._look_for_missing(update, points, views, set(detected_views), ids)
            self._mark_moved()
            self._bound()
            self._version += 1

    def observe_answer(self, selection: ViewSelection, things: Sequence[Object3D]) -> None:
        """Take in what an answer was about, as it was measured in those views of a window.

        Named things count at once. What memory itself gave, and what was only marked, is left out;
        so is all of a window that lies in another map, or that was moved after it was measured.
        """
        update, points = selection.update, selection.points
        named = [each for each in things if each.regions and each.label != MARKED_PLACE]
        placed = update.placement.map_from_window
        with self._lock:
            now = self._places.setdefault(update.window.id, placed)
            here = update.placement.map_id == self._map_id
            if not (points.metric and self._max and here and named) or _apart(now, placed):
                return
            cameras = [update.result.intrinsics[view] for view in selection.views]
            sightings = sightings_of(selection, named)
            for object_id in self._associate(sightings, update, cameras, points):
                if object_id in self._objects:
                    self._objects[object_id] = replace(self._objects[object_id], asked=True)
            self._bound()
            self._version += bool(sightings)

    def _here(self) -> list[MapObject]:
        return [each for each in self._objects.values() if each.map_id == self._map_id]

    def _merge_maps(self, ended: int, map_id: int) -> None:
        """Objects of a map that ended because it was joined to another lie in that one now."""
        for each in list(self._objects.values()):
            if each.map_id == ended:
                self._objects[each.id] = replace(each, map_id=map_id)

    def _correct(self, places: Mapping[int, Sim3]) -> None:
        """Objects move with the window that saw them last."""
        motions = {
            window: place @ self._places[window].inverse()
            for window, place in places.items()
            if window in self._places
        }
        self._places.update({window: places[window] for window in motions})
        for each in list(self._objects.values()):
            motion = motions.get(each.window_id)
            if motion is not None:
                self._objects[each.id] = transformed(each, motion)

    def _associate(
        self,
        sightings: Sequence[Sighting],
        update: PerceivedWindow,
        cameras: Sequence[Intrinsics | None],
        points: PointMap,
    ) -> set[int]:
        """Fuse sightings with the objects that they are of; new ones for the rest. Their ids."""
        partner = object_association.match(sightings, self._here(), cameras, points)
        ids = set()
        for index, sighting in enumerate(sightings):
            if index in partner:
                before = self._objects[partner[index]]
                changed = object_association.fuse(before, sighting, update.window.id)
            else:
                changed = object_association.new_object(
                    self._next_id, sighting, update.placement.map_id, update.window.id
                )
                self._next_id += 1
            self._objects[changed.id] = changed
            ids.add(changed.id)
        for object_id in sorted(ids):
            self._merge_duplicates(object_id)
        return ids

    def _merge_duplicates(self, object_id: int) -> None:
        """One object of two that lie in one place; the older one's id and name stay."""
        if object_id not in self._objects:
            return
        one = self._objects[object_id]
        for other in self._here():
            if other.id == one.id or other.id not in self._objects:
                continue  # itself, or merged a moment ago
            if object_association.are_one(one, other):
                del self._objects[one.id], self._objects[other.id]
                one = object_association.merge(one, other)
                self._objects[one.id] = one

    def _look_for_missing(
        self,
        update: PerceivedWindow,
        points: PointMap,
        views: Sequence[int],
        detected_views: set[int],
        ids: set[int],
    ) -> None:
        """Less belief in objects through whose places the newest views look."""
        if not views:
            return
        here = self._here()
        for each in here:
            if each.id in ids:
                continue
            absence = object_belief.absence(update, points, views, detected_views, each, here)
            if absence.change or absence.silent:
                changed = replace(
                    each,
                    evidence=likelihoods.bounded(each.evidence + absence.change),
                    misses=each.misses + (absence.change < 0),
                    overlooked=each.overlooked + absence.silent,
                )
                answered = changed.state is not ObjectState.UNCERTAIN
                self._objects[each.id] = replace(
                    changed, look_again=each.look_again and not answered
                )

    def _mark_moved(self) -> None:
        """What is gone is taken as moved where another of its kind was first seen later."""
        here = self._here()
        for gone in here:
            if gone.there or gone.moved or not gone.confirmed:
                continue
            other = object_belief.successor(gone, here)
            if other is None:
                continue
            self._objects[gone.id] = replace(gone, moved=True, name="")
            if gone.name and not other.name:
                self._objects[other.id] = replace(other, name=gone.name)

    def _bound(self) -> None:
        """Drop what matters least: never confirmed, gone, not seen for long."""
        excess = len(self._objects) - self._max
        if excess > 0:
            ranked = sorted(
                self._objects.values(), key=lambda o: (o.confirmed, o.there, o.last_seen_ns)
            )
            for each in ranked[:excess]:
                del self._objects[each.id]
        anchors = {each.window_id for each in self._objects.values()}
        recent = max(self._places, default=0) - RECENT_WINDOWS
        self._places = {w: p for w, p in self._places.items() if w in anchors or w > recent}

    def replace_all(self, objects: Sequence[MapObject], map_id: int | None = None) -> None:
        """Put loaded objects in place of the present ones, in this map, or in the one that is live
        now."""
        with self._lock:
            self.clear()
            if map_id is not None:
                self._map_id = map_id
            for each in objects[: self._max]:
                self._objects[each.id] = replace(each, map_id=self._map_id, window_id=LOADED)
            self._next_id = 1 + max((self._next_id - 1, *self._objects))


def _apart(one: Sim3, other: Sim3) -> bool:
    """Whether two places of a window differ."""
    return pose_gap(one.apply_pose(np.eye(4)), other.apply_pose(np.eye(4)), MOVED_M, MOVED_RAD) > 1
