# SPDX-License-Identifier: Apache-2.0
"""A robot that has stopped is asked, and answers from what it still sees: that is when people ask.

A simulator without noise sends the same image again and again; a real camera almost does.
"""

import time

import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("torch", reason="the golden checkpoint runs on the torch backend here")

from g2vlm_tests.asking import SMALL_QUERY, ask, finish, goal  # noqa: E402
from g2vlm_tests.harness import bench, image  # noqa: E402

PERIOD_S = 0.15
REPEATS = 20
TRIES = 5
"""Of a question whose answer may rest on nothing as old as the drive; a busy machine is slow."""


@pytest.fixture(scope="module")
def stopped():
    """A node whose camera drove, and then sent one image for seconds."""
    from diagnostic_msgs.msg import DiagnosticArray
    from g2vlm_ros.msg import ReconstructionStatus
    from tf2_msgs.msg import TFMessage

    with bench(**SMALL_QUERY, **{"map.metres_per_unit": 1.0}) as testbed:
        testbed.listen(TFMessage, "/tf", 100)
        testbed.listen(ReconstructionStatus, "/perception/status")
        testbed.listen(DiagnosticArray, "/diagnostics")
        for number in range(4):
            testbed.drive_end_s = time.time()
            testbed.send("/camera/image_raw", image(testbed.drive_end_s, number))
            testbed.settle()
            time.sleep(PERIOD_S)
        for _ in range(REPEATS):
            repeat(testbed)
        yield testbed


def repeat(testbed):
    """The last image once more, newly stamped."""
    testbed.send("/camera/image_raw", image(time.time(), number=3))
    testbed.settle()
    time.sleep(PERIOD_S)


def test_a_question_is_answered_from_the_window_that_is_still_true(stopped):
    for _ in range(TRIES):
        repeat(stopped)
        since_drive_s = time.time() - stopped.drive_end_s
        answer = ask(stopped, question="What is there?", max_age_s=since_drive_s)
        if answer.success:
            break
    assert answer.success, answer.error_msg
    assert 0 <= answer.age_s <= since_drive_s
    assert answer.stamp.sec >= int(stopped.drive_end_s) + 1, "not of the drive's end"


def test_a_goal_that_wants_a_fresh_window_gets_the_last_one_again(stopped):
    _, future, _ = goal(stopped, question="What is there?", fresh_window=True, max_wait_s=30.0)
    for _ in range(100):
        if future.done():
            break
        repeat(stopped)
    outcome = finish(stopped, future).result
    assert outcome.success, outcome.error_msg


def test_poses_and_status_go_on_and_nothing_is_called_a_fault(stopped):
    repeat(stopped)
    newest_s = stopped.drive_end_s + 1.0
    stopped.until(lambda: newest_pose_s(stopped) > newest_s, "a pose of now on /tf")
    status = stopped.received["/perception/status"][-1]
    assert "image again" not in status.message and status.map_id == 0
    drops = dict(zip(status.drop_reasons, status.drop_counts, strict=True))
    assert drops["still"] >= REPEATS // 2 and "frozen" not in drops

    def said():
        reports = stopped.received["/diagnostics"]
        return (
            [s.message for s in reports[-1].status if s.name.endswith("drops")] if reports else []
        )

    stopped.until(lambda: repeat(stopped) or "stands still" in "".join(said()), "the diagnostics")


def newest_pose_s(testbed):
    stamps = [t.header.stamp for message in testbed.received["/tf"] for t in message.transforms]
    return max((stamp.sec + stamp.nanosec * 1e-9 for stamp in stamps), default=0.0)
