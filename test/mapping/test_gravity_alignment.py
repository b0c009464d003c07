# SPDX-License-Identifier: Apache-2.0
"""Up by gravity or by floors and walls, the floor itself, and maps that are held upright."""

from dataclasses import replace

import numpy as np
import pytest

from g2vlm_ros.demo.sim.analytic_hall import (
    HEIGHT_M,
    DrivePerception,
    Noise,
    frame_of,
    lap_poses,
    place_drive,
    rotation,
    up_in,
)
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.mapping.gravity_alignment import (
    GravityAlignment,
    find_floor,
    gravity_up,
    structure_up,
    surfaces_of,
    upright,
)
from g2vlm_ros.mapping.pose_graph import PoseGraph


@pytest.fixture
def rng():
    return np.random.default_rng(4)


def window(poses=None, noise=None):
    """(result, units per metre) of a window on the lap."""
    perception = DrivePerception(lap_poses(4, 0.4) if poses is None else poses, noise)
    result = perception.reconstruct(list(range(len(perception.poses))))
    return result, perception.window_from_world.scale


def bent(result, change):
    """The window with other points in the frames of its cameras."""
    points = change(result.local_points_u.astype(float)).astype(np.float32)
    return replace(result, geometry=replace(result.geometry, local_points_u=points))


def leaning(up, rad, rng):
    """A unit vector so far off."""
    aside = np.cross(up, rng.normal(size=3))
    return np.cos(rad) * up + np.sin(rad) * aside / np.linalg.norm(aside)


def angle_deg(a, b):
    return float(np.degrees(np.arccos(np.clip(a @ b, -1, 1))))


@pytest.mark.parametrize("lean_deg", [0, 15, 30])
def test_walls_and_floor_say_what_is_up(rng, lean_deg):
    for noise, within_deg in ((Noise(), 1.0), (Noise(turn_rad=0.01), 2.0)):
        result, _ = window(noise=noise)
        guess = leaning(up_in(result), np.deg2rad(lean_deg), rng)
        found = structure_up(surfaces_of(result), guess)
        assert angle_deg(found.direction, up_in(result)) < within_deg
        assert found.source == "structure"
        np.testing.assert_allclose(found.information @ found.direction, 0, atol=1e-6)
        least_std_deg = np.degrees(np.linalg.eigvalsh(found.information)[1] ** -0.5)
        assert 1.0 < least_std_deg < 5.0


def test_one_wall_leaves_its_own_axis_open():
    result, _ = window()
    ahead = result.window_from_camera[0, :3, 2].astype(float)
    wall = bent(result, lambda p: p / (p @ [0.0, 0.0, 1.0])[..., None])
    surfaces = surfaces_of(wall)
    one = surfaces.blocks < 64  # the first view's
    surfaces = surfaces._replace(
        points=surfaces.points[one], normals=surfaces.normals[one], blocks=surfaces.blocks[one]
    )
    up, sideways = -result.window_from_camera[0, :3, :2].astype(float).T[::-1]
    found = structure_up(surfaces, up)
    nod, roll = (axis @ found.information @ axis for axis in (ahead, sideways))
    assert nod > 100 * roll, "a wall tells how the camera nods, not how it is rolled"
    rolled = rotation(0.2 * ahead) @ up
    assert angle_deg(structure_up(surfaces, rolled).direction, rolled) < 1.0, "so it stays"


def test_without_order_there_is_no_up(rng):
    result, _ = window()
    hills = 1 + 0.3 * rng.normal(size=(1, 6, 8)).repeat(8, 1).repeat(8, 2)[..., None]
    slope = np.linspace(0.7, 1.3, 64)[None, None, :, None] ** rng.normal(size=(4, 48, 1, 1))
    ball = result.local_points_u / np.linalg.norm(result.local_points_u, axis=-1, keepdims=True)
    for change in (lambda p: p * hills * slope, lambda p: 3 * ball):
        assert structure_up(surfaces_of(bent(result, change)), up_in(result)) is None


