"""Windows into one map frame: the similarity that joins them, and where the scale comes from.

Every window comes out of the network in a frame and a unit of its own. Successive windows share
views; the points of a shared view are the same surface twice, pixel for pixel, so the seven-degree
similarity between them is a weighted least-squares fit with outliers weighted down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from g2vlm_ros.core.datatypes import Reconstruction, ScaleState, Window
from g2vlm_ros.core.geometry import ZUP_FROM_OPTICAL, Similarity
from g2vlm_ros.core.settings import MapSettings

ROBUST_STEPS = 10
INLIER_DISTANCE = 0.1
"""A point agrees when it lies within this fraction of its distance from the camera."""
JOINT_POINTS_PER_VIEW = 2000


def fit_similarity(source: np.ndarray, target: np.ndarray, weights: np.ndarray) -> Similarity:
    """target_from_source that minimises sum w |target - T(source)|² in closed form.

    source, target: float64 (n, 3), n >= 3 and not on a line; weights: float64 (n,), >= 0.
    Raises ValueError on degenerate input. (Umeyama, PAMI 1991; Horn, JOSA 1987.)
    """
    total = float(weights.sum())
    if len(source) < 3 or not np.isfinite(total) or total <= 0:
        raise ValueError(f"{len(source)} points of weight {total} cannot fix a similarity; need 3")
    w = weights / total
    source_mean, target_mean = w @ source, w @ target
    a, b = source - source_mean, target - target_mean
    u, singular, vt = np.linalg.svd((b * w[:, None]).T @ a)
    if singular[1] <= 1e-12 * max(singular[0], 1e-300):
        raise ValueError("the points lie on a line or in one spot; they cannot fix a similarity")
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = (u * sign) @ vt
    scale = float(singular @ sign / (w @ (a * a).sum(1)))
    return Similarity(scale, rotation, target_mean - scale * rotation @ source_mean)


@dataclass(frozen=True)
class Joint:
    """A robust fit between two windows and how far it can be trusted."""

    target_from_source: Similarity
    inliers: float
    """Share of the weight that agrees within INLIER_DISTANCE, 0..1."""
    residual: float
    """Weighted median distance of the points as a fraction of their range."""


def fit_joint(
    source: np.ndarray, target: np.ndarray, weights: np.ndarray, range_target: np.ndarray
) -> Joint:
    """Robust target_from_source: closed form, iteratively reweighted (Cauchy weights).

    source, target: float64 (n, 3); weights: float64 (n,); range_target: float64 (n,) distance of
    each target point from its camera, the yardstick of its error. Raises as `fit_similarity`.
    """
    # A relative error of depth grows with depth: weigh each point by its inverse variance.
    base = weights / np.maximum(range_target, 1e-9) ** 2
    current = base
    for _ in range(ROBUST_STEPS):
        fit = fit_similarity(source, target, current)
        error = np.linalg.norm(fit.apply(source) - target, axis=1) / range_target
        spread = max(1.4826 * float(np.median(error)), 1e-6)
        current = base / (1.0 + (error / spread) ** 2)
    inliers = float(weights[error < INLIER_DISTANCE].sum() / weights.sum())
    return Joint(fit, inliers, float(np.median(error)))


@dataclass(frozen=True)
class Placement:
    """Where a window lies in the map."""

    map_from_window: Similarity
    sub_map: int
    """Counts from 0, up each time a window could not be joined to the one before."""
    scale_state: ScaleState
    metres_per_unit: float
    """Metres per map unit: 1 when METRIC, NaN otherwise."""
    joint: Joint | None
    """None for the first window of a sub-map."""

    def camera_poses(self, window_from_camera: np.ndarray) -> np.ndarray:
        """map_from_camera float64 (N, 4, 4), rigid, z-up map."""
        return self.map_from_window.apply_pose(window_from_camera)


@dataclass(frozen=True)
class _Anchor:
    """Sampled points of one placed view, by which the next window can be joined."""

    points_map: np.ndarray
    range_map: np.ndarray
    weights: np.ndarray


class MapAligner:
    """Places successive windows in one map frame.

    The first camera of a sub-map is the origin, assumed level: x forward, y left, z up. Map units
    are the first window's, or metres once `MapSettings.metres_per_unit` says so.
    """

    def __init__(self, settings: MapSettings):
        self._settings = settings
        self._anchors: dict[tuple[str, int], _Anchor] = {}
        self._sub_map = -1

    def reset(self) -> None:
        """Start a new sub-map with the next window."""
        self._anchors.clear()

    def place(self, window: Window, result: Reconstruction) -> Placement:
        """Join a window to the map by the views it shares with the one before.

        A joint with fewer than `min_joint_inliers` agreeing points is refused: a new sub-map
        starts, so that a wrong pose is never published as a continuation.
        """
        keys = [(frame.camera, frame.stamp_ns) for frame in window.frames]
        joint = self._join(keys, result)
        if joint is None:
            self._sub_map += 1
            map_from_window = self._first_pose(result)
        else:
            map_from_window = joint.target_from_source
        self._remember(keys, result, map_from_window)
        metric = self._settings.metres_per_unit > 0
        return Placement(
            map_from_window,
            self._sub_map,
            ScaleState.METRIC if metric else ScaleState.RELATIVE,
            1.0 if metric else float("nan"),
            joint,
        )

    def _join(self, keys: list[tuple[str, int]], result: Reconstruction) -> Joint | None:
        shared = [i for i, key in enumerate(keys) if key in self._anchors]
        if not shared:
            return None
        anchors = [self._anchors[keys[i]] for i in shared]
        samples = [_sample(result, i) for i in shared]
        source = np.concatenate([points for points, _ in samples])
        target = np.concatenate([a.points_map for a in anchors])
        weights = np.concatenate(
            [w * a.weights for (_, w), a in zip(samples, anchors, strict=True)]
        )
        range_map = np.concatenate([a.range_map for a in anchors])
        good = np.isfinite(source).all(1) & np.isfinite(target).all(1) & (range_map > 0)
        try:
            joint = fit_joint(source[good], target[good], weights[good], range_map[good])
        except ValueError:
            return None
        return joint if joint.inliers >= self._settings.min_joint_inliers else None

    def _first_pose(self, result: Reconstruction) -> Similarity:
        """Map frame of a new sub-map: the first view at the origin, level."""
        pose = result.window_from_camera[0].astype(np.float64)
        scale = self._settings.metres_per_unit or 1.0
        rotation = ZUP_FROM_OPTICAL @ pose[:3, :3].T
        return Similarity(scale, rotation, -scale * (rotation @ pose[:3, 3]))

    def _remember(
        self, keys: list[tuple[str, int]], result: Reconstruction, map_from_window: Similarity
    ) -> None:
        centres = map_from_window.apply(result.window_from_camera[:, :3, 3].astype(np.float64))
        self._anchors = {}
        for i, key in enumerate(keys):
            points, weights = _sample(result, i)
            points_map = map_from_window.apply(points)
            distance = np.linalg.norm(points_map - centres[i], axis=1)
            self._anchors[key] = _Anchor(points_map, distance, weights)


def _sample(result: Reconstruction, view: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of one view on a regular grid, float64 (n, 3) in the window frame, and weights."""
    height, width = result.local_points_u.shape[1:3]
    step = max(1, int(np.sqrt(height * width / JOINT_POINTS_PER_VIEW)))
    local = result.local_points_u[view, ::step, ::step].reshape(-1, 3).astype(np.float64)
    pose = result.window_from_camera[view].astype(np.float64)
    weights = result.confidence[view, ::step, ::step].reshape(-1).astype(np.float64)
    return local @ pose[:3, :3].T + pose[:3, 3], np.nan_to_num(weights, nan=1.0)
