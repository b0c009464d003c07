# SPDX-License-Identifier: Apache-2.0
"""An occupancy grid for planners: seen obstacles, floor that was seen free, the rest unknown.

Obstacles and floor come from the voxels of the map, so they follow its corrections and removals.
Free space also comes from camera rays: each view leaves a fan, the ground that its rays crossed
below the top of the height band, in place of an older one from the same spot and the same way, so
that memory follows the way through a home and not how often it is driven. Fans belong to windows
and move with them. Lengths are in map units, the map is z-up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from g2vlm_ros.dense_map.free_space import DepthView
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.records import frozen

UNKNOWN, FREE, OCCUPIED = -1, 0, 100
LEVEL_FLOOR = (0.0, 0.0, 1.0, 0.0)
"""The plane z = 0 of a metric map whose floor is known."""
FAN_RAYS = 64
MAX_FANS = 4096
"""Views whose free ground is remembered."""
FAN_BYTES = 2 * FAN_RAYS * 3 * 4 + 600
"""The edges of a view's free ground, its axis, and the objects around them."""
SPOT_CELLS, SECTORS = 4, 36
"""Views within so many cells of the grid, and of one of so many directions, see the same ground
free: 0.2 m and 10 degrees, little against a fan of 60 degrees and some metres."""
RAYS_PER_VIEW = 20_000
"""Pixels of a view beyond this number are skipped evenly."""
_SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class Occupancy:
    """The content of a nav_msgs/OccupancyGrid."""

    data: np.ndarray
    """int8 (height, width), row 0 at the lowest y, column 0 at the lowest x: -1, 0 or 100."""
    resolution: float
    """Edge of a cell."""
    origin_x: float
    """Lower left corner of the lower left cell, map frame."""
    origin_y: float

    def __post_init__(self) -> None:
        view = frozen(self.data, "Occupancy.data", (None, None), np.int8)
        object.__setattr__(self, "data", view)


@dataclass(frozen=True)
class _Fan:
    """Ground crossed by rays of a view: near and far edge, float32 (2, FAN_RAYS, 3), at z 0."""

    window: int
    edges: np.ndarray
    axis: np.ndarray
    """float32 (2, 3): the camera, and a point in front of it."""

    def moved(self, motion: Sim3) -> _Fan:
        """The same, by a motion of the map."""
        return _Fan(self.window, motion.apply(self.edges), motion.apply(self.axis))


