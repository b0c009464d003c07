# SPDX-License-Identifier: Apache-2.0
"""Where voxels live: a sparse grid of blocks of 8 x 8 x 8 cells over fixed pools in numpy.

A cell is named by a 63-bit key (block coordinates above, cell within the block below). A sorted
directory maps block keys to rows; each row has a dense table from cell to voxel; voxels are rows
of one pool. Every look-up is a few array operations for any number of voxels; nothing is ever
copied to grow. Pools are reserved for the bound at once, but the operating system hands out their
pages only as they are used.
"""

from __future__ import annotations

import numpy as np

VOXEL = np.dtype(
    [
        ("position", "<f4", 3),  # mean of the points that fell in, map frame
        ("confidence", "<f4"),  # mean confidence of those points, 0..1
        ("stamp_ns", "<i8"),  # newest acquisition time
        ("window", "<i4"),  # window that contributed last
        ("revision", "<i4"),  # of the map when the voxel changed last
        ("born", "<i4"),  # revision at which it came into being
        ("cell", "<u4"),  # row of its block << 9 | cell within the block
        ("colour", "<u2", 3),  # mean RGB in 1/256 steps
        ("count", "<u2"),  # points seen, less what free space took; 0 in a free slot
    ]
)
BLOCK_EDGE = 8
CELLS = BLOCK_EDGE**3
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


def distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first, inverse): indices of one of each distinct int64 key, and which of them each is.

    `keys[first][inverse] == keys`, as np.unique but unsorted and without sorting: all keys write
    their index into a hash table, one per entry survives, and the others compare with it.
    """
    size = len(keys)
    bits = max(4, int(2 * size).bit_length())
    table = np.empty(1 << bits, np.int32)
    leader = np.empty(size, np.int32)
    rest = np.arange(size, dtype=np.int32)
    mixed = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    entry = (mixed >> np.uint64(64 - bits)).astype(np.int64)
    while rest.size:
        table[entry] = rest
        winner = table[entry]
        same = keys[winner] == keys[rest]
        leader[rest[same]] = winner[same]
        rest, entry = rest[~same], entry[~same]
    first = np.flatnonzero(leader == np.arange(size, dtype=np.int32))
    number = np.empty(size, np.int32)
    number[first] = np.arange(first.size, dtype=np.int32)
    return first, number[leader].astype(np.intp)


def pick(voxels: np.ndarray, which: np.ndarray) -> np.ndarray:
    """voxels[which], as bytes: indexing records is ten times slower."""
    words = voxels.view(np.uint32).reshape(-1, VOXEL.itemsize // 4)
    return words.take(which, axis=0).view(VOXEL)[:, 0]


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
        self.voxels = np.zeros(self.max_voxels, VOXEL)
        self.blocks = {
            name: np.zeros((rows, *_BLOCK[name].shape), _BLOCK[name].base) for name in _BLOCK.names
        }
        """By field of a block, an array over rows; a field alone is what most look-ups need."""
        self._words = self.voxels.view(np.uint32).reshape(-1, VOXEL.itemsize // 4)
        self._index = np.zeros((rows, CELLS), np.int32)  # slot + 1, so that fresh pages are empty
        self._keys = np.empty(0, np.int64)
        self._rows = np.empty(0, np.int32)
        self._free_rows: list[int] = []
        self._fresh_row = 0
        self._free = np.zeros(self.max_voxels, np.int32)
        self._freed = np.zeros(self.max_voxels, np.int32)  # revision at which _free[i] was freed
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

    def keys_at(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(keys int64 (n,), inside bool (n,)) of points (n, 3); a key outside means nothing.

        Inside is what is finite and less than 2**20 voxels from the origin along each axis.
        """
        cells = np.floor(np.multiply(points.T, 1.0 / self.size, dtype=np.float64, order="C"))
        good = np.abs(cells) < _BIAS
        inside = good.all(0)
        if not inside.all():
            cells[~good] = 0
        x, y, z = cells.astype(np.int64) + _BIAS
        blocks = (x >> 3 << _AXIS_BITS | y >> 3) << _AXIS_BITS | z >> 3
        return blocks << _CELL_BITS | (x & 7) << 6 | (y & 7) << 3 | z & 7, inside

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
        """Slots intp of keys, -1 where there is no voxel."""
        blocks = keys >> _CELL_BITS
        first, inverse = distinct(blocks)
        rows = self._find_rows(blocks[first])[inverse]
        slots = self._index[rows, keys & (CELLS - 1)].astype(np.intp) - 1
        slots[rows < 0] = -1
        return slots

    def missing_blocks(self, keys: np.ndarray) -> int:
        """How many blocks `add` would have to make for these keys."""
        blocks = keys >> _CELL_BITS
        return int((self._find_rows(blocks[distinct(blocks)[0]]) < 0).sum())

    def add(self, keys: np.ndarray) -> np.ndarray:
        """Slots int32 of new voxels, zero but for `cell`; the keys are distinct and absent.

        The caller has made sure of `free_voxels` and `free_blocks`.
        """
        blocks = keys >> _CELL_BITS
        first, inverse = distinct(blocks)
        block_rows = self._make_rows(blocks[first])
        rows, cells = block_rows[inverse], keys & (CELLS - 1)
        slots = self._take_slots(len(keys))
        self._index[rows, cells] = slots + 1
        self._words[slots] = 0
        self.voxels["cell"][slots] = rows << _CELL_BITS | cells
        self.blocks["voxels"][block_rows] += np.bincount(inverse, minlength=len(first))
        return slots

    def remove(self, slots: np.ndarray, revision: int) -> None:
        """Free voxels, and blocks that are left empty; `revision` never decreases."""
        cells = self.voxels["cell"][slots].astype(np.int64)
        self._index.reshape(-1)[cells] = 0
        self._words[slots] = 0
        end = self._free_size + len(slots)
        self._free[self._free_size : end] = slots
        self._freed[self._free_size : end] = revision
        self._free_size = end
        rows = cells >> _CELL_BITS
        first, inverse = distinct(rows)
        rows = rows[first]
        self.blocks["voxels"][rows] -= np.bincount(inverse, minlength=len(first))
        empty = rows[self.blocks["voxels"][rows] == 0]
        if empty.size:
            kept = self.blocks["voxels"][self._rows] > 0
            self._keys, self._rows = self._keys[kept], self._rows[kept]
            self._free_rows.extend(empty.tolist())

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

    def slots_in(self, rows: np.ndarray) -> np.ndarray:
        """Slots intp of all voxels of blocks."""
        entries = self._index.take(rows, axis=0).reshape(-1)
        return entries[np.flatnonzero(entries)].astype(np.intp) - 1

    def touch(self, slots: np.ndarray, revision: int, voxels: np.ndarray | None = None) -> None:
        """Tell blocks that voxels in them changed; `voxels` also brings stamps and windows."""
        rows = (self.voxels["cell"][slots] >> np.uint32(_CELL_BITS)).astype(np.int64)
        first, inverse = distinct(rows)
        rows = rows[first]
        self.blocks["revision"][rows] = revision
        if voxels is None:
            return
        for name, source, fold in (
            ("stamp_ns", "stamp_ns", np.maximum),
            ("first_window", "window", np.minimum),
            ("last_window", "window", np.maximum),
        ):
            folded = self.blocks[name][rows]
            fold.at(folded, inverse, voxels[source])
            self.blocks[name][rows] = folded

    def rows_around(self, place: np.ndarray, distance: float) -> np.ndarray:
        """Rows intp of blocks whose centre is within `distance` of `place` along every axis."""
        near = self.blocks["voxels"][: self._fresh_row] > 0
        for axis in range(3):
            centre = self.blocks["centre"][: self._fresh_row, axis]
            near &= np.abs(centre - np.float32(place[axis])) <= np.float32(distance)
        return np.flatnonzero(near)

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

    def _make_rows(self, block_keys: np.ndarray) -> np.ndarray:
        """Rows of distinct blocks, made where they do not exist yet."""
        rows = self._find_rows(block_keys)
        new = np.flatnonzero(rows < 0)
        if not new.size:
            return rows
        reused = self._free_rows[max(0, len(self._free_rows) - new.size) :]
        del self._free_rows[len(self._free_rows) - len(reused) :]
        fresh = np.arange(self._fresh_row, self._fresh_row + new.size - len(reused))
        self._fresh_row += fresh.size
        rows[new] = np.concatenate([np.array(reused, np.int64), fresh])
        keys = block_keys[new]
        self._open_blocks(rows[new], keys)
        order = np.argsort(keys)
        place = np.searchsorted(self._keys, keys[order])
        self._keys = np.insert(self._keys, place, keys[order])
        self._rows = np.insert(self._rows, place, rows[new][order])
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
