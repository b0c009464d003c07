# SPDX-License-Identifier: Apache-2.0
"""Laws of turns found by features: any turn comes right, what is right or unseen stays."""

from dataclasses import replace

import numpy as np
import pytest
from g2vlm_tests.noisy_windows import SPOILT, errors, window

from g2vlm_ros.demo.sim.analytic_hall import rotation
from g2vlm_ros.kernels.agreement import pick_halves
from g2vlm_ros.mapping import feature_matching
from g2vlm_ros.mapping.feature_matching import matched_poses
from g2vlm_ros.mapping.view_features import FeatureSearch, view_features
from g2vlm_ros.mapping.view_images import ViewImage


def matched(result, poses):
    return matched_poses(result, [ViewImage(view) for view in result.colours], poses)


def posed(result, poses):
    moved = poses.astype(np.float32)
    return replace(result, geometry=replace(result.geometry, window_from_camera=moved))


@pytest.mark.parametrize("turn", [[0.0, 0.3, 0.0], [0.2, -1.0, 0.1], [0.0, 0.0, 2.0]])
def test_any_wrong_turn_comes_right_and_later_views_turn_with_it(turn):
    result, truth = window(SPOILT)
    wrong = truth.copy()
    at = wrong[1].copy()
    at[:3, :3] = at[:3, :3] @ rotation(np.array(turn))
    wrong[1:] = at @ np.linalg.inv(wrong[1]) @ wrong[1:]
    found = matched(result, wrong)
    assert errors(posed(result, wrong), truth)[0] > 0.2
    assert errors(posed(result, found), truth)[0] < 0.03
    np.testing.assert_array_equal(found[0], truth[0])
    later = np.linalg.inv(found[1]) @ found[2]
    np.testing.assert_allclose(later, np.linalg.inv(wrong[1]) @ wrong[2], atol=1e-9)
    np.testing.assert_allclose(found[1][:3, 3], truth[1][:3, 3], atol=1e-9)


def test_turns_that_agree_stay_to_the_last_bit():
    result, truth = window(SPOILT)
    assert matched(result, truth) is truth


def links(*pairs):
    """bool (4, 4): pairs of views whose poses tracks confirm."""
    linked = np.zeros((4, 4), bool)
    for i, j in pairs:
        linked[i, j] = linked[j, i] = True
    return linked


def searched(monkeypatch, result, poses, linked):
    """The poses that come out, and how many views were searched for features."""
    searches = []

    def counted(image, points, camera):
        searches.append(image)
        return view_features(image, points, camera)

    monkeypatch.setattr(feature_matching, "view_features", counted)
    images = [ViewImage(view) for view in result.colours]
    return matched_poses(result, images, poses, linked), len(searches)


def test_only_views_that_no_track_confirms_are_searched(monkeypatch):
    result, truth = window(SPOILT)
    found, searches = searched(monkeypatch, result, truth, links((0, 1), (1, 2)))
    assert found is truth and searches == 2  # the last view and the one before
    found, searches = searched(monkeypatch, result, truth, links((0, 1), (1, 2), (0, 3)))
    assert found is truth and searches == 0


def test_a_view_whose_tracks_led_to_one_that_stays_comes_right_after_a_turn(monkeypatch):
    result, truth = window(SPOILT)
    wrong = truth.copy()
    turn = wrong[2].copy()
    turn[:3, :3] = turn[:3, :3] @ rotation(np.array([0.0, 0.4, 0.0]))
    wrong[2] = turn  # and the last view, which tracks connect with the second, is right
    found, _ = searched(monkeypatch, result, wrong, links((0, 1), (1, 3)))
    assert errors(posed(result, found), truth)[0] < 0.03


def test_views_without_features_or_camera_stay():
    result, truth = window(replace(SPOILT, turn_rad=0.5))
    wrong = result.window_from_camera.astype(float)
    flat = replace(result, colours=np.full_like(result.colours, 90))
    assert matched(flat, wrong) is wrong
    assert matched(replace(result, intrinsics=(None,) * 4), wrong) is wrong
    noise = np.random.default_rng(0).integers(0, 256, result.colours.shape, dtype=np.uint8)
    assert matched(replace(result, colours=noise), wrong) is wrong


def test_a_search_that_waits_finds_what_one_at_once_finds(monkeypatch):
    result, _ = window(SPOILT)
    image, points, camera = result.colours[1], result.local_points_u[1], result.intrinsics[1]
    at_once = view_features(ViewImage(image), points, camera)
    searches, search = [], ViewImage.features.func

    def counted(image):
        searches.append(image)
        return search(image)

    monkeypatch.setattr(ViewImage, "features", property(counted))
    columns, rows = ViewImage(image).feature_size
    small = pick_halves(points[None], rows, columns, 0)
    later = FeatureSearch(ViewImage(image), small, camera)
    assert not searches
    found = later()
    assert found is later() and len(searches) == 1 and len(found) > 30
    np.testing.assert_array_equal(found.pixel, at_once.pixel)
    np.testing.assert_array_equal(found.descriptor, at_once.descriptor)
    np.testing.assert_allclose(found.matrix, at_once.matrix)
    off = np.linalg.norm(found.point_u - at_once.point_u, axis=1) / at_once.point_u[:, 2]
    assert np.median(off) < 0.01
