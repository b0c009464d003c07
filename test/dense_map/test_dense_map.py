# SPDX-License-Identifier: Apache-2.0
"""The live map of a simulated drive: on the true surfaces, bounded, corrected, a grid for Nav2."""

import json
from dataclasses import replace

import numpy as np
import pytest
from g2vlm_tests.point_files import read_pcd
from g2vlm_tests.point_mirror import PointMirror

from g2vlm_ros.demo.sim.analytic_hall import (
    BLOCK_M,
    GAP_NS,
    HALL_M,
    PILLAR_RADIUS_M,
    PILLARS_M,
    DrivePerception,
    frame_of,
    lap_poses,
    pose_on_lap,
)
from g2vlm_ros.dense_map.dense_map import DenseMap
from g2vlm_ros.dense_map.map_changes import EVERYTHING, POINT, change_rows
from g2vlm_ros.dense_map.map_editor import OrientedBox
from g2vlm_ros.dense_map.map_files import MapFileError
from g2vlm_ros.geometry.registration import fit_sim3
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.pipeline import MappingPipeline
from g2vlm_ros.records import ScaleState
from g2vlm_ros.settings import Settings


def drive(poses, before=None, odometry=False, **values):
    """A map of the drive, its updates, and the positions of its views in map and world.

    before: what to do with the map first. odometry: whether frames know their true position.
    """
    flat = {"window.views": 3, "window.max_age_s": 4.0}
    settings = Settings.from_flat({**flat, **{k.replace("__", "."): v for k, v in values.items()}})
    perception = DrivePerception(poses, None)
    live, dense_map, updates = MappingPipeline(perception, settings), DenseMap(settings), []
    if before is not None:
        before(dense_map)
    for number in range(len(poses)):
        known = {"position_m": poses[number][:3, 3].copy()} if odometry else {}
        live.offer(frame_of(perception, number, **known))
        while (update := live.step()) is not None:
            dense_map.add(update)
            updates.append(update)
    found = {
        u.window.frames[i].stamp_ns: u.map_from_camera[i][:3, 3]
        for u in updates
        for i in u.new_views
    }
    track = np.stack([found[stamp] for stamp in sorted(found)])
    truth = np.stack([pose[:3, 3] for pose in poses[: len(track)]])
    return dense_map, updates, (track, truth)


def distance_to_surfaces(points):
    """Distance (n,) to the nearest surface of the analytic hall, metres."""
    walls = np.abs(points[:, None] - HALL_M[None]).reshape(len(points), -1).min(1)
    outside = np.maximum(np.maximum(BLOCK_M[0] - points, points - BLOCK_M[1]), 0)
    block = np.linalg.norm(outside[:, :2], axis=1)
    pillars = np.linalg.norm(points[:, None, :2] - PILLARS_M[None], axis=2) - PILLAR_RADIUS_M
    return np.min([walls, block, np.abs(pillars).min(1)], axis=0)


@pytest.fixture(scope="module")
def lap():
    dense_map, updates, (track, truth) = drive(lap_poses(60, 0.3), map__loop_closure=False)
    return dense_map, updates, fit_sim3(track, truth, np.ones(len(track)))


def test_the_map_lies_on_the_true_surfaces(lap):
    dense_map, updates, world_from_map = lap
    points = dense_map.points()
    positions = np.stack([points[axis] for axis in "xyz"], -1).astype(np.float64)
    error = distance_to_surfaces(world_from_map.apply(positions))
    assert len(points) > 2000 and dense_map.stamp_ns == updates[-1].window.stamp_ns
    assert np.median(error) < 0.03 and np.percentile(error, 95) < 0.15


def test_pixels_that_share_a_voxel_are_not_all_taken(monkeypatch):
    def filled():
        dense_map, updates, _ = drive(lap_poses(12, 0.3), odometry=True, voxel__size_m=0.5)
        assert updates[-1].placement.scale.state is ScaleState.METRIC
        return len(dense_map.points()), dense_map.stats().counts.integrated

    voxels, taken = filled()
    monkeypatch.setattr("g2vlm_ros.dense_map.voxel_fusion.SAMPLES_PER_VOXEL", 1e9)
    all_voxels, all_taken = filled()
    assert taken < 0.3 * all_taken and voxels > 0.9 * all_voxels


