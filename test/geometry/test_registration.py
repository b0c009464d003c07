# SPDX-License-Identifier: Apache-2.0
"""Laws of the joint of two windows: exactness, outliers, and an error bar that can be believed."""

from dataclasses import replace

import numpy as np
import pytest
from g2vlm_tests.random_geometry import random_sim3

from g2vlm_ros.demo.sim.analytic_hall import DrivePerception, Noise, lap_poses
from g2vlm_ros.geometry.registration import (
    SharedView,
    ViewSample,
    fit_relative_pose,
    fit_sim3,
    register_views,
    sample_view,
)
from g2vlm_ros.records import ViewStd


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def test_closed_form_recovers_a_similarity_exactly(rng):
    truth = random_sim3(rng)
    source = rng.normal(size=(30, 3))
    fit = fit_sim3(source, truth.apply(source), rng.uniform(0.1, 1, 30))
    assert fit.scale == pytest.approx(truth.scale)
    np.testing.assert_allclose(fit.rotation, truth.rotation, atol=1e-12)
    np.testing.assert_allclose(fit.translation, truth.translation, atol=1e-12)


def test_fit_of_a_mirrored_set_is_still_a_rotation(rng):
    source = rng.normal(size=(30, 3))
    fit = fit_sim3(source, source * [-1, 1, 1], np.ones(30))
    assert np.linalg.det(fit.rotation) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "source", [np.zeros((5, 3)), np.outer(np.arange(5.0), [1, 2, 3]), np.ones((2, 3))]
)
def test_degenerate_points_are_refused(source):
    with pytest.raises(ValueError, match="similarity"):
        fit_sim3(source, source, np.ones(len(source)))


def test_weight_zero_means_ignored(rng):
    truth = random_sim3(rng)
    source = rng.normal(size=(30, 3))
    target = truth.apply(source)
    target[:10] += 100
    weights = np.ones(30)
    weights[:10] = 0
    assert fit_sim3(source, target, weights).scale == pytest.approx(truth.scale)


