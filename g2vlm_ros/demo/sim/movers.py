# SPDX-License-Identifier: Apache-2.0
"""People who walk and doors that open in a simulated home.

A walker goes to and fro on a straight line, as the renderer moves things anyway (`Item.travel_m`).
A door opens as the robot comes near and closes behind it; the renderer gets one home per angle
(`SimulatedScene.homes`). Both follow from the seed of the home and from the walk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from g2vlm_ros.demo.sim import materials
from g2vlm_ros.demo.sim.furniture import BOX, CYLINDER, ELLIPSOID
from g2vlm_ros.demo.sim.home import DOOR_HEIGHT_M, DOOR_WIDTH_M, WALL_M, Door, Home, Item, Solid
from g2vlm_ros.demo.sim.robot_path import FreeSpace, RobotPath
from g2vlm_ros.demo.sim.scenes import SimulatedScene

PERSON, DOOR = "person", "door"
TRIES = 1500
"""Lines drawn for a walker, of which the one that the robot sees most is taken."""
HALF_WAY_M, PERIOD_S = (0.4, 1.3), (6.0, 10.0)
"""Half of a walker's line and the time for both ways: at most 1.4 m/s in the middle."""
CLEAR_M = 0.7
"""Least distance between the middles of a walker and of the robot, or of two walkers."""
SIGHT_M, SIGHT_RAD = 5.0, np.deg2rad(30.0)
"""Where a walker counts as in view of the robot's camera."""
SHUT_M, OPEN_M = 3.0, 1.6
"""Distance of the robot from a doorway from which on its door opens, and at which it is open."""
ANGLES = 9
"""Of a door from shut to open, both included."""
SLAB_M, GAP_M = 0.02, 0.01
"""Half the thickness of a door, and the gap around it."""


def with_walkers(scene: SimulatedScene, count: int) -> SimulatedScene:
    """The scene with `count` people, where the robot sees them and meets none.

    ValueError where the home has no room for so many.
    """
    rng = np.random.default_rng([scene.home.seed, 11])
    home = scene.home
    for _ in range(count):
        walker = _walker(scene, home, rng)
        if walker is None:
            raise ValueError(
                f"home {scene.home.seed} has no room for {count} walkers; take fewer of them"
            )
        item, solids = walker
        home = replace(home, items=(*home.items, item), solids=(*home.solids, *solids))
    return replace(scene, home=home)


def _walker(
    scene: SimulatedScene, home: Home, rng: np.random.Generator
) -> tuple[Item, list[Solid]] | None:
    """Of TRIES random lines the one that the robot sees longest; None where none is free."""
    space, walk, best, longest = FreeSpace(scene.home), scene.walk, None, 0
    others = [item for item in home.items if item.name == PERSON]
    for _ in range(TRIES):
        room = int(rng.integers(len(home.rooms)))
        x0, y0, x1, y1 = home.rooms[room].rectangle
        middle, heading = rng.uniform((x0, y0), (x1, y1)), rng.uniform(0, 2 * np.pi)
        way = rng.uniform(*HALF_WAY_M) * np.array([np.cos(heading), np.sin(heading), 0.0])
        item = Item(
            len(home.items) + 1, PERSON, "", room, np.array([*middle, 0.9]),
            np.array([0.44, 0.3, 1.8]), heading + np.pi / 2, way, rng.uniform(*PERIOD_S),
        )  # fmt: skip
        if not space.clear(middle - way[:2], middle + way[:2]):
            continue
        places = _places(item, walk.time_s)
        apart = np.linalg.norm(places - walk.position_m, axis=1)
        meets = [np.linalg.norm(places - _places(each, walk.time_s), axis=1) for each in others]
        if min(each.min() for each in (apart, *meets)) < CLEAR_M:
            continue
        low, high = np.array(home.rooms[room].rectangle).reshape(2, 2)
        beside = ((walk.position_m > low) & (walk.position_m < high)).all(1)
        steps = np.count_nonzero(_in_sight(places, apart, walk) & beside)
        if steps > longest:
            best, longest = item, steps
    return None if best is None else (best, _body(best, rng))


def _places(item: Item, time_s: np.ndarray) -> np.ndarray:
    """(T, 2)."""
    swing = np.sin(2 * np.pi * time_s / item.period_s)
    return item.centre_m[:2] + swing[:, None] * item.travel_m[:2]


