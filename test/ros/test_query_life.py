# SPDX-License-Identifier: Apache-2.0
"""Questions while a node is deactivated, and what it keeps of them."""

import gc
import threading
import weakref

import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("torch", reason="the golden checkpoint runs on the torch backend here")

from g2vlm_tests.asking import (  # noqa: E402
    SMALL_QUERY,
    START_S,
    ask,
    block,
    feed,
    finish,
    goal,
    request,
)
from g2vlm_tests.harness import bench  # noqa: E402


def test_deactivation_answers_what_waits_and_refuses_what_comes():
    from g2vlm_ros.srv import SpatialQuery

    with bench(**SMALL_QUERY) as testbed:
        feed(testbed)
        client = testbed.peer.create_client(SpatialQuery, "/perception/query")
        assert client.wait_for_service(20)
        release = block(testbed, [])
        waiting = client.call_async(request(question="What is there?"))
        testbed.until(lambda: testbed.waiting() > 0, "the question to wait")
        testbed.node.windows.active = False
        release()
        testbed.until(waiting.done, "its answer")
        assert waiting.result().error_code == 9908
        assert ask(testbed, question="What?").error_code == 9908
        testbed.node.windows.active = True
        assert ask(testbed, question="What is there?").success


def test_a_window_that_goes_while_it_is_asked_about_is_still_answered_from():
    """The running question keeps its window; the next one is told that there is none."""
    from g2vlm_ros.srv import SpatialQuery
    from std_srvs.srv import Trigger

    with bench(**SMALL_QUERY) as testbed:
        feed(testbed)
        perception, reached, gate = testbed.perception, threading.Event(), threading.Event()
        original = perception.ask

        def slow(*arguments, **options):
            reached.set()
            assert gate.wait(20)
            return original(*arguments, **options)

        perception.ask = slow
        client = testbed.peer.create_client(SpatialQuery, "/perception/query")
        assert client.wait_for_service(20)
        waiting = client.call_async(request(question="What is there?"))
        testbed.until(reached.is_set, "the question to be answered")
        assert testbed.call(Trigger, "/perception/reset", Trigger.Request()).success
        gate.set()
        testbed.until(waiting.done, "its answer")
        assert waiting.result().success and waiting.result().window_id == 1
        after = ask(testbed, question="What is there?")
        assert after.error_code == 9904 and "no window" in after.error_msg
        assert testbed.queries.worker.held()[0] == 0, "nothing is kept"


def test_a_client_that_goes_while_it_is_answered_leaves_nothing_behind():
    import rclpy
    from g2vlm_ros.action import AnswerSpatialQuery

    from g2vlm_ros.ros.rclpy_workarounds import SafeActionClient

    with bench(**SMALL_QUERY) as testbed:
        feed(testbed)
        other = rclpy.create_node("leaver", context=testbed.context)
        testbed.executor.add_node(other)
        action = SafeActionClient(other, AnswerSpatialQuery, "/perception/answer")
        assert action.wait_for_server(20)
        entered = []
        release = block(testbed, entered)
        sent = action.send_goal_async(AnswerSpatialQuery.Goal(question="What?", max_age_s=1e12))
        testbed.until(sent.done, "the goal to be accepted")
        testbed.executor.remove_node(other)
        action.destroy()
        other.destroy_node()
        release()
        testbed.until(lambda: not testbed.queries.open_goals(), "the goal to be let go")
        assert ask(testbed, question="What is there?").success


def test_memory_of_windows_and_dialogues_is_bounded():
    from diagnostic_msgs.msg import DiagnosticArray

    bounds = {"query.windows": 2, "query.dialogues": 2, "status_period_s": 0.1}
    with bench(**SMALL_QUERY, **bounds) as testbed:
        for k in range(4):
            feed(testbed, start_s=START_S + 10 * k)
            testbed.node.refresh(20)
            answer = ask(testbed, question="What is there?", dialogue=f"d{k}")
            assert answer.success, answer.error_msg
        windows, dialogues = testbed.queries.worker.held()
        assert windows == 2 and dialogues == ["d2", "d3"]
        held = {store.name: store for store in testbed.node.stores()}
        assert held["question_windows"].held == held["dialogues"].held == 2
        assert 1 <= held["question_caches"].held <= 4 < held["question_caches"].bound
        assert held["question_cache_tokens"].held > 0
        assert all(store.held <= store.bound for store in held.values())
        reports = []
        testbed.peer.create_subscription(DiagnosticArray, "/diagnostics", reports.append, 1)
        testbed.until(lambda: reports, "/diagnostics")
        memory = next(task for task in reports[-1].status if task.name == "perception: memory")
        shown = {pair.key: pair.value for pair in memory.values}
        assert shown["question_windows"] == shown["dialogues"] == "2 of 2"
        assert "at their bounds: question_windows, dialogues" in memory.message


def test_a_client_that_floods_leaves_another_at_least_half_of_its_answers():
    """Each question under another dialogue's name; the other client asks one after the other."""
    import rclpy
    from g2vlm_ros.srv import SpatialQuery
    from rclpy.qos import QoSProfile

    with bench(**SMALL_QUERY, **{"query.queue": 4}) as testbed:
        feed(testbed)
        flooder = rclpy.create_node("flooder", context=testbed.context)
        testbed.executor.add_node(flooder)
        client = flooder.create_client(
            SpatialQuery, "/perception/query", qos_profile=QoSProfile(depth=1000)
        )
        assert client.wait_for_service(20)
        over, codes = threading.Event(), []

        def flood(number):
            asked = request(question="What is there?", dialogue=f"d{number}")
            future = client.call_async(asked)
            future.add_done_callback(lambda done: again(done, number))

        def again(done, number):
            codes.append(done.result().error_code)
            if not over.is_set():
                threading.Timer(0.01, flood, [number + 100]).start()

        for number in range(12):
            flood(number)
        testbed.until(lambda: 9907 in codes, "the flood to fill its queue")
        answers = [ask(testbed, question="What is there?", max_wait_s=10.0) for _ in range(10)]
        over.set()
        served = sum(answer.success for answer in answers)
        assert served >= 5, [answer.error_msg for answer in answers]
        testbed.until(lambda: not testbed.waiting(), "the flood to end")
        testbed.executor.remove_node(flooder)
        flooder.destroy_node()


@pytest.mark.parametrize("by_action", [False, True])
def test_a_question_that_has_ended_is_let_go_at_once(monkeypatch, by_action):
    """Held in a cycle it waited for the collector, with 15 MiB of caches for each scene."""
    with bench(**SMALL_QUERY) as made:
        feed(made)
        answer, questions = made.queries.worker.answer, []

        def noted(question):
            questions.append(weakref.ref(question))
            return answer(question)

        monkeypatch.setattr(made.queries.worker, "answer", noted)
        gc.disable()
        try:
            for _ in range(3):
                if by_action:
                    finish(made, goal(made, question="What is there?")[1])
                else:
                    assert ask(made, question="What is there?").success
            # rclpy keeps a goal for a while after its end; ours is the question.
            made.until(lambda: not made.queries.open_goals(), "the goals to be let go")
            made.until(lambda: sum(q() is not None for q in questions) <= 1, "the questions to go")
        finally:
            gc.enable()
