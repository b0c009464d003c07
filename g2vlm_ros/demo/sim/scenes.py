# SPDX-License-Identifier: Apache-2.0
"""Scenes of a split, and the views of them that are worth looking at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from g2vlm_ros.demo.sim.array_backend import Arrays
from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.sim.home import STRUCTURE, Home
from g2vlm_ros.demo.sim.home_builder import build_home
from g2vlm_ros.demo.sim.questions import shares
from g2vlm_ros.demo.sim.renderer import render
from g2vlm_ros.demo.sim.robot_path import RATE_HZ, RobotPath, walk
from g2vlm_ros.records import Intrinsics

GAP_MOTION = (0.5, 1.8)
"""Range of the motion between two views of a scene; one is STEP_M driven or STEP_RAD turned."""
STEP_M, STEP_RAD = 0.35, np.deg2rad(25.0)
STRETCHES = 12
"""Of the walk, from which the views of a scene are taken."""
MAX_WALL, MAX_THING, MIN_DEPTH_M = 0.8, 0.65, 0.45
"""A view is bare when walls, or one thing, cover more than this share, or touch the camera."""


@dataclass(frozen=True)
class SimulatedScene:
    """A home and a robot's walk through it."""

    home: Home
    walk: RobotPath

    @property
    def homes(self) -> Sequence[Home]:
        """What stands there over time; all are of one plan."""
        return (self.home,)

    def home_index(self, time_s: np.ndarray) -> np.ndarray:
        """int (T,): which of `homes` stands there at times (T,)."""
        return np.zeros(len(time_s), int)


@dataclass(frozen=True)
class Clips:
    """V views each of S scenes; images, depth and items are arrays of the rendering backend."""

    scenes: tuple[SimulatedScene, ...]
    steps: np.ndarray
    """int64 (S, V): index into the walk of each scene, in order of time."""
    images: Any
    """uint8 (S, V, H, W, 3)."""
    depth_m: Any
    """float32 (S, V, H, W)."""
    items: Any
    """uint8 (S, V, H, W)."""

    def time_s(self) -> np.ndarray:
        """float64 (S, V)."""
        rows = zip(self.scenes, self.steps, strict=True)
        return np.stack([scene.walk.time_s[steps] for scene, steps in rows])

    def world_from_camera(self) -> np.ndarray:
        """float64 (S, V, 4, 4)."""
        rows = zip(self.scenes, self.steps, strict=True)
        return np.stack([scene.walk.world_from_camera[steps] for scene, steps in rows])


def make_scene(seed: int, legs: int = 6) -> SimulatedScene:
    """The scene of a seed: the first furnishing of its home in which a robot can walk."""
    for attempt in range(20):
        home = build_home(seed, attempt)
        track = walk(home, attempt, legs)
        if track is not None and len(track.time_s) > 10 * RATE_HZ:
            return SimulatedScene(home, track)
    raise RuntimeError(f"home {seed} is not walkable in 20 furnishings; use another seed")


def make_clips(
    scenes: Sequence[SimulatedScene],
    views: int,
    camera: Intrinsics,
    arrays: Arrays | None = None,
    samples: int = 2,
) -> Clips:
    """Views of each scene along its walk, few of bare wall; a function of the seeds alone."""
    arrays = arrays or Arrays()
    steps = pick_steps(scenes, views, arrays)
    index = np.repeat(np.arange(len(scenes)), views)
    pose = np.concatenate(
        [s.walk.world_from_camera[k] for s, k in zip(scenes, steps, strict=True)]
    )
    time = np.concatenate([s.walk.time_s[k] for s, k in zip(scenes, steps, strict=True)])
    homes = [scene.home for scene in scenes]
    images = render(homes, index, pose, time, camera, arrays, samples)
    fold = (len(scenes), views)
    parts = (
        part.reshape(*fold, *part.shape[1:])
        for part in (images.images, images.depth_m, images.items)
    )
    return Clips(tuple(scenes), steps, *parts)


def pick_steps(scenes: Sequence[SimulatedScene], views: int, arrays: Arrays) -> np.ndarray:
    """int64 (S, views): instants about evenly spaced in motion, where they show least bare wall.

    Of stretches of the walk that show none, the one on which the robot drives most is taken. No
    instant is left out in between: what neighbours share is all that their poses can be told from.
    """
    stretches = np.stack([_stretches(scene, views) for scene in scenes])
    bare = bareness(scenes, stretches.reshape(len(scenes), -1), arrays).reshape(stretches.shape)
    excess = np.maximum(bare - 1.0, 0.0).sum(-1)
    driven_m = np.stack([_driven_m(s, row) for s, row in zip(scenes, stretches, strict=True)])
    best = np.lexsort((-driven_m, excess), axis=1)[:, 0]
    return stretches[np.arange(len(scenes)), best]


def _stretches(scene: SimulatedScene, views: int) -> np.ndarray:
    """(STRETCHES, views) instants spaced by motion: turning counts as driving does."""
    rng = np.random.default_rng([scene.home.seed, 3])
    driven = np.linalg.norm(np.diff(scene.walk.position_m, axis=0), axis=1) / STEP_M
    turned = np.abs(np.angle(np.exp(1j * np.diff(scene.walk.yaw_rad)))) / STEP_RAD
    motion = np.concatenate([[0.0], np.cumsum(driven + turned)])
    gap = min(np.exp(rng.uniform(*np.log(GAP_MOTION))), motion[-1] / views)
    starts = rng.uniform(0, max(1e-6, motion[-1] - gap * views), STRETCHES)
    places = starts[:, None] + gap * (np.arange(views) + rng.uniform(0, 0.4, views))
    return np.searchsorted(motion, places).clip(0, len(motion) - 1).astype(np.int64)


def _driven_m(scene: SimulatedScene, stretches: np.ndarray) -> np.ndarray:
    """(K,) the way between the first and the last instant of each."""
    way = np.linalg.norm(np.diff(scene.walk.position_m, axis=0), axis=1)
    way_m = np.concatenate([[0.0], np.cumsum(way)])
    return way_m[stretches[:, -1]] - way_m[stretches[:, 0]]


def bareness(scenes: Sequence[SimulatedScene], steps: np.ndarray, arrays: Arrays) -> np.ndarray:
    """(S, V) from a small rendering: below 1 is fit to be shown."""
    index = np.repeat(np.arange(len(scenes)), steps.shape[1])
    pose = np.concatenate(
        [s.walk.world_from_camera[k] for s, k in zip(scenes, steps, strict=True)]
    )
    time = np.concatenate([s.walk.time_s[k] for s, k in zip(scenes, steps, strict=True)])
    homes = [scene.home for scene in scenes]
    small = render(homes, index, pose, time, lens(16, 12), arrays, samples=1)
    items, depth = arrays.numpy(small.items), arrays.numpy(small.depth_m)
    covers = shares(items)
    walls, things = np.zeros((2, len(homes), 256), bool)
    for s, home in enumerate(homes):
        walls[s, [0] + [item.id for item in home.items if item.name == "wall"]] = True
        things[s, [item.id for item in home.items if item.name not in STRUCTURE]] = True
    wall = (covers * walls[index]).sum(1) / MAX_WALL
    thing = (covers * things[index]).max(1) / MAX_THING
    close = MIN_DEPTH_M / np.quantile(depth.reshape(len(depth), -1), 0.1, axis=1)
    return np.maximum(np.maximum(wall, thing), close).reshape(steps.shape)
