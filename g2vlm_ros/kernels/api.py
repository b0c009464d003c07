# SPDX-License-Identifier: Apache-2.0
"""The kernels for numpy: here and only here arrays are checked, before their address is used.

Inputs of another memory order are copied, those of another type or shape refused (ValueError).
Lengths are in model or map units; views are (N, H, W, ...), poses and affines row-major.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from g2vlm_ros.kernels.library import library
from g2vlm_ros.kernels.records import CELL, VOXEL

TABLE_SHARE = 2
"""Entries of a hash table per cell: at half full, a look-up meets 1.5 entries."""
FIRST_CELLS = 1 << 16
MAX_CELLS = 1 << 26
"""Cells of one window, more than any has pixels."""
CELLS_PER_BLOCK = 512


def valid_points(points: np.ndarray, edge_step: float = 0.0) -> np.ndarray:
    """bool (N, H, W): pixels of point maps float32 (N, H, W, 3) that are finite, in front of the
    camera, and not at a depth step above the fraction `edge_step` (0 keeps steps)."""
    views, height, width, _ = _shape(points, "points", (None, None, None, 3))
    valid = np.empty((views, height, width), np.bool_)
    source = _input(points, "points", np.float32, (views, height, width, 3))
    library().valid_points(
        _at(source), _i64(views), _i64(height), _i64(width), _f32(edge_step), _at(valid)
    )
    return valid


def count_points(
    confidence: np.ndarray,
    valid: np.ndarray,
    views: Sequence[int],
    stride: int,
    min_confidence: float,
) -> int:
    """How many points a dense cloud of the views has; the arguments of `pack_points`."""
    shape = _shape(confidence, "confidence", (None, None, None))
    confidence = _input(confidence, "confidence", np.float32, shape)
    valid = _input(valid, "valid", np.bool_, shape)
    index = _views(views, shape[0])
    return _function("count_points", _I64)(
        _at(confidence), _at(valid), _at(index), _i64(len(index)), _i64(shape[1]),
        _i64(shape[2]), _i64(_positive(stride, "stride")), _f32(min_confidence),
    )  # fmt: skip


def pack_points(
    points: np.ndarray,
    colours: np.ndarray,
    confidence: np.ndarray,
    valid: np.ndarray,
    views: Sequence[int],
    affines: np.ndarray,
    out: np.ndarray,
    *,
    stride: int = 1,
    min_confidence: float = 0.0,
    organised: bool = False,
) -> int:
    """Write points of some views into `out`, uint8 (20 M,), at most M of them; returns how many.

    points float32 (N, H, W, 3), colours uint8 alike, confidence float32 (N, H, W), valid bool
    (N, H, W); affines float32 (V, 3, 4) take the points of each of the V views to the cloud.
    organised keeps invalid points, with x, y and z NaN.
    """
    shape = _shape(points, "points", (None, None, None, 3))
    index = _views(views, shape[0])
    arrays = [
        _input(points, "points", np.float32, shape),
        _input(colours, "colours", np.uint8, shape),
        _input(confidence, "confidence", np.float32, shape[:3]),
        _input(valid, "valid", np.bool_, shape[:3]),
    ]
    affines = _input(affines, "affines", np.float32, (len(index), 3, 4))
    _output(out, "out", np.uint8, (None,))
    return _function("pack_points", _I64)(
        *(_at(each) for each in arrays), _at(index), _i64(len(index)), _i64(shape[1]),
        _i64(shape[2]), _i64(_positive(stride, "stride")), _at(affines), _f32(min_confidence),
        ctypes.c_int32(organised), _at(out), _i64(len(out) // 20),
    )  # fmt: skip


class CellSums:
    """Points and voxels summed up by cell; its memory is reused, and grows as cells need it."""

    def __init__(self) -> None:
        self._cells = np.empty(0, CELL)
        self._table = np.empty(0, np.int32)

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
    ) -> tuple[np.ndarray, int, int]:
        """(CELL (m,), points added, points out of range) of some views, as `pack_points` has them.

        per_depth float64 (V,): pixels of a voxel's edge at depth 1, by which pixels are thinned
        out; 0 takes all. The cells are a view of this object's memory until the next call.
        """
        shape = _shape(points, "points", (None, None, None, 3))
        index = _views(views, shape[0])
        arrays = [
            _input(points, "points", np.float32, shape),
            _input(colours, "colours", np.uint8, shape),
            _input(confidence, "confidence", np.float32, shape[:3]),
            _input(valid, "valid", np.bool_, shape[:3]),
        ]
        affines = _input(affines, "affines", np.float32, (len(index), 3, 4))
        per_depth = _input(per_depth, "per_depth", np.float64, (len(index),))
        seen = np.zeros(2, np.int64)
        run = _function("cells_of_views", _I64)

        def attempt() -> int:
            return run(
                *(_at(each) for each in arrays), _at(index), _i64(len(index)), _i64(shape[1]),
                _i64(shape[2]), _at(affines), _at(per_depth), _f32(min_confidence),
                _f64(_length(voxel_size)), _i64(stamp_ns), ctypes.c_int32(window),
                *self._room(), _at(seen),
            )  # fmt: skip

        cells = self._grown(attempt)
        return cells, int(seen[0]), int(seen[1])

    def of_voxels(
        self, positions: np.ndarray, voxels: np.ndarray, voxel_size: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """(CELL (m,), bool (n,) in range) of VOXEL (n,) that come to lie at float64 (n, 3)."""
        (count,) = _shape(voxels, "voxels", (None,))
        positions = _input(positions, "positions", np.float64, (count, 3))
        voxels = _input(voxels, "voxels", VOXEL, (count,))
        kept = np.empty(count, np.bool_)
        run = _function("cells_of_voxels", _I64)
        cells = self._grown(
            lambda: run(
                _at(positions), _at(voxels), _i64(count), _f64(_length(voxel_size)),
                *self._room(), _at(kept),
            )
        )  # fmt: skip
        return cells, kept

    def _room(self) -> tuple:
        bits = len(self._table).bit_length() - 1
        return _at(self._table), ctypes.c_int32(bits), _at(self._cells), _i64(len(self._cells))

    def _grown(self, attempt) -> np.ndarray:
        """The cells of a kernel that says -1 where it has too little room."""
        if not len(self._cells):
            self._resize(FIRST_CELLS)
        while (size := attempt()) < 0:
            self._resize(4 * len(self._cells))
        return self._cells[:size]

    def _resize(self, cells: int) -> None:
        if cells > MAX_CELLS:
            raise ValueError(f"a window falls into more than {MAX_CELLS} cells")
        self._cells = np.empty(cells, CELL)
        self._table = np.empty(TABLE_SHARE * cells, np.int32)


def keys_of_points(points: np.ndarray, voxel_size: float) -> np.ndarray:
    """int64 (n,): the cells that hold points float64 (n, 3); -1 where not finite or too far."""
    count, _ = _shape(points, "points", (None, 3))
    points = _input(points, "points", np.float64, (count, 3))
    keys = np.empty(count, np.int64)
    library().keys_of_points(_at(points), _i64(count), _f64(_length(voxel_size)), _at(keys))
    return keys


def find_cells(
    cells: np.ndarray, block_keys: np.ndarray, block_rows: np.ndarray, index: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """(slots int64 (m,) or -1, rows of blocks int64 (m,) or -1, cells without a voxel) of CELL.

    block_keys int64 (b,) ascending, block_rows int32 (b,); index int32 (rows, 512): slot + 1.
    """
    (count,) = _shape(cells, "cells", (None,))
    (blocks,) = _shape(block_keys, "block_keys", (None,))
    cells = _input(cells, "cells", CELL, (count,))
    block_keys = _input(block_keys, "block_keys", np.int64, (blocks,))
    block_rows = _input(block_rows, "block_rows", np.int32, (blocks,))
    _output(index, "index", np.int32, (None, CELLS_PER_BLOCK))
    slots, rows = np.empty(count, np.int64), np.empty(count, np.int64)
    absent = _function("find_cells", _I64)(
        _at(cells), _i64(count), _at(block_keys), _at(block_rows), _i64(blocks), _at(index),
        _at(slots), _at(rows),
    )  # fmt: skip
    return slots, rows, int(absent)


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
    (count,) = _shape(cells, "cells", (None,))
    cells = _input(cells, "cells", CELL, (count,))
    slots = _input(slots, "slots", np.int64, (count,))
    _output(voxels, "voxels", VOXEL, (None,))
    _below(slots, len(voxels), "slots")
    kinds = {"stamp_ns": np.int64, "first_window": np.int32, "last_window": np.int32}
    kinds["revision"] = np.int32
    rows = len(blocks["stamp_ns"])
    for name, kind in kinds.items():
        _output(blocks[name], f"blocks[{name!r}]", kind, (rows,))
    library().fold_cells(
        _at(cells), _at(slots), _i64(count), ctypes.c_int32(revision), _at(voxels),
        *(_at(blocks[name]) for name in kinds),
    )  # fmt: skip


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
    (count,) = _shape(keys, "keys", (None,))
    keys = _input(keys, "keys", np.int64, (count,))
    rows = _input(rows, "rows", np.int64, (count,))
    slots = _input(slots, "slots", np.int32, (count,))
    _pools(index, voxels, block_voxels)
    _below(rows, len(index), "rows")
    _below(slots, len(voxels), "slots")
    library().open_voxels(
        _at(keys), _at(rows), _at(slots), _i64(count), _at(index), _at(voxels), _at(block_voxels)
    )


def close_voxels(
    slots: np.ndarray, index: np.ndarray, voxels: np.ndarray, block_voxels: np.ndarray
) -> np.ndarray:
    """Free the voxels of distinct int64 slots (n,); rows int64 of the blocks left without any."""
    (count,) = _shape(slots, "slots", (None,))
    slots = _input(slots, "slots", np.int64, (count,))
    _pools(index, voxels, block_voxels)
    _below(slots, len(voxels), "slots")
    emptied = np.empty(count, np.int64)
    size = _function("close_voxels", _I64)(
        _at(slots), _i64(count), _at(index), _at(voxels), _at(block_voxels), _at(emptied)
    )
    return emptied[:size]


def slots_in_blocks(
    rows: np.ndarray, index: np.ndarray, voxels: np.ndarray, capacity: int, since: int = -1
) -> np.ndarray:
    """int64 (n,): slots of the voxels in blocks at int64 rows (b,) with a revision above `since`.

    index and voxels as for `FreeSpace.seen_through`; capacity: how many the blocks hold.
    """
    rows = _input(rows, "rows", np.int64, (None,))
    _output(index, "index", np.int32, (None, CELLS_PER_BLOCK))
    _output(voxels, "voxels", VOXEL, (None,))
    _below(rows, len(index), "rows")
    found = np.empty(capacity, np.int64)
    size = _function("slots_in_blocks", _I64)(
        _at(rows), _i64(len(rows)), _at(index), _at(voxels), ctypes.c_int32(since), _at(found),
        _i64(capacity),
    )  # fmt: skip
    return found[:size]


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
    (count,) = _shape(voxels, "voxels", (None,))
    (size,) = _shape(windows, "windows", (None,))
    voxels = _input(voxels, "voxels", VOXEL, (count,))
    windows = _input(windows, "windows", np.int32, (size,))
    linear = _input(linear, "linear", np.float64, (size, 3, 3))
    offset = _input(offset, "offset", np.float64, (size, 3))
    _output(positions, "positions", np.float64, (count, 3))
    _output(moved, "moved", np.bool_, (count,))
    library().correct_voxels(
        _at(voxels), _i64(count), _at(windows), _i64(size), _at(linear), _at(offset),
        ctypes.c_int32(revision), _at(positions), _at(moved),
    )  # fmt: skip


def pack_voxels(voxels: np.ndarray, ids: np.ndarray | None, out: np.ndarray) -> int:
    """Write VOXEL (n,) that are not of count 0 as packed points into `out`; returns how many.

    out: records of 20 bytes (n,): x, y, z, rgb, confidence; with ids int32 (n,) of 24, the id
    behind.
    """
    (count,) = _shape(voxels, "voxels", (None,))
    voxels = _input(voxels, "voxels", VOXEL, (count,))
    if ids is not None:
        ids = _input(ids, "ids", np.int32, (count,))
    (room,) = _shape(out, "out", (None,))
    if room < count or out.itemsize != (20 if ids is None else 24):
        raise ValueError(f"out has {room} records of {out.itemsize} bytes for {count} voxels")
    _output(out, "out", out.dtype, (room,))
    return _function("pack_voxels", _I64)(
        _at(voxels), None if ids is None else _at(ids), _i64(count), _at(out)
    )


class FreeSpace:
    """The space that one depth view proves empty.

    depth: float32 (H, W), a plane of a point map (H, W, 3) as well; times `scale` it is in map
    units. confidence float32 (H, W). pose float64 (4, 4) map_from_camera, rigid; pinhole (4,): fx,
    fy, cx, cy. tile: side in pixels of the tiles for the quick sieve.
    """

    def __init__(
        self,
        depth: np.ndarray,
        confidence: np.ndarray,
        pose: np.ndarray,
        pinhole: Sequence[float],
        *,
        scale: float,
        min_confidence: float,
        tile: int,
    ):
        self.height, self.width = _shape(depth, "depth", (None, None))
        self._depth, self._stride = _plane(depth)
        self._confidence = _input(confidence, "confidence", np.float32, (self.height, self.width))
        self._pose = _input(pose, "pose", np.float64, (4, 4))
        self._pinhole = _input(np.array(pinhole, np.float32), "pinhole", np.float32, (4,))
        self._scale, self._min_confidence = scale, min_confidence
        self._tile = _positive(tile, "tile")
        tiles = -(-self.height // tile), -(-self.width // tile)
        self._farthest = np.empty(tiles, np.float32)
        self._nearest = np.empty((self.height, self.width), np.float32)
        self.reach = _function("free_depth", ctypes.c_float)(
            _at(self._depth), _i64(self._stride), _at(self._confidence), _i64(self.height),
            _i64(self.width), _f32(scale), _f32(min_confidence), _i64(tile), _i64(tiles[0]),
            _i64(tiles[1]), _at(self._nearest), _at(self._farthest),
        )  # fmt: skip
        """The largest trusted depth."""

    def blocks(self, blocks: dict[str, np.ndarray], end: int, radius: float) -> np.ndarray:
        """int64 (n,): rows below `end` of blocks that may hold voxels which the view sees through.

        blocks: arrays centre, voxels and stale by row; radius: of the balls around the centres.
        """
        rows = len(blocks["voxels"])
        centres = _input(blocks["centre"], "centre", np.float32, (rows, 3))
        counts = _input(blocks["voxels"], "voxels", np.int32, (rows,))
        stale = _input(blocks["stale"], "stale", np.int32, (rows,))
        if not 0 <= end <= rows:
            raise ValueError(f"end is {end}; there are {rows} rows of blocks")
        found = np.empty(end, np.int64)
        size = _function("blocks_in_view", _I64)(
            _at(centres), _at(counts), _at(stale), _i64(end), *self._camera(), _f32(self.reach),
            _f32(radius), _i64(self._tile), _i64(self._farthest.shape[1]), _at(self._farthest),
            _at(found),
        )  # fmt: skip
        return found[:size]

    def seen_through(
        self,
        rows: np.ndarray,
        index: np.ndarray,
        voxels: np.ndarray,
        capacity: int,
        slack: float,
        stamp_ns: int,
    ) -> np.ndarray:
        """int64 (n,): slots of voxels that a ray passed on its way to a surface clearly behind,
        and that were not seen as late as `stamp_ns`.

        rows int64 (b,) of the blocks to test; index int32 (rows, 512) as for `find_cells`; voxels
        VOXEL (s,); capacity: how many voxels these blocks hold. slack: map units a surface must
        lie behind a voxel, besides a twentieth of the depth.
        """
        rows = _input(rows, "rows", np.int64, (None,))
        _output(index, "index", np.int32, (None, CELLS_PER_BLOCK))
        _output(voxels, "voxels", VOXEL, (None,))
        _below(rows, len(index), "rows")
        found = np.empty(capacity, np.int64)
        pose, pinhole, height, width = self._camera()
        size = _function("seen_through", _I64)(
            _at(rows), _i64(len(rows)), _at(index), _at(voxels), _at(self._nearest), height,
            width, pose, pinhole, _f32(slack), _i64(stamp_ns), _at(found), _i64(capacity),
        )  # fmt: skip
        return found[:size]

    def ground(
        self,
        plane: Sequence[float],
        low: float,
        high: float,
        resolution: float,
        rays: int,
        step: int,
    ) -> np.ndarray | None:
        """float64 (2, rays, 3): near and far edge of the ground that every step-th ray crossed.

        plane (4,): heights above the floor; low..high: of obstacles. None where no ray did.
        """
        edges = np.empty((2, _positive(rays, "rays"), 3))
        plane = _input(np.array(plane, np.float64), "plane", np.float64, (4,))
        pinhole = self._pinhole.astype(np.float64)
        crossed = _function("ground_fan", ctypes.c_int32)(
            _at(self._depth), _i64(self._stride), _at(self._confidence), _i64(self.height),
            _i64(self.width), _f32(self._scale), _f32(self._min_confidence),
            _i64(_positive(step, "step")), _at(self._pose), _at(pinhole), _at(plane), _f64(low),
            _f64(high), _f64(resolution), _i64(rays), _at(edges),
        )  # fmt: skip
        return edges if crossed else None

    def _camera(self) -> tuple:
        return _at(self._pose), _at(self._pinhole), _i64(self.height), _i64(self.width)


def multi_view_confidence(
    points: np.ndarray,
    j_from_i: np.ndarray,
    pinholes: np.ndarray,
    grid_px: int,
    agreement_step: float,
    edge_step: float,
) -> np.ndarray:
    """float32 (N, H, W): agreement of points float32 (N, H, W, 3) with the other views' surfaces.

    j_from_i float32 (N, N, 3, 4); pinholes float32 (N, 4), fx 0 where unknown; every grid_px-th
    pixel is compared. NaN where no other view sees the point.
    """
    views, height, width, _ = _shape(points, "points", (None, None, None, 3))
    points = _input(points, "points", np.float32, (views, height, width, 3))
    j_from_i = _input(j_from_i, "j_from_i", np.float32, (views, views, 3, 4))
    pinholes = _input(pinholes, "pinholes", np.float32, (views, 4))
    confidence = np.empty((views, height, width), np.float32)
    library().multi_view_confidence(
        _at(points), _i64(views), _i64(height), _i64(width), _at(j_from_i), _at(pinholes),
        _i64(_positive(grid_px, "grid_px")), _f32(agreement_step), _f32(edge_step),
        _at(confidence),
    )  # fmt: skip
    return confidence


def fusion_factors(
    points: np.ndarray,
    j_from_i: np.ndarray,
    pinholes: np.ndarray,
    edge_step: float,
    tolerance: float,
) -> np.ndarray:
    """float32 (N, h, w): factors on the depth of points float32 (N, h, w, 3) of a small grid.

    j_from_i and pinholes (of that grid) as above; edge_step: depth steps where no surface is;
    tolerance: relative error at which what another view says counts a quarter.
    """
    views, height, width, _ = _shape(points, "points", (None, None, None, 3))
    points = _input(points, "points", np.float32, (views, height, width, 3))
    j_from_i = _input(j_from_i, "j_from_i", np.float32, (views, views, 3, 4))
    pinholes = _input(pinholes, "pinholes", np.float32, (views, 4))
    factor = np.empty((views, height, width), np.float32)
    library().fusion_factors(
        _at(points), _i64(views), _i64(height), _i64(width), _at(j_from_i), _at(pinholes),
        _f32(edge_step), _f32(tolerance), _at(factor),
    )  # fmt: skip
    return factor


def scale_points(points: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """float32 (N, H, W, 3): points times factor (N, h, w), which is read linearly in between."""
    views, height, width, _ = _shape(points, "points", (None, None, None, 3))
    _, rows, columns = _shape(factor, "factor", (views, None, None))
    points = _input(points, "points", np.float32, (views, height, width, 3))
    factor = _input(factor, "factor", np.float32, (views, rows, columns))
    out = np.empty_like(points)
    library().scale_points(
        _at(points), _i64(views), _i64(height), _i64(width), _at(factor), _i64(rows),
        _i64(columns), _at(out),
    )  # fmt: skip
    return out


def resize_lanczos(image: np.ndarray, width: int, height: int, out: np.ndarray) -> None:
    """Resize uint8 (h, w, 3) into uint8 (height, width, 3), byte for byte as Pillow 13."""
    rows, columns, _ = _shape(image, "image", (None, None, 3))
    image = _input(image, "image", np.uint8, (rows, columns, 3))
    _output(out, "out", np.uint8, (_positive(height, "height"), _positive(width, "width"), 3))
    _positive(rows * columns, "pixels of the image")
    library().resize_lanczos(
        _at(image), _i64(rows), _i64(columns), _at(out), _i64(height), _i64(width)
    )


def fit_view(
    source: np.ndarray,
    target: np.ndarray,
    weights: np.ndarray,
    ranges: np.ndarray,
    directions: np.ndarray,
    blocks: np.ndarray,
    centre: np.ndarray,
    *,
    robust_steps: int,
    polish_steps: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Robust similarity target_from_source over the points of one view; None on a line.

    source, target float64 (n, 3), weights float64 (n,); ranges (n,) and directions (n, 3) of the
    target's points from the camera at centre (3,); blocks int64 (n,): the patch of each point.
    (fit (13,): scale, rotation, translation; hessian (7, 7); curvature (7, 7); gradient summed up
    by patch (patches, 7)).
    """
    (count,) = _shape(weights, "weights", (None,))
    arrays = [
        _input(source, "source", np.float64, (count, 3)),
        _input(target, "target", np.float64, (count, 3)),
        _input(weights, "weights", np.float64, (count,)),
        _input(ranges, "ranges", np.float64, (count,)),
        _input(directions, "directions", np.float64, (count, 3)),
        _input(blocks, "blocks", np.int64, (count,)),
    ]
    centre = _input(centre, "centre", np.float64, (3,))
    patches = int(blocks.max(initial=0)) + 1
    _below(arrays[5], patches, "blocks")
    fit, hessian, curvature = np.empty(13), np.empty((7, 7)), np.empty((7, 7))
    pulls = np.empty((patches, 7))
    done = _function("fit_view", ctypes.c_int32)(
        *(_at(each) for each in arrays), _i64(count), _at(centre), _i64(patches),
        _i64(_positive(robust_steps, "robust_steps")), _i64(polish_steps), _at(fit),
        _at(hessian), _at(curvature), _at(pulls),
    )  # fmt: skip
    return (fit, hessian, curvature, pulls) if done else None


