# SPDX-License-Identifier: Apache-2.0
"""A joint, the cells and the fusion of a window by other libraries, where these are installed.

They get the points that ours get, of the exact windows of `overhead`: small_gicp joins them
rigidly, from a start that is off by 2 degrees and a twentieth of the depth, once the unit is taken
out, which it does not look for; small_gicp and Open3D average points by voxel, and keep no map;
Open3D's VoxelBlockGrid fuses the four depth images into signed distances with colours, and neither
forgets what moved nor takes corrections. requirements/peers.txt installs both; what is not
installed, or cannot be loaded, is named.
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
from g2vlm_ros.dense_map.free_space import DepthView
from g2vlm_ros.dense_map.voxel_fusion import PointViews
from g2vlm_ros.dense_map.voxel_map import VoxelMap
from g2vlm_ros.geometry.point_cloud import affines
from g2vlm_ros.geometry.registration import register_views, sample_view
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.kernels.cells import CellSums
from g2vlm_ros.kernels.packing import valid_points
from g2vlm_ros.records import Reconstruction

PEERS = ("small_gicp", "open3d")
VOXELS_PER_DEPTH = 50
EDGE_STEP = 0.1
"""Depth steps across which points are not believed, as a fraction: what the node's map takes."""
MAP_BYTES = 256 << 20
BLOCK_SIDE, BLOCKS = 8, 50_000
"""Voxels of a block's edge, the faster of 8 and Open3D's default of 16, and room for so many
blocks."""
START_OFF = np.array([0.0, np.deg2rad(2.0), 0.0, 0.05, 0.0, 0.0, 0.0])
"""Rotation vector, then translation as a share of the median depth."""


def peers(home: int, width_px: int) -> dict[str, Any]:
    """Milliseconds of the processor, the least of some rounds; None for what is not installed,
    which a sentence names."""
    exact = ExactPerception(make_scene(home_seed("heldout", home)), 6, width_px)
    one, two = exact.reconstruct([0, 1, 2, 3]), exact.reconstruct([2, 3, 4, 5])
    modules, faults = {}, []
    for name in PEERS:
        try:
            modules[name] = importlib.import_module(name)
        except ImportError as error:
            faults.append(f"{name}: {error}")
    gicp, open3d = modules.get("small_gicp"), modules.get("open3d")
    costs: dict[str, Any] = {
        "joint_ms": _joint(one, two, gicp),
        "voxel_means_ms": _means(one, gicp, open3d),
        "fusion_ms": _fusion(one, open3d),
    }
    if faults:
        costs["not_measured"] = "; ".join(faults) + "; see requirements/peers.txt"
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


def _fusion(window: Reconstruction, open3d: ModuleType | None) -> dict[str, float | None]:
    """Four depth images at known poses into an empty map and once more into the same map, which is
    what is timed. Ours also removes what the views see through."""
    poses = window.window_from_camera.astype(np.float64)
    size = window.median_depth_u / VOXELS_PER_DEPTH
    return {
        "ours": _least_ms(_our_fusion(window, poses, size)),
        "open3d": open3d and _least_ms(_tsdf_fusion(window, poses, size, open3d)),
    }


def _our_fusion(window: Reconstruction, poses: np.ndarray, size: float) -> Callable[[], None]:
    views, voxels = range(window.views), VoxelMap(size, MAP_BYTES)
    focal_px = np.array([camera.fx_px for camera in window.intrinsics])
    depths = np.ascontiguousarray(window.local_points_u[..., 2])

    def fuse() -> None:
        valid = valid_points(window.local_points_u, EDGE_STEP)
        moves = affines(window.views, poses).astype(np.float32)
        of_window = PointViews(
            window.local_points_u, window.colours, window.confidence, valid, views, moves, focal_px
        )
        voxels.integrate_views(of_window, poses[:, :3, 3], 1, 1)
        for i in views:
            camera = window.intrinsics[i]
            voxels.carve(DepthView(depths[i], window.confidence[i], poses[i], camera, 2))

    return fuse


def _tsdf_fusion(
    window: Reconstruction, poses: np.ndarray, size: float, open3d: ModuleType
) -> Callable[[], None]:
    core, geometry = open3d.core, open3d.t.geometry
    grid = geometry.VoxelBlockGrid(
        ("tsdf", "weight", "color"), (core.float32,) * 3, ((1), (1), (3)), size, BLOCK_SIDE, BLOCKS
    )
    reach = float(window.local_points_u[..., 2].max()) + size
    views = [
        (
            geometry.Image(core.Tensor(np.ascontiguousarray(points[..., 2]))),
            geometry.Image(core.Tensor(colours.astype(np.float32) / 255)),
            core.Tensor(camera.matrix().astype(np.float64)),
            core.Tensor(np.linalg.inv(pose)),
        )
        for points, colours, camera, pose in zip(
            window.local_points_u, window.colours, window.intrinsics, poses, strict=True
        )
    ]

    def fuse() -> None:
        for depth, colour, matrix, camera_from_map in views:
            blocks = grid.compute_unique_block_coordinates(
                depth, matrix, camera_from_map, 1.0, reach
            )
            grid.integrate(blocks, depth, colour, matrix, matrix, camera_from_map, 1.0, reach)

    return fuse


def _least_ms(run: Callable[[], Any], rounds: int = 9) -> float:
    times = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return round(1000 * min(times), 2)
