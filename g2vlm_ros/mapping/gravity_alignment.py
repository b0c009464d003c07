# SPDX-License-Identifier: Apache-2.0
"""Gravity and structure alignment: which way is up in a map, and where its floor is.

Up is by gravity where there is an IMU, else by the floors, ceilings and walls in view. Every
window that tells holds its place in the pose graph upright, so that turns do not bend the map.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from g2vlm_ros.geometry.sim3 import Sim3, cross_matrix
from g2vlm_ros.kernels import surfaces as surface_kernels
from g2vlm_ros.mapping.pose_graph import PoseGraph
from g2vlm_ros.records import Frame, Reconstruction

MAX_TILT_RAD = np.deg2rad(1.0)
"""A map may be so far off its level before it is turned: what is less, nobody sees..."""
MAX_TILT_STD = 2.0
"""...and by so many standard deviations: what is less, nobody knows."""
MAX_UP_OFF_RAD = np.deg2rad(15.0)
"""Surfaces that have up farther from the map's are not of its floors and walls."""
FLOORS = 16
"""The floor is where the last so many windows that saw it have it, by their median."""
MIN_AGREEMENT = 0.98
"""Length of the mean of the views' unit vectors up, below which none is believed."""
GRAVITY_STD_RAD = 0.01
"""Of up by an accelerometer on a robot that moves, after averaging."""
STRUCTURE_STD_RAD = 0.025
"""Error of up by surfaces that their scatter does not show: the depth of a view is bent as a
whole. The demo checkpoint's, on validation homes."""
GATES_RAD = np.deg2rad((45.0, 30.0, 20.0, 15.0, 15.0))
"""How far off level or upright surfaces may be that still count, step by step."""
OPEN = 0.01
"""Weight of where the search stands, as a share of that of all surfaces."""
FARTHEST_RAD = np.deg2rad(35.0)
"""From where the search began; what is farther may as well be across a wall."""
SOFT_RAD = np.deg2rad(5.0)
"""Where the weight of a surface that is off falls to half: the scatter of the demo checkpoint's
normals."""
NEAR_RAD = np.deg2rad(10.0)
"""Twice that: up to here a surface counts as level or upright..."""
MIN_NEAR = 0.6
"""...as so large a share must; of directions without any order a fifth does."""
NORMALS_PER_VIEW = 2000
NORMAL_SIDE = 56
"""A normal spans one part in so many of the width, on either side."""
MAX_BEND = 0.02
"""Second difference of depth, as a fraction of it, above which there is an edge."""
BLOCKS_PER_SIDE = 8
"""Normals of neighbouring pixels err alike: a view counts as 8 x 8 independent ones."""
FLOOR_STEP = 0.02
"""A point lies on a floor when it is within this fraction of the median range."""
FLOOR_COSINE = np.cos(np.deg2rad(20.0))
"""Of the normal of a floor to up: the scatter of single normals, four times."""
MIN_FLOOR = 30
"""Points of all views that make a floor: a median of fewer is no height."""
MIN_NORMALS = 200
"""Points of all views that tell what is up: three surfaces of 8 x 8 patches."""
FLOOR_OF_MOST = 0.2
"""A floor has at least so many points of those of the largest level surface."""
MAX_BELOW = 0.005
"""Share of all points that may be clearly below a floor; below a table top there are more."""


@dataclass(frozen=True)
class Up:
    """Which way is up in the frame of a window."""

    direction: np.ndarray
    """float64 (3,), unit."""
    information: np.ndarray
    """float64 (3, 3): the inverse covariance of the direction (1/rad²), zero along it."""
    source: str
    """"gravity" or "structure"."""


@dataclass(frozen=True)
class Floor:
    """A floor under the cameras of a window, in the window's frame and unit."""

    point: np.ndarray
    """float64 (3,) on it, straight below the middle of the cameras."""
    height_u: float
    """Of the cameras above it, on average."""
    relative_std: float
    """Of the height."""


