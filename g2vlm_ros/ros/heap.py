# SPDX-License-Identifier: Apache-2.0
"""Gives the system back what the process has freed, so that resident memory is what is in use.

A window allocates and frees tens of MiB on several threads. glibc keeps freed blocks in an arena
for each of them, up to eight for each core, wherever in it they lie: after ten minutes the demo's
node had 519 MiB resident with 225 in use. `trim` gives whole pages back, in 20 ms; what small
blocks pin grows on with every arena, so that there are MAX_ARENAS of them.
"""

from __future__ import annotations

import ctypes

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.timer import Timer

PERIOD_S = 10.0
"""0.2 % of a core, and what piles up meanwhile is small."""


MAX_ARENAS = 2
"""In the soak the node rose from 314 to 354 MiB between windows 326 and 1488 with sixteen arenas,
from 306 to 315 with two, at as many windows a minute."""
M_ARENA_MAX = -8
"""Of `mallopt` (malloc.h)."""


def limit_arenas() -> bool:
    """Let threads share MAX_ARENAS; False where the C library has no such option.

    Before there are threads: arenas that exist stay.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(M_ARENA_MAX, MAX_ARENAS))


def trim() -> bool:
    """Return free pages of all arenas; False where the C library has no such function."""
    try:
        malloc_trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return False
    malloc_trim(ctypes.c_size_t(0))
    return True


def trim_by_and_by(node: Node) -> Timer:
    """A timer of the node that trims, in every state and whatever the simulated time does."""
    return node.create_timer(
        PERIOD_S,
        trim,
        callback_group=MutuallyExclusiveCallbackGroup(),
        clock=Clock(clock_type=ClockType.STEADY_TIME),
    )
