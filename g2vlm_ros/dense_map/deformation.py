# SPDX-License-Identifier: Apache-2.0
"""Voxels of windows that a loop closure moved, and the way they take to their new places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from g2vlm_ros.dense_map.voxel_grid import VOXEL, pick
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.kernels.voxels import correct_voxels


@dataclass(frozen=True)
class Deformation:
    """Windows that moved, and since when."""

    revision: int
    windows: np.ndarray
    """int32 (w,), ascending."""
    linear: np.ndarray
    """float64 (w, 3, 3)"""
    offset: np.ndarray
    """float64 (w, 3)"""

    @classmethod
    def of(cls, revision: int, moves: Mapping[int, Sim3]) -> Deformation:
        windows = np.array(sorted(moves), np.int32)
        fits = [moves[int(window)] for window in windows]
        linear = np.array([fit.scale * fit.rotation for fit in fits])
        return cls(revision, windows, linear, np.array([fit.translation for fit in fits]))

    def apply(self, voxels: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Move those of the positions (n, 3) whose voxels are older than it; which, bool (n,)."""
        due = np.zeros(len(voxels), bool)
        correct_voxels(
            voxels, self.windows, self.linear, self.offset, self.revision, positions, due
        )
        return due


class Deformations:
    """The corrections that some voxels still wait for; a voxel older than one waits for it.

    A cell may be written while its voxel waits. That voxel is then displaced: it keeps aside,
    in no cell, until it is placed anew.
    """

    def __init__(self) -> None:
        self._waiting: list[Deformation] = []
        self._displaced: list[tuple[np.ndarray, np.ndarray]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, correction: Deformation) -> None:
        """One more; displaced voxels get it at once."""
        self._waiting.append(correction)
        for positions, voxels in self._displaced:
            correction.apply(voxels, positions)

    def applied_before(self, revision: int) -> None:
        """No voxel waits any longer for corrections before this revision."""
        self._waiting = [each for each in self._waiting if each.revision >= revision]

    def clear(self) -> None:
        """Forget all."""
        self._waiting.clear()
        self._displaced.clear()

    def due(self, voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Those that wait: where to, float64 (n, 3), themselves, VOXEL (n,), and their indices."""
        positions = voxels["position"].astype(np.float64)
        moved = np.zeros(len(voxels), bool)
        for correction in self._waiting:
            moved |= correction.apply(voxels, positions)
        indices = np.flatnonzero(moved)
        return positions[indices], pick(voxels, indices), indices

    def displace(self, voxels: np.ndarray) -> bool:
        """Blank, in voxels about to be written, those that wait, and keep them aside.

        Whether there were any.
        """
        positions, old, indices = self.due(voxels)
        if len(indices):
            self._displaced.append((positions, old))
            blank = np.zeros(len(indices), VOXEL)
            blank["cell"] = old["cell"]
            voxels[indices] = blank
        return bool(len(indices))

    def take_displaced(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Positions and voxels that keep aside; they are the caller's now."""
        displaced, self._displaced = self._displaced, []
        return displaced
