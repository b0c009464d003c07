# SPDX-License-Identifier: Apache-2.0
"""Views that are remembered, found again, and compared surface by surface."""

from dataclasses import replace

import numpy as np
import pytest

from g2vlm_ros.demo.sim.analytic_hall import (
    DrivePerception,
    Noise,
    frame_of,
    lap_poses,
    look,
    pose_on_lap,
)
from g2vlm_ros.geometry.registration import sample_view
from g2vlm_ros.mapping.covisibility import measure_covisibility
from g2vlm_ros.mapping.keyframes import (
    Keyframe,
    KeyframeStore,
    compressed,
    decoder,
    view_descriptor,
)
from g2vlm_ros.mapping.loop_closure import by_appearance, by_pose


@pytest.fixture
def perception():
    away = np.stack([pose_on_lap(0.0, np.pi), pose_on_lap(17.0)])
    return DrivePerception(np.concatenate([lap_poses(4, 0.2), away]))


def keyframe(perception, window_id, descriptor):
    sample = sample_view(perception.reconstruct([0]), 0)
    return Keyframe(window_id, frame_of(perception, 0), sample, np.eye(4), np.float32(descriptor))


def descriptors(result):
    return np.stack([view_descriptor(result, view) for view in range(result.views)])


def test_store_is_bounded_and_spreads_over_time(perception):
    store, one = KeyframeStore(8), keyframe(perception, 0, [1, 0])
    for window in range(1, 101):
        store.add(replace(one, window_id=window, order=window), np.eye(4))
    ids = store.window_ids
    assert len(store) == 8 and ids[0] == 1 and ids[-1] == 100
    assert max(np.diff(ids)) < 50


def test_most_similar_old_view_is_found_and_young_ones_are_not(perception):
    store = KeyframeStore(10)
    for window, descriptor in ((1, [1, 0]), (2, [0.8, 0.6]), (30, [0.6, 0.8])):
        store.add(keyframe(perception, window, descriptor), np.eye(4))
    found, similarity = by_appearance(store.up_to(20), np.float32([0.6, 0.8]))
    assert found.window_id == 2 and similarity == pytest.approx(0.96)
    assert by_appearance(store.up_to(0), np.float32([0, 1])) is None
    other_kind = np.float32([0, 1, 0])
    assert by_appearance(store.up_to(50), other_kind) is None
    assert store.beside(found).window_id == 30
    store.forget([2, 30])
    assert len(store) == 1
    store.clear()
    assert len(store) == 0


def test_a_view_is_new_after_a_way_or_a_turn(perception):
    store, pose = KeyframeStore(10), np.eye(4)
    assert store.is_new(pose, 2.0)
    store.add(keyframe(perception, 1, [1, 0]), pose)
    near, far, turned = pose.copy(), pose.copy(), pose_on_lap(0, 0.5)
    near[0, 3], far[0, 3] = 0.2, 0.4
    turned[:3, 3] = 0
    assert not store.is_new(near, 2.0) and store.is_new(far, 2.0) and store.is_new(turned, 2.0)


def test_descriptors_of_the_network_come_first_and_thumbnails_stand_in(perception):
    result = perception.reconstruct([0, 1, 4])
    thumbnails = descriptors(result)
    np.testing.assert_allclose(np.linalg.norm(thumbnails, axis=1), 1, rtol=1e-5)
    assert thumbnails[0] @ thumbnails[1] > 0.3 > thumbnails[0] @ thumbnails[2]
    own = np.float32([[3, 4], [1, 0], [0, 0]])
    found = descriptors(replace(result, descriptors=own))
    np.testing.assert_allclose(found, [[0.6, 0.8], [1, 0], [0, 0]], atol=1e-6)


