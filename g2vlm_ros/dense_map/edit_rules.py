# SPDX-License-Identifier: Apache-2.0
"""What edits of the map ask of its updates: the border between `voxel_map` and `map_edit`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from g2vlm_ros.geometry.sim3 import Sim3


class EditRules(Protocol):
    """What edits of the map ask of updates (`map_edit.MapEditor`)."""

    def admit(self, points: np.ndarray, colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which points (n, 3) may enter, bool (n,), and their colours."""

    def shields(self, points: np.ndarray) -> np.ndarray:
        """bool (n,): what free space must not remove."""

    def correct(self, moves: Mapping[int, Sim3]) -> None:
        """Windows moved."""

    def clear(self) -> None:
        """The map was reset."""
