# SPDX-License-Identifier: Apache-2.0
"""What the voxel map costs: one window into maps of 0.1, 1 and 5 million voxels, on one core.

The map is a building of equal rooms, the windows are noisy views inside one of them (1 % depth
noise, the camera walks and turns). An update is `integrate`, `carve` for every view, `changes`.
Peers in the same run do the averaging alone, in turns with ours: a Python dictionary by cell, one
point at a time (not at 5 million, where it takes gigabytes), and np.unique over map and window
together. Times are medians in ms of the thread's CPU time, in which other load on the machine
hardly counts, and of the wall.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # one core, before numpy starts

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from benchmarks.record import record
from g2vlm_ros.dense_map.free_space import DepthView
from g2vlm_ros.dense_map.map_files import MapInfo, load_map, save_map
from g2vlm_ros.dense_map.occupancy import OccupancyMapper
from g2vlm_ros.dense_map.voxel_map import VoxelMap
from g2vlm_ros.geometry.sim3 import ZUP_FROM_OPTICAL, Sim3
from g2vlm_ros.records import Intrinsics, ScaleState

VOXEL_M = 0.05
ROOM_M = np.array([5.0, 5.0, 2.5])
MAPS = (100_000, 1_000_000, 5_000_000)
KINDS = {"4x112x84": (4, 112, 84), "2x259x196": (2, 259, 196)}
MEMORY = 640 << 20
WINDOWS = 21
SECOND = 1_000_000_000
DRIVE_WINDOWS = 2000
DRIVE_MEMORY = 48 << 20


def clocks(task: Callable[[], object]) -> tuple[float, float]:
    """(CPU, wall) time of a call in ms."""
    cpu, wall = time.thread_time(), time.perf_counter()
    task()
    return (time.thread_time() - cpu) * 1e3, (time.perf_counter() - wall) * 1e3


def summary(times: list[tuple[float, float]]) -> dict[str, float]:
    cpu, wall = ([pair[i] for pair in times] for i in (0, 1))
    return {
        "cpu_ms": round(statistics.median(cpu), 2),
        "cpu_ms_max": round(max(cpu), 2),
        "wall_ms": round(statistics.median(wall), 2),
    }


def room_points(rng: np.random.Generator, corner: np.ndarray) -> np.ndarray:
    """Points on the six sides of a room, about 6 per voxel."""
    sides = []
    for axis in range(3):
        area = np.prod(np.delete(ROOM_M, axis))
        for end in (0.02, ROOM_M[axis] - 0.02):
            points = rng.random((int(6 * area / VOXEL_M**2), 3)) * ROOM_M
            points[:, axis] = end
            sides.append(points)
    return (np.concatenate(sides) + corner).astype(np.float32)


def build(voxels: int) -> VoxelMap:
    """A map of at least so many voxels, the rooms in a square around the origin."""
    voxel_map = VoxelMap(VOXEL_M, MEMORY)
    rng = np.random.default_rng(0)
    side = int(np.ceil(np.sqrt(voxels / 40_000)))
    spots = [(x - side // 2, y - side // 2) for x in range(side) for y in range(side)]
    spots.sort(key=lambda spot: spot[0] ** 2 + spot[1] ** 2)
    for i, spot in enumerate(spots):
        points = room_points(rng, np.array([*spot, 0.0]) * ROOM_M)
        colours = rng.integers(0, 256, points.shape, dtype=np.uint8)
        confidence = rng.random(len(points), np.float32)
        voxel_map.integrate(points, colours, confidence, np.zeros(3), i, i)
        if len(voxel_map) >= voxels:
            return voxel_map
    return voxel_map


class Walk:
    """Windows of noisy views inside the room at `corner`."""

    def __init__(self, kind: str, corner: np.ndarray | None = None):
        self.views, width, height = KINDS[kind]
        focal = width / 2 / np.tan(np.deg2rad(35.0))
        self.camera = Intrinsics(focal, focal, (width - 1) / 2, (height - 1) / 2, width, height)
        v, u = np.mgrid[0:height, 0:width]
        x, y = (u - self.camera.cx_px) / focal, (v - self.camera.cy_px) / focal
        self._rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ ZUP_FROM_OPTICAL.T
        self._rng = np.random.default_rng(1)
        self.corner = np.zeros(3) if corner is None else corner
        self.step = 0

    def window(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[DepthView], int]:
        """Points, colours, confidence, views and stamp of the next window."""
        self.step += 1
        stamp_ns = self.step * SECOND
        pairs = [self._view(self.step + 0.25 * i, stamp_ns) for i in range(self.views)]
        points = np.stack([points for points, _ in pairs])
        colours = self._rng.integers(0, 256, points.shape, dtype=np.uint8)
        confidence = np.stack([view.confidence for _, view in pairs])
        return points, colours, confidence, [view for _, view in pairs], stamp_ns

    def _view(self, at: float, stamp_ns: int) -> tuple[np.ndarray, DepthView]:
        yaw, spot = 0.35 * at, self.corner + ROOM_M / 2
        spot = spot + [1.2 * np.cos(0.2 * at), 1.2 * np.sin(0.2 * at), 0.0]
        turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
        rays = self._rays @ turn.T
        with np.errstate(divide="ignore"):
            walls = [(face - spot) / rays for face in (self.corner, self.corner + ROOM_M)]
        depth = np.maximum(*walls).min(-1)
        depth *= 1 + 0.01 * self._rng.standard_normal(depth.shape)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = turn @ ZUP_FROM_OPTICAL, spot
        confidence = self._rng.uniform(0.3, 1, depth.shape).astype(np.float32)
        view = DepthView(depth.astype(np.float32), confidence, pose, self.camera, stamp_ns)
        return (spot + rays * depth[..., None]).astype(np.float32), view


def update(voxel_map: VoxelMap, walk: Walk) -> dict[str, object]:
    """One window into the map: clocks of its parts and their sum, and the size of the changes."""
    points, colours, confidence, views, stamp_ns = walk.window()
    before, result = voxel_map.revision, {}
    origin = views[-1].origin
    result["integrate"] = clocks(
        lambda: voxel_map.integrate(
            points, colours, confidence, origin, stamp_ns, 1000 + walk.step
        )
    )
    result["carve"] = clocks(lambda: [voxel_map.carve(view) for view in views])
    changes = []
    result["changes"] = clocks(lambda: changes.append(voxel_map.changes(before)))
    result["update"] = tuple(sum(part) for part in zip(*result.values(), strict=True))
    result["bytes"], result["changed"] = changes[0].nbytes, len(changes[0].ids)
    return result


class DictionaryPeer:
    """The straightforward map: cell -> [weight, x, y, z, r, g, b], point by point."""

    def __init__(self, positions: np.ndarray):
        cells = np.floor(positions / VOXEL_M).astype(int).tolist()
        rows = positions.tolist()
        self._cells = {
            tuple(cell): [1.0, *row, 0.0, 0.0, 0.0] for cell, row in zip(cells, rows, strict=True)
        }

    def integrate(self, points: np.ndarray, colours: np.ndarray, confidence: np.ndarray) -> None:
        cells = np.floor(points.reshape(-1, 3) / VOXEL_M).astype(int).tolist()
        rows = np.concatenate([points.reshape(-1, 3), colours.reshape(-1, 3)], 1).tolist()
        for cell, row, weight in zip(cells, rows, confidence.ravel().tolist(), strict=True):
            voxel = self._cells.setdefault(tuple(cell), [0.0] * 7)
            voxel[0] += weight
            share = weight / voxel[0]
            for i, value in enumerate(row, 1):
                voxel[i] += share * (value - voxel[i])


class UniquePeer:
    """All voxels and the new points through np.unique and np.bincount at each window."""

    def __init__(self, positions: np.ndarray):
        self._weight = np.ones(len(positions), np.float32)
        self._rows = np.zeros((len(positions), 6), np.float32)
        self._rows[:, :3] = positions

    def integrate(self, points: np.ndarray, colours: np.ndarray, confidence: np.ndarray) -> None:
        new = np.concatenate([points.reshape(-1, 3), colours.reshape(-1, 3)], 1)
        rows = np.concatenate([self._rows, new.astype(np.float32)])
        weight = np.concatenate([self._weight, confidence.ravel()])
        cells = np.floor(rows[:, :3] / VOXEL_M).astype(np.int64) + (1 << 20)
        keys = cells[:, 0] << 42 | cells[:, 1] << 21 | cells[:, 2]
        _, inverse = np.unique(keys, return_inverse=True)
        total = np.bincount(inverse, weight)
        means = [np.bincount(inverse, weight * column) / total for column in rows.T]
        self._rows, self._weight = np.stack(means, 1).astype(np.float32), total.astype(np.float32)


def update_costs(voxels: int) -> tuple[dict[str, object], VoxelMap]:
    """Updates of a map of `voxels` by each kind of window, with the peers in turns."""
    voxel_map = build(voxels)
    positions = voxel_map.voxels()[1]["position"]
    peers = {"unique": UniquePeer(positions)}
    if voxels <= 1_000_000:
        peers["dictionary"] = DictionaryPeer(positions)
    result: dict[str, object] = {"voxels": len(voxel_map), "bytes_used": voxel_map.nbytes}
    for kind in KINDS:
        walk, updates = Walk(kind), []
        times: dict[str, list] = {name: [] for name in peers}
        for i in range(WINDOWS):
            updates.append(update(voxel_map, walk))
            if i % 7 == 0:
                window = walk.window()[:3]
                for name, peer in peers.items():
                    times[name].append(clocks(lambda p=peer, w=window: p.integrate(*w)))
        updates = updates[1:]
        ours = {
            part: summary([each[part] for each in updates])
            for part in ("integrate", "carve", "changes", "update")
        }
        result[kind] = ours
        for name in peers:
            result[kind][f"peer_{name}"] = summary(times[name])
            result[kind][f"{name}_over_integrate"] = round(
                result[kind][f"peer_{name}"]["cpu_ms"] / ours["integrate"]["cpu_ms"], 1
            )
        result[kind]["change_set_bytes"] = int(statistics.median(e["bytes"] for e in updates))
        result[kind]["changed_voxels"] = int(statistics.median(e["changed"] for e in updates))
    return result, voxel_map


def correction_costs(voxel_map: VoxelMap) -> dict[str, object]:
    """A loop closure that moves every window by about 0.3 m, applied beside updates."""
    _, voxels = voxel_map.voxels()
    windows = np.unique(voxels["window"]).tolist()
    shift = Sim3(1.0, np.eye(3), np.array([0.3, 0.05, 0.0]))
    called = clocks(lambda: voxel_map.correct(dict.fromkeys(windows, shift)))
    walk, updates = Walk("4x112x84"), []
    while not voxel_map.settled and len(updates) < 40:
        updates.append(update(voxel_map, walk)["update"])
    rest = clocks(voxel_map.settle)
    return {
        "windows_moved": len(windows),
        "correct_ms": round(called[0], 2),
        "update_while_replacing": summary(updates),
        "updates_watched": len(updates),
        "voxels_replaced": voxel_map.counts.replaced,
        "settle_the_rest_cpu_ms": round(rest[0], 1),
    }


def file_costs(voxel_map: VoxelMap, folder: Path) -> dict[str, object]:
    """Saving in three formats, and loading."""
    info = MapInfo("map", ScaleState.METRIC, 1.0)
    result: dict[str, object] = {"voxels": len(voxel_map)}
    for ending in ("npz", "ply", "pcd"):
        path = folder / f"map.{ending}"
        cpu, wall = clocks(lambda path=path: save_map(path, voxel_map, info))
        result[f"save_{ending}"] = {"cpu_ms": round(cpu), "wall_ms": round(wall)}
        result[f"{ending}_bytes"] = path.stat().st_size
        if ending != "npz":
            path.unlink()
    cpu, wall = clocks(lambda: load_map(folder / "map.npz", voxel_map))
    result["load_npz"] = {"cpu_ms": round(cpu), "wall_ms": round(wall)}
    return result


def occupancy_costs(voxel_map: VoxelMap) -> dict[str, object]:
    """One grid at 5 cm of the map with 100 views remembered."""
    mapper, walk = OccupancyMapper(VOXEL_M, 0.15, 1.5), Walk("4x112x84")
    observe_s = [clocks(lambda view=v: mapper.observe(view, 0)) for v in walk.window()[3] * 25]
    positions = voxel_map.voxels()[1]["position"]
    grids = []
    grid_s = clocks(lambda: grids.append(mapper.grid(positions, np.zeros(3))))
    return {
        "voxels": len(positions),
        "observe_view": summary(observe_s),
        "grid_cpu_ms": round(grid_s[0], 1),
        "cells": int(grids[0].data.size),
    }


def resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmRSS in /proc/self/status; this benchmark needs Linux")


def drive_costs(windows: int) -> dict[str, object]:
    """Memory and time of a long drive from room to room with a small bound."""
    voxel_map, walk = VoxelMap(VOXEL_M, DRIVE_MEMORY), Walk("4x112x84")
    marks, times, full_at = {}, [], None
    for window in range(1, windows + 1):
        walk.corner = np.array([window // 20, 0.0, 0.0]) * ROOM_M
        times.append(update(voxel_map, walk)["update"])
        if full_at is None and voxel_map.counts.evicted:
            full_at = window
        if window % (windows // 8) == 0:
            marks[window] = {
                "resident": resident_bytes(),
                "map": voxel_map.nbytes,
                "voxels": len(voxel_map),
            }
    last = marks[windows]["resident"]
    middle = marks[windows // 2]["resident"]
    return {
        "bound_bytes": DRIVE_MEMORY,
        "bound_reached_at_window": full_at,
        "at_window": marks,
        "resident_growth_second_half_bytes": last - middle,
        "evicted": voxel_map.counts.evicted,
        "update_windows_161_to_200": summary(times[160:200]),
        "update_last_40_windows": summary(times[-40:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="0.1 million voxels, 200 windows")
    small = parser.parse_args().small
    cv2.setNumThreads(1)
    load = os.getloadavg()[0]
    drive = drive_costs(200 if small else DRIVE_WINDOWS)
    maps, files = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for voxels in MAPS[:1] if small else MAPS:
            maps[voxels], voxel_map = update_costs(voxels)
            files[voxels] = file_costs(voxel_map, Path(folder))
    data = {
        "load_before": load,
        "voxel_m": VOXEL_M,
        "maps": maps,
        "files": files,
        "occupancy": occupancy_costs(voxel_map),
        "correction": correction_costs(voxel_map),
        "drive": drive,
    }
    if small:
        print(data)
        return
    path = record("voxel_map", data)
    print(path.read_text())


if __name__ == "__main__":
    main()