def test_exposure_does_not_change_thumbnails(perception):
    result = perception.reconstruct([0])
    dark = replace(result, colours=(result.colours // 2))
    similarity = view_descriptor(result, 0) @ view_descriptor(dark, 0)
    assert similarity > 0.99


def test_compressed_images_come_back_small_and_alike():
    image = look(pose_on_lap(0.0))[1]
    back = decoder(compressed(image, 64))()
    assert back.shape == image.shape
    assert np.abs(back.astype(float) - image).mean() < 8
    big = image.repeat(4, axis=0).repeat(4, axis=1)
    assert decoder(compressed(big, 64))().shape == image.shape


def test_views_of_one_place_overlap_and_look_alike(perception):
    perception.noise = Noise(0.02)
    overlap = measure_covisibility(perception.reconstruct([0, 1, 4]))
    assert overlap.shared[0, 1] > 0.5 and overlap.alike[0, 1] > 0.8
    assert overlap.shared[0, 2] < 0.02 and overlap.shared[2, 0] < 0.02


def test_overlap_says_how_far_the_units_of_views_lie_apart(perception):
    perception.noise = Noise()
    result = perception.reconstruct([0, 1, 4])
    assert abs(measure_covisibility(result).stretch[0, 1]) < 0.01
    points = result.local_points_u.copy()
    points[1] *= 1.1
    geometry = replace(result.geometry, local_points_u=points)
    stretch = measure_covisibility(replace(result, geometry=geometry)).stretch
    assert stretch[1, 0] == pytest.approx(np.log(1.1), abs=0.02)
    assert stretch[0, 1] == pytest.approx(-np.log(1.1), abs=0.02)
    assert np.isnan(stretch[0, 2])


def test_equal_shapes_with_other_colours_do_not_look_alike(perception):
    """Two corridors built alike: geometry agrees, brightness does not."""
    result = perception.reconstruct([0, 1])
    other = result.colours.copy()
    other[1] = look(pose_on_lap(17.0))[1]
    overlap = measure_covisibility(replace(result, colours=other))
    assert overlap.shared[0, 1] > 0.5 and overlap.alike[0, 1] < 0.3
    flat = np.full_like(other, 90)
    assert np.isnan(measure_covisibility(replace(result, colours=flat)).alike[0, 1])


def test_reachable_follows_chains_and_unknown_cameras_count_as_connected(perception):
    result = perception.reconstruct([0, 1, 2, 4])
    assert measure_covisibility(result).reachable([0], 0.05).tolist() == [True, True, True, False]
    blind = measure_covisibility(replace(result, intrinsics=(None,) * 4))
    assert np.isnan(blind.shared).all() and blind.reachable([0], 0.05).all()


def test_the_nearest_old_view_that_the_map_expects_is_found():
    """Old views: 0.1 and 0.4 m ahead, 0.1 m ahead but turned away, on the far side of the hall."""
    poses = [pose_on_lap(0.0), pose_on_lap(0.1), pose_on_lap(0.4), pose_on_lap(0.1, 1.5)]
    perception = DrivePerception(np.stack([*poses, pose_on_lap(17.0)]))
    old, moves = [], {}
    for number in range(1, 5):
        result = perception.reconstruct([number])
        moves[number] = perception.window_from_world.inverse()
        pose = result.window_from_camera[0].astype(np.float64)
        frame, sample = frame_of(perception, number), sample_view(result, 0)
        old.append(Keyframe(number, frame, sample, pose, np.float32([1])))
    newest = perception.reconstruct([0])

    def found(keyframes, result=newest, unplaced=()):
        now = perception.window_from_world
        placed = lambda id: None if id in unplaced else now @ moves[id]  # noqa: E731
        each = by_pose(keyframes, result, 0, placed)
        return each and each.window_id

    assert found(old) == found(old[::-1]) == 1
    assert found(old, unplaced=[1]) == found(old[1:]) == 2
    assert found(old[2:]) is None
    assert found(old, replace(newest, intrinsics=(None,))) is None
    sample = replace(old[0].sample, points_u=old[0].sample.points_u * np.float32(3))
    assert found([replace(old[0], sample=sample)]) is None, "another room behind the wall"
