# SPDX-License-Identifier: Apache-2.0
"""Which object of the map a sighting is of, and what the object is after it.

A sighting is an `Object3D` of a detector, a question or the model. It belongs to an object by
label, size and Mahalanobis distance. Lengths are metres.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from g2vlm_ros.pipeline import PerceivedWindow
from g2vlm_ros.query.labels import label_fit
from g2vlm_ros.query.map_object import MAX_EVIDENCE, MAX_NAME, SIGHTING, MapObject
from g2vlm_ros.query.object_measurement import Object3D, compact, map_covariance
from g2vlm_ros.query.object_views import image_box, overlap
from g2vlm_ros.query.point_map import PointMap

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
MIN_COVER = 0.5
"""Intersection over union of two boxes in an image that are of one object."""
DEPTH_RATIO = 1.4
"""Distances of one object from one camera differ by less than this factor."""
ALONG_STD_M, FAR_STD_PER_M = 0.15, 0.02
"""Error of a distance that all points of a thing share, and what it is over the square of the
distance: windows place the same wall differently. Measured on validation homes."""
CUT_STD_M = 0.4
"""How far the middle of a thing that a border cuts is from that of its part."""
SHARED_STD_M = 0.05
"""No place is surer than this: errors of successive sightings are alike, and a thing that is
pushed a little is followed."""
BORDER_PX = 4.0
"""A detector's box that ends so near to the border of the image is cut by it, model pixels."""

PICTURE_GAIN = 1.3
"""A box that is larger by this factor shows a thing better: its picture is taken anew."""
PICTURE_EDGE_PX = 160
"""Longer edge of a picture at most: some 5 kB."""
PICTURE_MARGIN = 0.15
"""Of the box's size, around it."""
PICTURE_QUALITY = 80
"""JPEG."""


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
    image: np.ndarray
    """uint8 (h, w, 3) RGB: the view that `box_px` lies in."""

    @property
    def area_px(self) -> float:
        """Of its box."""
        u0, v0, u1, v1 = self.box_px
        return (u1 - u0) * (v1 - v0)


def sightings_of(
    update: PerceivedWindow, points: PointMap, things: Sequence[Object3D], to_pixels: Any
) -> list[Sighting]:
    """Objects of a window as sightings, each by its newest view.

    points: of all views. to_pixels(region): its corners (u0, v0, u1, v1) in the camera image.
    """
    sightings = []
    for thing in things:
        thing = _cut_at_borders(points, compact(thing))
        if not thing.regions or not np.isfinite(thing.centre).all():
            continue
        region = max(thing.regions, key=lambda r: update.window.frames[r.view].stamp_ns)
        frame = update.window.frames[region.view]
        corners, image = to_pixels(region), update.scene.images[region.view]
        sightings.append(
            Sighting(
                thing,
                _sighting_covariance(points, thing),
                frame.stamp_ns,
                frame.camera,
                corners,
                _mean_colour(image, corners),
                image,
            )
        )
    return sightings


def _cut_at_borders(points: PointMap, thing: Object3D) -> Object3D:
    """The thing, cut where all boxes around it end at a border of their images."""
    width, height = points.size_px
    across, upright = [], []
    for region in thing.regions:
        (left, top), (right, bottom) = region.low_px, region.high_px
        across.append(left < BORDER_PX or right > width - 1 - BORDER_PX)
        upright.append(top < BORDER_PX or bottom > height - 1 - BORDER_PX)
    return replace(
        thing,
        cut_across=bool(across) and all(across),
        cut_upright=bool(upright) and all(upright),
    )


def _sighting_covariance(points: PointMap, thing: Object3D) -> np.ndarray:
    """float64 (3, 3) of its centre in the map, for a thing of which a part may be hidden.

    Depths far away are too short together, which no scatter of points shows. What the border of
    the image cuts has its middle somewhere beyond it.
    """
    covariance = map_covariance(points, thing)
    ray = thing.centre - thing.seen_from
    distance = float(np.linalg.norm(ray))
    ray = ray / max(distance, 1e-9)
    along = ALONG_STD_M**2 + (FAR_STD_PER_M * distance**2) ** 2
    covariance = covariance + along * np.outer(ray, ray)
    if thing.cut_across:
        across = np.array([-ray[1], ray[0], 0.0])
        covariance = covariance + CUT_STD_M**2 * np.outer(across, across)
    if thing.cut_upright:
        covariance = covariance + np.diag([0.0, 0.0, CUT_STD_M**2])
    return covariance


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


def _picture(sighting: Sighting) -> bytes:
    """JPEG of what a box shows, a little around it included; empty outside the image."""
    u0, v0, u1, v1 = sighting.box_px
    du, dv = PICTURE_MARGIN * (u1 - u0), PICTURE_MARGIN * (v1 - v0)
    height, width = sighting.image.shape[:2]
    rows = slice(max(0, round(v0 - dv)), min(height, round(v1 + dv) + 1))
    columns = slice(max(0, round(u0 - du)), min(width, round(u1 + du) + 1))
    patch = sighting.image[rows, columns]
    if not patch.size:
        return b""
    scale = min(1.0, PICTURE_EDGE_PX / max(patch.shape[:2]))
    size = [max(1, round(scale * edge)) for edge in (patch.shape[1], patch.shape[0])]
    small = cv2.resize(patch, size, interpolation=cv2.INTER_AREA)
    quality = [cv2.IMWRITE_JPEG_QUALITY, PICTURE_QUALITY]
    _, jpeg = cv2.imencode(".jpg", small[..., ::-1], quality)
    return jpeg.tobytes()


