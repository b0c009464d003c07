# SPDX-License-Identifier: Apache-2.0
"""What services and questions need of the node: windows, whether it is active, a log."""

from __future__ import annotations

from typing import Protocol

from g2vlm_ros.pipeline import PerceivedWindow


class WindowSource(Protocol):
    """The node as services see it; any thread unless a method says otherwise."""

    def newest_window(self) -> tuple[PerceivedWindow, float] | None:
        """The newest window and its age in seconds, or None before the first."""

    def why_no_window(self) -> str:
        """What keeps windows from being made, in words; where to look if nothing is known."""

    def run_window(self) -> None:
        """Make the next window, if frames for one are here (device's thread)."""

    def refresh(self, timeout_s: float) -> None:
        """Make the next window although nobody listens, and wait for it."""

    def is_active(self) -> bool:
        """Whether requests are served."""

    def log_failure(self, what: str, error: BaseException) -> None:
        """Report what should not have happened."""
