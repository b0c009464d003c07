# SPDX-License-Identifier: Apache-2.0
"""How two windows fit together: a robust similarity over their shared views, and its covariance.

Every window comes out of the network in a frame and a unit of its own. Windows that share views
show the same pixels twice; the seven-degree similarity between them is fitted to where each pixel
lies as seen from its camera. `graph_slam` chains these registrations into one map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.kernels.registration import fit_view
from g2vlm_ros.records import Reconstruction, ViewStd, frozen

ROBUST_STEPS = 4
POLISH_STEPS = 8
MEAN_STEPS = 4
SPREAD_VIEWS = 8
"""Views after which what is seen of their disagreement counts as much as what was known."""
CAUCHY = 2.385
"""Standard deviations at which the loss bends; 95 % efficient on normal errors (Holland & Welsch,
Communications in Statistics 1977)."""
INLIER_DISTANCE = 0.1
"""A point agrees when it lies within this fraction of its distance from the camera."""
POINTS_PER_VIEW = 2000
JOINT_POINTS = 3000
"""More are thinned out: neighbouring pixels repeat each other."""
BLOCKS_PER_SIDE = 8
"""Errors of neighbouring pixels are alike: a view counts as 8 x 8 independent patches."""
MIN_PATCHES = 14
"""With fewer, seven unknowns would explain the errors instead of showing them."""
SYSTEMATIC = np.array([0.01] * 3 + [0.005] * 3 + [0.01])
"""Assumed error of a view as a whole, which shows in no residual of its own: radians, fraction of
the range, logarithm of scale. The angle is the demo checkpoint's, by `nees_rotation` of
`python -m benchmarks demo_map`."""
MIN_SYSTEMATIC = 0.03
"""Of SYSTEMATIC at least, whatever windows say: below, lenses and rounding are what is left."""
WORST = np.array([0.05] * 3 + [0.05] * 3 + [0.1])
"""Standard deviations (same units) at which a registration is worth half of its inliers."""


def fit_sim3(source: np.ndarray, target: np.ndarray, weights: np.ndarray) -> Sim3:
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
    return Sim3(scale, rotation, target_mean - scale * rotation @ source_mean)


@dataclass(frozen=True)
class RelativePose:
    """A robust fit between two windows and how far it can be trusted."""

    target_from_source: Sim3
    inliers: float
    """Share of the weight that agrees within INLIER_DISTANCE, 0..1."""
    residual: float
    """Median distance of the points as a fraction of their range."""
    covariance: np.ndarray
    """float64 (7, 7) of d in ``truth = Sim3.exp(d) @ target_from_source``: rotation (rad),
    translation (target unit), log scale, about the target's origin."""
    quality: float
    """0..1: the inliers, discounted where the geometry leaves the similarity undetermined."""
    spread: float
    """How far whole views disagree: their variance over what is assumed, at least 1."""
    errors: np.ndarray | None = None
    """float64 (7, 7), as `covariance`, by what both windows say of their errors
    (`ViewSample.std`): what is published; None where one does not say it. The graph weighs by
    `covariance`, whose floor bears the windows that are off by more than they say."""


@dataclass(frozen=True)
class ViewSample:
    """What is kept of a view so that later windows can be joined to its window."""

    points_u: np.ndarray
    """float32 (n, 3) on a regular grid of pixels, in the frame of the window."""
    centre_u: np.ndarray
    """float64 (3,): the camera in the frame of the window."""
    weights: np.ndarray
    """float32 (n,): confidence, 1 where it is unknown."""
    blocks: np.ndarray
    """int16 (n,): which patch of the view each point is from."""
    std: ViewStd | None = None
    """Of the view in its window, where that is known."""


def sample_view(result: Reconstruction, view: int) -> ViewSample:
    """The view on a grid of about POINTS_PER_VIEW pixels; the same ones in every window."""
    height, width = result.local_points_u.shape[1:3]
    step = max(1, int(np.sqrt(height * width / POINTS_PER_VIEW)))
    local = result.local_points_u[view, ::step, ::step]
    pose = result.window_from_camera[view].astype(np.float64)
    points = local.reshape(-1, 3) @ pose[:3, :3].T + pose[:3, 3]
    weights = result.confidence[view, ::step, ::step].reshape(-1)
    weights = np.where(np.isnan(weights), np.float32(1.0), weights)
    patches = _patches(*local.shape[:2])
    return ViewSample(points.astype(np.float32), pose[:3, 3], weights, patches, result.view_std)


@lru_cache(maxsize=8)
def _patches(rows: int, columns: int) -> np.ndarray:
    """int16 (rows * columns,): which of the patches of a grid each of its pixels is of."""
    row, column = np.indices((rows, columns))
    patch_row = row * BLOCKS_PER_SIDE // rows
    patches = patch_row * BLOCKS_PER_SIDE + column * BLOCKS_PER_SIDE // columns
    return frozen(patches.reshape(-1).astype(np.int16), "patches", (None,), np.int16)


