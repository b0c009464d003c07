# SPDX-License-Identifier: Apache-2.0
"""How things lie to each other and to the robot: distances, directions, gaps, with their errors.

Input are Things in the map frame (z up). Lengths are refused while their unit is unknown
(ScaleError); what holds up to a factor (directions, which is nearer) never is. Angles follow
REP-103: positive to the left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from g2vlm_ros.query.object_measurement import Object3D
from g2vlm_ros.query.point_map import PointMap

AHEAD_RAD, BEHIND_RAD = np.deg2rad((15.0, 135.0))
"""Bearings up to the first are "in front", from the second on "behind"."""
ANGLE_STD_RAD = np.deg2rad(1.0)
ROBOT_HEIGHT_M = 1.5
"""What is higher does not block a gap."""
STEP_OVER_M = 0.08
"""What is lower does not either."""
PASSAGE_M = 0.3
"""How far before and behind the line between two things something blocks their gap."""
OBSTACLE_BIN_M, OBSTACLE_POINTS = 0.04, 3
"""So many points of the map in a bin of that width are an obstacle."""


class ScaleError(ValueError):
    """A length is asked for in metres, but the metres of the map are not known."""

    def __init__(self, what: str):
        super().__init__(
            f"{what} is asked for in metres but the scale is not known; give the node odometry, "
            "depth, a rig baseline or a camera height, or ask for a comparison"
        )


@dataclass(frozen=True)
class Measure:
    """A number with its standard deviation."""

    value: float
    std: float
    unit: str
    """SI: "m" or "rad"."""

    def within(self, relative: float) -> float:
        """Probability that the truth lies within that fraction of the value."""
        return chance(relative * abs(self.value), self.std) * 2 - 1


@dataclass(frozen=True)
class Claim:
    """A statement with the probability that it is true."""

    value: bool
    probability: float
    """Of `value`, 0.5..1."""


@dataclass(frozen=True)
class Axes:
    """What front and left mean: unit vectors on the floor (2,), and where they start (3,)."""

    origin: np.ndarray
    front: np.ndarray

    @property
    def left(self) -> np.ndarray:
        """Unit vector (2,)."""
        return np.array([-self.front[1], self.front[0]])


def viewer_axes(points: PointMap) -> Axes:
    """The newest camera: front is where it looks, along the floor."""
    pose = points.viewer_pose
    return Axes(pose[:3, 3], _unit(pose[:2, 2], pose[:2, 1]))


def object_axes(thing: Object3D, facing: np.ndarray) -> Axes:
    """A thing whose front looks along `facing` (2,)."""
    return Axes(thing.centre, _unit(np.asarray(facing, np.float64), np.array([1.0, 0.0])))


def world_axes(target_from_map: np.ndarray | None = None) -> Axes:
    """The axes of a frame (target_from_map (4, 4)): x is front, y is left."""
    if target_from_map is None:
        return Axes(np.zeros(3), np.array([1.0, 0.0]))
    map_from_target = np.linalg.inv(target_from_map)
    return Axes(map_from_target[:3, 3], _unit(map_from_target[:2, 0], np.array([1.0, 0.0])))


def metres(points: PointMap, value: float, std: float, what: str) -> Measure:
    """A length of the map as metres, the error of the scale added; ScaleError without metres."""
    if not points.metric:
        raise ScaleError(what)
    return Measure(value, math.hypot(std, points.scale_std * value), "m")


def distance(points: PointMap, thing: Object3D, other: Object3D | None = None) -> Measure:
    """From the newest camera, or from another thing, middle to middle."""
    value, std = _apart(points, thing, other)
    return metres(points, value, std, f"the distance of the {thing.label}")


def extent(points: PointMap, thing: Object3D, dimension: str) -> Measure:
    """ "height", "width" (the longer side, "length" too) or "depth" (the shorter) of a thing.

    ValueError for a pixel, which has no extent.
    """
    axis = {"width": 0, "length": 0, "depth": 1, "height": 2}[dimension]
    value = float(thing.size[axis])
    if math.isnan(value):
        raise ValueError("a pixel has no extent; give a box around the thing")
    # An extent is a product of the distance and an angle, so it has the distance's relative error.
    view = thing.regions[0].view if thing.regions else points.viewer
    ray = thing.centre - points.map_from_camera[view][:3, 3]
    relative = _std_along(thing.covariance, ray) / max(float(np.linalg.norm(ray)), 1e-9)
    std = math.hypot(thing.size_std, relative * value)
    return metres(points, value, std, f"the {dimension} of the {thing.label}")


def heading(points: PointMap, thing: Object3D) -> Measure:
    """How far the newest camera must turn about the vertical to face a thing, left positive."""
    axes = viewer_axes(points)
    away = thing.centre[:2] - axes.origin[:2]
    reach = max(float(np.linalg.norm(away)), 1e-9)
    bearing = math.atan2(float(away @ axes.left), float(away @ axes.front))
    across = np.array([-away[1], away[0], 0.0])
    std = math.hypot(_std_along(thing.covariance, across) / reach, ANGLE_STD_RAD)
    return Measure(bearing, std, "rad")


def whereabouts(points: PointMap, thing: Object3D) -> tuple[str, float]:
    """ "front", "left", "right" or "behind" of the newest camera, and how probable it is."""
    bearing = heading(points, thing)
    size = abs(bearing.value)
    if size <= AHEAD_RAD:
        word, margin = "front", AHEAD_RAD - size
    elif size >= BEHIND_RAD:
        word, margin = "behind", size - BEHIND_RAD
    else:
        word = "left" if bearing.value > 0 else "right"
        margin = min(size - AHEAD_RAD, BEHIND_RAD - size)
    return word, chance(margin, bearing.std)


def lies(
    points: PointMap, thing: Object3D, word: str, other: Object3D, axes: Axes | None
) -> Claim:
    """Whether a thing lies left, right, front, behind, above or below of another.

    axes: the front that the words refer to; None = as the newest camera sees it: left and right by
    bearing, "front" is nearer to the camera.
    """
    if word in ("above", "below"):
        return _over(thing, other) if word == "above" else _over(other, thing)
    if axes is None:
        if word in ("left", "right"):
            first, second = heading(points, thing), heading(points, other)
            turn = (first.value - second.value + math.pi) % (2 * math.pi) - math.pi
            margin, std = turn, math.hypot(first.std, second.std)
        else:
            mine, my_std = _apart(points, thing, None)
            its, its_std = _apart(points, other, None)
            margin, std = its - mine, math.hypot(my_std, its_std)
    else:
        direction = axes.left if word in ("left", "right") else axes.front
        margin = float((thing.centre - other.centre)[:2] @ direction)
        std = _std_along(thing.covariance + other.covariance, np.array([*direction, 0.0]))
    return _claim(margin if word in ("left", "front") else -margin, std)


def closer(
    points: PointMap, thing: Object3D, other: Object3D, to: Object3D | None = None
) -> Claim:
    """Whether a thing is nearer to the newest camera (or to a third thing) than another."""
    mine, my_std = _apart(points, thing, to)
    its, its_std = _apart(points, other, to)
    return _claim(its - mine, math.hypot(my_std, its_std))


def nearest(points: PointMap, things: Sequence[Object3D], to: Object3D | None = None):
    """(thing, probability that no other is nearer) of the one nearest to the newest camera."""
    ranked = sorted(things, key=lambda thing: _apart(points, thing, to)[0])
    sure = 1.0
    for other in ranked[1:]:
        sure *= closer(points, ranked[0], other, to).probability
    return ranked[0], sure


def between(points: PointMap, thing: Object3D, first: Object3D, second: Object3D) -> Claim:
    """Whether a thing lies between two others: beside the line of their middles by less than half
    its length, and not past either end."""
    line = (second.centre - first.centre)[:2]
    reach = max(float(np.linalg.norm(line)), 1e-9)
    along = float((thing.centre - first.centre)[:2] @ line) / reach
    across = abs(float((thing.centre - first.centre)[:2] @ [-line[1], line[0]])) / reach
    margin = min(along, reach - along, reach / 2 - across)
    total = thing.covariance + (first.covariance + second.covariance) / 2
    return _claim(margin, math.sqrt(max(np.trace(total[:2, :2]), 0.0)))


def gap(points: PointMap, first: Object3D, second: Object3D) -> Measure:
    """The widest free passage between two things, at the height of a robot.

    Measured along the line between their nearest points on the floor plan; other points in its way
    divide it.
    """
    start, end = _nearest_ends(first.points[:, :2], second.points[:, :2])
    line = end - start
    width = float(np.linalg.norm(line))
    if not points.metric:
        raise ScaleError(f"the gap between the {first.label} and the {second.label}")
    value = width if width < 1e-6 else _free(points, start, line / width, width, first, second)
    direction = np.array([*(line / max(width, 1e-9)), 0.0])
    std = _std_along(first.covariance + second.covariance, direction)
    std = math.hypot(std, first.size_std + second.size_std)
    return metres(points, value, std, "the gap")


def fits(
    points: PointMap, width_m: float, first: Object3D, second: Object3D
) -> tuple[Claim, Measure]:
    """Whether something that wide passes between two things, and the gap."""
    free = gap(points, first, second)
    return _claim(free.value - width_m, free.std), free


def chance(margin: float, std: float) -> float:
    """Probability that a normal error of `std` stays below `margin`."""
    if std <= 0:
        return 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0
    return 0.5 * (1 + math.erf(margin / std / math.sqrt(2)))


def moved(points: PointMap, forward: float, left: float, turn_rad: float = 0.0) -> np.ndarray:
    """map_from_robot (4, 4), x forward and z up: the newest camera after turning, then going.

    forward and left in map units; the height stays.
    """
    axes = viewer_axes(points)
    c, s = math.cos(turn_rad), math.sin(turn_rad)
    front = c * axes.front + s * axes.left
    side = np.array([-front[1], front[0]])
    pose = np.eye(4)
    pose[:2, 0], pose[:2, 1] = front, side
    pose[:3, 3] = axes.origin
    pose[:2, 3] += forward * front + left * side
    return pose


def _claim(margin: float, std: float) -> Claim:
    probability = chance(margin, std)
    return Claim(probability > 0.5, max(probability, 1 - probability))


def _unit(vector: np.ndarray, instead: np.ndarray) -> np.ndarray:
    """The vector at length 1; a camera that looks straight down or up takes `instead`."""
    for each in (vector, instead, np.array([1.0, 0.0])):
        size = float(np.linalg.norm(each))
        if size > 1e-3:
            return np.asarray(each, np.float64) / size
    raise AssertionError("unreachable: the last vector has length 1")


def _std_along(covariance: np.ndarray, direction: np.ndarray) -> float:
    size = float(np.linalg.norm(direction))
    if size < 1e-9:
        return math.sqrt(max(float(np.trace(covariance)), 0.0))
    unit = direction / size
    return math.sqrt(max(float(unit @ covariance @ unit), 0.0))


def _apart(points: PointMap, thing: Object3D, other: Object3D | None) -> tuple[float, float]:
    """Distance in map units and its deviation, without that of the scale."""
    origin = points.viewer_pose[:3, 3] if other is None else other.centre
    line = thing.centre - origin
    covariance = thing.covariance if other is None else thing.covariance + other.covariance
    return float(np.linalg.norm(line)), _std_along(covariance, line)


def _over(thing: Object3D, other: Object3D) -> Claim:
    """Whether a thing is above another: higher, and over it on the floor plan."""
    up = float(thing.centre[2] - other.centre[2])
    sizes = np.nan_to_num(thing.size, nan=0.0)[:2].max() + np.nan_to_num(other.size)[:2].max()
    aside = float(np.linalg.norm((thing.centre - other.centre)[:2]))
    total = thing.covariance + other.covariance
    std = math.sqrt(max(float(np.trace(total)) / 3, 0.0))
    return _claim(min(up, sizes / 2 + std - aside), std)


def _nearest_ends(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest pair of points of two sets (n, 2), thinned; the 2 % nearest are averaged."""
    a = first[:: max(1, len(first) // 400)]
    b = second[:: max(1, len(second) // 400)]
    apart = np.linalg.norm(a[:, None] - b[None], axis=-1)
    count = max(1, int(0.02 * min(apart.shape)))
    near = np.argsort(apart, axis=None, kind="stable")[:count]
    rows, columns = np.unravel_index(near, apart.shape)
    return a[rows].mean(0), b[columns].mean(0)


def _free(
    points: PointMap,
    start: np.ndarray,
    direction: np.ndarray,
    width: float,
    first: Object3D,
    second: Object3D,
) -> float:
    """The longest stretch of the line that no other point at a robot's height interrupts."""
    floor = points.floor_z
    if not np.isfinite(floor):
        floor = min(float(first.points[:, 2].min()), float(second.points[:, 2].min()))
    cloud = points.points[:, ::2, ::2].reshape(-1, 3).astype(np.float64)
    cloud = cloud[np.isfinite(cloud).all(-1)]
    height = cloud[:, 2] - floor
    cloud = cloud[(height > STEP_OVER_M) & (height < ROBOT_HEIGHT_M)][:, :2] - start
    along = cloud @ direction
    across = np.abs(cloud @ np.array([-direction[1], direction[0]]))
    margin = 0.1 * width
    inside = (across < PASSAGE_M) & (along > margin) & (along < width - margin)
    bins = np.bincount((along[inside] / OBSTACLE_BIN_M).astype(int))
    blocked = np.flatnonzero(bins >= OBSTACLE_POINTS) * OBSTACLE_BIN_M
    starts = np.concatenate([[0.0], blocked + OBSTACLE_BIN_M])
    return float((np.concatenate([blocked, [width]]) - starts).max())
