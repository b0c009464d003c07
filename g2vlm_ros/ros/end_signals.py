# SPDX-License-Identifier: Apache-2.0
"""What asks a process to end: SIGINT, SIGTERM, a closed terminal, a launch that is gone."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from pathlib import Path

END_WITH_PARENT = "G2VLM_ROS_END_WITH_PARENT"
"""Environment variable: 1 where the process ends with the one that started it. `ros2 launch` dies
of SIGTERM and SIGHUP without a word to its nodes."""
NODES = ("perception", "replay", "sim_camera", "viewer")
"""Executables in lib/g2vlm_ros/ whose main() catches signals, see run_node.py."""
ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class EndSignals:
    """Becomes true once the process is asked to end; a second signal interrupts no clean-up.

    Signals are caught in the main thread only. A SIGHUP that is ignored, as `nohup` has it, stays
    ignored.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        self.number = 0
        """Of the first signal; 0 where none has come."""
        self.again = False
        """Whether a second one has come."""
        self._parent = os.getppid() if os.environ.get(END_WITH_PARENT) == "1" else 0
        if threading.current_thread() is threading.main_thread():
            for number in ASKING:
                if signal.getsignal(number) != signal.SIG_IGN or number != signal.SIGHUP:
                    signal.signal(number, self._on_signal)
            atexit.register(leave_signals_to_the_system)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end to be asked for, at most so long; whether it is."""
        return self._asked.wait(timeout_s) or self.asked

    @property
    def asked(self) -> bool:
        """Whether the process is to end."""
        if self._parent and os.getppid() != self._parent:
            self._asked.set()
        return self._asked.is_set()

    @property
    def exit_code(self) -> int:
        """As a shell calls a process that a signal ended; 0 where none did."""
        return 128 + self.number if self.number else 0

    def _on_signal(self, number: int, _frame: object) -> None:
        self.again, self.number = self.number != 0, self.number or number
        if number == signal.SIGHUP:
            discard_output()
        self._asked.set()


def end_quietly_while_importing() -> None:
    """A SIGINT while a node's executable imports its libraries, which takes seconds, ends it
    without a traceback: there is nothing to clean up yet. EndSignals takes over."""
    program = Path(sys.argv[0] if sys.argv else "")
    if program.parts[-3:-1] == ("lib", "g2vlm_ros") and program.name in NODES:
        signal.signal(signal.SIGINT, lambda *_: os._exit(0))


def discard_output() -> None:
    """The terminal is gone: writing to it would fail, in the middle of a clean-up."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None and stream.isatty():
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def leave_signals_to_the_system() -> None:
    """While the interpreter ends, SIGINT is ignored, and SIGTERM and SIGHUP end it at once.

    A handler of Python's would be replaced by death through the signal.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
