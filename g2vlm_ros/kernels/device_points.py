# SPDX-License-Identifier: Apache-2.0
"""Point maps of a window on the device where a network made them (window_points.cu).

The host gets what it asks for: parts of the maps (registration and refinement look at small
grids), and in the end the cells of the map that they fall into, or the bytes of a cloud if
somebody listens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from g2vlm_ros.kernels.cells import PACKED_CELL_BYTES, unpacked_cells
from g2vlm_ros.kernels.checks import (
    input_array,
    length,
    nearest_pixels,
    positive,
    shape_of,
    view_indices,
)
from g2vlm_ros.kernels.device_maps import DeviceConfidence, DeviceMap
from g2vlm_ros.kernels.records import CELL, NORMAL, ROW_LINES, SIGHTING

MAX_BITS = 26
"""Of a hash table of cells: no more than a GPU has memory for (5 GiB)."""


class DevicePoints(DeviceMap):
    """Point maps float32 (N, H, W, 3); what has a namesake in `agreement`, `pinholes` or
    `cells.CellSums` gives the same."""

    # --- moved, on the device ----------------------------------------------------------------

    def on_rays(self, pinholes: np.ndarray) -> DevicePoints:
        """`pinholes.points_on_rays`"""
        pinholes = input_array(pinholes, "pinholes", np.float32, (len(self), 4))

        def run() -> Any:
            lenses = self._memory.upload(pinholes, "FLOAT", "pinholes")
            moved, size = self._like("points on rays"), self._size
            self.device.launch("set_rays", size.prod(), self.array, lenses, *size, moved)
            return moved

        return self._moved(run)

    def scaled(self, factor: np.ndarray) -> DevicePoints:
        """`agreement.scale_points`"""
        shape_of(factor, "factor", (len(self), None, None))
        factor = input_array(factor, "factor", np.float32, factor.shape)
        return self._moved(
            lambda: self._scale(self._memory.upload(factor, "FLOAT", "factors on depth"))
        )

    def fused(
        self,
        j_from_i: np.ndarray,
        pinholes: np.ndarray,
        size: tuple[int, int],
        edge_step: float,
        tolerance: float,
    ) -> DevicePoints:
        """`agreement.fuse_points`"""
        index = self._nearest(*size)
        j_from_i, pinholes = self._cameras(j_from_i, pinholes)

        def run() -> Any:
            memory, launch = self._memory, self.device.launch
            with memory.timed("fuse_depth"):
                small, grid = self.take(index), (len(self), *size)
                nearness = memory.empty(grid, "FLOAT", "inverse depth")
                edge = memory.empty(grid, "UINT8", "depth edges")
                factor = memory.empty(grid, "FLOAT", "factors on depth")
                affines = memory.upload(j_from_i, "FLOAT", "poses of views")
                lenses = memory.upload(pinholes, "FLOAT", "pinholes")
                counts, surfaces = np.int64(grid), (nearness, edge)
                step = np.float32(edge_step)
                launch("surface_grid", factor.size, small, *counts, step, *surfaces)
                step = np.float32(tolerance)
                others = (*surfaces, affines, lenses, *counts, step)
                launch("fusion_factors", factor.size, small, *others, factor)
                return self._scale(factor)

        return self._moved(run)

    def _scale(self, factor: Any) -> Any:
        moved, size = self._like("scaled points"), self._size
        grid = np.int64(factor.shape[1:])
        self.device.launch("scale_points", size.prod(), self.array, factor, *size, *grid, moved)
        return moved

    def _like(self, what: str) -> Any:
        return self._memory.empty(self.shape, "FLOAT", what)

    def _moved(self, run: Callable[[], Any]) -> DevicePoints:
        return DevicePoints(self.device, self._memory.guarded(run), self.uploads)

    @property
    def _size(self) -> np.ndarray:
        return np.int64(self.shape[:3])

    def _nearest(self, rows: int, columns: int) -> list[np.ndarray]:
        """Indices of the points nearest to the pixels of another size."""
        views, height, width, _ = self.shape
        rows, columns = nearest_pixels(rows, height), nearest_pixels(columns, width)
        return [np.arange(views), rows, columns, np.arange(3)]

    def _cameras(self, j_from_i: np.ndarray, pinholes: np.ndarray) -> list[np.ndarray]:
        views = len(self)
        return [
            input_array(j_from_i, "j_from_i", np.float32, (views, views, 3, 4)),
            input_array(pinholes, "pinholes", np.float32, (views, 4)),
        ]

    # --- what they give ----------------------------------------------------------------------

    def picked(self, rows: int, columns: int, views: Sequence[int] | None = None) -> np.ndarray:
        """`agreement.pick_points`, on the host."""
        index = self._nearest(rows, columns)
        if views is not None:
            index[0] = view_indices(views, len(self))
        return self.taken(index)

    def halves(self, rows: int, columns: int, view: int) -> np.ndarray:
        """`agreement.pick_halves`"""
        index = self._nearest(rows, columns)
        index[0] = view_indices([view], len(self))

        def run() -> np.ndarray:
            part = self.take(index)
            halves = self._memory.empty((2 * part.size,), "UINT8", "points of keyframes")
            self.device.launch("halve", part.size, part, np.int64(part.size), halves)
            return self._memory.download([halves])[0]

        return self._memory.guarded(run).view(np.float16).reshape(rows, columns, 3)

    def resized(self, rows: int, columns: int) -> DevicePoints:
        """The same as `picked`, on the device."""
        index = self._nearest(rows, columns)
        return self._moved(lambda: self.take(index))

    def uneven(self, edge_step: float) -> np.ndarray:
        """bool (N, H, W), on the host: pixels that are not valid (`packing.valid_points`), and
        those beside them."""
        size = int(np.prod(self.shape[:3]))

        def run() -> np.ndarray:
            bits = self._memory.empty((-(-size // 8),), "UINT8", "depth edges")
            step = np.float32(edge_step)
            self.device.launch("uneven_bits", bits.size, self.array, *self._size, step, bits)
            return self._memory.download([bits])[0]

        bits = np.unpackbits(self._memory.guarded(run), count=size)
        return bits.view(np.bool_).reshape(self.shape[:3])

    def warped(
        self, target: int, source_from_target: np.ndarray, camera: np.ndarray, grey: np.ndarray
    ) -> np.ndarray:
        """uint8 (H, W), on the host: a source's image grey uint8 (H, W) as the target sees it.

        Linear between pixels and 0 outside, as cv2.remap of OpenCV 5 (earlier ones round places);
        the others as for `window_adjustment.see_points`.
        """
        pose = input_array(source_from_target, "source_from_target", np.float32, (3, 4))
        camera = input_array(camera, "camera", np.float32, (4,))
        grey = input_array(grey, "grey", np.uint8, self.shape[1:3])
        (target,) = view_indices([target], len(self))

        def run() -> np.ndarray:
            upload, size = self._memory.upload, np.int64((target, *self.shape[1:3]))
            image = self._memory.empty(grey.shape, "UINT8", "warped images")
            self.device.launch(
                "warp_image",
                image.size,
                self.array,
                *size,
                upload(pose, "FLOAT", "pose of a view"),
                upload(camera, "FLOAT", "pinhole of a view"),
                self.uploads.on_device(grey),
                image,
            )
            return self._memory.download([image])[0]

        return self._memory.guarded(run)

    def multi_view_confidence(
        self,
        j_from_i: np.ndarray,
        pinholes: np.ndarray,
        grid_px: int,
        agreement_step: float,
        edge_step: float,
    ) -> DeviceConfidence:
        """`agreement.multi_view_confidence`"""
        views, height, width, _ = self.shape
        j_from_i, pinholes = self._cameras(j_from_i, pinholes)
        threads = views * -(-height // positive(grid_px, "grid_px")) * -(-width // grid_px)

        def run() -> Any:
            memory = self._memory
            confidence = memory.empty(self.shape[:3], "FLOAT", "confidence")
            self.device.launch(
                "multi_view_confidence",
                threads,
                self.array,
                memory.upload(j_from_i, "FLOAT", "poses of views"),
                memory.upload(pinholes, "FLOAT", "pinholes"),
                *np.int64((views, height, width, grid_px)),
                *np.float32((agreement_step, edge_step)),
                confidence,
            )
            return confidence

        return DeviceConfidence(self.device, self._memory.guarded(run), self.uploads)

    def lines_of_rows(self, step: int) -> np.ndarray:
        """ROW_LINES (N, rows), on the host: what `pinholes.pinholes_of_points` takes."""
        grid, sizes = (len(self), -(-self.shape[1] // step)), np.int64((*self.shape[1:3], step))
        sizes = np.int64(len(self)), *sizes
        return self._records("lines_of_rows", "rows of cameras", ROW_LINES, grid, lambda: sizes)

    def normals(self, poses: np.ndarray, reach: int, step: int, max_bend: float) -> np.ndarray:
        """NORMAL (N, rows, columns), on the host: what `surfaces.surfaces` takes."""
        views, height, width, _ = self.shape
        grid = views, *(len(range(reach, n - reach, step)) for n in (height, width))
        sizes = np.int64((*grid, height, width, reach, step))

        def arguments() -> tuple:
            there = self._memory.upload(poses, "FLOAT", "poses of views")
            return there, *sizes, np.float64(max_bend)

        return self._records("surface_normals", "normals", NORMAL, grid, arguments)

    def seen_grid(self, poses: np.ndarray, pinholes: np.ndarray, step: int) -> np.ndarray:
        """`agreement.see_grid`, on the host."""
        views, height, width, _ = self.shape
        poses = input_array(poses, "poses", np.float32, (views, 4, 4))
        pinholes = input_array(pinholes, "pinholes", np.float32, (views, 4))
        grid = (views, views, -(-height // positive(step, "step")), -(-width // step))

        def arguments() -> tuple:
            upload = self._memory.upload
            there = upload(poses, "FLOAT", "poses of views"), upload(pinholes, "FLOAT", "pinholes")
            return *there, *np.int64((views, height, width, step))

        return self._records("see_grid", "sightings", SIGHTING, grid, arguments)

    def _records(
        self,
        kernel: str,
        what: str,
        kind: np.dtype,
        grid: Sequence[int],
        arguments: Callable[[], tuple],
    ) -> np.ndarray:
        """What a thread of a kernel writes for each place of a grid, on the host."""

        def run() -> np.ndarray:
            out = self._memory.empty((*grid, kind.itemsize), "UINT8", what)
            self.device.launch(kernel, int(np.prod(grid)), self.array, *arguments(), out)
            return self._memory.download([out])[0].reshape(-1).view(kind).reshape(grid)

        return self._memory.guarded(run)

    def cells(
        self,
        colours: np.ndarray,
        confidence: np.ndarray | DeviceConfidence,
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
        """`cells.CellSums.of_views`, in any order, on the host; means of cells are rounded as
        `cells.unpacked_cells` says.

        In the place of a mask of valid points it takes what makes one: depth steps above
        max_edge_step and ignored bool (N, H, W) stay out.
        """
        index = view_indices(views, len(self))
        colours = input_array(colours, "colours", np.uint8, self.shape)
        if ignored is not None:
            ignored = input_array(ignored, "ignored", np.bool_, self.shape[:3])
        affines = input_array(affines, "affines", np.float32, (len(index), 3, 4))
        per_depth = input_array(per_depth, "per_depth", np.float64, (len(index),))
        inverse_size = np.float64(1.0 / length(voxel_size))

        def run() -> tuple[np.ndarray, int, int]:
            on_device, upload = self.uploads.on_device, self._memory.upload
            arguments = (
                self.array,
                on_device(colours),
                self.confidence_there(confidence),
                np.uint64(0) if ignored is None else on_device(ignored),
                upload(index, "INT64", "views"),
                upload(affines, "FLOAT", "poses in the map"),
                upload(per_depth.view(np.uint8), "UINT8", "samples"),
                *np.int64((len(index), *self.shape[1:3])),
                *np.float32((max_edge_step, min_confidence, contradicted, max_depth)),
                inverse_size,
            )
            threads = len(index) * self.shape[1] * self.shape[2]
            while True:
                packed, outside, full = self._sums(arguments, threads, inverse_size)
                if not full:
                    cells = unpacked_cells(packed, voxel_size, stamp_ns, window)
                    return cells, int(cells["count"].sum()), outside
                if self.device.table_bits >= MAX_BITS:
                    raise ValueError(f"a window falls into more than {1 << MAX_BITS} cells")
                self.device.table_bits = min(self.device.table_bits + 2, MAX_BITS)

        return self._memory.guarded(run)

    def confidence_there(self, confidence: np.ndarray | DeviceConfidence) -> Any:
        """It on the device."""
        shape = shape_of(confidence, "confidence", self.shape[:3])
        if isinstance(confidence, DeviceMap):
            return confidence.array
        confidence = input_array(confidence, "confidence", np.float32, shape)
        return self.uploads.on_device(confidence)

    def _sums(
        self, arguments: tuple, threads: int, inverse_size: np.float64
    ) -> tuple[np.ndarray, int, bool]:
        """Packed cells uint8 (m, bytes), points out of range, whether the table was too small."""
        memory, launch, bits = self._memory, self.device.launch, self.device.table_bits
        entries = 1 << bits
        table = memory.zeros((entries, CELL.itemsize), "UINT8", "sums of cells")
        cells = memory.empty((entries, PACKED_CELL_BYTES), "UINT8", "cells")
        outcome, size = memory.zeros((12,), "UINT8", "counts of cells"), np.int32(bits)
        with memory.timed("map_cells"):
            launch("add_points", threads, *arguments, table, size, outcome)
            launch("compact_cells", entries, table, size, inverse_size, cells, outcome)
        count, outside, full = memory.download([outcome])[0].view(np.int32).tolist()
        (rows,) = memory.download([cells.rows(0, count)])
        if 2 * count > entries and bits < MAX_BITS:  # the next window would search it too long
            self.device.table_bits = bits + 1
        return rows, outside, bool(full)

    def packed(
        self,
        views: Sequence[int],
        colours: np.ndarray,
        confidence: np.ndarray | DeviceConfidence,
        ignored: np.ndarray | None,
        affines: np.ndarray,
        min_confidence: float,
        edge_step: float,
    ) -> np.ndarray:
        """uint8 (20 M,): the M valid points of V views as a dense cloud, in the pixels' order.

        colours, confidence and ignored pixels, bool or None, of all views, affines (V, 3, 4) of
        these; limits as in `geometry.point_cloud.valid_points`.
        """
        index = view_indices(views, len(self))
        colours = input_array(colours, "colours", np.uint8, self.shape)
        if ignored is not None:
            ignored = input_array(ignored, "ignored", np.bool_, self.shape[:3])
        affines = affines.astype(np.float32)
        affines = input_array(affines, "affines", np.float32, (len(index), 3, 4))

        def run() -> np.ndarray:
            on_device = self.uploads.on_device
            maps = self.array, on_device(colours), self.confidence_there(confidence)
            maps = *maps, None if ignored is None else on_device(ignored)
            return self.device.packed(*maps, index.tolist(), affines, min_confidence, edge_step)

        return self._memory.guarded(run)
