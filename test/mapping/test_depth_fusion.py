# SPDX-License-Identifier: Apache-2.0
"""Laws of fused depth: errors of single views shrink, what is right or seen once stays."""

import numpy as np
import pytest

from g2vlm_ros.geometry.camera import unproject
from g2vlm_ros.mapping.depth_fusion import TOLERANCE, fuse_depth
from g2vlm_ros.records import Intrinsics, RawGeometry, Reconstruction

WALL_M = 3.0


def window(errors, places=None, factor=1, intrinsics=True):
    """Cameras at `places` along x, before a wall at z = 3 m, that see it farther by `errors`.

    errors: one factor on the depth per view, or an image of factors.
    """
    places = 0.1 * np.arange(len(errors)) if places is None else places
    width, height = 80 * factor, 60 * factor
    camera = Intrinsics(
        60.0 * factor, 60.0 * factor, (width - 1) / 2, (height - 1) / 2, width, height
    )
    rows, columns = np.mgrid[0:height, 0:width]
    maps = [np.broadcast_to(error, rows.shape) for error in errors]
    local = [unproject(np.stack([columns, rows], -1), WALL_M * each, camera) for each in maps]
    poses = np.tile(np.eye(4, dtype=np.float32), (len(errors), 1, 1))
    poses[:, 0, 3] = places
    points = np.stack(local).astype(np.float32)
    rotation9 = np.tile(np.eye(3, dtype=np.float32).ravel(), (len(errors), 1))
    confidence = np.full(points.shape[:3], 0.5, np.float32)
    cameras = (camera if intrinsics else None,) * len(errors)
    geometry = RawGeometry(points, poses, rotation9)
    return Reconstruction(geometry, np.zeros(points.shape, np.uint8), confidence, cameras, {})


def depth(result):
    return result.local_points_u[..., 2]


@pytest.mark.parametrize("factor", [1, 3])
def test_errors_of_single_views_shrink(factor):
    rng = np.random.default_rng(0)
    grid = rng.normal(0, 0.06, (4, 3, 4))
    errors = np.exp(grid.repeat(20 * factor, axis=1).repeat(20 * factor, axis=2))
    before = window(errors, factor=factor)
    after = fuse_depth(before)
    off = [np.abs(depth(result) / WALL_M - 1).mean() for result in (before, after)]
    assert off[1] < 0.65 * off[0], off


def test_points_stay_on_their_rays_and_nothing_else_changes():
    before = window([1.0, 1.1])
    after = fuse_depth(before)
    rays = [r.local_points_u[..., :2] / r.local_points_u[..., 2:] for r in (before, after)]
    np.testing.assert_allclose(rays[0], rays[1], atol=1e-4)
    np.testing.assert_array_equal(after.confidence, before.confidence)
    np.testing.assert_array_equal(after.window_from_camera, before.window_from_camera)


@pytest.mark.parametrize("factor", [1, 4])
def test_views_that_agree_stay(factor):
    """A wall that the cameras see at a slant: z = 3 m + 0.8 x."""
    places = np.array([0.0, 0.1, 0.2])
    x_over_z = (np.arange(80 * factor) - (80 * factor - 1) / 2) / (60 * factor)
    slanted = [(WALL_M + 0.8 * place) / (1 - 0.8 * x_over_z) / WALL_M for place in places]
    before = window([np.tile(row, (60 * factor, 1)) for row in slanted], places, factor)
    np.testing.assert_allclose(depth(fuse_depth(before)), depth(before), rtol=5e-3)


def test_two_views_meet_in_the_middle():
    """Two errors well within the tolerance count the same: both depths become their mean."""
    found = depth(fuse_depth(window([1.0, 1.02], places=[0.0, 0.0])))
    np.testing.assert_allclose(found, WALL_M * np.sqrt(1.02), rtol=2e-4)


def test_a_surface_far_in_front_or_behind_is_another_thing():
    board = window([1.0, 1 / 3], places=[0.0, 0.0])
    change = np.abs(np.log(depth(fuse_depth(board)) / depth(board)))
    assert change.max() < 0.1 * TOLERANCE


def test_a_depth_of_nothing_spoils_no_other_point():
    errors = np.ones((2, 60, 80))
    errors[0, 30, 40] = 0.0
    found = depth(fuse_depth(window(errors)))
    assert np.isfinite(found).all() and np.allclose(np.delete(found.ravel(), 30 * 80 + 40), WALL_M)


def test_pixels_that_no_other_view_sees_stay():
    before = window([1.0, 1.1], places=[0.0, 1.0])
    moved = depth(fuse_depth(before))[0] != depth(before)[0]
    # The camera one metre to the right sees 20 px less of the left side.
    assert not moved[:, :19].any() and moved[:, 30:].all()


def test_without_a_second_view_or_a_lens_nothing_moves():
    alone, blind = window([1.1]), window([1.0, 1.1], intrinsics=False)
    assert fuse_depth(alone) is alone and fuse_depth(blind) is blind
