# SPDX-License-Identifier: Apache-2.0
"""Where voxels live: a sparse grid of blocks of 8 x 8 x 8 cells over fixed pools in numpy.

A cell is named by a 63-bit key (block coordinates above, cell within the block below). A sorted
directory maps block keys to rows; each row has a dense table from cell to voxel; voxels are rows
of one pool. Every look-up is a few array operations for any number of voxels; nothing is ever
copied to grow. Pools are reserved for the bound at once, but the operating system hands out their
pages only as they are used, and has them back with the grid.
"""

from __future__ import annotations

import contextlib
import mmap

import numpy as np

from g2vlm_ros.kernels import voxels as voxel_kernels
from g2vlm_ros.kernels.cells import keys_of_points
from g2vlm_ros.kernels.free_space import FreeSpace
from g2vlm_ros.kernels.records import VOXEL
from g2vlm_ros.kernels.voxels import (
    close_voxels,
    fold_cells,
    open_voxels,
    pack_voxels,
    slots_in_blocks,
)

BLOCK_EDGE = 8
CELLS = BLOCK_EDGE**3
LARGE_BYTES = 64 << 20
"""Pools from this size on are handed out in huge pages (2 MB): a new map has 4000 pages of 4 KB to
fetch in its first window otherwise, which took 30 ms. Half a page more is in use on average."""
VOXELS_PER_BLOCK = 48
"""The pools hold this many voxels per block; surfaces fill blocks with 30 to 100."""

_CELL_BITS = 9
_AXIS_BITS = 18
_BIAS = BLOCK_EDGE << (_AXIS_BITS - 1)
_BLOCK = np.dtype(
    [
        ("key", "<i8"),
        ("stamp_ns", "<i8"),
        ("centre", "<f4", 3),
        ("voxels", "<i4"),
        ("revision", "<i4"),
        ("first_window", "<i4"),
        ("last_window", "<i4"),
        ("stale", "<i4"),  # revision of the oldest correction still to be applied here, 0 if none
    ]
)
_BYTES_PER_BLOCK = CELLS * 4 + _BLOCK.itemsize + 16
_BYTES_PER_VOXEL = VOXEL.itemsize + 8


def pick(voxels: np.ndarray, which: np.ndarray) -> np.ndarray:
    """voxels[which], as bytes: indexing records is ten times slower."""
    words = voxels.view(np.uint32).reshape(-1, VOXEL.itemsize // 4)
    return words.take(which, axis=0).view(VOXEL)[:, 0]


def reserved(shape: tuple[int, ...], dtype: np.dtype | type) -> np.ndarray:
    """Zeros in a mapping of their own, whose pages cost memory from their first use on.

    `np.zeros` gives no such promise: malloc takes what it has freed before, clears all of it, and
    with that every page is in use at once.
    """
    dtype = np.dtype(dtype)
    count = int(np.prod(shape))
    pages = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if len(pages) >= LARGE_BYTES:
        with contextlib.suppress(OSError, AttributeError):  # a kernel without huge pages
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, dtype, count).reshape(shape)


