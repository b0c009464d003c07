# SPDX-License-Identifier: Apache-2.0
"""Seeds of homes: three splits that cannot share a home."""

from __future__ import annotations

SPLITS = ("train", "validation", "heldout")


MAX_HOME = 10**9
"""Greatest index of a home: three times it still is a seed of 32 bits."""


def home_seed(split: str, index: int) -> int:
    """The seed of the index-th home of a split; seeds of different splits differ modulo 3."""
    if split not in SPLITS:
        raise ValueError(f"split is '{split}'; it must be one of {', '.join(SPLITS)}")
    if index < 0:
        raise ValueError(f"home index is {index}; it must be 0 or more")
    return 3 * index + SPLITS.index(split)
