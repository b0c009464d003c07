# SPDX-License-Identifier: Apache-2.0
"""The questions of the demo: what it asks, and how answers are judged by the simulated truth."""

import itertools
import time

import numpy as np
import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("torch", reason="the golden checkpoint runs on the torch backend here")

from g2vlm_tests.asking import SMALL_QUERY  # noqa: E402
from g2vlm_tests.harness import bench  # noqa: E402

from g2vlm_ros.demo.sim.questions import QuestionAnswer, ask, shares, truth  # noqa: E402
from g2vlm_ros.records import Answer  # noqa: E402


def response(**fields):
    from g2vlm_ros.srv import SpatialQuery

    return SpatialQuery.Response(**{"success": True, "confidence": -1.0, **fields})


UNSEEN, UNSURE = 9905, 9906
REMEMBERED = {"remembered": True}


@pytest.mark.parametrize(
    ("kind", "true", "fields", "verdict"),
    [
        ("distance", "2.0 metres.", {"number": 2.3, "answer": "It is 2.30 m away."}, "right"),
        ("distance", "2.0 metres.", {"number": 3.0, "answer": "It is 3.00 m away."}, "wrong"),
        ("size", "2.0 metres.", {"number": 0.8, "answer": "It is at least 0.80 m."}, "bound"),
        ("size", "2.0 metres.", {"number": 1.9, "answer": "It is at least 1.90 m."}, "bound"),
        ("size", "2.0 metres.", {"number": 2.9, "answer": "It is at least 2.90 m."}, "wrong"),
        ("size", "2.0 metres.", {"number": 0.8, "answer": "It is 0.80 m."}, "wrong"),
        ("beside", "Left.", {"answer": "The bed is left of the rug."}, "right"),
        ("closer", "The bed.", {"answer": "The bed is closer than the rug."}, "right"),
        ("closer", "The rug.", {"answer": "The bed is closer than the rug."}, "wrong"),
        ("colour", "It is red.", {"answer": "It is red."}, "right"),
        ("colour", "It is red.", {"answer": "It is blue."}, "wrong"),
        ("count", "2.", {"number": 2.0, "answer": "There are two."}, "right"),
        ("exists", "No.", {"yes_no": False, "answer": "No."}, "right"),
        (
            "exists",
            "No.",
            {"yes_no": True, "answer": "Yes. In no view now."} | REMEMBERED,
            "right",
        ),
        (
            "exists",
            "Yes.",
            {"yes_no": True, "answer": "Yes. In no view now."} | REMEMBERED,
            "wrong",
        ),
        ("direction", "It is behind you.", {"answer": "The bed is behind you. It was"}, "right"),
        ("direction", "It is behind you.", {"answer": "The bed is in front of you."}, "wrong"),
        ("direction", "It is to your left.", {"answer": "It is to your left."}, "right"),
        (
            "exists",
            "Yes.",
            {"yes_no": True, "answer": "Yes. Its place is in view."} | REMEMBERED,
            "right",
        ),
        (
            "exists",
            "No.",
            {"yes_no": True, "answer": "Yes. Its place is in view."} | REMEMBERED,
            "wrong",
        ),
        ("absent", "There is no bed.", {"answer": "In no view now."} | REMEMBERED, "right"),
        ("absent", "There is no bed.", {"answer": "Its place is in view."} | REMEMBERED, "wrong"),
        ("absent", "There is no bed.", {"answer": "There is no bed."}, "right"),
        ("absent", "There is no bed.", {"answer": "It is red."}, "wrong"),
        ("absent", "There is no bed.", {"success": False, "error_code": UNSEEN}, "right"),
        ("absent", "There is no bed.", {"success": False, "error_code": UNSURE}, "wrong"),
        ("distance", "2.0 metres.", {"success": False, "error_code": UNSEEN}, "wrong"),
    ],
)
def test_answers_are_judged_as_what_they_say(kind, true, fields, verdict):
    from g2vlm_ros.demo.nodes import demo_questions

    assert demo_questions.verdict(QuestionAnswer(kind, "?", true), response(**fields)) == verdict


