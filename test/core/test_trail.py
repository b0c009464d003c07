"""The path follows the map: corrections move poses that were published before."""

from __future__ import annotations

import numpy as np

from g2vlm_ros.core.datatypes import ScaleState
from g2vlm_ros.core.geometry import Similarity
from g2vlm_ros.core.mapping.placement import Placement
from g2vlm_ros.core.mapping.trail import Trail


def placed(x, sub_map=0, corrections=()):
    place = Similarity(1.0, np.eye(3), np.array([x, 0.0, 0.0]))
    return Placement(place, sub_map, ScaleState.RELATIVE, float("nan"), None,
                     corrections=tuple(corrections))  # fmt: skip


def at(z):
    pose = np.eye(4)
    pose[2, 3] = z
    return pose


def places(trail):
    return {stamp: tuple(pose[:3, 3]) for stamp, pose in trail.poses()}


def test_poses_lie_where_their_window_does():
    trail = Trail(10)
    assert trail.add(1, placed(0), [(10, at(1)), (20, at(2))]), "a first sub-map"
    assert not trail.add(2, placed(5), [(30, at(3))])
    assert places(trail) == {10: (0, 0, 1), 20: (0, 0, 2), 30: (5, 0, 3)}
    assert [stamp for stamp, _ in trail.poses(newest=1)] == [30]


def test_metres_and_loops_move_what_was_there():
    trail = Trail(10)
    trail.add(1, placed(0), [(10, at(1))])
    trail.add(2, placed(5), [(20, at(1))])
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    moved = Similarity(2.0, turn, np.array([0.0, 7, 0]))
    assert trail.add(3, placed(9, corrections=[(1, moved), (99, moved)]), [(30, at(1))])
    assert places(trail) == {10: (0, 7, 2), 20: (5, 0, 1), 30: (9, 0, 1)}
    pose = dict(trail.poses())[10]
    np.testing.assert_allclose(pose[:3, :3], turn, err_msg="rigid, though the window grew")


def test_it_is_bounded_and_starts_over_with_a_sub_map():
    trail = Trail(3)
    for window in range(1, 6):
        trail.add(window, placed(window), [(window, at(0))])
    assert list(places(trail)) == [3, 4, 5]
    moved = Similarity.identity()
    assert not trail.add(6, placed(6, corrections=[(1, moved)]), []), "window 1 is forgotten"
    assert trail.add(7, placed(0, sub_map=1), [(70, at(0))])
    assert list(places(trail)) == [70]
