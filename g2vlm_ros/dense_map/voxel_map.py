# SPDX-License-Identifier: Apache-2.0
"""The bounded map: a voxel-hashed coloured cloud that forgets, corrects itself and tells changes.

A voxel is the confidence-weighted mean of the points that fell into it. Voxels leave when a newer
view sees through them (their count halves with each such view), when memory is short (far and old
blocks first) or by `remove`. After a loop closure the voxels of moved windows are placed anew a
few at a time, so that no update waits for it. Lengths are in map units, times in nanoseconds.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from g2vlm_ros.dense_map.deformation import Deformation, Deformations
from g2vlm_ros.dense_map.edit_rules import EditRules
from g2vlm_ros.dense_map.free_space import DepthView
from g2vlm_ros.dense_map.map_changes import POINT, ChangeSet, MapCounts
from g2vlm_ros.dense_map.voxel_fusion import PointViews
from g2vlm_ros.dense_map.voxel_grid import BLOCK_EDGE, VOXEL, VoxelGrid, pick
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.kernels.cells import CellSums, cells_of_voxels

EVICTION_SHARE = 0.02
"""Short of memory, this share of it is freed at once, so that it is not done every time."""
CARVED_BLOCKS = 1024
"""Most blocks that one view is tested against; where there are more, views take turns."""


class VoxelMap:
    """A bounded voxel map in the map frame.

    `size`: edge of a voxel, map units. `max_bytes`: bound of all pools. `min_confidence`: rays
    below it prove nothing empty. `replaced_per_update`: most voxels placed anew by `integrate`.
    Thread-safe: every method takes `lock` (re-entrant; hold it to make several calls one), results
    are copies. One thread should write; readers wait for at most one update.
    """

    def __init__(
        self,
        size: float,
        max_bytes: int,
        min_confidence: float = 0.3,
        replaced_per_update: int = 15_000,
        sums: CellSums | None = None,
    ):
        """sums: scratch memory that maps share of which one is written at a time."""
        self.lock = threading.RLock()
        self.rules: EditRules | None = None
        """What edits ask of updates; a MapEditor sets it."""
        self._max_bytes = max_bytes
        self._min_confidence = min_confidence
        self._replaced_per_update = replaced_per_update
        self._grid = VoxelGrid(size, max_bytes)
        self._revision = 0
        self._reset_revision = 0
        self._origin = np.zeros(3)
        self._corrections = Deformations()
        self._counts = MapCounts()
        self._sums = sums or CellSums()

    def __len__(self) -> int:
        return len(self._grid)

    @property
    def size(self) -> float:
        """Edge of a voxel, map units."""
        return self._grid.size

    @property
    def revision(self) -> int:
        """Rises with every change."""
        return self._revision

    @property
    def nbytes(self) -> int:
        """Memory in use; never above the bound."""
        return self._grid.nbytes

    @property
    def max_voxels(self) -> int:
        """How many voxels fit at most."""
        return self._grid.max_voxels

    @property
    def counts(self) -> MapCounts:
        """What happened since the start."""
        return self._counts

    @property
    def pending_corrections(self) -> int:
        """How many corrections some voxels still wait for."""
        return len(self._corrections)

    @property
    def settled(self) -> bool:
        """No correction waits."""
        return not self._corrections

    def reset(self) -> None:
        """Forget everything, edits included; memory goes back to the system."""
        self.replace_all(np.empty(0, np.int64), np.empty(0, VOXEL))

    def replace_all(self, keys: np.ndarray, voxels: np.ndarray) -> None:
        """Start over with these voxels in distinct cells (a loaded map); ValueError as `put`."""
        with self.lock:
            before = self._grid
            self._grid = VoxelGrid(self.size, self._max_bytes)
            try:
                self.put(keys, voxels)
            except ValueError:
                self._grid = before
                raise
            self._corrections.clear()
            self._reset_revision = self._revision
            if self.rules is not None:
                self.rules.clear()

    def integrate(
        self,
        points: np.ndarray,
        colours: np.ndarray,
        confidence: np.ndarray,
        origin: np.ndarray,
        stamp_ns: int,
        window_id: int,
    ) -> int:
        """Add the points of a window; returns the new revision.

        points float32 (..., 3) map frame, colours uint8 (..., 3), confidence float32 (...) 0..1,
        NaN where unknown; origin (3,) or (n, 3): the camera or cameras, the last being the newest,
        from which distance is judged when memory is short. Invalid points are to be left out.
        """
        views = PointViews.of_points(points, colours, confidence)
        return self.integrate_views(views, origin, stamp_ns, window_id)

    def integrate_views(
        self, views: PointViews, origin: np.ndarray, stamp_ns: int, window_id: int
    ) -> int:
        """Add views of a window, thinned out so that each voxel gets few points of each.

        origin, stamp_ns, window_id and the result as for `integrate`.
        """
        with self.lock:
            self._revision += 1
            self._origin = np.array(origin, np.float64).reshape(-1, 3)[-1]
            self._replace(self._replaced_per_update)
            cells, added, outside = views.summed(self._sums, self.size, stamp_ns, window_id)
            cells = self._screened(cells)
            self._count(integrated=added, out_of_range=outside)
            self._merge(cells)
            return self._revision

    def carve(self, view: DepthView) -> int:
        """Let a view remove what it sees through; returns how many voxels went.

        A voxel not seen as late as the view, clearly in front of the surface its ray ends on,
        loses half its count, and goes when none is left. Call it after `integrate`.
        """
        with self.lock:
            self._revision += 1
            grid = self._grid
            space = view.free_space(self._min_confidence)
            rows = grid.rows_in_view(space)
            if len(rows) > CARVED_BLOCKS:
                # Scattered, so that of several cameras none is tied to the same part for ever.
                parts = -(-len(rows) // CARVED_BLOCKS)
                rows = rows[(self._revision * 2654435761 >> 16) % parts :: parts]
            slots = grid.seen_through(space, rows, 2 * self.size, view.stamp_ns)
            voxels = grid.take(slots)
            if self.rules is not None:
                passed = np.flatnonzero(~self.rules.shields(voxels["position"]))
                slots, voxels = slots[passed], pick(voxels, passed)
            voxels["count"] //= 2
            voxels["revision"] = self._revision
            grid.put(slots, voxels)
            empty = slots[voxels["count"] == 0]
            self._grid.touch(slots, self._revision)
            self._remove(empty)
            self._count(carved=len(empty))
            return len(empty)

    def correct(self, moves: Mapping[int, Sim3]) -> int:
        """Windows moved (map_from_map: where their content was to where it belongs).

        Takes effect little by little with the next updates, nearest to the camera first, or at
        once with `settle`. A voxel moves with the window that contributed to it last.
        """
        with self.lock:
            self._revision += 1
            if moves:
                correction = Deformation.of(self._revision, moves)
                rows = self._grid.rows
                blocks = self._grid.blocks
                due = blocks["first_window"][rows] <= correction.windows[-1]
                due &= blocks["last_window"][rows] >= correction.windows[0]
                due &= blocks["stale"][rows] == 0
                blocks["stale"][rows[due]] = self._revision
                self._corrections.add(correction)
                if self.rules is not None:
                    self.rules.correct(moves)
            return self._revision

    def settle(self) -> None:
        """Apply all corrections now (for saving and editing; takes seconds on a large map)."""
        with self.lock:
            while self._corrections:
                self._revision += 1
                self._replace(len(self._grid) + 1)

    def changes(self, since: int) -> ChangeSet:
        """What changed after revision `since`; 0 gives the whole map."""
        with self.lock:
            grid = self._grid
            start_over = since < self._reset_revision
            since = 0 if start_over else since
            rows = grid.rows[grid.blocks["revision"][grid.rows] > since]
            slots = grid.slots_in(rows, since)
            return ChangeSet(
                since,
                self._revision,
                start_over,
                slots.astype(np.int32),
                grid.take(slots),
                grid.freed_since(since),
                grid.high_water,
            )

    def packed(self) -> np.ndarray:
        """POINT (n,): all voxels as points of a cloud."""
        with self.lock:
            points = np.empty(self._grid.high_water, POINT)
            return points[: self._grid.packed(points)]

    def voxels(
        self, lower: np.ndarray | None = None, upper: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(ids intp, VOXEL) of all voxels, or of those within lower..upper (3,) map frame."""
        with self.lock:
            rows = self._grid.rows
            if lower is not None:
                centre = self._grid.blocks["centre"][rows]
                half = self.size * BLOCK_EDGE
                rows = rows[((centre >= lower - half) & (centre <= upper + half)).all(1)]
            ids = self._grid.slots_in(rows)
            voxels = self._grid.take(ids)
            if lower is not None:
                within = (voxels["position"] >= lower) & (voxels["position"] <= upper)
                within = np.flatnonzero(within.all(1))
                ids, voxels = ids[within], pick(voxels, within)
            return ids, voxels

    def keys(self, ids: np.ndarray) -> np.ndarray:
        """int64: the names of the cells of voxels, the same in every map of this voxel size."""
        with self.lock:
            return self._grid.keys_of(ids)

    def keys_at(self, points: np.ndarray) -> np.ndarray:
        """int64: the names of the cells that hold points (n, 3), -1 out of the map's range."""
        return self._grid.keys_at(points)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Ids of the voxels of cells, -1 where there is none."""
        with self.lock:
            return self._grid.find(keys)

    def take(self, ids: np.ndarray) -> np.ndarray:
        """VOXEL (n,) of voxels."""
        with self.lock:
            return self._grid.take(ids)

    def remove(self, ids: np.ndarray) -> None:
        """Remove voxels."""
        with self.lock:
            self._revision += 1
            self._remove(ids)

    def put(self, keys: np.ndarray, voxels: np.ndarray) -> None:
        """Set cells to exactly these voxels, whatever was there; no order, no repeats.

        ValueError, and no change, when they do not fit into the memory bound.
        """
        with self.lock:
            grid = self._grid
            slots = grid.find(keys)
            absent = slots < 0
            needed = grid.missing_blocks(keys)
            if absent.sum() > grid.free_voxels or needed > grid.free_blocks:
                raise ValueError(
                    f"{absent.sum()} voxels in {needed} more blocks do not fit into the map's "
                    f"{self._max_bytes} bytes; raise its memory bound"
                )
            self._revision += 1
            slots[absent] = grid.add(keys[absent])
            new = voxels.copy()
            new["cell"] = grid.voxels["cell"][slots]
            new["revision"] = self._revision
            new["born"] = np.where(absent, self._revision, grid.voxels["born"][slots])
            grid.put(slots, new)
            self._grid.touch(slots, self._revision, new)

    def merge(self, positions: np.ndarray, voxels: np.ndarray) -> np.ndarray:
        """Add voxels at new positions (n, 3), each weighing what it weighed; returns their keys.

        Those that fall into one cell, or onto a voxel, become one.
        """
        with self.lock:
            self._revision += 1
            return self._merge_voxels(positions, voxels)

    def _count(self, **more: int) -> None:
        values = {name: getattr(self._counts, name) + value for name, value in more.items()}
        self._counts = replace(self._counts, **values)

    def _screened(self, cells: np.ndarray) -> np.ndarray:
        """The CELL records that edits let in, in the colours that they ask for."""
        if self.rules is None or not len(cells):
            return cells
        weight = cells["weight"][:, None]
        keep, colours = self.rules.admit(
            cells["position"] / weight, cells["colour"] / weight / 256
        )
        cells["colour"] = colours * 256 * weight
        self._count(screened=int(cells["count"][~keep].sum()))
        return cells[keep]

    def _merge(self, cells: np.ndarray) -> None:
        """Fold CELL records into their voxels, which are made where they do not exist."""
        grid = self._grid
        place = grid.find_cells(cells)
        if place.absent > grid.free_voxels or len(place.new_blocks) > grid.free_blocks:
            refused = self._make_room(cells["key"]) == -2
            if refused.any():
                self._count(refused=int(refused.sum()))
                cells = cells[~refused]
            place = grid.find_cells(cells)  # blocks may have made room
        slots = grid.add_cells(cells, place)
        if self._corrections:
            voxels = grid.take(slots)
            if self._corrections.displace(voxels):
                grid.put(slots, voxels)
        grid.fold(cells, slots, self._revision)

    def _merge_voxels(self, positions: np.ndarray, voxels: np.ndarray) -> np.ndarray:
        cells, inside = cells_of_voxels(positions, voxels, self.size)
        self._count(out_of_range=len(inside) - int(inside.sum()))
        keys = cells["key"].copy()
        self._merge(cells)
        return keys

    def _remove(self, slots: np.ndarray) -> None:
        if len(slots):
            self._grid.touch(slots, self._revision)
            self._grid.remove(slots, self._revision)

    def _make_room(self, keys: np.ndarray) -> np.ndarray:
        """Slots of distinct keys (-1 absent, -2 refused), with room made for the absent ones."""
        grid = self._grid
        slots = grid.find(keys)
        voxels, blocks = int((slots < 0).sum()), grid.missing_blocks(keys)
        if voxels <= grid.free_voxels and blocks <= grid.free_blocks:
            return slots
        self._evict(
            voxels - grid.free_voxels + EVICTION_SHARE * grid.max_voxels,
            blocks - grid.free_blocks + EVICTION_SHARE * grid.max_blocks,
        )
        slots = grid.find(keys)
        absent = np.flatnonzero(slots < 0)
        while (
            len(absent) > grid.free_voxels or grid.missing_blocks(keys[absent]) > grid.free_blocks
        ):
            absent = absent[: min(len(absent) // 2, grid.free_voxels)]
        refused = slots < 0
        refused[absent] = False
        slots[refused] = -2
        return slots

    def _evict(self, voxels: float, blocks: float) -> None:
        """Free at least so many voxels and blocks: the farthest and oldest blocks go."""
        grid = self._grid
        rows = grid.by_remoteness(self._origin)
        freed = np.cumsum(grid.blocks["voxels"][rows])
        end = max(int(np.searchsorted(freed, voxels)) + 1, int(np.ceil(blocks)))
        slots = grid.slots_in(rows[:end])
        self._remove(slots)
        self._count(evicted=len(slots))

    def _replace(self, budget: int) -> None:
        """Apply corrections to about `budget` voxels: longest waiting first, then nearest."""
        if not self._corrections:
            return
        grid, blocks = self._grid, self._grid.blocks
        displaced = self._corrections.take_displaced()
        # However much was displaced, those that wait in their cells must come to an end.
        budget = max(budget - sum(len(voxels) for _, voxels in displaced), budget // 4)
        stale = blocks["stale"][grid.rows]
        if (waiting := stale > 0).any():
            oldest = stale[waiting].min()
            self._corrections.applied_before(oldest)
            rows = grid.rows[stale == oldest]
            distance = ((blocks["centre"][rows] - self._origin) ** 2).sum(1)
            rows = rows[np.argsort(distance)]
            rows = rows[: int(np.searchsorted(np.cumsum(blocks["voxels"][rows]), budget)) + 1]
            blocks["stale"][rows] = 0
            slots = grid.slots_in(rows)
            positions, voxels, due = self._corrections.due(grid.take(slots))
            self._remove(slots[due])
            displaced.append((positions, voxels))
        elif not displaced:
            self._corrections.clear()
            return
        positions, voxels = (np.concatenate(column) for column in zip(*displaced, strict=True))
        self._merge_voxels(positions, voxels)
        self._count(replaced=len(voxels))
