# SPDX-License-Identifier: Apache-2.0
"""Arguments that the demos share, checked before anything is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from g2vlm_ros.demo.sim.splits import MAX_HOME, SPLITS

MIN_LEGS, MAX_LEGS = 2, 1000
"""Of a walk, as the parameter of `sim_camera`."""


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """A type of argparse: a whole number from low to high, both included."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"{text!r} must be a whole number from {low} to {high}"
            )
        return value

    return number


def add_walk(parser: argparse.ArgumentParser) -> None:
    """Which home is walked through, and how far."""
    parser.add_argument(
        "--home",
        type=whole_number(0, MAX_HOME),
        default=8,
        help="index of the home in its split; SEED of make",
    )
    parser.add_argument(
        "--split", choices=SPLITS, default="heldout", help="validation is for choosing settings"
    )
    parser.add_argument(
        "--legs",
        type=whole_number(MIN_LEGS, MAX_LEGS),
        default=8,
        help="length of the walk, straight legs",
    )


def check_paths(parser: argparse.ArgumentParser, out: Path, *sources: Path | None) -> None:
    """Make the folder for what is written; end with a sentence where a path is of no use."""
    for path in sources:
        if path is not None and not path.exists():
            parser.error(f"{path} does not exist")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {out} cannot be a folder: {error.strerror}")
