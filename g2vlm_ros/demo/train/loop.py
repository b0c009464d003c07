# SPDX-License-Identifier: Apache-2.0
"""The training loop: one stage for a time or a number of windows, resumable at any save."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from g2vlm_ros.checkpoint.config import ModelConfig
from g2vlm_ros.demo.train.config import STAGES, Config
from g2vlm_ros.demo.train.export_checkpoint import WEIGHTS
from g2vlm_ros.demo.train.geometry_hold import GeometryHold
from g2vlm_ros.demo.train.gradient_worker import GradientWorker
from g2vlm_ros.demo.train.objectives import Objectives
from g2vlm_ros.demo.train.optimizer import Optimizer
from g2vlm_ros.demo.train.train_state import (
    CURVES,
    TrainingProgress,
    load_state,
    restore,
    save_state,
)

LONGEST_STEP_S = 60.0
"""Longer pauses between two steps are not training (a suspended process, a sleeping laptop)."""
HOLD_BATCHES = 16
"""Batches from which the hold learns what the geometry reads: with 16 views each more than 500
states at the borders of views, for at most 192 directions."""
READ_S = 10.0
"""Seconds between two looks at the losses: each look waits for the device."""


@dataclass(frozen=True)
class Budget:
    """How long a stage runs: minutes of training time, or windows where minutes is 0."""

    minutes: float = 0.0
    windows: int = 0

    def done(self, progress: TrainingProgress) -> float:
        """Share of the stage that is over, 0 to 1."""
        if self.minutes > 0:
            return min(1.0, progress.stage_seconds / (60.0 * self.minutes))
        return min(1.0, progress.stage_windows / max(1, self.windows))


class Training:
    """A network under training in a folder that also holds its tokenizer."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        device: str = "cpu",
        cache: Path | None = None,
        workers: int = 0,
        start: Path | None = None,
        gradient_worker: bool = False,
    ):
        """start: folder of an exported checkpoint to begin with where `folder` has no state.

        gradient_worker: a second process computes gradients as well; then timing decides what a
        step sees.
        """
        self.config, self.folder, self.device = config, folder, device
        self.objectives = Objectives(config, folder, device, cache, workers)
        self.trainee, self.all = self.objectives.trainee, self.objectives.all
        self.optimizer = Optimizer(
            self.all, config.steps.weight_decay, config.steps.semantic_factor
        )
        self.progress = TrainingProgress()
        self._sums: dict[str, Tensor] = {}
        self._summed = self._skipped = 0
        self.hold: GeometryHold | None = None
        """From the first step of a language stage that keeps the geometry."""
        self._resume(start)
        self.gradient_worker = (
            GradientWorker(config, folder, cache, self.all) if gradient_worker else None
        )

    def _resume(self, start: Path | None) -> None:
        saved = load_state(self.folder, self.device)
        if saved is None and start is not None:
            weights = load_file(start / WEIGHTS, self.device)
            restore(self.trainee.network.state_dict(), weights, "checkpoint")
            self.progress.speaks = ModelConfig.read(start).text.speaks
            self.progress.started = True
        if saved is not None:
            weights, state, self.optimizer.count, self.progress = saved
            restore(self.all.state_dict(), weights, "network")
            restore(self.optimizer.state, state, "optimiser")

    def save(self) -> None:
        """Writes the state and appends the losses since the last save to the curves."""
        means = self.read()
        weights = self.all.state_dict()
        save_state(self.folder, weights, self.optimizer.state, self.optimizer.count, self.progress)
        if means:
            record = {
                "stage": self.progress.stage,
                "steps": self.progress.steps,
                "windows": self.progress.windows,
                "seconds": self.progress.seconds,
                "skipped": self.progress.skipped,
                **means,
            }
            with (self.folder / CURVES).open("a") as file:
                file.write(json.dumps(record) + "\n")
            self._sums, self._summed = {}, 0

    def read(self) -> dict[str, float]:
        """Mean losses since the last save, {} before the first step; brings `progress` up to date.

        Waits for the device. A step that was left out counts as none.
        """
        progress, skipped = self.progress, self.optimizer.skipped
        progress.skipped += skipped - self._skipped
        self._skipped = skipped
        steps = max(1, self._summed)
        return {name: float(total) / steps for name, total in self._sums.items()}

    def run(self, stage: str, budget: Budget, show: bool = True) -> None:
        """Trains until the budget of the stage is used; continues a stage that was stopped."""
        if stage not in STAGES:
            raise ValueError(f"stage is '{stage}'; it must be one of {', '.join(STAGES)}")
        progress = self.progress
        if progress.stage != stage:
            self.hold = None
            progress.stage, progress.stage_steps = stage, 0
            progress.stage_windows, progress.stage_seconds = 0, 0.0
        progress.speaks |= stage == "language"
        bar = _bar(stage) if show else None
        saved = last = last_report = time.monotonic()
        while budget.done(progress) < 1.0:
            self.step(budget.done(progress))
            now = time.monotonic()
            elapsed_s = min(now - last, LONGEST_STEP_S)
            progress.seconds += elapsed_s
            progress.stage_seconds += elapsed_s
            last = now
            if bar is not None and now - last_report > READ_S:
                bar(budget.done(progress), progress, self.read())
                last_report = now
            if now - saved > self.config.steps.save_s:
                self.save()
                saved = time.monotonic()
        self.save()

    def step(self, done: float) -> dict[str, Tensor]:
        """One step on new windows; the losses, on the device. Nothing here waits for it.

        A step that is not finite changes nothing.
        """
        config, progress = self.config, self.progress
        if self.gradient_worker is not None:
            self.gradient_worker.publish(progress.stage, progress.steps, progress.windows)
        rng = np.random.default_rng([config.steps.seed, progress.steps])
        count, loss, terms = self.objectives.backward(
            progress.stage, progress.windows, rng, self._lead()
        )
        if self.gradient_worker is not None:
            count += self.gradient_worker.collect(count)
        factor = self._factor(done)
        rates = config.steps.muon_rate * factor, config.steps.adam_rate * factor
        if config.steps.keep_geometry and progress.stage == "language" and self.hold is None:
            self.hold = self._geometry_hold()
        if self.hold is not None:
            self.hold.project_gradients()
        self.optimizer.step(progress.stage, loss, *rates, config.steps.clip)
        if self.hold is not None:
            self.hold.project_weights()
        terms = {name: term.detach() for name, term in terms.items()}
        for name, term in terms.items():
            finite = torch.nan_to_num(term.double(), 0.0, 0.0, 0.0)
            self._sums[name] = self._sums[name] + finite if name in self._sums else finite
        self._summed += 1
        progress.windows += count
        progress.stage_windows += count
        progress.steps += 1
        progress.stage_steps += 1
        return terms

    def _geometry_hold(self) -> GeometryHold:
        """What keeps points and poses as they are now."""
        steps, ring = self.config.steps, self.objectives.ring
        rng = np.random.default_rng([steps.seed, HOLD_BATCHES])
        windows = (ring.batch(steps.asking_views, rng, False).images for _ in range(HOLD_BATCHES))
        return GeometryHold(self.trainee, windows)

    def _lead(self) -> float:
        """How much the training's own heads ask of the trunk: nothing until they know something,
        where they begin anew beside a trunk that does."""
        if not self.progress.started:
            return 1.0
        half = self.config.steps.lead_in / 2
        return min(1.0, max(0.0, (self.progress.stage_steps - half) / (half + 1)))

    def _factor(self, done: float) -> float:
        steps = self.config.steps
        warm = min(1.0, (self.progress.stage_steps + 1) / steps.warmup)
        return warm * min(1.0, (1.0 - done) / steps.anneal)


def _bar(stage: str):
    """A progress line: tqdm where it is installed, else a plain line every 20 seconds."""
    try:
        from tqdm import tqdm
    except ImportError:
        return _PlainBar(stage)
    bar = tqdm(total=100.0, desc=stage, unit="%", bar_format="{l_bar}{bar}| {postfix}")

    def update(done: float, progress: TrainingProgress, terms: dict[str, float]) -> None:
        bar.n = 100.0 * done
        rate = progress.windows / max(1e-9, progress.seconds)
        name = next(iter(terms))
        bar.set_postfix_str(
            f"{progress.windows} windows, {rate:.1f}/s, {name} {terms[name]:.3f}", refresh=False
        )
        bar.refresh()

    return update


class _PlainBar:
    def __init__(self, stage: str):
        self.stage, self.last = stage, 0.0

    def __call__(self, done: float, progress: TrainingProgress, terms: dict[str, float]) -> None:
        now = time.monotonic()
        if now - self.last > 20:
            self.last = now
            losses = ", ".join(f"{name} {value:.3f}" for name, value in terms.items())
            line = f"{self.stage} {100 * done:.1f} %, {progress.windows} windows, {losses}"
            print(line, flush=True)
