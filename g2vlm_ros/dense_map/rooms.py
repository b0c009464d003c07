# SPDX-License-Identifier: Apache-2.0
"""Rooms of a map: its open floor, cut at the doorways.

Walls are what stands in WALL_BAND_M over the floor, which most furniture does not reach and
doorways leave open. Floor that lies farther from them than half a doorway's width are the rooms'
middles; the rest goes to the middle that is nearest on foot, and rooms that meet in a line longer
than a doorway are one. Lengths are metres, map frame.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

import cv2
import numpy as np

from g2vlm_ros.dense_map.occupancy import UNKNOWN, Occupancy

WALL_BAND_M = (1.3, 2.0)
"""Heights over the floor: above tables and backs of chairs, below the lintel of a door."""
MAX_DOOR_M = 1.2
"""Doorways of homes are .7 to 1.1 m wide; a wider opening joins two parts of one room."""
MIN_AREA_M2 = 2.0
"""Less is a niche, or a bit of floor that was seen through a doorway."""
REACH_M = 1.0
"""A thing at a wall belongs to the room whose floor begins within this."""
CLOSE_CELLS = 5
"""Gaps between rays on the floor, in cells, that are taken as seen."""


@dataclass(frozen=True)
class Room:
    """A room of the map."""

    id: int
    """Counts from 1, and stays while the room grows."""
    middle: tuple[float, float]
    """Where its floor is widest."""
    area_m2: float
    name: str = ""
    """Given by a person."""

    @property
    def title(self) -> str:
        """What to call it: its name, else "room 2"."""
        return self.name or f"room {self.id}"


class RoomMap:
    """The rooms of the current map; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rooms: dict[int, Room] = {}
        self._next_id = 1
        self._grid: Occupancy | None = None
        self._labels = np.zeros((1, 1), np.int32)

    def rooms(self) -> tuple[Room, ...]:
        """Oldest first."""
        with self._lock:
            return tuple(self._rooms[key] for key in sorted(self._rooms))

    def update(self, grid: Occupancy, walls: np.ndarray) -> None:
        """Cut anew; a room keeps id and name where its former middle lies in it.

        walls: (n, 2) points of what stands in WALL_BAND_M, in the grid's frame.
        """
        labels = segment(grid, walls)
        with self._lock:
            self._grid = grid
            self._labels = self._renumbered(labels, grid)

    def at(self, places: np.ndarray) -> list[Room | None]:
        """The room of each place (n, 2), by the nearest floor within REACH_M."""
        with self._lock:
            if self._grid is None or not self._rooms:
                return [None] * len(places)
            resolution = self._grid.resolution
            floor = self._labels > 0
            distance, index = cv2.distanceTransformWithLabels(
                (~floor).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
            )
            room_of_index = np.zeros(int(index.max()) + 1, np.int32)
            room_of_index[index[floor]] = self._labels[floor]
            rooms = []
            cells = _cells(places, self._grid)
            inside = np.clip(cells, 0, np.subtract(floor.shape, 1))
            beside = np.linalg.norm(cells - inside, axis=1)
            for (row, column), more in zip(inside, beside, strict=True):
                away_m = (distance[row, column] + more) * resolution
                room_id = int(room_of_index[index[row, column]])
                rooms.append(self._rooms[room_id] if away_m <= REACH_M else None)
            return rooms

    def rename(self, room_id: int, name: str) -> None:
        """Give a name, or take it back; KeyError for an unknown id."""
        with self._lock:
            self._rooms[room_id] = replace(self._rooms[room_id], name=name)

    def clear(self) -> None:
        """Forget all. Ids go on counting."""
        with self._lock:
            self._rooms, self._grid = {}, None

    def restore(self, rooms: list[Room]) -> None:
        """Put saved rooms in place of the present ones: the next `update` finds their floors."""
        with self._lock:
            self._rooms = {room.id: room for room in rooms}
            self._next_id = 1 + max((self._next_id - 1, *self._rooms))
            self._grid = None

    def _renumbered(self, labels: np.ndarray, grid: Occupancy) -> np.ndarray:
        """The labels as ids of rooms; updates the rooms."""
        before = sorted(self._rooms)
        cells = _cells(np.array([self._rooms[key].middle for key in before]).reshape(-1, 2), grid)
        owner: dict[int, Room] = {}
        for key, (row, column) in zip(before, cells, strict=True):
            inside = 0 <= row < labels.shape[0] and 0 <= column < labels.shape[1]
            label = int(labels[row, column]) if inside else 0
            if label:
                owner.setdefault(label, self._rooms[key])
        self._rooms, ids = {}, np.zeros(int(labels.max()) + 1, np.int32)
        for label in range(1, len(ids)):
            former = owner.get(label)
            if former is None:
                former = Room(self._next_id, (0.0, 0.0), 0.0)
                self._next_id += 1
            ids[label] = former.id
            self._rooms[former.id] = _measured(former, labels == label, grid)
        return ids[labels]


