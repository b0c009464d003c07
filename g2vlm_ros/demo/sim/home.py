# SPDX-License-Identifier: Apache-2.0
"""What a home is: rooms joined by doorways, and furniture with names. `builder` makes them.

World frame: z up, the floor at z = 0, metres. Rooms are axis-aligned rectangles; walls stand just
outside of them. Everything that a ray can hit is a `Solid`; what a question can name is an `Item`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from g2vlm_ros.demo.sim.materials import Material

WALL_M = 0.06
"""Thickness of the wall that each room has for itself."""
DOOR_WIDTH_M = 0.95
DOOR_HEIGHT_M = 2.05
DOOR_CLEAR_M = 0.85
"""Depth of the strip before a doorway that stays free of furniture."""
STRUCTURE = ("floor", "ceiling", "wall")
Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True)
class Room:
    """The inside of a room: x0 <= x <= x1, y0 <= y <= y1, 0 <= z <= height."""

    rectangle: Rectangle
    height_m: float
    light_m: np.ndarray
    """Where its lamp hangs, (3,)."""
    brightness: float

    @property
    def middle(self) -> np.ndarray:
        """Middle of the floor, (2,)."""
        x0, y0, x1, y1 = self.rectangle
        return np.array([(x0 + x1) / 2, (y0 + y1) / 2])


@dataclass(frozen=True)
class Door:
    """A doorway between two rooms, centred in the double wall; `axis` is its normal (0 x, 1 y)."""

    rooms: tuple[int, int]
    centre_m: np.ndarray
    axis: int

    def before(self, room: Room, distance_m: float) -> np.ndarray:
        """The point (2,) in front of the doorway inside the room."""
        side = np.sign(room.middle[self.axis] - self.centre_m[self.axis])
        return self.centre_m + side * distance_m * np.eye(2)[self.axis]


@dataclass(frozen=True)
class Solid:
    """A box, cylinder or ellipsoid with a material, turned about the vertical."""

    shape: int
    centre_m: np.ndarray
    half_m: np.ndarray
    yaw_rad: float
    material: Material
    item: int
    """Id of the item that it belongs to."""


@dataclass(frozen=True)
class Item:
    """Something with a name. Structure (floor, ceiling, wall) has no colour."""

    id: int
    name: str
    colour: str
    room: int
    centre_m: np.ndarray
    """Middle of its bounding box in its own frame, mapped to the world, at rest."""
    size_m: np.ndarray
    """Width, depth, height."""
    yaw_rad: float
    travel_m: np.ndarray
    """Amplitude (3,) of its movement; zero for what stands still."""
    period_s: float = 8.0

    def offset_m(self, time_s: float) -> np.ndarray:
        """Where it is at a time, relative to its rest position."""
        return self.travel_m * np.sin(2 * np.pi * time_s / self.period_s)

    def footprint(self) -> Rectangle:
        """Axis-aligned rectangle that holds it, its movement included."""
        c, s = abs(np.cos(self.yaw_rad)), abs(np.sin(self.yaw_rad))
        half = self.size_m / 2
        reach = np.array([c * half[0] + s * half[1], s * half[0] + c * half[1]])
        reach = reach + np.abs(self.travel_m[:2])
        low, high = self.centre_m[:2] - reach, self.centre_m[:2] + reach
        return (low[0], low[1], high[0], high[1])


@dataclass(frozen=True)
class Home:
    """All of it; `items[k].id == k + 1`, id 0 is nothing."""

    seed: int
    rooms: tuple[Room, ...]
    doors: tuple[Door, ...]
    items: tuple[Item, ...]
    solids: tuple[Solid, ...]

    def obstacles(self) -> np.ndarray:
        """(K, 4) rectangles on the floor that a robot must not enter."""
        low = [
            item.footprint()
            for item in self.items
            if item.name not in STRUCTURE and item.name != "rug" and _bottom(item) < 1.0
        ]
        return np.array(low).reshape(-1, 4)


def _bottom(item: Item) -> float:
    return item.centre_m[2] - item.size_m[2] / 2


def overlaps(a: Rectangle, b: Rectangle, margin: float = 0.0) -> bool:
    """Whether two rectangles come closer than the margin."""
    return (
        a[0] < b[2] + margin
        and b[0] < a[2] + margin
        and a[1] < b[3] + margin
        and b[1] < a[3] + margin
    )
