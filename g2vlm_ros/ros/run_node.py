# SPDX-License-Identifier: Apache-2.0
"""The life of a node's process: one main() for all nodes of the package.

A callback that fails is logged and counted, and the node goes on. SIGINT, SIGTERM and SIGHUP,
however often they come, end the process in order while its context is still valid; what does not
end within END_S is cut off.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import rclpy
from rclpy.exceptions import NameValidationException
from rclpy.executors import (
    Executor,
    ExternalShutdownException,
    MultiThreadedExecutor,
    ShutdownException,
    SingleThreadedExecutor,
)
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from g2vlm_ros.ros.end_signals import EndSignals
from g2vlm_ros.ros.inference_scheduler import DEVICE_THREAD
from g2vlm_ros.ros.rclpy_workarounds import drain
from g2vlm_ros.ros.start_errors import SecurityError, start_errors

END_S = 4.5
"""From the first signal to the end of the process at the latest; `ros2 launch` waits 5 s between
SIGINT, SIGTERM and SIGKILL."""
POLL_S = 0.1
"""How often the main thread looks whether the node has ended by itself."""
MAX_FAILURES_IN_A_ROW = 100
"""An executor that fails this often without one success in between will not recover."""
PAUSE_S = 0.02
"""Between two failures in a row, so that a lasting one does not occupy a core."""

AnyNode = TypeVar("AnyNode", bound=Node)


class Spinner:
    """Spins an executor on a thread of its own and outlives callbacks that raise.

    on_failure: called with each exception that reaches the executor.
    """

    def __init__(self, executor: Executor, on_failure: Callable[[Exception], None]):
        self.executor = executor
        self.failures = 0
        """Exceptions that reached the executor so far."""
        self._on_failure = on_failure
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._spin, name="executor", daemon=True)

    def start(self) -> Spinner:
        """Begin to spin."""
        self._thread.start()
        return self

    @property
    def alive(self) -> bool:
        """Whether callbacks are still run."""
        return self._thread.is_alive()

    def stop(self, timeout_s: float) -> bool:
        """Stop spinning and shut the executor down; False where a callback still runs."""
        self._stopping.set()
        self.executor.shutdown(timeout_sec=timeout_s)
        self._thread.join(timeout_s)
        for error in drain(self.executor, timeout_s):
            self._on_failure(error)
        return not self._thread.is_alive()

    def _spin(self) -> None:
        in_a_row = 0
        while not self._stopping.is_set() and self.executor.context.ok():
            try:
                self.executor.spin_once()
                in_a_row = 0
            except (ExternalShutdownException, ShutdownException):
                return
            except Exception as error:
                if self._stopping.is_set() or not self.executor.context.ok():
                    return
                self.failures += 1
                in_a_row += 1
                self._on_failure(error)
                if in_a_row >= MAX_FAILURES_IN_A_ROW:
                    return
                self._stopping.wait(PAUSE_S)


def log_failure(node: Node) -> Callable[[Exception], None]:
    """Logs what escaped a callback of a node, and counts it where the node does so."""

    def report(error: Exception) -> None:
        text = "".join(traceback.format_exception(error))
        node.get_logger().error(f"a callback failed: {text}", throttle_duration_sec=5.0)
        count = getattr(node, "count_failure", None)
        if count is not None:
            count(error)

    return report


def run(
    name: str,
    make_node: Callable[[], AnyNode],
    arguments: list[str] | None = None,
    *,
    threads: int = 1,
    begin: Callable[[AnyNode], None] | None = None,
    ended: Callable[[AnyNode], bool] = lambda node: False,
    end: Callable[[AnyNode], bool | None] = lambda node: None,
    exit_code: Callable[[AnyNode], int] = lambda node: 0,
) -> int:
    """Run a node until a signal comes or it has `ended`; returns the exit code of the process.

    begin: what the node does at first, on a thread of its own while it spins already. end: called
    while the node still spins and its context is valid; False where something runs that nobody
    can wait for, and the process ends there and then. Exit code 2, with one sentence in the log,
    where the node cannot be made (SettingError, ValueError, OSError, RuntimeError, a name that is
    none of ROS); 1 where its executor gave up.
    """
    signals = EndSignals()
    try:
        with start_errors():
            rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
            node = make_node()
    except SecurityError as error:
        # Without a context there is no logger of ROS yet.
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        rclpy.try_shutdown()
        return 2
    except (ValueError, OSError, RuntimeError, NameValidationException) as error:
        rclpy.logging.get_logger(name).fatal(" ".join(str(error).split()))
        rclpy.try_shutdown()
        return 2
    executor = MultiThreadedExecutor(threads) if threads > 1 else SingleThreadedExecutor()
    executor.add_node(node)
    spinner = Spinner(executor, log_failure(node)).start()
    if begin is not None:
        threading.Thread(target=begin, args=[node], name="begin", daemon=True).start()
    while not signals.wait(POLL_S) and spinner.alive and not ended(node):
        pass
    gave_up = not spinner.alive and rclpy.ok() and not signals.asked
    watchdog = threading.Timer(END_S, _cut_off, [name])
    watchdog.daemon = True
    watchdog.start()
    if _attempt(lambda: end(node)) is False:
        _leave()
    for step in (lambda: spinner.stop(1.0), node.destroy_node):
        _attempt(step)
    rclpy.try_shutdown()
    code = 1 if gave_up else exit_code(node)
    if not _callbacks_running(executor):
        watchdog.cancel()
        if _device_running():
            _leave(code)
    return code


def _attempt(step: Callable[[], Any]) -> Any:
    """One step of the end; that it failed must not keep the next from being done."""
    try:
        return step()
    except Exception:
        traceback.print_exc()
        return None


def _callbacks_running(executor: Executor) -> bool:
    """Whether a thread of the executor's pool would keep the process from ending."""
    pool = getattr(executor, "_executor", None)
    if pool is None:
        return False
    pool.shutdown(wait=False, cancel_futures=True)
    threads = list(getattr(pool, "_threads", ()))
    for thread in threads:
        thread.join(0.5)
    return any(thread.is_alive() for thread in threads)


def _device_running() -> bool:
    """Whether a job still runs on the device; C++ would abort where the interpreter ends beside
    it."""
    return any(thread.name == DEVICE_THREAD for thread in threading.enumerate())


def _leave(code: int = 0) -> None:
    """End the process without taking down what still runs in it; nothing of it is half written."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _cut_off(name: str) -> None:
    """End the process at once: something that does not come back keeps it from ending."""
    message = f"{name}: does not end by itself within {END_S} s; cut off"
    print(message, file=sys.stderr, flush=True)
    os._exit(1)