def test_a_guess_that_is_far_off_gives_no_up(rng):
    """A camera that looks steeply down: up cannot be told from what is across a wall."""
    result, _ = window()
    for lean_deg in (38, 42):
        for _ in range(5):
            guess = leaning(up_in(result), np.deg2rad(lean_deg), rng)
            found = structure_up(surfaces_of(result), guess)
            assert found is None or angle_deg(found.direction, up_in(result)) < 1.0


def test_gravity_of_the_views_is_up(rng):
    poses = lap_poses(3, 0.2)
    perception = DrivePerception(poses)
    result = perception.reconstruct([0, 1, 2])
    frames = [frame_of(perception, n, up=poses[n][2, :3].copy()) for n in range(3)]
    found = gravity_up(frames, result)
    assert angle_deg(found.direction, up_in(result)) < 1e-3 and found.source == "gravity"
    assert gravity_up([replace(frame, up=None) for frame in frames], result) is None


def test_the_floor_is_found_and_how_high_the_cameras_are(rng):
    result, unit = window()
    up = leaning(up_in(result), np.deg2rad(1.0), rng)
    floor = find_floor(surfaces_of(result), up)
    assert floor.height_u / unit == pytest.approx(HEIGHT_M, rel=0.05)
    middle = result.window_from_camera[:, :3, 3].astype(float).mean(0)
    assert (middle - floor.point) @ up == pytest.approx(floor.height_u)
    rough, unit = window(noise=Noise(turn_rad=0.01))
    assert find_floor(surfaces_of(rough), up_in(rough)).height_u / unit == pytest.approx(
        1.3, rel=0.1
    )


def test_without_a_floor_in_view_there_is_none():
    result, _ = window()
    above = bent(result, lambda p: np.concatenate([p[:, :1].repeat(20, 1), p[:, :28]], axis=1))
    assert find_floor(surfaces_of(above), up_in(above)) is None


