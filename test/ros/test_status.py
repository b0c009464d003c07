"""/diagnostics says what is wrong, by task, from what changed since the last report."""

from collections import Counter

import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy", reason="needs ROS 2")


@pytest.fixture
def report():
    from std_msgs.msg import Header

    from g2vlm_ros.core.settings import Settings
    from g2vlm_ros.live import Counts
    from g2vlm_ros.ros.status import Diagnostics

    diagnostics = Diagnostics("perception", "torch cpu", Settings())

    def make(now_s, received=0, dropped=None, windows=0, problem="", listened=True):
        counts = Counts(received, 0, Counter(dropped or {}), windows)
        array = diagnostics.report(Header(), now_s, counts, None, 0.0, problem, listened)
        return {status.name.removeprefix("perception: "): status for status in array.status}

    return make


def test_every_thing_that_can_fail_has_a_task(report):
    assert set(report(0.0)) == {"input", "windows", "drops", "latency", "scale", "engine"}


def test_silence_of_the_cameras_is_a_warning_with_a_hint(report):
    from diagnostic_msgs.msg import DiagnosticStatus

    report(0.0, received=30)
    status = report(1.0, received=30)["input"]
    assert status.level == DiagnosticStatus.WARN and "QoS" in status.message
    flowing = report(2.0, received=60)["input"]
    assert flowing.level == DiagnosticStatus.OK
    assert flowing.values[0].key == "rate_hz" and flowing.values[0].value == "30.00"


def test_bad_frames_warn_and_surplus_ones_do_not(report):
    from diagnostic_msgs.msg import DiagnosticStatus

    assert report(0.0, dropped={"too_close": 9})["drops"].level == DiagnosticStatus.OK
    status = report(1.0, dropped={"too_close": 20, "encoding": 1})["drops"]
    assert status.level == DiagnosticStatus.WARN and "encoding" in status.message
    later = report(2.0, dropped={"too_close": 30, "encoding": 1})["drops"]
    assert later.level == DiagnosticStatus.OK, "an old fault is not reported again"


def test_a_failed_device_is_an_error_and_rest_is_not(report):
    from diagnostic_msgs.msg import DiagnosticStatus

    status = report(0.0, problem="NonFiniteError: stage 'heads'")["engine"]
    assert status.level == DiagnosticStatus.ERROR and "heads" in status.message
    assert "rests" in report(1.0, received=5, listened=False)["windows"].message
    waiting = report(2.0, received=10)["windows"]
    assert waiting.level == DiagnosticStatus.WARN and "waiting" in waiting.message
