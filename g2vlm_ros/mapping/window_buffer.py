# SPDX-License-Identifier: Apache-2.0
"""Which recent frames form the model's input.

Frames of one moment (all cameras within ``sync_slop_s``) make an *instant*. Instants that lie far
enough apart (time, and odometry motion where it is known) are kept, newest first in line; a window
takes the newest one, the overlap with the window before, and an even spread between. What is not
used is counted by reason; nothing disappears silently. A camera silent for long is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from g2vlm_ros.records import DropReason, Frame, Window
from g2vlm_ros.settings import WindowSettings

NS_PER_S = 1_000_000_000
KEPT_WINDOWS = 4
"""Instants kept while the device is busy, in windows' worth; older ones are superseded."""
MAX_SUSPECTS = 3
"""Frames in a row far on one side of the last stamp: by then the clock has jumped, however they
follow each other."""
SLOWER = 4
"""A step of stamps may be so many times the one before: a slow camera is no clock that jumps."""
SILENT_SHARE = 0.5
"""Share of max_age_s after which a silent camera is left out, while there is an overlap still."""


@dataclass
class _Instant:
    """Frames of one moment, by camera."""

    stamp_ns: int
    frames: dict[str, Frame] = field(default_factory=dict)
    used: bool = False
    """Part of a window already."""
    shown_ns: int = 0
    """Newest time at which the cameras still showed the same, if later than stamp_ns."""

    @property
    def until_ns(self) -> int:
        """Newest time at which these views are known to be true."""
        return max(self.stamp_ns, self.shown_ns)

    @property
    def position_m(self) -> np.ndarray | None:
        positions = (f.position_m for f in self.frames.values() if f.position_m is not None)
        return next(positions, None)