def test_the_summary_counts_by_kind_beside_blind_guesses():
    from g2vlm_ros.demo.nodes.demo_questions import Asked, summary

    def asked(kind, verdict, confidence, true="It is red."):
        return Asked(kind, "What colour is the bed?", true, "", verdict, confidence, 0.1)

    rows = [
        asked("size", "right", 0.9, "0.5 metres."),
        asked("size", "bound", 0.2, "3.0 metres."),
        asked("size", "wrong", 0.9, "9.9 metres."),
        asked("colour", "right", -1.0),
    ]
    report = summary(rows, homes=3)
    size = report["by_kind"]["size"]
    assert (size["asked"], size["right"], size["bounds"]) == (3, 1, 1) and size["blind"] < 3
    assert report["by_kind"]["colour"]["right"] == 1
    assert report["calibration"] == [{"confidence": 0.9, "right": 0.5, "count": 2}]
    assert report["calibration_error"] == pytest.approx(0.4), "neither bounds nor uncalibrated"
    assert "calibration" not in summary([asked("colour", "right", -1.0)], homes=1)


@pytest.fixture(scope="module")
def walk():
    """A home with two moments of a walk: {index: (image, pose, time, items)}."""
    from g2vlm_ros.demo.sim.camera import lens
    from g2vlm_ros.demo.sim.scenes import make_clips, make_scene
    from g2vlm_ros.demo.sim.splits import home_seed

    scene = make_scene(home_seed("validation", 3))
    clips = make_clips([scene], 2, lens(112, 84), samples=1)
    return scene.home, clips


def interviewed(walk, count, monkeypatch, speaks):
    """DemoQuestions of a node that knows all answers, or does not speak; and what it was asked."""
    from sensor_msgs.msg import Image

    from g2vlm_ros.demo.nodes import demo_questions
    from g2vlm_ros.demo.nodes.sim_camera_node import Moment
    from g2vlm_ros.perception import Perception
    from g2vlm_ros.ros.conversions import geometry

    home, clips = walk
    poses, times = clips.world_from_camera()[0], clips.time_s()[0]
    known = {
        (first, qa.question): qa.answer
        for first in (0, 1)
        for seed in range(100)
        for qa in ask(
            truth(home, shares(clips.items[0, first:]), poses[first:], times[first:]),
            np.random.default_rng(seed),
            36,
        )
    }
    heard, turn, first = [], itertools.count(), [0]

    def answers(self, scene, prompt, **options):
        heard.append(prompt)
        said = known.get((first[0], prompt), "Hm.")
        return Answer(said, (1,), True, {"prefill": 0.0, "decode": 0.0}, 1)

    monkeypatch.setattr(Perception, "ask", answers)
    monkeypatch.setattr(Perception, "speaks", property(lambda self: speaks))
    monkeypatch.setattr(demo_questions, "PAUSE_S", 0.05)
    settings = {"map.metres_per_unit": 1.0, "window.max_age_s": 5.0}
    settings["query.objects"] = 0  # this network's pointing means nothing, and would be remembered
    with bench(**SMALL_QUERY, **settings) as testbed:
        moments, start_ns = {}, time.time_ns()
        for i, pixels in enumerate(clips.images[0]):
            stamp_ns = start_ns + i * 100_000_000
            moments[stamp_ns] = Moment(poses[i], float(times[i]), clips.items[0][i])
            message = Image(
                header=geometry.header(stamp_ns, "optical"),
                height=pixels.shape[0],
                width=pixels.shape[1],
                encoding="rgb8",
                step=3 * pixels.shape[1],
                data=pixels.tobytes(),
            )
            testbed.send("/camera/image_raw", message)
        testbed.node.refresh(60)
        views = testbed.node.newest_views_ns()
        assert views == tuple(moments)

        def newest():
            """In turns both views, and the newest alone: there is always something to ask."""
            first[0] = next(turn) % 2
            return views[first[0] :]

        asking = demo_questions.DemoQuestions(home, moments, newest)
        asking.start()
        testbed.until(lambda: len(asking.asked) >= count, f"{count} answers", timeout_s=120)
        asking.stop()
    return asking, heard


def test_a_checkpoint_that_speaks_is_asked_in_words_and_believed_by_the_truth(walk, monkeypatch):
    from g2vlm_ros.demo.nodes.demo_questions import MEASURED, WORDS

    asking, heard = interviewed(walk, 8, monkeypatch, speaks=True)
    words = [a for a in asking.asked if a.kind in WORDS]
    assert asking.speaks and len(words) >= 3 and len({a.kind for a in words}) >= 3
    assert {a.verdict for a in words} == {"right"}, words
    assert all(a.question in heard for a in words), "without boxes, marks or measures"
    assert any(a.kind in MEASURED for a in asking.asked)


def test_a_checkpoint_that_does_not_speak_is_asked_for_measures_only(walk, monkeypatch):
    from g2vlm_ros.demo.nodes.demo_questions import MEASURED

    asking, heard = interviewed(walk, 2, monkeypatch, speaks=False)
    assert not asking.speaks and not heard
    assert {a.kind for a in asking.asked} <= set(MEASURED)
