# SPDX-License-Identifier: Apache-2.0
"""A room of boxes, ray-cast exactly: point map, regions and truth for tests of measuring."""

from __future__ import annotations

import numpy as np

from g2vlm_ros.geometry.sim3 import ZUP_FROM_OPTICAL
from g2vlm_ros.query.point_map import PointMap, Region

WIDTH, HEIGHT, FOCAL = 160, 120, 120.0
FAR_M = 8.0


def camera(x=0.0, y=0.0, z=1.2, yaw=0.0):
    """map_from_camera of an upright camera that looks along yaw."""
    c, s = np.cos(yaw), np.sin(yaw)
    pose = np.eye(4)
    pose[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ ZUP_FROM_OPTICAL
    pose[:3, 3] = x, y, z
    return pose


def render(boxes, pose):
    """(points (H, W, 3), depth (H, W), which (H, W)) of boxes; floor is -1, walls are -2."""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    local = np.stack(
        [(u - (WIDTH - 1) / 2) / FOCAL, (v - (HEIGHT - 1) / 2) / FOCAL, np.ones(u.shape)], -1
    )
    ray, origin = local @ pose[:3, :3].T, pose[:3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        down = np.where(ray[..., 2] < 0, -origin[2] / ray[..., 2], np.inf)
        depth, which = np.minimum(down, FAR_M), np.where(down < FAR_M, -1, -2)
        for k, (low, high) in enumerate(boxes):
            a, b = (low - origin) / ray, (high - origin) / ray
            enter, leave = np.minimum(a, b).max(-1), np.maximum(a, b).min(-1)
            hit = (enter < leave) & (enter > 0) & (enter < depth)
            depth, which = np.where(hit, enter, depth), np.where(hit, k, which)
    return origin + depth[..., None] * ray, depth, which


def box(x, y, size=(0.5, 0.5, 0.8), z=0.0):
    """(low, high) of a box whose foot's middle is at (x, y, z)."""
    low = np.array([x - size[0] / 2, y - size[1] / 2, z])
    return low, low + size


def room(boxes, poses=None, noise=0.0, scale=1.0, metric=True, scale_std=0.0, seed=0, sure=1.0):
    """(PointMap, regions): regions[k] are the boxes around thing k, one per view that shows it.

    noise: relative, smooth over 10 pixels, as a network errs. scale: map units per metre.
    """
    poses = [camera()] if poses is None else poses
    rng = np.random.default_rng(seed)
    points, depths, regions = [], [], [[] for _ in boxes]
    for i, pose in enumerate(poses):
        seen, depth, which = render(boxes, pose)
        coarse = rng.normal(0, noise, (HEIGHT // 10, WIDTH // 10)).repeat(10, 0).repeat(10, 1)
        wrong = 1 + coarse + rng.normal(0, noise / 2)
        points.append(pose[:3, 3] + (seen - pose[:3, 3]) * wrong[..., None])
        depths.append(depth * wrong)
        for k in range(len(boxes)):
            rows, columns = np.nonzero(which == k)
            if len(rows) > 20:
                low = (float(columns.min()), float(rows.min()))
                high = (float(columns.max()), float(rows.max()))
                regions[k].append(Region(i, low, high))
    placed = np.array(poses, np.float64)
    placed[:, :3, 3] *= scale
    return PointMap(
        (np.array(points) * scale).astype(np.float32),
        (np.array(depths) * scale).astype(np.float32),
        np.full((len(poses), HEIGHT, WIDTH), sure, np.float32),
        placed,
        len(poses) - 1,
        metric,
        scale_std,
        0.0,
    ), regions