def test_settings_of_the_published_cloud_do_not_thin_the_map():
    def filled(**values):
        dense_map, _, _ = drive(lap_poses(6, 0.3), odometry=True, **values)
        return len(dense_map.points())

    everything = filled()
    assert filled(cloud__min_confidence=1.0, cloud__max_edge_step=1e-4) == everything
    assert filled(voxel__max_edge_step=0.002) < 0.8 * everything


def test_what_is_far_from_its_camera_stays_out_of_the_map():
    poses = lap_poses(6, 0.3)
    everything, *_ = drive(poses, odometry=True)
    near, updates, _ = drive(poses, odometry=True, voxel__max_depth_m=3.0)
    cameras = np.concatenate([update.map_from_camera for update in updates])

    def nearest_m(dense_map):
        points = np.stack([dense_map.points()[axis] for axis in "xyz"], -1)
        local = np.einsum("nji,npj->npi", cameras[:, :3, :3], points - cameras[:, None, :3, 3])
        return np.where(local[..., 2] > 0, local[..., 2], np.inf).min(0)

    assert 100 < len(near.points()) < 0.9 * len(everything.points())
    assert nearest_m(near).max() < 3.2 < nearest_m(everything).max()


def test_points_are_what_the_changes_add_up_to(lap):
    dense_map, _, _ = lap
    mirror = PointMirror()
    mirror.apply(dense_map.changes(None)[0])
    found, expected = dense_map.points(), mirror.dense()
    assert len(found) == len(expected) > 1000
    np.testing.assert_array_equal(np.sort(found), np.sort(expected))


def test_occupancy_has_walls_free_floor_and_unknown(lap):
    dense_map, updates, world_from_map = lap
    grid = dense_map.occupancy()
    values, counts = np.unique(grid.data, return_counts=True)
    assert set(values) == {-1, 0, 100} and counts.min() > 20
    rows, columns = np.nonzero(grid.data == 100)
    cells = np.stack([columns, rows], -1) * grid.resolution + [grid.origin_x, grid.origin_y]
    cells = np.concatenate([cells, np.zeros((len(cells), 1))], 1)
    wall = world_from_map.apply(cells)
    wall[:, 2] = 1.0
    assert np.percentile(distance_to_surfaces(wall), 90) < 0.2
    plan, walls = dense_map.floor_plan()
    np.testing.assert_array_equal(plan.data, grid.data)
    column, row = ((walls - [grid.origin_x, grid.origin_y]) / grid.resolution).astype(int).T
    assert len(walls) > 500 and (grid.data[row, column] == 100).mean() > 0.9
    camera = updates[-1].map_from_camera[-1][:2, 3]
    column, row = ((camera - [grid.origin_x, grid.origin_y]) / grid.resolution).astype(int)
    near = grid.data[row - 1 : row + 2, column - 1 : column + 2]
    assert not (near == 100).any(), "the robot does not stand in a wall"


def test_saved_files_hold_the_map(lap, tmp_path):
    dense_map, _, _ = lap
    for ending in (".npz", ".ply", ".pcd"):
        assert dense_map.save(tmp_path / f"map{ending}") == len(dense_map.points())
    points, _, _ = read_pcd(tmp_path / "map.pcd")
    assert len(points) == len(dense_map.points())


def test_memory_stays_bounded(lap):
    poses = lap_poses(60, 0.3)
    small, _, _ = drive(poses, map__loop_closure=False, voxel__memory_mib=1, voxel__size_m=0.02)
    stats = small.stats()
    assert stats.nbytes <= 1 << 20 and stats.counts.evicted > 0


