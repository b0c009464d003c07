# SPDX-License-Identifier: Apache-2.0
"""Places over real DDS: regions, detections and frames of a node that knows its metres."""

import numpy as np
import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("torch", reason="the golden checkpoint runs on the torch backend here")

from g2vlm_tests.asking import SMALL_QUERY, ask, feed, region  # noqa: E402
from g2vlm_tests.harness import bench  # noqa: E402


@pytest.fixture(scope="module")
def metric():
    """A node whose unit is known to be metres."""
    with bench(**SMALL_QUERY, **{"map.metres_per_unit": 1.0}) as testbed:
        feed(testbed)
        assert ask(testbed, question="What is there?").window_id == 1
        yield testbed


def test_places_of_regions_are_among_the_published_points(metric):
    from g2vlm_ros.srv import GetPoints

    v, u = (20.0 + 64 / 56 * offset.ravel() for offset in np.mgrid[-2:3, -2:3])
    points = GetPoints.Request(camera="camera", u_px=u, v_px=v, max_age_s=1e12)
    actual = metric.call(GetPoints, "/perception/get_points", points)
    assert actual.success, actual.error_msg
    around = np.array([[p.x, p.y, p.z] for p in actual.points])
    answer = ask(metric, question="Where is this?", answer_kind=4, regions=[region()])
    assert answer.success, answer.error_msg
    place = answer.pose.pose.position
    assert answer.pose.header.frame_id == "map" and answer.pose.pose.orientation.w == 1.0
    here = [place.x, place.y, place.z]
    assert (around.min(0) - 1e-4 <= here).all() and (here <= around.max(0) + 1e-4).all()
    assert np.trace(np.reshape(answer.position_covariance, (3, 3))) > 0
    assert answer.scale_state == 2 and 0 < answer.scale_relative_std < 1
    (seen,) = answer.evidence
    assert (seen.camera, seen.u_px, seen.v_px) == ("camera", pytest.approx(20), pytest.approx(20))
    away = ask(metric, question="How far is this?", regions=[region()])
    assert away.answer_kind == 3 and away.unit == "m" and away.number > 0
    assert len(away.reasoning) >= 3 and away.objects[0].label == "marked place"


def test_a_camera_frame_is_a_target_frame(metric):
    answer = ask(
        metric,
        question="Where is this?",
        answer_kind=4,
        regions=[region()],
        target_frame="optical",
    )
    assert answer.success and answer.pose.header.frame_id == "optical"
    assert answer.pose.pose.position.z > 0, "in front of the camera"
    away = ask(metric, question="How far is this?", regions=[region()])
    p = answer.pose.pose.position
    assert np.linalg.norm([p.x, p.y, p.z]) == pytest.approx(away.number, rel=1e-3)


def test_the_last_target_is_latched(metric):
    from geometry_msgs.msg import PoseStamped
    from rclpy.qos import DurabilityPolicy, QoSProfile

    ask(metric, question="Where is this?", answer_kind=4, regions=[region()])
    actual = metric.received["target"]
    qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    metric.peer.create_subscription(
        PoseStamped, "/perception/query/last_target", actual.append, qos
    )
    metric.until(lambda: actual, "the latched target")
    assert actual[0].header.frame_id == "map"


def test_the_last_answer_and_its_picture_are_latched(metric):
    from g2vlm_ros.msg import SpatialExample
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from sensor_msgs.msg import Image

    qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    answer = ask(metric, question="How far is this?", regions=[region(u=40.0, v=30.0)])
    heard, seen = metric.received["answer"], metric.received["picture"]
    metric.peer.create_subscription(
        SpatialExample, "/perception/query/last_answer", heard.append, qos
    )
    metric.peer.create_subscription(Image, "/perception/query/picture", seen.append, qos)
    metric.until(lambda: heard and seen, "the latched answer and picture")
    assert (heard[-1].question, heard[-1].answer) == ("How far is this?", answer.answer)
    assert heard[-1].camera == "camera" and heard[-1].stamp == answer.stamp
    assert seen[-1].header.frame_id == "optical"
    instant_s = answer.stamp.sec + answer.stamp.nanosec * 1e-9 + answer.age_s
    stamp = seen[-1].header.stamp
    assert stamp.sec + stamp.nanosec * 1e-9 == pytest.approx(instant_s, abs=1e-5)
    rgb = np.frombuffer(seen[-1].data, np.uint8).reshape(seen[-1].height, seen[-1].width, 3)
    row, column = 30.5 * 10 - 0.5, 40.5 * 10 - 0.5
    blue = np.argwhere((rgb == (30, 60, 255)).all(-1))
    mark = blue[blue[:, 0] > row - 9]
    assert mark.mean(0) == pytest.approx((row, column), abs=1) and len(blue) > len(mark)
    refused = ask(metric, question="Where is this?", target_frame="nowhere")
    metric.until(lambda: heard[-1].answer == refused.error_msg, "the refusal")


