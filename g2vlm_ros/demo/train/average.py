# SPDX-License-Identifier: Apache-2.0
"""The average of two checkpoints of one architecture, such as a training's start and its end.

    python -m g2vlm_ros.demo.train.average engines/demo runs/checkpoint --share 0.5 --out runs/mean

What a training learns adds up along the way from one to the other, what it memorises and the noise
of its last steps mostly does not (M. Wortsman et al., arXiv 2109.01903). Two trainings that kept
the geometry (`--keep-geometry`) have an average that keeps it too: the free directions are linear.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from g2vlm_ros.checkpoint.input_sizes import FILE as INPUT_SIZES
from g2vlm_ros.demo.train.export_checkpoint import TOKENIZER_FILES, WEIGHTS
from g2vlm_ros.demo.train.train_state import atomically

CONFIG_FILES = ("text_config.json", "vit_config.json", "dino_config.json", "decoder_config.json")


def mean_weights(
    first: dict[str, Tensor], second: dict[str, Tensor], share: float
) -> dict[str, Tensor]:
    """fp16 weights, `share` (0..1) of them from the second; ValueError where they do not match."""
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share is {share}; it must be from 0 to 1")
    unmatched = sorted(first.keys() ^ second.keys()) or [
        name for name, weight in first.items() if weight.shape != second[name].shape
    ]
    if unmatched:
        raise ValueError(
            f"{unmatched[0]} is not of one shape in both; they need to be of one architecture"
        )
    return {
        name: torch.lerp(weight.float(), second[name].float(), share).half().contiguous()
        for name, weight in first.items()
    }


def average(first: Path, second: Path, share: float, target: Path) -> None:
    """Writes a checkpoint folder; ValueError where the two differ in more than their weights."""
    files = (*CONFIG_FILES, *TOKENIZER_FILES, INPUT_SIZES)
    for name in files:
        if (first / name).read_bytes() != (second / name).read_bytes():
            raise ValueError(f"{name} differs between {first} and {second}")
    weights = mean_weights(load_file(first / WEIGHTS), load_file(second / WEIGHTS), share)
    target.mkdir(parents=True, exist_ok=True)
    for name in files:
        if target.resolve() != first.resolve():
            shutil.copyfile(first / name, target / name)
    atomically(target / WEIGHTS, lambda part: save_file(weights, part, {"format": "pt"}))


def main(arguments: list[str] | None = None) -> None:
    """Averages two folders into a third."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", type=Path, help="a checkpoint folder")
    parser.add_argument("second", type=Path, help="another one")
    parser.add_argument("--share", type=float, default=0.5, help="of the second, 0 to 1")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args(arguments)
    try:
        average(options.first, options.second, options.share, options.out)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
