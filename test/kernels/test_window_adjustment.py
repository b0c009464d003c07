# SPDX-License-Identifier: Apache-2.0
"""The equations of a window's adjustment are those of their numpy oracles."""

from __future__ import annotations

import numpy as np
import pytest
from g2vlm_tests import kernel_oracles as oracles
from g2vlm_tests.noisy_windows import WRONG, window

from g2vlm_ros.kernels.window_adjustment import (
    DepthField,
    TrackArrays,
    see_points,
    surface_equations,
    track_equations,
    track_errors,
)
from g2vlm_ros.mapping.window_adjustment import relative_poses

VIEWS, GRID, SIZE = 3, (4, 3), (64, 48)
KNOTS, FIELD = GRID[0] * GRID[1], DepthField(GRID, SIZE)
SHARED = {"cauchy": 2.385, "nearest": 0.05}


def rows(seed, count=400):
    """Points of pairs of views in order of pairs, poses and logarithms of depth."""
    rng = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (VIEWS, 1, 1))
    poses[:, :3, 3] = rng.normal(0, 0.2, (VIEWS, 3))
    for pose in poses:
        pose[:3, :3] = np.linalg.qr(np.eye(3) + rng.normal(0, 0.05, (3, 3)))[0]
        pose[:3, :3] *= np.sign(np.diag(pose[:3, :3]))[None]
    pairs = np.sort(rng.choice(VIEWS * VIEWS, count))
    source, target = pairs // VIEWS, pairs % VIEWS
    kept = source != target
    source, target = source[kept], target[kept]
    pixels = rng.uniform(0, SIZE, (len(source), 2))
    points = np.dstack([*((pixels - 30) / 60).T, np.ones(len(source))])[0]
    points *= rng.uniform(1, 3, (len(source), 1))
    log_depth = rng.normal(0, 0.05, (VIEWS, KNOTS))
    return rng, relative_poses(poses), log_depth, source, target, points, pixels


def compared(kernel, oracle, arguments, options):
    """Both on the same sums, which hold something before."""
    unknowns = VIEWS * (6 + KNOTS)
    before = np.random.default_rng(9).normal(size=(unknowns, unknowns + 1))
    sums = []
    for run in (kernel, oracle):
        hessian, gradient = before[:, 1:].copy(), before[:, 0].copy()
        answer = run(*arguments, hessian, gradient, **options)
        sums.append((hessian, gradient, answer))
    for actual, expected in zip(*sums, strict=True):
        expected = np.asarray(expected)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(actual, expected, rtol=1e-7, atol=1e-9 * scale)
    return sums[0][2]


@pytest.mark.parametrize("depth_error", [0.0, 0.1])
def test_tracks(depth_error):
    rng, relative, log_depth, source, target, points, places = rows(3)
    at, share = oracles.knot_weights(places, SIZE, GRID)
    stretch = np.exp((log_depth[source[:, None], at] * share).sum(1))[:, None]
    seen, _ = oracles.moved_points(relative, source, target, points * stretch, 0.05)
    rays = seen[:, :2] / seen[:, 2:] + rng.normal(0, 0.01, (len(source), 2))
    points = points * np.exp(depth_error * rng.normal(size=(len(source), 1)))
    pixel = rng.uniform(0.004, 0.006, len(source))
    tracks = TrackArrays(source, target, points, places, rays, pixel)
    errors = track_errors(FIELD, relative, log_depth, tracks, nearest=0.05)
    expected = oracles.track_errors(FIELD, relative, log_depth, tracks, nearest=0.05)
    np.testing.assert_allclose(errors, expected, rtol=1e-9)
    options = {"min_px": 0.3, "max_point": 0.5, "pair_std": 0.004, "alike": 4.0}
    noise = compared(
        track_equations,
        oracles.track_equations,
        (FIELD, relative, log_depth, tracks),
        SHARED | options,
    )
    assert noise[0] == pytest.approx(2.0, rel=0.25), "0.01 over pixels of 0.005"
    assert noise[1] == pytest.approx(depth_error, rel=0.4, abs=0.05)


