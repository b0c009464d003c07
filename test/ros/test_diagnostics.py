# SPDX-License-Identifier: Apache-2.0
"""/diagnostics says what is wrong, by task, from what changed since the last report."""

from collections import Counter

import numpy as np
import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy", reason="needs ROS 2")


@pytest.fixture
def report():
    from std_msgs.msg import Header

    from g2vlm_ros.pipeline import Counts
    from g2vlm_ros.ros.diagnostics import Diagnostics
    from g2vlm_ros.settings import Settings

    diagnostics = Diagnostics("perception", "torch cpu", Settings())

    def make(
        now_s,
        received=0,
        dropped=None,
        windows=0,
        problem="",
        listened=True,
        silent=(),
        loops=None,
    ):
        counts = Counts(received, 0, Counter(dropped or {}), windows, Counter(loops or {}), silent)
        array = diagnostics.report(Header(), now_s, counts, None, 0.0, problem, listened)
        return {status.name.removeprefix("perception: "): status for status in array.status}

    return make


def update_of(told_px=None, found_px=50.0, trusted=(True, True), scale=(), **placement):
    """An update with what the status reads of it."""
    from g2vlm_ros.geometry.sim3 import Sim3
    from g2vlm_ros.mapping.window_pose import MappedWindow, ScaleUpdate, WindowPose
    from g2vlm_ros.records import Frame, Intrinsics, Reconstruction, ScaleState, Window
    from g2vlm_ros.records import RawGeometry as Raw

    fx_px, fy_px = np.broadcast_to(np.nan if told_px is None else told_px, 2)
    from_driver = None if told_px is None else Intrinsics(fx_px, fy_px, 63.5, 47.5, 128, 96)
    found = Intrinsics(found_px, found_px, 31.5, 23.5, 64, 48)
    frames = tuple(
        Frame(s, "front", "optical", lambda: None, intrinsics=from_driver) for s in (1, 2)
    )
    poses = np.stack([np.eye(4, dtype=np.float32)] * 2)
    raw = Raw(np.ones((2, 48, 64, 3), np.float32), poses, np.zeros((2, 9), np.float32))
    grey = np.zeros((2, 48, 64, 3), np.uint8)
    result = Reconstruction(raw, grey, np.ones((2, 48, 64), np.float32), (found,) * 2, {})
    metric = ScaleUpdate(**{"state": ScaleState.METRIC, **dict(scale)})
    place = WindowPose(Sim3.identity(), 3, metric, trusted=trusted, **placement)
    return MappedWindow(Window(7, frames), result, place, (0, 1))


@pytest.mark.parametrize(
    ("update", "words"),
    [
        ({}, ""),
        ({"new_map": "first"}, ""),
        ({"new_map": "poor_registration"}, "map 3 starts: the window does not fit"),
        ({"trusted": (False, True)}, "1 of 2 views have no pose"),
        ({"scale": {"clash": "fixed", "source": "odometry"}}, "by fixed contradict .* odometry"),
        ({"scale": {"refused": 2}}, "2 measurements of scale in a row"),
        ({"told_px": 101.0}, ""),
        ({"told_px": 140.0}, "front says focal length 70 px, the points say 50 px"),
        ({"told_px": (100.0, 140.0)}, "70 px, the points say 50 px .in y, at 64 px"),
    ],
)
def test_status_says_in_words_what_is_not_well(update, words):
    import re

    from std_msgs.msg import Header

    from g2vlm_ros.pipeline import Counts
    from g2vlm_ros.ros.status_message import status_message

    made = update_of(**update)
    message = status_message(Header(), Counts(0, 0, Counter(), 1), made, 0.1, "m", "b", "").message
    assert re.search(words, message) if words else message == ""
    broken = status_message(Header(), Counts(0, 0, Counter(), 1), made, 0.1, "m", "b", "no device")
    assert broken.message == "no device", "a problem comes first"
    silent = Counts(0, 0, Counter(), 1, silent=("rear",))
    assert "do without rear" in status_message(Header(), silent, made, 0.1, "m", "b", "").message


def test_a_pose_that_nothing_connects_with_the_map_is_not_published():
    from types import SimpleNamespace

    from g2vlm_ros.ros.publishers import Publishers
    from g2vlm_ros.settings import Settings

    sent = {}

    def publisher(kind, topic, qos, **_):
        keep = sent.setdefault(topic, [])
        return SimpleNamespace(
            publish=keep.append, get_subscription_count=lambda: 1, topic_name=topic
        )

    outputs = Publishers(SimpleNamespace(create_lifecycle_publisher=publisher), Settings())
    covariance = np.stack([np.eye(6)] * 2)
    outputs.publish(update_of(trusted=(False, True), covariance=covariance))
    assert [pose.header.stamp.nanosec for pose in sent["~/pose"]] == [2]
    assert len(sent["~/path"][-1].poses) == 1 and len(sent["/tf"][0].transforms) == 1
    assert sent["~/points"][-1].width == 48 * 64, "one view's points"


def test_every_thing_that_can_fail_has_a_task(report):
    assert set(report(0.0)) == {
        "input",
        "windows",
        "drops",
        "latency",
        "scale",
        "loops",
        "localisation",
        "calibration",
        "engine",
        "callbacks",
        "tracking",
        "memory",
    }


