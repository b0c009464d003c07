# SPDX-License-Identifier: Apache-2.0
"""What detectors send that nobody should rely on: labels of any kind, broken boxes, a flood."""

import sys
from types import SimpleNamespace as N

import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy", reason="needs rclpy")

from g2vlm_ros.ros.inputs.detections import (  # noqa: E402
    MAX_BOXES,
    MAX_LABEL,
    Detections,
    boxes_of,
)


def detection(label, score=0.9, u=32.0, width=12.0):
    result = N(hypothesis=N(class_id=label, score=score))
    centre = N(position=N(x=u, y=24.0), theta=0.0)
    return N(bbox=N(center=centre, size_x=width, size_y=10.0), results=[result])


def message(detections, stamp_s=1000, nanosec=0, camera="optical"):
    stamp = N(sec=stamp_s, nanosec=nanosec)
    return N(header=N(frame_id=camera, stamp=stamp), detections=detections)


def views(stamp_s=1000):
    frame = N(frame_id="optical", stamp_ns=stamp_s * 10**9)
    return N(frames=[frame], region=lambda view, corners: (view, corners))


@pytest.mark.parametrize(
    ("label", "kept"),
    [
        ("", None),
        (" \t\n", None),
        ("  coffee\nmaker ", "coffee maker"),
        ("стул 椅子 🪑", "стул 椅子 🪑"),
        ("x" * 10_000, "x" * MAX_LABEL),
        ("0", "0"),
    ],
)
def test_labels_of_any_kind_and_length(label, kept):
    names = [box.label for box in boxes_of(message([detection(label)]))]
    assert names == ([] if kept is None else [kept])


@pytest.mark.parametrize(
    "broken",
    [{"u": float("nan")}, {"u": float("inf")}, {"width": float("nan")}, {"width": -1.0}]
    + [{"score": float("nan")}, {"width": float("inf")}],
)
def test_boxes_without_a_finite_place_are_left_out(broken):
    assert boxes_of(message([detection("chair", **broken)])) == []


def test_a_flood_keeps_the_surest_boxes_of_the_newest_messages():
    detector = Detections(None, "")
    for k in range(100):  # ten seconds of 1000 boxes at 10 Hz
        many = [detection("chair", score=n / 1000) for n in range(1000)]
        detector.receive(message(many, 1000 + k))
    (first, *rest) = detector.of(views(1099))
    assert len(rest) + 1 == MAX_BOXES and first.score == pytest.approx(0.999)
    assert detector.of(views(1000)) == (), "old messages went"


def test_ten_thousand_messages_a_second_leave_those_of_the_views():
    detector = Detections(None, "")
    detector.receive(message([detection("cup")], camera="side"))
    detector.receive(message([detection("chair")]))
    for k in range(1, 5000):  # half a second of them
        detector.receive(message([detection("table")], nanosec=100_000 * k))
    assert [each.label for each in detector.of(views(1000))] == ["chair"]
    newest = detector.boxes(1000 * 10**9 + 500_000_000, "optical")
    assert [box.label for box in newest] == ["table"]
    assert [box.label for box in detector.boxes(1000 * 10**9, "side")] == ["cup"]


def test_messages_of_one_image_are_taken_together():
    """As of a detector that sends each box alone."""
    detector = Detections(None, "")
    for k in range(10_000):
        detector.receive(message([detection(f"thing {k}", score=k / 10_000)]))
    labels = [each.label for each in detector.of(views(1000))]
    assert labels == [f"thing {9_999 - k}" for k in range(MAX_BOXES)]


def test_time_that_goes_back_is_no_view_of_now():
    detector = Detections(None, "")
    detector.receive(message([detection("chair")], 1000))
    detector.receive(message([detection("table")], 900))
    assert [each.label for each in detector.of(views(1000))] == ["chair"]
    assert [each.label for each in detector.of(views(900))] == ["table"]


@pytest.mark.parametrize(
    ("frame_id", "stamp_s", "words"),
    [
        ("optical", 1000, ""),
        ("camera_link", 1000, "newest is of 'camera_link'"),
        ("optical", 990, "990.000 s"),
        (None, 0, "no detections come"),
    ],
)
def test_detections_that_match_no_view_say_why_within_ten_of_them(
    monkeypatch, frame_id, stamp_s, words
):
    monkeypatch.setitem(sys.modules, "vision_msgs", N())
    monkeypatch.setitem(sys.modules, "vision_msgs.msg", N(Detection2DArray=None))
    warnings = []
    log = N(warning=lambda text, **_: warnings.append(text))
    node = N(get_logger=lambda: log, create_subscription=lambda *_: "subscription")
    detector = Detections(node, "/detections")
    if frame_id is not None:
        detections = message([detection("chair")], stamp_s)
        detections.header.frame_id = frame_id
        detector.receive(detections)
    for _ in range(10):
        detector.of(views())
    assert bool(warnings) == bool(words) and words in "".join(warnings[:1])
