# SPDX-License-Identifier: Apache-2.0
"""What a robot keeps in memory ends at its bounds: on laps of one hall, and while it is lost.

`make soak` shows the same of the whole node over time.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from g2vlm_tests.accounts import MIB, resident_bytes, store_bytes

from g2vlm_ros.demo.sim.analytic_hall import (
    LAP_M,
    VALUES,
    frame_of,
    lap_poses,
    make,
    pose_on_lap,
    steps,
)
from g2vlm_ros.dense_map.dense_map import DenseMap
from g2vlm_ros.dense_map.voxel_grid import VoxelGrid
from g2vlm_ros.mapping import pose_graph
from g2vlm_ros.mapping.trajectory import Trajectory
from g2vlm_ros.pipeline import PerceivedWindow
from g2vlm_ros.ros.heap import trim
from g2vlm_ros.settings import Settings

BOUNDS = {"map.keyframes": 12, "map.graph_windows": 16, "voxel.memory_mib": 8}
"""Small, so that a short drive meets them."""
LAP_VIEWS = 36


class Robot:
    """A pipeline, its map and its trail; all that outlives a window without ROS."""

    def __init__(self, poses: np.ndarray, **bounds: object):
        values = BOUNDS | bounds
        flat = {name.replace(".", "__"): value for name, value in values.items()}
        self.perception, self.pipeline = make(poses, **flat)
        settings = Settings.from_flat(VALUES | values)
        self.dense_map, self.trail = DenseMap(settings), Trajectory(20)
        self.newest: PerceivedWindow | None = None

    def pass_by(self, numbers: range) -> None:
        """Views of the drive."""
        for number in numbers:
            position_m = self.perception.poses[number][:3, 3].copy()
            self.pipeline.offer(frame_of(self.perception, number, position_m=position_m))
            for update in steps(self.pipeline):
                self.dense_map.add(update)
                self.newest = update
                views = [(update.window.frames[i].stamp_ns, np.eye(4)) for i in update.new_views]
                self.trail.add(update.window.id, update.placement, views)

    def stores(self) -> dict[str, int]:
        """Bytes by store."""
        parts = {"pipeline": self.pipeline, "map": self.dense_map, "trail": self.trail}
        shared = store_bytes({"perception": self.perception} | parts)
        voxels = {"voxels": self.dense_map.stats().nbytes}
        return {n: b for n, b in shared.items() if not n.startswith("perception.")} | voxels


def test_laps_of_one_hall_need_no_more_memory_than_the_first_ones(monkeypatch):
    """Twice as many laps, not a store that is larger: what counts windows counts to its bound."""
    monkeypatch.setattr(pose_graph, "FOLDED_PER_NODE", 0.5)
    poses = np.stack([pose_on_lap(k * LAP_M / LAP_VIEWS) for k in range(4 * LAP_VIEWS)])
    robot = Robot(poses)
    robot.pass_by(range(2 * LAP_VIEWS))
    before = robot.stores()
    robot.pass_by(range(2 * LAP_VIEWS, 4 * LAP_VIEWS))
    after = robot.stores()
    grown = {n: (before[n], after[n]) for n in after if after[n] > 1.01 * before[n] + 10_000}
    assert not grown, grown


def test_maps_of_a_lost_robot_go_when_the_graph_forgets_their_windows():
    """Each jump begins a map; of those that nothing leads to any more none is kept."""
    rng = np.random.default_rng(1)
    jumps = [(rng.uniform(0, LAP_M), rng.uniform(-3, 3)) for _ in range(28)]
    poses = [pose_on_lap(way + 0.2 * step, yaw) for way, yaw in jumps for step in range(3)]
    robot = Robot(np.stack(poses), **{"map.keyframes": 3, "voxel.memory_mib": 64})
    robot.pass_by(range(len(poses)))
    maps, size = robot.dense_map.maps_aside
    begun, nodes = robot.newest.placement.map_id + 1, BOUNDS["map.graph_windows"]
    assert begun > 1.25 * nodes, "or the robot was hardly ever lost"
    assert maps < nodes and size <= 64 * MIB, (begun, maps)


def test_short_maps_do_not_drive_out_the_map_of_the_home():
    """What is put aside takes as much memory as the map at most, and the smallest goes first."""
    robot = Robot(lap_poses(40, 0.3))
    robot.pass_by(range(40))
    home, size = robot.newest, len(robot.dense_map.points())
    for number in range(1, 12):
        robot.dense_map.add(elsewhere(home, number))
    maps, nbytes = robot.dense_map.maps_aside
    assert 1 < maps < 11 and nbytes <= 8 * MIB, (maps, nbytes)
    sizes = robot.dense_map.sizes()
    assert (sizes.maps_aside, sizes.aside_bytes) == (maps, nbytes)
    assert 0 < sizes.voxels <= sizes.max_voxels and 0 < sizes.nbytes <= 8 * MIB
    robot.dense_map.add(home)
    assert len(robot.dense_map.points()) > 0.9 * size


def elsewhere(update: PerceivedWindow, number: int) -> PerceivedWindow:
    """The same window as the first of another map."""
    placement = replace(update.placement, map_id=number, corrections=(), forgotten=())
    window = replace(update.window, id=update.window.id + number)
    return replace(update, placement=placement, window=window)


def test_pools_of_voxels_cost_memory_as_they_are_used():
    """Also where malloc would take their zeros from what it has freed, and clear all of it."""
    blocks = [np.ones(MIB, np.uint8) for _ in range(160)]
    plug = np.ones(MIB // 2, np.uint8)
    large = np.ones(24 * MIB, np.uint8)
    del large, blocks  # from now on malloc takes such sizes from its heap
    if not trim():
        pytest.skip("the C library has no malloc_trim")
    before = resident_bytes()
    grids = [VoxelGrid(0.05, 16 * MIB) for _ in range(8)]
    assert resident_bytes() - before < 4 * MIB
    grids[0].voxels[:] = 1
    used = resident_bytes()
    assert used - before > grids[0].voxels.nbytes / 2
    grids.clear()
    assert resident_bytes() < used - grids_bytes() / 2 and plug.size


def grids_bytes() -> int:
    """The voxels of a grid as above."""
    return VoxelGrid(0.05, 16 * MIB).voxels.nbytes