def test_a_table_top_with_more_below_it_is_no_floor():
    result, unit = window()
    surfaces = surfaces_of(result)
    up, middle = up_in(result), surfaces.centres.mean(0)
    height = (surfaces.points - middle) @ up / unit
    low = np.flatnonzero(height < 0.6 - HEIGHT_M)
    raised = surfaces.points.copy()
    raised[low] += ((0.6 - HEIGHT_M - height[low]) * unit)[:, None] * up  # nothing below a table
    on_table = find_floor(surfaces._replace(points=raised), up)
    assert on_table.height_u / unit == pytest.approx(HEIGHT_M - 0.6, rel=0.05)
    glimpse = low[: len(height) // 50]
    raised[glimpse] = surfaces.points[glimpse] - 0.5 * unit * up
    assert find_floor(surfaces._replace(points=raised), up) is None


def lean_deg(poses, truth):
    """How far up in the map is from up in the world, by the views of a window."""
    ups = [p[:3, :3] @ t[2, :3] for p, t in zip(poses, truth, strict=True)]
    return angle_deg(np.mean(ups, axis=0) / np.linalg.norm(np.mean(ups, axis=0)), np.eye(3)[2])


def test_a_map_that_starts_with_a_nodding_camera_is_upright():
    poses = lap_poses(8, 0.3)
    placed = list(place_drive(poses))
    for first, (_, views) in enumerate(placed):
        assert lean_deg(views, poses[first : first + 3]) < 1.0
    last, found = placed[-1]
    unit = np.linalg.norm(found[2][:3, 3] - found[0][:3, 3]) / np.linalg.norm(
        poses[7][:3, 3] - poses[5][:3, 3]
    )
    assert (found[0][2, 3] - last.floor_z) / unit == pytest.approx(HEIGHT_M, rel=0.05)


def test_windows_stay_upright_where_joints_alone_would_lean(monkeypatch):
    poses = lap_poses(60, 0.3)

    def worst():
        placed = enumerate(place_drive(poses, Noise(turn_rad=0.02)))
        return max(lean_deg(found, poses[n : n + 3]) for n, (_, found) in placed if n >= 20)

    held = worst()
    measured = PoseGraph.measure_up
    monkeypatch.setattr(
        PoseGraph, "measure_up", lambda g, n, i: measured(g, n, i if n < 4 else 0 * i)
    )
    assert held < 5.0 and worst() > 2 * held


def test_an_up_that_contradicts_the_map_is_not_heard(rng):
    perception = DrivePerception(lap_poses(3, 0.3))
    result = perception.reconstruct([0, 1, 2])
    frames = [frame_of(perception, n) for n in range(3)]
    graph, level = PoseGraph(), GravityAlignment()
    graph.add(1, Sim3(1.0, upright(up_in(result)), np.zeros(3)))
    level.update(graph, 1, frames, result)
    assert level.source == "structure"
    before = graph.up([1])
    nod = rotation(0.35 * result.window_from_camera[0, :3, 0].astype(float))
    graph.attach(2, 1, Sim3(1.0, nod, np.zeros(3)), np.eye(7))
    turned = level.update(graph, 2, frames, result).turned
    assert not turned and graph.up([2]) is None
    np.testing.assert_allclose(graph.up([1, 2])[0], before[0])


def tilted(poses, roll_rad, nod_rad):
    """The poses of a camera that is mounted askew; optical axes."""
    mount = np.eye(4)
    mount[:3, :3] = rotation(np.array([nod_rad, 0.0, roll_rad]))
    return np.stack([pose @ mount for pose in poses])


@pytest.mark.parametrize(("roll_rad", "nod_rad"), [(0.0, 0.0), (0.7, -0.4), (np.pi, 0.0)])
def test_gravity_makes_the_map_upright_however_the_camera_is_mounted(roll_rad, nod_rad):
    poses = tilted(lap_poses(6, 0.2), roll_rad, nod_rad)
    for number, (placement, found) in enumerate(place_drive(poses, up=lambda p: p[2, :3].copy())):
        assert not placement.new_map or number == 0
        for pose, truth in zip(found, poses[number:], strict=False):
            np.testing.assert_allclose(pose[2, :3], truth[2, :3], atol=2e-3)
    height = (found[0][2, 3] - placement.floor_z) / HEIGHT_M
    if np.isfinite(height):
        moved = np.linalg.norm(found[2][:3, 3] - found[0][:3, 3])
        assert height == pytest.approx(moved / 0.4, rel=0.05)


def test_gravity_corrects_a_map_that_floors_and_walls_made_upright():
    poses = lap_poses(6, 0.2)
    wrong = rotation(np.array([0.0, 0.0, 0.1]))
    heard = []

    def late(pose):
        heard.append(pose)
        return wrong @ pose[2, :3] if len(heard) > 6 else None

    placements = list(place_drive(poses, up=late))
    assert not placements[1][0].corrections
    turned, found = placements[2]
    assert {window for window, _ in turned.corrections} == {1, 2}
    np.testing.assert_allclose(found[0][2, :3], wrong @ poses[2][2, :3], atol=0.01)
    before = dict(turned.corrections)
    for window, pose in placements[3][0].corrections:
        if window in before:
            assert np.abs(pose.rotation - before[window].rotation).max() < 5e-3, "once is enough"


def test_views_that_contradict_each_other_about_up_are_not_believed():
    poses = lap_poses(3, 0.2)
    ups = iter([np.array([0.0, -1.0, 0.0]), np.array([0.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0])])
    ((_, contradicted),) = place_drive(poses, up=lambda pose: next(ups))
    ((_, alone),) = place_drive(poses)
    np.testing.assert_allclose(contradicted, alone, atol=1e-6)
