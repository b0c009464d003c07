# SPDX-License-Identifier: Apache-2.0
"""The path follows the map: corrections move poses that were published before."""

from __future__ import annotations

import numpy as np

from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.mapping.trajectory import Trajectory
from g2vlm_ros.mapping.window_pose import ScaleUpdate, WindowPose
from g2vlm_ros.records import ScaleState


def placed(x, map_id=0, corrections=()):
    place = Sim3(1.0, np.eye(3), np.array([x, 0.0, 0.0]))
    unknown = ScaleUpdate(ScaleState.RELATIVE)
    return WindowPose(place, map_id, unknown, corrections=tuple(corrections))


def at(z):
    pose = np.eye(4)
    pose[2, 3] = z
    return pose


def places(trail):
    return {stamp: tuple(pose[:3, 3]) for stamp, pose in trail.poses()}


def test_poses_lie_where_their_window_does():
    trail = Trajectory(10)
    assert trail.add(1, placed(0), [(10, at(1)), (20, at(2))]), "a first map"
    assert not trail.add(2, placed(5), [(30, at(3))])
    assert places(trail) == {10: (0, 0, 1), 20: (0, 0, 2), 30: (5, 0, 3)}
    assert [stamp for stamp, _ in trail.poses(newest=1)] == [30]


def test_metres_and_loops_move_what_was_there():
    trail = Trajectory(10)
    trail.add(1, placed(0), [(10, at(1))])
    trail.add(2, placed(5), [(20, at(1))])
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    moved = Sim3(2.0, turn, np.array([0.0, 7, 0]))
    assert trail.add(3, placed(9, corrections=[(1, moved), (99, moved)]), [(30, at(1))])
    assert places(trail) == {10: (0, 7, 2), 20: (5, 0, 1), 30: (9, 0, 1)}
    pose = dict(trail.poses())[10]
    np.testing.assert_allclose(pose[:3, :3], turn, err_msg="rigid, though the window grew")


def test_it_is_bounded_and_starts_over_with_a_map():
    trail = Trajectory(3)
    for window in range(1, 6):
        trail.add(window, placed(window), [(window, at(0))])
    assert list(places(trail)) == [3, 4, 5]
    moved = Sim3.identity()
    assert not trail.add(6, placed(6, corrections=[(1, moved)]), []), "window 1 is forgotten"
    assert trail.add(7, placed(0, map_id=1), [(70, at(0))])
    assert list(places(trail)) == [70]
