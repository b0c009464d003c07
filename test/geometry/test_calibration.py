# SPDX-License-Identifier: Apache-2.0
"""Known intrinsics replace what the points say: on rays, in measurements, in remarks."""

from __future__ import annotations

import numpy as np
import pytest
from g2vlm_tests.walk_views import walk_views

from g2vlm_ros.evaluation.stand_in import StandInErrors, StandInPerception
from g2vlm_ros.geometry.calibration import with_known_cameras
from g2vlm_ros.geometry.camera import intrinsics_of_views
from g2vlm_ros.mapping.pose_refinement import refine_poses
from g2vlm_ros.records import Intrinsics


def window(zoom: float):
    """Four true views whose points say a focal length that is wrong by a factor."""
    from dataclasses import replace

    perception = StandInPerception(walk_views(), StandInErrors())
    result = perception.reconstruct([0, 3, 6, 9])
    points = result.local_points_u * np.float32([1 / zoom, 1 / zoom, 1])
    geometry = replace(result.geometry, local_points_u=points)
    return replace(result, geometry=geometry, intrinsics=intrinsics_of_views(points))


def test_points_lie_on_the_known_rays_and_keep_their_depth() -> None:
    wrong, camera = window(1.2), walk_views()[0].intrinsics
    right = with_known_cameras(wrong, [camera, None, camera, camera])
    rows, columns = right.local_points_u.shape[1:3]
    known = camera.resized(columns, rows)
    again = intrinsics_of_views(right.local_points_u)
    for view in (0, 2, 3):
        assert right.intrinsics[view] == known
        assert again[view].fx_px == pytest.approx(known.fx_px, rel=1e-4)
        assert again[view].cy_px == pytest.approx(known.cy_px, abs=0.01)
    np.testing.assert_array_equal(right.local_points_u[..., 2], wrong.local_points_u[..., 2])
    np.testing.assert_array_equal(right.local_points_u[1], wrong.local_points_u[1])
    assert right.recovered_intrinsics == wrong.intrinsics
    assert with_known_cameras(wrong, [None] * 4) is wrong


def test_a_known_camera_mends_what_a_wrong_focal_length_bends() -> None:
    """Tracks agree with the poses only through the rays of the camera that took the images."""
    wrong = window(1.15)
    true = np.stack([walk_views()[i].world_from_camera for i in (0, 3, 6, 9)])

    def turn_error(result):
        poses = refine_poses(result).window_from_camera.astype(np.float64)
        between = np.linalg.inv(poses[0]) @ poses[3]
        goal = np.linalg.inv(true[0]) @ true[3]
        off = between[:3, :3].T @ goal[:3, :3]
        return np.arccos(np.clip((np.trace(off) - 1) / 2, -1, 1))

    camera: Intrinsics = walk_views()[0].intrinsics
    assert turn_error(with_known_cameras(wrong, [camera] * 4)) < 0.5 * turn_error(wrong)