def test_every_asker_gets_the_picture_of_its_own_answer(metric):
    """Others ask about other places all the while."""
    import threading

    from g2vlm_ros.ros.client.client import SpatialClient

    old, done = {"max_age_s": 1e12, "max_wait_s": 20.0}, threading.Event()

    def other():
        with SpatialClient() as robot:
            while not done.is_set():
                robot.ask("How far is this?", regions=[region(u=8.0, v=8.0)], **old)

    asking = threading.Thread(target=other)
    asking.start()
    try:
        with SpatialClient() as robot:
            for u in (24.0, 40.0, 56.0):
                _, picture = robot.ask_and_see(
                    "How far is this?", regions=[region(u=u, v=30.0)], **old
                )
                rgb = np.frombuffer(picture.data, np.uint8).reshape(picture.height, -1, 3)
                mark = np.argwhere((rgb == (30, 60, 255)).all(-1))
                mark = mark[mark[:, 0] > 305 - 9]
                assert mark.mean(0) == pytest.approx((304.5, (u + 0.5) * 10 - 0.5), abs=1)
            refused, nothing = robot.ask_and_see(
                "How far is the sofa?", target_frame="moon", **old
            )
            assert not refused.success and nothing is None
    finally:
        done.set()
        asking.join()


def test_a_marked_pixel_is_asked_about_with_a_place_of_known_distance(metric, monkeypatch):
    """What the model is asked, and what it sees: its training's form of such a question."""
    perception = metric.perception
    original, heard = perception.ask, []

    def listen(scene, prompt, **options):
        heard.append((prompt, scene.images))
        return original(scene, prompt, **options)

    monkeypatch.setattr(perception, "ask", listen)
    answer = ask(metric, question="How far is this?", regions=[region(u=40.0, v=30.0)])
    assert answer.success, answer.error_msg
    prompt, images = heard[0]
    assert prompt.startswith("The red point is at ") and prompt.endswith(
        "meters. How far is the object at the blue point?"
    )
    assert tuple(images[1][30, 40]) == (30, 60, 255), "drawn on the newest view"
    assert (images[1] == (255, 40, 30)).all(-1).any() and not (images[0] == (30, 60, 255)).all(
        -1
    ).any()
    told = heard[-1][0]
    assert told.startswith("Measured: The marked place is ") and "blue point" in told
    assert any("Told this, the model concludes" in step for step in answer.reasoning)


def test_where_would_i_be_needs_no_thing(metric):
    answer = ask(metric, question="Where would I be if I went 2 metres forward?")
    assert answer.success and answer.answer_kind == 5 and "2.00 m" in answer.reasoning[-1]


def test_detections_answer_by_label(metric):
    """A detector's message in the layout of vision_msgs, which need not be installed."""
    from types import SimpleNamespace as N

    from builtin_interfaces.msg import Time
    from std_msgs.msg import Header

    def box(u, label, score=0.9):
        centre = N(position=N(x=u, y=24.0), theta=0.0)
        result = N(hypothesis=N(class_id=label, score=score))
        return N(bbox=N(center=centre, size_x=12.0, size_y=20.0), results=[result])

    header = Header(frame_id="optical", stamp=Time(sec=1000, nanosec=100_000_000))
    detections = metric.queries.worker.detections
    detections.receive(N(header=header, detections=[box(14.0, "chair"), box(48.0, "table")]))
    try:
        answer = ask(metric, question="How far is the chair?")
        assert answer.success and answer.unit == "m", answer.error_msg
        assert answer.objects[0].label == "chair" and answer.objects[0].size.z > 0
        assert answer.evidence[0].u_px == pytest.approx(14, abs=1)
        side = ask(metric, question="Is the chair left of the table?")
        assert side.answer_kind == 2 and [o.label for o in side.objects] == ["chair", "table"]
        objects = ask(metric, question="Find the chair", answer_kind=6)
        assert [o.label for o in objects.objects] == ["chair"]
        number = ask(metric, question="How many chairs are there?")
        assert number.number == 1 and number.unit == ""
        wrong = N(
            header=Header(frame_id="other", stamp=header.stamp), detections=[box(14.0, "cup")]
        )
        detections.receive(wrong)
        assert ask(metric, question="Where is the cup?", answer_kind=4).error_code in (9905, 9906)
    finally:
        detections.clear()
