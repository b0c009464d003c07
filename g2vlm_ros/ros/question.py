# SPDX-License-Identifier: Apache-2.0
"""One question on its way through the node: its request, its deadline, its progress, its end."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from g2vlm_ros.query.context import ViewSelection
from g2vlm_ros.records import Window

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


@dataclass(eq=False)
class Progress:
    """What has been done for a question so far; a refusal reports it as well as an answer."""

    selection: ViewSelection | None = None
    """The views that it is answered from; None before they are selected."""
    steps: list[str] = field(default_factory=list)
    """One sentence each."""
    stage_times_s: dict[str, float] = field(default_factory=dict)
    last_words_s: float = 0.0
    """How long the model took for its last words."""

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Counts as stage "measure" what of the time within no stage of the model takes."""
        start = time.perf_counter()
        yield
        measure_s = time.perf_counter() - start - sum(self.stage_times_s.values())
        self.stage_times_s["measure"] = max(0.0, measure_s)

    def add_times(self, stage_times_s: dict[str, float]) -> None:
        """Seconds of stages that ran once more."""
        for stage, time_s in stage_times_s.items():
            self.stage_times_s[stage] = self.stage_times_s.get(stage, 0.0) + time_s


@dataclass(eq=False)
class Question:
    """A request of the service, or a goal of the action, while it is queued and answered."""

    request: Any
    response_type: type
    deadline: Deadline
    quick: bool
    """Of the service: its asker blocks, and it passes slow ones."""
    client: str = ""
    """Who asks, as far as rclpy tells."""
    fresh: bool = False
    """Whether it asks for a window newer than itself."""
    feedback: Callable[[int, str], None] = lambda phase, text: None
    after: Window | None = None
    """For `fresh`: the newest window when it was asked."""
    future: concurrent.futures.Future | None = None
    timer: threading.Timer | None = None
    """Ends the wait of a question of the service."""
    reply: Callable[[Any], None] = lambda response: None
    """Sends the response of the service; the first one counts."""
    executing: bool = False
    """Of the action: whether its goal has left the queue."""
    progress: Progress = field(default_factory=Progress)
    response: Any = None
    """None until it has ended."""
    done: threading.Event = field(default_factory=threading.Event)
    """Set once `response` is there."""
