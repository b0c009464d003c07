# SPDX-License-Identifier: Apache-2.0
"""Rendered scenes in shards of 32: prepared by workers, rendered by the training, cached."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from g2vlm_ros.demo.sim.array_backend import Arrays
from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.sim.home import Home
from g2vlm_ros.demo.sim.questions import QuestionAnswer
from g2vlm_ros.demo.sim.renderer import render_tables
from g2vlm_ros.demo.sim.scenes import make_scene
from g2vlm_ros.demo.sim.splits import home_seed
from g2vlm_ros.demo.train.augmentation import on_device
from g2vlm_ros.demo.train.config import Data
from g2vlm_ros.demo.train.home_worker import DialogueKey, PreparedHome, join, prepare

SHARD = 32
"""Scenes per shard."""
AHEAD = 8
"""Shards that workers prepare before they are needed."""
LAYOUT = 4
"""Raised whenever the simulation changes, so that cached shards of before are not taken."""


class Shards:
    """Rendered scenes of one split by shard number; from the cache folder where there is one."""

    def __init__(
        self, data: Data, split: str, device: str, cache: Path | None = None, workers: int = 0
    ):
        """workers: processes that prepare homes; they are new ones (spawned), as a process that
        holds a GPU must not be copied."""
        self.data, self.split, self.device, self.cache = data, split, device, cache
        self.camera = lens(data.width_px, data.height_px)
        self.words = False
        """Whether workers make dialogues as well, from the next shard on."""
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, spawn) if workers else None
        self._ahead: dict[int, list[Future]] = {}
        self._homes: dict[int, Home] = {}
        self._dialogues: dict[int, dict[DialogueKey, list[QuestionAnswer]]] = {}

    def home(self, number: int, index: int) -> Home:
        """A home of a shard, built again where the shard came from the cache."""
        seed = self.seeds(number)[index]
        if seed not in self._homes:
            self._homes[seed] = make_scene(seed).home
        return self._homes[seed]

    def dialogues(self, number: int, index: int) -> dict[DialogueKey, list[QuestionAnswer]]:
        """The dialogues of a home as far as they were made; takes more."""
        return self._dialogues.setdefault(self.seeds(number)[index], {})

    def forget(self, number: int) -> None:
        """Frees the homes of a shard."""
        for seed in self.seeds(number):
            self._homes.pop(seed, None)
            self._dialogues.pop(seed, None)

    def expect(self, number: int) -> None:
        """Lets the workers prepare this shard and the next ones, but those in the cache."""
        if self._pool is None:
            return
        for following in range(number, number + AHEAD):
            if following not in self._ahead and not self._is_cached(following):
                self._ahead[following] = [
                    self._pool.submit(prepare, seed, self.data, self.words)
                    for seed in self.seeds(following)
                ]

    def _prepared(self, number: int) -> list[PreparedHome]:
        if self._pool is None:
            return [prepare(seed, self.data) for seed in self.seeds(number)]
        self.expect(number)
        return [future.result() for future in self._ahead.pop(number)]

    def seeds(self, number: int) -> list[int]:
        """The homes of a shard."""
        return [home_seed(self.split, number * SHARD + i) for i in range(SHARD)]

    def get(self, number: int) -> dict[str, Tensor]:
        """images (32, V, H, W, 3), depth, items (32, V, H, W), poses (32, V, 4, 4), times (32, V).

        structure (32,) is the largest item id of floors, ceilings and walls, which come first.
        """
        if self._is_cached(number):
            shard = load_file(self.cache / self._name(number))
            return {name: part.to(self.device) for name, part in shard.items()}
        shard_arrays = self._render(self._prepared(number))
        if self.cache is not None:
            path = self.cache / self._name(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}")
            save_file(
                {name: value.cpu().contiguous() for name, value in shard_arrays.items()}, part
            )
            part.replace(path)
        return shard_arrays

    def _render(self, homes: list[PreparedHome]) -> dict[str, Tensor]:
        for prepared in homes:
            self._homes[prepared.home.seed] = prepared.home
            self._dialogues[prepared.home.seed] = prepared.dialogues
        poses = np.stack([prepared.world_from_camera for prepared in homes])
        times = np.stack([prepared.time_s for prepared in homes])
        arrays = Arrays() if self.device == "cpu" else Arrays(self.device)
        step = 4 if self.device == "cpu" else SHARD
        parts: dict[str, list[Tensor]] = {"images": [], "depth": [], "items": []}
        for first in range(0, SHARD, step):
            some, count = slice(first, first + step), len(homes[first : first + step])
            pose, time_s = poses[some], times[some]
            views = render_tables(
                join(homes[some]).on(arrays),
                np.repeat(np.arange(count), pose.shape[1]),
                pose.reshape(-1, 4, 4),
                time_s.reshape(-1),
                self.camera,
                arrays,
            )
            named = ("images", views.images), ("depth", views.depth_m), ("items", views.items)
            for name, value in named:
                value = torch.as_tensor(value).unflatten(0, (count, -1))
                parts[name].append(value.half() if name == "depth" else value)
        rest = {
            "poses": poses,
            "times": times,
            "structure": np.array([prepared.structure for prepared in homes]),
        }
        return {name: torch.cat(values) for name, values in parts.items()} | {
            name: on_device(value, self.device) for name, value in rest.items()
        }

    def _is_cached(self, number: int) -> bool:
        return self.cache is not None and (self.cache / self._name(number)).exists()

    def _name(self, number: int) -> str:
        data = self.data
        size = f"{data.width_px}x{data.height_px}x{data.views_per_scene}"
        return f"{self.split}-{size}-v{LAYOUT}-{number:05d}.safetensors"
