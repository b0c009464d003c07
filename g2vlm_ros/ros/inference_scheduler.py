# SPDX-License-Identifier: Apache-2.0
"""One thread for the device, shared by windows and questions.

While both wait, windows get at least a stated share of the time. Questions wait in lanes (one per
conversation or kind of asker) that take turns, up to a bound. A slow question lets quick ones and
windows pass between two tokens (`yield_to_others`).
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, NamedTuple

WINDOWS, QUESTIONS = "windows", "questions"
MAX_CLIENT_QUEUES = 4
"""Full queues of clients that are held at once: what waits longer comes too late for its asker."""

DEVICE_THREAD = "device"
"""Name of the thread that owns the device."""


class BusyError(Exception):
    """So many questions wait already that no more are taken."""


class _Job(NamedTuple):
    future: Future
    run: Callable[[], Any]


class InferenceScheduler:
    """Runs jobs one at a time on a thread of its own; `submit` and `ask` from any thread."""

    def __init__(
        self,
        window_share: float = 0.0,
        max_questions: int = 8,
        log_failure: Callable[[str, BaseException], None] = lambda what, error: None,
    ):
        self._share = {WINDOWS: max(window_share, 1e-3), QUESTIONS: 1 - max(window_share, 1e-3)}
        self._max_questions, self._log_failure = max_questions, log_failure
        self._windows: deque[_Job] = deque()
        self._lanes: OrderedDict[tuple[bool, str], deque[_Job]] = OrderedDict()
        self._used_s = {WINDOWS: 0.0, QUESTIONS: 0.0}
        self._running: list[str] = []
        self._since = 0.0
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=DEVICE_THREAD, daemon=True)
        self._thread.start()

    def submit(self, function: Callable, *arguments) -> Future:
        """Run something that is no question (a window, loading), first come first served."""
        job = _Job(Future(), lambda: function(*arguments))
        with self._changed:
            self._check_open()
            if not self._windows:
                self._catch_up(WINDOWS)
            self._windows.append(job)
            self._changed.notify()
        return job.future

    def ask(self, lane: str, function: Callable[[], Any], quick: bool) -> Future:
        """Run a question when its lane's turn comes; BusyError when too many wait.

        quick: it may pass a slow question that calls `yield_to_others`.
        """
        job = _Job(Future(), function)
        with self._changed:
            self._check_open()
            mine = self._waiting_in(self._lanes.get((quick, lane), ()))
            if mine >= self._max_questions:
                raise BusyError(f"{mine} questions of this client wait already")
            if self.waiting() >= MAX_CLIENT_QUEUES * self._max_questions:
                raise BusyError(f"{self.waiting()} questions wait already")
            if not self._lanes:
                self._catch_up(QUESTIONS)
            self._lanes.setdefault((quick, lane), deque()).append(job)
            self._changed.notify()
        return job.future

    def yield_to_others(self) -> None:
        """Called by a slow question between tokens, on the device's thread: lets others pass.

        A quick question, or a window whose share is due, runs now. What runs so lets nobody pass.
        """
        if len(self._running) != 1:
            return
        with self._changed:
            self._charge()
            due = self._windows and self._level(WINDOWS) < self._level(QUESTIONS)
            job = self._windows.popleft() if due else self._next_question(quick=True)
        if job is not None:
            self._run(WINDOWS if due else QUESTIONS, job)

    def running_for_s(self) -> float:
        """How long the running job has not come to a pause; 0 while the device rests."""
        with self._changed:
            return time.perf_counter() - self._since if self._running else 0.0

    def shutdown(self, timeout_s: float | None = None) -> bool:
        """Run what waits, then end the thread; False where that takes longer than `timeout_s`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._changed:
                kind, job = self._pick()
                while job is None:
                    if self._closing:
                        return
                    self._changed.wait()
                    kind, job = self._pick()
            self._run(kind, job)

    def _run(self, kind: str, job: _Job) -> None:
        if not job.future.set_running_or_notify_cancel():
            return
        with self._changed:
            self._charge()
            self._running.append(kind)
        try:
            result = job.run()
        except BaseException as error:
            if not isinstance(error, Exception):  # nobody may read the future of a window
                self._log_failure("a job of the device", error)
            job.future.set_exception(error)
        else:
            job.future.set_result(result)
        finally:
            with self._changed:
                self._charge()
                self._running.pop()

    def _pick(self) -> tuple[str, _Job | None]:
        """Whose turn it is."""
        windows_first = self._level(WINDOWS) <= self._level(QUESTIONS) or not self.waiting()
        if self._windows and windows_first:
            return WINDOWS, self._windows.popleft()
        return QUESTIONS, self._next_question()

    def _next_question(self, quick: bool = False) -> _Job | None:
        """The first question of the next lane in turn; of a quick lane only if `quick`."""
        for key in list(self._lanes):
            lane = self._lanes[key]
            while lane and lane[0].future.cancelled():
                lane.popleft()
            if not lane:
                del self._lanes[key]
            elif key[0] or not quick:
                job = lane.popleft()
                self._lanes.move_to_end(key)
                if not lane:
                    del self._lanes[key]
                return job
        return None

    def waiting(self) -> int:
        """How many questions wait."""
        return sum(self._waiting_in(lane) for lane in self._lanes.values())

    @staticmethod
    def _waiting_in(lane: Iterable[_Job]) -> int:
        return sum(not job.future.cancelled() for job in lane)

    def _level(self, kind: str) -> float:
        """Time used, weighed by the share that is due; the lower one is behind."""
        return self._used_s[kind] / self._share[kind]

    def _catch_up(self, kind: str) -> None:
        """Who had nothing to do gets no credit for it."""
        other = QUESTIONS if kind == WINDOWS else WINDOWS
        if kind not in self._running:
            behind = self._level(other) * self._share[kind]
            self._used_s[kind] = max(self._used_s[kind], behind)

    def _charge(self) -> None:
        """Book the time since the last booking on what runs."""
        now = time.perf_counter()
        if self._running:
            self._used_s[self._running[-1]] += now - self._since
        self._since = now

    def _check_open(self) -> None:
        if self._closing:
            raise RuntimeError("the device is shut down")
