# SPDX-License-Identifier: Apache-2.0
"""Point maps that stay on the device where a network made them.

Kernels whose points may lie there (`agreement`, `pinholes`, the map's cells) ask these for the
result; all other code reads them like an array, and gets on the host what it reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np


class DevicePoints(ABC):
    """Point maps float32 (N, H, W, 3) on a device; they never change.

    Integers and slices copy their part to the host, anything else copies all of it, once. What a
    device reports when it fails comes out of every method.
    """

    shape: tuple[int, int, int, int]
    dtype = np.dtype(np.float32)
    ndim = 4

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All on the host, read-only."""

    @abstractmethod
    def __getitem__(self, key: Any) -> np.ndarray:
        """A part, on the host."""

    @abstractmethod
    def picked(self, rows: int, columns: int) -> np.ndarray:
        """`agreement.pick_points`, on the host."""

    @abstractmethod
    def on_rays(self, pinholes: np.ndarray) -> DevicePoints:
        """`pinholes.points_on_rays`, on the device."""

    @abstractmethod
    def scaled(self, factor: np.ndarray) -> DevicePoints:
        """`agreement.scale_points`, on the device."""

    @abstractmethod
    def fused(
        self,
        j_from_i: np.ndarray,
        pinholes: np.ndarray,
        size: tuple[int, int],
        edge_step: float,
        tolerance: float,
    ) -> DevicePoints:
        """`agreement.fuse_points`, on the device."""

    @abstractmethod
    def multi_view_confidence(
        self,
        j_from_i: np.ndarray,
        pinholes: np.ndarray,
        grid_px: int,
        agreement_step: float,
        edge_step: float,
    ) -> np.ndarray:
        """`agreement.multi_view_confidence`, on the host; the device keeps it too."""

    @abstractmethod
    def seen_grid(self, poses: np.ndarray, pinholes: np.ndarray, step: int) -> np.ndarray:
        """`agreement.see_grid`, on the host."""

    @abstractmethod
    def cells(
        self,
        colours: np.ndarray,
        confidence: np.ndarray,
        ignored: np.ndarray | None,
        views: Sequence[int],
        affines: np.ndarray,
        per_depth: np.ndarray,
        *,
        max_edge_step: float,
        voxel_size: float,
        stamp_ns: int,
        window: int,
        min_confidence: float,
        contradicted: float,
        max_depth: float,
    ) -> tuple[np.ndarray, int, int]:
        """`cells.CellSums.of_views`, in any order, on the host.

        In the place of a mask of valid points it takes what makes one: depth steps above
        max_edge_step and ignored bool (N, H, W) stay out.
        """

    @abstractmethod
    def packed(
        self,
        views: Sequence[int],
        colours: np.ndarray,
        confidence: np.ndarray,
        affines: np.ndarray,
        min_confidence: float,
        edge_step: float,
    ) -> np.ndarray:
        """uint8 (20 M,): the M valid points of V views as a dense cloud, in the pixels' order.

        Of these views colours uint8 (V, H, W, 3), confidence float32 (V, H, W), affines (V, 3, 4);
        limits as in `geometry.point_cloud.valid_points`.
        """
