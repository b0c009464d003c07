# SPDX-License-Identifier: Apache-2.0
"""A sensor beside the cameras that contributes nothing says so: silence is a bug."""

from __future__ import annotations

from collections.abc import Callable

FRAMES_BEFORE_WARNING = 8
"""Frames in a row without a match, within the first ten, before it is said."""


def printable(text: str) -> str:
    """The text without what would forge a line of the log, or command a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class UnmatchedFrames:
    """Counts frames in a row that a sensor has nothing for; warn gets the reason."""

    def __init__(self, warn: Callable[[str], None]):
        self._warn = warn
        self._in_a_row = 0

    def note(self, matched: bool, reason: Callable[[], str]) -> None:
        """One frame more; the reason is said at the FRAMES_BEFORE_WARNING-th and every time on."""
        self._in_a_row = 0 if matched else self._in_a_row + 1
        if self._in_a_row >= FRAMES_BEFORE_WARNING:
            self._warn(reason())
