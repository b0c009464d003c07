# SPDX-License-Identifier: Apache-2.0
"""The demo checkpoint answers in words; one whose language is not trained measures and says so."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy", reason="ROS 2 is missing")

from g2vlm_tests.asking import SMALL_QUERY, ask, feed, region  # noqa: E402
from g2vlm_tests.harness import bench  # noqa: E402

DEMO = Path(__file__).parents[3] / "engines" / "demo"


@pytest.fixture(scope="module")
def demo():
    """A node with the demo checkpoint, its unit known to be metres."""
    settings = {
        **SMALL_QUERY,
        "model.checkpoint": str(DEMO),
        "model.backend": "onnx",
        "model.image_width_px": 0,
        "query.semantic_width_px": 0,
        "query.max_tokens": 24,
        "map.metres_per_unit": 1.0,
    }
    with bench(**settings) as testbed:
        feed(testbed)
        yield testbed


@pytest.fixture
def silent(demo, monkeypatch):
    """The same network, said to have learned no language yet."""
    monkeypatch.setattr("g2vlm_ros.perception.Perception.speaks", False)
    return demo


def test_words_are_refused_with_the_remedy(silent):
    from g2vlm_ros.srv import SpatialQuery

    answer = ask(silent, question="What is there?")
    assert answer.error_code == SpatialQuery.Response.NO_MODEL and not answer.success
    assert "not trained" in answer.error_msg and "box" in answer.error_msg


def test_what_is_marked_is_measured(silent):
    answer = ask(silent, question="How far is the chair?", regions=[region()])
    assert answer.success, answer.error_msg
    assert answer.number > 0 and answer.unit == "m"
    assert any("not trained" in step for step in answer.reasoning)


def test_a_checkpoint_that_speaks_answers_in_words(demo):
    answer = ask(demo, question="What is there?")
    assert answer.success, answer.error_msg
    assert len(answer.answer) > 2 and answer.answer.endswith(".")
