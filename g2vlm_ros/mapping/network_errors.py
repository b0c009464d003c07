# SPDX-License-Identifier: Apache-2.0
"""How far the network's poses and depth are off, learnt from what adjustments change.

The deviations are the prior of the next adjustment (empirical Bayes): a network that images hardly
correct is believed more than they are, and the other way round. Each is the mean square of the
changes over the number of unknowns that the evidence determined (MacKay, Neural Computation 1992),
over the last windows.
"""

from __future__ import annotations

from dataclasses import astuple

import numpy as np

from g2vlm_ros.geometry.registration import SYSTEMATIC
from g2vlm_ros.mapping.window_adjustment import PER_VIEW, Adjustment, NetworkStd
from g2vlm_ros.records import ViewStd

FIRST = NetworkStd(turn_rad=np.deg2rad(1.0), shift=0.01, scale=0.02, field=0.02)
"""Before anything is known: between a small network and a large one."""
FIRST_COUNT = 0.1
"""Determined unknowns that the first values are worth."""
LEAST = NetworkStd(turn_rad=2e-4, shift=3e-4, scale=1e-3, field=1e-3)
"""Far below what images tell, so that nothing changes any more."""
MOST = NetworkStd(turn_rad=0.3, shift=0.5, scale=0.5, field=0.3)
"""Worse than any network that is worth running."""
WINDOWS = 8.0
"""Windows over which the deviations are averaged."""
ROUNDS, SETTLED = 20, 0.03
"""Of deviations by changes by deviations in a window at most, and the relative change of the turn
below which they end."""
_LEAST, _MOST = np.array(astuple(LEAST)), np.array(astuple(MOST))
_KINDS = ("turn_rad", "shift", "mean", "field")
_KNOTS = PER_VIEW - 6


class NetworkErrors:
    """Deviations of one network's answers, over its last windows."""

    def __init__(self) -> None:
        mean = FIRST.scale**2 + FIRST.field**2 / _KNOTS
        first = np.array([FIRST.turn_rad**2, FIRST.shift**2, mean, FIRST.field**2])
        self._counts = np.full(len(_KINDS), FIRST_COUNT)
        self._squares = first * self._counts

    @property
    def std(self) -> NetworkStd:
        """As known now."""
        return _std(self._squares / self._counts)

    @property
    def view_std(self) -> ViewStd | None:
        """Of views of the network, which err independently of each other; None before anything
        was learnt."""
        if self._counts.max() <= FIRST_COUNT:
            return None
        std = self.std
        scale = float(np.hypot(std.scale, std.field / np.sqrt(_KNOTS)))
        return ViewStd(std.turn_rad, std.shift, scale)

    def refined_std(self, left: ViewStd) -> ViewStd:
        """Of a refined window, of which its adjustment says that `left` is left.

        A few windows in a hundred are off by much more than that, as where views show little: a
        window counts as off by what is assumed of any, unless the network itself is better.
        """
        network, assumed = astuple(self.view_std or left), SYSTEMATIC[[0, 3, 6]] / np.sqrt(2)
        return ViewStd(*map(float, np.maximum(astuple(left), np.minimum(assumed, network))))

    def learn(self, adjustment: Adjustment, depth_u: float) -> tuple[np.ndarray, np.ndarray]:
        """Take in an adjustment that was made with `std`; depth_u: the window's median depth.

        Returns the change (N, PER_VIEW) that the same evidence, taken as linear, makes with the
        deviations that follow, and its information (N PER_VIEW, N PER_VIEW).
        """
        views, prior = len(adjustment.change), self.std
        before = adjustment.information
        evidence = before - prior.information(views, depth_u)
        pull = before @ adjustment.change.reshape(-1)
        keep = 1 - 1 / WINDOWS
        squares, counts = keep * self._squares, keep * self._counts
        change = adjustment.change
        for _ in range(ROUNDS):
            covariance = np.linalg.inv(evidence + prior.information(views, depth_u))
            change = (covariance @ pull).reshape(views, PER_VIEW)
            square, count = _determined(change, covariance, prior, depth_u)
            self._squares, self._counts = squares + square, counts + count
            before_std, prior = prior, self.std
            if abs(prior.turn_rad - before_std.turn_rad) < SETTLED * before_std.turn_rad:
                break
        return change, evidence + before_std.information(views, depth_u)


def _std(variances: np.ndarray) -> NetworkStd:
    turn, shift, mean, field = variances
    scale = max(mean - field / _KNOTS, 0.0)
    std = np.clip(np.sqrt([turn, shift, scale, field]), _LEAST, _MOST)
    return NetworkStd(*std.tolist())


def _determined(
    change: np.ndarray, covariance: np.ndarray, prior: NetworkStd, depth_u: float
) -> tuple[np.ndarray, np.ndarray]:
    """By kind of error: sum of the squared changes, and how many unknowns were determined."""
    views, knots = len(change), change[:, 6:]
    blocks = covariance.reshape(views, PER_VIEW, views, PER_VIEW)
    diagonal = blocks[np.arange(views), :, np.arange(views), :]
    middle, middle_variance = knots.mean(1), diagonal[:, 6:, 6:].mean((1, 2))
    spread = np.trace(diagonal[:, 6:, 6:], axis1=1, axis2=2) - _KNOTS * middle_variance
    squares = (
        (change[:, :3] ** 2).sum(),
        (change[:, 3:6] ** 2).sum() / depth_u**2,
        (middle**2).sum(),
        ((knots - middle[:, None]) ** 2).sum(),
    )
    unknown = (
        np.trace(diagonal[:, :3, :3], axis1=1, axis2=2).sum() / prior.turn_rad**2,
        np.trace(diagonal[:, 3:6, 3:6], axis1=1, axis2=2).sum() / (prior.shift * depth_u) ** 2,
        middle_variance.sum() / (prior.scale**2 + prior.field**2 / _KNOTS),
        spread.sum() / prior.field**2,
    )
    unknowns = views * np.array([3.0, 3.0, 1.0, _KNOTS - 1.0])
    return np.array(squares), np.clip(unknowns - unknown, 0.0, None)
