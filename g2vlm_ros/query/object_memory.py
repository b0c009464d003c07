# SPDX-License-Identifier: Apache-2.0
"""Objects that were seen, at their places in the map, and whether they are still there.

A sighting (an `Object3D` of a detector, a question or the model) is associated with an object by
label, size and Mahalanobis distance. An object is confirmed after MIN_SIGHTINGS. Its belief falls
when the cameras see through its place: what stands before it, or ends at it, is no evidence. Loops
move objects with the window that saw them last. Lengths are metres; windows without are left out.
"""

from __future__ import annotations

import itertools
import json
import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np

from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.pipeline import PerceivedWindow
from g2vlm_ros.query.labels import label_fit, words_of
from g2vlm_ros.query.object_measurement import Object3D, map_covariance
from g2vlm_ros.query.point_map import PointMap
from g2vlm_ros.records import ScaleState

MIN_SIGHTINGS = 3
"""Windows that must show an object before it counts: a detector's error rarely comes thrice."""
GATE = 11.34
"""Squared Mahalanobis distance of 99 % of sightings of one object (chi-square, 3 dimensions)."""
PLACE_STD_M = 0.05
"""Error of a place that no covariance tells: another part of the object is seen each time."""
PART_OF_SIZE = 0.25
"""The same, as a fraction of the object's size: how far the middle of a visible part lies off."""
SIZE_RATIO = 2.5
"""Two sizes of one object differ by less than this factor; parts are hidden from some places."""
OVERLAP = 0.5
"""Share of the smaller box that the larger one covers when both are one object."""
DRIFT_STD_M = 0.01
"""Added to a place at each sighting, so that a thing that is pushed a little is followed."""
SIGHTING, SEEN_THROUGH, NOT_DETECTED = 1.5, -1.2, -0.3
"""Evidence in log odds of a window that shows an object, one whose rays go through its place, and
one that sees its place while the detector shows nothing there. Rays are the surer ones: a detector
overlooks things for many windows in a row."""
MAX_EVIDENCE = 4.0
"""Bound of the sum: after 5 windows of seeing through its place any object is gone."""
MIN_PRESENT, MIN_UNCERTAIN = 0.7, 0.15
"""Belief from which an object counts as present, and below which as gone."""
DEPTH_ERROR = 0.06
"""Relative error of a depth: a ray passes a place where it ends farther behind it than that."""
RAY_MARGIN_M = 0.1
"""The same for small distances."""
MIN_RAYS = 5
"""Of the 9 sample points of an object, those that must lie inside an image to say anything."""
MIN_UPPER_RAYS = 3
"""Of the 5 in its upper half, those that must pass to say that it is gone."""
MAX_NAME = 128
"""Characters of a name or label that are kept."""
NO_MAP = -1
"""Before the first window: what is loaded then lies in the map that comes."""
LOADED = 0
"""Window of loaded objects; windows of this session count from 1, so no correction moves them."""
SAMPLES = np.array([(0, 0, 0), *itertools.product((-0.3, 0.3), repeat=3)])
"""Points inside a box, in fractions of its extents."""
CORNERS = np.array(list(itertools.product((-0.5, 0.0, 0.5), repeat=3)))


class ObjectState(IntEnum):
    """Whether an object is still there; values of MapObject.msg."""

    PRESENT = 0
    UNCERTAIN = 1
    GONE = 2
    MOVED = 3


class ObjectMemoryError(ValueError):
    """Saved objects that cannot be read."""


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
    name: str = ""
    """Given by a person."""
    moved: bool = False
    """Gone, and another one of its kind has been seen elsewhere since."""

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
        """Whether it was seen often enough to count."""
        return self.sightings >= MIN_SIGHTINGS

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
            seen_from=self.centre,
            regions=(),
            source="memory",
            trust=self.belief,
            memory_id=self.id,
        )


@dataclass(frozen=True)
class Sighting:
    """An object that a window shows, with where and when."""

    thing: Object3D
    covariance: np.ndarray
    """float64 (3, 3) in the map."""
    stamp_ns: int
    camera: str
    box_px: tuple[float, float, float, float]
    colour: tuple[float, float, float] | None


