# SPDX-License-Identifier: Apache-2.0
"""Homes as padded arrays: what the renderer reads, one row per solid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from g2vlm_ros.demo.sim import materials
from g2vlm_ros.demo.sim.array_backend import Arrays
from g2vlm_ros.demo.sim.furniture import BOX, CYLINDER, ELLIPSOID, ON_WALL
from g2vlm_ros.demo.sim.home import STRUCTURE, Home, Item

LIGHTMAP = 32
"""Cells per side of a room's shadow map."""
LIGHT_COLUMNS = 5
"""Floats per solid about its room's lamp: position, brightness, whether it takes floor shadows."""
PLACE_COLUMNS = 13
"""Floats per solid that repeat centre, half, turn, travel and shape, so one gather has it all."""
Vector = tuple[Any, Any, Any]
"""x, y and z as separate arrays, which numpy goes through much faster than a last axis of 3."""
_TINY, _NEAR = 1e-7, 1e-3
_CHUNK = 64


@dataclass(frozen=True)
class Tables:
    """S homes with at most K solids and Q rooms each; arrays of one backend."""

    shape: Any
    """int64 (S, K): BOX, CYLINDER, ELLIPSOID, or -1 where a home has fewer solids."""
    centre: Any
    """float32 (S, K, 3)."""
    half: Any
    turn: Any
    """float32 (S, K, 2): cosine and sine of the yaw."""
    travel: Any
    """float32 (S, K, 4): amplitude of the movement (3) and angular speed."""
    item: Any
    """int64 (S, K)."""
    room: Any
    """int64 (S, K)."""
    look: Any
    """float32 (COLUMNS + LIGHT_COLUMNS + PLACE_COLUMNS, S * K): all that colours a pixel."""
    floor: Any
    """float32 (S, Q, 4): x0, y0 of a room and the inverse of its size."""
    shadow: Any
    """float32 (S, Q, LIGHTMAP, LIGHTMAP): share of the lamp's light that reaches the floor."""

    def on(self, arrays: Arrays) -> Tables:
        """The same of another backend, where these are of numpy."""
        columns = (getattr(self, column.name) for column in fields(self))
        return Tables(*(arrays.asarray(column) for column in columns))


def tables(homes: Sequence[Home], arrays: Arrays) -> Tables:
    """The tables of several homes; shadows are cast once, without the things that move."""
    count = max(len(home.solids) for home in homes)
    rooms = max(len(home.rooms) for home in homes)
    shape = np.full((len(homes), count), -1, np.int64)
    item, room = np.zeros_like(shape), np.zeros_like(shape)
    centre, half = np.zeros((len(homes), count, 3)), np.ones((len(homes), count, 3))
    turn, travel = np.zeros((len(homes), count, 2)), np.zeros((len(homes), count, 4))
    lit = materials.COLUMNS + LIGHT_COLUMNS
    look = np.zeros((len(homes), count, lit))
    floor = np.ones((len(homes), rooms, 4))
    casts = np.zeros(shape.shape, bool)
    lamp = np.zeros((len(homes), rooms, 3))
    for s, home in enumerate(homes):
        n = len(home.solids)
        owners = [home.items[solid.item - 1] for solid in home.solids]
        shape[s, :n] = [solid.shape for solid in home.solids]
        item[s, :n] = [solid.item for solid in home.solids]
        room[s, :n] = [owner.room for owner in owners]
        centre[s, :n] = [solid.centre_m for solid in home.solids]
        half[s, :n] = [solid.half_m for solid in home.solids]
        yaw = np.array([solid.yaw_rad for solid in home.solids])
        turn[s, :n] = np.stack([np.cos(yaw), np.sin(yaw)], axis=1)
        travel[s, :n, :3] = [owner.travel_m for owner in owners]
        travel[s, :n, 3] = [2 * np.pi / owner.period_s for owner in owners]
        look[s, :n, : materials.COLUMNS] = [solid.material.row() for solid in home.solids]
        for q, chamber in enumerate(home.rooms):
            x0, y0, x1, y1 = chamber.rectangle
            floor[s, q] = (x0, y0, 1 / (x1 - x0), 1 / (y1 - y0))
            lamp[s, q] = chamber.light_m
        look[s, :n, materials.COLUMNS : materials.COLUMNS + 3] = lamp[s, room[s, :n]]
        casts[s, :n] = [_casts_shadow(owner) for owner in owners]
        look[s, :n, -2] = [home.rooms[owner.room].brightness for owner in owners]
        look[s, :n, -1] = [owner.name in ("floor", "rug") for owner in owners]
    look = np.concatenate([look, centre, half, turn, travel, shape[..., None]], axis=-1)
    look = np.ascontiguousarray(look.reshape(-1, lit + PLACE_COLUMNS).T)
    columns = (shape, centre, half, turn, travel, item, room, look, floor)
    unlit = Tables(*(arrays.asarray(column) for column in columns), None)
    shadow = _shadows(arrays, unlit, arrays.asarray(casts), arrays.asarray(lamp))
    return replace(unlit, shadow=shadow)