ROWS, COLUMNS = np.mgrid[0:48, 0:64]
PATCHES = (ROWS // 6 * 8 + COLUMNS // 8).reshape(-1)
RAYS = np.stack([(COLUMNS - 31.5) / 46, (ROWS - 23.5) / 46, np.ones(ROWS.shape)], -1)


def patched(rng, size=()):
    """Noise (3072, *size) of deviation 1 that is the same all over a patch."""
    return rng.normal(size=(64, *size))[PATCHES]


def two_windows(rng, depth, truth, error, turn):
    """The same view in two windows (source, target): range errors and direction errors given."""
    local = (RAYS * depth[..., None]).reshape(-1, 3)
    views = []
    for window in (truth.inverse(), None):
        spoilt = (local + turn * error(rng, (3,)) * local[:, 2:]) * np.exp(error(rng))[:, None]
        points, centre = spoilt, np.zeros(3)
        if window is not None:
            points, centre = window.apply(points), window.apply(centre)
        views.append(ViewSample(points.astype(np.float32), centre, np.ones(3072), PATCHES))
    return tuple(views)


def test_robust_fit_survives_a_third_of_outliers_where_the_closed_form_does_not(rng):
    truth = random_sim3(rng)
    source = rng.normal(size=(600, 3)) + [0, 0, 5]
    camera = truth.apply(np.zeros(3))
    target = truth.apply(source * (1 + 0.01 * rng.normal(size=(600, 1))))
    target[:200] += rng.normal(size=(200, 3)) * 10
    relative_pose = fit_relative_pose(
        [SharedView(source, target, np.ones(600), camera, np.arange(600) % 60)]
    )
    plain = fit_sim3(source, target, np.ones(600))
    robust_error = abs(relative_pose.target_from_source.scale / truth.scale - 1)
    assert robust_error < 0.01 < abs(plain.scale / truth.scale - 1)
    assert 0.6 < relative_pose.inliers < 0.75


def test_noise_of_depth_does_not_shrink_the_scale(rng):
    """Least squares on positions loses noise² of scale in every joint, and sixty multiply."""
    logs = {"joint": [], "closed form": []}
    for _ in range(30):
        truth = random_sim3(rng)
        noise = lambda rng, size=(): 0.05 * rng.normal(size=(3072, *size))  # noqa: E731
        source, target = two_windows(rng, rng.uniform(2, 4, ROWS.shape), truth, noise, 0.0)
        points = source.points_u.astype(float), target.points_u.astype(float)
        fits = {
            "joint": register_views([(source, target)]).target_from_source,
            "closed form": fit_sim3(*points, np.ones(3072)),
        }
        for name, fit in fits.items():
            logs[name].append(np.log(fit.scale / truth.scale))
    assert abs(np.mean(logs["joint"])) < 5e-4 < abs(np.mean(logs["closed form"]))


@pytest.mark.parametrize("scene", ["rough", "plane", "slope"])
@pytest.mark.parametrize(("correlated", "least"), [(True, 0.5), (False, 0.05)])
def test_covariance_matches_the_error_that_is_made(rng, scene, correlated, least):
    """Normalised errors have deviation 1, with errors alike over whole patches as well."""
    depth = {
        "rough": rng.uniform(2, 4, ROWS.shape),
        "plane": np.full(ROWS.shape, 3.0),
        "slope": 2 + ROWS / 10.0,
    }[scene]

    def error(rng, size=()):
        each = rng.normal(size=(3072, *size))
        return 0.06 * (patched(rng, size) if correlated else each)

    normalised = []
    for _ in range(40):
        truth = random_sim3(rng)
        relative_pose = register_views([two_windows(rng, depth, truth, error, 0.3)])
        miss = (truth @ relative_pose.target_from_source.inverse()).log()
        normalised.append(miss @ np.linalg.solve(relative_pose.covariance, miss) / 7)
        assert relative_pose.quality > 0.3
    assert least**2 < np.mean(normalised) < 1.6**2


def test_quality_falls_with_noise_and_outliers(rng):
    qualities = []
    for depth, outliers in [(0, 0), (0.03, 0), (0.03, 0.2), (0.1, 0.2), (0.1, 0.6)]:
        truth = DrivePerception(lap_poses(2, 0.2), Noise(depth, outliers))
        one, two = truth.reconstruct([0, 1]), truth.reconstruct([0, 1])
        relative_pose = register_views(
            [(sample_view(two, i), sample_view(one, i)) for i in (0, 1)]
        )
        qualities.append(relative_pose.quality)
    assert qualities[0] > 0.97 and qualities[-1] < 0.2
    assert (np.diff(qualities) < 0).all()


def test_points_that_fix_nothing_get_no_quality(rng):
    """Far haze: a view whose depth is noise has a joint, but it is worth nothing."""

    def error(rng, size=()):
        return 1.0 * patched(rng, size)

    relative_pose = register_views(
        [two_windows(rng, np.full(ROWS.shape, 300.0), random_sim3(rng), error, 0.02)]
    )
    assert relative_pose.quality < 0.1


def test_a_corner_of_the_view_is_not_trusted_like_the_whole(rng):
    truth = random_sim3(rng)
    noise = lambda rng, size=(): 0.05 * patched(rng, size)  # noqa: E731
    source, target = two_windows(rng, np.full(ROWS.shape, 3.0), truth, noise, 0.3)
    relative_poses = [register_views([(source, target)])]
    source.weights[((ROWS >= 24) | (COLUMNS >= 32)).reshape(-1)] = 0
    relative_poses.append(register_views([(source, target)]))
    whole, corner = relative_poses
    assert corner.quality < whole.quality
    assert np.trace(corner.covariance[:3, :3]) > 2 * np.trace(whole.covariance[:3, :3])
    source.weights[((ROWS >= 12) | (COLUMNS >= 32)).reshape(-1)] = 0
    with pytest.raises(ValueError, match="from 8 patches"):
        register_views([(source, target)])


def test_three_shared_views_join_better_than_poses_chained_over_one(rng):
    """Orientation errors of single views average out over the points of all of them."""
    misses = {"joint": [], "chain": []}
    perception = DrivePerception(lap_poses(3, 0.2), Noise(0.05, 0.1, 0.01, 0.01), seed=3)
    for _ in range(40):
        one, truth = perception.reconstruct([0, 1, 2]), perception.window_from_world
        two = perception.reconstruct([0, 1, 2])
        truth = truth @ perception.window_from_world.inverse()
        relative_pose = register_views(
            [(sample_view(two, i), sample_view(one, i)) for i in range(3)]
        )
        chain = one.window_from_camera[0, :3, :3] @ two.window_from_camera[0, :3, :3].T
        for name, turn in (("joint", relative_pose.target_from_source.rotation), ("chain", chain)):
            cosine = (np.trace(turn.T @ truth.rotation) - 1) / 2
            misses[name].append(np.arccos(np.clip(cosine, -1, 1)))
    assert np.mean(misses["joint"]) < 0.75 * np.mean(misses["chain"])


def test_what_windows_say_of_their_errors_is_published_and_weighs_nothing(rng):
    nothing = lambda rng, size=(): np.zeros((3072, *size))  # noqa: E731
    pair = two_windows(rng, rng.uniform(2, 4, ROWS.shape), random_sim3(rng), nothing, 0.0)
    poses = {}
    for name, std in {
        "unknown": None,
        "good": ViewStd(0.001, 0.0005, 0.001),
        "poor": ViewStd(0.05, 0.05, 0.08),
        "exact": ViewStd(0.0, 0.0, 0.0),
    }.items():
        poses[name] = register_views([tuple(replace(view, std=std) for view in pair)])
    assert poses.pop("unknown").errors is None
    turns = {name: np.sqrt(pose.errors[0, 0]) for name, pose in poses.items()}
    scales = {name: np.sqrt(pose.errors[6, 6]) for name, pose in poses.items()}
    # Each of the two windows is off by its own.
    assert turns["poor"] == pytest.approx(0.05 * np.sqrt(2), rel=0.05)
    assert scales["poor"] == pytest.approx(0.08 * np.sqrt(2), rel=0.05)
    assert turns["good"] < 0.05 * turns["poor"] and 0.0002 < turns["exact"] < 0.5 * turns["good"]
    for pose in poses.values():
        np.testing.assert_array_equal(pose.covariance, poses["poor"].covariance)


def test_units_of_views_that_differ_make_the_scale_uncertain_and_nothing_else(rng):
    nothing = lambda rng, size=(): np.zeros((3072, *size))  # noqa: E731
    pair = two_windows(rng, rng.uniform(2, 4, ROWS.shape), random_sim3(rng), nothing, 0.0)
    sure, unsure = register_views([pair]), register_views([pair], unit_std=0.08)
    more = unsure.covariance - sure.covariance
    # The camera of the target is at its origin, about which the covariance is.
    assert more[6, 6] == pytest.approx(0.08**2)
    np.testing.assert_allclose(more[:6], 0, atol=1e-12)
    assert unsure.quality < sure.quality


def test_no_shared_view_is_an_error():
    with pytest.raises(ValueError, match="share no view"):
        register_views([])


def test_exact_windows_join_exactly_whatever_their_units(rng):
    truth = random_sim3(rng)
    nothing = lambda rng, size=(): np.zeros((3072, *size))  # noqa: E731
    pair = two_windows(rng, rng.uniform(2, 4, ROWS.shape), truth, nothing, 0.0)
    relative_pose = register_views([pair])
    miss = (truth @ relative_pose.target_from_source.inverse()).log()
    np.testing.assert_allclose(miss, 0, atol=1e-5)
    assert (
        relative_pose.inliers == 1
        and relative_pose.residual < 1e-6
        and relative_pose.quality > 0.95
    )
    assert np.linalg.eigvalsh(relative_pose.covariance)[0] > 0
