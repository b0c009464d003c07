"""A checkpoint whose language is not trained measures, and says that it does not speak."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy", reason="ROS 2 is missing")

from test.ros.asking import SMALL_QUERY, ask, feed, region  # noqa: E402
from test.ros.harness import bench  # noqa: E402

DEMO = Path(__file__).parents[2] / "engines" / "demo"


@pytest.fixture(scope="module")
def geometric():
    """A node with the demo checkpoint, its unit known to be metres."""
    if json.loads((DEMO / "text_config.json").read_text()).get("language_trained", True):
        pytest.skip("the language of the demo checkpoint is trained")
    settings = {
        **SMALL_QUERY, "model.checkpoint": str(DEMO), "model.backend": "onnx",
        "model.image_width_px": 112, "map.metres_per_unit": 1.0,
    }  # fmt: skip
    with bench(**settings) as made:
        feed(made)
        yield made


def test_words_are_refused_with_the_remedy(geometric):
    from g2vlm_ros.srv import SpatialQuery

    answer = ask(geometric, question="What is there?")
    assert answer.error_code == SpatialQuery.Response.NO_MODEL and not answer.success
    assert "not trained" in answer.error_msg and "box" in answer.error_msg


def test_what_is_marked_is_measured(geometric):
    answer = ask(geometric, question="How far is the chair?", regions=[region()])
    assert answer.success, answer.error_msg
    assert answer.number > 0 and answer.unit == "m"
    assert any("not trained" in step for step in answer.reasoning)
