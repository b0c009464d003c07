# SPDX-License-Identifier: Apache-2.0
"""A window of noisy views inside a room with a box in it, as the kernels get it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

LOWER, UPPER = np.array([-3.0, -2.0, 0.0]), np.array([3.0, 4.0, 2.5])
BOX_LOWER, BOX_UPPER = np.array([-0.5, 1.0, 0.0]), np.array([0.4, 1.6, 0.9])
OPTICAL = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
"""Columns: image right, image down and the view's direction of a level camera that looks to +y."""


@dataclass(frozen=True)
class Window:
    points: np.ndarray
    colours: np.ndarray
    confidence: np.ndarray
    poses: np.ndarray
    pinholes: np.ndarray

    @property
    def j_from_i(self):
        """float32 (N, N, 3, 4)"""
        poses = self.poses.astype(np.float64)
        relative = np.einsum("jab,ibc->jiac", np.linalg.inv(poses), poses)
        return np.ascontiguousarray(relative[:, :, :3], np.float32)


@cache
def window(width=112, height=84, views=4, noise=0.01):
    """Views that walk and turn; read-only. Some pixels are unknown, one view lacks a camera."""
    rng = np.random.default_rng(5)
    focal = 0.7 * width
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    pinhole = [focal, focal, (width - 1) / 2, (height - 1) / 2]
    rays = np.stack([(u - pinhole[2]) / focal, (v - pinhole[3]) / focal, np.ones(u.shape)], -1)
    points, poses = [], []
    for i in range(views):
        angle = 0.12 * i - 0.2
        c, s = np.cos(angle), np.sin(angle)
        pose = np.eye(4)
        pose[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ OPTICAL
        pose[:3, 3] = [0.25 * i - 0.4, -1.5 + 0.1 * i, 1.2]
        depth = _depth(pose[:3, 3], rays @ pose[:3, :3].T)
        depth *= 1 + noise * rng.standard_normal(depth.shape)
        points.append(rays * depth[..., None])
        poses.append(pose)
    points = np.array(points, np.float32)
    colours = rng.integers(0, 256, points.shape, np.uint8)
    confidence = rng.uniform(0, 1, points.shape[:3]).astype(np.float32)
    confidence[rng.random(confidence.shape) < 0.05] = np.nan
    pinholes = np.array([pinhole] * views, np.float32)
    result = Window(points, colours, confidence, np.array(poses, np.float32), pinholes)
    for array in vars(result).values():
        array.flags.writeable = False
    return result


def _depth(origin, rays):
    """Distance along rays (h, w, 3) of depth 1 to the walls or to the box in front of them."""
    with np.errstate(divide="ignore", invalid="ignore"):
        walls = np.maximum((LOWER - origin) / rays, (UPPER - origin) / rays).min(-1)
        sides = (BOX_LOWER - origin) / rays, (BOX_UPPER - origin) / rays
    near, far = np.minimum(*sides).max(-1), np.maximum(*sides).min(-1)
    return np.where((near < far) & (near > 0), near, walls)