def segment(grid: Occupancy, walls: np.ndarray) -> np.ndarray:
    """int32 (height, width): 1, 2 ... for the rooms of a grid, 0 elsewhere."""
    observed = (grid.data != UNKNOWN).astype(np.uint8)
    observed = cv2.morphologyEx(
        observed, cv2.MORPH_CLOSE, np.ones((CLOSE_CELLS, CLOSE_CELLS), np.uint8)
    )
    wall = np.zeros_like(observed)
    row, column = _cells(walls, grid).T
    inside = (row >= 0) & (column >= 0) & (row < wall.shape[0]) & (column < wall.shape[1])
    wall[row[inside], column[inside]] = 1
    floor = observed & ~wall & 1
    # A frame of wall, so that the border of the grid is one.
    width = cv2.distanceTransform(np.pad(floor, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    width = width * grid.resolution
    _, middles = cv2.connectedComponents((width > MAX_DOOR_M / 2).astype(np.uint8))
    if not middles.max():
        return np.zeros(floor.shape, np.int32)
    labels = _joined(_grown(middles, floor), grid.resolution)
    return _without_small(labels, grid.resolution)


def _grown(middles: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """The middles grown over the floor, all at one pace."""
    labels = middles.astype(np.uint16)
    # A square and a cross by turns: nearly a circle.
    kernels = np.ones((3, 3), np.uint8), cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    for step in range(floor.size):
        wider = cv2.dilate(labels, kernels[step % 2])
        fresh = (wider > 0) & (labels == 0) & (floor > 0)
        if not fresh.any():
            break
        labels[fresh] = wider[fresh]
    return labels.astype(np.int32)


def _joined(labels: np.ndarray, resolution: float) -> np.ndarray:
    """Rooms that meet in a line longer than a doorway become one."""
    beside = labels[:, :-1], labels[:, 1:]
    below = labels[:-1], labels[1:]
    borders: dict[tuple[int, int], list[np.ndarray]] = {}
    for one, other in (beside, below):
        cells = np.argwhere((one != other) & (one > 0) & (other > 0))
        pairs = np.sort(np.stack([one[tuple(cells.T)], other[tuple(cells.T)]], axis=-1), axis=-1)
        for low, high in np.unique(pairs, axis=0):
            here = cells[(pairs == (low, high)).all(axis=1)]
            borders.setdefault((int(low), int(high)), []).append(here)
    rooms = np.arange(int(labels.max()) + 1)
    for (low, high), parts in borders.items():
        extent = np.ptp(np.concatenate(parts), axis=0) + 1
        if float(np.linalg.norm(extent)) * resolution > MAX_DOOR_M:
            rooms[rooms == rooms[high]] = rooms[low]
    return rooms[labels].astype(np.int32)


def _without_small(labels: np.ndarray, resolution: float) -> np.ndarray:
    """Labels 1, 2, ... of the rooms that are large enough."""
    sizes = np.bincount(labels.ravel()) * resolution**2
    sizes[0] = 0.0
    large = np.flatnonzero(sizes >= MIN_AREA_M2)
    ids = np.zeros(len(sizes), np.int32)
    ids[large] = np.arange(1, len(large) + 1)
    return ids[labels]


def _measured(room: Room, inside: np.ndarray, grid: Occupancy) -> Room:
    """The room with middle and area of its cells."""
    width = cv2.distanceTransform(np.pad(inside.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(int(np.argmax(width)), width.shape)
    x = grid.origin_x + (column + 0.5) * grid.resolution
    y = grid.origin_y + (row + 0.5) * grid.resolution
    area_m2 = float(np.count_nonzero(inside)) * grid.resolution**2
    return replace(room, middle=(float(x), float(y)), area_m2=area_m2)


def _cells(places: np.ndarray, grid: Occupancy) -> np.ndarray:
    """(n, 2) row and column of places (n, 2)."""
    lower = (grid.origin_x, grid.origin_y)
    return np.floor((np.reshape(places, (-1, 2)) - lower) / grid.resolution).astype(int)[:, ::-1]
