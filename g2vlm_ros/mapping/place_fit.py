# SPDX-License-Identifier: Apache-2.0
"""The place of a window by all features of the map that it shows: pixels and depths, weighed, and
how well they fix it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from g2vlm_ros.geometry.sim3 import Sim3, cross_matrix
from g2vlm_ros.mapping.place_matching import MIN_MATCHES, REACH_PX, FeatureMatches
from g2vlm_ros.records import Reconstruction, ViewStd

STEPS = 6
"""Of the refinement; it starts within a few pixels."""
PIXEL_STD = 1.5
"""Of a feature's place, with the error of the map's point seen from a little aside."""
DEPTH_STD = 0.08
"""Of the logarithm of a depth by the network."""
SYSTEMATIC = np.array([0.01] * 3 + [0.015] * 3 + [0.02])
"""Assumed error of keyframe and view as a whole: radians, fraction of the range, log scale. More
where the window says so (`ViewStd`)."""
UNKNOWNS = 7


@dataclass(frozen=True)
class PlaceFit:
    """A window held to all features that agree."""

    map_from_window: Sim3
    inlier: np.ndarray
    """bool (n,): of the matches."""
    count: int
    """Different features of the window that agree: one that several keyframes show is one."""
    covariance: np.ndarray
    """float64 (7, 7) of d in ``truth = Sim3.exp(d) @ map_from_window``, about the map's origin."""


def fit_place(start: Sim3, matches: FeatureMatches, result: Reconstruction) -> PlaceFit | None:
    """The fit nearest to a hypothesis; None where fewer than MIN_MATCHES features agree."""
    fit = start
    for _ in range(STEPS):
        error, jacobian, pivot = _errors(fit, matches)
        weight = _weights(error)
        if (weight > 0).sum() < MIN_MATCHES:
            return None
        hessian = np.einsum("nki,n,nkj->ij", jacobian, weight, jacobian)
        pull = np.einsum("nki,n,nk->i", jacobian, weight, error)
        step = -np.linalg.solve(hessian + 1e-9 * np.trace(hessian) * np.eye(7), pull)
        shift = Sim3(1.0, np.eye(3), pivot)
        fit = shift @ Sim3.exp(step) @ shift.inverse() @ fit
    error, jacobian, pivot = _errors(fit, matches)
    inlier = np.linalg.norm(error[:, :2], axis=1) * PIXEL_STD < REACH_PX
    inlier &= np.abs(error[:, 2]) < 3
    count = _distinct(matches, inlier)
    if count < MIN_MATCHES:
        return None
    covariance = _covariance(fit, matches, error, jacobian, pivot, inlier, result)
    return PlaceFit(fit, inlier, count, covariance)


def _errors(fit: Sim3, matches: FeatureMatches) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors (n, 3) over their deviations: pixel x, y, log depth; by the motion (7,) of the window
    in the map about a pivot (3,), (n, 3, 7); and the pivot. What lies behind a camera is far off.
    """
    pivot = fit.apply(matches.poses[:, :3, 3].mean(0))
    inverse = fit.inverse()
    turn = matches.poses[:, :3, :3]
    local = np.einsum("nji,nj->ni", turn, inverse.apply(matches.points) - matches.poses[:, :3, 3])
    z = np.maximum(local[:, 2], 1e-6)
    sigma = PIXEL_STD / matches.focal_px
    projected = local[:, :2] / z[:, None]
    error = np.concatenate(
        [
            (projected - matches.pixels) / sigma,
            (np.log(z / np.maximum(matches.depths_u, 1e-6)) / DEPTH_STD)[:, None],
        ],
        axis=1,
    )
    error[local[:, 2] <= 0] = 1e3
    arm = matches.points - pivot
    motion = np.concatenate(
        [
            np.stack([cross_matrix(a) for a in arm]),
            np.broadcast_to(-np.eye(3), (len(arm), 3, 3)),
            -arm[:, :, None],
        ],
        axis=2,
    )
    linear = inverse.scale * np.einsum("nji,jk->nik", turn, inverse.rotation)
    moved = linear @ motion
    by_point = np.zeros((len(z), 3, 3))
    by_point[:, 0, 0] = by_point[:, 1, 1] = 1 / (z * sigma)
    by_point[:, 0, 2], by_point[:, 1, 2] = (-projected / (z[:, None] * sigma)).T
    by_point[:, 2, 2] = 1 / (z * DEPTH_STD)
    return error, by_point @ moved, pivot


def _weights(error: np.ndarray) -> np.ndarray:
    """(n,) of a Cauchy loss, 0 far outside."""
    squared = (error**2).sum(1)
    return np.where(squared < 400, 1 / (1 + squared / 6), 0.0)


def _distinct(matches: FeatureMatches, inlier: np.ndarray) -> int:
    """How many different features of the window agree."""
    rows = np.concatenate([matches.pixels[inlier], matches.poses[inlier, :3, 3]], axis=1)
    return len(np.unique(rows.round(6), axis=0))


def _covariance(
    fit: Sim3,
    matches: FeatureMatches,
    error: np.ndarray,
    jacobian: np.ndarray,
    pivot: np.ndarray,
    inlier: np.ndarray,
    result: Reconstruction,
) -> np.ndarray:
    """(7, 7) about the map's origin, by the sandwich over patches (Liang & Zeger, 1986).

    Features of one patch of a view err alike and count as one; a fit to few patches explains their
    errors instead of showing them, which `patches / (patches - 7)` corrects. Keyframe and window
    are off as a whole besides, each by what the window says of its views.
    """
    j, e, group = jacobian[inlier], error[inlier], matches.keyframes[inlier]
    weight = _weights(e)
    hessian = np.einsum("nki,n,nkj->ij", j, weight, j) + 1e-6 * np.eye(7)
    patch = np.round(matches.pixels[inlier] * 4).astype(int)
    keys = np.concatenate([patch, group[:, None]], axis=1)
    _, blocks = np.unique(keys, axis=0, return_inverse=True)
    pulls = np.zeros((blocks.max() + 1, 7))
    np.add.at(pulls, blocks.reshape(-1), np.einsum("nki,n,nk->ni", j, weight, e))
    inverse = np.linalg.inv(hessian)
    few = len(pulls) / max(len(pulls) - UNKNOWNS, 1)
    spread = few * inverse @ (pulls.T @ pulls) @ inverse
    reach = fit.scale * result.median_depth_u
    local = spread + np.diag((_systematic(result.view_std) * _units(reach)) ** 2)
    move = Sim3(1.0, np.eye(3), pivot).adjoint()
    return move @ local @ move.T


def _systematic(std: ViewStd | None) -> np.ndarray:
    """(7,), as SYSTEMATIC: of two views of one network, each off by its own."""
    if std is None:
        return SYSTEMATIC
    both = np.sqrt(2) * np.array([std.turn_rad] * 3 + [std.shift] * 3 + [std.scale])
    return np.maximum(SYSTEMATIC, both)


def _units(reach: float) -> np.ndarray:
    """(7,): 1 for angles and the logarithm of scale, the range for translations."""
    return np.array([1.0] * 3 + [reach] * 3 + [1.0])
