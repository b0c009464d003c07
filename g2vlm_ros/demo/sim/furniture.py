# SPDX-License-Identifier: Apache-2.0
"""The catalogue: things made of boxes, cylinders and ellipsoids, each with a name and a colour.

A builder draws sizes and returns parts in the frame of the thing: x right, y back, z up, origin on
the floor under its middle; the front looks along -y. Metres.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

BOX, CYLINDER, ELLIPSOID = 0, 1, 2


class Part(NamedTuple):
    """A shape inside the box centre +- half; `role` picks the material (see ROLES)."""

    shape: int
    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    role: str


ROLES = ("main", "wood", "white", "dark", "green")
"""main: the colour that the thing is called by; the others are the same for many things."""
Builder = Callable[[np.random.Generator], list[Part]]


def _legs(half_x: float, half_y: float, height: float, role: str, size: float = 0.025):
    return [
        Part(
            BOX,
            (sx * (half_x - size), sy * (half_y - size), height / 2),
            (size, size, height / 2),
            role,
        )
        for sx in (-1, 1)
        for sy in (-1, 1)
    ]


def chair(rng: np.random.Generator) -> list[Part]:
    half, seat = rng.uniform(0.20, 0.24), rng.uniform(0.43, 0.48)
    back = rng.uniform(0.40, 0.55)
    return [
        Part(BOX, (0, 0, seat), (half, half, 0.03), "main"),
        Part(BOX, (0, half - 0.025, seat + back / 2), (half, 0.025, back / 2), "main"),
        *_legs(half, half, seat - 0.03, "wood"),
    ]


def stool(rng: np.random.Generator) -> list[Part]:
    radius, height = rng.uniform(0.16, 0.22), rng.uniform(0.42, 0.65)
    return [
        Part(CYLINDER, (0, 0, height), (radius, radius, 0.03), "main"),
        *_legs(radius * 0.75, radius * 0.75, height - 0.03, "wood", 0.02),
    ]


def table(rng: np.random.Generator) -> list[Part]:
    x, y, height = rng.uniform(0.5, 0.85), rng.uniform(0.38, 0.5), rng.uniform(0.68, 0.78)
    if rng.random() < 0.3:
        return [
            Part(CYLINDER, (0, 0, height), (y + 0.05, y + 0.05, 0.025), "main"),
            Part(CYLINDER, (0, 0, height / 2), (0.05, 0.05, height / 2), "wood"),
            Part(CYLINDER, (0, 0, 0.02), (0.25, 0.25, 0.02), "wood"),
        ]
    return [
        Part(BOX, (0, 0, height), (x, y, 0.025), "main"),
        *_legs(x, y, height - 0.025, "wood", 0.035),
    ]


def desk(rng: np.random.Generator) -> list[Part]:
    x, y, height = rng.uniform(0.55, 0.75), rng.uniform(0.3, 0.36), rng.uniform(0.7, 0.76)
    return [
        Part(BOX, (0, 0, height), (x, y, 0.02), "main"),
        Part(BOX, (x - 0.2, 0, height / 2), (0.2, y - 0.03, height / 2 - 0.02), "main"),
        Part(BOX, (0.02 - x, 0, height / 2), (0.02, y, height / 2), "wood"),
        Part(BOX, (-0.1, y - 0.12, height + 0.22), (0.27, 0.02, 0.16), "dark"),
        Part(BOX, (-0.1, y - 0.12, height + 0.04), (0.05, 0.05, 0.04), "dark"),
    ]


def sofa(rng: np.random.Generator) -> list[Part]:
    x, y, seat = rng.uniform(0.75, 1.05), rng.uniform(0.40, 0.46), rng.uniform(0.38, 0.44)
    back = rng.uniform(0.75, 0.88)
    return [
        Part(BOX, (0, 0, seat / 2 + 0.03), (x, y, seat / 2 - 0.03), "main"),
        Part(BOX, (0, y - 0.1, back / 2), (x, 0.1, back / 2), "main"),
        Part(BOX, (0.09 - x, 0, 0.3), (0.09, y, 0.3), "main"),
        Part(BOX, (x - 0.09, 0, 0.3), (0.09, y, 0.3), "main"),
    ]


def bed(rng: np.random.Generator) -> list[Part]:
    x, y, height = rng.uniform(0.5, 0.85), rng.uniform(0.98, 1.03), rng.uniform(0.38, 0.5)
    pillows = [(-0.5, 0.35), (0.5, 0.35)] if x > 0.7 else [(0.0, 0.6)]
    return [
        Part(BOX, (0, 0, height / 4 + 0.02), (x, y, height / 4), "wood"),
        Part(BOX, (0, -0.2, height * 0.78), (x - 0.01, y - 0.21, height * 0.24), "main"),
        Part(BOX, (0, y - 0.22, height * 0.74), (x - 0.02, 0.2, height * 0.2), "white"),
        Part(BOX, (0, y - 0.03, 0.45), (x, 0.03, 0.45), "wood"),
        *(
            Part(ELLIPSOID, (sx * x, y - 0.25, height + 0.02), (half * x, 0.15, 0.07), "white")
            for sx, half in pillows
        ),
    ]


def shelf(rng: np.random.Generator) -> list[Part]:
    x, y, height = rng.uniform(0.35, 0.6), rng.uniform(0.14, 0.18), rng.uniform(1.3, 2.0)
    count = 4
    levels = np.linspace(0.05, height - 0.02, count + 1)
    boards = [Part(BOX, (0, 0, z), (x, y, 0.02), "main") for z in levels]
    books = []
    for z in levels[:-1]:
        half = rng.uniform(0.1, x * 0.45)
        tall = rng.uniform(0.08, 0.13)
        place = rng.uniform(half - x + 0.05, x - half - 0.05)
        role = ("white", "dark", "green", "wood")[rng.integers(4)]
        books.append(Part(BOX, (place, 0.02, z + 0.02 + tall), (half, y * 0.7, tall), role))
    return [
        Part(BOX, (0.02 - x, 0, height / 2), (0.02, y, height / 2), "main"),
        Part(BOX, (x - 0.02, 0, height / 2), (0.02, y, height / 2), "main"),
        Part(BOX, (0, y - 0.01, height / 2), (x, 0.01, height / 2), "main"),
        *boards,
        *books,
    ]


def cabinet(rng: np.random.Generator) -> list[Part]:
    x, y, height = rng.uniform(0.4, 0.7), rng.uniform(0.22, 0.3), rng.uniform(0.75, 1.2)
    return [
        Part(BOX, (0, 0, height / 2), (x, y, height / 2), "main"),
        Part(BOX, (0, -0.005, height + 0.015), (x + 0.02, y + 0.01, 0.015), "wood"),
        Part(BOX, (0, -y, height / 2), (0.006, 0.006, height / 2 - 0.03), "dark"),
        Part(BOX, (-0.06, -y - 0.01, height * 0.55), (0.012, 0.012, 0.06), "dark"),
        Part(BOX, (0.06, -y - 0.01, height * 0.55), (0.012, 0.012, 0.06), "dark"),
    ]


def wardrobe(rng: np.random.Generator) -> list[Part]:
    x, y, height = rng.uniform(0.45, 0.75), rng.uniform(0.28, 0.32), rng.uniform(1.85, 2.1)
    return [
        Part(BOX, (0, 0, height / 2), (x, y, height / 2), "main"),
        Part(BOX, (0, -y, height / 2), (0.008, 0.006, height / 2 - 0.04), "dark"),
        Part(BOX, (-0.07, -y - 0.015, height / 2), (0.012, 0.012, 0.12), "dark"),
        Part(BOX, (0.07, -y - 0.015, height / 2), (0.012, 0.012, 0.12), "dark"),
    ]


def fridge(rng: np.random.Generator) -> list[Part]:
    x, y, height = rng.uniform(0.29, 0.34), rng.uniform(0.3, 0.34), rng.uniform(1.5, 1.85)
    return [
        Part(BOX, (0, 0, height / 2), (x, y, height / 2), "main"),
        Part(BOX, (0, -y, height * 0.66), (x - 0.01, 0.005, 0.008), "dark"),
        Part(BOX, (0.04 - x + 0.04, -y - 0.02, height * 0.45), (0.015, 0.015, 0.2), "dark"),
    ]


def television(rng: np.random.Generator) -> list[Part]:
    x, stand = rng.uniform(0.45, 0.65), rng.uniform(0.4, 0.5)
    tall = x * 0.58
    return [
        Part(BOX, (0, 0, stand / 2), (x * 1.05, 0.2, stand / 2), "main"),
        Part(BOX, (0, 0, stand + 0.03), (0.12, 0.08, 0.03), "dark"),
        Part(BOX, (0, 0, stand + 0.06 + tall), (x, 0.025, tall), "dark"),
    ]


def lamp(rng: np.random.Generator) -> list[Part]:
    height, radius = rng.uniform(1.3, 1.65), rng.uniform(0.14, 0.2)
    return [
        Part(CYLINDER, (0, 0, 0.015), (0.15, 0.15, 0.015), "dark"),
        Part(CYLINDER, (0, 0, height / 2), (0.018, 0.018, height / 2), "dark"),
        Part(CYLINDER, (0, 0, height), (radius, radius, 0.13), "main"),
    ]


def plant(rng: np.random.Generator) -> list[Part]:
    pot, radius, height = rng.uniform(0.12, 0.16), rng.uniform(0.2, 0.32), rng.uniform(0.7, 1.3)
    return [
        Part(CYLINDER, (0, 0, 0.15), (pot, pot, 0.15), "main"),
        Part(CYLINDER, (0, 0, height / 2), (0.02, 0.02, height / 2 - 0.05), "wood"),
        Part(ELLIPSOID, (0, 0, height), (radius, radius, height * 0.3), "green"),
        Part(
            ELLIPSOID,
            (radius * 0.4, 0.05, height * 0.75),
            (radius * 0.7, radius * 0.6, 0.14),
            "green",
        ),
    ]


def ball(rng: np.random.Generator) -> list[Part]:
    radius = rng.uniform(0.12, 0.25)
    return [Part(ELLIPSOID, (0, 0, radius), (radius, radius, radius), "main")]


def box(rng: np.random.Generator) -> list[Part]:
    x, y, z = rng.uniform(0.15, 0.32, 3)
    return [
        Part(BOX, (0, 0, z), (x, y, z), "main"),
        Part(BOX, (0, 0, z), (0.03, y + 0.002, z + 0.002), "white"),
    ]


def bin(rng: np.random.Generator) -> list[Part]:
    radius, height = rng.uniform(0.13, 0.19), rng.uniform(0.3, 0.6)
    return [
        Part(CYLINDER, (0, 0, height / 2), (radius, radius, height / 2), "main"),
        Part(CYLINDER, (0, 0, height + 0.012), (radius + 0.012, radius + 0.012, 0.012), "dark"),
    ]


def rug(rng: np.random.Generator) -> list[Part]:
    x, y = rng.uniform(0.6, 1.0), rng.uniform(0.4, 0.7)
    return [
        Part(BOX, (0, 0, 0.004), (x, y, 0.004), "main"),
        Part(BOX, (0, 0, 0.005), (x - 0.1, y - 0.1, 0.005), "main"),
    ]


def robot(rng: np.random.Generator) -> list[Part]:
    radius = rng.uniform(0.16, 0.2)
    return [
        Part(CYLINDER, (0, 0, 0.06), (radius, radius, 0.05), "main"),
        Part(CYLINDER, (0, 0, 0.12), (0.06, 0.06, 0.015), "dark"),
    ]


def vase(rng: np.random.Generator) -> list[Part]:
    radius, height = rng.uniform(0.06, 0.1), rng.uniform(0.18, 0.3)
    return [
        Part(ELLIPSOID, (0, 0, height * 0.4), (radius, radius, height * 0.4), "main"),
        Part(CYLINDER, (0, 0, height * 0.8), (radius * 0.45, radius * 0.45, height * 0.2), "main"),
    ]


def picture(rng: np.random.Generator) -> list[Part]:
    x, z, height = rng.uniform(0.2, 0.5), rng.uniform(0.18, 0.35), rng.uniform(1.4, 1.65)
    return [
        Part(BOX, (0, 0, height), (x, 0.015, z), "wood"),
        Part(BOX, (0, -0.004, height), (x - 0.04, 0.015, z - 0.04), "main"),
    ]


def window(rng: np.random.Generator) -> list[Part]:
    x, z, height = rng.uniform(0.4, 0.8), rng.uniform(0.4, 0.6), rng.uniform(1.45, 1.6)
    return [
        Part(BOX, (0, 0, height), (x, 0.02, z), "white"),
        Part(BOX, (-x / 2, -0.004, height), (x / 2 - 0.05, 0.02, z - 0.06), "main"),
        Part(BOX, (x / 2, -0.004, height), (x / 2 - 0.05, 0.02, z - 0.06), "main"),
        Part(BOX, (0, -0.03, height - z - 0.02), (x + 0.06, 0.05, 0.02), "white"),
    ]


ON_FLOOR: dict[str, Builder] = {
    "chair": chair,
    "stool": stool,
    "table": table,
    "lamp": lamp,
    "plant": plant,
    "ball": ball,
    "box": box,
    "bin": bin,
    "rug": rug,
}
AT_WALL: dict[str, Builder] = {
    "sofa": sofa,
    "bed": bed,
    "shelf": shelf,
    "cabinet": cabinet,
    "wardrobe": wardrobe,
    "fridge": fridge,
    "television": television,
    "desk": desk,
}
ON_WALL: dict[str, Builder] = {"picture": picture, "window": window}
ON_TOP: dict[str, Builder] = {"vase": vase, "ball": ball, "box": box}
MOVING: dict[str, Builder] = {"robot": robot, "ball": ball}
NAMES = tuple(sorted({*ON_FLOOR, *AT_WALL, *ON_WALL, *ON_TOP, *MOVING}))
"""Everything that a question can be about."""
