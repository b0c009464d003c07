# SPDX-License-Identifier: Apache-2.0
"""Homes, walks and splits: determinism, no collisions, no shared seeds."""

from __future__ import annotations

import numpy as np
import pytest

from g2vlm_ros.demo.sim import furniture
from g2vlm_ros.demo.sim.camera import lens, world_from_camera
from g2vlm_ros.demo.sim.home import STRUCTURE, overlaps
from g2vlm_ros.demo.sim.home_builder import build_home
from g2vlm_ros.demo.sim.robot_path import RADIUS_M
from g2vlm_ros.demo.sim.scenes import make_scene
from g2vlm_ros.demo.sim.splits import SPLITS, home_seed


def rooms_of(home, point):
    return [
        i
        for i, room in enumerate(home.rooms)
        if room.rectangle[0] <= point[0] <= room.rectangle[2]
        and room.rectangle[1] <= point[1] <= room.rectangle[3]
    ]


def test_splits_are_disjoint():
    seeds = {split: {home_seed(split, i) for i in range(300)} for split in SPLITS}
    assert not seeds["train"] & seeds["heldout"]
    assert not seeds["train"] & seeds["validation"]
    assert not seeds["validation"] & seeds["heldout"]


def test_splits_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match="'test'"):
        home_seed("test", 0)
    with pytest.raises(ValueError, match="-1"):
        home_seed("train", -1)


def test_a_home_is_a_function_of_its_seed():
    first, again, other = build_home(7), build_home(7), build_home(8)
    assert [item.name for item in first.items] == [item.name for item in again.items]
    for one, two in zip(first.solids, again.solids, strict=True):
        np.testing.assert_array_equal(one.centre_m, two.centre_m)
        np.testing.assert_array_equal(one.material.row(), two.material.row())
    assert len(first.solids) != len(other.solids) or not np.array_equal(
        first.solids[-1].centre_m, other.solids[-1].centre_m
    )


@pytest.mark.parametrize("seed", range(12))
def test_items_have_names_ids_and_a_place_inside(seed):
    home = build_home(seed)
    assert [item.id for item in home.items] == list(range(1, len(home.items) + 1))
    assert {item.name for item in home.items} <= {*furniture.NAMES, *STRUCTURE}
    assert {solid.item for solid in home.solids} == {item.id for item in home.items}
    for item in home.items:
        assert item.room in rooms_of(home, item.centre_m)
    for a in range(len(home.rooms)):
        for b in range(a):
            assert not overlaps(home.rooms[a].rectangle, home.rooms[b].rectangle)


@pytest.mark.parametrize("seed", range(8))
def test_the_robot_touches_nothing_and_stays_inside(seed):
    scene = make_scene(seed)
    obstacles = scene.home.obstacles()
    for x, y in scene.walk.position_m:
        inside = rooms_of(scene.home, (x, y))
        at_door = any(np.hypot(*(door.centre_m - (x, y))) < 0.7 for door in scene.home.doors)
        assert inside or at_door
        for x0, y0, x1, y1 in obstacles:
            assert not (x0 - RADIUS_M < x < x1 + RADIUS_M and y0 - RADIUS_M < y < y1 + RADIUS_M)


def test_some_walks_go_through_a_door_and_back():
    back = 0
    for seed in range(20):
        scene = make_scene(seed)
        visited = [
            rooms_of(scene.home, p)[0]
            for p in scene.walk.position_m[::5]
            if rooms_of(scene.home, p)
        ]
        order = [b for a, b in zip([None, *visited], visited, strict=False) if a != b]
        back += len(order) > len(set(order))
    assert back >= 1


def test_walks_are_smooth():
    scene = make_scene(3)
    steps = np.linalg.norm(np.diff(scene.walk.position_m, axis=0), axis=1)
    turns = (np.diff(scene.walk.yaw_rad) + np.pi) % (2 * np.pi) - np.pi
    assert steps.max() < 0.08
    assert np.abs(turns).max() < np.deg2rad(7)


def test_camera_looks_along_its_yaw_and_pitches_down():
    pose = world_from_camera(np.array([1.0, 2.0, 1.3]), np.pi / 2, 0.2)
    forward, right, down = pose[:3, 2], pose[:3, 0], pose[:3, 1]
    np.testing.assert_allclose(forward, [0, np.cos(0.2), -np.sin(0.2)], atol=1e-12)
    np.testing.assert_allclose(right, [1, 0, 0], atol=1e-12)
    assert down[2] < -0.9
    np.testing.assert_allclose(np.linalg.det(pose[:3, :3]), 1.0)


def test_lens_has_its_field_of_view_and_refuses_other_shapes():
    camera = lens(112, 84)
    left = (-0.5 - camera.cx_px) / camera.fx_px
    right = (111.5 - camera.cx_px) / camera.fx_px
    assert np.rad2deg(np.arctan(right) - np.arctan(left)) == pytest.approx(70.0)
    with pytest.raises(ValueError, match="112x112"):
        lens(112, 112)
