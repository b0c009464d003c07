# SPDX-License-Identifier: Apache-2.0
"""Point maps of a window that stay on the GPU where the network made them.

The host gets what it asks for: parts of the maps (registration and refinement look at small
grids), their confidence, and in the end the cells of the map that they fall into, or the bytes of
a cloud if somebody listens. What the steps are is said in kernels/window_points.cu. A backend
calls `PointKernels.points`; where kernels cannot be compiled points go to the host as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from g2vlm_ros.inference.tensorrt.device_memory import DeviceArray, DeviceMemory
from g2vlm_ros.inference.tensorrt.point_packing import THREADS, PointPacker
from g2vlm_ros.kernels.agreement import nearest_pixels
from g2vlm_ros.kernels.checks import input_array, length, positive, shape_of, view_indices
from g2vlm_ros.kernels.device_points import DevicePoints
from g2vlm_ros.kernels.device_source import WINDOW_POINTS, device_source
from g2vlm_ros.kernels.records import CELL, SIGHTING

KERNELS = (
    "find_not_finite",
    "take_points",
    "set_rays",
    "scale_points",
    "surface_grid",
    "fusion_factors",
    "multi_view_confidence",
    "see_grid",
    "add_points",
    "compact_cells",
)
FIRST_BITS, MAX_BITS = 16, 26
"""Of a hash table of cells: twice as many entries as a window of the released size has cells, and
no more than a GPU has memory for (5 GiB)."""


class PointKernels:
    """The kernels of window_points.cu and of `PointPacker`, compiled for a device."""

    def __init__(self, device: DeviceMemory):
        self.device, cuda = device, device.cuda
        module = cuda.compile(device_source(WINDOW_POINTS))
        self._functions = {name: cuda.function(module, name) for name in KERNELS}
        self.packer = PointPacker(device)
        self.table_bits = FIRST_BITS
        """Of the table that the last window's cells had room in."""

    def points(self, array: DeviceArray) -> PointsOnDevice:
        """Point maps FLOAT (N, H, W, 3) as a window has them; their memory is theirs from now."""
        return PointsOnDevice(self, array, Uploads(self.device))

    def copy_of(self, address: int, shape: Sequence[int]) -> PointsOnDevice:
        """The same of float32 memory that is another's, who may use it again afterwards."""

        def run() -> PointsOnDevice:
            duplicate = self.device.empty(shape, "FLOAT", "points of a window")
            self.device.duplicate(duplicate, DeviceArray(address, tuple(shape), "FLOAT"))
            self.device.synchronize()
            return self.points(duplicate)

        return self.device.guarded(run)

    def launch(self, kernel: str, threads: int, *arguments: Any) -> None:
        """Put a kernel on the stream; arrays among the arguments are passed by address."""
        values = [np.uint64(a.address) if isinstance(a, DeviceArray) else a for a in arguments]
        blocks = -(-threads // THREADS)
        if blocks:
            self.device.cuda.launch(
                self._functions[kernel], blocks, THREADS, values, self.device.compute
            )

    def is_finite(self, array: DeviceArray) -> bool:
        """Whether all values of a FLOAT array are finite; 4 bytes come to the host."""
        flag = self.device.zeros((4,), "UINT8", "a flag")
        self.launch("find_not_finite", array.size, array, np.int64(array.size), flag)
        return not self.device.download([flag])[0].any()


class Uploads:
    """Arrays of a window that are on the device and on the host: each is copied once."""

    def __init__(self, device: DeviceMemory):
        self._device = device
        self._pairs: dict[tuple, tuple[np.ndarray, DeviceArray]] = {}

    def on_device(self, host: np.ndarray) -> DeviceArray:
        """The array on the device; it must not change any more."""
        host = np.ascontiguousarray(host)
        key = _memory(host)
        if key not in self._pairs:
            self.add(host, self._device.upload(host.view(np.uint8), "UINT8", "maps of a window"))
        return self._pairs[key][1]

    def add(self, host: np.ndarray, device: DeviceArray) -> None:
        """Both hold the same; the one on the host is kept, so that its memory is no other's."""
        self._pairs[_memory(host)] = host, device


def _memory(array: np.ndarray) -> tuple:
    return array.__array_interface__["data"][0], array.nbytes


class PointsOnDevice(DevicePoints):
    """See `DevicePoints`; may be asked by any thread, as `DeviceMemory.guarded` sees to it."""

    def __init__(self, kernels: PointKernels, array: DeviceArray, uploads: Uploads):
        self.shape = shape_of(array, "points", (None, None, None, 3))
        self.kernels, self._array, self._uploads = kernels, array, uploads
        self._device = kernels.device
        self._host: np.ndarray | None = None

    # --- to the host -------------------------------------------------------------------------

    @property
    def copied(self) -> bool:
        """Whether all of it has come to the host."""
        return self._host is not None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self._host is None:
            (host,) = self._device.guarded(lambda: self._device.download([self._array]))
            host.flags.writeable = False
            self._host = host
        host = self._host if dtype is None else self._host.astype(dtype, copy=False)
        return host.copy() if copy and host is self._host else host

    def __getitem__(self, key: Any) -> np.ndarray:
        axes = _basic_slices(key, self.shape)
        if self._host is not None or axes is None:
            return np.asarray(self)[key]
        index = [np.arange(n)[each] for n, each in zip(self.shape, axes, strict=True)]
        shape = [len(each) for each in index if each.ndim]
        index = [np.atleast_1d(each) for each in index]
        if [len(each) for each in index] == list(self.shape):
            return np.asarray(self)[key]
        return self._taken(index).reshape(shape)

    def picked(self, rows: int, columns: int) -> np.ndarray:
        views, height, width, _ = self.shape
        index = [np.arange(views), nearest_pixels(rows, height), nearest_pixels(columns, width)]
        return self._taken([*index, np.arange(3)])

    def _taken(self, index: Sequence[np.ndarray]) -> np.ndarray:
        def run() -> np.ndarray:
            return self._device.download([self._take(index)])[0]

        return self._device.guarded(run)

    def _take(self, index: Sequence[np.ndarray]) -> DeviceArray:
        counts = [len(each) for each in index]
        part = self._device.empty(counts, "FLOAT", "parts of point maps")
        where = self._device.upload(np.concatenate(index).astype(np.int64), "INT64", "indices")
        sizes = np.array([*self.shape[1:3]], np.int64)
        self.kernels.launch(
            "take_points", part.size, self._array, *sizes, where, *np.int64(counts), part
        )
        return part

    # --- moved, on the device ----------------------------------------------------------------

    def on_rays(self, pinholes: np.ndarray) -> PointsOnDevice:
        pinholes = input_array(pinholes, "pinholes", np.float32, (self.shape[0], 4))

        def run() -> DeviceArray:
            lenses = self._device.upload(pinholes, "FLOAT", "pinholes")
            moved = self._like("points on rays")
            size = np.int64(self.shape[:3])
            self.kernels.launch("set_rays", size.prod(), self._array, lenses, *size, moved)
            return moved

        return self._with(self._device.guarded(run))

    def scaled(self, factor: np.ndarray) -> PointsOnDevice:
        shape_of(factor, "factor", (self.shape[0], None, None))
        factor = input_array(factor, "factor", np.float32, factor.shape)
        return self._with(
            self._device.guarded(
                lambda: self._scale(self._device.upload(factor, "FLOAT", "factors on depth"))
            )
        )

    def _scale(self, factor: DeviceArray) -> DeviceArray:
        moved, size = self._like("scaled points"), np.int64(self.shape[:3])
        grid = np.int64(factor.shape[1:])
        self.kernels.launch("scale_points", size.prod(), self._array, factor, *size, *grid, moved)
        return moved

    def fused(
        self,
        j_from_i: np.ndarray,
        pinholes: np.ndarray,
        size: tuple[int, int],
        edge_step: float,
        tolerance: float,
    ) -> PointsOnDevice:
        views, height, width, _ = self.shape
        index = [np.arange(views), nearest_pixels(size[0], height)]
        index += [nearest_pixels(size[1], width), np.arange(3)]
        j_from_i = input_array(j_from_i, "j_from_i", np.float32, (views, views, 3, 4))
        pinholes = input_array(pinholes, "pinholes", np.float32, (views, 4))

        def run() -> DeviceArray:
            device, launch = self._device, self.kernels.launch
            with device.timed("fuse_depth"):
                small = self._take(index)
                grid = (views, *size)
                nearness = device.empty(grid, "FLOAT", "inverse depth")
                edge = device.empty(grid, "UINT8", "depth edges")
                factor = device.empty(grid, "FLOAT", "factors on depth")
                affines = device.upload(j_from_i, "FLOAT", "poses of views")
                lenses = device.upload(pinholes, "FLOAT", "pinholes")
                counts = np.int64(grid)
                launch(
                    "surface_grid",
                    factor.size,
                    small,
                    *counts,
                    np.float32(edge_step),
                    nearness,
                    edge,
                )
                launch(
                    "fusion_factors",
                    factor.size,
                    small,
                    nearness,
                    edge,
                    affines,
                    lenses,
                    *counts,
                    np.float32(tolerance),
                    factor,
                )
                return self._scale(factor)

        return self._with(self._device.guarded(run))

    def _like(self, what: str) -> DeviceArray:
        return self._device.empty(self.shape, "FLOAT", what)

    def _with(self, array: DeviceArray) -> PointsOnDevice:
        return PointsOnDevice(self.kernels, array, self._uploads)

    # --- what they give ----------------------------------------------------------------------

    def multi_view_confidence(
        self,
        j_from_i: np.ndarray,
        pinholes: np.ndarray,
        grid_px: int,
        agreement_step: float,
        edge_step: float,
    ) -> np.ndarray:
        views, height, width, _ = self.shape
        j_from_i = input_array(j_from_i, "j_from_i", np.float32, (views, views, 3, 4))
        pinholes = input_array(pinholes, "pinholes", np.float32, (views, 4))
        threads = views * -(-height // positive(grid_px, "grid_px")) * -(-width // grid_px)

        def run() -> np.ndarray:
            device = self._device
            confidence = device.empty(self.shape[:3], "FLOAT", "confidence")
            self.kernels.launch(
                "multi_view_confidence",
                threads,
                self._array,
                device.upload(j_from_i, "FLOAT", "poses of views"),
                device.upload(pinholes, "FLOAT", "pinholes"),
                *np.int64((views, height, width, grid_px)),
                *np.float32((agreement_step, edge_step)),
                confidence,
            )
            (host,) = device.download([confidence])
            self._uploads.add(host, confidence)
            return host

        return self._device.guarded(run)

    def seen_grid(self, poses: np.ndarray, pinholes: np.ndarray, step: int) -> np.ndarray:
        views, height, width, _ = self.shape
        poses = input_array(poses, "poses", np.float32, (views, 4, 4))
        pinholes = input_array(pinholes, "pinholes", np.float32, (views, 4))
        grid = (views, views, -(-height // positive(step, "step")), -(-width // step))

        def run() -> np.ndarray:
            device = self._device
            sightings = device.empty((*grid, SIGHTING.itemsize), "UINT8", "sightings")
            self.kernels.launch(
                "see_grid",
                int(np.prod(grid)),
                self._array,
                device.upload(poses, "FLOAT", "poses of views"),
                device.upload(pinholes, "FLOAT", "pinholes"),
                *np.int64((views, height, width, step)),
                sightings,
            )
            return device.download([sightings])[0].reshape(-1).view(SIGHTING).reshape(grid)

        return self._device.guarded(run)

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
        index = view_indices(views, self.shape[0])
        colours = input_array(colours, "colours", np.uint8, self.shape)
        confidence = input_array(confidence, "confidence", np.float32, self.shape[:3])
        if ignored is not None:
            ignored = input_array(ignored, "ignored", np.bool_, self.shape[:3])
        affines = input_array(affines, "affines", np.float32, (len(index), 3, 4))
        per_depth = input_array(per_depth, "per_depth", np.float64, (len(index),))
        inverse_size = 1.0 / length(voxel_size)

        def run() -> tuple[np.ndarray, int, int]:
            on_device, upload = self._uploads.on_device, self._device.upload
            arguments = (
                self._array,
                on_device(colours),
                on_device(confidence),
                np.uint64(0) if ignored is None else on_device(ignored),
                upload(index, "INT64", "views"),
                upload(affines, "FLOAT", "poses in the map"),
                upload(per_depth.view(np.uint8), "UINT8", "samples"),
                *np.int64((len(index), *self.shape[1:3])),
                *np.float32((max_edge_step, min_confidence, contradicted, max_depth)),
                np.float64(inverse_size),
            )
            while True:
                cells, outside, full = self._sums(arguments, stamp_ns, window)
                if not full:
                    return cells, int(cells["count"].sum()), outside
                if self.kernels.table_bits >= MAX_BITS:
                    raise ValueError(f"a window falls into more than {1 << MAX_BITS} cells")
                self.kernels.table_bits = min(self.kernels.table_bits + 2, MAX_BITS)

        return self._device.guarded(run)

    def _sums(self, arguments: tuple, stamp_ns: int, window: int) -> tuple[np.ndarray, int, bool]:
        """CELL (m,), points out of range, whether the table was too small for more."""
        device, launch, bits = self._device, self.kernels.launch, self.kernels.table_bits
        entries = 1 << bits
        table = device.zeros((entries, CELL.itemsize), "UINT8", "sums of cells")
        cells = device.empty((entries, CELL.itemsize), "UINT8", "cells")
        outcome = device.zeros((12,), "UINT8", "counts of cells")
        threads = int(np.prod([int(n) for n in arguments[7:10]]))
        with device.timed("map_cells"):
            launch("add_points", threads, *arguments, table, np.int32(bits), outcome)
            launch(
                "compact_cells",
                entries,
                table,
                np.int32(bits),
                np.int64(stamp_ns),
                np.int32(window),
                cells,
                np.int64(entries),
                outcome,
            )
        count, outside, full = device.download([outcome])[0].view(np.int32).tolist()
        (rows,) = device.download([cells.rows(0, count)])
        if 2 * count > entries and bits < MAX_BITS:  # the next window would search it too long
            self.kernels.table_bits = bits + 1
        return rows.reshape(-1).view(CELL), outside, bool(full)

    def packed(
        self,
        views: Sequence[int],
        colours: np.ndarray,
        confidence: np.ndarray,
        affines: np.ndarray,
        min_confidence: float,
        edge_step: float,
    ) -> np.ndarray:
        index = view_indices(views, self.shape[0])
        shape = (len(index), *self.shape[1:])
        colours = input_array(colours, "colours", np.uint8, shape)
        confidence = input_array(confidence, "confidence", np.float32, shape[:3])
        affines = input_array(
            affines.astype(np.float32), "affines", np.float32, (len(index), 3, 4)
        )
        limits = (min_confidence, edge_step)
        return self._device.guarded(
            lambda: self.kernels.packer.pack(
                self._array, index.tolist(), colours, confidence, affines, *limits
            )
        )


def _basic_slices(key: Any, shape: Sequence[int]) -> list[int | slice] | None:
    """A key of integers and slices, one for each axis; None for any other key."""
    parts = list(key) if isinstance(key, tuple) else [key]
    if not all(each is Ellipsis or isinstance(each, (int, np.integer, slice)) for each in parts):
        return None
    if Ellipsis in parts:
        place = parts.index(Ellipsis)
        parts[place : place + 1] = [slice(None)] * (len(shape) - len(parts) + 1)
    return parts + [slice(None)] * (len(shape) - len(parts))
