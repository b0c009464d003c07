# SPDX-License-Identifier: Apache-2.0
"""Errors of a trajectory against the truth: ATE, RPE per metre, scale, consistency.

As the field measures them (Sturm et al., IROS 2012; Zhang & Scaramuzza, IROS 2018): root mean
squares of positions after the best alignment of the whole trajectory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from g2vlm_ros.geometry.registration import fit_sim3
from g2vlm_ros.geometry.sim3 import Sim3

RPE_WAY_M = 1.0
"""Way between the two poses that a relative error compares."""
MIN_POSES = 3
"""With fewer, any track fits."""


def fit_rigid(source: np.ndarray, target: np.ndarray) -> Sim3:
    """target_from_source of scale 1 between points (n, 3), least squares; ValueError as
    `fit_sim3`."""
    similarity = fit_sim3(source, target, np.ones(len(source)))
    rotation = similarity.rotation
    return Sim3(1.0, rotation, target.mean(0) - rotation @ source.mean(0))


def fit_poses(source: np.ndarray, target: np.ndarray, scale: float | None) -> Sim3:
    """target_from_source between poses (n, 4, 4) whose positions may lie on a line or in a spot:
    turned by their orientations. scale: as given, or by their extents."""
    u, _, vt = np.linalg.svd(np.einsum("tij,tkj->ik", target[:, :3, :3], source[:, :3, :3]))
    rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    middles = source[:, :3, 3].mean(0), target[:, :3, 3].mean(0)
    if scale is None:
        extents = [
            np.linalg.norm(poses[:, :3, 3] - middle)
            for poses, middle in zip((source, target), middles, strict=True)
        ]
        scale = float(extents[1] / extents[0]) if min(extents) > 1e-6 else 1.0
    return Sim3(scale, rotation, middles[1] - scale * rotation @ middles[0])


@dataclass(frozen=True)
class TrajectoryErrors:
    """How far a trajectory is from the truth."""

    path_m: float
    ate_sim3_m: float
    """After the best similarity: the shape alone."""
    ate_se3_m: float
    """After the best rigid motion: metres count too; NaN where the map has none."""
    ate_rotation_deg: float
    """Root mean square of the orientations after the similarity."""
    scale_error: float
    """Of the map's metres, relative (0.02: lengths are 2 % too long); NaN without metres."""
    rpe_m_per_m: float
    rpe_deg_per_m: float
    """Root mean squares over ways of RPE_WAY_M, lengths after the similarity; NaN on shorter
    ways."""
    world_from_map: Sim3


def trajectory_errors(
    estimated: np.ndarray, true: np.ndarray, metric: bool
) -> TrajectoryErrors | None:
    """Of poses (n, 4, 4) in the map against world_from_camera, in order of time.

    metric: both are in metres. None for fewer than MIN_POSES.
    """
    if len(true) < MIN_POSES:
        return None
    places, goals = estimated[:, :3, 3], true[:, :3, 3]
    try:
        fit = fit_sim3(places, goals, np.ones(len(true)))
        rigid = fit_rigid(places, goals)
    except ValueError:
        fit, rigid = (fit_poses(estimated, true, scale) for scale in (None, 1.0))
    turned = np.einsum("ij,njk->nik", fit.rotation, estimated[:, :3, :3])
    angles = [_angle_rad(a.T @ b) for a, b in zip(turned, true[:, :3, :3], strict=True)]
    rpe_m, rpe_rad = _relative_errors(estimated, true, fit.scale)
    steps_m = np.linalg.norm(np.diff(goals, axis=0), axis=1)
    return TrajectoryErrors(
        path_m=float(steps_m.sum()),
        ate_sim3_m=rms(np.linalg.norm(fit.apply(places) - goals, axis=1)),
        ate_se3_m=rms(np.linalg.norm(rigid.apply(places) - goals, axis=1)) if metric else np.nan,
        ate_rotation_deg=float(np.rad2deg(rms(angles))),
        scale_error=1 / fit.scale - 1 if metric else np.nan,
        rpe_m_per_m=rpe_m,
        rpe_deg_per_m=float(np.rad2deg(rpe_rad)),
        world_from_map=fit,
    )


def rms(values: Sequence[float] | np.ndarray) -> float:
    """Root of the mean square; NaN of nothing."""
    values = np.asarray(values, dtype=np.float64)
    return float(np.sqrt((values**2).mean())) if len(values) else float("nan")


def _relative_errors(estimated: np.ndarray, true: np.ndarray, scale: float) -> tuple[float, float]:
    """Errors of ways of RPE_WAY_M (or a little more), per metre: metres and radians."""
    steps_m = np.linalg.norm(np.diff(true[:, :3, 3], axis=0), axis=1)
    way_m = np.concatenate([[0.0], np.cumsum(steps_m)])
    shifts, turns = [], []
    for i, j in enumerate(np.searchsorted(way_m, way_m + RPE_WAY_M)):
        if j == len(way_m):
            break
        estimate = np.linalg.inv(estimated[i]) @ estimated[j]
        estimate[:3, 3] *= scale
        off = np.linalg.inv(np.linalg.inv(true[i]) @ true[j]) @ estimate
        length_m = way_m[j] - way_m[i]
        shifts.append(np.linalg.norm(off[:3, 3]) / length_m)
        turns.append(_angle_rad(off[:3, :3]) / length_m)
    return rms(shifts), rms(turns)


def _angle_rad(rotation: np.ndarray) -> float:
    return float(np.linalg.norm(cv2.Rodrigues(rotation)[0]))


@dataclass(frozen=True)
class PublishedPose:
    """A pose as it was published, with its covariance, beside what was true."""

    map_from_camera: np.ndarray
    """float64 (4, 4)."""
    covariance: np.ndarray
    """float64 (6, 6): x y z, then rotation about x y z of the map."""
    true_map_from_camera: np.ndarray
    """float64 (4, 4), the truth as seen from where the map began."""


@dataclass(frozen=True)
class Consistency:
    """Whether errors are as large as their covariances say: 1 where they are."""

    covariance_ratio: float
    """Sum of squared errors of positions over the sum of their variances."""
    nees_position: float
    nees_rotation: float
    """Means of squared errors normalised by the covariances, per axis (NEES)."""


def consistency(published: Sequence[PublishedPose]) -> Consistency:
    """Over the poses of a map; NaN for none."""
    if not published:
        return Consistency(np.nan, np.nan, np.nan)
    squared, variance, nees = 0.0, 0.0, []
    for each in published:
        estimate, true = each.map_from_camera, each.true_map_from_camera
        turned, _ = cv2.Rodrigues(estimate[:3, :3] @ true[:3, :3].T)
        off = estimate[:3, 3] - true[:3, 3]
        place, turn = each.covariance[:3, :3], each.covariance[3:, 3:]
        squared, variance = squared + float(off @ off), variance + float(np.trace(place))
        nees.append(
            (off @ np.linalg.solve(place, off), turned[:, 0] @ np.linalg.solve(turn, turned[:, 0]))
        )
    position, rotation = np.mean(nees, axis=0) / 3
    return Consistency(squared / variance, float(position), float(rotation))