def _casts_shadow(item: Item) -> bool:
    """Furniture that stands still; what hangs on a wall has its shadow there."""
    fixed = not item.travel_m.any()
    return fixed and item.name not in (*STRUCTURE, *ON_WALL, "rug")


def intersect(arrays: Arrays, kind: int, origin: Vector, direction: Vector, far: float) -> Any:
    """Distance along rays to a unit box, cylinder or ball, `far` where they miss it.

    origin and direction: three arrays each, (P, 1 or R) and (P, R), in the frame where the shape
    fills -1..1. Directions are kept off zero, so the result is always finite.
    """
    safe = tuple(arrays.where(abs(d) < _TINY, arrays.full((), _TINY), d) for d in direction)
    if kind == ELLIPSOID:
        near, leave = _roots(arrays, origin, safe)
    elif kind == CYLINDER:
        near, leave = _roots(arrays, origin[:2], safe[:2])
        low, high = _slab(origin[2], safe[2])
        near, leave = arrays.maximum(near, low), arrays.minimum(leave, high)
    else:
        near, leave = _slab(origin[0], safe[0])
        for axis in (1, 2):
            low, high = _slab(origin[axis], safe[axis])
            near, leave = arrays.maximum(near, low), arrays.minimum(leave, high)
    return arrays.where((leave > near) & (near > _NEAR), near, arrays.full((), far))


def _slab(origin: Any, direction: Any) -> tuple[Any, Any]:
    inverse = 1.0 / direction
    middle, reach = -origin * inverse, abs(inverse)
    return middle - reach, middle + reach


def _roots(arrays: Arrays, origin: Vector, direction: Vector) -> tuple[Any, Any]:
    a = sum(d * d for d in direction)
    b = sum(o * d for o, d in zip(origin, direction, strict=True))
    c = sum(o * o for o in origin) - 1.0
    inside = b * b - a * c
    # A negative root makes a miss leave before it enters.
    root = arrays.where(inside > 0, arrays.sqrt(abs(inside)), arrays.full((), -1.0))
    return (-b - root) / a, (-b + root) / a


def local_frame(vector: Vector, turn: Any, half: Any) -> Vector:
    """World vectors (P, R) in the frame of P solids, where each fills -1..1."""
    c, s = turn[:, 0, None], turn[:, 1, None]
    x, y, z = vector
    return (
        (c * x + s * y) / half[:, 0, None],
        (c * y - s * x) / half[:, 1, None],
        z / half[:, 2, None],
    )


def _shadows(arrays: Arrays, scenes: Tables, casts: Any, lamp: Any) -> Any:
    """(S, Q, LIGHTMAP, LIGHTMAP) by one ray from each floor cell to the lamp of its room."""
    homes, rooms = lamp.shape[:2]
    cell = (np.arange(LIGHTMAP) + 0.5) / LIGHTMAP
    x, y = (arrays.asarray(part.reshape(1, -1)) for part in np.meshgrid(cell, cell))
    floor, lamps = scenes.floor.reshape(-1, 4), lamp.reshape(-1, 3)
    light = arrays.full((homes * rooms, LIGHTMAP**2), 1.0)
    s, k = arrays.nonzero(casts)
    for kind in (BOX, CYLINDER, ELLIPSOID):
        of_kind = scenes.shape[s, k] == kind
        s_kind, k_kind = s[of_kind], k[of_kind]
        for first in range(0, len(s_kind), _CHUNK):
            at = s_kind[first : first + _CHUNK], k_kind[first : first + _CHUNK]
            room = at[0] * rooms + scenes.room[at]
            corner, centre, target = floor[room], scenes.centre[at], lamps[room]
            point = (
                corner[:, 0, None] + x / corner[:, 2, None],
                corner[:, 1, None] + y / corner[:, 3, None],
                x * 0.0 + 0.002,
            )
            origin = tuple(p - centre[:, axis, None] for axis, p in enumerate(point))
            toward = tuple(target[:, axis, None] - p for axis, p in enumerate(point))
            frame = scenes.turn[at], scenes.half[at]
            ray = local_frame(origin, *frame), local_frame(toward, *frame)
            dark, where = arrays.nonzero(intersect(arrays, kind, *ray, 2.0) < 1.0)
            light[room[dark], where] = 0.0
    return light.reshape(homes, rooms, LIGHTMAP, LIGHTMAP)