class WindowBuffer:
    """Collects frames of one or more cameras and hands out windows. Not thread-safe: lock outside.

    Counters: `received` and `used` frames, and `dropped` by reason.
    """

    def __init__(
        self,
        cameras: list[str],
        settings: WindowSettings,
        on_clock_jump: Callable[[], None] = lambda: None,
    ):
        self._cameras = list(cameras)
        self._settings = settings
        self._on_clock_jump = on_clock_jump
        self._window_id = 0
        self._pending: list[_Instant] = []
        self._instants: list[_Instant] = []
        self._in_window: list[_Instant] = []  # of the last window, without discarded frames
        self._last_stamp_ns: dict[str, int] = {}
        self._usual_step_ns: dict[str, int] = {}
        self._suspects: dict[str, list[Frame]] = {}  # far from their camera's last stamp
        self._first_stamp_ns = 0
        self.received = 0
        self.used = 0
        self.dropped: Counter[DropReason] = Counter()

    def offer(self, frame: Frame) -> None:
        """Take a frame in.

        A stamp more than max_age_s behind its camera's last one, or far ahead of it, is not
        believed alone: the frame waits for the camera's next one. If that one follows it, or a
        third is on the same side, the clock jumped (a simulation that restarted, a camera that
        paused) and they count; a jump back drops everything older. If not, the stamps were wrong
        and their frames are dropped.
        """
        if frame.camera not in self._cameras:
            raise ValueError(f"camera '{frame.camera}' is not one of {', '.join(self._cameras)}")
        self.received += 1
        side = self._jump(frame)
        suspects = self._suspects.pop(frame.camera, [])
        if suspects and self._jump(suspects[-1]) != side:
            self.dropped[DropReason.WRONG_STAMP] += len(suspects)
            suspects = []
        if side and not self._are_believed(suspects, frame):
            self._suspects[frame.camera] = [*suspects, frame]
            return
        if side < 0:
            self._drop_all(DropReason.CLOCK_JUMP)
            self._on_clock_jump()
        if len(suspects) > 1 and self._follows(frame, suspects[-1]):
            self.dropped[DropReason.WRONG_STAMP] += len(suspects) - 1
            suspects = suspects[-1:]
        for each in (*suspects, frame):
            self._accept(each)

    def _are_believed(self, suspects: Sequence[Frame], frame: Frame) -> bool:
        """Whether a frame shows that those before it, on its side, have the right stamps."""
        if len(suspects) + 1 >= MAX_SUSPECTS:
            return True  # whatever the camera's clock does now, it does it to stay
        return bool(suspects) and self._follows(frame, suspects[-1])

    def _follows(self, frame: Frame, earlier: Frame) -> bool:
        """Whether a stamp comes after another one of its camera, as soon as they do."""
        step_ns = frame.stamp_ns - earlier.stamp_ns
        return 0 < step_ns <= self._longest_step_ns(frame.camera)

    def _jump(self, frame: Frame) -> int:
        """-1 or 1 where the stamp is too far behind or ahead of the camera's last one, else 0."""
        last = self._last_stamp_ns.get(frame.camera)
        if last is None:
            return 0
        step_ns = frame.stamp_ns - last
        if step_ns < -self._settings.max_age_s * NS_PER_S:
            return -1
        return int(step_ns > self._longest_step_ns(frame.camera))

    def _longest_step_ns(self, camera: str) -> float:
        """Between two frames of a camera, before their stamps are doubted."""
        usual_ns = self._usual_step_ns.get(camera, 0)
        return max(self._settings.max_age_s * NS_PER_S, SLOWER * usual_ns)

    def _accept(self, frame: Frame) -> None:
        last = self._last_stamp_ns.get(frame.camera)
        if last is not None and frame.stamp_ns <= last:
            self.dropped[
                DropReason.DUPLICATE if frame.stamp_ns == last else DropReason.OUT_OF_ORDER
            ] += 1
            return
        if last is not None:
            self._usual_step_ns[frame.camera] = frame.stamp_ns - last
        if not self._last_stamp_ns:
            self._first_stamp_ns = frame.stamp_ns
        self._last_stamp_ns[frame.camera] = frame.stamp_ns
        self._synchronise(frame)

    def _suspect_frames(self) -> int:
        return sum(map(len, self._suspects.values()))

    @property
    def silent(self) -> tuple[str, ...]:
        """Cameras that windows do without: no frame for SILENT_SHARE of max_age_s of stamps."""
        newest_ns = max(self._last_stamp_ns.values(), default=0)
        limit_ns = newest_ns - SILENT_SHARE * self._settings.max_age_s * NS_PER_S
        last = self._last_stamp_ns
        return tuple(c for c in self._cameras if last.get(c, self._first_stamp_ns) < limit_ns)

    @property
    def waiting(self) -> int:
        """Frames that are held and that no window has used yet."""
        return self.ready + self.unpaired + self._suspect_frames()

    @property
    def ready(self) -> int:
        """Frames with their partners of other cameras that no window has used yet."""
        return sum(len(i.frames) for i in self._instants if not i.used)

    @property
    def unpaired(self) -> int:
        """Frames that still miss a partner."""
        return sum(len(i.frames) for i in self._pending)

    @property
    def step_s(self) -> float:
        """Time between the last two stamps of a camera, of the slowest one; 0 before."""
        return max(self._usual_step_ns.values(), default=0) / NS_PER_S

    def reject(self, reason: DropReason) -> None:
        """Count a frame that was received but could not be offered."""
        self.received += 1
        self.dropped[reason] += 1

    def discard(self, frame: Frame, reason: DropReason) -> None:
        """Forget a frame of the last window that turned out to be unusable."""
        for instant in self._instants:
            if instant.frames.get(frame.camera) is frame:
                self._instants.remove(instant)
                break
        self._in_window = [i for i in self._in_window if i.frames.get(frame.camera) is not frame]
        self.dropped[reason] += 1
        self.used -= 1

    def renew(self, stamp_ns: int) -> None:
        """The cameras still show at this time what they showed in the last window."""
        fresh = [instant for instant in self._instants if not instant.used]
        overlap = self._in_window[-self._settings.overlap :] if self._settings.overlap else []
        for instant in overlap:
            instant.shown_ns = max(instant.shown_ns, stamp_ns)
        self._instants = overlap + fresh

    def clear(self, reason: DropReason = DropReason.RESET) -> None:
        """Forget all frames; counters stay."""
        self._drop_all(reason)

    def take(self) -> Window | None:
        """The next window, or None while too few fresh instants are here."""
        self._forget_old()
        fresh = [i for i in self._instants if not i.used]
        if not fresh:
            return None
        cameras = fresh[-1].frames.keys()
        alike = [i for i in fresh if i.frames.keys() == cameras]
        overlap, room = [], self._settings.views
        for instant in reversed([i for i in self._instants if i.used]):
            if room - len(instant.frames) >= len(cameras):
                overlap.insert(0, instant)
                room -= len(instant.frames)
        count = room // len(cameras)
        if len(alike) < count:
            return None
        selection = overlap + _spread(alike, count)
        for instant in fresh:
            if any(instant is c for c in selection):
                instant.used = True
                self.used += len(instant.frames)
            else:
                self.dropped[DropReason.SUPERSEDED] += len(instant.frames)
        shared = min(self._settings.overlap, self._settings.views // len(cameras) - 1)
        self._instants = selection[-shared:] if shared else []
        self._in_window = selection
        self._window_id += 1
        frames = tuple(i.frames[c] for i in selection for c in self._cameras if c in i.frames)
        return Window(self._window_id, frames)

    def _synchronise(self, frame: Frame) -> None:
        """Add the frame to the instant it belongs to; keep the instant when it is complete."""
        slop_ns = self._settings.sync_slop_s * NS_PER_S
        for instant in self._pending:
            fits = abs(instant.stamp_ns - frame.stamp_ns) <= slop_ns
            if fits and frame.camera not in instant.frames:
                instant.frames[frame.camera] = frame
                break
        else:
            instant = _Instant(frame.stamp_ns, {frame.camera: frame})
        complete = instant.frames.keys() >= set(self._cameras) - set(self.silent)
        horizon_ns = frame.stamp_ns - self._settings.max_age_s * NS_PER_S
        limit_ns = instant.stamp_ns if complete else horizon_ns
        for earlier in [i for i in self._pending if i.stamp_ns < limit_ns]:
            self.dropped[DropReason.UNSYNCHRONISED] += len(earlier.frames)
        self._pending = [i for i in self._pending if i.stamp_ns >= limit_ns and i is not instant]
        if complete:
            self._keep(instant)
        else:
            self._pending.append(instant)

    def _keep(self, instant: _Instant) -> None:
        if self._instants and not self._far_enough(self._instants[-1], instant):
            self.dropped[DropReason.TOO_CLOSE] += len(instant.frames)
            return
        self._instants.append(instant)
        self._forget_old()
        fresh = [i for i in self._instants if not i.used]
        if len(fresh) > KEPT_WINDOWS * (self._settings.views // len(instant.frames)):
            # Thin out evenly: the spread over time matters more than any single frame.
            victim = fresh[len(fresh) // 2]
            self._instants = [i for i in self._instants if i is not victim]
            self.dropped[DropReason.SUPERSEDED] += len(victim.frames)

    def _far_enough(self, last: _Instant, instant: _Instant) -> bool:
        if instant.stamp_ns - last.stamp_ns < self._settings.min_gap_s * NS_PER_S:
            return False
        here, there = instant.position_m, last.position_m
        if self._settings.min_baseline_m <= 0 or here is None or there is None:
            return True
        return float(np.linalg.norm(here - there)) >= self._settings.min_baseline_m

    def _forget_old(self) -> None:
        """No window may reach further back than max_age_s from the newest instant."""
        if not self._instants:
            return
        limit_ns = self._instants[-1].stamp_ns - self._settings.max_age_s * NS_PER_S
        for instant in self._instants:
            if instant.until_ns < limit_ns and not instant.used:
                self.dropped[DropReason.TOO_OLD] += len(instant.frames)
        self._instants = [i for i in self._instants if i.until_ns >= limit_ns]

    def _drop_all(self, reason: DropReason) -> None:
        unused = [i for i in self._instants if not i.used] + self._pending
        self.dropped[reason] += sum(len(i.frames) for i in unused) + self._suspect_frames()
        self._suspects.clear()
        self._usual_step_ns.clear()
        self._pending, self._instants, self._in_window = [], [], []
        self._last_stamp_ns.clear()


def _spread(instants: list[_Instant], count: int) -> list[_Instant]:
    """`count` instants evenly spread over the list, the newest always among them."""
    n = len(instants)
    return [instants[(k + 1) * n // count - 1] for k in range(count)]
