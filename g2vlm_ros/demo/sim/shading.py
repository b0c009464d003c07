# SPDX-License-Identifier: Apache-2.0
"""Colour of what a ray hits: solid texture, lamp light, shadows on the floor, dimmer corners."""

from __future__ import annotations

from typing import Any

from g2vlm_ros.demo.sim.array_backend import Arrays
from g2vlm_ros.demo.sim.furniture import BOX, CYLINDER
from g2vlm_ros.demo.sim.scene_arrays import LIGHTMAP, Tables, Vector

AMBIENT, LAMP, FALLOFF_PER_M2 = 0.46, 0.85, 0.06
CPU_CHUNK, DEVICE_CHUNK = 1 << 13, 1 << 22
"""Samples shaded at once: their values stay in the cache; on a GPU a sample takes 160 bytes and as
much in between, so that all of 256 views at once would need 13 GB."""
_BLUR_M = 0.02
"""Textures finer than this times the depth fade out, as they would in a real camera."""


def shade(
    arrays: Arrays,
    scenes: Tables,
    scene: Any,
    pose: Any,
    time: Any,
    rays: tuple[Any, Any],
    depth: Any,
    solid: Any,
) -> Any:
    """float32 (N, h, w, 3) in 0..1 for depth and solid (N, h, w); rays: x (w,) and y (h,)."""
    height, width = solid.shape[1:]
    flat_depth, flat_solid = depth.reshape(-1), solid.reshape(-1)
    (pixels,) = arrays.nonzero(flat_solid >= 0)
    colour = arrays.full((flat_depth.shape[0], 3), 0.0)
    pose = arrays.stack([pose[:, i, j] for i in range(3) for j in range(4)], 0)
    chunk = CPU_CHUNK if arrays.device in (None, "cpu") else DEVICE_CHUNK
    for first in range(0, len(pixels), chunk):
        pixel = pixels[first : first + chunk]
        view, place = pixel // (height * width), pixel % (height * width)
        ray_x, ray_y = rays[0][place % width], rays[1][place // width]
        at = scene[view] * scenes.shape.shape[1] + flat_solid[pixel]
        z, camera = flat_depth[pixel], pose[:, view]
        world = tuple(
            camera[row + 3] + z * (camera[row] * ray_x + camera[row + 1] * ray_y + camera[row + 2])
            for row in (0, 4, 8)
        )
        look = scenes.look[:, at]
        inside, normal = _surface(arrays, look, time[view], world)
        light = _light(arrays, scenes, at, look, world, normal)
        for channel, value in enumerate(_texture(arrays, look, inside, z)):
            colour[pixel, channel] = value * light
    return colour.reshape(*solid.shape, 3)


def _surface(arrays: Arrays, look: Any, time: Any, world: Vector) -> tuple[Vector, Vector]:
    """The hit point in the frame of its solid, in metres, and the world normal."""
    centre, half, (c, s) = look[27:30], look[30:33], look[33:35]
    swing = arrays.sin(look[38] * time)
    x, y, z = (w - centre[i] - look[35 + i] * swing for i, w in enumerate(world))
    place = (c * x + s * y, c * y - s * x, z)
    unit = tuple(p / half[i] for i, p in enumerate(place))
    a, b, e = (abs(u) for u in unit)
    zero = a * 0
    kind = look[39]
    round_ = (unit[0] / half[0], unit[1] / half[1])
    cap = e * e > a * a + b * b
    is_box, is_cylinder = kind == BOX, kind == CYLINDER
    flat_x, flat_y = (a >= b) & (a >= e), (b > a) & (b >= e)
    sign = [arrays.where(u > 0, zero + 1, zero - 1) for u in unit]
    nx = arrays.where(is_box, arrays.where(flat_x, sign[0], zero), round_[0])
    ny = arrays.where(is_box, arrays.where(flat_y, sign[1], zero), round_[1])
    nz = arrays.where(is_box, arrays.where(flat_x | flat_y, zero, sign[2]), unit[2] / half[2])
    nx = arrays.where(is_cylinder & cap, zero, nx)
    ny = arrays.where(is_cylinder & cap, zero, ny)
    nz = arrays.where(is_cylinder, arrays.where(cap, sign[2], zero), nz)
    length = arrays.sqrt(nx * nx + ny * ny + nz * nz) + 1e-9
    return place, ((c * nx - s * ny) / length, (s * nx + c * ny) / length, nz / length)


def _texture(arrays: Arrays, look: Any, place: Vector, depth: Any) -> Vector:
    """Red, green and blue, (P,) each, see `materials`."""
    phase = [
        sum(look[6 + 3 * wave + axis] * p for axis, p in enumerate(place)) + look[15 + wave]
        for wave in range(3)
    ]
    first, second = arrays.sin(phase[0]), arrays.sin(phase[1])
    third = arrays.sin(phase[2] + 2 * second)
    mixed = look[18] * first + look[19] * first * second + look[20] * third
    finest = look[6] ** 2 + look[7] ** 2 + look[8] ** 2
    fade = 1.0 / (1.0 + finest * (_BLUR_M * 0.3 * depth) ** 2)
    mixed = 0.5 + 0.5 * fade * arrays.clip(mixed * look[21], -1.0, 1.0)
    return tuple(look[c] + mixed * (look[3 + c] - look[c]) for c in range(3))


def _light(
    arrays: Arrays, scenes: Tables, at: Any, look: Any, world: Vector, normal: Vector
) -> Any:
    """Brightness (P,): ambient light, the lamp of the room, its shadows, darker room edges."""
    lamp = [look[22 + axis] - w for axis, w in enumerate(world)]
    squared = sum(part * part for part in lamp) + 1e-6
    facing = sum(part * n for part, n in zip(lamp, normal, strict=True)) / arrays.sqrt(squared)
    facing = arrays.clip(facing, 0.0, 1.0) / (1.0 + FALLOFF_PER_M2 * squared)
    lit = look[26] * 0.0 + 1.0
    (floor,) = arrays.nonzero(look[26] > 0.5)
    lit[floor] = _floor_light(arrays, scenes, at[floor], tuple(w[floor] for w in world))
    sky = AMBIENT * (1.0 + 0.2 * normal[2] - 0.12 * normal[0] + 0.06 * normal[1])
    near_floor = 1.0 - 0.25 * arrays.exp(-abs(world[2]) / 0.15) * (1.0 - abs(normal[2]))
    return look[25] * near_floor * (sky * (0.7 + 0.3 * lit) + LAMP * facing * lit)


def _floor_light(arrays: Arrays, scenes: Tables, at: Any, world: Vector) -> Any:
    """The shadow map of the room at a point, interpolated."""
    home, rooms = at // scenes.shape.shape[1], scenes.floor.shape[1]
    room = home * rooms + scenes.room.reshape(-1)[at]
    corner = scenes.floor.reshape(-1, 4)[room]
    cell = [
        arrays.clip(
            (world[axis] - corner[:, axis]) * corner[:, 2 + axis] * LIGHTMAP - 0.5,
            0.0,
            LIGHTMAP - 1.001,
        )
        for axis in (0, 1)
    ]
    low = [arrays.floor(c) for c in cell]
    u, v = (c - f for c, f in zip(cell, low, strict=True))
    i, j = (_whole(arrays, f) for f in low)
    value = scenes.shadow.reshape(-1)
    first = (room * LIGHTMAP + j) * LIGHTMAP + i
    top = value[first] * (1 - u) + value[first + 1] * u
    bottom = value[first + LIGHTMAP] * (1 - u) + value[first + LIGHTMAP + 1] * u
    return top * (1 - v) + bottom * v


def _whole(arrays: Arrays, values: Any) -> Any:
    return values.astype("int64") if arrays.device is None else values.long()
