# SPDX-License-Identifier: Apache-2.0
"""Clients told apart by their counting, deadlines by a clock of our own, errors of clocks."""

import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy", reason="needs rclpy")

from g2vlm_ros.ros.deferred_service import MAX_CLIENTS, ClientTracker  # noqa: E402
from g2vlm_ros.ros.inference_scheduler import BusyError, InferenceScheduler  # noqa: E402
from g2vlm_ros.ros.question import Deadline  # noqa: E402
from g2vlm_ros.ros.service_errors import RequestError, check_age, one_line  # noqa: E402


def test_a_client_that_floods_is_one_client_and_others_are_others():
    tracker = ClientTracker()
    flood = {tracker.client_of(number) for number in range(1, 500)}
    assert len(flood) == 1
    quiet = [tracker.client_of(number) for number in (1, 2)]
    flood |= {tracker.client_of(number) for number in range(500, 600)}
    quiet += [tracker.client_of(number) for number in (3, 4, 5)]
    assert len(flood) == 1 and len(set(quiet)) == 1 and not flood & set(quiet)


def test_two_clients_at_one_number_count_as_two():
    tracker = ClientTracker()
    tracker.client_of(1)
    tracker.client_of(1)
    assert len({tracker.client_of(2), tracker.client_of(2)}) == 2


def test_clients_that_come_and_go_are_bounded():
    tracker = ClientTracker()
    assert len({tracker.client_of(1) for _ in range(3 * MAX_CLIENTS)}) == 3 * MAX_CLIENTS
    assert tracker.clients() == MAX_CLIENTS


def test_a_full_queue_of_one_client_leaves_room_for_another_and_its_turn():
    import threading

    device, gate, order = InferenceScheduler(max_questions=3), threading.Event(), []
    try:
        device.submit(lambda: gate.wait(20))
        waiting = [device.ask("flood", lambda k=k: order.append(k), quick=True) for k in range(3)]
        with pytest.raises(BusyError, match="this client"):
            device.ask("flood", lambda: None, quick=True)
        other = device.ask("other", lambda: order.append("other"), quick=True)
        gate.set()
        for future in (*waiting, other):
            future.result(20)
        assert order.index("other") <= 1, "its turn comes after one of the flood"
    finally:
        gate.set()
        device.shutdown()


def test_a_deadline_is_over_when_its_time_is():
    now = [100.0]
    deadline = Deadline(10.0, clock=lambda: now[0])
    now[0] += 8.0
    assert not deadline.over() and deadline.over(more_s=3.0)
    now[0] += 2.5
    assert deadline.over() and deadline.elapsed_s() == pytest.approx(10.5)
    fresh = Deadline(10.0, clock=lambda: now[0])
    fresh.give_up()
    assert fresh.over() and Deadline(float("nan")).over()
    assert Deadline(10.0, cancelled=lambda: True).over()


@pytest.mark.parametrize(
    ("age_s", "max_age_s", "words"),
    [(8.0, 5.0, "8.0 s old"), (-3600.0, 5.0, "ahead of"), (1.8e9, 5.0, "use_sim_time")],
)
def test_ages_that_do_not_fit_are_named_for_what_they_are(age_s, max_age_s, words):
    with pytest.raises(RequestError, match=words):
        check_age(age_s, max_age_s)


def test_ages_within_the_bound_pass_also_from_a_clock_a_little_ahead():
    check_age(4.9, 5.0)
    check_age(-0.5, 5.0)


def test_messages_hold_one_line_of_bounded_length():
    assert one_line("a\x1b[2J\nb\x00") == "a\\x1b[2J b\\x00"
    assert len(one_line("x" * 70_000)) == 500
