# SPDX-License-Identifier: Apache-2.0
"""Windows of rendered views: shards of scenes, a ring of them in memory, batches cut from it.

What a step sees is a function of the seed and of the number of windows drawn before, so a resumed
training continues exactly. Shards can be rendered ahead by another process into a cache folder:

    python -m g2vlm_ros.demo.train.data --cache FOLDER --shards 90
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from g2vlm_ros.demo.sim.array_backend import Arrays
from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.sim.furniture import NAMES
from g2vlm_ros.demo.sim.home import STRUCTURE, Home
from g2vlm_ros.demo.sim.materials import COLOURS
from g2vlm_ros.demo.sim.questions import QuestionAnswer, ask, shares, truth
from g2vlm_ros.demo.sim.scenes import SimulatedScene, make_clips, make_scene
from g2vlm_ros.demo.sim.splits import home_seed
from g2vlm_ros.demo.train.config import Data
from g2vlm_ros.demo.train.losses import GeometryTarget

SHARD = 32
"""Scenes per shard."""
CELL_PX = 28
"""Side of a token of the semantic encoder: two patches, merged."""
LAYOUT = 4
"""Raised whenever the simulation changes, so that cached shards of before are not taken."""
CLASSES = (*NAMES, *COLOURS)
"""What can be said of a thing in a word."""
VARIANTS = 4
"""Different dialogues per scene and number of views."""
_FLIP = np.diag([-1.0, 1.0, 1.0, 1.0])


class Batch(NamedTuple):
    """B windows of N views."""

    images: Tensor
    """uint8 (B, N, H, W, 3)."""
    target: GeometryTarget | None
    """None for single views."""
    questions: list[list[QuestionAnswer]] | None
    """Per window, where any are asked."""
    cells: Tensor | None
    """(B, N, S, 256): the share of each cell of the semantic encoder that each item id fills."""
    classes: Tensor | None
    """(B, 256, len(CLASSES)): 1 at the name and at the colour of each item."""


class Shards:
    """Rendered scenes of one split by shard number; from the cache folder where there is one."""

    def __init__(
        self, data: Data, split: str, device: str, cache: Path | None = None, workers: int = 0
    ):
        self.data, self.split, self.device, self.cache = data, split, device, cache
        self.camera = lens(data.width_px, data.height_px)
        self._pool = ProcessPoolExecutor(workers) if workers else None
        self._ahead: dict[int, list[Future]] = {}
        self._homes: dict[int, Home] = {}

    def home(self, number: int, index: int) -> Home:
        """A home of a shard, built again where the shard came from the cache."""
        seed = self.seeds(number)[index]
        if seed not in self._homes:
            self._homes[seed] = make_scene(seed).home
        return self._homes[seed]

    def forget(self, number: int) -> None:
        """Frees the homes of a shard."""
        for seed in self.seeds(number):
            self._homes.pop(seed, None)

    def _scenes(self, number: int) -> list[SimulatedScene]:
        """The homes and walks of a shard, built in other processes where there are workers."""
        seeds = self.seeds(number)
        if self._pool is None:
            return [make_scene(seed) for seed in seeds]
        for following in range(number, number + 4):
            if following not in self._ahead:
                later = self.seeds(following)
                self._ahead[following] = [self._pool.submit(make_scene, seed) for seed in later]
        return [future.result() for future in self._ahead.pop(number)]

    def seeds(self, number: int) -> list[int]:
        """The homes of a shard."""
        return [home_seed(self.split, number * SHARD + i) for i in range(SHARD)]

    def get(self, number: int) -> dict[str, Tensor]:
        """images (32, V, H, W, 3), depth, items (32, V, H, W), poses (32, V, 4, 4), times (32, V).

        structure (32,) is the largest item id of floors, ceilings and walls, which come first.
        """
        path = None if self.cache is None else self.cache / self._name(number)
        if path is not None and path.exists():
            return {name: part.to(self.device) for name, part in load_file(path).items()}
        made = self._render(number)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}")
            save_file({name: value.cpu().contiguous() for name, value in made.items()}, part)
            part.replace(path)
        return made

    def _render(self, number: int) -> dict[str, Tensor]:
        scenes = self._scenes(number)
        self._homes |= {scene.home.seed: scene.home for scene in scenes}
        arrays = Arrays() if self.device == "cpu" else Arrays(self.device)
        parts: list[dict[str, Tensor]] = []
        step = 4 if self.device == "cpu" else SHARD
        for first in range(0, SHARD, step):
            clips = make_clips(
                scenes[first : first + step], self.data.views_per_scene, self.camera, arrays
            )
            views = (clips.images, clips.depth_m, clips.items)
            images, depth, items = (torch.as_tensor(part, device=self.device) for part in views)
            parts.append(
                {
                    "images": images,
                    "depth": depth.half(),
                    "items": items,
                    "poses": torch.as_tensor(clips.world_from_camera()),
                    "times": torch.as_tensor(clips.time_s()),
                }
            )
        made = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        bounds = [sum(item.name in STRUCTURE for item in scene.home.items) for scene in scenes]
        return made | {"structure": torch.tensor(bounds, device=self.device)}

    def _name(self, number: int) -> str:
        data = self.data
        size = f"{data.width_px}x{data.height_px}x{data.views_per_scene}"
        return f"{self.split}-{size}-v{LAYOUT}-{number:05d}.safetensors"


class Ring:
    """The latest shards of a split in memory; `advance` brings in new ones."""

    def __init__(self, shards: Shards):
        self.shards = shards
        self.data = shards.data
        self._held: dict[int, dict[str, Any]] = {}
        self._windows = 0

    def advance(self, windows: int) -> None:
        """Holds the shards that belong to this number of windows drawn."""
        data, self._windows = self.data, windows
        last = data.shards_first + windows // (SHARD * data.windows_per_scene)
        wanted = range(max(0, last - data.shards_kept), last)
        for number in [held for held in self._held if held not in wanted]:
            del self._held[number]
            self.shards.forget(number)
        for number in wanted:
            if number not in self._held:
                self._held[number] = self._prepared(number)

    def _prepared(self, number: int) -> dict[str, Any]:
        shard: dict[str, Any] = dict(self.shards.get(number))
        items = shard["items"].cpu().numpy()
        shard["share"] = np.stack([shares(views) for views in items])
        shard["poses"], shard["times"] = (shard[k].cpu().numpy() for k in ("poses", "times"))
        shard["asked"] = {}
        shard["important"] = shard["items"] > shard["structure"][:, None, None, None]
        return shard

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
        half = int(rng.integers(2))
        numbers = sorted(self._held)
        images, depth, important, poses = [], [], [], []
        questions, cells, classes = [], [], []
        for _ in range(count):
            number = numbers[int(rng.integers(len(numbers)))]
            shard, scene = self._held[number], int(rng.integers(SHARD))
            variant = int(rng.integers(VARIANTS))
            seed = self.shards.seeds(number)[scene]
            # Few different dialogues per scene, so that their questions are made once.
            chooser = np.random.default_rng([seed, views, variant]) if asking else rng
            steps = pick_views(chooser, data.views_per_scene, views, not asking)
            at = torch.as_tensor(steps, device=shard["images"].device)
            images.append(shard["images"][scene, at])
            depth.append(shard["depth"][scene, at])
            important.append(shard["important"][scene, at])
            poses.append(shard["poses"][scene, steps])
            if asking:
                known = self._questions(number, scene, variant, steps)
                # The shorter or the longer ones, so that little of a batch is padding.
                half_of = known[half * len(known) // 2 : (half + 1) * len(known) // 2]
                questions.append(_drawn(half_of, data, rng))
                side = data.semantic_px // CELL_PX
                cells.append(cell_shares(shard["items"][scene, at].cpu().numpy(), side))
                classes.append(classes_of(self.shards.home(number, scene)))
        relative = np.stack([np.linalg.inv(pose[0]) @ pose for pose in poses])
        pixels, target = (
            torch.stack(images),
            GeometryTarget(
                torch.stack(depth).float(),
                torch.stack(important),
                torch.as_tensor(relative, dtype=torch.float32, device=images[0].device),
            ),
        )
        if asking:
            told = (torch.as_tensor(np.stack(x), device=pixels.device) for x in (cells, classes))
            return Batch(_exposed(pixels, rng), target, questions, *told)
        pixels, target = _mirrored(pixels, target, rng)
        return Batch(_exposed(_recoloured(pixels, rng), rng), target, None, None, None)

    def single_views(self, count: int, rng: np.random.Generator) -> Batch:
        """Windows of one view each, without questions; half of them mirrored."""
        side = self.data.semantic_px // CELL_PX
        numbers = sorted(self._held)
        images, cells, classes = [], [], []
        for _ in range(count):
            number = numbers[int(rng.integers(len(numbers)))]
            shard, scene = self._held[number], int(rng.integers(SHARD))
            at = int(rng.integers(self.data.views_per_scene))
            image, items = shard["images"][scene, at], shard["items"][scene, at]
            if rng.random() < 0.5:
                image, items = image.flip(-2), items.flip(-1)
            images.append(image[None])
            cells.append(cell_shares(items[None].cpu().numpy(), side))
            classes.append(classes_of(self.shards.home(number, scene)))
        pixels = torch.stack(images)
        told = (torch.as_tensor(np.stack(x), device=pixels.device) for x in (cells, classes))
        return Batch(_exposed(pixels, rng), None, None, *told)

    def _questions(
        self, number: int, scene: int, variant: int, steps: np.ndarray
    ) -> list[QuestionAnswer]:
        """The shortest first."""
        shard = self._held[number]
        key = scene, variant, len(steps)
        if key not in shard["asked"]:
            home = self.shards.home(number, scene)
            parts = (shard[name][scene, steps] for name in ("share", "poses", "times"))
            rng = np.random.default_rng([home.seed, variant, len(steps)])
            facts, most = truth(home, *parts), 3 * self.data.questions
            made = ask(facts, rng, most)
            harder = ask(facts, rng, most, self.data.harder)
            asked = {qa.question for qa in made}
            made += [qa for qa in harder if qa.question not in asked]
            made.sort(key=lambda qa: len(qa.question) + len(qa.answer))
            shard["asked"][key] = made
        return shard["asked"][key]


def _drawn(
    known: list[QuestionAnswer], data: Data, rng: np.random.Generator
) -> list[QuestionAnswer]:
    """Up to `data.questions` of these, in a random order."""
    if not known:
        return []
    weight = np.array([data.nearest_weight if qa.kind == "nearest" else 1.0 for qa in known])
    order = rng.choice(len(known), min(data.questions, len(known)), False, weight / weight.sum())
    return [known[i] for i in order]


def cell_shares(items: np.ndarray, side: int) -> np.ndarray:
    """float32 (N, side * side, 256): what fills each cell of a grid over the views (N, H, W)."""
    count, height, width = items.shape
    row, column = np.arange(height) * side // height, np.arange(width) * side // width
    cell = np.arange(count)[:, None, None] * side**2 + row[:, None] * side + column
    found = np.bincount((cell * 256 + items).ravel(), minlength=count * side**2 * 256)
    found = found.reshape(count, side**2, 256).astype(np.float32)
    return found / found.sum(-1, keepdims=True)


def classes_of(home: Home) -> np.ndarray:
    """float32 (256, len(CLASSES)): 1 at the name and at the colour of each thing by its id."""
    out = np.zeros((256, len(CLASSES)), np.float32)
    for item in home.items:
        if item.name not in STRUCTURE:
            out[item.id, [CLASSES.index(item.name), CLASSES.index(item.colour)]] = 1.0
    return out


def pick_views(
    rng: np.random.Generator, available: int, views: int, any_order: bool
) -> np.ndarray:
    """Which views make a window: neighbours in time, now and then every other one."""
    stride = int(rng.choice([1, 1, 1, 2]))
    stride = stride if stride * (views - 1) < available else 1
    first = int(rng.integers(available - stride * (views - 1)))
    steps = first + stride * np.arange(views)
    return steps[::-1].copy() if any_order and rng.random() < 0.4 else steps


def _mirrored(
    pixels: Tensor, target: GeometryTarget, rng: np.random.Generator
) -> tuple[Tensor, GeometryTarget]:
    """Half of all batches left and right exchanged; poses follow."""
    if rng.random() < 0.5:
        return pixels, target
    flip = torch.as_tensor(_FLIP, dtype=torch.float32, device=pixels.device)
    depth, important = target.depth_m.flip(-1), target.important.flip(-1)
    return pixels.flip(-2), GeometryTarget(depth, important, flip @ target.poses @ flip)


def _recoloured(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Each window's colour channels in a random order."""
    order = np.stack([rng.permutation(3) for _ in range(len(pixels))])
    index = torch.as_tensor(order, device=pixels.device)[:, None, None, None, :]
    return pixels.gather(-1, index.expand_as(pixels))


def _exposed(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Brightness and contrast of each window, and the noise of each pixel, vary a little."""
    shape = (len(pixels), 1, 1, 1, 1)
    gain, offset = rng.uniform(0.85, 1.15, shape), rng.uniform(-10, 10, shape)
    sigma = rng.uniform(0.0, 3.0, shape)
    gain, offset, sigma = (
        torch.as_tensor(x, dtype=torch.float32, device=pixels.device)
        for x in (gain, offset, sigma)
    )
    noisy = (
        pixels.float() * gain + offset + sigma * torch.randn(pixels.shape, device=pixels.device)
    )
    return noisy.round().clamp(0, 255).to(torch.uint8)


def squares(pixels: Tensor, side: int) -> Tensor:
    """uint8 (B, N, side, side, 3): the views as the semantic encoder gets them, bicubic."""
    flat = pixels.flatten(0, 1).permute(0, 3, 1, 2).float()
    made = F.interpolate(flat, (side, side), mode="bicubic", antialias=True)
    made = made.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return made.unflatten(0, pixels.shape[:2])


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