class SharedView:
    """The same pixels of one view in two windows."""

    def __init__(
        self,
        source: np.ndarray,
        target: np.ndarray,
        weights: np.ndarray,
        centre: np.ndarray,
        blocks: np.ndarray,
        systematic: np.ndarray | None = None,
    ):
        """source, target: float64 (n, 3). weights: float64 (n,). centre: (3,), the camera in the
        target. blocks: int (n,), the patch of each point. systematic: (7,), as SYSTEMATIC, by
        what the two windows say; or None. ValueError for MIN_PATCHES or less."""
        good = np.isfinite((source + target).sum(1)) & (weights > 0)
        if not good.all():
            source, target, weights, blocks = (
                each[good] for each in (source, target, weights, blocks)
            )
        self.blocks = blocks.astype(np.int64)
        self.patches = int(np.count_nonzero(np.bincount(self.blocks)))
        if self.patches <= MIN_PATCHES:
            raise ValueError(
                f"the shared points are from {self.patches} patches of a view; more than "
                f"{MIN_PATCHES} are needed to tell how well windows join"
            )
        self.source, self.target, self.weights = source, target, weights
        self.centre, self.systematic = centre, systematic
        ray = self.target - centre
        self.range = np.maximum(np.sqrt(np.einsum("ki,ki->k", ray, ray)), 1e-9)
        self.direction = ray / self.range[:, None]
        self.reach = float(np.median(self.range))


