# SPDX-License-Identifier: Apache-2.0
"""Responses to clients whose reader the server has not discovered yet."""

import contextlib
import threading
import time

import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy", reason="needs rclpy")

from g2vlm_ros.ros.rclpy_workarounds import SafeEntities  # noqa: E402

TIMEOUT_S = 30.0
UNKNOWN_TRIES = 2
"""How often a reader is not known yet when a response is sent."""


class UndiscoveredReader:
    """Sends as rmw_fastrtps does to a reader that is found only later: at first it waits 0.1 s,
    and nothing goes out."""

    def __init__(self, send):
        self._send, self.calls = send, 0

    def __call__(self, *arguments):
        self.calls += 1
        if self.calls <= UNKNOWN_TRIES:
            time.sleep(0.1)
        else:
            self._send(*arguments)


@pytest.fixture
def peers(ros):
    """A server's node and a client's, each a participant that a thread of its own spins."""
    from rclpy.executors import SingleThreadedExecutor

    from g2vlm_ros.ros.lifecycle import SafeLifecycleNode
    from g2vlm_ros.ros.run_node import Spinner

    with contextlib.ExitStack() as stack:
        nodes = []
        for name in ("server", "client"):
            context = ros.Context()
            ros.init(args=[], context=context)
            stack.callback(ros.try_shutdown, context=context)
            nodes.append(SafeLifecycleNode(name, context=context))
            stack.callback(nodes[-1].destroy_node)
            executor = SingleThreadedExecutor(context=context)
            executor.add_node(nodes[-1])
            stack.callback(Spinner(executor, lambda _: None).start().stop, 5.0)
        yield nodes


@pytest.fixture
def late_peers(monkeypatch, request):
    """`peers`, where the first responses of a service meet an UndiscoveredReader."""
    from rclpy.service import Service

    send = UndiscoveredReader(Service.send_response)
    monkeypatch.setattr(Service, "send_response", lambda *arguments: send(*arguments))
    return (*request.getfixturevalue("peers"), send)


def result_of(future, timeout_s=TIMEOUT_S):
    """The result of a future that another thread completes; None where it does not come."""
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    return future.result() if done.wait(timeout_s) else None


def deferred(node, kind, name, callback):
    from g2vlm_ros.ros.deferred_service import DeferredService

    def receive(request, client, reply):
        reply(callback(request, kind.Response()))

    return DeferredService(node, kind, name, receive)


@pytest.mark.parametrize("by", ["service", "deferred service", "lifecycle"])
def test_a_response_waits_for_the_reader_of_its_client(late_peers, by):
    from lifecycle_msgs.srv import GetState
    from std_srvs.srv import Trigger

    server, client, send = late_peers
    kind, name = (GetState, "server/get_state") if by == "lifecycle" else (Trigger, "late")
    if by != "lifecycle":
        make = deferred if by == "deferred service" else SafeEntities.create_service
        make(server, Trigger, "late", lambda _, response: response)
    asker = client.create_client(kind, name)
    assert asker.wait_for_service(TIMEOUT_S)
    assert result_of(asker.call_async(kind.Request())) is not None
    assert send.calls == UNKNOWN_TRIES + 1


def test_a_goal_is_accepted_of_a_client_whose_reader_is_late(peers):
    """rmw waited 0.1 s for it, and the response was lost; the result comes as well."""
    from g2vlm_ros.action import AnswerSpatialQuery
    from rclpy.action import GoalResponse

    from g2vlm_ros.ros.rclpy_workarounds import SafeActionClient, SafeActionServer

    def end(goal):
        goal.succeed()
        return AnswerSpatialQuery.Result(answer="yes")

    def accept(_goal):
        time.sleep(0.1)
        return GoalResponse.ACCEPT

    class DeafAtFirst(SafeActionClient):
        """The first response to a goal does not reach it."""

        deaf = True

        def take_data(self):
            responses = super().take_data()
            if self.deaf and responses.pop("goal", None) is not None:
                self.deaf = False
            return responses

    server, client = peers
    action = SafeActionServer(server, AnswerSpatialQuery, "late", end, goal_callback=accept)
    asker = DeafAtFirst(client, AnswerSpatialQuery, "late")
    assert asker.wait_for_server(TIMEOUT_S)
    handle = result_of(asker.send_goal_async(AnswerSpatialQuery.Goal(question="What?")))
    assert handle is not None and handle.accepted and not asker.deaf
    assert result_of(handle.get_result_async()).result.answer == "yes"
    action.destroy()
    asker.destroy()


def test_a_client_that_can_never_hear_is_named_and_given_up(peers, monkeypatch, capfd):
    """Its reader asks for more than the server's writer offers: they never match."""
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from std_srvs.srv import Trigger

    from g2vlm_ros.ros import late_response

    monkeypatch.setattr(late_response, "PAUSES_S", (0.01, 0.01))
    server, client = peers
    server.create_service(Trigger, "deaf", lambda _, response: response)
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    asker = client.create_client(Trigger, "deaf", qos_profile=latched)
    deadline, said = time.monotonic() + TIMEOUT_S, ""
    while "is dropped" not in said and time.monotonic() < deadline:
        # Its request goes out once the server's reader is known; nothing says when.
        future = asker.call_async(Trigger.Request())
        assert result_of(future, 0.5) is None
        said += capfd.readouterr().err
    assert "a response of deaf is dropped" in said and "QoS" in said
    normal = client.create_client(Trigger, "deaf")
    assert normal.wait_for_service(TIMEOUT_S)
    assert result_of(normal.call_async(Trigger.Request())) is not None


def test_late_responses_are_bounded_in_number(monkeypatch):
    from g2vlm_ros.ros import late_response

    monkeypatch.setattr(late_response, "MATCH_S", 0.0)  # none is sent for certain
    monkeypatch.setattr(late_response, "PAUSES_S", (1.0,))
    dropped = []

    def send(name):
        late_response.send_until_matched(lambda: None, lambda: dropped.append(name))

    for number in range(late_response.MAX_LATE + 1):
        send(number)
    assert dropped == [late_response.MAX_LATE], "the one too many, at once"
    for thread in threading.enumerate():
        if thread.name == "late response":
            thread.join(TIMEOUT_S)
    assert sorted(dropped) == list(range(late_response.MAX_LATE + 1))
    send("again")
    assert "again" not in dropped, "a thread is free for it"