def match(
    sightings: Sequence[Sighting],
    objects: Sequence[MapObject],
    update: PerceivedWindow,
    points: PointMap,
) -> dict[int, int]:
    """The id of the object that each sighting (by index) is of; none where it is a new one.

    By place, nearest pairs first; then, of those that are left, by what they cover in a view. No
    object takes two sightings of one window.
    """
    pairs = []
    for index, sighting in enumerate(sightings):
        for each in _near(sighting, objects):
            distance = _distance(sighting, each)
            if distance < GATE:
                pairs.append((distance, index, each.id))
    partner: dict[int, int] = {}
    for _, index, object_id in sorted(pairs):
        if index not in partner and object_id not in partner.values():
            partner[index] = object_id
    left = [each for each in objects if each.id not in partner.values()]
    covers = []
    for index, sighting in enumerate(sightings):
        if index not in partner:
            for each in left:
                share = _cover(sighting, each, update, points)
                if share >= MIN_COVER:
                    covers.append((-share, index, each.id))
    for _, index, object_id in sorted(covers):
        if index not in partner and object_id not in partner.values():
            partner[index] = object_id
    return partner


def _cover(
    sighting: Sighting, other: MapObject, update: PerceivedWindow, points: PointMap
) -> float:
    """How well an object covers a sighting in the view that it covers best, 0..1.

    Where a thing lies along the line of sight is the surest source of errors; what it covers in
    the image is known well.
    """
    if not same_kind(other.label, sighting.thing.label):
        return 0.0
    best = 0.0
    for region in sighting.thing.regions:
        box = image_box(points, update.result.intrinsics[region.view], region.view, other)
        if box is None:
            continue
        camera = points.map_from_camera[region.view][:3, 3]
        depths = [
            np.linalg.norm(place - camera) for place in (other.centre, sighting.thing.centre)
        ]
        if max(depths) < DEPTH_RATIO * min(depths):
            best = max(best, overlap(box[0], region))
    return best


def _near(sighting: Sighting, objects: Sequence[MapObject]) -> list[MapObject]:
    """Objects whose label, size and rough place fit."""
    if not objects:
        return []
    centres = np.array([each.centre for each in objects])
    reach = 4 * math.sqrt(max(float(np.trace(sighting.covariance)), 0.0)) + 2.0
    close = np.linalg.norm(centres - sighting.thing.centre, axis=1) < reach
    return [
        objects[i]
        for i in np.flatnonzero(close)
        if same_kind(objects[i].label, sighting.thing.label)
        and _same_size(objects[i].size, sighting.thing.size)
    ]


def new_object(object_id: int, sighting: Sighting, update: PerceivedWindow) -> MapObject:
    """An object that was seen once."""
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
        seen_from=thing.seen_from,
        picture=_picture(sighting),
        picture_ns=sighting.stamp_ns,
        picture_px=sighting.area_px,
    )


def fuse(before: MapObject, sighting: Sighting, window_id: int) -> MapObject:
    """The object after one more sighting: places by their covariances."""
    if sighting.stamp_ns <= before.last_seen_ns:
        return before
    thing = sighting.thing
    centre, size, yaw, covariance = _place_after(before, sighting)
    picture = (before.picture, before.picture_ns, before.picture_px)
    if sighting.area_px > PICTURE_GAIN * before.picture_px:
        picture = (_picture(sighting), sighting.stamp_ns, sighting.area_px)
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
        evidence=min(MAX_EVIDENCE, max(before.evidence, 0.0) + SIGHTING * thing.trust),
        sightings=before.sightings + 1,
        misses=0,
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


def _place_after(
    before: MapObject, sighting: Sighting
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Centre, size, yaw and covariance after one more sighting."""
    thing = sighting.thing
    prior = before.covariance
    measured = sighting.covariance + np.eye(3) * PLACE_STD_M**2
    gain = prior @ np.linalg.inv(prior + measured)
    centre = before.centre + gain @ (thing.centre - before.centre)
    covariance = _floored((np.eye(3) - gain) @ prior)
    size = np.nan_to_num(thing.size, nan=0.0)
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
    """One object of two: as the newer was seen, with the id and the name of the older."""
    first, second = sorted((one, other), key=lambda each: each.id)
    newer = max((one, other), key=lambda each: each.last_seen_ns)
    best_shown = max((one, other), key=lambda each: each.picture_px)
    return replace(
        newer,
        picture=best_shown.picture,
        picture_ns=best_shown.picture_ns,
        picture_px=best_shown.picture_px,
        id=first.id,
        name=first.name or second.name,
        sightings=first.sightings + second.sightings,
        misses=min(first.misses, second.misses),
        evidence=max(first.evidence, second.evidence),
        first_seen_ns=min(first.first_seen_ns, second.first_seen_ns),
    )


def same_kind(one: str, other: str) -> bool:
    return bool(label_fit(one, other) or label_fit(other, one))


def _same_size(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two sizes may be of one object; one that was not measured may be any."""
    one, other = (np.nan_to_num(each, nan=0.0) for each in (one, other))
    if not one.any() or not other.any():
        return True
    ratio = max(float(one.max()), 1e-6) / max(float(other.max()), 1e-6)
    return 1 / SIZE_RATIO < ratio < SIZE_RATIO


def _distance(sighting: Sighting, other: MapObject) -> float:
    """Squared Mahalanobis distance of a sighting from an object."""
    part = PART_OF_SIZE * max(float(other.size.max()), 0.0)
    loose = PLACE_STD_M**2 + (part / 2) ** 2
    covariance = sighting.covariance + other.covariance + np.eye(3) * loose
    off = sighting.thing.centre - other.centre
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
