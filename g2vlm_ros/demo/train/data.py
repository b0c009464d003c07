# SPDX-License-Identifier: Apache-2.0
"""Windows of rendered views: shards of scenes, a ring of them in memory, batches cut from it.

What a step sees is a function of the seed and of the number of windows drawn before, so a resumed
training continues exactly. On a GPU the ring lies in its memory, and a batch is one index into it
and a handful of operations, whatever the number of its windows; the host never waits for it.
Shards can be rendered ahead by another process into a cache folder:

    python -m g2vlm_ros.demo.train.data --cache FOLDER --shards 90
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from g2vlm_ros.demo.sim.furniture import NAMES
from g2vlm_ros.demo.sim.home import STRUCTURE, Home
from g2vlm_ros.demo.sim.materials import COLOURS
from g2vlm_ros.demo.sim.question_metrics import LENGTH_KINDS, right_lengths
from g2vlm_ros.demo.sim.questions import QuestionAnswer
from g2vlm_ros.demo.train.augmentation import exposed, mirrored, on_device, recoloured
from g2vlm_ros.demo.train.config import Data
from g2vlm_ros.demo.train.home_worker import (
    VARIANTS,
    DialogueKey,
    dialogue,
    dialogue_views,
    pick_views,
)
from g2vlm_ros.demo.train.losses import GeometryTarget
from g2vlm_ros.demo.train.shards import SHARD, Shards

CELL_PX = 28
"""Side of a token of the semantic encoder: two patches, merged."""
CLASSES = (*NAMES, *COLOURS)
"""What can be said of a thing in a word."""
ITEMS = 256
"""Ids that an item can have."""


class Batch(NamedTuple):
    """B windows of N views."""

    images: Tensor
    """uint8 (B, N, H, W, 3)."""
    target: GeometryTarget | None
    """None for single views."""
    questions: list[list[QuestionAnswer]] | None
    """Per window, where any are asked."""
    cells: Tensor | None
    """(B, N, S, ITEMS): the share of each cell of the semantic encoder that each item id fills."""
    classes: Tensor | None
    """(B, ITEMS, len(CLASSES)): 1 at the name and at the colour of each item."""


class Ring:
    """The latest shards of a split in memory; `advance` brings in new ones in place of the oldest.

    The scenes of all shards lie in one tensor per kind, (shards * 32, V, ...).
    """

    def __init__(self, shards: Shards):
        self.shards = shards
        self.data = shards.data
        self._resident: set[int] = set()
        self._worded: dict[int, dict[str, np.ndarray]] = {}
        """What dialogues are made of, on the host, for the shards that may be asked about."""
        self._pool: dict[str, Tensor] = {}
        self._windows = 0

    def advance(self, windows: int, words: bool = False) -> None:
        """Holds the shards that belong to this number of windows drawn.

        words: names and questions are wanted of them too.
        """
        data, self._windows = self.data, windows
        self.shards.words = words
        first = data.first_shard
        last = first + data.shards_first + windows // (SHARD * data.windows_per_scene)
        due = range(max(first, last - data.shards_kept), last)
        for number in self._resident - set(due):
            self._resident.discard(number)
            self._worded.pop(number, None)
            self.shards.forget(number)
        for number in due:
            if number not in self._resident:
                self._take(number)
            if words and number not in self._worded:
                self._name(number)
        self.shards.expect(last)

    def _slots(self, number: int) -> slice:
        """Where the scenes of a shard lie; those held follow one another, so no two meet."""
        first = SHARD * (number % self.data.shards_kept)
        return slice(first, first + SHARD)

    def _take(self, number: int) -> None:
        for name, part in self.shards.get(number).items():
            self._hold(name, number, part)
        self._resident.add(number)

    def _hold(self, name: str, number: int, part: Tensor) -> None:
        if name not in self._pool:
            shape = SHARD * self.data.shards_kept, *part.shape[1:]
            # Not filled: memory that is not used yet costs nothing.
            self._pool[name] = torch.empty(shape, dtype=part.dtype, device=part.device)
        self._pool[name][self._slots(number)] = part

    def _name(self, number: int) -> None:
        """What can be said of the things of a shard; waits for the device once."""
        homes = [self.shards.home(number, index) for index in range(SHARD)]
        classes = np.stack([classes_of(home) for home in homes]).astype(np.uint8)
        self._hold("classes", number, on_device(classes, self.shards.device))
        at = self._slots(number)
        share = cell_shares(self._pool["items"][at], 1)[:, :, 0]
        parts = {"share": share} | {name: self._pool[name][at] for name in ("poses", "times")}
        self._worded[number] = {name: part.cpu().numpy() for name, part in parts.items()}

    def batch(self, total_views: int, rng: np.random.Generator, asking: bool) -> Batch:
        """Windows of one random length, about `total_views` views in all; first of two views.

        Windows with questions keep their order in time, their colours and their sides.
        """
        data = self.data
        weights = np.divide(data.views_weights, sum(data.views_weights))
        views = int(rng.choice(data.views, p=weights))
        if self._windows < data.pairs_first:
            views = 2
        count = max(1, total_views // views)
        shard, scene = self._draw(count, rng)
        questions = None
        if asking:
            keys = [(views, int(variant)) for variant in rng.integers(VARIANTS, size=count)]
            places = list(zip(shard.tolist(), scene.tolist(), keys, strict=True))
            seeds = [self.shards.seeds(number)[index] for number, index, _ in places]
            pairs = zip(seeds, keys, strict=True)
            steps = np.stack([dialogue_views(seed, data, key) for seed, key in pairs])
            half = int(rng.integers(2))
            questions = [self.questions(*place, half, rng) for place in places]
        else:
            steps = pick_views(rng, data.views_per_scene, views, count, any_order=True)
        row, at = self.rows_and_views(shard, scene, steps)
        pixels, items = (self._pool[name][row, at] for name in ("images", "items"))
        structure = self._pool["structure"][row[:, 0], None, None, None]
        target = GeometryTarget(
            self._pool["depth"][row, at].float(),
            items > structure,
            relative_poses(self._pool["poses"][row, at]),
        )
        if asking:
            cells = cell_shares(items, data.semantic_px // CELL_PX)
            classes = self._pool["classes"][row[:, 0]].float()
            return Batch(exposed(pixels, rng), target, questions, cells, classes)
        if rng.random() < 0.5:
            pixels, target = mirrored(pixels, target)
        return Batch(exposed(recoloured(pixels, rng), rng), target, None, None, None)

    def single_views(self, count: int, rng: np.random.Generator) -> Batch:
        """Windows of one view each, without questions; half of them mirrored."""
        shard, scene = self._draw(count, rng)
        steps = rng.integers(self.data.views_per_scene, size=(count, 1))
        row, at = self.rows_and_views(shard, scene, steps)
        pixels, items = (self._pool[name][row, at] for name in ("images", "items"))
        turn = on_device(rng.random(count) < 0.5, self.shards.device)
        pixels = torch.where(turn[:, None, None, None, None], pixels.flip(-2), pixels)
        items = torch.where(turn[:, None, None, None], items.flip(-1), items)
        cells = cell_shares(items, self.data.semantic_px // CELL_PX)
        classes = self._pool["classes"][row[:, 0]].float()
        return Batch(exposed(pixels, rng), None, None, cells, classes)

    def _draw(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of shards, and scenes of them, (count,) each."""
        numbers = np.array(sorted(self._resident))
        return numbers[rng.integers(len(numbers), size=count)], rng.integers(SHARD, size=count)

    def rows_and_views(
        self, shard: np.ndarray, scene: np.ndarray, steps: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Rows and views of the pool, int64 (B, N) each; one copy to the device."""
        row = SHARD * (shard % self.data.shards_kept) + scene
        index = np.stack([np.broadcast_to(row[:, None], steps.shape), steps])
        rows, views = on_device(index, self.shards.device)
        return rows, views

    def questions(
        self, number: int, scene: int, key: DialogueKey, half: int, rng: np.random.Generator
    ) -> list[QuestionAnswer]:
        """Of the shorter (half 0) or the longer ones, so that little of a batch is padding."""
        dialogues = self.shards.dialogues(number, scene)
        if key not in dialogues:
            parts = (self._worded[number][name][scene] for name in ("share", "poses", "times"))
            home = self.shards.home(number, scene)
            dialogues[key] = dialogue(home, *parts, self.data, key)
        pairs = dialogues[key]
        return _drawn(pairs[half * len(pairs) // 2 : (half + 1) * len(pairs) // 2], self.data, rng)


def _drawn(
    pairs: list[QuestionAnswer], data: Data, rng: np.random.Generator
) -> list[QuestionAnswer]:
    """Up to `data.questions` of these, in a random order."""
    if not pairs:
        return []
    weight = np.array([data.nearest_weight if qa.kind == "nearest" else 1.0 for qa in pairs])
    order = rng.choice(len(pairs), min(data.questions, len(pairs)), False, weight / weight.sum())
    questions = [pairs[i] for i in order]
    if not data.tolerant_lengths:
        return questions
    return [with_any_right_length(qa, rng) for qa in questions]


def with_any_right_length(qa: QuestionAnswer, rng: np.random.Generator) -> QuestionAnswer:
    """With any of the lengths that count as right in place of a true length, all as likely."""
    if qa.kind not in LENGTH_KINDS:
        return qa
    lengths = right_lengths(qa.answer)
    return replace(qa, answer=lengths[int(rng.integers(len(lengths)))])


def cell_shares(items: Tensor, side: int) -> Tensor:
    """float32 (..., N, side * side, ITEMS): what fills each cell of a grid over the views
    (..., N, H, W)."""
    height, width = items.shape[-2:]
    device, flat = items.device, items.reshape(-1, height * width)
    row = torch.arange(height, device=device) * side // height
    column = torch.arange(width, device=device) * side // width
    cell = (row[:, None] * side + column).flatten()
    count = torch.zeros(len(flat), side * side * ITEMS, device=device)
    count.scatter_add_(1, cell * ITEMS + flat.long(), torch.ones_like(flat, dtype=torch.float32))
    count = count.unflatten(-1, (side * side, ITEMS))
    return (count / count.sum(-1, keepdim=True)).unflatten(0, items.shape[:-2])


def relative_poses(world_from_camera: Tensor) -> Tensor:
    """float32 (B, N, 4, 4): rigid poses in the frame of view 0."""
    poses = world_from_camera.clone()
    back = world_from_camera[:, :1, :3, :3].transpose(-1, -2)
    poses[..., :3, :3] = back @ world_from_camera[..., :3, :3]
    away = world_from_camera[..., :3, 3] - world_from_camera[:, :1, :3, 3]
    poses[..., :3, 3] = (back @ away[..., None])[..., 0]
    return poses.float()


def classes_of(home: Home) -> np.ndarray:
    """float32 (ITEMS, len(CLASSES)): 1 at the name and at the colour of each thing by its id."""
    out = np.zeros((ITEMS, len(CLASSES)), np.float32)
    for item in home.items:
        if item.name not in STRUCTURE:
            out[item.id, [CLASSES.index(item.name), CLASSES.index(item.colour)]] = 1.0
    return out


def squares(pixels: Tensor, side: int) -> Tensor:
    """uint8 (B, N, side, side, 3): the views as the semantic encoder gets them, bicubic."""
    flat = pixels.flatten(0, 1).permute(0, 3, 1, 2).float()
    small = F.interpolate(flat, (side, side), mode="bicubic", antialias=True)
    small = small.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return small.unflatten(0, pixels.shape[:2])


def main(arguments: list[str] | None = None) -> None:
    """Renders the first shards of the training split into a cache folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--shards", type=int, default=90)
    parser.add_argument("--every", type=int, default=1, help="take each n-th shard")
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args(arguments)
    shards = Shards(Data(), "train", "cpu", options.cache)
    for number in range(options.first, options.shards, options.every):
        shards.get(number)


if __name__ == "__main__":
    main()
