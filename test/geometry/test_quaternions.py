# SPDX-License-Identifier: Apache-2.0
"""Quaternions in ROS order."""

from __future__ import annotations

import numpy as np
import pytest

from g2vlm_ros.geometry.sim3 import quaternion_xyzw, rotation_from_xyzw


def test_known_rotations_give_the_quaternions_of_the_textbook():
    half = np.sqrt(0.5)
    about_z = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    about_x = np.diag([1.0, -1.0, -1.0])
    np.testing.assert_allclose(quaternion_xyzw(np.eye(3)), [0, 0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(quaternion_xyzw(about_z), [0, 0, half, half], atol=1e-12)
    np.testing.assert_allclose(np.abs(quaternion_xyzw(about_x)), [1, 0, 0, 0], atol=1e-12)


def test_there_and_back_for_random_quaternions_of_any_length():
    for quaternion in np.random.default_rng(0).normal(size=(200, 4)):
        rotation = rotation_from_xyzw(quaternion)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        back = quaternion_xyzw(rotation)
        assert back[3] >= 0
        np.testing.assert_allclose(
            back, np.sign(quaternion[3]) * quaternion / np.linalg.norm(quaternion), atol=1e-9
        )


@pytest.mark.parametrize(
    "matrix",
    [np.eye(3) * 2, np.diag([1.0, 1.0, -1.0]), np.full((3, 3), np.nan), np.zeros((3, 3))],
    ids=["scaled", "mirrored", "nan", "zero"],
)
def test_a_matrix_that_is_no_rotation_is_refused(matrix):
    with pytest.raises(ValueError, match="no rotation"):
        quaternion_xyzw(matrix)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_quaternion_without_direction_is_refused(value):
    with pytest.raises(ValueError, match="not zero"):
        rotation_from_xyzw(np.full(4, value))
