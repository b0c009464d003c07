# SPDX-License-Identifier: Apache-2.0
"""Wait sets that sleep through what arrives, as rmw_fastrtps's may on a busy machine."""

from __future__ import annotations

import contextlib
import threading
import time

FOR_EVER_S = 60.0


@contextlib.contextmanager
def lost_wakeups(monkeypatch):
    """Threads that are started inside are never woken: they look when their time is over."""
    from rclpy.impl.implementation_singleton import rclpy_implementation

    sleepers, start = set(), threading.Thread.start

    class SleepyWaitSet(rclpy_implementation.WaitSet):
        def wait(self, timeout_nsec):
            if threading.current_thread() not in sleepers:
                return super().wait(timeout_nsec)
            time.sleep(FOR_EVER_S if timeout_nsec < 0 else timeout_nsec * 1e-9)
            return super().wait(0)

    def start_sleeper(thread):
        sleepers.add(thread)
        start(thread)

    monkeypatch.setattr(rclpy_implementation, "WaitSet", SleepyWaitSet)
    monkeypatch.setattr(threading.Thread, "start", start_sleeper)
    try:
        yield
    finally:
        monkeypatch.setattr(threading.Thread, "start", start)
