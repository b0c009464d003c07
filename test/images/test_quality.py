# SPDX-License-Identifier: Apache-2.0
"""A camera that is covered, blurred or frozen is noticed; one that is merely brighter is not."""

import cv2
import numpy as np
import pytest

from g2vlm_ros.demo.sim.analytic_hall import look, pose_on_lap
from g2vlm_ros.images.quality import FROZEN_RUN, ImageQualityFilter


@pytest.fixture
def scene():
    views = [look(pose_on_lap(0.3 * k))[1] for k in range(30)]
    return [cv2.resize(v, (320, 240), interpolation=cv2.INTER_NEAREST) for v in views]


@pytest.fixture
def judge(scene):
    judge = ImageQualityFilter()
    assert [judge.fault("camera", image) for image in scene[:10]] == [None] * 10
    return judge


@pytest.mark.parametrize("value", [0, 40, 255])
def test_a_flat_image_is_covered_even_at_the_start(value):
    assert ImageQualityFilter().fault("camera", np.full((48, 64, 3), value, np.uint8)) == "covered"


def test_a_hand_before_the_lens_is_covered(judge, scene):
    hand = (scene[10] // 16).astype(np.uint8)
    assert judge.fault("camera", hand) == "covered"
    assert judge.fault("camera", scene[11]) is None


def test_motion_blur_is_noticed_against_what_is_usual(judge, scene):
    blurred = cv2.GaussianBlur(scene[10], (0, 0), 12)
    assert judge.fault("camera", blurred) == "blurred"
    assert judge.fault("camera", scene[11]) is None


def test_jumps_of_exposure_are_no_fault(judge, scene):
    for k, gain in enumerate((0.4, 1.0, 1.8, 0.5)):
        image = np.clip(scene[10 + k] * gain, 0, 255).astype(np.uint8)
        assert judge.fault("camera", image) is None


def test_identical_images_are_frozen_after_a_few_and_good_again_when_they_change(judge, scene):
    faults = [judge.fault("camera", scene[10]) for _ in range(FROZEN_RUN + 3)]
    assert faults == [None] * FROZEN_RUN + ["frozen"] * 3
    assert judge.fault("camera", scene[11]) is None


def test_cameras_are_judged_apart(judge, scene):
    assert judge.fault("other", cv2.GaussianBlur(scene[10], (0, 0), 12)) is None


def test_a_blur_that_lasts_becomes_usual_so_that_plain_rooms_are_not_refused_for_ever(scene):
    judge = ImageQualityFilter()
    for image in scene[:15]:
        judge.fault("camera", image)
    blurred = [cv2.GaussianBlur(image, (0, 0), 12) for image in scene[15:]]
    faults = [judge.fault("camera", image) for image in blurred]
    assert faults[0] == "blurred" and faults[-1] is None