def matching(objects: Iterable[MapObject], phrase: str) -> list[MapObject]:
    """The objects that a phrase means, the likeliest first: those of that name, else by label.

    Where one fits wholly ("red chair"), those that only are of its kind ("chair") are left out.
    """
    wanted = words_of(phrase)
    fits = []
    for each in objects:
        fit = 2.0 if each.name and words_of(each.name) == wanted else label_fit(phrase, each.label)
        if fit:
            fits.append((fit, each))
    best = max((fit for fit, _ in fits), default=0.0)
    kept = [each for fit, each in fits if fit == best]
    return sorted(kept, key=lambda each: (-each.belief, -each.last_seen_ns))


def age_in_words(thing: MapObject, now_ns: int) -> str:
    """How long ago it was seen: "40 s", "12 minutes", "3 hours", "2 days"."""
    age_s = max(0.0, (now_ns - thing.last_seen_ns) * 1e-9)
    for length_s, unit in ((86400.0, "day"), (3600.0, "hour"), (60.0, "minute")):
        if age_s >= length_s:
            count = int(age_s // length_s)
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return f"{age_s:.0f} s"


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
        contains: Any = None,
        seen_since_ns: int = 0,
        with_gone: bool = False,
    ) -> list[MapObject]:
        """Confirmed objects by words, region and time, the likeliest first.

        contains(points (n, 3)): bool (n,), which centres are wanted; None = all.
        """
        objects = self.objects()
        if words:
            objects = matching(objects, words)
        else:
            objects = sorted(objects, key=lambda each: (-each.belief, -each.last_seen_ns))
        if contains is not None and objects:
            inside = contains(np.array([each.centre for each in objects]))
            objects = [each for each, keep in zip(objects, inside, strict=True) if keep]
        return [
            each
            for each in objects
            if (with_gone or each.there) and each.last_seen_ns >= seen_since_ns
        ]

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
            seen = self._associate(sightings, update)
            views = [view for view in update.new_views if view in update.trusted_views]
            self._look_for_missing(update, points, views, set(detected_views), seen)
            self._mark_moved()
            self._bound()
            self._version += 1

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
                self._objects[each.id] = _transformed(each, motion)

    def _associate(self, sightings: Sequence[Sighting], update: PerceivedWindow) -> set[int]:
        """Fuse sightings with the objects that they are of; new ones for the rest. Their ids."""
        pairs = []
        for index, sighting in enumerate(sightings):
            for each in self._near(sighting):
                distance = _distance(sighting, each)
                if distance < GATE:
                    pairs.append((distance, index, each.id))
        partner: dict[int, int] = {}
        for _, index, object_id in sorted(pairs):
            if index not in partner and object_id not in partner.values():
                partner[index] = object_id
        seen = set()
        for index, sighting in enumerate(sightings):
            if index in partner:
                known = self._objects[partner[index]]
                changed = _fused(known, sighting, update.window.id)
            else:
                changed = _new_object(self._next_id, sighting, update)
                self._next_id += 1
            self._objects[changed.id] = changed
            seen.add(changed.id)
        for object_id in sorted(seen):
            self._merge_duplicates(object_id)
        return seen

    def _near(self, sighting: Sighting) -> list[MapObject]:
        """Objects whose label, size and rough place fit."""
        here = self._here()
        if not here:
            return []
        centres = np.array([each.centre for each in here])
        reach = 4 * math.sqrt(max(float(np.trace(sighting.covariance)), 0.0)) + 2.0
        close = np.linalg.norm(centres - sighting.thing.centre, axis=1) < reach
        return [
            here[i]
            for i in np.flatnonzero(close)
            if _same_kind(here[i].label, sighting.thing.label)
            and _same_size(here[i].size, sighting.thing.size)
        ]

    def _merge_duplicates(self, object_id: int) -> None:
        """One object of two that lie in one place; the older one's id and name stay."""
        if object_id not in self._objects:
            return
        one = self._objects[object_id]
        for other in self._here():
            if other.id == one.id or other.id not in self._objects:
                continue  # itself, or merged a moment ago
            if not _same_kind(one.label, other.label):
                continue
            if _overlap(one, other) < OVERLAP:
                continue
            first, second = sorted((one, other), key=lambda each: each.id)
            newer = max((one, other), key=lambda each: each.last_seen_ns)
            one = replace(
                newer,
                id=first.id,
                name=first.name or second.name,
                sightings=first.sightings + second.sightings,
                misses=min(first.misses, second.misses),
                evidence=max(first.evidence, second.evidence),
                first_seen_ns=min(first.first_seen_ns, second.first_seen_ns),
            )
            del self._objects[second.id]
            self._objects[first.id] = one

    def _look_for_missing(
        self,
        update: PerceivedWindow,
        points: PointMap,
        views: Sequence[int],
        detected_views: set[int],
        seen: set[int],
    ) -> None:
        """Less belief in objects through whose places the newest views look."""
        if not views:
            return
        for each in self._here():
            if each.id in seen:
                continue
            changes = []
            for view in views:
                look = _look(update, points, view, each)
                if look == "through":
                    changes.append(SEEN_THROUGH)
                elif look == "at" and view in detected_views:
                    changes.append(NOT_DETECTED)
                elif look == "at":
                    changes.append(0.0)
            # A view that ends at the place outweighs one whose ray misses the thing by a little.
            if changes and not (min(changes) == SEEN_THROUGH and max(changes) > SEEN_THROUGH):
                change = min(changes)
                if change:
                    evidence = max(-MAX_EVIDENCE, each.evidence + change)
                    self._objects[each.id] = replace(
                        each, evidence=evidence, misses=each.misses + 1
                    )

    def _mark_moved(self) -> None:
        """What is gone is taken as moved where another of its kind was first seen later."""
        here = self._here()
        for gone in here:
            if gone.there or gone.moved or not gone.confirmed:
                continue
            for other in here:
                later = other.first_seen_ns > gone.last_seen_ns and other.confirmed
                if later and other.there and other.label == gone.label and not _taken(other, here):
                    self._objects[gone.id] = replace(gone, moved=True, name="")
                    if gone.name and not other.name:
                        self._objects[other.id] = replace(other, name=gone.name)
                    break

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
        newest = max(self._places)
        self._places = {w: p for w, p in self._places.items() if w in anchors or w == newest}

    # Files -----------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """The confirmed objects of the current map, as JSON."""
        rows = []
        for each in self.objects():
            row = asdict(each)
            for field in ("centre", "size", "covariance"):
                row[field] = row[field].ravel().tolist()
            rows.append(row)
        return json.dumps({"version": 1, "objects": rows}).encode()

    def replace_all(self, objects: Sequence[MapObject]) -> None:
        """Put loaded objects in place of the present ones, in the map that is live now."""
        with self._lock:
            self.clear()
            for each in objects[: self._max]:
                self._objects[each.id] = replace(each, map_id=self._map_id, window_id=LOADED)
            self._next_id = 1 + max((self._next_id - 1, *self._objects))


