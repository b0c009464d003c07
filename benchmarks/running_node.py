# SPDX-License-Identifier: Apache-2.0
"""The perception node in this process, active and spun by threads, as long as a block runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def running_node(settings: Mapping[str, Any], threads: int = 16) -> Iterator[Any]:
    """The node, a PerceptionNode; settings: its parameters. rclpy is begun here and ended."""
    import rclpy
    from rclpy.executors import MultiThreadedExecutor
    from rclpy.parameter import Parameter

    from g2vlm_ros.ros.perception_node import PerceptionNode

    rclpy.init(args=[])
    overrides = [Parameter(name, value=value) for name, value in settings.items()]
    node = PerceptionNode(parameter_overrides=overrides)
    executor = MultiThreadedExecutor(num_threads=threads)
    executor.add_node(node)
    spinner = threading.Thread(target=executor.spin, daemon=True)
    spinner.start()
    try:
        node.trigger_configure()
        node.trigger_activate()
        yield node
    finally:
        node.trigger_shutdown()
        executor.shutdown()
        spinner.join(timeout=5)
        rclpy.try_shutdown()
