# SPDX-License-Identifier: Apache-2.0
"""Why frames come and no windows do: they are too few, or their stamps do not fit together."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable

from g2vlm_ros.pipeline import Counts
from g2vlm_ros.records import DropReason
from g2vlm_ros.settings import Settings, WindowSettings

REMEMBERED_S = 30.0
"""Span over which the rate of frames is measured."""
MIN_UNUSED = 8
"""Frames without a window, within the first ten, before it is said why."""
MIN_SHARE = 0.5
"""Of these frames, dropped for one reason, which is then the cause."""
JUMPS = (DropReason.OUT_OF_ORDER, DropReason.WRONG_STAMP, DropReason.CLOCK_JUMP)
MIN_JUMPS = 0.25
"""Share of frames whose stamp went back or far ahead, from which on other drops follow from it."""
MIN_STARVED_S = 3.0
"""How long frames may be too close to each other: a quick camera's are, between two windows."""


class FrameRate:
    """How often frames come, from the counts of several reports; for cameras slower than them."""

    def __init__(self, settings: Settings):
        self._window, self._cameras = settings.window, len(settings.cameras)
        self._frames: deque[tuple[float, int]] = deque()
        self._newest_s = -math.inf

    def update(self, now_s: float, received: int) -> None:
        """One report: frames received so far."""
        if self._frames and now_s < self._frames[-1][0]:
            self._frames.clear()
        if not self._frames or received > self._frames[-1][1]:
            self._newest_s = now_s
        self._frames.append((now_s, received))
        while now_s - self._frames[0][0] > REMEMBERED_S:
            self._frames.popleft()

    @property
    def period_s(self) -> float:
        """Mean seconds between two frames of a camera; infinite where none came."""
        if not self._frames:
            return math.inf
        (first_s, before), (last_s, now) = self._frames[0], self._frames[-1]
        frames = (now - before) / self._cameras
        return (last_s - first_s) / frames if frames > 0 else math.inf

    @property
    def silent_s(self) -> float:
        """Seconds between the last report that brought frames and the newest one."""
        return self._frames[-1][0] - self._newest_s if self._frames else math.inf

    @property
    def remembered_s(self) -> float:
        """Seconds that the reports span."""
        return self._frames[-1][0] - self._frames[0][0] if self._frames else 0.0

    def remark(self) -> str:
        """Why windows cannot fill at this rate; empty where they can."""
        instants = self._window.views // self._cameras
        needed_s = (instants - 1) * self.period_s
        if not math.isfinite(needed_s) or needed_s <= self._window.max_age_s:
            return ""
        if self.remembered_s < 2 * self.period_s:
            return ""
        return (
            f"frames come every {self.period_s:.1f} s: {instants} views need window.max_age_s "
            f"above {needed_s:.0f} (it is {self._window.max_age_s:g}), or fewer views"
        )


class UnusedFrames:
    """The reason for which most frames since the last window were dropped.

    clock(): seconds that never go back.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic):
        self._window, self._cameras = settings.window, len(settings.cameras)
        self._clock = clock
        self._now = self._at_window = Counts(0, 0, {}, 0)
        self._since_s = clock()

    def update(self, counts: Counts) -> None:
        """One report: what came and what became of it so far."""
        self._now = counts
        if counts.windows != self._at_window.windows or self._window_fills():
            self._at_window, self._since_s = counts, self._clock()

    def remark(self) -> str:
        """Why no window can be made of the frames that come; empty where one can."""
        received = self._now.received - self._at_window.received
        if received < MIN_UNUSED:
            return ""
        drops = Counter({reason: self._dropped(reason) for reason in _CAUSES})
        drops[DropReason.UNSYNCHRONISED] += self._now.unpaired
        jumps = sum(self._dropped(reason) for reason in JUMPS)
        if jumps >= MIN_JUMPS * received:
            return (
                f"{jumps} of {received} frames since the last window: stamps go to and fro; do "
                "two nodes publish on one camera's topic (ros2 topic info -v)?"
            )
        ((reason, dropped),) = drops.most_common(1)
        if dropped < MIN_SHARE * received:
            return ""
        if reason is DropReason.TOO_CLOSE and self._clock() - self._since_s < self._patience_s():
            return ""
        cause = _CAUSES[reason](self._window, self._now.step_s)
        return f"{dropped} of {received} frames since the last window: {cause}"

    def _dropped(self, reason: DropReason) -> int:
        return self._now.dropped.get(reason, 0) - self._at_window.dropped.get(reason, 0)

    def _window_fills(self) -> bool:
        """Whether frames wait that a window can be made of, as soon as somebody wants one."""
        overlap = self._window.overlap if self._now.windows else 0
        return self._now.ready >= self._window.views - overlap * self._cameras

    def _patience_s(self) -> float:
        return max(MIN_STARVED_S, 2 * self._window.views * self._window.min_gap_s)


def _too_close(window: WindowSettings, step_s: float) -> str:
    if window.min_baseline_m > 0 and step_s >= window.min_gap_s:
        return (
            "odometry_topic says that the robot has not moved by window.min_baseline_m = "
            f"{window.min_baseline_m:g} m; where it has, odometry is dead"
        )
    return (
        f"stamps are {step_s * 1e3:.3g} ms apart, and those within window.min_gap_s = "
        f"{window.min_gap_s:g} s count once; does the driver stamp in another unit?"
    )


def _too_old(window: WindowSettings, step_s: float) -> str:
    return (
        f"stamps are {step_s:.1f} s apart: {window.views} views do not fit into "
        f"window.max_age_s = {window.max_age_s:g} s; raise it, or take fewer views"
    )


def _unsynchronised(window: WindowSettings, _step_s: float) -> str:
    return (
        "no frames of all cameras are within window.sync_slop_s = "
        f"{window.sync_slop_s:g} s of each other; trigger the cameras together, or raise it"
    )


_CAUSES: dict[DropReason, Callable[[WindowSettings, float], str]] = {
    DropReason.TOO_CLOSE: _too_close,
    DropReason.TOO_OLD: _too_old,
    DropReason.UNSYNCHRONISED: _unsynchronised,
    DropReason.DUPLICATE: lambda *_: (
        "the stamp stays the same; the driver must set header.stamp anew for each image"
    ),
    DropReason.STAMP: lambda *_: (
        "the stamp is 0 or negative; the driver must set header.stamp to the time of acquisition"
    ),
    DropReason.COVERED: lambda *_: "the camera shows nothing: it is covered, or in the dark",
    DropReason.BLURRED: lambda *_: "images are blurred; is the lens dirty, or out of focus?",
    DropReason.FROZEN: lambda *_: "the camera sends one image again and again; restart it",
    DropReason.ENCODING: lambda *_: "the encoding is not one that is read; the log names it",
    DropReason.SIZE: lambda *_: "the size is not one that is taken; the log names it",
    DropReason.TRUNCATED: lambda *_: "images have fewer bytes than they say",
    DropReason.UNDECODABLE: lambda *_: "images cannot be decoded; the log says why",
}
"""What to say of a reason, by the settings and the seconds between two stamps of a camera."""
