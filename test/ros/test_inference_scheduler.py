# SPDX-License-Identifier: Apache-2.0
"""The device's thread is shared fairly: turns, bounds, shares, and room between tokens."""

import threading
import time

import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy", reason="the module lies in g2vlm_ros.ros")

from g2vlm_ros.ros.inference_scheduler import BusyError, InferenceScheduler  # noqa: E402

TIMEOUT_S = 60.0
"""For what takes no time: a machine that does much else may rest a thread for seconds."""


@pytest.fixture
def device():
    scheduler = InferenceScheduler(window_share=0.3, max_questions=4)
    yield scheduler
    scheduler.shutdown()


class Gate:
    """A job that runs until it is let go."""

    def __init__(self, device):
        self.entered, self._open = threading.Event(), threading.Event()
        self.future = device.submit(self)
        assert self.entered.wait(TIMEOUT_S)

    def __call__(self):
        self.entered.set()
        assert self._open.wait(TIMEOUT_S)

    def open(self):
        self._open.set()


def test_lanes_take_turns_and_keep_their_own_order(device):
    gate, order = Gate(device), []
    for lane, number in (("a", 1), ("a", 2), ("a", 3), ("b", 1)):
        device.ask(lane, lambda job=(lane, number): order.append(job), quick=True)
    gate.open()
    device.submit(lambda: None).result(TIMEOUT_S)
    device.shutdown()
    assert order == [("a", 1), ("b", 1), ("a", 2), ("a", 3)]


def test_more_questions_than_the_bound_are_refused_and_none_is_lost(device):
    gate, answered = Gate(device), []
    futures = [device.ask("", lambda k=k: answered.append(k), quick=True) for k in range(4)]
    with pytest.raises(BusyError):
        device.ask("", lambda: None, quick=True)
    assert futures[3].cancel()
    futures[3] = device.ask("", lambda: answered.append(4), quick=True)
    gate.open()
    for future in futures:
        future.result(TIMEOUT_S)
    assert answered == [0, 1, 2, 4]


def test_a_failure_reaches_its_asker_and_nobody_else(device):
    failed = device.ask("", lambda: 1 / 0, quick=True)
    with pytest.raises(ZeroDivisionError):
        failed.result(TIMEOUT_S)
    assert device.submit(lambda: 7).result(TIMEOUT_S) == 7


def test_quick_questions_and_due_windows_pass_a_slow_question_between_tokens(device):
    order = []

    def slow():
        device.ask("quick", lambda: order.append("quick"), quick=True)
        device.ask("slow", lambda: order.append("other slow"), quick=False)
        device.submit(order.append, "window")
        for token in range(3):
            time.sleep(0.02)
            device.yield_to_others()
            order.append(token)

    device.ask("slow", slow, quick=False).result(TIMEOUT_S)
    device.submit(lambda: None).result(TIMEOUT_S)
    device.shutdown()
    assert max(order.index("quick"), order.index("window")) < order.index(1)
    assert order.index("other slow") == 5, "slow ones wait until it has ended"


def test_what_passes_does_not_let_others_pass(device):
    depth = []

    def nested():
        device.ask("b", lambda: depth.append("too deep"), quick=True)
        device.yield_to_others()
        depth.append("nested")

    def slow():
        device.ask("a", nested, quick=True)
        device.yield_to_others()

    device.ask("slow", slow, quick=False).result(TIMEOUT_S)
    device.shutdown()
    assert depth == ["nested", "too deep"]


def test_windows_keep_their_share_under_many_questions():
    device, spent = InferenceScheduler(window_share=0.5, max_questions=64), {"w": 0, "q": 0}
    gate = Gate(device)

    def work(kind):
        spent[kind] += 1
        time.sleep(0.003)
        if sum(spent.values()) < 60:
            again(kind)

    def again(kind):
        if kind == "w":
            device.submit(work, "w")
        else:
            device.ask("", lambda: work("q"), quick=True)

    for _ in range(4):
        again("w")
        again("q")
    gate.open()
    deadline = time.monotonic() + 10
    while sum(spent.values()) < 60 and time.monotonic() < deadline:
        time.sleep(0.01)
    device.shutdown()
    assert 20 <= spent["w"] <= 45 and spent["q"] >= 15


def test_a_rest_gives_no_credit():
    """A minute of questions alone does not let windows take the device for a minute."""
    device, order = InferenceScheduler(window_share=0.5, max_questions=64), []
    device.ask("", lambda: time.sleep(0.2), quick=True).result(TIMEOUT_S)
    gate = Gate(device)
    for _ in range(6):
        device.submit(lambda: (order.append("w"), time.sleep(0.01)))
        device.ask("", lambda: (order.append("q"), time.sleep(0.01)), quick=True)
    gate.open()
    device.shutdown()
    assert "q" in order[:4], order


def test_a_job_that_wants_to_end_the_process_is_logged_and_the_next_one_runs():
    logged = []
    device = InferenceScheduler(log_failure=lambda what, error: logged.append(error))

    def leave():
        raise SystemExit("a library wants to end the process")

    with pytest.raises(SystemExit):
        device.submit(leave).result(TIMEOUT_S)
    assert device.submit(lambda: 7).result(TIMEOUT_S) == 7
    assert [str(error) for error in logged] == ["a library wants to end the process"]
    assert device.shutdown(TIMEOUT_S)