def test_a_new_map_starts_empty_and_reset_forgets(lap):
    poses = lap_poses(12, 0.3)
    far = lap_poses(60, 0.3)[40:52]
    dense_map, updates, _ = drive([*poses, *far], map__loop_closure=False)
    assert {u.placement.map_id for u in updates} == {0, 1}
    before = len(dense_map.points())
    whole, _, _ = drive(poses, map__loop_closure=False)
    assert before < 2 * len(whole.points())
    dense_map.reset()
    assert len(dense_map.points()) == 0 and dense_map.occupancy() is None


def test_views_that_nothing_connects_stay_out_of_the_map():
    """The robot looked elsewhere between two frames: where the old views lie is a guess."""
    poses = lap_poses(5, 0.2)
    poses[4] = pose_on_lap(0.8, np.pi)
    dense_map, updates, _ = drive(poses, map__loop_closure=False, voxel__max_edge_step=0.0)
    turned = updates[-1]
    assert turned.placement.new_map == "no_overlap" and turned.trusted_views == (2,)
    positions = np.stack([dense_map.points()[axis] for axis in "xyz"], -1)
    camera, seen = turned.map_from_camera[2], turned.map_points()[2].reshape(-1, 3)
    reach = np.linalg.norm(seen - camera[:3, 3], axis=1).max()
    assert 0 < len(positions) <= len(seen)
    local = (positions - camera[:3, 3]) @ camera[:3, :3]
    assert (local[:, 2] > 0).all() and np.linalg.norm(local, axis=1).max() < 1.05 * reach


def test_a_window_that_ran_when_reset_and_load_came_does_not_enter_the_loaded_map(metric):
    path, first, _ = metric
    perception, settings = DrivePerception(lap_poses(9, 0.3)), Settings()
    live, dense_map, updates = MappingPipeline(perception, settings), DenseMap(settings), []
    for number in range(9):
        known = {"position_m": perception.poses[number, :3, 3].copy()}
        live.offer(frame_of(perception, number, **known))
        while (update := live.step()) is not None:
            updates.append(update)
    dense_map.add(updates[0])
    dense_map.reset(live.reset())
    dense_map.load(path, Sim3.identity())
    dense_map.add(updates[1])
    assert len(dense_map.points()) == len(first.points())
    for by_number in (None, live.reset()):
        dense_map.add(replace(updates[0], session=9))
        dense_map.reset(by_number)
        dense_map.add(replace(updates[0], session=9 if by_number is None else 0))
        assert dense_map.version[1] == 0, "refused"


def test_what_moves_less_than_a_voxel_stays_until_it_adds_up():
    settings = Settings.from_flat({"window.views": 3, "map.loop_closure": False})
    perception = DrivePerception(lap_poses(5, 0.3))
    live, dense_map, updates = MappingPipeline(perception, settings), DenseMap(settings), []
    for number in range(5):
        live.offer(frame_of(perception, number))
        while (update := live.step()) is not None:
            dense_map.add(update)
            updates.append(update)
    last, moves = updates[-1], []
    for k in range(1, 6):
        nudge = Sim3(1.0, np.eye(3), np.array([0.2 * k * dense_map.voxel_size, 0, 0]))
        place = nudge @ updates[0].placement.map_from_window
        corrections = ((updates[0].window.id, place),)
        dense_map.add(replace(last, placement=replace(last.placement, corrections=corrections)))
        moves.append(dense_map.stats().pending_corrections > 0)
        dense_map.settle()
    assert moves == [False, False, True, False, False]


SHORT = {"map__loop_closure": False, "voxel__max_edge_step": 0.1}


def apply_rows(voxels, rows):
    """Bring {id: packed point} up to date, as ~/map_updates documents it."""
    for row in rows:
        if row["id"] == EVERYTHING:
            voxels.clear()
        elif np.isnan(row["x"]):
            voxels.pop(int(row["id"]), None)
        else:
            voxels[int(row["id"])] = row


def same_points(voxels, dense_map):
    kept = {row.tobytes()[: POINT.itemsize] for row in voxels.values()}
    return kept == {point.tobytes() for point in dense_map.points()}


