# SPDX-License-Identifier: Apache-2.0
"""A simulated home in which things are taken away or moved while the robot is elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from g2vlm_ros.demo.sim.home import STRUCTURE, Home, Item, overlaps
from g2vlm_ros.demo.sim.robot_path import RobotPath

CHANGES = 3
"""Things taken away, and things that are moved, per home at most."""
MOVE_M = 0.8
"""A moved thing stands at least that far from where it stood."""
CLEARANCE_M = 0.5
"""A moved thing stays that far from the robot's way."""


@dataclass(frozen=True)
class ChangedHome:
    """A home before and after somebody was there."""

    before: Home
    after: Home
    removed: tuple[int, ...]
    """Ids of items."""
    moved: tuple[int, ...]

    @property
    def gone(self) -> set[int]:
        """What is no longer where it was."""
        return {*self.removed, *self.moved}


def changed(home: Home, walk: RobotPath) -> ChangedHome:
    """Some of the home's free-standing things taken away or moved; a function of its seed."""
    rng = np.random.default_rng([home.seed, 21])
    order = [item for item in home.items if _portable(item)]
    rng.shuffle(order)
    removed, order = order[:CHANGES], order[CHANGES:]
    shifts: dict[int, np.ndarray] = {}
    for item in order:
        shift = _shift(item, home, walk, rng) if len(shifts) < CHANGES else None
        if shift is not None:
            shifts[item.id] = shift
    gone = {item.id for item in removed}
    after = replace(
        home,
        items=tuple(_shifted(item, shifts, item.id) for item in home.items),
        solids=tuple(_shifted(s, shifts, s.item) for s in home.solids if s.item not in gone),
    )
    return ChangedHome(home, after, tuple(sorted(gone)), tuple(sorted(shifts)))


def _portable(item: Item) -> bool:
    """Whether it stands on the floor by itself and does not move."""
    on_floor = abs(item.centre_m[2] - item.size_m[2] / 2) < 0.05
    return item.name not in (*STRUCTURE, "rug") and on_floor and not item.travel_m.any()


def _shifted(part: Any, shifts: Mapping[int, np.ndarray], item: int) -> Any:
    return replace(part, centre_m=part.centre_m + shifts[item]) if item in shifts else part


def _shift(item: Item, home: Home, walk: RobotPath, rng: np.random.Generator) -> np.ndarray | None:
    """Where to: inside its room, on free floor, off the robot's way; None without a place."""
    x0, y0, x1, y1 = home.rooms[item.room].rectangle
    low_x, low_y, high_x, high_y = item.footprint()
    others = [o for o in home.items if o.id != item.id and o.name not in (*STRUCTURE, "rug")]
    for _ in range(100):
        shift = np.append(rng.uniform(-2.5, 2.5, 2), 0.0)
        place = np.add((low_x, low_y, high_x, high_y), np.tile(shift[:2], 2))
        inside = place[0] > x0 and place[1] > y0 and place[2] < x1 and place[3] < y1
        if not inside or np.linalg.norm(shift) < MOVE_M:
            continue
        outside = np.maximum(place[:2] - walk.position_m, walk.position_m - place[2:])
        if (outside.max(1) < CLEARANCE_M).any():
            continue
        if not any(overlaps(tuple(place), other.footprint(), 0.05) for other in others):
            return shift
    return None


def there_and_back(walk: RobotPath) -> RobotPath:
    """The walk, and then backwards along it."""
    time_s = np.concatenate([walk.time_s, 2 * walk.time_s[-1] - walk.time_s[-2::-1]])
    parts = (walk.position_m, walk.yaw_rad, walk.world_from_camera)
    return RobotPath(time_s, *(np.concatenate([part, part[-2::-1]]) for part in parts))
