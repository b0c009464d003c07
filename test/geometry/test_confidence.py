# SPDX-License-Identifier: Apache-2.0
"""Agreement of views: right points are trusted, wrong ones are not, hidden ones say nothing."""

import numpy as np

from g2vlm_ros.geometry.camera import unproject
from g2vlm_ros.geometry.confidence import multi_view_confidence
from g2vlm_ros.records import Intrinsics

CAMERA = Intrinsics(60.0, 60.0, 39.5, 29.5, 80, 60)


def wall_seen_from(x):
    """Point map of the plane z = 3 from a camera at (x, 0, 0), and its pose."""
    rows, columns = np.mgrid[0:60, 0:80]
    local = unproject(np.stack([columns, rows], -1), np.full(rows.shape, 3.0), CAMERA)
    pose = np.eye(4, dtype=np.float32)
    pose[0, 3] = x
    return local.astype(np.float32), pose


def confidence(views, camera=CAMERA):
    points, poses = zip(*views, strict=True)
    return multi_view_confidence(np.stack(points), np.stack(poses), (camera,) * len(views))


def test_consistent_views_agree_and_uncovered_pixels_stay_unknown():
    values = confidence([wall_seen_from(0.0), wall_seen_from(0.5)])
    assert np.nanmin(values) > 0.99
    # The camera at 0.5 m sees 10 px less of the left side of view 0.
    assert np.isnan(values[0, :, :6]).all() and np.isfinite(values[0, :, 16:]).all()


def test_a_view_with_wrong_depth_is_not_trusted_and_costs_the_others():
    good, right, wrong = wall_seen_from(0.0), wall_seen_from(0.2), wall_seen_from(0.1)
    wrong = (wrong[0] * np.float32(0.8), wrong[1])
    values = confidence([good, right, wrong])
    assert np.nanmedian(values[2]) < 0.1 < np.nanmedian(values[0])


def test_points_hidden_behind_a_surface_are_unknown_not_wrong():
    near = wall_seen_from(0.0)
    near = (near[0] / np.float32(3.0), near[1])  # a board one metre away
    values = confidence([wall_seen_from(0.0), near])
    assert np.isnan(values[0]).all()


def test_one_view_or_no_pinhole_gives_no_confidence():
    assert np.isnan(confidence([wall_seen_from(0.0)])).all()
    assert np.isnan(confidence([wall_seen_from(0.0), wall_seen_from(0.1)], camera=None)).all()


def test_depth_edges_are_halved():
    points, pose = wall_seen_from(0.0)
    points = points.copy()
    points[:, 40:] *= np.float32(1.5)
    values = confidence([(points, pose), (points, pose)])
    assert np.isclose(values[0, 30, 41], 0.5, atol=0.05) and values[0, 30, 60] > 0.99
