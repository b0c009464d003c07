# SPDX-License-Identifier: Apache-2.0
"""Command line of the training.

    python -m g2vlm_ros.demo.train --out runs/demo --stage geometry --minutes 90
    python -m g2vlm_ros.demo.train --out runs/demo --stage naming --minutes 25
    python -m g2vlm_ros.demo.train --out runs/demo --stage language --minutes 90
    python -m g2vlm_ros.demo.train --out runs/demo --export engines/demo

A second call with the same folder continues: the same stage where it stopped, another stage with
the weights so far. `--device cuda` renders the data on the GPU as well. `--stage all` does all
stages one after the other. Stopping it with a signal loses nothing. On a busy machine set
OMP_WAIT_POLICY=PASSIVE, or its threads spin while they wait for each other. On two free cores
`--threads 1 --companion` is faster than two threads.
"""

from __future__ import annotations

import argparse
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import torch

from g2vlm_ros.demo.sim.question_metrics import training_questions
from g2vlm_ros.demo.train.config import STAGES, Config, Data
from g2vlm_ros.demo.train.curves import draw_curves
from g2vlm_ros.demo.train.export_checkpoint import TOKENIZER_FILES, export
from g2vlm_ros.demo.train.loop import Budget, Training
from g2vlm_ros.demo.train.train_tokenizer import corpus, write_tokenizer

SHARES = {"geometry": 0.6, "naming": 0.1, "language": 0.3}
"""Of the minutes, where all stages are trained in one go."""
INTERRUPTED = 130
"""Exit status of a training that was stopped, as shells have it for Ctrl-C."""


def main(arguments: list[str] | None = None) -> None:
    """Trains, or exports what was trained."""
    options = _options(arguments)
    if options.export is not None:
        export(options.out, options.export)
        return
    torch.set_num_threads(options.threads)
    signal.signal(signal.SIGTERM, _interrupt)
    config = Config(data=Data(pairs_first=options.pairs_first))
    steps = config.steps
    if options.device != "cpu":
        # A GPU is fast enough for larger batches, which bear a little more rate.
        factor = (options.batch_views / steps.batch_views) ** 0.25
        steps = replace(
            steps,
            batch_views=options.batch_views,
            asking_views=options.batch_views // 2,
            muon_rate=steps.muon_rate * factor,
            adam_rate=steps.adam_rate * factor,
        )
        config = replace(config, steps=steps)
    if not (options.out / "tokenizer.json").exists():
        if options.start is None:
            write_tokenizer(options.out, corpus(sample_texts()), config.sizes.vocabulary)
        else:
            options.out.mkdir(parents=True, exist_ok=True)
            for name in TOKENIZER_FILES:
                shutil.copyfile(options.start / name, options.out / name)
    training = Training(
        config,
        options.out,
        options.device,
        options.cache,
        options.workers,
        options.start,
        options.companion,
    )
    try:
        for stage, minutes in _plan(options.stage, options.minutes):
            training.run(stage, Budget(minutes, options.windows))
    except KeyboardInterrupt:
        training.save()
        raise SystemExit(INTERRUPTED) from None
    finally:
        draw_curves(options.out)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the training")
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--minutes", type=float, default=0.0, help="training time of the stage")
    parser.add_argument("--windows", type=int, default=150_000, help="length where minutes is 0")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--companion", action="store_true", help="compute gradients in a second process too (CPU)"
    )
    parser.add_argument("--batch-views", type=int, default=512, help="per step on a GPU")
    parser.add_argument(
        "--pairs-first",
        type=int,
        default=Data.pairs_first,
        help="windows of two views that come first; 0 where --start knows poses already",
    )
    parser.add_argument("--cache", type=Path, help="folder with shards rendered ahead")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that build homes (GPU: cores - 2)"
    )
    parser.add_argument(
        "--start", type=Path, help="an exported checkpoint to begin with in a new folder"
    )
    parser.add_argument("--export", type=Path, help="write the checkpoint here and stop")
    return parser.parse_args(arguments)


def _plan(stage: str, minutes: float) -> list[tuple[str, float]]:
    if stage != "all":
        return [(stage, minutes)]
    return [(name, share * minutes) for name, share in SHARES.items()]


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def sample_texts(scenes: int = 60) -> list[str]:
    """Questions and answers of some training homes, to learn the tokenizer from."""
    asked = training_questions(scenes, views=4, each=30)
    return [text for qa in asked for text in (qa.question, qa.answer)]


if __name__ == "__main__":
    main()
