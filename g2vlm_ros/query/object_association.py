# SPDX-License-Identifier: Apache-2.0
"""Which object of the map a sighting is of, and what the object is after it.

A sighting belongs to an object by label, size and Mahalanobis distance, else by what the object
covers in a view. Lengths are metres.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from g2vlm_ros.query import recall
from g2vlm_ros.query.labels import label_fit
from g2vlm_ros.query.likelihoods import MAX_EVIDENCE, SIGHTING
from g2vlm_ros.query.map_object import MAX_NAME, MapObject
from g2vlm_ros.query.object_measurement import Object3D
from g2vlm_ros.query.object_sightings import Sighting, picture_of
from g2vlm_ros.query.object_views import Box, image_box, overlap
from g2vlm_ros.query.point_map import PointMap
from g2vlm_ros.records import Intrinsics

PLACE_STD_M = 0.05
"""Error of a place that no covariance tells: another part of the object is seen each time."""
PART_OF_SIZE = 0.25
"""The same, as a fraction of the object's size: how far the middle of a visible part lies off."""
SIZE_RATIO = 2.5
"""Two sizes of one object differ by less than this factor; parts are hidden from some places."""
OVERLAP = 0.5
"""Share of the smaller box that the larger one covers when both are one object."""
MIN_COVER = 0.5
"""Intersection over union of two boxes in an image that are of one object."""
DEPTH_RATIO = 1.4
"""Distances of one object from one camera differ by less than this factor."""
SHARED_STD_M = 0.05
"""No place is surer than this: errors of successive sightings are alike, and a thing that is
pushed a little is followed."""

ALIKE_WINDOWS = 3.0
"""So many sightings say as much as one: windows share views, and the network errs alike. All
weigh the same in the mean: the first is mostly the one from farthest away."""

MIN_GATE = 3.0
"""Squared Mahalanobis distance that a sighting of the same place has on average: one so near is of
the object however doubtful it was."""
PICTURE_GAIN = 1.3
"""A box that is larger by this factor shows a thing better: its picture is taken anew."""


def match(
    sightings: Sequence[Sighting],
    objects: Sequence[MapObject],
    cameras: Sequence[Intrinsics | None],
    points: PointMap,
) -> dict[int, int]:
    """The id of the object that each sighting (by index) is of; none where it is a new one.

    By place, nearest pairs first; then, of those that are left, by what they cover in a view. No
    object takes two sightings of one window. cameras: of the views of `points`.
    """
    remembered = _Remembered(objects)
    pairs = [
        (distance, index, object_id)
        for index, sighting in enumerate(sightings)
        for distance, object_id in remembered.near(sighting)
    ]
    partner: dict[int, int] = {}
    for _, index, object_id in sorted(pairs):
        if index not in partner and object_id not in partner.values():
            partner[index] = object_id
    left = [each for each in objects if each.id not in partner.values()]
    boxes = _ImageBoxes(cameras, points)
    covers = []
    for index, sighting in enumerate(sightings):
        if index not in partner:
            for each in left:
                share = _cover(sighting, each, points, boxes)
                if share >= MIN_COVER:
                    covers.append((-share, index, each.id))
    for _, index, object_id in sorted(covers):
        if index not in partner and object_id not in partner.values():
            partner[index] = object_id
    return partner


class _Remembered:
    """Places and sizes of objects as arrays, to be compared with many sightings."""

    def __init__(self, objects: Sequence[MapObject]):
        self._objects = objects
        self._centres = np.array([each.centre for each in objects]).reshape(-1, 3)
        self._longest = np.array([float(each.size.max()) for each in objects])
        # Another part of an object is seen each time.
        loose = PLACE_STD_M**2 + (PART_OF_SIZE * self._longest / 2) ** 2
        self._gates = np.array([_gate(each) for each in objects])
        covariances = np.array([each.covariance for each in objects]).reshape(-1, 3, 3)
        self._covariances = covariances + loose[:, None, None] * np.eye(3)

    def near(self, sighting: Sighting) -> list[tuple[float, int]]:
        """Squared Mahalanobis distance, and id, of objects whose label, size and place fit."""
        thing = sighting.thing
        off = thing.centre - self._centres
        reach = 4 * math.sqrt(max(float(np.trace(sighting.covariance)), 0.0)) + 2.0
        close = np.linalg.norm(off, axis=1) < reach
        longest = float(np.nan_to_num(thing.size).max())
        if longest > 0:
            # A size that was not measured may be any.
            ratio = np.where(self._longest > 0, self._longest, longest) / longest
            close &= (ratio > 1 / SIZE_RATIO) & (ratio < SIZE_RATIO)
        index = [
            i for i in np.flatnonzero(close) if same_kind(self._objects[i].label, thing.label)
        ]
        if not index:
            return []
        covariances = sighting.covariance + self._covariances[index]
        solved = np.linalg.solve(covariances, off[index][..., None])[..., 0]
        distances = (off[index] * solved).sum(1)
        return [
            (float(distance), self._objects[i].id)
            for distance, i in zip(distances, index, strict=True)
            if distance < self._gates[i]
        ]


