# SPDX-License-Identifier: Apache-2.0
"""The joint and the cells of a window by other libraries, where these are installed.

Both get the points that ours get, of the exact windows of `overhead`: small_gicp (`pip install
small_gicp`) joins them rigidly, from a start that is off by 2 degrees and a twentieth of the
depth, once the unit is taken out, which it does not look for; small_gicp and Open3D average points
by voxel, and keep no map. What is not installed is named.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.home_map import ExactPerception
from g2vlm_ros.demo.sim.scenes import make_scene
from g2vlm_ros.demo.sim.splits import home_seed
from g2vlm_ros.geometry.registration import register_views, sample_view
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.kernels.cells import CellSums
from g2vlm_ros.records import Reconstruction

PEERS = ("small_gicp", "open3d")
VOXELS_PER_DEPTH = 50
START_OFF = np.array([0.0, np.deg2rad(2.0), 0.0, 0.05, 0.0, 0.0, 0.0])
"""Rotation vector, then translation as a share of the median depth."""


def peers(home: int, width_px: int) -> dict[str, Any]:
    """Milliseconds of the processor, the least of some rounds; None for what is not installed,
    which a sentence names."""
    exact = ExactPerception(make_scene(home_seed("heldout", home)), 6, width_px)
    one, two = exact.reconstruct([0, 1, 2, 3]), exact.reconstruct([2, 3, 4, 5])
    gicp, open3d = (_installed(name) for name in PEERS)
    costs = {"joint_ms": _joint(one, two, gicp), "voxel_means_ms": _means(one, gicp, open3d)}
    missing = [name for name, module in zip(PEERS, (gicp, open3d), strict=True) if module is None]
    if missing:
        names = " and ".join(missing)
        costs["not_measured"] = f"{names}: not installed here; pip install {' '.join(missing)}"
    return costs


def _joint(
    one: Reconstruction, two: Reconstruction, gicp: ModuleType | None
) -> dict[str, float | None]:
    """Two windows that share two views, by their samples."""
    pairs = [(sample_view(two, k), sample_view(one, k + 2)) for k in range(2)]
    truth = register_views(pairs).target_from_source
    source, target = (np.concatenate([p[i].points_u for p in pairs]) for i in range(2))
    source, target = truth.apply(source.astype(float)), target.astype(float)
    depth = float(np.median(one.local_points_u[:, ::8, ::8, 2]))
    off = Sim3.exp(START_OFF * np.array([1, 1, 1, depth, depth, depth, 1]))
    start = off.apply_pose(np.eye(4))
    options = {
        "downsampling_resolution": depth / VOXELS_PER_DEPTH,
        "max_correspondence_distance": depth / 4,
        "init_T_target_source": start,
    }
    return {
        "ours": _least_ms(lambda: register_views(pairs)),
        "small_gicp": gicp and _least_ms(lambda: gicp.align(target, source, **options)),
    }


def _means(
    window: Reconstruction, gicp: ModuleType | None, open3d: ModuleType | None
) -> dict[str, float | None]:
    """All points of four views by voxel; ours with colours, confidence and times."""
    points = window.points_u()
    size = float(np.median(window.local_points_u[:, ::8, ::8, 2])) / VOXELS_PER_DEPTH
    views, height, width = points.shape[:3]
    affines = np.tile(np.eye(3, 4, dtype=np.float32), (views, 1, 1))
    sums, valid = CellSums(), np.ones((views, height, width), bool)
    flat = points.reshape(-1, 3).astype(float)

    def ours() -> None:
        sums.of_views(
            points, window.colours, window.confidence, valid, range(views), affines,
            np.zeros(views), voxel_size=size, stamp_ns=1, window=1,
        )  # fmt: skip

    def by_open3d() -> None:
        cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(flat))
        cloud.voxel_down_sample(size)

    return {
        "points": len(flat),
        "ours": _least_ms(ours),
        "small_gicp": gicp and _least_ms(lambda: gicp.voxelgrid_sampling(flat, size)),
        "open3d": open3d and _least_ms(by_open3d),
    }


def _installed(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _least_ms(run: Callable[[], Any], rounds: int = 9) -> float:
    times = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return round(1000 * min(times), 2)
