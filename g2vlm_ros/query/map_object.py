# SPDX-License-Identifier: Apache-2.0
"""An object at its place in the map, its belief and state, and the words that mean it."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.query.labels import label_fit, words_of
from g2vlm_ros.query.likelihoods import SIGHTING
from g2vlm_ros.query.object_measurement import Object3D

MIN_SIGHTINGS = 3
"""Windows that must show an object before it counts: a detector's error rarely comes thrice."""
MIN_PRESENT, MIN_UNCERTAIN = 0.7, 0.15
"""Belief from which an object counts as present, and below which as gone."""
MAX_NAME = 128
"""Characters of a name or label that are kept."""
CORNERS = np.array(list(itertools.product((-0.5, 0.0, 0.5), repeat=3)))


class ObjectState(IntEnum):
    """Whether an object is still there; values of MapObject.msg."""

    PRESENT = 0
    UNCERTAIN = 1
    GONE = 2
    MOVED = 3


@dataclass(frozen=True)
class MapObject:
    """A remembered object; places in the map frame, lengths in metres."""

    id: int
    label: str
    centre: np.ndarray
    """float64 (3,)."""
    size: np.ndarray
    """float64 (3,): longer and shorter horizontal extent, height; 0 where it was not measured."""
    yaw_rad: float
    """Of the longer horizontal extent about z."""
    covariance: np.ndarray
    """float64 (3, 3) of `centre` in the map."""
    map_id: int
    window_id: int
    """The window that saw it last: it moves with that one."""
    first_seen_ns: int
    last_seen_ns: int
    """Acquisition of the first and the last view that showed it."""
    camera: str = ""
    """Of the last view, with its box (u0, v0, u1, v1) in pixels of the camera image."""
    box_px: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    colour: tuple[float, float, float] | None = None
    """Mean RGB, 0..1."""
    evidence: float = SIGHTING
    """Log odds that it is there."""
    sightings: int = 1
    misses: int = 0
    overlooked: int = 0
    """Windows whose detector looked at its place and did not show it."""
    name: str = ""
    """Given by a person."""
    asked: bool = False
    """Whether an answer was about it: whoever asked may come back to it, so it counts at once."""
    detected: bool = True
    """Whether a detector has shown it: else a detector may not know its kind, and its silence says
    nothing."""
    look_again: bool = False
    """Whether somebody asked for another look, and no window has seen its place since."""
    moved: bool = False
    """Gone, and another one of its kind has been seen elsewhere since."""
    seen_from: np.ndarray | None = None
    """float64 (3,): the camera that saw it last; None where that is not known."""
    picture: bytes = b""
    """JPEG of the box in the view that showed it best; empty = none."""
    picture_ns: int = 0
    """Acquisition of that view."""
    picture_px: float = 0.0
    """Area of the box in that view."""
    room: int = 0
    """Id of the room that it is in; 0 = none is known."""
    room_name: str = ""

    @property
    def belief(self) -> float:
        """0..1: how probable it is that the object is there."""
        return 1.0 / (1.0 + math.exp(-self.evidence))

    @property
    def state(self) -> ObjectState:
        """Whether it is there."""
        if self.belief >= MIN_PRESENT:
            return ObjectState.PRESENT
        if self.belief >= MIN_UNCERTAIN:
            return ObjectState.UNCERTAIN
        return ObjectState.MOVED if self.moved else ObjectState.GONE

    @property
    def there(self) -> bool:
        """Whether it is not known to have gone."""
        return self.state in (ObjectState.PRESENT, ObjectState.UNCERTAIN)

    @property
    def confirmed(self) -> bool:
        """Whether it was seen often enough to count, or asked about."""
        return self.asked or self.sightings >= MIN_SIGHTINGS

    @property
    def room_title(self) -> str:
        """What to call the room that it is in."""
        return f"the {self.room_name}" if self.room_name else f"room {self.room}"

    @property
    def axes(self) -> np.ndarray:
        """map_from_object rotation float64 (3, 3)."""
        c, s = math.cos(self.yaw_rad), math.sin(self.yaw_rad)
        return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])

    def place_in_words(self) -> str:
        """(x, y, z) in metres."""
        x, y, z = self.centre
        return f"({x:.2f}, {y:.2f}, {z:.2f})"

    def as_object3d(self) -> Object3D:
        """It as something that can be measured: its box instead of its surface."""
        box = self.centre + (CORNERS * self.size) @ self.axes.T
        size = self.size if (self.size > 0).all() else np.full(3, np.nan)
        spread = math.sqrt(max(float(np.trace(self.covariance)) / 3, 0.0))
        return Object3D(
            label=self.label,
            points=box,
            position=self.centre,
            centre=self.centre,
            size=size,
            size_std=spread,
            yaw_rad=self.yaw_rad,
            covariance=self.covariance,
            confidence=1.0,
            visible=0.0,
            cut_across=False,
            cut_upright=False,
            seen_from=self.centre if self.seen_from is None else self.seen_from,
            regions=(),
            source="memory",
            trust=self.belief,
            memory_id=self.id,
        )


