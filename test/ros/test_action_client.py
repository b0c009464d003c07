# SPDX-License-Identifier: Apache-2.0
"""An action client that one thread asks and another spins loses no response, however quick."""

from __future__ import annotations

import threading
import time

import pytest

pytestmark = pytest.mark.ros
rclpy = pytest.importorskip("rclpy", reason="needs ROS 2")

from g2vlm_ros.action import AnswerSpatialQuery  # noqa: E402
from rclpy.action import ActionServer  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.task import Future  # noqa: E402

from g2vlm_ros.ros.rclpy_workarounds import SafeActionClient  # noqa: E402

RESPONSE_S = 0.3
"""The sender rests so long after a request, longer than a response takes."""


@pytest.fixture
def client(monkeypatch):
    """A client of an action that ends at once, spun by a thread of its own.

    What it asks rests before rclpy has a future to note.
    """

    def late_future(*arguments, **named):
        time.sleep(RESPONSE_S)
        return Future(*arguments, **named)

    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    nodes = [rclpy.create_node(name, context=context) for name in ("asked", "asker")]

    def end(goal):
        goal.succeed()
        return AnswerSpatialQuery.Result(answer="yes")

    server = ActionServer(nodes[0], AnswerSpatialQuery, "answer", end)
    asker = SafeActionClient(nodes[1], AnswerSpatialQuery, "answer")
    monkeypatch.setattr("rclpy.action.client.Future", late_future)
    over = threading.Event()

    def spin(node):
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        while not over.is_set():
            executor.spin_once(timeout_sec=0.05)
        executor.shutdown()

    threads = [threading.Thread(target=spin, args=[node]) for node in nodes]
    for thread in threads:
        thread.start()
    assert asker.wait_for_server(20)
    yield asker
    over.set()
    for thread in threads:
        thread.join()
    for each in (server, asker, *nodes):
        each.destroy() if each in (server, asker) else each.destroy_node()
    rclpy.try_shutdown(context=context)


def done(future):
    """Its result; fails where it does not come."""
    came = threading.Event()
    future.add_done_callback(lambda _: came.set())
    assert came.wait(10), "the response was lost"
    return future.result()


def test_responses_that_come_before_the_sender_goes_on_are_kept(client):
    heard = []
    sent = client.send_goal_async(AnswerSpatialQuery.Goal(), feedback_callback=heard.append)
    handle = done(sent)
    assert handle.accepted
    assert done(handle.get_result_async()).result.answer == "yes"
    assert done(handle.cancel_goal_async()).goals_canceling == []