def _gate(thing: MapObject) -> float:
    """Squared Mahalanobis distance up to which a sighting is of an object.

    One that views have missed since it was seen last may have gone, and the sighting may be of
    another: log odds of its presence and half the squared distance add up in the likelihood.
    """
    if not thing.misses:
        return recall.GATE
    return max(MIN_GATE, recall.GATE - 2 * (MAX_EVIDENCE - thing.evidence))


class _ImageBoxes:
    """Boxes of objects in the views of a window, each computed once."""

    def __init__(self, cameras: Sequence[Intrinsics | None], points: PointMap):
        self._cameras, self._points = cameras, points
        self._boxes: dict[tuple[int, int], Box | None] = {}

    def of(self, view: int, thing: MapObject) -> Box | None:
        """Of one object in one view; None where it is not before the camera."""
        key = (view, thing.id)
        if key not in self._boxes:
            shown = image_box(self._points, self._cameras[view], view, thing)
            self._boxes[key] = None if shown is None else shown[0]
        return self._boxes[key]


def _cover(sighting: Sighting, other: MapObject, points: PointMap, boxes: _ImageBoxes) -> float:
    """How well an object covers a sighting in the view that it covers best, 0..1.

    Where a thing lies along the line of sight is the surest source of errors; what it covers in
    the image is known well.
    """
    if not same_kind(other.label, sighting.thing.label):
        return 0.0
    best = 0.0
    for region in sighting.thing.regions:
        box = boxes.of(region.view, other)
        if box is None:
            continue
        camera = points.map_from_camera[region.view][:3, 3]
        depths = [
            np.linalg.norm(place - camera) for place in (other.centre, sighting.thing.centre)
        ]
        if max(depths) < DEPTH_RATIO * min(depths):
            best = max(best, overlap(box, region))
    return best


def new_object(object_id: int, sighting: Sighting, map_id: int, window_id: int) -> MapObject:
    """An object that was seen once."""
    thing = sighting.thing
    return MapObject(
        id=object_id,
        label=thing.label[:MAX_NAME],
        centre=thing.centre.astype(np.float64),
        size=np.nan_to_num(thing.size, nan=0.0),
        yaw_rad=float(thing.yaw_rad),
        covariance=sighting.covariance,
        map_id=map_id,
        window_id=window_id,
        first_seen_ns=sighting.stamp_ns,
        last_seen_ns=sighting.stamp_ns,
        camera=sighting.camera,
        box_px=sighting.box_px,
        colour=sighting.colour,
        evidence=_evidence(thing),
        detected=thing.source == "detection",
        seen_from=thing.seen_from,
        picture=picture_of(sighting),
        picture_ns=sighting.stamp_ns,
        picture_px=sighting.area_px,
    )


def _evidence(thing: Object3D) -> float:
    """Log odds of a sighting: what the model points at counts as much as that is sure."""
    if thing.source == "model":
        return max(0.0, recall.log_odds(thing.trust))
    return SIGHTING * thing.trust


def fuse(before: MapObject, sighting: Sighting, window_id: int) -> MapObject:
    """The object after one more sighting: places by their covariances."""
    if sighting.stamp_ns <= before.last_seen_ns:
        return before
    thing = sighting.thing
    centre, size, yaw, covariance = _place_after(before, sighting)
    picture = (before.picture, before.picture_ns, before.picture_px)
    if sighting.area_px > PICTURE_GAIN * before.picture_px:
        picture = (picture_of(sighting), sighting.stamp_ns, sighting.area_px)
    # The longer of two labels says more: "red chair" rather than "chair".
    label = max(before.label, thing.label[:MAX_NAME], key=len)
    return replace(
        before,
        label=label,
        centre=centre,
        size=size,
        yaw_rad=float(yaw),
        covariance=covariance,
        window_id=window_id,
        last_seen_ns=sighting.stamp_ns,
        camera=sighting.camera,
        box_px=sighting.box_px,
        colour=sighting.colour or before.colour,
        evidence=min(MAX_EVIDENCE, max(before.evidence, 0.0) + _evidence(thing)),
        sightings=before.sightings + 1,
        misses=0,
        detected=before.detected or thing.source == "detection",
        look_again=False,
        moved=False,
        seen_from=thing.seen_from,
        picture=picture[0],
        picture_ns=picture[1],
        picture_px=picture[2],
    )


