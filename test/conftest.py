# SPDX-License-Identifier: Apache-2.0
"""ROS isolation of a test run, and the `ros` fixture and marker.

Set before rclpy is imported: a domain of its own, discovery on this machine only, Fast DDS as
g2vlm_tests/fastdds.xml says, log files in a temporary folder. Nodes in subprocesses inherit it.
Each process of a parallel run (`-n`) is a run.
"""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from types import ModuleType

import pytest
from g2vlm_tests.dds_domain import isolate

claim = isolate()
log_folder = tempfile.mkdtemp(prefix="g2vlm_ros_test_")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the executables do
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one process for each core runs tests
os.environ["ROS_LOG_DIR"] = log_folder


def pytest_unconfigure() -> None:
    claim.close()
    shutil.rmtree(log_folder, ignore_errors=True)


def missing_ros() -> str:
    """Why tests over ROS cannot run here; empty if they can."""
    for module, remedy in (
        ("rclpy", "run `make test`, or source a ROS 2 distribution"),
        ("tf2_msgs.msg", "run `make test`, or install the ROS package tf2_msgs"),
        ("g2vlm_ros.msg", "run `make test`, or build with colcon and source install/setup.bash"),
    ):
        try:
            importlib.import_module(module)
        except ImportError as error:
            return f"cannot import {module} ({error}): {remedy}"
    return ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("ros") and (reason := missing_ros()):
        pytest.skip(reason)


@pytest.fixture
def ros() -> Iterator[ModuleType]:
    """rclpy, initialised for one test; skips the test with the reason where ROS is missing."""
    if reason := missing_ros():
        pytest.skip(reason)
    rclpy = importlib.import_module("rclpy")
    # rclpy's handlers would swallow the SIGTERM that is to end pytest; a program that a test ran
    # in this process may have left them.
    rclpy.signals.uninstall_signal_handlers()
    rclpy.init(signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
    yield rclpy
    rclpy.try_shutdown()