def sightings_of(
    update: PerceivedWindow, points: PointMap, things: Sequence[Object3D], to_pixels: Any
) -> list[Sighting]:
    """Objects of a window as sightings, each by its newest view.

    points: of all views. to_pixels(region): its corners (u0, v0, u1, v1) in the camera image.
    """
    sightings = []
    for thing in things:
        if not thing.regions or not np.isfinite(thing.centre).all():
            continue
        region = max(thing.regions, key=lambda r: update.window.frames[r.view].stamp_ns)
        frame = update.window.frames[region.view]
        corners = to_pixels(region)
        sightings.append(
            Sighting(
                thing,
                map_covariance(points, thing),
                frame.stamp_ns,
                frame.camera,
                corners,
                _mean_colour(update.scene.images[region.view], corners),
            )
        )
    return sightings


def _mean_colour(image: np.ndarray, corners: Sequence[float]) -> tuple[float, float, float] | None:
    """Mean RGB of the inner half of a box, 0..1."""
    u0, v0, u1, v1 = corners
    du, dv = (u1 - u0) / 4, (v1 - v0) / 4
    height, width = image.shape[:2]
    rows = slice(max(0, round(v0 + dv)), min(height, round(v1 - dv) + 1))
    columns = slice(max(0, round(u0 + du)), min(width, round(u1 - du) + 1))
    patch = image[rows, columns]
    if not patch.size:
        return None
    red, green, blue = (patch.reshape(-1, 3).mean(0) / 255.0).tolist()
    return red, green, blue