class OccupancyMapper:
    """Makes occupancy grids of a map; one thread.

    `low`..`high`: heights above the floor between which things are in the way; the floor itself is
    what lies within `low` of the plane. `max_fans`: views remembered, the oldest go first.
    `max_cells`: per side of the grid; what lies farther from its middle is cut off.
    """

    def __init__(
        self,
        resolution: float,
        low: float,
        high: float,
        min_confidence: float = 0.3,
        max_fans: int = MAX_FANS,
        max_cells: int = 4096,
    ):
        if not 0 < resolution < np.inf:
            raise ValueError(f"occupancy resolution is {resolution}; it must be a length above 0")
        if not 0 < low < high:
            raise ValueError(f"the height band is {low} to {high}; it needs 0 < low < high")
        self._resolution, self._low, self._high = resolution, low, high
        self._min_confidence, self._max_cells = min_confidence, max_cells
        self._max_fans = max_fans
        self._fans: dict[tuple[int, int, int], _Fan] = {}
        """By spot and direction; those that were seen or moved last come last."""

    @property
    def nbytes(self) -> int:
        """Memory of what the views saw free."""
        return len(self._fans) * FAN_BYTES

    def reset(self) -> None:
        """Forget all views."""
        self._fans.clear()

    def observe(
        self, view: DepthView, window_id: int, floor: tuple[float, ...] = LEVEL_FLOOR
    ) -> None:
        """Remember what ground a view saw free.

        `floor`: (a, b, c, d), with (a, b, c) of length 1: points are a x + b y + c z + d above it.
        """
        step = max(1, int(np.sqrt(view.depth.size / RAYS_PER_VIEW)))
        band = self._low, self._high, self._resolution
        space = view.free_space(self._min_confidence)
        edges = space.ground(_plane(floor), *band, FAN_RAYS, step)
        if edges is not None:
            ahead = view.origin + self._resolution * view.map_from_camera[:3, 2]
            axis = np.stack([view.origin, ahead]).astype(np.float32)
            self._keep([_Fan(window_id, edges.astype(np.float32), axis)])

    def correct(self, moves: Mapping[int, Sim3]) -> None:
        """Windows moved (map_from_map); their views go with them."""
        moved = {
            key: fan.moved(moves[fan.window])
            for key, fan in self._fans.items()
            if fan.window in moves
        }
        for key in moved:
            del self._fans[key]
        self._keep(moved.values())

    def absorb(self, other: OccupancyMapper, moves: Mapping[int, Sim3]) -> None:
        """Take over the views of another map's windows, moved into this one."""
        self._keep(
            fan.moved(moves[fan.window]) for fan in other._fans.values() if fan.window in moves
        )

    def grid(
        self,
        positions: np.ndarray,
        middle: np.ndarray,
        floor: tuple[float, ...] = LEVEL_FLOOR,
    ) -> Occupancy:
        """The grid of all that is known; positions float32 (n, 3): the voxels.

        Where a voxel lies in the height band a cell is occupied; where it does not, a voxel of the
        floor or a ray makes it free. The grid spans what is known, at most `max_cells` around
        `middle` (x, y, ...), the camera.
        """
        heights = positions @ _plane(floor)[:3].astype(np.float32) + np.float32(floor[3])
        walls = positions[(heights > self._low) & (heights < self._high), :2]
        ground = positions[np.abs(heights) <= self._low, :2]
        fans = np.array([fan.edges[..., :2] for fan in self._fans.values()], np.float64)
        fans = fans.reshape(-1, 2, FAN_RAYS, 2)
        lower, size = self._extent([walls, ground, fans.reshape(-1, 2)], np.asarray(middle)[:2])
        free = np.zeros(size, np.uint8)
        corners = np.concatenate([fans[:, 0], fans[:, 1, ::-1]], axis=1)
        corners = ((corners - lower) / self._resolution - 0.5) * (1 << _SUBPIXEL_BITS)
        for corner in np.rint(corners).astype(np.int32):
            cv2.fillPoly(free, [corner[:, None]], 1, shift=_SUBPIXEL_BITS)
        data = np.where(free > 0, np.int8(FREE), np.int8(UNKNOWN))
        data[self._cells(ground, lower, size)] = FREE
        data[self._cells(walls, lower, size)] = OCCUPIED
        return Occupancy(data, self._resolution, float(lower[0]), float(lower[1]))

    def _keep(self, fans: Iterable[_Fan]) -> None:
        """Remember fans, each in place of a fan of an older window with its spot and direction."""
        for fan in fans:
            if not np.isfinite(fan.axis).all():
                continue
            (x, y, _), (right, up, _) = fan.axis[0], fan.axis[1] - fan.axis[0]
            sector = int(np.arctan2(up, right) / (2 * np.pi) * SECTORS + SECTORS)
            spot = SPOT_CELLS * self._resolution
            key = int(np.floor(x / spot)), int(np.floor(y / spot)), sector % SECTORS
            older = self._fans.get(key)
            if older is None or older.window <= fan.window:
                self._fans.pop(key, None)
                self._fans[key] = fan
        while len(self._fans) > self._max_fans:
            del self._fans[next(iter(self._fans))]

    def _extent(
        self, parts: list[np.ndarray], middle: np.ndarray
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """Lower corner (2,) on multiples of the resolution, and (rows, columns)."""
        # By axis: numpy takes ten times as long for the minimum of many short rows.
        axes = [np.ascontiguousarray(part.T) for part in parts if len(part)]
        if not axes:
            return np.floor(middle / self._resolution) * self._resolution, (1, 1)
        reach = (self._max_cells // 2 - 1) * self._resolution
        lower = np.maximum(np.min([axis.min(1) for axis in axes], axis=0), middle - reach)
        upper = np.minimum(np.max([axis.max(1) for axis in axes], axis=0), middle + reach)
        first = np.floor(lower / self._resolution)
        columns, rows = np.maximum(np.floor(upper / self._resolution) - first + 1, 1).astype(int)
        return first * self._resolution, (int(rows), int(columns))

    def _cells(
        self, places: np.ndarray, lower: np.ndarray, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of places (n, 2) that lie in the grid."""
        column, row = np.floor((places - lower).T / self._resolution).astype(np.int64)
        inside = (row >= 0) & (column >= 0) & (row < size[0]) & (column < size[1])
        return row[inside], column[inside]


def _plane(floor: tuple[float, ...]) -> np.ndarray:
    plane = np.asarray(floor, np.float64)
    if plane.shape != (4,) or not abs(np.linalg.norm(plane[:3]) - 1) < 1e-3:
        raise ValueError(f"floor {floor} must be (a, b, c, d) with (a, b, c) of length 1")
    return plane