def _floored(covariance: np.ndarray) -> np.ndarray:
    """A covariance of which no axis is surer than SHARED_STD_M."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return (vectors * np.maximum(values, SHARED_STD_M**2)) @ vectors.T


def _mean(
    centres: Sequence[np.ndarray], covariances: Sequence[np.ndarray], counts: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of places (3,) of so many sightings each, weighed by their covariances, and its own.

    n sightings say as much as n / ALIKE_WINDOWS, but never less than one: a covariance of n is
    that of one, or ALIKE_WINDOWS / n of it.
    """
    weights = [
        min(count, ALIKE_WINDOWS) * np.linalg.inv(covariance)
        for covariance, count in zip(covariances, counts, strict=True)
    ]
    together = np.linalg.inv(sum(weights))
    pulls = [weight @ centre for weight, centre in zip(weights, centres, strict=True)]
    return together @ sum(pulls), _floored(min(sum(counts), ALIKE_WINDOWS) * together)


def _hidden(size: np.ndarray, other_size: np.ndarray) -> np.ndarray:
    """float64 (3, 3) by which the middle of a thing may be off where one size (3,) of it is that
    of a part: anywhere along the larger one, evenly probable. A door frame cuts as a border does.
    """
    if not size.any():
        return np.zeros((3, 3))
    longer, higher = np.maximum(other_size - size, 0.0)[[0, 2]]
    return np.diag(np.array([longer, longer, higher]) ** 2) / 12


def _place_after(
    before: MapObject, sighting: Sighting
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Centre, size, yaw and covariance after one more sighting."""
    thing = sighting.thing
    size = np.nan_to_num(thing.size, nan=0.0)
    measured = sighting.covariance + np.eye(3) * PLACE_STD_M**2 + _hidden(size, before.size)
    prior = before.covariance + _hidden(before.size, size)
    centres, covariances = (before.centre, thing.centre), (prior, measured)
    centre, covariance = _mean(centres, covariances, (before.sightings, 1))
    if not size.any():
        return centre, before.size, before.yaw_rad, covariance
    if not before.size.any():
        return centre, size, thing.yaw_rad, covariance
    if thing.cut_across or thing.cut_upright:
        return centre, np.maximum(before.size, size), before.yaw_rad, covariance
    weight = 1.0 / min(before.sightings + 1, 10)
    return centre, (1 - weight) * before.size + weight * size, thing.yaw_rad, covariance


def are_one(one: MapObject, other: MapObject) -> bool:
    """Whether two objects lie in one place and are of one kind."""
    return same_kind(one.label, other.label) and _overlap(one, other) >= OVERLAP


def merge(one: MapObject, other: MapObject) -> MapObject:
    """One object of two: seen last as the newer, sized as the one that was seen more often, where
    both are by their covariances; with the id and the name of the older."""
    both = first, second = sorted((one, other), key=lambda each: each.id)
    newer = max(both, key=lambda each: each.last_seen_ns)
    better_known = max(both, key=lambda each: (each.sightings, each.last_seen_ns))
    best_shown = max(both, key=lambda each: each.picture_px)
    centre, covariance = _mean(
        [each.centre for each in both],
        [each.covariance for each in both],
        [each.sightings for each in both],
    )
    return replace(
        newer,
        centre=centre,
        covariance=covariance,
        size=better_known.size,
        yaw_rad=better_known.yaw_rad,
        picture=best_shown.picture,
        picture_ns=best_shown.picture_ns,
        picture_px=best_shown.picture_px,
        id=first.id,
        name=first.name or second.name,
        sightings=first.sightings + second.sightings,
        misses=min(first.misses, second.misses),
        evidence=max(first.evidence, second.evidence),
        asked=first.asked or second.asked,
        detected=first.detected or second.detected,
        first_seen_ns=min(first.first_seen_ns, second.first_seen_ns),
    )


def same_kind(one: str, other: str) -> bool:
    return bool(label_fit(one, other) or label_fit(other, one))


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