def _new_object(object_id: int, sighting: Sighting, update: PerceivedWindow) -> MapObject:
    thing = sighting.thing
    return MapObject(
        id=object_id,
        label=thing.label[:MAX_NAME],
        centre=thing.centre.astype(np.float64),
        size=np.nan_to_num(thing.size, nan=0.0),
        yaw_rad=float(thing.yaw_rad),
        covariance=sighting.covariance,
        map_id=update.placement.map_id,
        window_id=update.window.id,
        first_seen_ns=sighting.stamp_ns,
        last_seen_ns=sighting.stamp_ns,
        camera=sighting.camera,
        box_px=sighting.box_px,
        colour=sighting.colour,
        evidence=SIGHTING * thing.trust,
    )


def _fused(known: MapObject, sighting: Sighting, window_id: int) -> MapObject:
    """The object after one more sighting: places by their covariances."""
    if sighting.stamp_ns <= known.last_seen_ns:
        return known
    thing = sighting.thing
    before = known.covariance + np.eye(3) * DRIFT_STD_M**2
    seen = sighting.covariance + np.eye(3) * PLACE_STD_M**2
    gain = before @ np.linalg.inv(before + seen)
    centre = known.centre + gain @ (thing.centre - known.centre)
    size = np.nan_to_num(thing.size, nan=0.0)
    cut = thing.cut_across or thing.cut_upright
    weight = 1.0 / min(known.sightings + 1, 10)
    if not known.size.any():
        extents, yaw = size, thing.yaw_rad
    elif not size.any() or cut:
        extents, yaw = np.maximum(known.size, size), known.yaw_rad
    else:
        extents, yaw = (1 - weight) * known.size + weight * size, thing.yaw_rad
    # The longer of two labels says more: "red chair" rather than "chair".
    label = max(known.label, thing.label[:MAX_NAME], key=len)
    return replace(
        known,
        label=label,
        centre=centre,
        size=extents,
        yaw_rad=float(yaw),
        covariance=(np.eye(3) - gain) @ before,
        window_id=window_id,
        last_seen_ns=sighting.stamp_ns,
        camera=sighting.camera,
        box_px=sighting.box_px,
        colour=sighting.colour or known.colour,
        evidence=min(MAX_EVIDENCE, max(known.evidence, 0.0) + SIGHTING * thing.trust),
        sightings=known.sightings + 1,
        misses=0,
        moved=False,
    )


def _same_kind(one: str, other: str) -> bool:
    return bool(label_fit(one, other) or label_fit(other, one))


