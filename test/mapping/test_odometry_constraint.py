# SPDX-License-Identifier: Apache-2.0
"""Odometry carries the map over windows that images cannot join."""

from dataclasses import replace

import numpy as np
import pytest

from g2vlm_ros.demo.sim import analytic_hall
from g2vlm_ros.demo.sim.analytic_hall import DrivePerception, frame_of, lap_poses, pose_on_lap
from g2vlm_ros.geometry.sim3 import ZUP_FROM_OPTICAL, Sim3, cross_matrix
from g2vlm_ros.mapping.graph_slam import GraphSlam
from g2vlm_ros.mapping.odometry_constraint import OdometryConstraint, odometry_constraint
from g2vlm_ros.mapping.scale_measurements import ScaleMeasurement
from g2vlm_ros.records import ScaleState, Window
from g2vlm_ros.settings import MapSettings

SHIFTED = np.eye(4)
SHIFTED[:3, 3] = 3.0, -2.0, 0.5
"""Odometry starts elsewhere."""


def known(perception, number):
    return frame_of(perception, number, odom_from_camera=SHIFTED @ perception.poses[number])


def reckoned(perception, numbers):
    frames = [known(perception, n) for n in numbers]
    result = perception.reconstruct(numbers)
    return OdometryConstraint.of(
        frames, result, (True,) * len(numbers)
    ), perception.window_from_world


def test_odometry_alone_finds_the_similarity_between_windows():
    perception = DrivePerception(lap_poses(6, 0.3))
    before, target_from_world = reckoned(perception, [0, 1, 2])
    now, source_from_world = reckoned(perception, [3, 4, 5])
    unit = ScaleMeasurement(1 / source_from_world.scale, 0.07, "fixed")
    relative_pose = odometry_constraint(
        before, now, 1 / target_from_world.scale, unit, reach_m=2.0
    )
    found, true = relative_pose.target_from_source, target_from_world @ source_from_world.inverse()
    assert found.scale == pytest.approx(true.scale, rel=1e-6)
    np.testing.assert_allclose(found.rotation, true.rotation, atol=1e-5)
    np.testing.assert_allclose(found.translation, true.translation, atol=1e-4)
    assert relative_pose.covariance[6, 6] == pytest.approx(0.07**2) and relative_pose.quality == 0
    # About the camera, the deviation of the place is a share of the way, in the target's unit.
    centre = target_from_world.apply(perception.poses[5, :3, 3])
    jacobian = np.column_stack([-cross_matrix(centre), np.eye(3), centre])
    spread = (
        np.sqrt(np.diag(jacobian @ relative_pose.covariance @ jacobian.T))
        / target_from_world.scale
    )
    np.testing.assert_allclose(spread, 0.01 + 0.05 * 0.9, rtol=0.02)


def test_long_ways_and_jumps_are_refused():
    perception = DrivePerception(lap_poses(6, 0.3))
    (before, _), (now, _) = (reckoned(perception, n) for n in ([0, 1, 2], [3, 4, 5]))
    unit = ScaleMeasurement(1.0, 0.1, "fixed")
    assert odometry_constraint(before, now, 1.0, unit, reach_m=0.5) is None
    assert odometry_constraint(before, now, 1.0, unit, reach_m=0.0) is None
    soon = replace(now, stamp_ns=before.stamp_ns + 10**6)
    assert odometry_constraint(before, soon, 1.0, unit, reach_m=2.0) is None
    unknown = [frame_of(perception, n) for n in (0, 1)]
    assert OdometryConstraint.of(unknown, perception.reconstruct([0, 1]), (True, True)) is None


@pytest.fixture
def metres(monkeypatch):
    """A network that knows metres."""
    unit = Sim3(1.0, ZUP_FROM_OPTICAL, np.ones(3))
    monkeypatch.setattr(analytic_hall, "random_unit", lambda _: unit)


def turned_away(**settings):
    """Six views ahead, then five of what lies behind."""
    behind = [pose_on_lap(1.5 + 0.1 * k, np.pi) for k in range(5)]
    perception = DrivePerception(np.stack([*lap_poses(6, 0.3), *behind]))
    slam, placed = GraphSlam(MapSettings(**settings)), []
    for k, numbers in enumerate([[0, 1, 2], [2, 3, 4], [4, 5, 6], [6, 7, 8], [8, 9, 10]]):
        frames = tuple(known(perception, n) for n in numbers)
        result = perception.reconstruct(numbers)
        placement = slam.place(Window(k + 1, frames), result)
        placed.append((placement, placement.camera_poses(result.window_from_camera)))
    return perception, placed


def test_a_turn_too_fast_to_overlap_stays_in_the_map(metres):
    perception, placed = turned_away(metres_per_unit=1.0, odometry_reach_m=2.0)
    placements = [p for p, _ in placed]
    assert [p.by_odometry for p in placements] == [None, None, "no_overlap", None, None]
    assert {p.map_id for p in placements} == {0} and placements[0].new_map == "first"
    jump = placements[2]
    assert jump.relative_pose is None and jump.trusted == (False, False, True)
    world_from_map = perception.poses[0] @ np.linalg.inv(placed[0][1][0])
    for (_, poses), number in zip(placed[2:], (6, 8, 10), strict=True):
        found = world_from_map @ poses[2]
        np.testing.assert_allclose(found[:3, 3], perception.poses[number, :3, 3], atol=0.1)
        np.testing.assert_allclose(found[:3, :3], perception.poses[number, :3, :3], atol=0.05)
    # Floor and walls hold the windows upright: what odometry leaves open is the turn about z.
    turns = [p.covariance[-1, 5, 5] for p in placements]
    assert turns[2] > turns[1] + (0.05 * 3) ** 2, "odometry of half a turn is worth less"


@pytest.mark.parametrize(
    "settings", [{"metres_per_unit": 1.0, "odometry_reach_m": 0.0}, {"max_scale_std": 0.001}]
)
def test_without_reach_or_metres_a_map_starts(settings, metres):
    _, placed = turned_away(**settings)
    placements = [p for p, _ in placed]
    assert placements[2].new_map == "no_overlap" and placements[2].map_id == 1
    assert placements[0].scale.state is (
        ScaleState.METRIC if "metres_per_unit" in settings else ScaleState.RELATIVE
    )
