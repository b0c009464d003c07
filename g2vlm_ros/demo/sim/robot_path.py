# SPDX-License-Identifier: Apache-2.0
"""How a robot goes through a home: straight legs, turns on the spot, through a door and back.

The robot is a disc. It keeps clear of furniture and walls, and crosses a doorway on its axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from g2vlm_ros.demo.sim.camera import HEIGHT_M, PITCH_DOWN_RAD, world_from_camera
from g2vlm_ros.demo.sim.home import DOOR_WIDTH_M, WALL_M, Door, Home

RADIUS_M = 0.28
SPEED_M_S = 0.5
TURN_RAD_S = 0.8
RATE_HZ = 10.0
CORNER_M = 0.6
"""Most of a leg that goes into rounding a corner."""
LOOK_AROUND = 0.01
"""Chance per point of the rounded way that the robot stops there to look elsewhere."""
DOOR_STAND_M = 0.65
"""Distance from the middle of a doorway at which the robot lines up with it."""


@dataclass(frozen=True)
class RobotPath:
    """A trajectory sampled at RATE_HZ."""

    time_s: np.ndarray
    """(T,) from 0."""
    position_m: np.ndarray
    """(T, 2) of the robot, which is also where its camera is."""
    yaw_rad: np.ndarray
    world_from_camera: np.ndarray
    """(T, 4, 4) of the optical frame."""


class FreeSpace:
    """Where the middle of the robot may be."""

    def __init__(self, home: Home):
        self._rooms = np.array([room.rectangle for room in home.rooms])
        self._rooms += RADIUS_M * np.array([1, 1, -1, -1])
        self._doors = np.array([_corridor(door) for door in home.doors]).reshape(-1, 4)
        self._obstacles = home.obstacles() + RADIUS_M * np.array([-1, -1, 1, 1])

    def free(self, points: np.ndarray) -> np.ndarray:
        """bool (T,) for points (T, 2)."""
        inside = _within(points, self._rooms) | _within(points, self._doors)
        return inside & ~_within(points, self._obstacles)

    def clear(self, start: np.ndarray, end: np.ndarray) -> bool:
        """Whether the robot can drive straight from start to end."""
        steps = max(2, int(np.linalg.norm(end - start) / 0.05) + 1)
        line = start + np.linspace(0, 1, steps)[:, None] * (end - start)
        return bool(self.free(line).all())


def _corridor(door: Door) -> tuple[float, float, float, float]:
    reach = np.full(2, DOOR_WIDTH_M / 2 - RADIUS_M)
    reach[door.axis] = RADIUS_M + 2 * WALL_M
    return (*(door.centre_m - reach), *(door.centre_m + reach))


def _within(points: np.ndarray, rectangles: np.ndarray) -> np.ndarray:
    x, y = points[:, :1], points[:, 1:]
    x0, y0, x1, y1 = rectangles.T
    return ((x > x0) & (x < x1) & (y > y0) & (y < y1)).any(axis=1)


def walk(home: Home, seed: int, legs: int = 6) -> RobotPath | None:
    """A walk of about `legs` straight legs, or None where the home leaves no room to walk."""
    rng = np.random.default_rng([home.seed, 2, seed])
    space = FreeSpace(home)
    points = _waypoints(home, space, rng, legs)
    return None if points is None else _drive(rounded(points, space), rng)


def _random_point(
    home: Home,
    space: FreeSpace,
    rng: np.random.Generator,
    room: int,
    visited: list[np.ndarray],
    tries: int = 40,
    away_m: float = 0.5,
) -> np.ndarray | None:
    """A free point of the room from which one can drive straight to every point in `seen`."""
    x0, y0, x1, y1 = home.rooms[room].rectangle
    points = rng.uniform((x0, y0), (x1, y1), (tries, 2))
    for point in points[space.free(points)]:
        far = all(np.linalg.norm(point - other) > away_m for other in visited)
        if far and all(space.clear(point, other) for other in visited):
            return point
    return None


def _waypoints(
    home: Home, space: FreeSpace, rng: np.random.Generator, legs: int
) -> list[np.ndarray] | None:
    room = int(rng.integers(len(home.rooms)))
    start = _random_point(home, space, rng, room, [])
    if start is None:
        return None
    points, entered = [start], None
    for _ in range(4 * legs):
        if len(points) > legs:
            break
        doors = [door for door in home.doors if room in door.rooms]
        if entered is not None and rng.random() < 0.5:
            doors = [entered]
        if doors and rng.random() < 0.6:
            door = doors[rng.integers(len(doors))]
            route = _through(home, space, rng, room, points[-1], door)
            if route is not None:
                points += route
                room = door.rooms[1] if door.rooms[0] == room else door.rooms[0]
                entered = door
                continue
        point = _random_point(home, space, rng, room, [points[-1]], away_m=1.5)
        if point is None:
            point = _random_point(home, space, rng, room, [points[-1]])
        if point is not None:
            points.append(point)
    return points if len(points) > 2 else None


def _through(
    home: Home,
    space: FreeSpace,
    rng: np.random.Generator,
    room: int,
    here: np.ndarray,
    door: Door,
) -> list[np.ndarray] | None:
    """Waypoints from `here` through the doorway into the next room, or None if blocked."""
    other = door.rooms[1] if door.rooms[0] == room else door.rooms[0]
    before = door.before(home.rooms[room], DOOR_STAND_M)
    after = door.before(home.rooms[other], DOOR_STAND_M)
    if not space.clear(before, after):
        return None
    detour: list[np.ndarray] = []
    if not space.clear(here, before):
        via = _random_point(home, space, rng, room, [here, before])
        if via is None:
            return None
        detour = [via]
    beyond = _random_point(home, space, rng, other, [after])
    return [*detour, before, after] + ([] if beyond is None else [beyond])


def rounded(points: list[np.ndarray], space: FreeSpace) -> list[np.ndarray]:
    """The same way with its corners cut by curves wherever there is room for one."""
    corners = [points[0]]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        back, ahead = before - corner, after - corner
        lengths = np.linalg.norm(back), np.linalg.norm(ahead)
        if min(lengths) < 1e-6:
            continue
        cut = min(CORNER_M, 0.45 * min(lengths))
        start, end = corner + back / lengths[0] * cut, corner + ahead / lengths[1] * cut
        t = np.linspace(0, 1, 9)[:, None]
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * corner + t**2 * end
        sharp = back @ ahead > 0.5 * lengths[0] * lengths[1]
        corners += [corner] if sharp or not space.free(curve).all() else list(curve)
    return [*corners, points[-1]]


def _drive(points: list[np.ndarray], rng: np.random.Generator) -> RobotPath:
    """Positions and headings along the waypoints: turn, then drive; the camera sways a little."""
    step, turn = SPEED_M_S / RATE_HZ, TURN_RAD_S / RATE_HZ
    position, yaw = points[0], float(rng.uniform(-np.pi, np.pi))
    track: list[tuple[float, float, float]] = [(*position, yaw)]

    def turn_to(goal: float) -> None:
        nonlocal yaw
        delta = (goal - yaw + np.pi) % (2 * np.pi) - np.pi
        for _ in range(int(abs(delta) / turn)):
            yaw += np.sign(delta) * turn
            track.append((*position, yaw))
        yaw = goal

    for target in points[1:]:
        if np.linalg.norm(target - position) < 1e-6:
            continue
        turn_to(float(np.arctan2(*(target - position)[::-1])))
        count = max(1, int(np.linalg.norm(target - position) / step))
        for k in range(1, count + 1):
            track.append((*(position + (target - position) * k / count), yaw))
        position = target
        if rng.random() < LOOK_AROUND:
            turn_to(yaw + float(rng.choice([-1, 1]) * rng.uniform(0.5, 2.5)))
    return _mount(np.array(track), rng)


def _mount(track: np.ndarray, rng: np.random.Generator) -> RobotPath:
    """Puts the camera on the track (T, 3) of x, y, yaw."""
    height, pitch = rng.uniform(*HEIGHT_M), rng.uniform(*PITCH_DOWN_RAD)
    time = np.arange(len(track)) / RATE_HZ
    phases = rng.uniform(0, 2 * np.pi, 3)
    sway = np.sin(time[:, None] * (2.1, 2.9, 1.7) + phases) * np.deg2rad((0.5, 0.5, 3.0))
    yaw = track[:, 2] + sway[:, 2]
    position = np.column_stack([track[:, :2], np.full(len(track), height)])
    pitch = np.maximum(0.0, pitch + sway[:, 0])
    poses = world_from_camera(position, yaw, pitch, sway[:, 1])
    return RobotPath(time, track[:, :2], yaw, poses)
