# SPDX-License-Identifier: Apache-2.0
"""How points become voxels and voxels become one: weighted means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from g2vlm_ros.dense_map.voxel_grid import VOXEL, distinct, pick

UNKNOWN_CONFIDENCE = 0.1
"""What a point of unknown (NaN) confidence weighs: it counts, but gives way to any known one."""
MIN_CONFIDENCE = 1e-3
MAX_COUNT = 1000
"""Counts end here, so that the mean keeps following and a parked car can still leave."""


@dataclass(frozen=True)
class Observations:
    """What is to be folded into n distinct cells."""

    keys: np.ndarray
    """int64 (n,): the cells."""
    newest: np.ndarray
    """VOXEL (n,): stamp and window of the newest contribution."""
    counts: np.ndarray
    """int64 (n,): points."""
    weight: np.ndarray
    """float64 (n,): sum of their confidence."""
    means: np.ndarray
    """float32 (6, n): x, y, z, red, green, blue, colours in 1/256 steps."""

    @classmethod
    def of_points(
        cls,
        keys: np.ndarray,
        points: np.ndarray,
        colours: np.ndarray,
        confidence: np.ndarray,
        stamp_ns: int,
        window_id: int,
    ) -> Observations:
        """Points (n, 3) of one window with the keys of their cells."""
        first, inverse = distinct(keys)
        weight = np.nan_to_num(confidence.astype(np.float64), nan=UNKNOWN_CONFIDENCE)
        newest = np.zeros(len(first), VOXEL)
        newest["stamp_ns"], newest["window"] = stamp_ns, window_id
        weight = np.clip(weight, MIN_CONFIDENCE, 1.0)
        total, means = _means(inverse, weight, points, colours, 256.0)
        return cls(keys[first], newest, np.bincount(inverse), total, means)

    @classmethod
    def of_voxels(
        cls, keys: np.ndarray, positions: np.ndarray, voxels: np.ndarray
    ) -> Observations:
        """Voxels that come to lie at positions (n, 3), each with the weight it has."""
        # The newest voxel of a cell gives the stamp and the window.
        order = np.argsort(voxels["stamp_ns"], kind="stable")
        keys, positions, voxels = keys[order], positions[order], pick(voxels, order)
        first, inverse = distinct(keys)
        newest = np.zeros(len(first), np.int64)
        np.maximum.at(newest, inverse, np.arange(len(keys)))
        total, means = _means(inverse, weight_of(voxels), positions, voxels["colour"], 1.0)
        counts = np.bincount(inverse, voxels["count"]).astype(np.int64)
        return cls(keys[first], pick(voxels, newest), counts, total, means)

    def __getitem__(self, chosen: np.ndarray) -> Observations:
        """Those of some cells (a bool mask)."""
        chosen = np.flatnonzero(chosen)
        return Observations(
            self.keys[chosen],
            pick(self.newest, chosen),
            self.counts[chosen],
            self.weight[chosen],
            self.means[:, chosen],
        )

    def fold_into(self, voxels: np.ndarray, revision: int) -> None:
        """Update VOXEL (n,) in place; those with count 0 are new.

        The mean is weighted by confidence, so it does not depend on the order of folding, up to
        rounding and until MAX_COUNT.
        """
        new = voxels["count"] == 0
        total = weight_of(voxels) + self.weight
        share = (self.weight / total).astype(np.float32)
        for axis in range(3):
            place, colour = voxels["position"][:, axis], voxels["colour"][:, axis]
            place += (self.means[axis] - place) * share
            colour[:] = np.rint(colour + (self.means[3 + axis] - colour) * share)
        seen = voxels["count"] + self.counts
        voxels["confidence"] = total / seen
        voxels["count"] = np.minimum(seen, MAX_COUNT)
        later = new | (self.newest["stamp_ns"] >= voxels["stamp_ns"])
        for name in ("window", "stamp_ns"):
            voxels[name] = np.where(later, self.newest[name], voxels[name])
        voxels["born"][new] = revision
        voxels["revision"] = revision


def weight_of(voxels: np.ndarray) -> np.ndarray:
    """float64 (n,): the sum of the confidence of the points in each voxel."""
    return voxels["count"] * voxels["confidence"].astype(np.float64)


def _means(
    inverse: np.ndarray,
    weight: np.ndarray,
    positions: np.ndarray,
    colours: np.ndarray,
    colour_step: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights float64 (m,), and means float32 (6, m) of positions and colours, per group."""
    total = np.bincount(inverse, weight)
    columns = [*positions.T, *(colour_step * colours.T)]
    means = [np.bincount(inverse, weight * column) / total for column in columns]
    return total, np.array(means, np.float32)
