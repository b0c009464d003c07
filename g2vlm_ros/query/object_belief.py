# SPDX-License-Identifier: Apache-2.0
"""Whether an object of the map is still there, by what the views show of its place.

Its belief falls when cameras see through its place: what stands before it, or ends at it, is no
evidence. Lengths are metres.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from enum import Enum

import numpy as np

from g2vlm_ros.pipeline import PerceivedWindow
from g2vlm_ros.query.map_object import NOT_DETECTED, SEEN_THROUGH, MapObject
from g2vlm_ros.query.point_map import PointMap

DEPTH_ERROR = 0.06
"""Relative error of a depth: a ray passes a place where it ends farther behind it than that."""
RAY_MARGIN_M = 0.1
"""The same for small distances."""
MIN_RAYS = 5
"""Of the 9 sample points of an object, those that must lie inside an image to say anything."""
MIN_UPPER_RAYS = 3
"""Of the 5 in its upper half, those that must pass to say that it is gone."""
SAMPLES = np.array([(0, 0, 0), *itertools.product((-0.3, 0.3), repeat=3)])
"""Points inside a box, in fractions of its extents."""


class Look(Enum):
    """What a view shows of an object's place."""

    THROUGH = "through"
    """A surface behind it: the object is gone."""
    AT = "at"
    """A surface there, of the object or of another one."""
    UNCERTAIN = "uncertain"


def change_of_evidence(
    update: PerceivedWindow,
    points: PointMap,
    views: Sequence[int],
    detected_views: set[int],
    other: MapObject,
) -> float:
    """Log odds, at most 0, that views of a window in which an object was not seen add to it."""
    changes = []
    for view in views:
        look = _look(update, points, view, other)
        if look is Look.THROUGH:
            changes.append(SEEN_THROUGH)
        elif look is Look.AT:
            changes.append(NOT_DETECTED if view in detected_views else 0.0)
    if not changes:
        return 0.0
    # A view that ends at the place outweighs one whose ray misses the thing by a little.
    if min(changes) == SEEN_THROUGH and max(changes) > SEEN_THROUGH:
        return 0.0
    return min(changes)


def _look(update: PerceivedWindow, points: PointMap, view: int, other: MapObject) -> Look:
    """What a view shows of an object's place."""
    camera = update.result.intrinsics[view]
    if camera is None or not other.confirmed:
        return Look.UNCERTAIN
    samples = other.centre + (SAMPLES * other.size) @ other.axes.T
    pose = points.map_from_camera[view]
    local = (samples - pose[:3, 3]) @ pose[:3, :3]
    ahead = local[:, 2] > RAY_MARGIN_M
    if not ahead.all():
        return Look.UNCERTAIN
    u = np.rint(camera.fx_px * local[:, 0] / local[:, 2] + camera.cx_px).astype(int)
    v = np.rint(camera.fy_px * local[:, 1] / local[:, 2] + camera.cy_px).astype(int)
    width, height = points.size_px
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    if np.count_nonzero(inside) < MIN_RAYS:
        return Look.UNCERTAIN
    depth = points.depth[view, v[inside], u[inside]]
    far = local[inside, 2]
    spread = math.sqrt(max(float(np.linalg.eigvalsh(other.covariance)[-1]), 0.0))
    half = float(other.size.max()) / 2
    margin = RAY_MARGIN_M + DEPTH_ERROR * far + 2 * spread
    usable = np.isfinite(depth) & (depth > 0)
    if np.count_nonzero(usable) < MIN_RAYS:
        return Look.UNCERTAIN
    passes = depth > far + half + margin
    blocked = depth < far - half - margin
    if blocked[usable].any():
        return Look.UNCERTAIN
    # Behind the lower part lies the floor that it stands on: only what looks through the upper
    # one tells.
    upper = usable & (samples[inside, 2] >= other.centre[2])
    if np.count_nonzero(upper) >= MIN_UPPER_RAYS and passes[upper].all():
        return Look.THROUGH
    return Look.UNCERTAIN if passes[usable].any() else Look.AT


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
