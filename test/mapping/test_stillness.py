# SPDX-License-Identifier: Apache-2.0
"""A camera that stands still is told from one that moves, through noise, light and passers-by."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from g2vlm_ros.demo.sim.analytic_hall import lap_poses, look
from g2vlm_ros.mapping.stillness import StillnessDetector
from g2vlm_ros.records import Frame


def frame(odometry=None):
    return Frame(1, "camera", "optical", lambda: None, odom_from_camera=odometry)


def scene():
    """uint8 (120, 160, 3) with texture of all sizes."""
    rng, image = np.random.default_rng(3), np.zeros((120, 160, 3))
    for cells in (4, 12, 40):
        coarse = rng.uniform(0, 80, (cells, cells, 3)).astype(np.float32)
        image += cv2.resize(coarse, (160, 120), interpolation=cv2.INTER_CUBIC)
    return np.clip(image, 0, 255).astype(np.uint8)


def moved(image, x_px, y_px=0.0):
    shift = np.array([[1.0, 0, x_px], [0, 1, y_px]])
    return cv2.warpAffine(image, shift, image.shape[1::-1], borderMode=cv2.BORDER_REFLECT)


def noisy(image, seed, std=2.5):
    noise = np.random.default_rng(seed).normal(0, std, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def detector():
    detector = StillnessDetector()
    detector.take(frame(), scene())
    return detector


def test_noise_exposure_and_a_passer_by_are_no_motion(detector):
    for seed in range(20):
        assert detector.is_still(frame(), noisy(scene(), seed))
    assert detector.is_still(frame(), np.clip(scene() * 1.06, 0, 255).astype(np.uint8))
    person = noisy(scene(), 1)
    person[20:120, 60:90] = 40
    assert detector.is_still(frame(), person)


@pytest.mark.parametrize("shift", [(0.8, 0.0), (0.0, -1.0), (12.0, 3.0)])
def test_motion_is_seen(detector, shift):
    assert not detector.is_still(frame(), noisy(moved(scene(), *shift), 0))


def test_a_slow_creep_adds_up(detector):
    still = [detector.is_still(frame(), moved(scene(), 0.1 * k)) for k in range(12)]
    assert still[1] and not still[-1]


def test_a_step_forward_in_a_hall_is_motion():
    poses = lap_poses(2, 0.05)
    detector = StillnessDetector()
    views = [cv2.resize(look(pose)[1], (160, 120)) for pose in poses]
    detector.take(frame(), views[0])
    assert detector.is_still(frame(), noisy(views[0], 1))
    assert not detector.is_still(frame(), noisy(views[1], 1))


def test_a_bare_wall_is_left_to_odometry():
    wall, detector = np.full((120, 160, 3), 90, np.uint8), StillnessDetector()
    here, there = np.eye(4), np.eye(4)
    there[0, 3] = 0.05
    detector.take(frame(here), wall)
    assert detector.is_still(frame(here), noisy(wall, 0))
    assert not detector.is_still(frame(there), noisy(wall, 0))


def test_another_view_and_an_unknown_camera_are_not_still(detector):
    assert not detector.is_still(frame(), scene()[::-1].copy())
    other = Frame(1, "rear", "optical", lambda: None)
    assert not detector.is_still(other, scene())
    detector.clear()
    assert not detector.is_still(frame(), scene())