def register_views(
    pairs: Sequence[tuple[ViewSample, ViewSample]], spread: float = 1.0, unit_std: float = 0.0
) -> RelativePose:
    """target_from_source from pairs (in the source window, in the target window) of one view each.

    spread: what earlier registrations showed of `RelativePose.spread`. unit_std: deviation of the
    logarithm of a
    view's own unit from its window's, which all shared views may have in common. Raises
    ValueError where there is no pair that can fix a similarity.
    """
    if not pairs:
        raise ValueError("the windows share no view; they cannot be joined")
    step = max(1, sum(len(s.blocks) for s, _ in pairs) // JOINT_POINTS)
    views, refused = [], None
    for source, target in pairs:
        points = (x.points_u[::step].astype(np.float64) for x in (source, target))
        weights = (source.weights * target.weights)[::step].astype(np.float64)
        try:
            blocks, systematic = source.blocks[::step], _systematic(source.std, target.std)
            views.append(SharedView(*points, weights, target.centre_u, blocks, systematic))
        except ValueError as error:
            refused = error
    if not views:
        raise refused
    return fit_relative_pose(views, spread, unit_std)


def fit_relative_pose(
    views: Sequence[SharedView], spread: float = 1.0, unit_std: float = 0.0
) -> RelativePose:
    """Robust target_from_source over shared views: each by itself, then their weighted mean.

    What is wrong with a whole view (its pose, its depth's unit) is the same for all its points, so
    that points of several views must not be thrown together: views a step apart would seem to fix
    the scale by that step. Views that disagree more than their covariances say widen the result's,
    and through `spread` those of later registrations, which may have one view and cannot tell.
    Raises ValueError as `fit_sim3` does.
    """
    fits = [_fit_view(view) for view in views]
    fit, covariance, spread = _mean(fits, spread)
    pivot, reach = np.mean([v.centre for v in views], 0), float(np.mean([v.reach for v in views]))
    covariance = covariance + about(pivot, np.array([0.0] * 6 + [unit_std]))
    weights = np.concatenate([v.weights for v in views])
    error = np.concatenate([_relative_error(fit, view) for view in views])
    inliers = float(weights[error < INLIER_DISTANCE].sum() / weights.sum())
    quality = inliers / (1.0 + _uncertainty(covariance, pivot, reach) ** 2)
    residual, errors = float(np.median(error)), _learnt_covariance([c for _, c in fits], views)
    return RelativePose(fit, inliers, residual, covariance, quality, spread, errors)


def _systematic(source: ViewStd | None, target: ViewStd | None) -> np.ndarray | None:
    """(7,), as SYSTEMATIC: of a view that two windows share, each off by its own; None where one
    of them does not say it."""
    if source is None or target is None:
        return None
    stds = [[s.turn_rad] * 3 + [s.shift] * 3 + [s.scale] for s in (source, target)]
    return np.maximum(np.linalg.norm(stds, axis=0), MIN_SYSTEMATIC * SYSTEMATIC)


def _learnt_covariance(
    covariances: Sequence[np.ndarray], views: Sequence[SharedView]
) -> np.ndarray | None:
    """(7, 7) of the mean over views by what their windows say of their errors, or None."""
    information = np.zeros((7, 7))
    for covariance, view in zip(covariances, views, strict=True):
        if view.systematic is None:
            return None
        units = _units(view.reach)
        assumed, learnt = (about(view.centre, s * units) for s in (SYSTEMATIC, view.systematic))
        information += np.linalg.inv(covariance - assumed + learnt)
    return np.linalg.inv(information)


def _relative_error(fit: Sim3, view: SharedView) -> np.ndarray:
    """float64 (n,): how far a fit puts points from where they are, over their range."""
    off = fit.apply(view.source) - view.target
    return np.sqrt(np.einsum("ki,ki->k", off, off)) / view.range


def _fit_view(view: SharedView) -> tuple[Sim3, np.ndarray]:
    """Similarity over one view, and its covariance (7, 7).

    Closed form with Cauchy weights first; then Gauss-Newton on the direction and the logarithm of
    the range from the camera, each with the spread that it shows: depth errs along the ray, and
    squared distances would shrink the scale a little with every window.
    """
    solution = fit_view(
        view.source,
        view.target,
        view.weights,
        view.range,
        view.direction,
        view.blocks,
        view.centre,
        robust_steps=ROBUST_STEPS,
        polish_steps=POLISH_STEPS,
    )
    if solution is None:
        raise ValueError("the points lie on a line or in one spot; they cannot fix a similarity")
    fit, hessian, curvature, pulls = solution
    similarity = Sim3(float(fit[0]), fit[1:10].reshape(3, 3), fit[10:])
    covariance = _covariance(hessian, curvature, pulls, view.patches)
    return similarity, covariance + about(view.centre, SYSTEMATIC * _units(view.reach))


def _mean(
    fits: Sequence[tuple[Sim3, np.ndarray]], spread: float
) -> tuple[Sim3, np.ndarray, float]:
    """Mean by information, with views that stand apart weighted down; covariance and spread."""
    information = np.stack([np.linalg.inv(covariance) for _, covariance in fits])
    mean, trust, squared = fits[0][0], np.ones(len(fits)), np.zeros(len(fits))
    if len(fits) > 1:
        apart = _differences(fits, mean)
        for _ in range(MEAN_STEPS):
            weighed = trust[:, None, None] * information
            pull = (weighed @ apart[..., None]).sum(0)[:, 0]
            mean = Sim3.exp(np.linalg.solve(weighed.sum(0), pull)) @ mean
            apart = _differences(fits, mean)
            squared = (apart[:, None] @ information @ apart[..., None])[:, 0, 0] / 7
            trust = 1.0 / (1.0 + squared / (CAUCHY**2 * spread))
    covariance = np.linalg.inv((trust[:, None, None] * information).sum(0))
    scatter = float(trust @ squared)
    spread = (spread * SPREAD_VIEWS + scatter) / (SPREAD_VIEWS + len(fits) - 1)
    spread = max(1.0, spread)
    return mean, covariance * spread, spread


def _differences(fits: Sequence[tuple[Sim3, np.ndarray]], mean: Sim3) -> np.ndarray:
    """float64 (k, 7): tangents that lead from a similarity to those of fits."""
    inverse = mean.inverse()
    return np.stack([(fit @ inverse).log() for fit, _ in fits])


def _covariance(
    hessian: np.ndarray, curvature: np.ndarray, pulls: np.ndarray, patches: int
) -> np.ndarray:
    """(7, 7) by the sandwich over patches: what the patches pull in different directions.

    hessian (7, 7) with the weights of the reweighted step, curvature (7, 7) with the second
    derivative of the Cauchy loss; pulls (p, 7), the gradient by patch. It counts correlated pixels
    of a patch as one observation. (Liang & Zeger, Biometrika 1986.)
    """
    bread = curvature
    if np.linalg.eigvalsh(bread - 0.1 * hessian)[0] <= 0:
        bread = hessian
    inverse = np.linalg.pinv(bread, rcond=1e-14, hermitian=True)
    return inverse @ (pulls.T @ pulls) @ inverse * patches / (patches - 7)


def about(centre: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """(7, 7) covariance of independent deviations (7,) about a camera, at the target's origin."""
    move = (Sim3(1.0, np.eye(3), centre)).adjoint()
    return (move * deviation**2) @ move.T


def _units(reach: float) -> np.ndarray:
    """(7,): 1 for angles and the logarithm of scale, the range for translations."""
    return np.array([1.0] * 3 + [reach] * 3 + [1.0])


def _uncertainty(covariance: np.ndarray, pivot: np.ndarray, reach: float) -> float:
    """The worst standard deviation about the cameras, in units of WORST."""
    move = (Sim3(1.0, np.eye(3), -pivot)).adjoint()
    std = np.sqrt(np.diag(move @ covariance @ move.T))
    return float((std / (WORST * _units(reach))).max())
