# SPDX-License-Identifier: Apache-2.0
"""Errors of trajectories and maps on cases whose answers are known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from g2vlm_ros.evaluation.map_metrics import map_errors
from g2vlm_ros.evaluation.stand_in import StandInErrors
from g2vlm_ros.evaluation.trajectory_metrics import (
    PublishedPose,
    consistency,
    trajectory_errors,
)
from g2vlm_ros.geometry.sim3 import Sim3


def circle(count: int = 60, radius: float = 2.0) -> np.ndarray:
    """Poses on a circle that look along their way, with some height so that nothing is flat."""
    angles = np.linspace(0, 2 * np.pi, count)
    poses = np.tile(np.eye(4), (count, 1, 1))
    for pose, angle in zip(poses, angles, strict=True):
        pose[:3, :3] = cv2.Rodrigues(np.array([0.0, angle, 0.0]))[0]
        pose[:3, 3] = radius * np.cos(angle), 0.3 * np.sin(3 * angle), -radius * np.sin(angle)
    return poses


def turned(scale: float) -> Sim3:
    return Sim3(scale, cv2.Rodrigues(np.array([0.3, -0.8, 0.5]))[0], np.array([3.0, -1.0, 2.0]))


def test_the_same_track_elsewhere_has_no_error_but_its_scale() -> None:
    true = circle()
    errors = trajectory_errors(turned(1.1).apply_pose(true), true, metric=True)
    assert errors.ate_sim3_m < 1e-9 and errors.ate_rotation_deg < 1e-5
    assert errors.scale_error == pytest.approx(0.1)
    assert errors.rpe_m_per_m < 1e-9
    # A tenth too long: every place is a tenth of its distance from the middle off.
    spread = np.sqrt(((true[:, :3, 3] - true[:, :3, 3].mean(0)) ** 2).sum(1).mean())
    assert errors.ate_se3_m == pytest.approx(0.1 * spread, rel=1e-6)
    assert np.isnan(trajectory_errors(true, true, metric=False).ate_se3_m)


def test_a_bent_track_shows_its_drift_per_metre() -> None:
    """A track that turns half a degree too much per metre."""
    true = circle()
    estimate = [np.eye(4)]
    for before, after in zip(true, true[1:], strict=False):
        step = np.linalg.inv(before) @ after
        extra = np.deg2rad(0.5) * np.linalg.norm(step[:3, 3])
        step[:3, :3] = step[:3, :3] @ cv2.Rodrigues(np.array([0.0, extra, 0.0]))[0]
        estimate.append(estimate[-1] @ step)
    errors = trajectory_errors(np.stack(estimate), true, metric=False)
    way = np.linalg.norm(np.diff(true[:, :3, 3], axis=0), axis=1).sum()
    assert errors.path_m == pytest.approx(way)
    assert errors.rpe_deg_per_m == pytest.approx(0.5, rel=0.02)
    assert errors.ate_sim3_m > 0.02


def test_a_straight_track_is_turned_by_its_orientations() -> None:
    true = np.tile(np.eye(4), (5, 1, 1))
    true[:, 2, 3] = np.arange(5.0)
    errors = trajectory_errors(turned(2.0).apply_pose(true), true, metric=False)
    assert errors.ate_sim3_m < 1e-9
    assert trajectory_errors(true[:2], true[:2], metric=False) is None


@pytest.mark.parametrize("honest", [1.0, 0.5])
def test_consistency_is_one_where_covariances_are_true(honest: float) -> None:
    rng, published = np.random.default_rng(0), []
    std = np.array([0.1, 0.2, 0.05, 0.01, 0.02, 0.01])
    for pose in circle(400):
        error = rng.normal(size=6) * std
        estimate = pose.copy()
        estimate[:3, 3] += error[:3]
        estimate[:3, :3] = cv2.Rodrigues(error[3:])[0] @ estimate[:3, :3]
        published.append(PublishedPose(estimate, np.diag((honest * std) ** 2), pose))
    result = consistency(published)
    for value in (result.covariance_ratio, result.nees_position, result.nees_rotation):
        assert value == pytest.approx(honest**-2, rel=0.15)
    assert np.isnan(consistency([]).covariance_ratio)


def test_map_errors_of_a_shifted_half() -> None:
    rng = np.random.default_rng(0)
    wall = np.column_stack([rng.uniform(0, 4, (20_000, 2)), np.zeros(20_000)])
    half = wall[wall[:, 0] < 2] + [0, 0, 0.05]
    errors = map_errors(half, wall)
    assert errors["map_accuracy_m"] == pytest.approx(0.05, abs=0.01)
    assert errors["map_completeness"] == pytest.approx(0.52, abs=0.03), "0.1 m beyond counts"
    assert np.isnan(map_errors(half[:0], wall)["map_accuracy_m"])


def test_stand_in_errors_are_read_from_text() -> None:
    errors = StandInErrors.parse("turn=1, shift=0.015,depth=0.04,every=2")
    assert errors == StandInErrors(1.0, 0.015, 0.04, 0.0, 2)
    assert StandInErrors.parse("") == StandInErrors()
    for text in ("turn", "turns=1", "turn=x", "turn=-1", "every=0", "every=1.5"):
        with pytest.raises(ValueError, match="--stand-in has"):
            StandInErrors.parse(text)