def covisibility(
    points: np.ndarray,
    colours: np.ndarray,
    poses: np.ndarray,
    pinholes: np.ndarray,
    *,
    step: int,
    agreement: float,
    nearness: float,
    min_points: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(shared, alike, stretch) float64 (N, N) of every step-th point of view i in view j.

    points float32 (N, H, W, 3), colours uint8 alike, poses float32 (N, 4, 4) window_from_camera,
    pinholes float32 (N, 4), fx 0 where unknown. shared: share on j's surface, within `agreement`
    of the logarithm of depth; alike: correlation of brightness there; stretch: median logarithm
    of the depth ratio of the points within `nearness`. NaN where unknown or too few.
    """
    views, height, width, _ = shape = _shape(points, "points", (None, None, None, 3))
    points = _input(points, "points", np.float32, shape)
    colours = _input(colours, "colours", np.uint8, shape)
    poses = _input(poses, "poses", np.float32, (views, 4, 4))
    pinholes = _input(pinholes, "pinholes", np.float32, (views, 4))
    found = np.empty((3, views, views))
    library().covisibility(
        _at(points), _at(colours), _at(poses), _at(pinholes), _i64(views), _i64(height),
        _i64(width), _i64(_positive(step, "step")), _f64(agreement), _f64(nearness),
        _i64(_positive(min_points, "min_points")), *(_at(each) for each in found),
    )  # fmt: skip
    return found[0], found[1], found[2]


def surfaces(
    points: np.ndarray, poses: np.ndarray, *, reach: int, step: int, max_bend: float, side: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(places float64 (n, 3), normals float64 (n, 3), blocks int64 (n,)) in the window's frame.

    Every step-th pixel of points float32 (N, H, W, 3) whose depth bends by less than max_bend of
    itself over `reach` pixels to either side; poses float32 (N, 4, 4) window_from_camera. A block
    is one of side x side patches of a view.
    """
    views, height, width, _ = _shape(points, "points", (None, None, None, 3))
    points = _input(points, "points", np.float32, (views, height, width, 3))
    poses = _input(poses, "poses", np.float32, (views, 4, 4))
    reach, step = _positive(reach, "reach"), _positive(step, "step")
    room = views * -(-height // step) * -(-width // step)
    places, normals = np.empty((room, 3)), np.empty((room, 3))
    blocks = np.empty(room, np.int64)
    size = _function("surfaces", _I64)(
        _at(points), _at(poses), _i64(views), _i64(height), _i64(width), _i64(reach), _i64(step),
        _f64(max_bend), _i64(_positive(side, "side")), _at(places), _at(normals), _at(blocks),
        _i64(room),
    )  # fmt: skip
    return places[:size], normals[:size], blocks[:size]


def structure_up(
    normals: np.ndarray, near: np.ndarray, gates_rad: Sequence[float], soft_rad: float, open: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """(up (3,), off_rad (n,), walls (3, 3), weight of level surfaces) of normals float64 (n, 3).

    near (3,) unit: where the search starts; see surfaces.cpp.
    """
    count, _ = _shape(normals, "normals", (None, 3))
    normals = _input(normals, "normals", np.float64, (count, 3))
    up = np.array(_input(near, "near", np.float64, (3,)))
    gates = np.array(gates_rad, np.float64)
    off, walls, level = np.empty(count), np.empty((3, 3)), np.empty(1)
    library().structure_up(
        _at(normals), _i64(count), _at(gates), _i64(len(gates)), _f64(soft_rad), _f64(open),
        _at(up), _at(off), _at(walls), _at(level),
    )  # fmt: skip
    return up, off, walls, float(level[0])


def pinholes_of_points(points: np.ndarray, step: int) -> np.ndarray:
    """float64 (N, 4): fx, fy, cx, cy by least squares of points (N, H, W, 3); not finite where
    no camera explains them."""
    views, height, width, _ = _shape(points, "points", (None, None, None, 3))
    points = _input(points, "points", np.float32, (views, height, width, 3))
    pinholes = np.empty((views, 4))
    library().pinholes_of_points(
        _at(points), _i64(views), _i64(height), _i64(width), _i64(_positive(step, "step")),
        _at(pinholes),
    )  # fmt: skip
    return pinholes


# Checks and conversions

_I64, _i64 = ctypes.c_int64, ctypes.c_int64
_f32, _f64 = ctypes.c_float, ctypes.c_double


def _function(name: str, result: type):
    function = getattr(library(), name)
    function.restype = result
    return function


def _at(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _shape(array: np.ndarray, name: str, wanted: tuple[int | None, ...]) -> tuple[int, ...]:
    shape = np.shape(array)
    fits = len(shape) == len(wanted) and all(
        want is None or have == want for have, want in zip(shape, wanted, strict=True)
    )
    if not fits:
        text = "x".join("?" if n is None else str(n) for n in wanted)
        raise ValueError(f"{name} is {shape}; it must be {text}")
    return shape


def _input(array: np.ndarray, name: str, dtype, wanted: tuple[int | None, ...]) -> np.ndarray:
    """The array, or a copy in C order; ValueError when type or shape do not fit."""
    _shape(array, name, wanted)
    if array.dtype != dtype:
        raise ValueError(f"{name} is {array.dtype}; it must be {np.dtype(dtype)}")
    return np.ascontiguousarray(array)


def _output(array: np.ndarray, name: str, dtype, wanted: tuple[int | None, ...]) -> None:
    """ValueError for an array that a kernel cannot read or write where it lies."""
    _shape(array, name, wanted)
    if array.dtype != dtype or not (array.flags.c_contiguous and array.flags.writeable):
        raise ValueError(
            f"{name} is {array.dtype}, contiguous {array.flags.c_contiguous}, writeable "
            f"{array.flags.writeable}; it must be {np.dtype(dtype)}, contiguous and writeable"
        )


def _plane(array: np.ndarray) -> tuple[np.ndarray, int]:
    """float32 (H, W) whose pixels lie a whole number of floats apart, and that number.

    One axis of a point map is such a plane; other arrays are copied.
    """
    if array.dtype != np.float32:
        raise ValueError(f"depth is {array.dtype}; it must be float32")
    rows, columns = array.strides
    if columns > 0 and columns % 4 == 0 and rows == columns * array.shape[1]:
        return array, columns // 4
    return np.ascontiguousarray(array), 1


def _pools(index: np.ndarray, voxels: np.ndarray, block_voxels: np.ndarray) -> None:
    _output(index, "index", np.int32, (None, CELLS_PER_BLOCK))
    _output(voxels, "voxels", VOXEL, (None,))
    _output(block_voxels, "block_voxels", np.int32, (len(index),))


def _views(views: Sequence[int], count: int) -> np.ndarray:
    index = np.array(views, np.int64).reshape(-1)
    _below(index, count, "views")
    return index


def _below(index: np.ndarray, end: int, name: str) -> None:
    if index.size and not (index.min() >= 0 and index.max() < end):
        raise ValueError(f"{name} are {index.min()} to {index.max()}; they must be 0 to {end - 1}")


def _positive(value: int, name: str) -> int:
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")
    return int(value)


def _length(value: float) -> float:
    if not 0 < value < np.inf:
        raise ValueError(f"voxel size is {value}; it must be a length above 0")
    return float(value)
