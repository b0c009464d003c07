# SPDX-License-Identifier: Apache-2.0
"""Whether a quantity grows: the slope of a line through its samples, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

BLOCKS = 10
"""Samples a few seconds apart hang together (a collection of garbage, a loop that closes);
medians of tenths of the time hardly do, and a line through ten of them says how far off it is."""
T_95 = 2.306
"""Student's t for 95 % to both sides with BLOCKS - 2 degrees of freedom."""


@dataclass(frozen=True)
class Trend:
    """A slope per hour, the half width of its 95 % interval, and the value it starts at."""

    per_hour: float
    plus_minus: float
    start: float

    @property
    def percent_per_hour(self) -> float:
        """Of the value at the start."""
        return 100 * self.per_hour / self.start

    @property
    def percent_plus_minus(self) -> float:
        """Half width of the 95 % interval of `percent_per_hour`."""
        return 100 * self.plus_minus / self.start

    def as_json(self) -> dict[str, Any]:
        """All of it, rounded."""
        values = asdict(self) | {
            "percent_per_hour": self.percent_per_hour,
            "percent_plus_minus": self.percent_plus_minus,
        }
        return {name: round(value, 3) for name, value in values.items()}


def trend_of(seconds: Sequence[float], values: Sequence[float]) -> Trend:
    """The line through the medians of BLOCKS parts of as many samples each, in order of time.

    ValueError where there are fewer samples.
    """
    if len(seconds) < BLOCKS:
        raise ValueError(f"{len(seconds)} samples; a trend needs {BLOCKS}")
    hours = np.array([b.mean() for b in np.array_split(np.asarray(seconds, float), BLOCKS)]) / 3600
    medians = np.array([np.median(b) for b in np.array_split(np.asarray(values, float), BLOCKS)])
    centred = hours - hours.mean()
    slope = float(centred @ medians / (centred @ centred))
    residuals = medians - medians.mean() - slope * centred
    error = np.sqrt(residuals @ residuals / (BLOCKS - 2) / (centred @ centred))
    return Trend(slope, float(T_95 * error), float(medians[0]))