@pytest.mark.parametrize(
    ("held", "level", "words"),
    [(5, 0, "below all bounds"), (64, 0, "at their bounds: rules"), (65, 2, "above .*: rules")],
)
def test_what_is_held_is_shown_against_its_bound(held, level, words):
    import re

    from std_msgs.msg import Header

    from g2vlm_ros.pipeline import Counts
    from g2vlm_ros.ros.diagnostics import Diagnostics
    from g2vlm_ros.ros.stores import Store
    from g2vlm_ros.settings import Settings

    stores = (Store("map_mib", 1.25, 256), Store("rules", held, 64))
    diagnostics = Diagnostics("perception", "torch cpu", Settings())
    counts = Counts(0, 0, Counter(), 0)
    array = diagnostics.report(Header(), 0.0, counts, None, 0.0, "", True, stores=stores)
    memory = next(s for s in array.status if s.name == "perception: memory")
    assert ord(memory.level) == level and re.search(words, memory.message)
    values = {pair.key: pair.value for pair in memory.values}
    assert values == {"map_mib": "1.2 of 256", "rules": f"{held} of 64"}


def test_silence_of_the_cameras_is_a_warning_with_a_hint(report):
    from diagnostic_msgs.msg import DiagnosticStatus

    report(0.0, received=30)
    status = report(1.0, received=30)["input"]
    assert status.level == DiagnosticStatus.WARN and "QoS" in status.message
    flowing = report(2.0, received=60)["input"]
    assert flowing.level == DiagnosticStatus.OK
    assert flowing.values[0].key == "rate_hz" and flowing.values[0].value == "30.00"
    partial = report(3.0, received=90, silent=("rear",))["input"]
    assert partial.level == DiagnosticStatus.WARN and "do without rear" in partial.message


def test_a_slow_camera_whose_frames_come_regularly_is_no_silent_one(report):
    """At 0.8 Hz one report of a second in five sees no frame."""
    from diagnostic_msgs.msg import DiagnosticStatus

    levels = [report(float(s), received=int(0.8 * s))["input"].level for s in range(40)]
    assert set(levels[10:]) == {DiagnosticStatus.OK}
    silence = [report(40.0 + s, received=32)["input"].level for s in range(1, 8)]
    assert silence[-1] == DiagnosticStatus.WARN, "until it stops"


def test_bad_frames_warn_and_surplus_ones_do_not(report):
    from diagnostic_msgs.msg import DiagnosticStatus

    assert report(0.0, dropped={"too_close": 9})["drops"].level == DiagnosticStatus.OK
    standing = report(0.5, dropped={"too_close": 9, "still": 5})["drops"]
    assert standing.level == DiagnosticStatus.OK and "stands still" in standing.message
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


@pytest.mark.parametrize(("job_s", "max_job_s"), [(10.5, 10.0), (60.0, 10.0), (60.0, 59.0)])
def test_a_job_that_hangs_is_an_error_of_the_engine_above_the_stated_time(job_s, max_job_s):
    from diagnostic_msgs.msg import DiagnosticStatus
    from std_msgs.msg import Header

    from g2vlm_ros.pipeline import Counts
    from g2vlm_ros.ros.diagnostics import Diagnostics
    from g2vlm_ros.settings import Settings

    settings = Settings.from_flat({"model.max_job_s": max_job_s})
    diagnostics = Diagnostics("perception", "torch cpu", settings)

    def engine(seconds):
        report = diagnostics.report(
            Header(), 0.0, Counts(0, 0, {}, 0), None, 0.0, "", True, job_s=seconds
        )
        return next(status for status in report.status if status.name.endswith("engine"))

    assert engine(max_job_s).level == DiagnosticStatus.OK
    status = engine(job_s)
    assert status.level == DiagnosticStatus.ERROR
    assert f"busy with one job for {job_s:.0f} s" in status.message
    assert "model.max_job_s" in status.message


def test_tries_to_close_loops_are_told_by_outcome(report):
    assert report(0.0)["loops"].message == "no place was seen again"
    told = report(1.0, loops={"no_overlap": 2, "closed": 1})["loops"]
    assert told.message == "1 closed, 2 no_overlap"
    assert {pair.key: pair.value for pair in told.values} == {"no_overlap": "2", "closed": "1"}


def test_cameras_high_above_the_floor_show_a_wrong_unit():
    from g2vlm_ros.ros.remarks import height_remarks

    assert height_remarks(update_of(floor_z=-1.2)) == []
    assert height_remarks(update_of()) == [], "no floor was seen"
    assert "12 m above the floor" in height_remarks(update_of(floor_z=-12.0))[0]
    assert "16UC1 in millimetres" in height_remarks(update_of(floor_z=-12.0))[0]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, ""),
        ({"odometry_topic": "/odom"}, "0.1 m of motion"),
        ({"depth_topic": "/depth"}, "do not fit the views"),
        ({"map.camera_height_m": 0.5}, "no floor is seen"),
    ],
)
def test_a_source_of_metres_that_gives_none_is_named_after_a_few_windows(values, words):
    from std_msgs.msg import Header

    from g2vlm_ros.pipeline import Counts
    from g2vlm_ros.records import ScaleState
    from g2vlm_ros.ros.remarks import no_metres
    from g2vlm_ros.ros.status_message import status_message
    from g2vlm_ros.settings import Settings

    update = update_of(scale={"state": ScaleState.RELATIVE}.items())
    sentence = no_metres(Settings.from_flat(values)) if values else ""
    for windows, expected in ((1, ""), (3, words)):
        counts = Counts(0, 0, Counter(), windows)
        status = status_message(Header(), counts, update, 0.1, "m", "b", "", no_metres=sentence)
        assert expected in status.message and bool(status.message) == bool(expected)
