"""The live map of a simulated drive: on the true surfaces, bounded, corrected, a grid for Nav2."""

import numpy as np
import pytest

from g2vlm_ros.core.alignment import fit_similarity
from g2vlm_ros.core.mapping.files import read_pcd
from g2vlm_ros.core.settings import Settings
from g2vlm_ros.live import LiveMapping
from g2vlm_ros.scene_map import SceneMap
from test.drive import (
    BLOCK_M,
    HALL_M,
    PILLAR_RADIUS_M,
    PILLARS_M,
    DrivePerception,
    frame_of,
    lap_poses,
)


def drive(poses, **values):
    """A map of the drive, its updates, and the positions of its views in map and world."""
    flat = {"window.views": 3, "window.max_age_s": 4.0}
    settings = Settings.from_flat({**flat, **{k.replace("__", "."): v for k, v in values.items()}})
    perception = DrivePerception(poses, None)
    live, scene_map, updates = LiveMapping(perception, settings), SceneMap(settings), []
    for number in range(len(poses)):
        live.offer(frame_of(perception, number))
        while (update := live.step()) is not None:
            scene_map.add(update)
            updates.append(update)
    found = {
        u.window.frames[i].stamp_ns: u.map_from_camera[i][:3, 3]
        for u in updates
        for i in u.new_views
    }
    track = np.stack([found[stamp] for stamp in sorted(found)])
    truth = np.stack([pose[:3, 3] for pose in poses[: len(track)]])
    return scene_map, updates, (track, truth)


def distance_to_surfaces(points):
    """Distance (n,) to the nearest surface of the analytic hall, metres."""
    walls = np.abs(points[:, None] - HALL_M[None]).reshape(len(points), -1).min(1)
    outside = np.maximum(np.maximum(BLOCK_M[0] - points, points - BLOCK_M[1]), 0)
    block = np.linalg.norm(outside[:, :2], axis=1)
    pillars = np.linalg.norm(points[:, None, :2] - PILLARS_M[None], axis=2) - PILLAR_RADIUS_M
    return np.min([walls, block, np.abs(pillars).min(1)], axis=0)


@pytest.fixture(scope="module")
def lap():
    scene_map, updates, (track, truth) = drive(lap_poses(60, 0.3), map__loop_closure=False)
    return scene_map, updates, fit_similarity(track, truth, np.ones(len(track)))


def test_the_map_lies_on_the_true_surfaces(lap):
    scene_map, updates, world_from_map = lap
    points = scene_map.points()
    positions = np.stack([points[axis] for axis in "xyz"], -1).astype(np.float64)
    error = distance_to_surfaces(world_from_map.apply(positions))
    assert len(points) > 2000 and scene_map.stamp_ns == updates[-1].window.stamp_ns
    assert np.median(error) < 0.03 and np.percentile(error, 95) < 0.15


def test_points_are_repacked_by_change_and_stay_equal_to_a_fresh_copy(lap):
    scene_map, _, _ = lap
    first, again = scene_map.points(), scene_map.points()
    np.testing.assert_array_equal(first, again)
    scene_map._mirror = type(scene_map._mirror)()
    fresh = scene_map.points()
    assert {p.tobytes() for p in fresh} == {p.tobytes() for p in first}


def test_occupancy_has_walls_free_floor_and_unknown(lap):
    scene_map, updates, world_from_map = lap
    grid = scene_map.occupancy()
    values, counts = np.unique(grid.data, return_counts=True)
    assert set(values) == {-1, 0, 100} and counts.min() > 20
    rows, columns = np.nonzero(grid.data == 100)
    cells = np.stack([columns, rows], -1) * grid.resolution + [grid.origin_x, grid.origin_y]
    cells = np.concatenate([cells, np.zeros((len(cells), 1))], 1)
    wall = world_from_map.apply(cells)
    wall[:, 2] = 1.0
    assert np.percentile(distance_to_surfaces(wall), 90) < 0.2
    camera = updates[-1].map_from_camera[-1][:2, 3]
    column, row = ((camera - [grid.origin_x, grid.origin_y]) / grid.resolution).astype(int)
    near = grid.data[row - 1 : row + 2, column - 1 : column + 2]
    assert not (near == 100).any(), "the robot does not stand in a wall"


def test_saved_files_hold_the_map(lap, tmp_path):
    scene_map, _, _ = lap
    for ending in (".npz", ".ply", ".pcd"):
        assert scene_map.save(tmp_path / f"map{ending}") == len(scene_map.points())
    points, _, _ = read_pcd(tmp_path / "map.pcd")
    assert len(points) == len(scene_map.points())


def test_memory_stays_bounded(lap):
    poses = lap_poses(60, 0.3)
    small, _, _ = drive(poses, map__loop_closure=False, voxel__memory_mib=1, voxel__size_m=0.02)
    assert small._voxels.nbytes <= 1 << 20 and small._voxels.counts.evicted > 0


def test_a_new_sub_map_starts_empty_and_reset_forgets(lap):
    poses = lap_poses(12, 0.3)
    far = lap_poses(60, 0.3)[40:52]
    scene_map, updates, _ = drive([*poses, *far], map__loop_closure=False)
    assert {u.placement.sub_map for u in updates} == {0, 1}
    before = len(scene_map.points())
    whole, _, _ = drive(poses, map__loop_closure=False)
    assert before < 2 * len(whole.points())
    scene_map.reset()
    assert len(scene_map.points()) == 0 and scene_map.occupancy() is None
