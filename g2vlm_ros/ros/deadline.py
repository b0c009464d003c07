# SPDX-License-Identifier: Apache-2.0
"""How long the asker of a question waits, and whether somebody still waits at all."""

from __future__ import annotations

import time
from collections.abc import Callable

MAX_WAIT_S = 3600.0
"""No question waits longer, whatever its request says."""
SPARE = 0.15
"""Share of an asker's time that the model's words leave to measuring and encoding."""


class Deadline:
    """Starts when the question comes in. clock(): seconds that never go back."""

    def __init__(
        self,
        max_wait_s: float,
        cancelled: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.max_wait_s = min(max_wait_s, MAX_WAIT_S)
        self._cancelled, self._clock = cancelled, clock
        self._start_s = clock()
        self._given_up = False

    def elapsed_s(self) -> float:
        """Seconds since the question came in."""
        return self._clock() - self._start_s

    @property
    def spare_s(self) -> float:
        """Time that is kept for what follows the model's words."""
        return SPARE * self.max_wait_s

    def give_up(self) -> None:
        """Nobody waits any more."""
        self._given_up = True

    def cancelled(self) -> bool:
        """Whether the asker has taken the question back."""
        return self._cancelled()

    def over(self, more_s: float = 0.0) -> bool:
        """Whether nobody will be waiting any more when so much more time has passed."""
        if self._given_up or self._cancelled():
            return True
        # Written so that a wait that is not a number is over at once.
        return not self.elapsed_s() + more_s <= self.max_wait_s
