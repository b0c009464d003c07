# SPDX-License-Identifier: Apache-2.0
"""A node as a process of its own, for tests: its output, its signals, its states."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PERCEPTION = [sys.executable, "-m", "g2vlm_ros.ros.perception_node", "--ros-args"]


class NodeProcess:
    """A node's process; its output is read to the end. environment: beside this process's."""

    def __init__(self, *command, environment=None, **options):
        paths = os.pathsep.join((str(ROOT), str(ROOT / "test")))
        fixed = {"PYTHONUNBUFFERED": "1", "PYTHONPATH": paths}
        self.popen = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **fixed, **(environment or {})},
            **options,
        )

    def wait_for(self, text):
        """What it printed up to the first line with this text."""
        lines = []
        for line in self.popen.stdout:
            lines.append(line)
            if text in line:
                return "".join(lines)
        raise AssertionError(f"no '{text}' in:\n{''.join(lines)}")

    def signal(self, *numbers, apart_s=0.05):
        """Send signals, each so long after the one before."""
        for number in numbers:
            self.popen.send_signal(number)
            time.sleep(apart_s)

    def end(self, timeout_s=20):
        """Its exit code, and what else it printed."""
        output, _ = self.popen.communicate(timeout=timeout_s)
        return self.popen.returncode, output


def change_state(node, transition_id):
    """Whether a lifecycle node made a transition, asked by a participant of its own."""
    import rclpy
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState

    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    asker = rclpy.create_node("asker", context=context)
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(asker)
    try:
        client = asker.create_client(ChangeState, f"{node}/change_state")
        assert client.wait_for_service(60)
        request = ChangeState.Request(transition=Transition(id=transition_id))
        future = client.call_async(request)
        executor.spin_until_future_complete(future, 60)
        return future.result().success
    finally:
        asker.destroy_node()
        rclpy.shutdown(context=context)