def _in_sight(places: np.ndarray, apart_m: np.ndarray, walk: RobotPath) -> np.ndarray:
    """bool (T,): before the camera and near."""
    x, y = (places - walk.position_m).T
    off = np.angle(np.exp(1j * (np.arctan2(y, x) - walk.yaw_rad)))
    return (np.abs(off) < SIGHT_RAD) & (apart_m < SIGHT_M)


def _body(item: Item, rng: np.random.Generator) -> list[Solid]:
    """Legs, trunk and head."""
    colours = [materials.paint(rng, name) for name in ("blue", "red")] + [materials.wood(rng)]
    parts = (
        (CYLINDER, (0.0, 0.0, 0.42), (0.16, 0.13, 0.42), colours[0]),
        (ELLIPSOID, (0.0, 0.0, 1.16), (0.22, 0.15, 0.38), colours[1]),
        (ELLIPSOID, (0.0, 0.0, 1.66), (0.1, 0.11, 0.14), colours[2]),
    )
    base = np.array([*item.centre_m[:2], 0.0])
    return [
        Solid(shape, base + centre, np.array(half), item.yaw_rad, material, item.id)
        for shape, centre, half, material in parts
    ]


@dataclass(frozen=True)
class SceneWithDoors(SimulatedScene):
    """A scene whose doorways have doors."""

    stages: tuple[Home, ...] = ()
    """The home with its doors as they stand at some time of the walk, without repetition."""
    stage_by_step: np.ndarray | None = None
    """int (T,): which of them, by step of the walk."""

    @property
    def homes(self) -> Sequence[Home]:
        return self.stages

    def home_index(self, time_s: np.ndarray) -> np.ndarray:
        after = np.searchsorted(self.walk.time_s, time_s)
        return self.stage_by_step[np.minimum(after, len(self.stage_by_step) - 1)]


def with_doors(scene: SimulatedScene) -> SceneWithDoors:
    """The scene with a door in each doorway, open where the robot is near."""
    walk, doors = scene.walk, scene.home.doors
    middles = np.array([door.centre_m for door in doors]).reshape(-1, 2)
    away_m = np.linalg.norm(walk.position_m[:, None] - middles, axis=2)
    shares = np.clip((SHUT_M - away_m) / (SHUT_M - OPEN_M), 0.0, 1.0)
    steps = np.rint(shares * (ANGLES - 1)).astype(int)
    stages, stage_by_step = np.unique(steps, axis=0, return_inverse=True)
    homes = [_with_slabs(scene.home, np.pi / 2 * row / (ANGLES - 1)) for row in stages]
    return SceneWithDoors(scene.home, walk, tuple(homes), stage_by_step.reshape(-1))


def _with_slabs(home: Home, angles_rad: np.ndarray) -> Home:
    """The home with a slab in each doorway, turned about its hinge from shut (0)."""
    rng = np.random.default_rng([home.seed, 13])
    material = materials.wood(rng)
    items, solids = list(home.items), list(home.solids)
    for door, angle_rad in zip(home.doors, angles_rad, strict=True):
        centre, yaw_rad = _slab(home, door, float(angle_rad))
        half = np.array([DOOR_WIDTH_M / 2 - GAP_M, SLAB_M, DOOR_HEIGHT_M / 2 - GAP_M])
        item = Item(
            len(items) + 1, DOOR, "", door.rooms[1], centre, 2 * half, yaw_rad, np.zeros(3)
        )  # fmt: skip
        items.append(item)
        solids.append(Solid(BOX, centre, half, yaw_rad, material, item.id))
    return replace(home, items=tuple(items), solids=tuple(solids))


def _slab(home: Home, door: Door, angle_rad: float) -> tuple[np.ndarray, float]:
    """Middle (3,) and yaw of a door that opens into the second of its rooms."""
    along, across = np.eye(2)[1 - door.axis], door.before(home.rooms[door.rooms[1]], 1.0)
    across = across - door.centre_m
    hinge = door.centre_m - DOOR_WIDTH_M / 2 * along + (WALL_M - SLAB_M) * across
    direction = np.cos(angle_rad) * along + np.sin(angle_rad) * across
    middle = hinge + DOOR_WIDTH_M / 2 * direction
    return np.array([*middle, DOOR_HEIGHT_M / 2]), float(np.arctan2(direction[1], direction[0]))
