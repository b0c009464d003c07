# SPDX-License-Identifier: Apache-2.0
"""Laws of transforms, projection and recovered intrinsics."""

import numpy as np
import pytest
from g2vlm_tests.random_geometry import random_rotation, random_sim3

from g2vlm_ros.geometry.camera import depth_edges, intrinsics_of_views, project, unproject
from g2vlm_ros.geometry.sim3 import ZUP_FROM_OPTICAL
from g2vlm_ros.records import Intrinsics


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def test_inverse_undoes_and_composition_is_application_in_turn(rng):
    points = rng.normal(size=(50, 3))
    a, b = random_sim3(rng), random_sim3(rng)
    np.testing.assert_allclose(a.inverse().apply(a.apply(points)), points, atol=1e-12)
    np.testing.assert_allclose((a @ b).apply(points), a.apply(b.apply(points)), atol=1e-12)
    np.testing.assert_allclose((a @ a.inverse()).rotation, np.eye(3), atol=1e-12)


def test_mapped_pose_maps_camera_points_like_the_points_themselves(rng):
    world_from_camera = np.eye(4)
    world_from_camera[:3, :3], world_from_camera[:3, 3] = random_rotation(rng), rng.normal(size=3)
    local = rng.normal(size=(20, 3))
    world = local @ world_from_camera[:3, :3].T + world_from_camera[:3, 3]
    move = random_sim3(rng)
    mapped = move.apply_pose(world_from_camera)
    again = (move.scale * local) @ mapped[:3, :3].T + mapped[:3, 3]
    np.testing.assert_allclose(again, move.apply(world), atol=1e-12)
    np.testing.assert_allclose(mapped[:3, :3] @ mapped[:3, :3].T, np.eye(3), atol=1e-12)


def test_apply_keeps_float32(rng):
    points = rng.normal(size=(4, 3)).astype(np.float32)
    assert random_sim3(rng).apply(points).dtype == np.float32


def test_optical_forward_becomes_map_forward_and_down_becomes_minus_z():
    np.testing.assert_array_equal(ZUP_FROM_OPTICAL @ [0, 0, 1], [1, 0, 0])
    np.testing.assert_array_equal(ZUP_FROM_OPTICAL @ [0, 1, 0], [0, 0, -1])
    np.testing.assert_array_equal(ZUP_FROM_OPTICAL @ [1, 0, 0], [0, -1, 0])


def test_project_undoes_unproject_and_refuses_points_behind(rng):
    camera = Intrinsics(300.0, 310.0, 159.5, 119.0, 320, 240)
    pixels = rng.uniform([0, 0], [319, 239], size=(100, 2))
    depth = rng.uniform(0.5, 9, size=100)
    points = unproject(pixels, depth, camera)
    np.testing.assert_allclose(project(points, camera), pixels, atol=1e-9)
    assert np.isnan(project(-points, camera)).all()
    homogeneous = points @ camera.matrix().T
    np.testing.assert_allclose(homogeneous[:, :2] / homogeneous[:, 2:], pixels, atol=1e-9)


def test_resized_camera_sees_the_same_ray_at_the_resized_pixel():
    camera = Intrinsics(300.0, 310.0, 150.0, 119.0, 320, 240)
    small = camera.resized(112, 84)
    point = np.array([[0.3, -0.2, 1.5]])
    u, v = project(point, camera)[0]
    expected = (u + 0.5) * 112 / 320 - 0.5, (v + 0.5) * 84 / 240 - 0.5
    np.testing.assert_allclose(project(point, small)[0], expected, atol=1e-12)


def test_intrinsics_are_recovered_from_a_point_map_with_noise_free_rays(rng):
    camera = Intrinsics(250.0, 260.0, 90.0, 70.0, 180, 140)
    rows, columns = np.mgrid[0:140, 0:180]
    depth = rng.uniform(1, 5, size=rows.shape)
    points = unproject(np.stack([columns, rows], -1), depth, camera)
    (intrinsics,) = intrinsics_of_views(points.astype(np.float32)[None])
    for name in ("fx_px", "fy_px", "cx_px", "cy_px"):
        assert getattr(intrinsics, name) == pytest.approx(getattr(camera, name), rel=1e-5)


def test_mirrored_rays_are_no_pinhole():
    camera = Intrinsics(250.0, 250.0, 90.0, 70.0, 180, 140)
    rows, columns = np.mgrid[0:140, 0:180]
    points = unproject(np.stack([columns, rows], -1), np.ones(rows.shape), camera)
    points[..., 0] *= -1
    assert intrinsics_of_views(points.astype(np.float32)[None]) == (None,)


def test_depth_edges_mark_both_sides_of_a_step_and_nothing_else():
    depth = np.ones((6, 8))
    depth[:, 4:] = 1.2
    edges = depth_edges(depth, 0.1)
    assert edges[:, 3:5].all() and edges.sum() == 12
    assert not depth_edges(depth, 0.3).any()
