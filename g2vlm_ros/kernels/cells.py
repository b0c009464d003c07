# SPDX-License-Identifier: Apache-2.0
"""Points of views summed up by the cell of the map that they fall into (cells.cpp)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from g2vlm_ros.kernels.checks import (
    I64,
    call,
    f32,
    f64,
    i64,
    input_array,
    length,
    shape_of,
    view_indices,
)
from g2vlm_ros.kernels.records import CELL, VOXEL

TABLE_SHARE = 2
"""Entries of a hash table per cell: at half full, a look-up meets 1.5 entries."""
FIRST_CELLS = 1 << 15
FIRST_SHARE = 4
"""Pixels per cell for which there is room in the first window, before any cells were counted."""
EXPECTED = 2
"""Cells for which there is room at first, over those of the time before: a table that is larger
than it needs to be costs more to clear, and more of the processor's caches."""
SPARE = 2
"""One window of a map with small voxels needs several times the memory of those before and after
it, and a robot that is lost begins many such maps."""
MAX_CELLS = 1 << 26
"""More than a window has pixels, and a map has voxels."""
PACKED_CELL_BYTES = 28
"""Of a cell that comes from a device (PackedCell in cell.cuh)."""


class CellSums:
    """Points of views summed up by cell; the memory of a window is that of the next one, unless it
    is more than SPARE times what that needs."""

    def __init__(self) -> None:
        self._room = _Room(0)
        self._expected = 0
        """Of views; 0 before the first ones."""

    def of_views(
        self,
        points: np.ndarray,
        colours: np.ndarray,
        confidence: np.ndarray,
        valid: np.ndarray,
        views: Sequence[int],
        affines: np.ndarray,
        per_depth: np.ndarray,
        *,
        voxel_size: float,
        stamp_ns: int,
        window: int,
        min_confidence: float = 0.0,
        contradicted: float = 0.0,
        max_depth: float = np.inf,
    ) -> tuple[np.ndarray, int, int]:
        """(CELL (m,), points added, points out of range) of some views, as `pack_points` has them.

        per_depth float64 (V,): pixels of a voxel's edge at depth 1, by which pixels are thinned
        out; 0 takes all. Left out are confidences below min_confidence (NaN passes if that is 0)
        or below `contradicted` (NaN passes), and depths above max_depth. The cells are a view of
        this object's memory until the next call.
        """
        shape = shape_of(points, "points", (None, None, None, 3))
        index = view_indices(views, shape[0])
        arrays = [
            input_array(points, "points", np.float32, shape),
            input_array(colours, "colours", np.uint8, shape),
            input_array(confidence, "confidence", np.float32, shape[:3]),
            input_array(valid, "valid", np.bool_, shape[:3]),
        ]
        affines = input_array(affines, "affines", np.float32, (len(index), 3, 4))
        per_depth = input_array(per_depth, "per_depth", np.float64, (len(index),))
        counts = np.zeros(2, np.int64)

        def attempt(room: int) -> int:
            return call(
                "cells_of_views",
                I64,
                *arrays,
                index,
                i64(len(index)),
                i64(shape[1]),
                i64(shape[2]),
                affines,
                per_depth,
                f32(min_confidence),
                f32(contradicted),
                f32(max_depth),
                f64(length(voxel_size)),
                i64(stamp_ns),
                ctypes.c_int32(window),
                *self._reused(room).arguments(room),
                counts,
            )

        pixels = len(index) * shape[1] * shape[2]
        room = self._expected or _rounded_up(pixels // FIRST_SHARE)
        while (size := attempt(room)) < 0:
            room *= 4
        self._expected = _rounded_up(EXPECTED * size)
        return self._room.cells[:size], int(counts[0]), int(counts[1])

    def _reused(self, cells: int) -> _Room:
        if not cells <= len(self._room.cells) <= SPARE * cells:
            self._room = _Room(cells)
        return self._room


def cells_of_voxels(
    positions: np.ndarray, voxels: np.ndarray, voxel_size: float
) -> tuple[np.ndarray, np.ndarray]:
    """(CELL (m,), bool (n,) in range) of VOXEL (n,) that come to lie at float64 (n, 3)."""
    (count,) = shape_of(voxels, "voxels", (None,))
    positions = input_array(positions, "positions", np.float64, (count, 3))
    voxels = input_array(voxels, "voxels", VOXEL, (count,))
    in_range = np.empty(count, np.bool_)
    room = _Room(_rounded_up(count))
    size = call(
        "cells_of_voxels",
        I64,
        positions,
        voxels,
        i64(count),
        f64(length(voxel_size)),
        *room.arguments(_rounded_up(count)),
        in_range,
    )
    return room.cells[:size], in_range


class _Room:
    """Memory in which a kernel sums up cells, a power of two of them."""

    def __init__(self, cells: int):
        if cells > MAX_CELLS:
            raise ValueError(f"room for {cells} cells; a kernel takes {MAX_CELLS} at most")
        self.cells = np.empty(cells, CELL)
        self._table = np.empty(TABLE_SHARE * cells, np.int32)

    def arguments(self, cells: int) -> tuple:
        """Of a kernel that may use room for so many cells, a power of two."""
        bits = (TABLE_SHARE * cells).bit_length() - 1
        return self._table, ctypes.c_int32(bits), self.cells, i64(cells)


def _rounded_up(cells: int) -> int:
    """A power of two, FIRST_CELLS at least."""
    return max(FIRST_CELLS, 1 << (cells - 1).bit_length())


def unpacked_cells(
    packed: np.ndarray, voxel_size: float, stamp_ns: int, window: int
) -> np.ndarray:
    """CELL (m,) of cells uint8 (m, PACKED_CELL_BYTES) that a device packed.

    Means of places are good to a 2**17th of a voxel's edge, those of colours to half of their
    1/256 steps, weights to float32; which cells there are, and their counts, are exact.
    """
    count, _ = shape_of(packed, "packed", (None, PACKED_CELL_BYTES))
    packed = input_array(packed, "packed", np.uint8, (count, PACKED_CELL_BYTES))
    cells = np.empty(count, CELL)
    size, stamp = f64(length(voxel_size)), i64(stamp_ns)
    call("unpack_cells", None, packed, i64(count), size, stamp, ctypes.c_int32(window), cells)
    return cells


def keys_of_points(points: np.ndarray, voxel_size: float) -> np.ndarray:
    """int64 (n,): the cells that hold points float64 (n, 3); -1 where not finite or too far."""
    count, _ = shape_of(points, "points", (None, 3))
    points = input_array(points, "points", np.float64, (count, 3))
    keys = np.empty(count, np.int64)
    call("keys_of_points", None, points, i64(count), f64(length(voxel_size)), keys)
    return keys