class Surfaces(NamedTuple):
    """What a window shows of smooth surfaces, in its frame and unit."""

    points: np.ndarray
    """float64 (n, 3), about NORMALS_PER_VIEW of each view."""
    normals: np.ndarray
    """float64 (n, 3), unit."""
    blocks: np.ndarray
    """int (n,): which patch of which view."""
    centres: np.ndarray
    """float64 (N, 3): the cameras."""
    reach: float
    """Median depth."""


def surfaces_of(result: Reconstruction) -> Surfaces:
    """Points on a grid of pixels of every view, where depth does not bend."""
    points, poses = result.local_points_u, result.window_from_camera
    height, width = points.shape[1:3]
    places, normals, blocks = surface_kernels.surfaces(
        points,
        poses,
        reach=max(1, width // NORMAL_SIDE),
        step=max(1, int(np.sqrt(height * width / NORMALS_PER_VIEW))),
        max_bend=MAX_BEND,
        side=BLOCKS_PER_SIDE,
    )
    centres = poses[:, :3, 3].astype(np.float64)
    return Surfaces(places, normals, blocks, centres, result.median_depth_u)


def gravity_up(frames: Sequence[Frame], result: Reconstruction) -> Up | None:
    """Up by the gravity of the views; None where it is unknown.

    None also where the views contradict each other: shaken, or turned wrongly in the window.
    """
    ups = [
        result.window_from_camera[i, :3, :3] @ frame.up
        for i, frame in enumerate(frames)
        if frame.up is not None
    ]
    if not ups:
        return None
    mean = np.mean(ups, axis=0)
    length = float(np.linalg.norm(mean))
    if length < MIN_AGREEMENT:
        return None
    direction = mean / length
    return Up(direction, across(direction) / GRAVITY_STD_RAD**2, "gravity")


def structure_up(surfaces: Surfaces, near: np.ndarray) -> Up | None:
    """Up by the floors, ceilings and walls that a window shows; None where there is no such order.

    near: unit (3,), up in the window's frame to 30 degrees. The direction to which most normals
    are parallel or perpendicular, found in steps with ever narrower gates (Gupta, Arbelaez and
    Malik, CVPR 2013). One wall alone leaves its own axis open, and the information says so.
    """
    normals = surfaces.normals
    if len(normals) < MIN_NORMALS:
        return None
    up, off, walls, level = surface_kernels.structure_up(normals, near, GATES_RAD, SOFT_RAD, OPEN)
    if (off < NEAR_RAD).mean() < MIN_NEAR or up @ near < np.cos(FARTHEST_RAD):
        return None
    # Two axes of the plane across: along `up` there is nothing to invert.
    axes = np.linalg.svd(across(up))[0][:, :2]
    independent = np.count_nonzero(np.bincount(surfaces.blocks)) / len(normals)
    spread = max(1.4826 * float(np.median(off)), 1e-3)
    moments = axes.T @ walls @ axes + level * np.eye(2)
    information = moments * independent / spread**2
    covariance = np.linalg.inv(information + 1e-6 * np.eye(2)) + STRUCTURE_STD_RAD**2 * np.eye(2)
    return Up(up, axes @ np.linalg.inv(covariance) @ axes.T, "structure")


def find_floor(surfaces: Surfaces, up: np.ndarray) -> Floor | None:
    """The lowest level surface under the cameras, with next to nothing below it, or None.

    up: (3,) in the window's frame, unit, to a few degrees.
    """
    middle = surfaces.centres.mean(0)
    height = (surfaces.points - middle) @ up
    level = (np.abs(surfaces.normals @ up) > FLOOR_COSINE) & (height < -0.1 * surfaces.reach)
    heights, thick = np.sort(height[level]), 2 * FLOOR_STEP * surfaces.reach
    counts = np.searchsorted(heights, heights + thick) - np.arange(len(heights))
    most = counts.max(initial=0)
    if most < MIN_FLOOR:
        return None
    lowest = int(np.argmax(counts >= FLOOR_OF_MOST * most))
    first = lowest + int(counts[lowest : lowest + counts[lowest]].argmax())
    layer = heights[first : first + counts[first]]
    floor = float(np.median(layer))
    if len(layer) < MIN_FLOOR or (height < floor - 1.5 * thick).mean() > MAX_BELOW:
        return None
    above = (surfaces.centres - middle) @ up - floor
    if above.min() <= thick / 2:
        return None
    return Floor(middle + floor * up, -floor, float(np.std(layer)) / -floor)


def across(direction: np.ndarray) -> np.ndarray:
    """(3, 3): the projection on the plane across a unit vector."""
    return np.eye(3) - np.outer(direction, direction)


def upright(up: np.ndarray) -> np.ndarray:
    """The smallest rotation (3, 3) that turns a unit vector to z."""
    if up[2] < -1 + 1e-9:
        return np.diag([1.0, -1.0, -1.0])
    axis, cosine = np.cross(up, [0.0, 0.0, 1.0]), float(up[2])
    skew = cross_matrix(axis)
    return np.eye(3) + skew + skew @ skew / (1.0 + cosine)


@dataclass(frozen=True)
class LevelUpdate:
    """What a window told of the level of its map."""

    turned: bool
    """Whether the whole map was turned upright."""
    floor: Floor | None
    """Under the cameras of the window; None where it shows none, or up is not known yet."""


@dataclass
class GravityAlignment:
    """What holds one map upright, and its floor."""

    source: str = ""
    """"gravity" or "structure"; empty while the first camera counts as level."""
    fixed: bool = False
    """Whether the map is level as it is: windows are held upright in it, it is not turned."""
    _floors: deque[tuple[int, np.ndarray]] = field(default_factory=lambda: deque(maxlen=FLOORS))
    """Of the last windows that saw a floor, a point (3,) of it in the window's frame."""

    def copy(self) -> GravityAlignment:
        """One that takes windows in without this one."""
        return replace(self, _floors=self._floors.copy())

    def update(
        self, graph: PoseGraph, node: int, frames: Sequence[Frame], result: Reconstruction
    ) -> LevelUpdate:
        """Up and floor by a window that was just placed at `node`."""
        surfaces = surfaces_of(result)
        up = self._measured_up(graph.pose(node).rotation[2], frames, result, surfaces)
        turned = up is not None and self._hold_upright(graph, node, up)
        floor = find_floor(surfaces, graph.pose(node).rotation[2]) if self.source else None
        if floor is not None:
            self._floors.append((node, floor.point))
        return LevelUpdate(turned, floor)

    def floor_z(self, graph: PoseGraph) -> float:
        """Height of the floor in the map; NaN while none was seen."""
        heights = [graph.pose(n).apply(point)[2] for n, point in self._floors if n in graph]
        return float(np.median(heights)) if heights else float("nan")

    def _measured_up(
        self,
        map_z: np.ndarray,
        frames: Sequence[Frame],
        result: Reconstruction,
        surfaces: Surfaces,
    ) -> Up | None:
        """Up in the window by gravity, or by structure while gravity never spoke.

        map_z: (3,) the map's z in the window's frame. Structure that is far off it is another's.
        """
        up = gravity_up(frames, result)
        if up is not None or self.source == "gravity":
            return up
        up = structure_up(surfaces, map_z)
        if up is not None and self.source and up.direction @ map_z < np.cos(MAX_UP_OFF_RAD):
            return None
        return up

    def _hold_upright(self, graph: PoseGraph, node: int, up: Up) -> bool:
        """Whether the map was turned: by the first of a source at once, later by all together."""
        members = graph.component(node)
        first = up.source != self.source
        if first:
            graph.forget_ups(members)
            self.source = up.source
        graph.measure_up(node, up.information)
        if self.fixed:
            return False
        direction, std_rad = graph.up(members)
        if first:
            direction = graph.pose(node).rotation @ up.direction
        elif direction[2] >= np.cos(max(MAX_TILT_RAD, MAX_TILT_STD * std_rad)):
            return False
        graph.move(members, Sim3(1.0, upright(direction), np.zeros(3)))
        return True
