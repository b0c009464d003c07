# SPDX-License-Identifier: Apache-2.0
"""Colours with names, and solid textures: waves in the coordinates of the object they belong to.

A texture mixes two colours by m = clip(sharpness * (w . waves)), where the waves are sin(k1.p),
sin(k1.p) sin(k2.p) and sin(k3.p + 2 sin(k2.p)); stripes, checks, wood and clouds are choices of
the weights w. One formula for all keeps the renderer free of cases.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.80, 0.13, 0.12),
    "orange": (0.92, 0.50, 0.10),
    "yellow": (0.93, 0.83, 0.20),
    "green": (0.18, 0.58, 0.22),
    "blue": (0.15, 0.30, 0.80),
    "purple": (0.50, 0.22, 0.62),
    "pink": (0.95, 0.58, 0.70),
    "brown": (0.42, 0.25, 0.13),
    "white": (0.93, 0.93, 0.91),
    "grey": (0.52, 0.52, 0.53),
    "black": (0.09, 0.09, 0.10),
}
WOODS = ((0.60, 0.42, 0.24), (0.45, 0.29, 0.16), (0.72, 0.56, 0.36), (0.33, 0.21, 0.13))
WALLS = (
    (0.86, 0.83, 0.76),
    (0.80, 0.84, 0.86),
    (0.88, 0.80, 0.72),
    (0.74, 0.80, 0.70),
    (0.84, 0.76, 0.80),
    (0.70, 0.74, 0.82),
    (0.90, 0.88, 0.84),
    (0.78, 0.70, 0.58),
)
FLOORS = (
    (0.55, 0.40, 0.26),
    (0.42, 0.30, 0.20),
    (0.66, 0.62, 0.56),
    (0.48, 0.47, 0.46),
    (0.62, 0.50, 0.36),
    (0.36, 0.40, 0.42),
    (0.58, 0.44, 0.40),
)
COLUMNS = 22
"""Floats per material: 2 colours, 3 wave vectors, 3 phases, 3 weights, sharpness."""


@dataclass(frozen=True)
class Material:
    """A solid texture; lengths in metres, colours 0..1."""

    first: np.ndarray
    second: np.ndarray
    waves: np.ndarray
    """(3, 3) wave vectors, radians per metre."""
    phases: np.ndarray
    weights: np.ndarray
    """(3,): of the plain wave, of the product, of the warped wave."""
    sharpness: float

    def row(self) -> np.ndarray:
        """float64 (COLUMNS,), as the renderer takes it."""
        parts = (self.first, self.second, self.waves.ravel(), self.phases, self.weights)
        return np.concatenate([*parts, [self.sharpness]])


def _vary(rng: np.random.Generator, colour: tuple[float, ...], amount: float) -> np.ndarray:
    return np.clip(np.array(colour) * rng.uniform(1 - amount, 1 + amount), 0.03, 1.0)


def _material(
    rng: np.random.Generator,
    first: np.ndarray,
    contrast: float,
    waves: np.ndarray,
    weights: tuple[float, float, float],
    sharpness: float,
) -> Material:
    tint = 1 + rng.uniform(-0.06, 0.06, 3)
    second = np.clip(first * (1 - contrast) * tint, 0.02, 1.0)
    return Material(
        first, second, waves, rng.uniform(0, 2 * np.pi, 3), np.array(weights), sharpness
    )


def _direction(rng: np.random.Generator) -> np.ndarray:
    vector = rng.normal(size=3)
    return vector / np.linalg.norm(vector)


def _axis(index: int) -> np.ndarray:
    return np.eye(3)[index]


def _clouds(rng: np.random.Generator, first: np.ndarray, contrast: float, pitch_m: float):
    waves = np.stack([_direction(rng) for _ in range(3)]) * (2 * np.pi / pitch_m)
    waves *= rng.uniform(0.6, 1.6, (3, 1))
    return _material(rng, first, contrast, waves, (0.4, 0.4, 0.6), 1.0)


def _stripes(rng: np.random.Generator, first, contrast: float, pitch_m: float, axis: int):
    waves = np.stack([_axis(axis), _direction(rng), _direction(rng)]) * (2 * np.pi / pitch_m)
    return _material(rng, first, contrast, waves, (1.0, 0.0, 0.1), rng.uniform(1, 4))


def _checks(rng: np.random.Generator, first, contrast: float, pitch_m: float, axes):
    a, b = (_axis(axis) for axis in axes)
    waves = np.stack([a, b, _direction(rng)]) * (2 * np.pi / pitch_m)
    return _material(rng, first, contrast, waves, (0.0, 1.0, 0.1), rng.uniform(1.5, 6))


def _wood(rng: np.random.Generator, first, contrast: float, axis: int):
    along, across = _axis(axis), _axis((axis + 1) % 3)
    waves = np.stack([across * 40.0, along * 4.0 + across * 9.0, across * 70.0])
    return _material(rng, first, contrast, waves, (0.3, 0.2, 0.6), 1.2)


def paint(rng: np.random.Generator, name: str) -> Material:
    """The material of a thing that people would call `name` (a key of COLOURS)."""
    first = _vary(rng, COLOURS[name], 0.12)
    kind = rng.integers(4)
    if kind == 0:
        return _stripes(rng, first, rng.uniform(0.1, 0.3), rng.uniform(0.08, 0.3), 0)
    if kind == 1:
        return _checks(rng, first, rng.uniform(0.1, 0.3), rng.uniform(0.1, 0.3), (0, 2))
    return _clouds(rng, first, rng.uniform(0.03, 0.2), rng.uniform(0.1, 0.5))


def wood(rng: np.random.Generator) -> Material:
    """Wood of a random tone, grain along x."""
    return _wood(rng, _vary(rng, WOODS[rng.integers(len(WOODS))], 0.1), 0.25, 0)


def plain(rng: np.random.Generator, name: str) -> Material:
    """Nearly one colour."""
    return _clouds(rng, _vary(rng, COLOURS[name], 0.08), 0.05, 0.4)


def wall(rng: np.random.Generator) -> Material:
    """Wallpaper or plaster."""
    first = _vary(rng, WALLS[rng.integers(len(WALLS))], 0.12)
    kind = rng.integers(4)
    contrast, pitch = rng.uniform(0.06, 0.25), rng.uniform(0.25, 0.9)
    if kind == 0:
        material = _stripes(rng, first, contrast, pitch, 0)
        # Wallpaper stripes run upwards on walls of both directions.
        material.waves[0] = (2 * np.pi / pitch) * np.array([1.0, 1.0, 0.0])
        return material
    if kind == 1:
        material = _checks(rng, first, contrast, pitch, (0, 2))
        material.waves[0] = (2 * np.pi / pitch) * np.array([1.0, 1.0, 0.0])
        return material
    return _clouds(rng, first, contrast, rng.uniform(0.4, 1.2))


def floor(rng: np.random.Generator) -> Material:
    """Planks, tiles or carpet."""
    first = _vary(rng, FLOORS[rng.integers(len(FLOORS))], 0.15)
    kind = rng.integers(4)
    if kind == 0:
        material = _wood(rng, first, rng.uniform(0.15, 0.35), int(rng.integers(2)))
        return Material(material.first, material.second, material.waves * 0.5, *_rest(material))
    if kind == 1:
        pitch = rng.uniform(0.4, 1.0)
        return _checks(rng, first, rng.uniform(0.1, 0.45), pitch, (0, 1))
    if kind == 2:
        axis = int(rng.integers(2))
        return _stripes(rng, first, rng.uniform(0.1, 0.3), rng.uniform(0.2, 0.5), axis)
    return _clouds(rng, first, rng.uniform(0.1, 0.3), rng.uniform(0.3, 0.9))


def _rest(material: Material) -> tuple[np.ndarray, np.ndarray, float]:
    return material.phases, material.weights, material.sharpness


def ceiling(rng: np.random.Generator) -> Material:
    """Nearly white."""
    return _clouds(rng, _vary(rng, (0.92, 0.92, 0.90), 0.06), 0.05, 0.8)
