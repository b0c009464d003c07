# SPDX-License-Identifier: Apache-2.0
"""People and doors of a simulated home: the same for a seed, seen, and in nobody's way."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from PIL import Image

from g2vlm_ros.demo.sim.__main__ import main
from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.sim.movers import (
    CLEAR_M,
    DOOR,
    OPEN_M,
    PERSON,
    SHUT_M,
    with_doors,
    with_walkers,
)
from g2vlm_ros.demo.sim.renderer import render
from g2vlm_ros.demo.sim.scenes import make_scene
from g2vlm_ros.demo.sim.splits import home_seed

CAMERA = lens(64, 48)


@cache
def scene():
    return make_scene(home_seed("validation", 0), legs=3)


def items_in_view(scene, steps):
    """uint8 (n, h, w) of steps of the walk."""
    times_s = scene.walk.time_s[steps]
    poses = scene.walk.world_from_camera[steps]
    return np.asarray(render(scene.homes, scene.home_index(times_s), poses, times_s, CAMERA).items)


def test_a_walker_is_seen_and_keeps_clear_of_the_robot() -> None:
    busy = with_walkers(scene(), 1)
    person, walk = busy.home.items[-1], busy.walk
    assert person.name == PERSON and scene().home.items == busy.home.items[:-1]
    places = np.stack([person.centre_m + person.offset_m(t) for t in walk.time_s])
    assert np.linalg.norm(places[:, :2] - walk.position_m, axis=1).min() >= CLEAR_M
    assert np.ptp(places[:, :2], axis=0).max() > 0.5, "it walks"
    shown = (items_in_view(busy, np.arange(0, len(walk.time_s), 5)) == person.id).any((1, 2))
    assert shown.sum() >= 4
    again = with_walkers(scene(), 1).home.items[-1]
    np.testing.assert_array_equal(again.travel_m, person.travel_m)
    with pytest.raises(ValueError, match="no room for 40 walkers"):
        with_walkers(scene(), 40)


def test_doors_open_as_the_robot_comes() -> None:
    closing = with_doors(scene())
    door, walk = scene().home.doors[0], closing.walk
    away_m = np.linalg.norm(walk.position_m - door.centre_m, axis=1)
    index = closing.home_index(walk.time_s)
    assert len(closing.homes) == len(np.unique(index)) > 2
    turns = {}
    for state, steps in {"shut": away_m >= SHUT_M, "open": away_m <= OPEN_M}.items():
        assert steps.any()
        slabs = [closing.homes[i].items[len(scene().home.items)] for i in np.unique(index[steps])]
        assert {slab.name for slab in slabs} == {DOOR}
        turns[state] = {round(slab.yaw_rad, 6) for slab in slabs}
    assert len(turns["shut"]) == len(turns["open"]) == 1
    swing = np.angle(np.exp(1j * (turns["shut"].pop() - turns["open"].pop())))
    assert abs(swing) == pytest.approx(np.pi / 2)
    middle = closing.homes[index[np.argmax(away_m)]].items[len(scene().home.items)].centre_m
    np.testing.assert_allclose(middle[:2], door.centre_m, atol=0.06)


def test_a_home_without_doorways_has_one_stage() -> None:
    single = replace(scene(), home=replace(scene().home, doors=()))
    assert len(with_doors(single).homes) == 1


def test_the_walk_of_a_busy_home_has_masks(tmp_path) -> None:
    arguments = ["--split", "validation", "--home", "0", "--walk-hz", "0.5", "--width", "64"]
    main([*arguments, "--walkers", "1", "--doors", "--out", str(tmp_path)])
    masks = sorted((tmp_path / "masks").iterdir())
    assert len(masks) == len(list((tmp_path / "rgb").iterdir()))
    shares = [np.asarray(Image.open(mask)).mean() / 255 for mask in masks]
    assert max(shares) > 0.01 and min(shares) == 0
