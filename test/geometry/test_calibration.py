# SPDX-License-Identifier: Apache-2.0
"""Known intrinsics replace what the points say: on rays, in measurements, in remarks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from g2vlm_tests.walk_views import walk_views

from g2vlm_ros.evaluation.stand_in import StandInErrors, StandInPerception
from g2vlm_ros.geometry.calibration import with_known_cameras
from g2vlm_ros.geometry.camera import intrinsics_of_views
from g2vlm_ros.pipeline import MappingPipeline
from g2vlm_ros.records import Frame
from g2vlm_ros.settings import Settings


def window(zoom: float):
    """Four true views whose points say a focal length that is wrong by a factor."""
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


class ZoomedPerception(StandInPerception):
    """A network that is wrong about the focal length by 15 %."""

    def reconstruct(self, numbers):
        result = super().reconstruct(numbers)
        points = result.local_points_u * np.float32([1 / 1.15, 1 / 1.15, 1])
        geometry = replace(result.geometry, local_points_u=points)
        return replace(result, geometry=geometry, intrinsics=intrinsics_of_views(points))


@pytest.mark.parametrize("known", [True, False])
def test_windows_come_with_the_rays_of_camera_info(known) -> None:
    views = walk_views()
    live = MappingPipeline(ZoomedPerception(views, StandInErrors()), Settings())
    update = None
    for view in views:
        camera = view.intrinsics if known else None
        frame = Frame(view.stamp_ns, "camera", "optical", view.image, intrinsics=camera)
        live.offer(frame)
        update = live.step() or update
    rays = update.result.local_points_u[0] / update.result.local_points_u[0, ..., 2:]
    rows, columns = rays.shape[:2]
    camera = views[0].intrinsics.resized(columns, rows)
    width = rays[rows // 2, -1, 0] - rays[rows // 2, 0, 0]
    wrong = width / ((columns - 1) / camera.fx_px) - 1
    assert abs(wrong) < 1e-3 if known else abs(wrong) > 0.1
