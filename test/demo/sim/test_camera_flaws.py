# SPDX-License-Identifier: Apache-2.0
"""Each flaw of the simulated camera does what its name says, the same for the same seed."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import pytest

from g2vlm_ros.demo.sim.__main__ import main
from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.sim.camera_flaws import CameraFlaws, FlawedCamera, pose_at
from g2vlm_ros.demo.sim.renderer import render
from g2vlm_ros.demo.sim.scenes import make_scene
from g2vlm_ros.demo.sim.splits import home_seed

CAMERA = lens(112, 84)


@cache
def scene():
    return make_scene(home_seed("validation", 0), legs=3)


@cache
def turning_s() -> float:
    """A time at which the robot turns fast."""
    walk = scene().walk
    turns = np.abs(np.diff(np.unwrap(walk.yaw_rad)))
    return float(walk.time_s[int(np.argmax(turns))] + 0.05)


def pictures(count: int = 1, **flaws) -> list[np.ndarray]:
    camera = FlawedCamera(scene(), CAMERA, CameraFlaws(**flaws))
    return [camera.picture(turning_s()) for _ in range(count)]


def test_a_perfect_camera_takes_the_rendering() -> None:
    pose = pose_at(scene(), turning_s())
    view = render([scene().home], np.zeros(1, int), pose[None], np.array([turning_s()]), CAMERA)
    np.testing.assert_array_equal(pictures()[0], np.array(view.images)[0])


def test_exposure_blurs_along_the_turn() -> None:
    sharp, blurred = pictures()[0], pictures(exposure_s=0.08)[0]
    across = [np.abs(np.diff(image.astype(float), axis=1)).mean() for image in (sharp, blurred)]
    assert across[1] < 0.8 * across[0]


def test_a_rolling_shutter_shears() -> None:
    """The first rows are those of an earlier time, the last ones of a later, the middle is now."""
    readout_s = 0.08
    rolled = pictures(readout_s=readout_s)[0]
    for rows, offset_s in ((slice(0, 8), -0.45), (slice(38, 46), 0.0), (slice(76, 84), 0.45)):
        errors = {}
        for share in (-0.45, 0.0, 0.45):
            time_s = turning_s() + share * readout_s
            view = render([scene().home], np.zeros(1, int), pose_at(scene(), time_s)[None],
                          np.array([time_s]), CAMERA)  # fmt: skip
            error = np.abs(np.array(view.images)[0].astype(float) - rolled)[rows].mean()
            errors[share] = error
        assert min(errors, key=errors.get) == offset_s


def test_noise_grows_in_the_dark() -> None:
    def noise(dim: float) -> float:
        # Once the gain has settled.
        one, other = pictures(12, noise=0.02, dim=dim)[-2:]
        return float((one.astype(float) - other).std()) / float(one.mean())

    assert noise(0.8) > 1.5 * noise(0.0) > 0


def test_exposure_hunts_and_corners_are_darker() -> None:
    steady = [image.mean() for image in pictures(6)]
    hunting = [image.mean() for image in pictures(6, hunting=0.2)]
    assert np.ptp(steady) == 0 and np.ptp(hunting) > 10
    plain, dark = pictures()[0].astype(float), pictures(vignetting=0.5)[0].astype(float)
    corner, middle = (slice(0, 8), slice(0, 8)), (slice(38, 46), slice(52, 60))
    assert dark[corner].mean() < 0.7 * plain[corner].mean()
    assert dark[middle].mean() > 0.95 * plain[middle].mean()


def test_the_same_seed_takes_the_same_pictures() -> None:
    flaws = {"noise": 0.02, "hunting": 0.1}
    np.testing.assert_array_equal(pictures(2, **flaws), pictures(2, **flaws))
    assert (pictures(seed=1, **flaws)[0] != pictures(seed=2, **flaws)[0]).any()


@pytest.mark.parametrize("text", ["blur=1", "noise=much", "noise=-1", "dim=1"])
def test_what_is_no_flaw_is_named(text) -> None:
    with pytest.raises(ValueError, match=text):
        CameraFlaws.parse(text)


def test_a_walk_is_a_sequence(tmp_path) -> None:
    from g2vlm_ros.datasets.open_sequence import open_sequence

    main(["--split", "validation", "--home", "0", "--walk-hz", "0.2", "--width", "112",
          "--flaws", "typical", "--out", str(tmp_path)])  # fmt: skip
    sequence = open_sequence(tmp_path)
    frame = sequence.frames[1]
    assert len(sequence.frames) > 3
    assert cv2.resize(frame.depth_m(), (8, 6)).min() > 0 and frame.image().shape == (84, 112, 3)
