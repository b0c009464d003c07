# SPDX-License-Identifier: Apache-2.0
"""Accuracy and completeness of a map's points against true depth (as 7-Scenes, ETH3D)."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from g2vlm_ros.datasets.sequence import SequenceFrame
from g2vlm_ros.geometry.camera import unproject

NEAR_M = 0.1
"""A true surface within this distance of a map point counts as mapped."""
SAMPLES = 4000
MAX_OTHERS = 40_000
"""Points that each sample is compared with."""
CHUNK = 500
MAX_RANGE_M = 10.0
"""Depth beyond is left out: sensors guess there."""


def true_surfaces(frames: Sequence[SequenceFrame]) -> np.ndarray:
    """float64 (n, 3): a sample of what the depth images of the frames saw, in the world."""
    rng, points = np.random.default_rng(0), []
    for frame in frames:
        if frame.depth_m is None:
            continue
        depth_m = frame.depth_m()
        camera = frame.intrinsics.resized(*depth_m.shape[::-1])
        rows, columns = np.nonzero((depth_m > 0) & (depth_m < MAX_RANGE_M))
        if not len(rows):
            continue
        some = rng.integers(0, len(rows), 2 * MAX_OTHERS // len(frames) + 1)
        rows, columns = rows[some], columns[some]
        pixels = np.stack([columns, rows], -1).astype(np.float64)
        local = unproject(pixels, depth_m[rows, columns].astype(np.float64), camera)
        pose = frame.world_from_camera
        points.append(local @ pose[:3, :3].T + pose[:3, 3])
    return np.concatenate(points) if points else np.zeros((0, 3))


def map_errors(points: np.ndarray, surfaces: np.ndarray) -> dict[str, float]:
    """Map points and true surfaces, both (n, 3) in the world: how near, how complete."""
    if not len(points) or not len(surfaces):
        return {"map_accuracy_m": float("nan"), "map_completeness": float("nan")}
    rng = np.random.default_rng(0)
    some, true = (each[rng.permutation(len(each))[:SAMPLES]] for each in (points, surfaces))
    return {
        "map_accuracy_m": float(np.median(_nearest(some, surfaces))),
        "map_completeness": float((_nearest(true, points) < NEAR_M).mean()),
    }


def _nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distance of each point to the nearest of the others."""
    if len(others) > MAX_OTHERS:
        sample = np.random.default_rng(1).permutation(len(others))[:MAX_OTHERS]
        others = others[sample]
    others = others.astype(np.float32)
    size = (others**2).sum(1)
    distances = []
    for first in range(0, len(points), CHUNK):
        part = points[first : first + CHUNK].astype(np.float32)
        product = cv2.gemm(part, others, -2.0, None, 0.0, flags=cv2.GEMM_2_T)
        squared = (part**2).sum(1)[:, None] + size + product
        distances.append(np.sqrt(np.maximum(squared.min(1), 0.0)))
    return np.concatenate(distances)