@pytest.mark.parametrize("min_points", [30, 100000])
def test_surfaces(min_points):
    rng, relative, log_depth, source, target, points, places = rows(4)
    maps = rng.normal(0, 0.01, (VIEWS, SIZE[1], SIZE[0], 4)).astype(np.float32)
    maps[..., 0] += 0.5
    maps[..., 3] = rng.random(maps.shape[:3]) < 0.1
    cameras = np.tile([60.0, 60.0, 30.0, 25.0], (VIEWS, 1))
    options = {"border_px": 3, "min_points": min_points, "min_std": 0.005, "alike": 8.0}
    spread = compared(
        surface_equations,
        oracles.surface_equations,
        (FIELD, relative, log_depth, source, target, points, places, maps, cameras),
        SHARED | options,
    )
    assert (spread > 0) == (min_points == 30)


def test_points_seen_by_another_view():
    result, _ = window(WRONG)
    points = result.local_points_u[1].copy()
    points[0, 0, 2], points[0, 1, 2] = -1.0, np.nan
    poses = result.window_from_camera.astype(np.float64)
    motion = (np.linalg.inv(poses[0]) @ poses[1])[:3].astype(np.float32)
    camera = np.array([90.0, 91.0, 56.0, 42.0], np.float32)
    place, depth = see_points(points.reshape(-1, 3), motion, camera)
    expected_place, expected_depth = oracles.warp_view(points, motion, camera)
    assert (place[:2] == -1000).all()
    np.testing.assert_allclose(place, expected_place.reshape(-1, 2), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(depth, expected_depth.reshape(-1), rtol=1e-5)


def test_a_place_that_is_no_number_counts_as_the_first():
    _, relative, log_depth, source, target, points, places = rows(6)
    rays, pixel = np.zeros((len(source), 2)), np.ones(len(source))
    errors = []
    for place in (np.nan, -np.inf, -1.0):
        tracks = TrackArrays(source, target, points, np.full_like(places, place), rays, pixel)
        errors.append(track_errors(FIELD, relative, log_depth, tracks, nearest=0.05))
    np.testing.assert_array_equal(errors[0], errors[2])
    np.testing.assert_array_equal(errors[1], errors[2])


def test_what_does_not_fit_is_refused_by_name():
    _, relative, log_depth, source, target, points, places = rows(5)
    count, unknowns = len(source), VIEWS * (6 + KNOTS)
    tracks = TrackArrays(source, target, points, places, np.zeros((count, 2)), np.ones(count))
    good = [FIELD, relative, log_depth, tracks, np.zeros((unknowns, unknowns)),
            np.zeros(unknowns)]  # fmt: skip
    options = {"min_px": 0.3, "max_point": 0.5, "pair_std": 0.004, "alike": 4.0, **SHARED}
    for place, bad, name in (
        (0, DepthField((1, 3), SIZE), "knots"),
        (0, DepthField(GRID, (0, 3)), "size"),
        (1, relative[:2], "relative"),
        (2, log_depth[:, 1:], "log_depth"),
        (3, tracks._replace(source=source + VIEWS), "source"),
        (3, tracks._replace(target=target - VIEWS), "target"),
        (3, tracks._replace(points=points[:, :2]), "points"),
        (3, tracks._replace(places=places[1:]), "places"),
        (3, TrackArrays(*(each[:0] for each in tracks)), "number of tracks"),
        (4, np.zeros((unknowns, unknowns - 1)), "hessian"),
    ):
        arguments = [*good]
        arguments[place] = bad
        with pytest.raises(ValueError, match=name):
            track_equations(*arguments, **options)
    with pytest.raises(ValueError, match="points"):
        see_points(np.zeros((4, 2), np.float32), np.zeros((3, 4), np.float32), np.ones(4))