def matching(objects: Iterable[MapObject], phrase: str) -> list[MapObject]:
    """The objects that a phrase means, the likeliest first: those of that name, else by label.

    A "chair" is no "red chair": its colour is not known (`undetermined`).
    """
    objects, phrase_words = list(objects), words_of(phrase)
    named = [each for each in objects if each.name and words_of(each.name) == phrase_words]
    return _likeliest_first(
        named or [each for each in objects if label_fit(phrase, each.label) == 1.0]
    )


def undetermined(objects: Iterable[MapObject], phrase: str) -> list[MapObject]:
    """The objects that a phrase may mean as well: they are of its kind, but their labels do not
    tell an attribute that it asks for."""
    return _likeliest_first(
        [each for each in objects if 0.0 < label_fit(phrase, each.label) < 1.0]
    )


def _likeliest_first(objects: Iterable[MapObject]) -> list[MapObject]:
    return sorted(objects, key=lambda each: (-each.belief, -each.last_seen_ns))


def in_room(each: MapObject, room: str) -> bool:
    """Whether an object is in a room that is called by name or number: "kitchen", "room 2"."""
    return each.room != 0 and is_room(room, each.room, each.room_name)


def is_room(words: str, room_id: int, name: str) -> bool:
    """Whether words call a room: its name, "2" or "room 2"."""
    called = words_of(words)
    by_number = called[-1:] == (str(room_id),) and called[:-1] in ((), ("room",))
    return by_number or (bool(name) and called == words_of(name))


def listing(objects: Iterable[MapObject]) -> str:
    """Kinds of objects with their counts: "2 × red chair, a table"."""
    counts = Counter(each.name or each.label for each in objects)
    return ", ".join(f"{n} × {label}" if n > 1 else f"a {label}" for label, n in counts.items())


def age_in_words(thing: MapObject, now_ns: int) -> str:
    """How long ago it was seen: "40 s", "12 minutes", "3 hours", "2 days"."""
    age_s = max(0.0, (now_ns - thing.last_seen_ns) * 1e-9)
    for length_s, unit in ((86400.0, "day"), (3600.0, "hour"), (60.0, "minute")):
        if age_s >= length_s:
            count = int(age_s // length_s)
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return f"{age_s:.0f} s"


def transformed(thing: MapObject, motion: Sim3) -> MapObject:
    """The object after a motion of the map; its room is looked up anew."""
    turn, camera = motion.rotation, thing.seen_from
    return replace(
        thing,
        centre=motion.apply(thing.centre[None])[0],
        size=thing.size * motion.scale,
        yaw_rad=thing.yaw_rad + math.atan2(turn[1, 0], turn[0, 0]),
        covariance=motion.scale**2 * turn @ thing.covariance @ turn.T,
        seen_from=None if camera is None else motion.apply(camera[None])[0],
    )
