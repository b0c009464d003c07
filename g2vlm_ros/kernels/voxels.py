# SPDX-License-Identifier: Apache-2.0
"""Voxels of the map: found, merged, opened, closed, moved, packed (merge.cpp, grid.cpp)."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np

from g2vlm_ros.kernels.checks import (
    I64,
    call,
    check_in_place,
    check_indices,
    i64,
    input_array,
    shape_of,
)
from g2vlm_ros.kernels.records import CELL, VOXEL

CELLS_PER_BLOCK = 512


class Placement(NamedTuple):
    """Where m cells lie in the map."""

    slots: np.ndarray
    """int64 (m,): of their voxels, -1 where there is none."""
    rows: np.ndarray
    """int64 (m,): of their blocks; of block k of `new_blocks` -1 - k."""
    new_blocks: np.ndarray
    """int64 (b,): keys of the blocks that do not exist yet."""
    absent: int
    """Cells without a voxel."""


def find_cells(
    cells: np.ndarray, block_keys: np.ndarray, block_rows: np.ndarray, index: np.ndarray
) -> Placement:
    """Where CELL (m,) lie.

    block_keys int64 (b,) ascending, block_rows int32 (b,); index int32 (rows, 512): slot + 1.
    """
    (count,) = shape_of(cells, "cells", (None,))
    (blocks,) = shape_of(block_keys, "block_keys", (None,))
    cells = input_array(cells, "cells", CELL, (count,))
    block_keys = input_array(block_keys, "block_keys", np.int64, (blocks,))
    block_rows = input_array(block_rows, "block_rows", np.int32, (blocks,))
    check_in_place(index, "index", np.int32, (None, CELLS_PER_BLOCK))
    slots, rows, keys = (np.empty(count, np.int64) for _ in range(3))
    absent = np.empty(2, np.int64)
    call(
        "find_cells",
        None,
        cells,
        i64(count),
        block_keys,
        block_rows,
        i64(blocks),
        index,
        slots,
        rows,
        keys,
        absent,
    )
    return Placement(slots, rows, keys[: absent[1]], int(absent[0]))


def fold_cells(
    cells: np.ndarray,
    slots: np.ndarray,
    revision: int,
    voxels: np.ndarray,
    blocks: dict[str, np.ndarray],
) -> None:
    """Fold CELL (m,) into the voxels at int64 slots (m,), in place, and tell their blocks.

    voxels VOXEL (s,), all slots below s; blocks: arrays stamp_ns, first_window, last_window and
    revision by row.
    """
    (count,) = shape_of(cells, "cells", (None,))
    cells = input_array(cells, "cells", CELL, (count,))
    slots = input_array(slots, "slots", np.int64, (count,))
    check_in_place(voxels, "voxels", VOXEL, (None,))
    check_indices(slots, len(voxels), "slots")
    kinds = {"stamp_ns": np.int64, "first_window": np.int32, "last_window": np.int32}
    kinds["revision"] = np.int32
    rows = len(blocks["stamp_ns"])
    for name, kind in kinds.items():
        check_in_place(blocks[name], f"blocks[{name!r}]", kind, (rows,))
    call(
        "fold_cells",
        None,
        cells,
        slots,
        i64(count),
        ctypes.c_int32(revision),
        voxels,
        *(blocks[name] for name in kinds),
    )


def open_voxels(
    keys: np.ndarray,
    rows: np.ndarray,
    slots: np.ndarray,
    index: np.ndarray,
    voxels: np.ndarray,
    block_voxels: np.ndarray,
) -> None:
    """Open voxels in distinct cells int64 keys (n,): int32 slots (n,), blocks at int64 rows (n,).

    index int32 (rows, 512), voxels VOXEL (s,) and block_voxels int32 (rows,) are written.
    """
    (count,) = shape_of(keys, "keys", (None,))
    keys = input_array(keys, "keys", np.int64, (count,))
    rows = input_array(rows, "rows", np.int64, (count,))
    slots = input_array(slots, "slots", np.int32, (count,))
    check_pools(index, voxels, block_voxels)
    check_indices(rows, len(index), "rows")
    check_indices(slots, len(voxels), "slots")
    call("open_voxels", None, keys, rows, slots, i64(count), index, voxels, block_voxels)


def close_voxels(
    slots: np.ndarray, index: np.ndarray, voxels: np.ndarray, block_voxels: np.ndarray
) -> np.ndarray:
    """Free the voxels of distinct int64 slots (n,); rows int64 of the blocks left without any."""
    (count,) = shape_of(slots, "slots", (None,))
    slots = input_array(slots, "slots", np.int64, (count,))
    check_pools(index, voxels, block_voxels)
    check_indices(slots, len(voxels), "slots")
    emptied = np.empty(count, np.int64)
    size = call("close_voxels", I64, slots, i64(count), index, voxels, block_voxels, emptied)
    return emptied[:size]


def slots_in_blocks(
    rows: np.ndarray, index: np.ndarray, voxels: np.ndarray, capacity: int, since: int = -1
) -> np.ndarray:
    """int64 (n,): slots of the voxels in blocks at int64 rows (b,) with a revision above `since`.

    index and voxels as for `FreeSpace.seen_through`; capacity: how many the blocks hold.
    """
    rows = input_array(rows, "rows", np.int64, (None,))
    check_in_place(index, "index", np.int32, (None, CELLS_PER_BLOCK))
    check_in_place(voxels, "voxels", VOXEL, (None,))
    check_indices(rows, len(index), "rows")
    slots = np.empty(capacity, np.int64)
    size = call(
        "slots_in_blocks",
        I64,
        rows,
        i64(len(rows)),
        index,
        voxels,
        ctypes.c_int32(since),
        slots,
        i64(capacity),
    )
    return slots[:size]


def correct_voxels(
    voxels: np.ndarray,
    windows: np.ndarray,
    linear: np.ndarray,
    offset: np.ndarray,
    revision: int,
    positions: np.ndarray,
    moved: np.ndarray,
) -> None:
    """Move positions float64 (n, 3) of VOXEL (n,) that are older than a correction, in place.

    windows int32 (w,) ascending, linear float64 (w, 3, 3), offset float64 (w, 3): where the voxels
    of each window go; moved bool (n,) becomes true for those that did.
    """
    (count,) = shape_of(voxels, "voxels", (None,))
    (size,) = shape_of(windows, "windows", (None,))
    voxels = input_array(voxels, "voxels", VOXEL, (count,))
    windows = input_array(windows, "windows", np.int32, (size,))
    linear = input_array(linear, "linear", np.float64, (size, 3, 3))
    offset = input_array(offset, "offset", np.float64, (size, 3))
    check_in_place(positions, "positions", np.float64, (count, 3))
    check_in_place(moved, "moved", np.bool_, (count,))
    call(
        "correct_voxels",
        None,
        voxels,
        i64(count),
        windows,
        i64(size),
        linear,
        offset,
        ctypes.c_int32(revision),
        positions,
        moved,
    )


def pack_voxels(voxels: np.ndarray, ids: np.ndarray | None, out: np.ndarray) -> int:
    """Write VOXEL (n,) that are not of count 0 as packed points into `out`; returns how many.

    out: records of 20 bytes (n,): x, y, z, rgb, confidence; with ids int32 (n,) of 24, the id
    behind.
    """
    (count,) = shape_of(voxels, "voxels", (None,))
    voxels = input_array(voxels, "voxels", VOXEL, (count,))
    if ids is not None:
        ids = input_array(ids, "ids", np.int32, (count,))
    (room,) = shape_of(out, "out", (None,))
    if room < count or out.itemsize != (20 if ids is None else 24):
        raise ValueError(f"out has {room} records of {out.itemsize} bytes for {count} voxels")
    check_in_place(out, "out", out.dtype, (room,))
    return call("pack_voxels", I64, voxels, ids, i64(count), out)


def check_pools(index: np.ndarray, voxels: np.ndarray, block_voxels: np.ndarray) -> None:
    check_in_place(index, "index", np.int32, (None, CELLS_PER_BLOCK))
    check_in_place(voxels, "voxels", VOXEL, (None,))
    check_in_place(block_voxels, "block_voxels", np.int32, (len(index),))
