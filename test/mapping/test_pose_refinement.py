# SPDX-License-Identifier: Apache-2.0
"""Laws of poses mended by images: wrong ones come right, right ones stay, nothing is guessed."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from g2vlm_tests.noisy_windows import SPOILT, WRONG, errors, window

from g2vlm_ros.demo.sim.analytic_hall import (
    Noise,
    lap_poses,
    random_unit,
    rotation,
)
from g2vlm_ros.geometry.confidence import multi_view_confidence
from g2vlm_ros.mapping import pose_refinement
from g2vlm_ros.mapping.pose_refinement import PoseRefiner, refine_poses
from g2vlm_ros.mapping.window_adjustment import (
    PER_VIEW,
    Adjustment,
    NetworkStd,
    adjusted_std,
)


def wider(result, factor):
    """The same window from larger images."""
    size = (result.colours.shape[2] * factor, result.colours.shape[1] * factor)
    larger = lambda images: np.stack([cv2.resize(i, size) for i in images])  # noqa: E731
    camera = result.intrinsics[0]
    wide = replace(
        camera,
        fx_px=camera.fx_px * factor,
        fy_px=camera.fy_px * factor,
        cx_px=(camera.cx_px + 0.5) * factor - 0.5,
        cy_px=(camera.cy_px + 0.5) * factor - 0.5,
        width_px=size[0],
        height_px=size[1],
    )
    points = result.local_points_u.repeat(factor, axis=1).repeat(factor, axis=2)
    geometry = replace(result.geometry, local_points_u=points)
    confidence = result.confidence.repeat(factor, axis=1).repeat(factor, axis=2)
    cameras = (wide,) * result.views
    return replace(
        result,
        geometry=geometry,
        colours=larger(result.colours),
        confidence=confidence,
        intrinsics=cameras,
    )


@pytest.mark.parametrize("factor", [1, 4])
def test_wrong_poses_come_right(factor):
    before, after = [], []
    for seed in range(4):
        result, truth = window(WRONG, seed)
        result = result if factor == 1 else wider(result, factor)
        before.append(errors(result, truth))
        after.append(errors(refine_poses(result), truth))
    assert (np.mean(after, axis=0) < 0.5 * np.mean(before, axis=0)).all()


def test_depth_comes_right_smoothly_and_confidence_follows():
    result, truth = window(WRONG)
    refined = refine_poses(result)
    assert refined.intrinsics == result.intrinsics
    stretch = np.log(refined.local_points_u[..., 2] / result.local_points_u[..., 2])
    assert 0 < np.abs(stretch).max() < 0.1
    for axis in (1, 2):
        assert np.abs(np.diff(stretch, axis=axis)).max() < 0.01, "no edge of the depth moves"
    rays = [points[..., :2] / points[..., 2:] for points in
            (result.local_points_u, refined.local_points_u)]  # fmt: skip
    np.testing.assert_allclose(*rays, atol=1e-5)
    expected = multi_view_confidence(
        refined.local_points_u, refined.window_from_camera, refined.intrinsics
    )
    np.testing.assert_array_equal(refined.confidence, expected)
    network = multi_view_confidence(
        result.local_points_u, result.window_from_camera, result.intrinsics
    )
    assert np.nanmean(refined.confidence) > np.nanmean(network)


def test_where_images_say_nothing_poses_stay():
    result, _ = window(WRONG)
    flat = replace(result, colours=np.full_like(result.colours, 90))
    assert refine_poses(flat) is flat
    blind = replace(result, intrinsics=(None,) * 4)
    assert refine_poses(blind) is blind
    alone, _ = window(WRONG, count=1)
    assert refine_poses(alone) is alone


def test_a_view_without_texture_is_held_by_depth_and_misleads_nobody():
    result, truth = window(WRONG)
    colours = result.colours.copy()
    colours[3] = 90
    refined = refine_poses(replace(result, colours=colours))
    assert errors(refined, truth)[0] < errors(result, truth)[0]
    found = np.linalg.inv(refined.window_from_camera[0].astype(float)) @ refined.window_from_camera
    right = np.linalg.inv(truth[0]) @ truth
    for view in (1, 2):
        turn = found[view, :3, :3].T @ right[view, :3, :3]
        assert np.linalg.norm(cv2.Rodrigues(turn)[0]) < 0.02


def test_a_match_from_which_fewer_points_are_found_again_is_not_believed(monkeypatch):
    """As on a wallpaper, whose pattern fits in many places."""
    result, _ = window(WRONG)
    colours = result.colours.copy()
    colours[3] = 90
    result = replace(result, colours=colours)
    asked = []

    def elsewhere(result, images, poses, linked):
        asked.append(poses)
        turn = np.eye(4)
        turn[:3, :3] = rotation(np.array([0.0, 0.6, 0.0]))
        return np.concatenate([poses[:1], poses[1:] @ turn])

    monkeypatch.setattr(pose_refinement, "matched_poses", lambda *arguments: arguments[2])
    alone = refine_poses(result)
    monkeypatch.setattr(pose_refinement, "matched_poses", elsewhere)
    misled = refine_poses(result)
    assert asked, "no track reaches the last view"
    np.testing.assert_array_equal(misled.window_from_camera, alone.window_from_camera)


@pytest.mark.parametrize("turn_deg", [0.5, 2.0])
def test_how_far_the_network_is_off_is_learnt(turn_deg):
    refiner = PoseRefiner()
    noise = replace(SPOILT, turn_rad=np.deg2rad(turn_deg), shift=0.01)
    for seed in range(6):
        refiner.refine(window(noise, seed)[0])
    assert np.rad2deg(refiner.errors.std.turn_rad) == pytest.approx(turn_deg, rel=0.35)
    assert refiner.errors.std.shift == pytest.approx(0.01, rel=0.5)


def test_a_network_that_is_better_than_images_is_left_alone():
    refiner = PoseRefiner()
    for seed in range(4):
        result, truth = window(Noise(), seed)
        refined = refiner.refine(result)
        turn, shift = errors(refined, truth)
        assert turn < np.deg2rad(0.1) and shift < 0.002


def by_odometry(count=4, slip_rad=0.0):
    """Camera poses in a frame of odometry, each turned further by a slip."""
    start = random_unit(np.random.default_rng(5))
    poses = list(replace(start, scale=1.0).apply_pose(lap_poses(count, 0.2)))
    for number, pose in enumerate(poses):
        pose[:3, :3] = pose[:3, :3] @ rotation(np.array([0.0, number * slip_rad, 0.0]))
    return poses


def test_where_images_say_nothing_odometry_says_how_the_camera_turned():
    result, truth = window(WRONG)
    flat = replace(result, colours=np.full_like(result.colours, 90))
    refined = refine_poses(flat, by_odometry())
    # Halfway: nothing is learnt yet of a network that is so far off.
    assert errors(refined, truth)[0] < 0.85 * errors(flat, truth)[0]
    alone = [by_odometry()[0], None, None, None]
    assert refine_poses(flat, alone) is flat, "no turn between two views"


def test_poses_beyond_the_reach_of_tracks_come_right():
    for far in (0.35, 0.8):
        result, truth = window(replace(SPOILT, turn_rad=far))
        for odometry in ((), by_odometry(slip_rad=0.01)):
            refined = refine_poses(result, odometry)
            assert errors(refined, truth)[0] < 0.06


def test_odometry_that_images_contradict_is_not_believed():
    result, truth = window(SPOILT)
    assert errors(refine_poses(result, by_odometry(slip_rad=0.2)), truth)[0] < 0.02
    result, truth = window(WRONG)
    refined = refine_poses(result, by_odometry(slip_rad=0.03))
    assert errors(refined, truth)[0] < 0.5 * errors(result, truth)[0]


def test_what_is_left_of_errors_is_by_what_holds_views_together():
    """Halves of a window that nothing ties err as the network does, tied ones hardly."""
    prior, depth_u = NetworkStd(0.02, 0.03, 0.04, 0.05), 2.0
    poses = np.stack([np.eye(4)] * 4)
    poses[:, :3, :3] = [rotation(np.array([0.1, 0.4, 0.2]) * view) for view in range(4)]
    information = prior.information(4, depth_u)

    def left(tied):
        """With turns of successive views measured to 0.001 rad where `tied` says so."""
        evidence = information.copy()
        for first, second in tied:
            jacobian = np.zeros((3, 4 * PER_VIEW))
            for view, sign in ((first, -1), (second, 1)):
                begin = PER_VIEW * view
                jacobian[:, begin : begin + 3] = sign * poses[view, :3, :3]
            evidence += jacobian.T @ jacobian / 0.001**2
        nothing = np.zeros((4, PER_VIEW))
        return adjusted_std(Adjustment(poses, nothing[:, 6:], nothing, evidence), depth_u)

    for tied in ([], [(0, 1), (2, 3)]):
        std = left(tied)
        assert std.turn_rad == pytest.approx(0.02, rel=1e-3)
        assert std.shift == pytest.approx(0.03, rel=1e-6)
        assert std.scale == pytest.approx(np.hypot(0.04, 0.05 / np.sqrt(12)), rel=1e-6)
    assert left([(0, 1), (1, 2), (2, 3)]).turn_rad < 0.002


def test_a_window_says_how_far_its_views_are_off():
    """What is left is smaller than what the network errs, and about as large as the truth says."""
    refiner = PoseRefiner()
    for seed in range(6):
        result, _ = window(WRONG, seed)
        refined = refiner.refine(result)
    assert result.view_std is None
    assert 0.005 < refined.view_std.turn_rad < 0.5 * refiner.errors.std.turn_rad
    assert 0 < refined.view_std.shift < refiner.errors.std.shift
