# SPDX-License-Identifier: Apache-2.0
"""Frames that come and make no window are explained within ten of them, in words."""

from collections import Counter

import pytest

pytest.importorskip("rclpy", reason="g2vlm_ros.ros needs ROS 2")

from g2vlm_tests.harness import bench, image  # noqa: E402

from g2vlm_ros.mapping.window_buffer import WindowBuffer  # noqa: E402
from g2vlm_ros.pipeline import Counts  # noqa: E402
from g2vlm_ros.records import Frame  # noqa: E402
from g2vlm_ros.ros.input_rate import UnusedFrames  # noqa: E402
from g2vlm_ros.settings import Settings  # noqa: E402

START_S = 1000.0


class Camera:
    """Frames into a window buffer that somebody takes windows from, and what is said of them."""

    def __init__(self, **values):
        self.settings = Settings.from_flat(values)
        self.buffer = WindowBuffer(self.settings.cameras, self.settings.window)
        self.windows, self.now_s = 0, 0.0
        self.unused = UnusedFrames(self.settings, self.clock)

    def clock(self):
        return self.now_s

    def send(self, seconds, camera="camera", period_s=0.1):
        stamp_ns = round((START_S + seconds) * 1e9)
        self.buffer.offer(Frame(stamp_ns, camera, camera, lambda: None))
        self.now_s += period_s
        self.windows += self.buffer.take() is not None
        buffer = self.buffer
        counts = Counts(
            buffer.received,
            buffer.used,
            Counter(buffer.dropped),
            self.windows,
            ready=buffer.ready,
            unpaired=buffer.unpaired,
            step_s=buffer.step_s,
        )
        self.unused.update(counts)
        return self.unused.remark()


@pytest.mark.parametrize(
    ("step_s", "words"),
    [
        (0.0, "header.stamp anew"),
        (3.0, "stamps are 3.0 s apart: 4 views do not fit into window.max_age_s = 5 s"),
    ],
)
def test_stamps_of_which_no_window_can_be_made_are_named_within_ten_frames(step_s, words):
    camera = Camera()
    said = [camera.send(step_s * k) for k in range(10)]
    assert camera.windows == 0 and words in said[-1]


def test_stamps_in_another_unit_are_named_once_a_window_is_overdue():
    camera = Camera()
    said = [camera.send(0.001 * k) for k in range(50)]
    assert not any(said[:10]), "a quick camera's frames may be that close"
    assert "1 ms apart" in said[-1] and "window.min_gap_s" in said[-1]


def test_cameras_that_are_never_in_step_are_named_within_ten_frames():
    camera = Camera(cameras=["left", "right"], **{"window.overlap": 0})
    said = []
    for k in range(5):
        said += [camera.send(0.2 * k, "left"), camera.send(0.2 * k + 0.1, "right")]
    assert camera.windows == 0
    assert "window.sync_slop_s" in said[-1] and "trigger the cameras together" in said[-1]


def test_two_publishers_on_one_topic_are_suspected():
    camera = Camera()
    said = [camera.send(0.4 * k + 1000.0 * (k // 2 % 2)) for k in range(40)]
    assert camera.windows == 0 and "two nodes publish" in said[-1]


@pytest.mark.parametrize("rate_hz", [2, 10, 30, 200])
def test_a_camera_whose_windows_fill_is_not_spoken_of(rate_hz):
    camera = Camera()
    said = [camera.send(k / rate_hz, period_s=1 / rate_hz) for k in range(8 * rate_hz)]
    assert camera.windows and not any(said)


def test_status_and_refusals_say_why_no_window_comes():
    from g2vlm_ros.msg import ReconstructionStatus
    from g2vlm_ros.srv import GetPoints, SpatialQuery
    from sensor_msgs.msg import PointCloud2

    with bench(status_period_s=0.1) as testbed:
        testbed.listen(PointCloud2, "/perception/points")
        testbed.listen(ReconstructionStatus, "/perception/status")
        for number in range(10):
            testbed.send("/camera/image_raw", image(START_S, number))
        messages = testbed.received["/perception/status"]
        testbed.until(lambda: "header.stamp anew" in messages[-1].message, "the reason")
        question = SpatialQuery.Request(question="What is there?", max_wait_s=20.0)
        answer = testbed.call(SpatialQuery, "/perception/query", question)
        points = testbed.call(GetPoints, "/perception/get_points", GetPoints.Request())
    for response in (answer, points):
        assert not response.success and "header.stamp anew" in response.error_msg
