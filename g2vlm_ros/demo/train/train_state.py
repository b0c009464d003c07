# SPDX-License-Identifier: Apache-2.0
"""What a training keeps on disk: weights, optimiser, counters; written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

STATE = "state.safetensors"
CURVES = "curves.jsonl"


@dataclass
class TrainingProgress:
    """Where a training stands."""

    stage: str = ""
    steps: int = 0
    """Since the beginning, all stages."""
    windows: int = 0
    seconds: float = 0.0
    stage_steps: int = 0
    stage_windows: int = 0
    stage_seconds: float = 0.0
    skipped: int = 0
    """Steps whose loss or gradient was not finite."""
    speaks: bool = False
    """Whether the language has been trained, in whatever stage it stands now."""
    started: bool = False
    """Whether it began with an exported checkpoint, which lacks the heads of the training."""


def atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a file beside `path`, syncs it, and puts it in place in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    write(part)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.chmod(0o644)
    part.replace(path)


def save_state(
    folder: Path,
    weights: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    count: int,
    progress: TrainingProgress,
) -> None:
    """Everything that a resumed training needs, in one safetensors file."""
    tensors = {f"model.{name}": value for name, value in weights.items()}
    tensors |= {f"optimizer.{name}": value for name, value in optimizer.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    meta = {"progress": json.dumps(asdict(progress)), "optimizer_steps": str(count)}
    atomically(folder / STATE, lambda part: save_file(tensors, part, meta))


def load_state(
    folder: Path, device: str
) -> tuple[dict[str, Tensor], dict[str, Tensor], int, TrainingProgress] | None:
    """What `save_state` wrote, or None where there is nothing yet."""
    path = folder / STATE
    if not path.exists():
        return None
    weights: dict[str, Tensor] = {}
    optimizer: dict[str, Tensor] = {}
    with safe_open(path, "pt", device=device) as file:
        meta = file.metadata()
        for key in file.keys():  # noqa: SIM118
            kind, _, name = key.partition(".")
            (weights if kind == "model" else optimizer)[name] = file.get_tensor(key)
    progress = TrainingProgress(**json.loads(meta["progress"]))
    return weights, optimizer, int(meta["optimizer_steps"]), progress


def restore(target: dict[str, Tensor], source: dict[str, Tensor], what: str) -> None:
    """Copies tensors by name into those of `target`; ValueError where the names differ."""
    if target.keys() != source.keys():
        odd = sorted(target.keys() ^ source.keys())
        raise ValueError(
            f"the saved {what} has other tensors than this configuration ({odd[0]} and "
            f"{len(odd) - 1} more); start in a new folder or restore the configuration"
        )
    with torch.no_grad():
        for name, value in target.items():
            value.copy_(source[name])
