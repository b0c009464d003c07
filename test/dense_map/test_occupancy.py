# SPDX-License-Identifier: Apache-2.0
"""Occupancy of a simulated room: walls occupied, seen floor free, the unseen unknown."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from g2vlm_ros.dense_map import occupancy
from g2vlm_ros.dense_map.free_space import DepthView
from g2vlm_ros.dense_map.occupancy import FREE, OCCUPIED, UNKNOWN, Occupancy, OccupancyMapper
from g2vlm_ros.dense_map.voxel_map import VoxelMap
from g2vlm_ros.geometry.sim3 import ZUP_FROM_OPTICAL, Sim3
from g2vlm_ros.records import Intrinsics

ROOM = np.array([[0.0, 0.0, 0.0], [6.0, 4.0, 2.5]])
TABLE = np.array([[2.5, 1.5, 0.0], [3.5, 2.5, 0.8]])
LAMP = np.array([[1.0, 2.8, 1.9], [1.4, 3.2, 2.4]])
"""Hangs above the height band."""
CAMERA = Intrinsics(80.0, 80.0, 55.5, 41.5, 112, 84)
RESOLUTION = 0.1


def ray_depth(origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Depth (n,) along directions (n, 3) of depth 1: the room from within, boxes from without."""
    with np.errstate(divide="ignore"):
        inverse = 1.0 / directions
        depth = np.maximum(*((wall - origin) * inverse for wall in ROOM)).min(1)
        for box in (TABLE, LAMP):
            near, far = ((face - origin) * inverse for face in box)
            enter, leave = np.minimum(near, far).max(1), np.maximum(near, far).min(1)
            hit = (enter < leave) & (enter > 0)
            depth = np.where(hit, np.minimum(depth, enter), depth)
    return depth


