# SPDX-License-Identifier: Apache-2.0
"""The shipped demo checkpoint: it scores what its card says, and it does so by looking."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.sim.question_metrics import correct
from g2vlm_ros.demo.train.evaluate import asked, clips_of, settings_for, window_scores
from g2vlm_ros.perception import Perception

DEMO = Path(__file__).parents[3] / "engines" / "demo"
SCENES, VIEWS = 12, 4
MARGIN = 1.5
"""A dozen homes may be this much harder than the two hundred of the card."""


@pytest.fixture(scope="module")
def perception():
    return Perception.open(settings_for(DEMO, "onnx"))


@pytest.fixture(scope="module")
def clips():
    return clips_of("heldout", 0, SCENES)


def mean_scores(perception, clips, images):
    poses, rows = clips.world_from_camera(), []
    for i in range(SCENES):
        depth = clips.depth_m[i, :VIEWS]
        scores, _ = window_scores(
            perception,
            images[i, :VIEWS],
            depth,
            depth > 0,
            poses[i, :VIEWS],
            lens(depth.shape[2], depth.shape[1]),
        )
        rows.append(scores)
    return {name: float(np.nanmean([row[name] for row in rows])) for name in rows[0]}


@pytest.fixture(scope="module")
def scores(perception, clips):
    return mean_scores(perception, clips, clips.images)


@pytest.mark.parametrize(
    "name",
    [
        "abs_rel",
        "metric_abs_rel",
        "rotation_deg",
        "points_m",
        "refined_rotation_deg",
        "refined_points_m",
    ],
)
def test_the_card_is_true(scores, name):
    card = json.loads((DEMO / "scores.json").read_text())["geometry"][str(VIEWS)]
    assert scores[name] < MARGIN * card[name]


def test_the_images_mend_the_poses(scores):
    assert scores["refined_rotation_deg"] < 0.7 * scores["rotation_deg"]
    assert scores["refined_points_m"] < scores["points_m"]


def test_images_of_other_homes_ruin_the_scores(perception, clips, scores):
    shuffled = mean_scores(perception, clips, np.roll(clips.images, 1, axis=0))
    assert shuffled["abs_rel"] > 1.5 * scores["abs_rel"]
    assert shuffled["rotation_deg"] > 1.3 * scores["rotation_deg"]


@pytest.fixture(scope="module")
def answers(perception, clips):
    """Questions about the homes, answered with their own images and with those of other homes."""
    rows = []
    for i, questions in enumerate(asked(clips, VIEWS)):
        seen, other = (
            perception.scene(list(clips.images[k, :VIEWS])) for k in (i, (i + 1) % SCENES)
        )
        for qa in questions:
            said = [perception.ask(scene, qa.question).text for scene in (seen, other)]
            rows.append([correct(qa.kind, text, qa.answer) for text in said])
    return np.array(rows)


def test_the_card_is_true_of_language(answers):
    card = json.loads((DEMO / "scores.json").read_text())["language"]["all"]
    assert len(answers) >= 100
    assert answers[:, 0].mean() > card["accuracy"] - 0.1
    assert answers[:, 0].mean() > card["blind"] + 0.1


def test_answers_come_from_looking(answers):
    assert answers[:, 0].mean() > answers[:, 1].mean() + 0.1


def test_the_folder_is_small():
    assert sum(path.stat().st_size for path in DEMO.iterdir()) < 30e6
