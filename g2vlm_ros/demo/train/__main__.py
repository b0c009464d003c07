# SPDX-License-Identifier: Apache-2.0
"""Command line of the training.

    python -m g2vlm_ros.demo.train --out runs/demo --stage geometry --minutes 90
    python -m g2vlm_ros.demo.train --out runs/demo --stage naming --minutes 25
    python -m g2vlm_ros.demo.train --out runs/demo --stage language --minutes 90
    python -m g2vlm_ros.demo.train --out runs/demo --export engines/demo

A second call with the same folder continues: the same stage where it stopped, another stage with
the weights so far. `--device cuda` renders the data on the GPU as well, from homes that
`--workers` processes prepare. `--stage all` does all stages one after the other. Stopping it with
a signal loses nothing. On a busy machine set OMP_WAIT_POLICY=PASSIVE, or its threads spin while
they wait for each other. On two free cores
`--threads 1 --gradient-worker` is faster than two threads.
docs/training.md has a recipe for ten minutes of a GPU.
"""

# Nothing heavy is imported here: processes that prepare homes import this file again.
from __future__ import annotations

import argparse
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

from g2vlm_ros.demo.train.config import STAGES, Config, Data

SHARES = {"geometry": 0.6, "naming": 0.1, "language": 0.3}
"""Of the minutes, where all stages are trained in one go."""
INTERRUPTED = 130
"""Exit status of a training that was stopped, as shells have it for Ctrl-C."""


def main(arguments: list[str] | None = None) -> None:
    """Trains, or exports what was trained."""
    options = parse_options(arguments)
    from g2vlm_ros.demo.train.export_checkpoint import TOKENIZER_FILES, export

    if options.export is not None:
        export(options.out, options.export)
        return
    import torch

    from g2vlm_ros.demo.train.curves import draw_curves
    from g2vlm_ros.demo.train.loop import Budget, Training
    from g2vlm_ros.demo.train.train_tokenizer import corpus, write_tokenizer

    # For the workers, which read it when they start: each has a core of its own.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(options.threads)
    signal.signal(signal.SIGTERM, _interrupt)
    if options.device != "cpu":
        # Its plans for every new shape cost time; flash attention has none.
        torch.backends.cuda.enable_cudnn_sdp(False)
    config = configured(options)
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
        options.gradient_worker,
    )
    try:
        for stage, minutes in _plan(options.stage, options.minutes):
            training.run(stage, Budget(minutes, options.windows))
    except KeyboardInterrupt:
        training.save()
        raise SystemExit(INTERRUPTED) from None
    finally:
        draw_curves(options.out)


def configured(options: argparse.Namespace) -> Config:
    """The training that the options ask for."""
    config = Config()
    data = replace(
        config.data,
        pairs_first=options.pairs_first,
        first_shard=options.first_shard,
        shards_first=options.shards_first,
        shards_kept=max(options.shards_first, options.shards_kept),
        windows_per_scene=options.windows_per_home,
    )
    steps = replace(
        config.steps,
        muon_rate=config.steps.muon_rate * options.rate,
        adam_rate=config.steps.adam_rate * options.rate,
        keep_geometry=options.keep_geometry,
    )
    if options.device != "cpu":
        # A GPU is fast enough for larger batches, which bear a little more rate.
        factor = (options.batch_views / steps.batch_views) ** 0.25
        steps = replace(
            steps,
            batch_views=options.batch_views,
            asking_views=options.batch_views // 4,
            muon_rate=steps.muon_rate * factor,
            adam_rate=steps.adam_rate * factor,
        )
    return replace(config, data=data, steps=steps)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
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
        "--gradient-worker",
        action="store_true",
        help="compute gradients in a second process too (CPU)",
    )
    parser.add_argument(
        "--batch-views",
        type=int,
        default=480,
        help="per step on a GPU, a quarter of them where questions are asked",
    )
    parser.add_argument(
        "--rate", type=float, default=1.0, help="factor on the learning rates; .5 to train on"
    )
    parser.add_argument(
        "--keep-geometry",
        action="store_true",
        help="the language stage leaves points and poses as they are (rate 0.1)",
    )
    parser.add_argument(
        "--windows-per-home",
        type=int,
        default=Data.windows_per_scene,
        help="more where a GPU would wait for new homes",
    )
    parser.add_argument(
        "--first-shard",
        type=int,
        default=Data.first_shard,
        help="number of the first shard of 32 homes; behind those that earlier trainings drew",
    )
    parser.add_argument(
        "--shards-first",
        type=int,
        default=Data.shards_first,
        help="shards of 32 homes that are there before the first step",
    )
    parser.add_argument(
        "--shards-kept", type=int, default=Data.shards_kept, help="of 67 MB each at 224x168"
    )
    parser.add_argument(
        "--pairs-first",
        type=int,
        default=Data.pairs_first,
        help="windows of two views that come first; 0 where --start knows poses already",
    )
    parser.add_argument("--cache", type=Path, help="folder with shards rendered ahead")
    parser.add_argument(
        "--workers",
        type=int,
        help="processes that prepare homes; by default none on a CPU, else all cores but two",
    )
    parser.add_argument(
        "--start", type=Path, help="an exported checkpoint to begin with in a new folder"
    )
    parser.add_argument("--export", type=Path, help="write the checkpoint here and stop")
    options = parser.parse_args(arguments)
    if options.workers is None:
        spare = max(1, len(os.sched_getaffinity(0)) - 2)
        options.workers = 0 if options.device == "cpu" else spare
    return options


def _plan(stage: str, minutes: float) -> list[tuple[str, float]]:
    if stage != "all":
        return [(stage, minutes)]
    return [(name, share * minutes) for name, share in SHARES.items()]


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def sample_texts(scenes: int = 60) -> list[str]:
    """Questions and answers of some training homes, to learn the tokenizer from."""
    from g2vlm_ros.demo.sim.question_metrics import training_questions

    questions = training_questions(scenes, views=4, each=30)
    return [text for qa in questions for text in (qa.question, qa.answer)]


if __name__ == "__main__":
    main()
