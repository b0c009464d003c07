# SPDX-License-Identifier: Apache-2.0
"""How long `make fuzz` and `make soak` run, as people type it."""

from __future__ import annotations

import argparse
import math

MAX_MINUTES = 7 * 24 * 60
"""A week: what is longer was meant in seconds."""


def minutes(text: str) -> float:
    """A type of argparse: nothing would be tried in 0 or -1 minutes, and nothing found."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= MAX_MINUTES:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a number above 0, at most {MAX_MINUTES}"
        )
    return value
