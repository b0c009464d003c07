# SPDX-License-Identifier: Apache-2.0
"""What moved leaves the map: contradicted at once, carved when seen again, and gone for good."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from g2vlm_ros.datasets.sequence import SequenceFrame
from g2vlm_ros.demo.sim import materials
from g2vlm_ros.demo.sim.analytic_hall import (
    LAP_M,
    DrivePerception,
    Noise,
    frame_of,
    lap_poses,
    pose_on_lap,
)
from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.sim.furniture import CYLINDER
from g2vlm_ros.demo.sim.home import Item, Solid
from g2vlm_ros.demo.sim.renderer import render
from g2vlm_ros.demo.sim.scenes import make_scene
from g2vlm_ros.demo.sim.splits import home_seed
from g2vlm_ros.dense_map import dense_map as module
from g2vlm_ros.dense_map.dense_map import DenseMap
from g2vlm_ros.evaluation.stand_in import StandInErrors, StandInPerception
from g2vlm_ros.evaluation.trajectory_metrics import fit_poses
from g2vlm_ros.pipeline import MappingPipeline
from g2vlm_ros.records import Frame
from g2vlm_ros.settings import Settings

VIEWS, FIRST, STEP, AHEAD_M, RADIUS_M = 16, 32, 2, 1.8, 0.2
"""Views of the walk, every STEP-th, and somebody before the middle one."""


@cache
def home_and_person():
    """A home, the same with somebody AHEAD_M before the first camera, and where that is (2,)."""
    scene = make_scene(home_seed("validation", 0), legs=3)
    pose = scene.walk.world_from_camera[FIRST + STEP * VIEWS // 2]
    ahead = pose[:2, 2] / np.linalg.norm(pose[:2, 2])
    place = pose[:2, 3] + AHEAD_M * ahead
    centre, half = np.array([*place, 0.85]), np.array([RADIUS_M, RADIUS_M, 0.85])
    number, home = len(scene.home.items) + 1, scene.home
    item = Item(number, "person", "", 0, centre, 2 * half, 0.0, np.zeros(3))
    paint = materials.paint(np.random.default_rng(0), "red")
    solid = Solid(CYLINDER, centre, half, 0.0, paint, number)
    busy = replace(home, items=(*home.items, item), solids=(*home.solids, solid))
    return scene, busy, place


def views(present):
    """Frames of the walk with the person where `present` (n,) says."""
    scene, busy, _ = home_and_person()
    steps, camera = FIRST + STEP * np.arange(len(present)), lens(168, 126)
    poses, times_s = scene.walk.world_from_camera[steps], scene.walk.time_s[steps]
    index = np.asarray(present, int)
    shown = render([scene.home, busy], index, poses, times_s, camera)
    images, depths_m = np.array(shown.images), np.asarray(shown.depth_m)
    return [
        SequenceFrame(10**9 + i * 5 * 10**8, "camera", lambda i=i: images[i], poses[i], camera,
                      lambda i=i: depths_m[i])
        for i in range(len(present))
    ]  # fmt: skip


def trace(present):
    """Map points where the person stood after each window, by the number of its newest view."""
    frames, (_, _, place) = views(present), home_and_person()
    settings = Settings.from_flat({"window.views": 4, "voxel.size_m": 0.04})
    live = MappingPipeline(StandInPerception(frames, StandInErrors()), settings)
    dense_map, counts = DenseMap(settings), {}
    numbers = {frame.stamp_ns: i for i, frame in enumerate(frames)}
    for frame in frames:
        live.offer(Frame(frame.stamp_ns, "camera", "optical", frame.image, frame.intrinsics))
        if (update := live.step()) is None:
            continue
        dense_map.add(update)
        newest = numbers[update.window.stamp_ns]
        true = np.stack(
            [frames[numbers[f.stamp_ns]].world_from_camera for f in update.window.frames]
        )
        world_from_map = fit_poses(update.map_from_camera, np.stack(true), None)
        points = dense_map.points()
        places = world_from_map.apply(np.stack([points[axis] for axis in "xyz"], -1).astype(float))
        near = np.linalg.norm(places[:, :2] - place, axis=1) < RADIUS_M + 0.1
        counts[newest] = int((near & (places[:, 2] > 0.4) & (places[:, 2] < 1.5)).sum())
    return counts


def test_who_left_is_carved_when_the_place_is_seen_again() -> None:
    counts = trace([True] * (VIEWS // 2) + [False] * (VIEWS // 2))
    there = max(count for number, count in counts.items() if number < VIEWS // 2)
    assert there > 100
    assert counts[max(counts)] < 0.1 * there


def test_who_was_there_for_one_view_only_does_not_enter(monkeypatch) -> None:
    present = np.zeros(VIEWS, bool)
    present[8] = True
    kept_out = max(trace(present).values())
    monkeypatch.setattr(module, "CONTRADICTED", 0.0)
    entered = max(trace(present).values())
    assert entered > 100
    assert kept_out < 0.25 * entered


class ScreenedDrive(DrivePerception):
    """A screen a metre wide stands across the way until view LEFT, then it is gone."""

    LEFT, WAY_M = 4, 6.0

    def reconstruct(self, numbers):
        result = super().reconstruct(numbers)
        points = result.local_points_u.copy()
        for view, number in enumerate(numbers):
            depth = (self.WAY_M - 0.4 * number) * self.window_from_world.scale
            across = points[view] * (depth / points[view, ..., 2:])
            behind = points[view, ..., 2] > depth
            hit = behind & (np.abs(across[..., 0]) < 0.5 * self.window_from_world.scale)
            if number < self.LEFT:
                points[view][hit] = across[hit]
        return replace(result, geometry=replace(result.geometry, local_points_u=points))


def test_a_loop_brings_no_cleared_obstacle_back() -> None:
    poses = lap_poses(round(LAP_M / 0.4) + 9, 0.4, weave=0.0)
    settings = Settings.from_flat(
        {"window.views": 3, "window.overlap": 1, "window.max_age_s": 4.0,
         "map.loop_gap_windows": 20}
    )  # fmt: skip
    perception = ScreenedDrive(poses, Noise(0.02, 0.02, 0.005, 0.005), seed=2)
    live, dense_map = MappingPipeline(perception, settings), DenseMap(settings)
    screen = pose_on_lap(ScreenedDrive.WAY_M)[:2, 3]
    starts, counts, closed_at = {}, [], None
    for number in range(len(poses)):
        live.offer(frame_of(perception, number))
        while (update := live.step()) is not None:
            dense_map.add(update)
            for view in update.new_views if len(starts) < 10 else ():
                starts[len(starts)] = update.map_from_camera[view]
            if update.placement.loop_closed and closed_at is None:
                closed_at = len(counts)
            if len(starts) >= 5:
                counts.append(points_at(dense_map, starts, poses, screen))
    # Voxels follow a correction over several windows.
    assert closed_at is not None and closed_at < len(counts) - 2
    assert max(counts) > 30
    assert counts[closed_at - 1] < 0.25 * max(counts)
    assert max(counts[closed_at:]) <= counts[closed_at - 1]


def points_at(dense_map, starts, poses, place):
    """Map points above the floor within 0.4 m of a place of the world (2,), no higher than views
    that come near it still look."""
    world_from_map = fit_poses(np.stack(list(starts.values())), poses[: len(starts)], None)
    points = dense_map.points()
    places = world_from_map.apply(np.stack([points[axis] for axis in "xyz"], -1).astype(float))
    near = np.linalg.norm(places[:, :2] - place, axis=1) < 0.4
    return int((near & (places[:, 2] > 0.5) & (places[:, 2] < 1.6)).sum())
