# SPDX-License-Identifier: Apache-2.0
"""How right was what came out of a drive through a simulated home? Ground truth against topics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from g2vlm_ros.geometry.camera import unproject
from g2vlm_ros.geometry.registration import fit_sim3
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.records import Intrinsics

NEAR_M = 0.2
"""A surface within this distance of a map point counts as mapped."""
SAMPLES = 4000
TRUE_POINTS = 40_000
"""Of the true surfaces: from 8 000 of them a perfect map of a home is 6.5 cm off, from these 3."""
_CHUNK = 500


@dataclass(frozen=True)
class Track:
    """Estimated camera positions beside the true ones."""

    estimated: np.ndarray
    """(T, 3) in the map frame."""
    true: np.ndarray
    """(T, 3) in the home's frame."""
    home_from_map: Sim3
    """The best similarity between them; its scale is 1 where the map's metres are right."""

    def scores(self) -> dict[str, float]:
        """Root mean square error after the similarity, and how wrong the scale was."""
        error = np.linalg.norm(self.home_from_map.apply(self.estimated) - self.true, axis=1)
        path_m = float(np.linalg.norm(np.diff(self.true, axis=0), axis=1).sum())
        rms_m = float(np.sqrt((error**2).mean()))
        return {
            "frames": len(self.true),
            "path_m": round(path_m, 2),
            "trajectory_error_m": round(rms_m, 3),
            "trajectory_error_percent_of_path": round(100 * rms_m / max(path_m, 1e-9), 2),
            "scale_error": round(1 / self.home_from_map.scale - 1, 3),
        }


def track(estimated: Mapping[int, np.ndarray], true: Mapping[int, np.ndarray]) -> Track | None:
    """Poses (4, 4) by stamp, matched; None where fewer than three stamps are in both.

    Where the positions cannot fix a similarity (a straight drive), the headings turn it.
    """
    stamps = sorted(estimated.keys() & true.keys())
    if len(stamps) < 3:
        return None
    source, target = (np.stack([side[s] for s in stamps]) for side in (estimated, true))
    places = source[:, :3, 3], target[:, :3, 3]
    try:
        fit = fit_sim3(*places, np.ones(len(stamps)))
    except ValueError:
        fit = _by_headings(source, target)
    return Track(*places, fit)


def _by_headings(source: np.ndarray, target: np.ndarray) -> Sim3:
    """From poses (T, 4, 4): the mean rotation between them, the ratio of their extents."""
    u, _, vt = np.linalg.svd(np.einsum("tij,tkj->ik", target[:, :3, :3], source[:, :3, :3]))
    rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    middles = source[:, :3, 3].mean(0), target[:, :3, 3].mean(0)
    extents = [
        np.linalg.norm(p[:, :3, 3] - m) for p, m in zip((source, target), middles, strict=True)
    ]
    scale = float(extents[1] / extents[0]) if min(extents) > 1e-6 else 1.0
    return Sim3(scale, rotation, middles[1] - scale * rotation @ middles[0])


def depth_scores(depth: np.ndarray, true_depth: np.ndarray) -> dict[str, float] | None:
    """Mean relative error of a depth image (h, w) where it is finite, as metres and rescaled.

    The truth (H, W) is sampled at the nearest pixels. None where no depth is finite.
    """
    true_depth = at_size(true_depth, depth.shape)
    good = np.isfinite(depth) & (depth > 0) & np.isfinite(true_depth)
    if not good.any():
        return None
    ratio = depth[good] / true_depth[good]
    return {
        "metric_abs_rel": float(np.abs(ratio - 1).mean()),
        "abs_rel": float(np.abs(ratio / np.median(ratio) - 1).mean()),
    }


def at_size(depth: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A depth image (h, w) sampled at the nearest pixels of another (H, W)."""
    return cv2.resize(depth, shape[::-1], interpolation=cv2.INTER_NEAREST)


def surfaces(
    depths: Mapping[int, np.ndarray], poses: Mapping[int, np.ndarray], camera: Intrinsics
) -> np.ndarray:
    """(n, 3): a sample of what the camera truly saw, in the home's frame."""
    rng = np.random.default_rng(0)
    stamps = sorted(depths.keys() & poses.keys())
    points = []
    for stamp in stamps:
        v = rng.integers(0, camera.height_px, TRUE_POINTS // len(stamps) + 1)
        u = rng.integers(0, camera.width_px, len(v))
        local = unproject(np.stack([u, v], -1).astype(float), depths[stamp][v, u], camera)
        points.append(local @ poses[stamp][:3, :3].T + poses[stamp][:3, 3])
    return np.concatenate(points) if points else np.zeros((0, 3))


def map_scores(points: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Map points and true surfaces, both (n, 3) in the home's frame: how near, how complete."""
    rng = np.random.default_rng(0)
    some, true = (p[rng.permutation(len(p))[:SAMPLES]] for p in (points, truth))
    if not len(some) or not len(true):
        return {}
    return {
        "map_accuracy_m": round(float(np.median(_nearest(some, truth))), 3),
        "map_completeness": round(float((_nearest(true, points) < NEAR_M).mean()), 3),
    }


def _nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distance of each point to the nearest of the others."""
    others = others[:: max(1, len(others) // 40_000)].astype(np.float32)
    size = (others**2).sum(1)
    distances = []
    for first in range(0, len(points), _CHUNK):
        part = points[first : first + _CHUNK].astype(np.float32)
        squared = (part**2).sum(1)[:, None] + size - 2 * part @ others.T
        distances.append(np.sqrt(np.maximum(squared.min(1), 0.0)))
    return np.concatenate(distances)