def positions_of(dense_map):
    points = dense_map.points()
    return np.stack([points[axis] for axis in "xyz"], -1).astype(np.float64)


def world_from_map(updates, poses):
    """Where the map lies, by the newest view of a drive in metres."""
    world_from_camera = poses[(updates[-1].window.stamp_ns - 10**9) // GAP_NS]
    motion = world_from_camera @ np.linalg.inv(updates[-1].map_from_camera[-1])
    return Sim3(1.0, motion[:3, :3], motion[:3, 3])


@pytest.fixture(scope="module")
def metric(tmp_path_factory):
    """The first part of a lap in metres, saved; its map and world_from_map."""
    poses = lap_poses(20, 0.3)
    dense_map, updates, _ = drive(poses, odometry=True, **SHORT)
    path = tmp_path_factory.mktemp("maps") / "first.npz"
    dense_map.save(path)
    return path, dense_map, world_from_map(updates, poses)


def test_a_map_that_gets_its_metres_later_has_voxels_of_the_setting(metric):
    path, dense_map, world_from_first = metric
    with np.load(path) as file:
        meta = json.loads(str(file["meta"]))
    assert (meta["voxel_size"], meta["scale_state"]) == (0.05, ScaleState.METRIC)
    error = distance_to_surfaces(world_from_first.apply(positions_of(dense_map)))
    assert np.median(error) < 0.06


def test_a_loaded_map_saves_to_the_same_voxels(metric, tmp_path):
    path, dense_map, _ = metric
    fresh = DenseMap(Settings())
    assert fresh.load(path, Sim3.identity()) == len(dense_map.points())
    assert fresh.stamp_ns == dense_map.stamp_ns
    fresh.save(tmp_path / "again.npz")
    with np.load(path) as before, np.load(tmp_path / "again.npz") as after:
        order, again = (np.argsort(file["keys"]) for file in (before, after))
        for name in ("keys", "position", "colour", "count", "confidence", "stamp_ns"):
            np.testing.assert_array_equal(before[name][order], after[name][again])


def test_a_drive_continues_in_a_loaded_map_that_lies_elsewhere(metric):
    path, first, world_from_first = metric
    rest = lap_poses(40, 0.3)[18:]
    alone, updates, _ = drive(rest, odometry=True, **SHORT)
    world_from_second = world_from_map(updates, rest)
    motion = world_from_second.inverse() @ world_from_first
    both, _, _ = drive(rest, before=lambda m: m.load(path, motion), odometry=True, **SHORT)
    error = distance_to_surfaces(world_from_second.apply(positions_of(both)))
    assert np.median(error) < 0.06 and np.percentile(error, 95) < 0.3
    assert len(both.points()) > 1.2 * max(len(first.points()), len(alone.points()))
    assert both.stamp_ns == updates[-1].window.stamp_ns


def test_windows_without_metres_stay_out_of_a_loaded_map(metric):
    path, first, _ = metric
    kept, updates, _ = drive(
        lap_poses(12, 0.3), before=lambda m: m.load(path, Sim3.identity()), **SHORT
    )
    assert updates and len(kept.points()) == len(first.points())


def test_maps_without_metres_or_of_other_voxels_are_not_loaded(metric, tmp_path):
    path, _, _ = metric
    relative, _, _ = drive(lap_poses(6, 0.3), **SHORT)
    relative.save(tmp_path / "relative.npz")
    before = relative.points()
    # As large as the file's, so that only the unit is wrong.
    size = relative.voxel_size
    alike = DenseMap(Settings.from_flat({"voxel.size_m": size}))
    with pytest.raises(MapFileError, match="not in metres"):
        alike.load(tmp_path / "relative.npz", Sim3.identity())
    with pytest.raises(MapFileError, match="voxel size"):
        DenseMap(Settings.from_flat({"voxel.size_m": 0.1})).load(path, Sim3.identity())
    np.testing.assert_array_equal(relative.points(), before)


def test_changes_rebuild_the_map_over_windows_edits_undo_and_reset():
    voxels, version, steps = {}, None, []
    poses = lap_poses(12, 0.3)
    settings = Settings.from_flat({"window.views": 3, "map.loop_closure": False})
    perception = DrivePerception(poses, None)
    live, dense_map = MappingPipeline(perception, settings), DenseMap(settings)

    def follow():
        nonlocal version
        change, version = dense_map.changes(version)
        apply_rows(voxels, change_rows(change))
        steps.append(len(change.ids) + len(change.removed))
        assert same_points(voxels, dense_map)

    for number in range(len(poses)):
        live.offer(frame_of(perception, number))
        while (update := live.step()) is not None:
            dense_map.add(update)
            follow()
    assert dense_map.changes(version)[0].nbytes == 0, "nothing changed since"
    box = OrientedBox(np.median(positions_of(dense_map), axis=0), np.full(3, 1.0), np.eye(3))
    before = len(voxels)
    assert dense_map.edit(lambda editor: editor.remove(box)).changed == before - len(
        dense_map.points()
    )
    follow()
    assert steps[-1] < before and not box.contains(positions_of(dense_map)).any()
    dense_map.edit(lambda editor: editor.undo())
    follow()
    assert len(voxels) == before
    dense_map.reset()
    assert dense_map.changes(version) is None
    dense_map.add(update_of(live, perception))
    follow()


def update_of(live, perception):
    """One more window of the same drive."""
    live.reset()
    for number in range(3):
        frame = frame_of(perception, number)
        live.offer(type(frame)(frame.stamp_ns + 10**11, "camera", "optical", frame.decode))
    return live.step()


def test_an_edit_made_before_the_metres_holds_afterwards():
    poses = lap_poses(14, 0.3)
    settings = Settings.from_flat({"window.views": 3, "map.loop_closure": False})
    perception = DrivePerception(poses, None)
    live, dense_map, states = MappingPipeline(perception, settings), DenseMap(settings), []
    for number in range(len(poses)):
        known = {"position_m": poses[number][:3, 3].copy()} if number >= 6 else {}
        live.offer(frame_of(perception, number, **known))
        while (update := live.step()) is not None:
            dense_map.add(update)
            states.append(update.placement.scale.state)
            if len(states) == 1:
                half = np.full(3, 20 * dense_map.voxel_size)
                box = OrientedBox(positions_of(dense_map)[0], half, np.eye(3))
                edit = dense_map.edit(lambda editor, box=box: editor.remove(box))
                assert edit.changed
    assert states[0] is ScaleState.RELATIVE and states[-1] is ScaleState.METRIC
    (held,) = dense_map.edits
    assert dense_map.sizes().edits == 1
    assert not held.undoable and not np.allclose(held.box.half_size, edit.box.half_size)
    assert not held.box.contains(positions_of(dense_map)).any()
    assert dense_map.voxel_size == settings.voxel.size_m


def test_a_first_window_close_to_a_wall_does_not_keep_the_voxels_small():
    _, updates, _ = drive(lap_poses(14, 0.3), map__loop_closure=False)
    near, *rest = updates
    points = near.result.local_points_u * np.float32(0.2)
    geometry = replace(near.result.geometry, local_points_u=points)
    dense_map = DenseMap(Settings())
    dense_map.add(replace(near, result=replace(near.result, geometry=geometry)))
    small = dense_map.voxel_size
    for update in rest:
        size, before = dense_map.voxel_size, positions_of(dense_map)
        dense_map.add(update)
        if dense_map.voxel_size != size:
            apart = np.linalg.norm(before[::20, None] - positions_of(dense_map)[None], axis=2)
            assert np.mean(apart.min(1) < 2 * dense_map.voxel_size) > 0.9
    reach = np.median([np.median(u.result.local_points_u[..., 2]) for u in rest])
    size = dense_map.voxel_size
    assert rest[-1].placement.scale.state is ScaleState.RELATIVE
    assert size > 2 * small and size == pytest.approx(reach / 50, rel=0.5)
