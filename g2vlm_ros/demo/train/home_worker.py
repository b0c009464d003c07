# SPDX-License-Identifier: Apache-2.0
"""Homes made ready for rendering, in processes beside the training: numpy only, no torch.

A worker builds a home, walks through it, picks its views and fills the tables that the renderer
reads, and where words are trained it makes the dialogues too; only arrays and records come back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from g2vlm_ros.demo.sim.array_backend import Arrays
from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.sim.home import STRUCTURE, Home
from g2vlm_ros.demo.sim.questions import QuestionAnswer, ask, shares, truth
from g2vlm_ros.demo.sim.renderer import render_tables
from g2vlm_ros.demo.sim.scene_arrays import Tables, tables
from g2vlm_ros.demo.sim.scenes import make_scene, pick_steps
from g2vlm_ros.demo.train.config import Data

VARIANTS = 4
"""Different dialogues per scene and number of views, so that their questions are made once."""
DialogueKey = tuple[int, int]
"""Number of views and variant."""


@dataclass(frozen=True)
class PreparedHome:
    """A home with V views picked, in numpy arrays."""

    home: Home
    tables: Tables
    """Of this home alone."""
    world_from_camera: np.ndarray
    """float64 (V, 4, 4)."""
    time_s: np.ndarray
    """float64 (V,)."""
    dialogues: dict[DialogueKey, list[QuestionAnswer]] = field(default_factory=dict)
    """All of them where they were asked for, else none."""

    @property
    def structure(self) -> int:
        """The largest item id of floors, ceilings and walls, which come first."""
        return sum(item.name in STRUCTURE for item in self.home.items)


def prepare(seed: int, data: Data, words: bool = False) -> PreparedHome:
    """The home of a seed; words: with its dialogues."""
    arrays, scene = Arrays(), make_scene(seed)
    steps = pick_steps([scene], data.views_per_scene, arrays)[0]
    pose, time_s = scene.walk.world_from_camera[steps], scene.walk.time_s[steps]
    home_tables = tables([scene.home], arrays)
    dialogues = {}
    if words:
        # One sample per pixel has the items of the training's views, which have two.
        camera, index = lens(data.width_px, data.height_px), np.zeros(len(steps), np.int64)
        share = shares(render_tables(home_tables, index, pose, time_s, camera, arrays, 1).items)
        keys = [(views, variant) for views in data.views for variant in range(VARIANTS)]
        dialogues = {key: dialogue(scene.home, share, pose, time_s, data, key) for key in keys}
    return PreparedHome(scene.home, home_tables, pose, time_s, dialogues)


def dialogue(
    home: Home,
    share: np.ndarray,
    world_from_camera: np.ndarray,
    time_s: np.ndarray,
    data: Data,
    key: DialogueKey,
) -> list[QuestionAnswer]:
    """Questions about the window of `dialogue_views`, the shortest first.

    share: (V, 256) of all views of the home, as from `shares`; poses (V, 4, 4), times (V,).
    """
    views, variant = key
    steps = dialogue_views(home.seed, data, key)
    rng = np.random.default_rng([home.seed, variant, views])
    facts = truth(home, share[steps], world_from_camera[steps], time_s[steps])
    most = 3 * data.questions
    questions = ask(facts, rng, most)
    harder = ask(facts, rng, most, data.harder)
    wordings = {qa.question for qa in questions}
    questions += [qa for qa in harder if qa.question not in wordings]
    return sorted(questions, key=lambda qa: len(qa.question) + len(qa.answer))


def dialogue_views(seed: int, data: Data, key: DialogueKey) -> np.ndarray:
    """int64 (views,): which views of the home of a seed a dialogue is about, in order of time."""
    views, variant = key
    rng = np.random.default_rng([seed, views, variant])
    return pick_views(rng, data.views_per_scene, views, 1, any_order=False)[0]


def pick_views(
    rng: np.random.Generator, available: int, views: int, windows: int, any_order: bool
) -> np.ndarray:
    """int64 (windows, views): neighbours in time, in one window of four every other view.

    any_order: four windows of ten go back in time.
    """
    stride = np.where(rng.random(windows) < 0.25, 2, 1)
    stride = np.where(stride * (views - 1) < available, stride, 1)
    first = rng.integers(available - stride * (views - 1))
    steps = first[:, None] + stride[:, None] * np.arange(views)
    if any_order:
        back = rng.random(windows) < 0.4
        steps = np.where(back[:, None], steps[:, ::-1], steps)
    return steps


def join(homes: Sequence[PreparedHome]) -> Tables:
    """The tables of several homes, padded as `scene_arrays.tables` pads them."""
    parts = [prepared.tables for prepared in homes]
    solids = max(one.shape.shape[1] for one in parts)
    rooms = max(one.floor.shape[1] for one in parts)
    look = [one.look.reshape(len(one.look), 1, -1) for one in parts]
    look = np.concatenate([_padded(part, 2, solids) for part in look], axis=1)

    def stacked(name: str, count: int, fill: float = 0) -> np.ndarray:
        return np.concatenate([_padded(getattr(one, name), 1, count, fill) for one in parts])

    return Tables(
        stacked("shape", solids, -1),
        stacked("centre", solids),
        stacked("half", solids, 1),
        stacked("turn", solids),
        stacked("travel", solids),
        stacked("item", solids),
        stacked("room", solids),
        look.reshape(len(look), -1),
        stacked("floor", rooms, 1),
        stacked("shadow", rooms, 1),
    )


def _padded(values: np.ndarray, axis: int, length: int, fill: float = 0) -> np.ndarray:
    width = [(0, 0)] * values.ndim
    width[axis] = (0, length - values.shape[axis])
    return np.pad(values, width, constant_values=fill)
