# SPDX-License-Identifier: Apache-2.0
"""Errors of the stand-in belong to a seed and a window's frames, not to what was asked before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from g2vlm_tests.walk_views import rig_views, walk_views

from g2vlm_ros.evaluation.stand_in import StandInErrors, StandInPerception

ERRORS = StandInErrors(turn=1.0, shift=0.015, depth=0.04, seed=3)
WINDOW = [0, 3, 6, 9]


def stand_in(errors: StandInErrors = ERRORS, first: int = 0) -> StandInPerception:
    """In a validation home; `first` leaves out as many frames at the start."""
    return StandInPerception(walk_views()[first:], errors)


def geometry(
    perception: StandInPerception, numbers: list[int] = WINDOW
) -> tuple[np.ndarray, np.ndarray]:
    """Points and poses of a window."""
    raw = perception.reconstruct(numbers).geometry
    return raw.local_points_u, raw.window_from_camera


def relative(poses: np.ndarray) -> np.ndarray:
    """Poses of a window in its first camera, whatever frame it came in."""
    return np.linalg.inv(poses[0]) @ poses


def test_a_window_that_is_asked_for_twice_or_after_others_is_the_same() -> None:
    asked_once, asked_late = stand_in(), stand_in()
    first = geometry(asked_once)
    for numbers in ([1, 4, 7, 10], [9, 6, 3], WINDOW):
        geometry(asked_late, numbers)
    for before, after in zip(first, geometry(asked_late), strict=True):
        np.testing.assert_array_equal(before, after)


def test_the_order_of_a_windows_views_is_not_drawn() -> None:
    points, poses = geometry(stand_in())
    turned_points, turned_poses = geometry(stand_in(), WINDOW[::-1])
    np.testing.assert_array_equal(turned_points[::-1], points)
    np.testing.assert_array_equal(turned_poses[::-1], poses)


def test_frames_are_known_by_their_stamps_and_not_by_their_place_in_a_list() -> None:
    points, poses = geometry(stand_in())
    later_points, later_poses = geometry(stand_in(first=2), [1, 4, 7])
    same_points, same_poses = geometry(stand_in(), WINDOW[1:])
    np.testing.assert_array_equal(later_points, same_points)
    np.testing.assert_array_equal(later_poses, same_poses)
    assert np.abs(relative(poses[1:]) - relative(same_poses)).max() > 1e-3, "a window of its own"


@pytest.mark.parametrize("numbers", [[0, 0, 0], [1, 1, 0]])
def test_a_view_that_a_window_has_twice_errs_in_two_ways(numbers) -> None:
    points, poses = geometry(stand_in(), numbers)
    assert np.abs(points[0] - points[1]).max() > 1e-3
    assert np.abs(poses[0] - poses[1]).max() > 1e-3


def test_two_cameras_of_one_instant_have_errors_of_their_own() -> None:
    frames = rig_views()
    assert frames[0].stamp_ns == frames[1].stamp_ns
    exact = StandInPerception(frames, StandInErrors(seed=ERRORS.seed))
    noisy = StandInPerception(frames, ERRORS)
    share = [
        geometry(noisy, [0, 1])[0][view, ..., 2] / geometry(exact, [0, 1])[0][view, ..., 2]
        for view in (0, 1)
    ]
    assert abs(np.median(share[0]) - np.median(share[1])) > 1e-3


def test_another_seed_is_another_draw_and_one_error_leaves_the_others() -> None:
    points, poses = geometry(stand_in())
    other_points, other_poses = geometry(stand_in(replace(ERRORS, seed=4)))
    assert np.abs(relative(poses) - relative(other_poses)).max() > 1e-3
    assert not np.allclose(points / points[0].mean(), other_points / other_points[0].mean())
    depth_only, _ = geometry(stand_in(replace(ERRORS, turn=0.0, shift=0.0)))
    np.testing.assert_array_equal(depth_only, points)


def test_errors_are_as_large_as_they_are_called() -> None:
    frames = walk_views()
    windows = [[i, j, k] for i in range(10) for j, k in ((i + 2, i + 3), (i + 1, i + 5))]
    turned = StandInPerception(frames, StandInErrors(turn=1.0))
    exact = StandInPerception(frames, StandInErrors())
    turns = []
    for numbers in windows:
        true, said = (geometry(each, numbers)[1][:, :3, :3] for each in (exact, turned))
        skew = np.swapaxes(true, 1, 2) @ said
        turns += [skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]]
    assert np.degrees(np.std(turns)) == pytest.approx(1.0, rel=0.2)
