# SPDX-License-Identifier: Apache-2.0
"""Whether an object of the map is still there, by what the views show of its place.

Its belief falls where cameras see through its place, or a detector looks at it and is silent, the
more where the colour there is another one; what stands before it says nothing. What each counts is
in `likelihoods`. Lengths are metres.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from g2vlm_ros.images.preprocessing import PixelMap
from g2vlm_ros.pipeline import PerceivedWindow
from g2vlm_ros.query import likelihoods
from g2vlm_ros.query.map_object import MapObject
from g2vlm_ros.query.object_sightings import mean_colour
from g2vlm_ros.query.object_views import Box, image_box, pixels
from g2vlm_ros.query.point_map import PointMap

DEPTH_ERROR = 0.06
"""Relative error of a depth: a ray passes a place where it ends farther behind it than that."""
RAY_MARGIN_M = 0.1
"""The same for small distances."""
MIN_RAYS = 5
"""Of the 9 sample points of an object, those that must lie inside an image to say anything."""
MIN_UPPER_RAYS = 3
"""Of the 5 in its upper half, those that must pass to say that it is gone."""
MIN_SHARE = 0.4
"""Of an object's box that an image must show for a detector to be expected to show the object. On
validation homes .6 noticed 25 changes of 32, .4 noticed 28, neither said of one of 51 things that
stayed that it was gone."""
MIN_AREA_PX = 100.0
"""The same for the box's area, in model pixels."""
SAMPLES = np.array([(0, 0, 0), *itertools.product((-0.3, 0.3), repeat=3)])
"""Points inside a box, in fractions of its extents."""


class Look(Enum):
    """What a view shows of an object's place."""

    THROUGH = "through"
    """A surface behind it: the object is gone."""
    AT = "at"
    """A surface there, of the object or of another one."""
    BESIDE = "beside"
    """Partly behind it: a detector would see the object, rays alone do not tell."""
    HIDDEN = "hidden"
    """Something before it, or not in the image: nothing is known."""


@dataclass(frozen=True)
class Absence:
    """What a window in which an object was not found says of it by what lies at its place."""

    change: float = 0.0
    """Log odds: against it; for it only where somebody asked for another look at it."""
    silent: bool = False
    """Whether a detector looked at its place and did not show it."""


def absence(
    update: PerceivedWindow,
    points: PointMap,
    views: Sequence[int],
    detected_views: set[int],
    other: MapObject,
    objects: Sequence[MapObject],
) -> Absence:
    """What views of a window say of an object that was found in none of them, beside others of
    its map."""
    if not other.confirmed:
        return Absence()
    looks = {view: _look(update, points, view, other) for view in views}
    looks = {view: look for view, look in looks.items() if look is not Look.HIDDEN}
    silent = other.detected and any(view in detected_views for view in looks)
    change = _silence(update, points, list(looks), other) if silent else 0.0
    # A view that ends at the place outweighs one whose ray misses the thing by a little.
    if Look.THROUGH in looks.values() and Look.AT not in looks.values():
        change += likelihoods.SEEN_THROUGH
    elif other.look_again and not silent and Look.AT in looks.values():
        change = likelihoods.SURFACE
    if change < 0 and successor(other, objects) is not None:
        change += likelihoods.SUCCESSOR
    return Absence(max(change, -likelihoods.MAX_WINDOW), silent)


def _silence(
    update: PerceivedWindow, points: PointMap, views: Sequence[int], other: MapObject
) -> float:
    """Log odds of a detector that shows no object in views of its place, never for it."""
    before = max(0, other.overlooked - other.misses)
    silence = likelihoods.silence(other.sightings, before)
    distance = colour_distance(update, points, views, other)
    return min(0.0, silence + likelihoods.colour(distance))


def colour_distance(
    update: PerceivedWindow, points: PointMap, views: Sequence[int], other: MapObject
) -> float:
    """Between the mean colour at an object's place and its own, RGB 0..1: the nearest of all
    views; NaN where one is not known."""
    distances = []
    for view in views:
        box = image_box(points, update.result.intrinsics[view], view, other)
        if box is None or other.colour is None:
            continue
        image = update.scene.images[view]
        to_image = PixelMap((image.shape[1], image.shape[0]), points.size_px)
        corners = to_image.image_from_model(np.reshape(box[0], (2, 2))).ravel().tolist()
        colour = mean_colour(image, corners)
        if colour is not None:
            distances.append(float(np.linalg.norm(np.subtract(colour, other.colour))))
    return min(distances, default=math.nan)


def _look(update: PerceivedWindow, points: PointMap, view: int, other: MapObject) -> Look:
    """What a view shows of an object's place."""
    camera = update.result.intrinsics[view]
    box = image_box(points, camera, view, other)
    if box is None or box[1] < MIN_SHARE or _area(box[0]) < MIN_AREA_PX:
        return Look.HIDDEN
    samples = other.centre + (SAMPLES * other.size) @ other.axes.T
    u, v, far = pixels(points, camera, view, samples)
    width, height = points.size_px
    inside = (u > -0.5) & (u < width - 0.5) & (v > -0.5) & (v < height - 0.5)
    rows, columns = np.rint(v[inside]).astype(int), np.rint(u[inside]).astype(int)
    depth, far = points.depth[view, rows, columns], far[inside]
    usable = np.isfinite(depth) & (depth > 0)
    if np.count_nonzero(usable) < MIN_RAYS:
        return Look.HIDDEN
    margin = _half_along(points, view, other) + _margin(far, other)
    if (depth < far - margin)[usable].any():
        return Look.HIDDEN
    passes = depth > far + margin
    # Behind the lower part lies the floor that it stands on: only what looks through the upper
    # one tells.
    upper = usable & (samples[inside, 2] >= other.centre[2])
    if np.count_nonzero(upper) >= MIN_UPPER_RAYS and passes[upper].all():
        return Look.THROUGH
    return Look.BESIDE if passes[usable].any() else Look.AT


def _half_along(points: PointMap, view: int, other: MapObject) -> float:
    """Half the object's extent along the line of sight."""
    ray = other.centre - points.map_from_camera[view][:3, 3]
    ray = ray / max(float(np.linalg.norm(ray)), 1e-9)
    return float(np.abs(other.axes.T @ ray) @ other.size) / 2


def _margin(far: np.ndarray, other: MapObject) -> np.ndarray:
    """Error of depths (n,) and of the object's place."""
    spread = math.sqrt(max(float(np.linalg.eigvalsh(other.covariance)[-1]), 0.0))
    return RAY_MARGIN_M + DEPTH_ERROR * far + 2 * spread


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def successor(former: MapObject, objects: Sequence[MapObject]) -> MapObject | None:
    """The object that one that is gone has become: of its label, first seen later elsewhere."""
    for other in objects:
        later = other.first_seen_ns > former.last_seen_ns and other.confirmed
        if later and other.there and other.label == former.label and not _taken(other, objects):
            return other
    return None


def _taken(other: MapObject, here: Sequence[MapObject]) -> bool:
    """Whether what was seen later already stands for another object that went."""
    return any(
        each.moved and each.label == other.label and other.first_seen_ns > each.last_seen_ns
        for each in here
    )
