# SPDX-License-Identifier: Apache-2.0
"""The scores: zero for the truth, and what they should be for known errors."""

from __future__ import annotations

import numpy as np
import pytest
from g2vlm_tests.tiny_training import TINY

from g2vlm_ros.checkpoint.input_sizes import InputSizes  # noqa: E402
from g2vlm_ros.checkpoint.tokenizer import Tokenizer
from g2vlm_ros.demo.sim.camera import lens, world_from_camera
from g2vlm_ros.demo.sim.contact_sheet import Exhibit, page
from g2vlm_ros.demo.sim.question_metrics import Baselines
from g2vlm_ros.demo.sim.questions import QuestionAnswer
from g2vlm_ros.demo.train import evaluate as evaluation
from g2vlm_ros.demo.train.batched_model import build
from g2vlm_ros.demo.train.evaluate import (
    clips_of,
    depth_scores,
    point_error_m,
    pose_scores,
    settings_for,
)
from g2vlm_ros.geometry.camera import unproject
from g2vlm_ros.inference.torch_backend import TorchBackend
from g2vlm_ros.perception import Perception
from g2vlm_ros.records import RawGeometry, Reconstruction


class Oracle:
    """Stands in for Perception and knows the truth, in units of its own and another frame."""

    def __init__(self, clips, unit=1.0):
        self.truth = {}
        for i in range(len(clips.scenes)):
            self.truth[clips.images[i, 0].tobytes()] = (
                clips.depth_m[i],
                clips.world_from_camera()[i],
            )
        self.unit = unit

    def reconstruct(self, images):
        depth, poses = (part[: len(images)] for part in self.truth[images[0].tobytes()])
        height, width = depth.shape[1:]
        camera = lens(width, height)
        v, u = np.mgrid[0:height, 0:width]
        pixels = np.stack([u, v], -1).astype(float)
        points = unproject(pixels, depth * self.unit, camera).astype(np.float32)
        poses = np.linalg.inv(poses[0]) @ poses
        poses[:, :3, 3] *= self.unit
        raw = RawGeometry(points, poses.astype(np.float32), np.zeros((len(images), 9), np.float32))
        confidence = np.ones(depth.shape, np.float32)
        return Reconstruction(
            raw, np.zeros((*depth.shape, 3), np.uint8), confidence, (camera,) * len(images), {}
        )


@pytest.fixture(scope="module")
def clips():
    return clips_of("validation", 0, 2)


@pytest.mark.parametrize("unit", [1.0, 2.0])
def test_an_oracle_scores_perfectly_up_to_its_unit(clips, monkeypatch, unit):
    monkeypatch.setattr(evaluation, "clips_of", lambda split, first, count: clips)
    means, exhibits = evaluation.geometry(Oracle(clips, unit), "validation", 2, [2, 4])
    assert set(means) == {"2", "4"} and len(exhibits) == 2
    for row in means.values():
        for name in ("abs_rel", "objects_abs_rel", "rotation_deg", "direction_deg", "points_m"):
            assert row[name] == pytest.approx(0.0, abs=0.1 if "deg" in name else 1e-3), name
        assert row["within_1.25"] == 1.0 and row["focal"] < 1e-3
        assert row["metric_abs_rel"] == pytest.approx(unit - 1.0, abs=1e-3)


def test_depth_scores_of_a_known_error():
    true = np.full((1, 10, 10), 2.0)
    depth = true.copy()
    depth[0, 0] *= 1.5
    things = np.zeros_like(true, bool)
    things[0, 0] = True
    scores = depth_scores(depth, true, things)
    assert scores["abs_rel"] == pytest.approx(0.05)
    assert scores["within_1.25"] == pytest.approx(0.9)
    assert scores["objects_abs_rel"] == pytest.approx(0.5)


def test_pose_scores_of_a_known_turn():
    poses = world_from_camera(
        np.array([[0.0, 0, 1], [1, 0, 1]]), np.array([0.0, 0.5]), np.zeros(2)
    )
    wrong = world_from_camera(
        np.array([[0.0, 0, 1], [1, 0, 1]]), np.array([0.0, 0.6]), np.zeros(2)
    )
    assert pose_scores(poses, poses)["rotation_deg"] == pytest.approx(0.0, abs=1e-4)
    scores = pose_scores(wrong, poses)
    assert scores["rotation_deg"] == pytest.approx(np.degrees(0.1), abs=1e-3)


def test_points_do_not_care_for_a_similarity():
    points = np.random.default_rng(0).normal(size=(1, 20, 20, 3))
    turned = 3.0 * points @ world_from_camera(np.zeros(3), 1.0, 0.3)[:3, :3].T + 1.0
    assert point_error_m(turned, points) == pytest.approx(0.0, abs=1e-6)
    assert point_error_m(points + (points > 0) * 0.3, points) > 0.05


def test_language_is_scored_by_kind(clips, monkeypatch, tokenizer_folder):
    monkeypatch.setattr(evaluation, "clips_of", lambda split, first, count: clips)
    network = build(TINY.sizes.model(), 0).eval().requires_grad_(False)
    InputSizes(112, 168).write(tokenizer_folder)
    settings = settings_for(tokenizer_folder)
    perception = Perception(TorchBackend(network), Tokenizer.open(tokenizer_folder), settings)
    known = Baselines([QuestionAnswer("exists", "Is there a bed?", "No.")])
    table, rows = evaluation.language(perception, "validation", 2, known)
    assert table["all"]["asked"] == len(rows) > 10
    for kind, score in table.items():
        mine = [row["right"] for row in rows if kind in ("all", row["kind"])]
        assert score["accuracy"] == pytest.approx(np.mean(mine))


def test_the_page_shows_three_windows(clips):
    shown = [
        Exhibit(str(i), float(i), clips.images[0, :2], clips.depth_m[0, :2], clips.depth_m[1, :2])
        for i in range(5)
    ]
    picture = page(shown)
    assert picture.width > 2 * 112 and picture.height > 9 * 84
    with pytest.raises(ValueError, match="no windows"):
        page([])
