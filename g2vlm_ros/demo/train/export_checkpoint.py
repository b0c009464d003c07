# SPDX-License-Identifier: Apache-2.0
"""Trained weights into a folder in the released format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from g2vlm_ros.checkpoint.input_sizes import InputSizes
from g2vlm_ros.demo.train.config import Config
from g2vlm_ros.demo.train.train_state import TrainingProgress, atomically, load_state

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
WEIGHTS = "model.safetensors"
NOTES = "notes.md"
"""What the model card shall tell beyond numbers, where the folder of the training has it."""


def export(source: Path, target: Path, config: Config | None = None) -> None:
    """Writes weights (fp16), configurations, tokenizer and model card of the training `source`.

    ValueError where there is no training, or where a weight does not fit into fp16.
    """
    config = config or Config()
    saved = load_state(source, "cpu")
    if saved is None:
        raise ValueError(f"{source} holds no training; give the folder that --out named")
    state, _, _, progress = saved
    prefix = "network."
    weights = {
        name.removeprefix(prefix): value.half().contiguous()
        for name, value in state.items()
        if name.startswith(prefix)
    }
    broken = [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ValueError(f"{broken[0]} is not finite in fp16; train on from an earlier state")
    target.mkdir(parents=True, exist_ok=True)
    atomically(target / WEIGHTS, lambda part: save_file(weights, part, {"format": "pt"}))
    files = {
        "text_config.json": config.sizes.text()
        | {"language_trained": progress.speaks, "language_points": False},
        "vit_config.json": config.sizes.vit(),
        "dino_config.json": config.sizes.dino(),
        "decoder_config.json": config.sizes.decoder(),
    }
    for name, values in files.items():
        (target / name).write_text(json.dumps(values, indent=1) + "\n")
    InputSizes(config.data.width_px, config.data.semantic_px).write(target)
    for name in TOKENIZER_FILES:
        shutil.copyfile(source / name, target / name)
    scores = source / "scores.json"
    report = json.loads(scores.read_text()) if scores.exists() else None
    if report is not None:
        shutil.copyfile(scores, target / "scores.json")
    card = model_card(config, progress, len(weights), report)
    notes = source / NOTES
    if notes.exists():
        card += f"\n## How it came about\n\n{notes.read_text()}"
    (target / "README.md").write_text(card)


def model_card(
    config: Config, progress: TrainingProgress, tensors: int, scores: dict | None
) -> str:
    """The README of the checkpoint; scores are those of `eval`, or said to be missing."""
    data = config.data
    lines = [
        "# Demo checkpoint: G²VLM trained on simulated homes",
        "",
        "A small network of the G²VLM architecture (arXiv 2511.21688) in the format of the "
        "released weights,",
        "trained from scratch on `g2vlm_ros.demo.sim`. **It knows the simulated homes and nothing "
        "else**: on photographs its",
        "points, poses and answers mean nothing. It is here so that the demo, the tests and the "
        "exports run on something",
        "that really sees.",
        "",
        f"- Views: {data.width_px}x{data.height_px}, lens of 70 degrees, camera 1.2 to 1.4 m "
        "high, 2 to 8 views. Lengths come out in metres.",
        f"- Questions: {data.semantic_px} pixel squares (`query.semantic_width_px`), English, "
        "the kinds of `g2vlm_ros/demo/sim/questions.py`.",
        f"- Training: {progress.windows} windows in {progress.seconds / 60:.0f} minutes, seed "
        f"{config.steps.seed}; {progress.skipped} steps skipped; last stage: {progress.stage}.",
        "- Language: "
        + (
            "trained."
            if progress.speaks
            else "**not trained yet**; the node refuses questions that only words could answer."
        ),
        f"- Weights: {tensors} tensors, fp16, without the training-only global points head. The "
        "encoder's attention windows are aligned.",
        "",
        "Made with `python -m g2vlm_ros.demo.train --out RUN --stage geometry --minutes M "
        "--threads 1 --gradient-worker` (then `--stage naming` and `--stage language`), and",
        "`python -m g2vlm_ros.demo.train --out RUN --export engines/demo`. "
        "It goes on from here with `--start engines/demo --pairs-first 0` in a new folder.",
        "",
        "## Scores on held-out homes",
        "",
    ]
    if scores is None:
        lines.append("Not measured yet: run `python -m g2vlm_ros.demo.train.evaluate`.")
    else:
        lines += _score_table(scores)
    return "\n".join(lines) + "\n"


def _score_table(scores: dict) -> list[str]:
    geometry = scores["geometry"]
    lines = [
        "Means over windows whose views follow one another as those of a robot do. `refined`: as "
        "the node publishes",
        "poses and points: points followed through the images mend the poses "
        "(`map.refine_poses`), and depth is averaged where views see the same "
        "(`map.fuse_depth`).",
        "",
        "| views | " + " | ".join(geometry) + " |",
        "|" + "---|" * (len(geometry) + 1),
    ]
    for name in next(iter(geometry.values())):
        values = " | ".join(f"{row[name]:.3f}" for row in geometry.values())
        lines.append(f"| {name} | {values} |")
    language = scores.get("language")
    if language:
        lines += [
            "",
            "| questions | accuracy | blind | words | majority | asked |",
            "|---|---|---|---|---|---|",
        ]
        for kind, row in language.items():
            lines.append(
                f"| {kind} | {row['accuracy']:.3f} | {row['blind']:.3f} | {row['words']:.3f} "
                f"| {row['majority']:.3f} | {row['asked']} |"
            )
    return lines