class VoxelGrid:
    """Voxels by cell, in blocks, within `max_bytes`. Not thread-safe; its owner holds the lock.

    `size` is the edge of a voxel in map units. A voxel's slot stays the same while it lives.
    """

    def __init__(self, size: float, max_bytes: int):
        per_block = _BYTES_PER_BLOCK + VOXELS_PER_BLOCK * _BYTES_PER_VOXEL
        rows = max_bytes // per_block
        if not 0 < size < np.inf:
            raise ValueError(f"voxel size is {size}; it must be a length above 0")
        if rows < 64 or rows >= 1 << (32 - _CELL_BITS):
            raise ValueError(
                f"voxel memory is {max_bytes} bytes; give {64 * per_block} to "
                f"{per_block << (32 - _CELL_BITS)}"
            )
        self.size = size
        self.max_voxels, self.max_blocks = rows * VOXELS_PER_BLOCK, rows
        self.voxels = reserved((self.max_voxels,), VOXEL)
        self.blocks = {
            name: reserved((rows, *_BLOCK[name].shape), _BLOCK[name].base) for name in _BLOCK.names
        }
        """By field of a block, an array over rows; a field alone is what most look-ups need."""
        self._words = self.voxels.view(np.uint32).reshape(-1, VOXEL.itemsize // 4)
        self._index = reserved((rows, CELLS), np.int32)  # slot + 1, so that fresh pages are empty
        self._keys = np.empty(0, np.int64)
        self._rows = np.empty(0, np.int32)
        self._free_rows: list[int] = []
        self._fresh_row = 0
        self._free = reserved((self.max_voxels,), np.int32)
        self._freed = reserved(
            (self.max_voxels,), np.int32
        )  # revision at which _free[i] was freed
        self._free_size = 0
        self.high_water = 0
        """Slots from here on have never been used."""

    def __len__(self) -> int:
        return self.high_water - self._free_size

    @property
    def rows(self) -> np.ndarray:
        """int32: the rows of all blocks, by ascending key."""
        return self._rows

    @property
    def free_voxels(self) -> int:
        """How many voxels can still be added."""
        return self.max_voxels - len(self)

    @property
    def free_blocks(self) -> int:
        """How many blocks can still be added."""
        return self.max_blocks - len(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the pools that have been in use; never above the bound."""
        return self.high_water * _BYTES_PER_VOXEL + self._fresh_row * _BYTES_PER_BLOCK

    def keys_at(self, points: np.ndarray) -> np.ndarray:
        """int64 (n,): keys of the cells of points (n, 3); -1 where they are not finite, or 2**20
        voxels or more from the origin along an axis."""
        return keys_of_points(points.astype(np.float64), self.size)

    @staticmethod
    def centres_of(keys: np.ndarray, size: float) -> np.ndarray:
        """float64 (n, 3): the middles of cells."""
        return np.stack(
            [
                (
                    (keys >> (_CELL_BITS + _AXIS_BITS * axis) & (1 << _AXIS_BITS) - 1) * BLOCK_EDGE
                    + (keys >> (3 * axis) & 7)
                    - _BIAS
                    + 0.5
                )
                * size
                for axis in (2, 1, 0)
            ],
            axis=-1,
        )

    def keys_of(self, slots: np.ndarray) -> np.ndarray:
        """Keys int64 of voxels."""
        cells = self.voxels["cell"][slots].astype(np.int64)
        return self.blocks["key"][cells >> _CELL_BITS] << _CELL_BITS | cells & (CELLS - 1)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Slots int64 of keys, -1 where there is no voxel."""
        rows = self._find_rows(keys >> _CELL_BITS)
        slots = self._index[rows, keys & (CELLS - 1)].astype(np.int64) - 1
        slots[rows < 0] = -1
        return slots

    def find_cells(self, cells: np.ndarray) -> voxel_kernels.Placement:
        """Where CELL (m,) lie."""
        return voxel_kernels.find_cells(cells, self._keys, self._rows, self._index)

    def missing_blocks(self, keys: np.ndarray) -> int:
        """How many blocks `add` would have to make for these keys."""
        blocks = keys >> _CELL_BITS
        return len(np.unique(blocks[self._find_rows(blocks) < 0]))

    def add(self, keys: np.ndarray) -> np.ndarray:
        """Slots int32 of new voxels, zero but for `cell`; the keys are distinct and absent.

        The caller has made sure of `free_voxels` and `free_blocks`.
        """
        return self._open(keys, self._rows_of(keys >> _CELL_BITS))

    def add_cells(self, cells: np.ndarray, place: voxel_kernels.Placement) -> np.ndarray:
        """Slots int64 of the voxels of CELL (m,), made where they do not exist yet, as by `add`.

        place: where the cells lie, by `find_cells`.
        """
        slots, absent = place.slots, np.flatnonzero(place.slots < 0)
        if absent.size:
            rows = place.rows[absent]
            if place.new_blocks.size:
                order, unopened = np.argsort(place.new_blocks), rows < 0
                row_of = np.empty(order.size, np.int64)
                row_of[order] = self._make_rows(place.new_blocks[order])
                rows[unopened] = row_of[-1 - rows[unopened]]
            slots[absent] = self._open(cells["key"][absent], rows)
        return slots

    def _open(self, keys: np.ndarray, rows: np.ndarray) -> np.ndarray:
        slots = self._take_slots(len(keys))
        open_voxels(keys, rows, slots, self._index, self.voxels, self.blocks["voxels"])
        return slots

    def fold(self, cells: np.ndarray, slots: np.ndarray, revision: int) -> None:
        """Fold CELL (m,) into the voxels at slots (m,)."""
        fold_cells(cells, slots, revision, self.voxels, self.blocks)

    def remove(self, slots: np.ndarray, revision: int) -> None:
        """Free voxels, and blocks that are left empty; `revision` never decreases."""
        slots = slots.astype(np.int64)
        emptied = close_voxels(slots, self._index, self.voxels, self.blocks["voxels"])
        end = self._free_size + len(slots)
        self._free[self._free_size : end] = slots
        self._freed[self._free_size : end] = revision
        self._free_size = end
        if emptied.size:
            occupied = self.blocks["voxels"][self._rows] > 0
            self._keys, self._rows = self._keys[occupied], self._rows[occupied]
            self._free_rows.extend(emptied.tolist())

    def freed_since(self, revision: int) -> np.ndarray:
        """Slots int32 that are free now and were freed after `revision`.

        The list of free slots is a stack and revisions rise, so these are its upper end.
        """
        start = np.searchsorted(self._freed[: self._free_size], revision, side="right")
        return self._free[start : self._free_size].copy()

    def take(self, slots: np.ndarray) -> np.ndarray:
        """A copy of voxels, VOXEL (n,)."""
        return pick(self.voxels, slots)

    def put(self, slots: np.ndarray, voxels: np.ndarray) -> None:
        """Overwrite voxels; their `cell` must not change."""
        self._words[slots] = voxels.view(np.uint32).reshape(-1, self._words.shape[1])

    def slots_in(self, rows: np.ndarray, since: int = -1) -> np.ndarray:
        """Slots int64 of the voxels of blocks that changed after revision `since`."""
        room = int(self.blocks["voxels"][rows].sum())
        rows = rows.astype(np.int64)
        return slots_in_blocks(rows, self._index, self.voxels, room, since)

    def seen_through(
        self, space: FreeSpace, rows: np.ndarray, slack: float, stamp_ns: int
    ) -> np.ndarray:
        """Slots int64 of the voxels of blocks that a view sees through (`FreeSpace`)."""
        room = int(self.blocks["voxels"][rows].sum())
        return space.seen_through(rows, self._index, self.voxels, room, slack, stamp_ns)

    def rows_in_view(self, space: FreeSpace) -> np.ndarray:
        """Rows int64 of blocks that may hold voxels which a view sees through."""
        radius = 0.5 * BLOCK_EDGE * self.size * 3**0.5
        return space.blocks(self.blocks, self._fresh_row, radius)

    def packed(self, out: np.ndarray) -> int:
        """Write all voxels as packed points into `out` (`pack_voxels`); returns how many."""
        return pack_voxels(self.voxels[: self.high_water], None, out)

    def touch(self, slots: np.ndarray, revision: int, voxels: np.ndarray | None = None) -> None:
        """Tell blocks that voxels in them changed; `voxels` also brings stamps and windows."""
        rows = (self.voxels["cell"][slots] >> np.uint32(_CELL_BITS)).astype(np.int64)
        self.blocks["revision"][rows] = revision
        if voxels is not None:
            np.maximum.at(self.blocks["stamp_ns"], rows, voxels["stamp_ns"])
            np.minimum.at(self.blocks["first_window"], rows, voxels["window"])
            np.maximum.at(self.blocks["last_window"], rows, voxels["window"])

    def by_remoteness(self, origin: np.ndarray) -> np.ndarray:
        """Rows of all blocks, those first that are far from `origin` (3,) and old.

        The score is distance over the largest distance plus age over the greatest age: free of
        units, and where one is even the other decides.
        """
        rows = self._rows
        distance = np.linalg.norm(self.blocks["centre"][rows] - origin, axis=1)
        stamps = self.blocks["stamp_ns"][rows]
        age = (stamps.max(initial=0) - stamps).astype(np.float64)
        score = distance / max(distance.max(initial=0.0), 1e-9)
        score += age / max(age.max(initial=0.0), 1.0)
        return rows[np.argsort(-score, kind="stable")]

    def _find_rows(self, block_keys: np.ndarray) -> np.ndarray:
        if not len(self._keys):
            return np.full(len(block_keys), -1, np.int32)
        place = np.minimum(np.searchsorted(self._keys, block_keys), len(self._keys) - 1)
        return np.where(self._keys[place] == block_keys, self._rows[place], -1)

    def _rows_of(self, block_keys: np.ndarray) -> np.ndarray:
        """Rows int64 of blocks, made where they do not exist yet."""
        rows = self._find_rows(block_keys).astype(np.int64)
        absent = np.flatnonzero(rows < 0)
        if absent.size:
            keys = block_keys[absent]
            self._make_rows(np.unique(keys))
            rows[absent] = self._find_rows(keys)
        return rows

    def _make_rows(self, keys: np.ndarray) -> np.ndarray:
        """Open blocks of ascending, distinct and absent keys; their rows int64."""
        reused = self._free_rows[max(0, len(self._free_rows) - keys.size) :]
        del self._free_rows[len(self._free_rows) - len(reused) :]
        fresh = np.arange(self._fresh_row, self._fresh_row + keys.size - len(reused))
        self._fresh_row += fresh.size
        rows = np.concatenate([np.array(reused, np.int64), fresh])
        self._open_blocks(rows, keys)
        place = np.searchsorted(self._keys, keys)
        self._keys = np.insert(self._keys, place, keys)
        self._rows = np.insert(self._rows, place, rows.astype(np.int32))
        return rows

    def _open_blocks(self, rows: np.ndarray, keys: np.ndarray) -> None:
        for field in self.blocks.values():
            field[rows] = 0
        self.blocks["key"][rows] = keys
        mask = (1 << _AXIS_BITS) - 1
        for axis in range(3):
            place = (keys >> (_AXIS_BITS * (2 - axis)) & mask) - (_BIAS // BLOCK_EDGE)
            self.blocks["centre"][rows, axis] = (place + 0.5) * (BLOCK_EDGE * self.size)
        self.blocks["first_window"][rows] = np.iinfo(np.int32).max
        self.blocks["last_window"][rows] = np.iinfo(np.int32).min

    def _take_slots(self, size: int) -> np.ndarray:
        reused = min(size, self._free_size)
        self._free_size -= reused
        fresh = np.arange(self.high_water, self.high_water + size - reused, dtype=np.int32)
        self.high_water += fresh.size
        return np.concatenate([self._free[self._free_size : self._free_size + reused], fresh])