def _same_size(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two sizes may be of one object; one that was not measured may be any."""
    one, other = (np.nan_to_num(each, nan=0.0) for each in (one, other))
    if not one.any() or not other.any():
        return True
    ratio = max(float(one.max()), 1e-6) / max(float(other.max()), 1e-6)
    return 1 / SIZE_RATIO < ratio < SIZE_RATIO


def _distance(sighting: Sighting, known: MapObject) -> float:
    """Squared Mahalanobis distance of a sighting from an object."""
    part = PART_OF_SIZE * max(float(known.size.max()), 0.0)
    loose = PLACE_STD_M**2 + (part / 2) ** 2
    covariance = sighting.covariance + known.covariance + np.eye(3) * loose
    off = sighting.thing.centre - known.centre
    return float(off @ np.linalg.solve(covariance, off))


def _overlap(one: MapObject, other: MapObject) -> float:
    """Share of the smaller box that the other covers, by their upright hulls; 0 without sizes."""
    if not (one.size > 0).all() or not (other.size > 0).all():
        return 0.0
    lows, highs, volumes = [], [], []
    for each in (one, other):
        half = np.abs(each.axes) @ (each.size / 2)
        lows.append(each.centre - half)
        highs.append(each.centre + half)
        volumes.append(float(np.prod(2 * half)))
    shared = np.minimum(*highs) - np.maximum(*lows)
    if (shared <= 0).any():
        return 0.0
    return float(np.prod(shared)) / min(volumes)


def _look(update: PerceivedWindow, points: PointMap, view: int, known: MapObject) -> str:
    """What a view sees of an object's place: "through" it, "at" it, or "" (nothing certain)."""
    camera = update.result.intrinsics[view]
    if camera is None or not known.confirmed:
        return ""
    samples = known.centre + (SAMPLES * known.size) @ known.axes.T
    pose = points.map_from_camera[view]
    local = (samples - pose[:3, 3]) @ pose[:3, :3]
    ahead = local[:, 2] > RAY_MARGIN_M
    if not ahead.all():
        return ""
    u = np.rint(camera.fx_px * local[:, 0] / local[:, 2] + camera.cx_px).astype(int)
    v = np.rint(camera.fy_px * local[:, 1] / local[:, 2] + camera.cy_px).astype(int)
    width, height = points.size_px
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    if np.count_nonzero(inside) < MIN_RAYS:
        return ""
    depth = points.depth[view, v[inside], u[inside]]
    far = local[inside, 2]
    spread = math.sqrt(max(float(np.linalg.eigvalsh(known.covariance)[-1]), 0.0))
    half = float(known.size.max()) / 2
    margin = RAY_MARGIN_M + DEPTH_ERROR * far + 2 * spread
    usable = np.isfinite(depth) & (depth > 0)
    if np.count_nonzero(usable) < MIN_RAYS:
        return ""
    passes = depth > far + half + margin
    blocked = depth < far - half - margin
    if blocked[usable].any():
        return ""
    # Behind the lower part lies the floor that it stands on: only what looks through the upper
    # one tells.
    upper = usable & (samples[inside, 2] >= known.centre[2])
    if np.count_nonzero(upper) >= MIN_UPPER_RAYS and passes[upper].all():
        return "through"
    return "" if passes[usable].any() else "at"


def _taken(other: MapObject, here: Sequence[MapObject]) -> bool:
    """Whether what was seen later already stands for another object that went."""
    return any(
        each.moved and each.label == other.label and other.first_seen_ns > each.last_seen_ns
        for each in here
    )


def _transformed(known: MapObject, motion: Sim3) -> MapObject:
    turn = motion.rotation
    return replace(
        known,
        centre=motion.apply(known.centre[None])[0],
        size=known.size * motion.scale,
        yaw_rad=known.yaw_rad + math.atan2(turn[1, 0], turn[0, 0]),
        covariance=motion.scale**2 * turn @ known.covariance @ turn.T,
    )


def from_bytes(content: bytes, map_from_file: Sim3) -> list[MapObject]:
    """The objects of `ObjectMemory.to_bytes`, each checked; none of nothing.

    map_from_file, rigid: where the file's origin lies now. ObjectMemoryError says what is wrong.
    """
    return [_transformed(each, map_from_file) for each in _read(content)] if content else []


def _read(content: bytes) -> list[MapObject]:
    try:
        document = json.loads(content)
        if document["version"] != 1:
            raise ObjectMemoryError(f"saved objects have version {document['version']}, not 1")
        objects = []
        for row in document["objects"]:
            numbers = {
                field: np.array(row[field], np.float64).reshape(shape)
                for field, shape in (("centre", 3), ("size", 3), ("covariance", (3, 3)))
            }
            colour = row["colour"]
            each = MapObject(
                **{
                    **row,
                    **numbers,
                    "id": int(row["id"]),
                    "label": str(row["label"])[:MAX_NAME],
                    "name": str(row["name"])[:MAX_NAME],
                    "box_px": tuple(float(corner) for corner in row["box_px"]),
                    "colour": None if colour is None else tuple(float(c) for c in colour),
                }
            )
            finite = [each.centre, each.size, each.covariance, each.yaw_rad, each.evidence]
            if not all(np.isfinite(value).all() for value in finite) or each.id < 1:
                raise ObjectMemoryError(f"saved object {each.id} is not finite")
            objects.append(each)
        return objects
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, ObjectMemoryError):
            raise
        raise ObjectMemoryError(f"saved objects are damaged: {error}") from error
