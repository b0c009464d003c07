# SPDX-License-Identifier: Apache-2.0
"""Odometry and the verdict on a drive: exact for the truth, known errors for known faults."""

from __future__ import annotations

import numpy as np
import pytest

from g2vlm_ros.demo.sim import drive_metrics, question_metrics
from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.sim.scenes import make_scene
from g2vlm_ros.demo.sim.splits import home_seed
from g2vlm_ros.demo.sim.wheel_odometry import odometry
from g2vlm_ros.geometry.sim3 import Sim3


def posed(position, yaw):
    """A pose (4, 4) at a place, turned about the vertical."""
    pose = np.eye(4)
    c, s = np.cos(yaw), np.sin(yaw)
    pose[:2, :2] = [[c, -s], [s, c]]
    pose[:3, 3] = position
    return pose


@pytest.fixture(scope="module")
def walk():
    return make_scene(home_seed("validation", 0)).walk


def test_odometry_without_noise_is_the_walk(walk):
    positions, headings = odometry(walk, 0.0, 1)
    np.testing.assert_allclose(positions, walk.position_m, atol=1e-9)
    np.testing.assert_allclose(np.exp(1j * headings), np.exp(1j * walk.yaw_rad), atol=1e-9)


def test_odometry_errors_add_up_and_repeat(walk):
    noisy = odometry(walk, 0.05, 1)
    np.testing.assert_array_equal(noisy[0], odometry(walk, 0.05, 1)[0])
    error = np.linalg.norm(noisy[0] - walk.position_m, axis=1)
    assert error[0] == 0 and error[-20:].mean() > error[:20].mean()
    steps = np.linalg.norm(np.diff(noisy[0], axis=0), axis=1)
    true = np.linalg.norm(np.diff(walk.position_m, axis=0), axis=1)
    moving = true > 1e-6
    assert np.std(steps[moving] / true[moving]) == pytest.approx(0.05, rel=0.3)
    with pytest.raises(ValueError, match="noise is 2.0; it must be from 0"):
        odometry(walk, 2.0, 1)


def test_a_track_in_another_frame_and_unit_is_right():
    true = {i: posed([np.cos(i / 5), np.sin(i / 5), 0.1 * i], i / 5) for i in range(30)}
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    map_from_home = Sim3(0.5, turn, np.array([3.0, -2, 1]))
    estimated = {i: map_from_home.apply_pose(p) for i, p in true.items() if i % 2}
    track = drive_metrics.track(estimated, true)
    scores = track.scores()
    assert scores["frames"] == 15 and scores["trajectory_error_m"] < 1e-6
    assert scores["scale_error"] == pytest.approx(-0.5)
    np.testing.assert_allclose(track.home_from_map.apply(track.estimated), track.true, atol=1e-9)
    off = {i: p.copy() for i, p in estimated.items()}
    off[1][:3, 3] += 0.3
    assert drive_metrics.track(off, true).scores()["trajectory_error_m"] > 0.01
    assert drive_metrics.track({1: true[1], 99: true[2]}, true) is None


@pytest.mark.parametrize("speed", [0.5, 0.0])
def test_a_straight_or_standing_track_is_turned_by_its_headings(speed):
    true = {i: posed([speed * i, 0.0, 1.3], 0.2 * i) for i in range(8)}
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    map_from_home = Sim3(0.5 if speed else 1.0, turn, np.array([3.0, -2, 1]))
    estimated = {i: map_from_home.apply_pose(pose) for i, pose in true.items()}
    track = drive_metrics.track(estimated, true)
    assert track.scores()["trajectory_error_m"] < 1e-6
    np.testing.assert_allclose(track.home_from_map.rotation, turn.T, atol=1e-9)
    assert track.home_from_map.scale == pytest.approx(1 / map_from_home.scale)


def test_depth_scores_tell_scale_from_shape():
    true = np.random.default_rng(0).uniform(1, 4, (12, 16)).astype(np.float32)
    right = drive_metrics.depth_scores(1.2 * true, true)
    assert right["abs_rel"] == pytest.approx(0.0, abs=1e-6)
    assert right["metric_abs_rel"] == pytest.approx(0.2, rel=1e-3)
    partly = true.copy()
    partly[0] = np.nan
    assert drive_metrics.depth_scores(partly, true)["metric_abs_rel"] == pytest.approx(
        0.0, abs=1e-6
    )
    assert drive_metrics.depth_scores(np.full((12, 16), np.nan, np.float32), true) is None
    assert drive_metrics.depth_scores(true[:6], true[:6].repeat(2, 0))["abs_rel"] < 1e-6


def test_a_map_of_what_was_seen_is_near_and_complete():
    camera = lens(28, 21)
    depth = {0: np.full((21, 28), 2.0, np.float32)}
    surface = drive_metrics.surfaces(depth, {0: np.eye(4)}, camera)
    np.testing.assert_allclose(surface[:, 2], 2.0)
    perfect = drive_metrics.map_scores(surface, surface)
    assert perfect == {"map_accuracy_m": 0.0, "map_completeness": 1.0}
    shifted = drive_metrics.map_scores(surface + [0, 0, 0.5], surface)
    assert shifted["map_accuracy_m"] == pytest.approx(0.5, abs=0.01)
    assert shifted["map_completeness"] == 0.0
    half = drive_metrics.map_scores(surface[surface[:, 0] > 0.2], surface)
    assert half["map_accuracy_m"] < 0.01 and 0.3 < half["map_completeness"] < 0.8


@pytest.mark.parametrize(
    ("least", "true", "holds"),
    [
        ("0.8 metres", "2.0 metres.", True),
        ("2.4 metres", "2.0 metres.", True),
        ("2.5 metres", "2.0 metres.", False),
        ("0.35 metres", "0.3 metres.", True),
    ],
)
def test_a_lower_bound_holds_up_to_the_tolerance_of_a_length(least, true, holds):
    assert question_metrics.bound_holds(least, true) == holds
    with pytest.raises(ValueError, match="lengths"):
        question_metrics.bound_holds("large", true)


def test_calibration_is_how_far_confidence_is_from_being_right():
    perfect = [(0.75, True), (0.75, True), (0.75, True), (0.75, False), (1.0, True)]
    assert question_metrics.calibration_error(perfect) == pytest.approx(0.0)
    boastful = [(1.0, False)] * 3 + [(1.0, True)] + [(0.05, False)] * 4
    assert question_metrics.calibration_error(boastful) == pytest.approx((0.75 + 0.05) / 2)
    assert question_metrics.calibration_table(boastful) == [
        {"confidence": 0.05, "right": 0.0, "count": 4},
        {"confidence": 1.0, "right": 0.25, "count": 4},
    ]


def test_a_baseline_learns_from_training_homes_what_needs_no_look():
    rows = question_metrics.training_questions(2, views=2)
    again = question_metrics.training_questions(2, views=2)
    assert rows == again and len({qa.kind for qa in rows}) > 6
    blind = question_metrics.Baselines(rows)
    assert blind.majority("count").rstrip(".").isdigit()