def look(position: tuple[float, ...], yaw: float, stamp_ns: int) -> tuple[np.ndarray, DepthView]:
    pose = np.eye(4)
    c, s = np.cos(yaw), np.sin(yaw)
    pose[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ ZUP_FROM_OPTICAL
    pose[:3, 3] = position
    v, u = np.mgrid[0:84, 0:112]
    rays = np.stack([(u - 55.5) / 80, (v - 41.5) / 80, np.ones(u.shape)], axis=-1).reshape(-1, 3)
    rays = rays @ pose[:3, :3].T
    depth = ray_depth(pose[:3, 3], rays)
    points = (pose[:3, 3] + rays * depth[:, None]).astype(np.float32)
    image = depth.reshape(84, 112).astype(np.float32)
    return points, DepthView(image, np.ones_like(image), pose, CAMERA, stamp_ns)


def mapped(views: list[tuple[tuple[float, ...], float]]) -> tuple[VoxelMap, OccupancyMapper]:
    voxel_map = VoxelMap(0.05, 64 << 20)
    mapper = OccupancyMapper(RESOLUTION, 0.15, 1.5)
    for i, (position, yaw) in enumerate(views):
        points, view = look(position, yaw, i)
        colours = np.zeros(points.shape, np.uint8)
        confidence = np.ones(len(points), np.float32)
        voxel_map.integrate(points, colours, confidence, view.origin, i, i)
        voxel_map.carve(view)
        mapper.observe(view, i)
    return voxel_map, mapper


def value(grid: Occupancy, x: float, y: float) -> int:
    column = int(np.floor((x - grid.origin_x) / grid.resolution))
    row = int(np.floor((y - grid.origin_y) / grid.resolution))
    if 0 <= row < grid.data.shape[0] and 0 <= column < grid.data.shape[1]:
        return int(grid.data[row, column])
    return UNKNOWN


ALL_AROUND = [
    (position, yaw)
    for position in ((1.0, 0.8, 1.2), (5.0, 3.2, 1.2), (4.8, 0.8, 1.2), (1.0, 3.2, 1.2))
    for yaw in np.arange(0, 2 * np.pi, np.pi / 4)
]


def test_a_room_seen_all_around():
    voxel_map, mapper = mapped(ALL_AROUND)
    grid = mapper.grid(voxel_map.voxels()[1]["position"], np.zeros(3))
    assert grid.data.dtype == np.int8 and set(np.unique(grid.data)) <= {UNKNOWN, FREE, OCCUPIED}
    along = np.arange(0.25, 3.8, RESOLUTION)
    for x in (0.0, 6.0):
        # A wall lies on a border of cells: one of the two beside it holds it.
        walls = [OCCUPIED in (value(grid, x - 0.01, y), value(grid, x + 0.01, y)) for y in along]
        assert np.mean(walls) > 0.95
    steps = np.arange(0.05, 6, RESOLUTION), np.arange(0.05, 4, RESOLUTION)
    for x in steps[0]:
        for y in steps[1]:
            from_table = max(abs(x - 3.0), abs(y - 2.0)) - 0.5
            from_walls = min(x, 6 - x, y, 4 - y)
            if from_table > 0.15 and from_walls > 0.15:
                assert value(grid, x, y) == FREE, (x, y)
            if from_table < -0.15:
                assert value(grid, x, y) != FREE, (x, y)
    edge = [value(grid, 2.5 + d, y) for d in (-0.05, 0.05) for y in np.arange(1.6, 2.4, 0.1)]
    assert edge.count(OCCUPIED) >= 8
    for x, y in ((-0.5, 2), (6.5, 2), (3, -0.5), (3, 4.5)):
        assert value(grid, x, y) == UNKNOWN


def test_what_no_ray_reached_is_unknown():
    voxel_map, mapper = mapped([((1.0, 2.0, 0.6), 0.0)])
    grid = mapper.grid(voxel_map.voxels()[1]["position"], np.zeros(3))
    assert value(grid, 2.0, 2.0) == FREE
    assert value(grid, 4.2, 2.0) == UNKNOWN, "behind the table, which hides it at this height"
    assert value(grid, 0.5, 2.0) == UNKNOWN, "behind the camera"
    assert OCCUPIED in (value(grid, 2.45, 2.0), value(grid, 2.55, 2.0))


def test_rays_alone_make_free_and_stop_at_obstacles():
    _, mapper = mapped([((1.0, 2.0, 0.6), 0.0)])
    grid = mapper.grid(np.empty((0, 3), np.float32), np.zeros(3))
    assert value(grid, 2.0, 2.0) == FREE
    assert value(grid, 2.9, 2.0) == UNKNOWN and not (grid.data == OCCUPIED).any()


def test_ground_that_rays_passed_above_the_band_is_unknown():
    mapper = OccupancyMapper(RESOLUTION, 0.1, 0.5)
    mapper.observe(look((4.0, 0.8, 1.2), np.pi, 0)[1], 0)
    grid = mapper.grid(np.empty((0, 3), np.float32), np.zeros(3))
    assert value(grid, 3.2, 0.8) == UNKNOWN and value(grid, 2.0, 0.8) == FREE


def test_views_move_with_their_window():
    _, mapper = mapped([((1.0, 2.0, 0.6), 0.0)])
    mapper.correct({0: Sim3(1.0, np.eye(3), np.array([10.0, 0.0, 0.0]))})
    grid = mapper.grid(np.empty((0, 3), np.float32), np.zeros(3))
    assert value(grid, 12.0, 2.0) == FREE and value(grid, 2.0, 2.0) == UNKNOWN


def test_the_height_band_is_above_the_given_floor():
    """A floor that rises by 20 cm a metre along x, and a bar 1.7 above it that is in no way."""
    slope = np.hypot(1.0, 0.2)
    x, y = np.meshgrid(np.arange(0.025, 3, 0.05), np.arange(0.025, 1, 0.05))
    ground = np.stack([x.ravel(), y.ravel(), 0.2 * x.ravel()], axis=-1)
    bar = ground[np.abs(ground[:, 0] - 1.0) < 0.1] + [0, 0, 1.8]
    post = ground[np.abs(ground[:, 0] - 2.0) < 0.1] + [0, 0, 0.5]
    positions = np.concatenate([ground, bar, post]).astype(np.float32)
    grid = OccupancyMapper(RESOLUTION, 0.1, 1.5).grid(
        positions, np.zeros(3), (-0.2 / slope, 0.0, 1 / slope, 0.0)
    )
    assert value(grid, 1.0, 0.5) == FREE and value(grid, 2.95, 0.5) == FREE
    assert value(grid, 2.0, 0.5) == OCCUPIED


def test_the_grid_is_cut_around_its_middle():
    positions = np.float32([[0, 0, 0], [1000, 0, 0], [3, 1, 0.5]])
    mapper = OccupancyMapper(RESOLUTION, 0.1, 1.0, max_cells=100)
    grid = mapper.grid(positions, np.zeros(3))
    assert max(grid.data.shape) <= 100
    assert value(grid, 0.05, 0.05) == FREE and value(grid, 3.05, 1.05) == OCCUPIED


def test_nothing_known_is_one_unknown_cell_and_bad_settings_are_refused():
    grid = OccupancyMapper(RESOLUTION, 0.1, 1.0).grid(np.empty((0, 3), np.float32), np.ones(3))
    assert grid.data.tolist() == [[UNKNOWN]] and grid.origin_x == pytest.approx(1.0, abs=0.1)
    with pytest.raises(ValueError, match="resolution is 0"):
        OccupancyMapper(0.0, 0.1, 1.0)
    with pytest.raises(ValueError, match="height band is 1.0 to 0.5"):
        OccupancyMapper(0.1, 1.0, 0.5)
    with pytest.raises(ValueError, match="of length 1"):
        OccupancyMapper(0.1, 0.1, 1.0).grid(
            np.zeros((1, 3), np.float32), np.zeros(3), (0, 0, 2, 0)
        )


def test_memory_follows_the_way_and_not_how_often_it_is_driven():
    """A round driven three times costs what it costs once, and its newest views are the ones that
    corrections of their windows move."""
    corners = [(1.0, 0.8), (5.0, 0.8), (5.0, 3.2), (1.0, 3.2), (1.0, 0.8)]
    way = []
    for start, end in pairwise(np.array(corners)):
        yaw = np.arctan2(*(end - start)[::-1])
        way += [((*place, 1.2), yaw) for place in np.linspace(start, end, 14, endpoint=False)]
    mapper, grids, sizes = OccupancyMapper(RESOLUTION, 0.15, 1.5), [], []
    for lap in range(3):
        for i, (position, yaw) in enumerate(way):
            mapper.observe(look(position, yaw, i)[1], len(way) * lap + i)
        grids.append(mapper.grid(np.zeros((0, 3), np.float32), np.array([3.0, 2.0])))
        sizes.append(mapper.nbytes)
    assert sizes[0] == sizes[1] == sizes[2] > 0
    np.testing.assert_array_equal(grids[0].data, grids[2].data)
    away, laps = (
        Sim3(1.0, np.eye(3), np.array([7.0, 0, 0])),
        np.arange(3 * len(way)).reshape(3, -1),
    )
    mapper.correct(dict.fromkeys(laps[:2].reshape(-1).tolist(), away))
    unmoved = mapper.grid(np.zeros((0, 3), np.float32), np.array([3.0, 2.0]))
    np.testing.assert_array_equal(unmoved.data, grids[2].data)
    mapper.correct(dict.fromkeys(laps[2].tolist(), away))
    moved = mapper.grid(np.zeros((0, 3), np.float32), np.array([3.0, 2.0]))
    assert moved.origin_x == pytest.approx(grids[2].origin_x + 7.0)
    assert 0 < mapper.nbytes <= sizes[2]


def test_views_of_one_spot_that_are_left_out_cost_next_to_no_free_ground(monkeypatch):
    rng = np.random.default_rng(3)
    places = np.array([1.2, 2.0]) + np.cumsum(rng.normal(0, 0.08, (200, 2)), 0)
    places = np.clip(places, (0.4, 0.4), (2.2, 3.6))
    yaws = np.cumsum(rng.normal(0, 0.15, 200))
    grids, sizes = [], []
    for spot in (occupancy.SPOT_CELLS, 1e-6):
        monkeypatch.setattr(occupancy, "SPOT_CELLS", spot)
        mapper = OccupancyMapper(0.05, 0.15, 1.5)
        for i, (place, yaw) in enumerate(zip(places, yaws, strict=True)):
            mapper.observe(look((*place, 1.2), yaw, i)[1], i)
        grids.append(mapper.grid(np.zeros((0, 3), np.float32), np.array([3.0, 2.0])))
        sizes.append(mapper.nbytes)
    few, all_of_them = ((grid.data == FREE).sum() for grid in grids)
    assert sizes[0] < 0.7 * sizes[1]
    assert 0.97 * all_of_them <= few <= all_of_them
