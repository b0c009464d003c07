# SPDX-License-Identifier: Apache-2.0
"""Maps of a window's pixels that stay on the device where a network made them.

Kernels whose maps may lie there ask these for the result; all other code reads them like an array,
and gets on the host what it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from g2vlm_ros.kernels.checks import check_indices, input_array


class Device(Protocol):
    """What runs the kernels of window_points.cu (`inference.points_on_device.PointKernels`)."""

    memory: Any
    """Arrays on the device (`inference.tensorrt.device_memory.DeviceMemory`)."""
    table_bits: int
    """Of the hash table that the last window's cells had room in."""

    def launch(self, kernel: str, threads: int, *arguments: Any) -> None:
        """Put a kernel on the stream; arrays among the arguments are passed by address."""

    def packed(self, *arguments: Any) -> np.ndarray:
        """The bytes of a cloud (`inference.tensorrt.point_packing.PointPacker.pack`)."""


class Uploads:
    """Arrays of a window that are on the device and on the host: each is copied once."""

    def __init__(self, memory: Any):
        self._memory = memory
        self._pairs: dict[tuple[int, int], tuple[np.ndarray, Any]] = {}

    def on_device(self, host: np.ndarray) -> Any:
        """The array on the device; it must not change any more."""
        host = np.ascontiguousarray(host)
        key = host.__array_interface__["data"][0], host.nbytes
        if key not in self._pairs:
            # The one on the host is kept, so that its memory is no other's.
            device = self._memory.upload(host.view(np.uint8), "UINT8", "maps of a window")
            self._pairs[key] = host, device
        return self._pairs[key][1]


class DeviceMap:
    """float32 (N, H, W) or (N, H, W, 3) on a device; it never changes.

    Integers, slices, and pixels (integer arrays of views, or one view, rows and columns) copy
    their part to the host, anything else copies all of it. All but pixels is kept, so that it is
    copied once. Any thread may ask; what a device reports when it fails comes out of every method.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, device: Device, array: Any, uploads: Uploads):
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.ndim = len(self.shape)
        self.device, self.array, self.uploads = device, array, uploads
        self._memory = device.memory
        self._host: np.ndarray | None = None
        self._parts: dict[Any, np.ndarray] = {}

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def copied(self) -> bool:
        """Whether all of it has come to the host."""
        return self._host is not None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self._host is None:
            self._host = self._downloaded(lambda: self.array)
        host = self._host if dtype is None else self._host.astype(dtype, copy=False)
        return host.copy() if copy and host is self._host else host

    def __getitem__(self, key: Any) -> np.ndarray:
        if self._host is not None:
            return self._host[key]
        pixels = _pixels(key, self.shape)
        if pixels is not None:
            return self._at(pixels[:3], pixels[3])
        axes = _basic_slices(key, self.shape)
        if axes is None:
            return np.asarray(self)[key]
        name = tuple(each.indices(n) if isinstance(each, slice) else int(each)
                     for each, n in zip(axes, self.shape, strict=True))  # fmt: skip
        if name not in self._parts:
            index = [np.arange(n)[each] for each, n in zip(axes, self.shape, strict=True)]
            shape = [len(each) for each in index if each.ndim]
            index = [np.atleast_1d(each) for each in index]
            if [len(each) for each in index] == list(self.shape):
                return np.asarray(self)[key]
            self._parts[name] = self.taken(index).reshape(shape)
        return self._parts[name]

    def taken(self, index: Sequence[np.ndarray]) -> np.ndarray:
        """What lies where the indices of each axis meet, on the host."""
        return self._downloaded(lambda: self.take(index))

    def take(self, index: Sequence[np.ndarray]) -> Any:
        """The same on the device, (n0, n1, n2, n3)."""
        index = [*index, np.arange(1)][:4]  # a map without axes has one
        counts = [len(each) for each in index]
        part = self._memory.empty(counts, "FLOAT", "parts of maps")
        where = self._memory.upload(np.concatenate(index).astype(np.int64), "INT64", "indices")
        sizes = np.int64([*self.shape[1:3], self._channels])
        self.device.launch(
            "take_points", part.size, self.array, *sizes, where, *np.int64(counts), part
        )
        return part

    def _at(self, pixels: Sequence[np.ndarray], channel: Any) -> np.ndarray:
        """(n,) or (n, 3): pixels by their views, rows and columns."""
        index = np.zeros(1, np.int64)
        for each, size in zip(pixels, self.shape[:3], strict=True):
            place = np.where(each < 0, each + size, each).astype(np.int64)
            check_indices(place, size, "pixels")
            index = index * size + place

        def run() -> Any:
            pixels = self._memory.empty((len(index), self._channels), "FLOAT", "pixels of maps")
            where = self._memory.upload(index, "INT64", "indices")
            counts = np.int64((self._channels, len(index)))
            self.device.launch("take_pixels", len(index), self.array, where, *counts, pixels)
            return pixels

        pixels = self._downloaded(run)
        return pixels[:, 0] if self.ndim == 3 else pixels[:, channel]

    @property
    def _channels(self) -> int:
        return self.shape[3] if self.ndim == 4 else 1

    def _downloaded(self, run: Callable[[], Any]) -> np.ndarray:
        """What `run` makes on the device, read-only on the host."""
        (host,) = self._memory.guarded(lambda: self._memory.download([run()]))
        host.flags.writeable = False
        return host


class DeviceConfidence(DeviceMap):
    """Confidence float32 (N, H, W) of a window's pixels, NaN where unknown, on a device."""

    def without(self, ignored: np.ndarray) -> DeviceConfidence:
        """The same with 0 at ignored pixels, bool (N, H, W)."""
        ignored = input_array(ignored, "ignored", np.bool_, self.shape)

        def run() -> Any:
            left = self._memory.empty(self.shape, "FLOAT", "confidence")
            size = int(np.prod(self.shape))
            masks = self.uploads.on_device(ignored)
            self.device.launch("distrust", size, self.array, masks, np.int64(size), left)
            return left

        return DeviceConfidence(self.device, self._memory.guarded(run), self.uploads)


def _pixels(key: Any, shape: Sequence[int]) -> tuple | None:
    """(views, rows, columns, channel or all) of a key that lists pixels; else None."""
    if not isinstance(key, tuple) or len(key) not in (3, len(shape)):
        return None
    view, rows, columns, channel = (*key, slice(None))[:4]
    arrays = [rows, columns] if _is_integer(view) else [view, rows, columns]
    listed = all(
        isinstance(each, np.ndarray) and each.ndim == 1 and each.dtype.kind == "i"
        for each in arrays
    )
    if not listed or len({len(each) for each in arrays}) > 1:
        return None
    if len(key) > 3 and not _is_integer(channel):
        return None
    return np.asarray(view), rows, columns, channel


def _is_integer(part: Any) -> bool:
    return isinstance(part, (int, np.integer)) and not isinstance(part, bool)


def _basic_slices(key: Any, shape: Sequence[int]) -> list[int | slice] | None:
    """A key of integers and slices, one for each axis; None for any other key."""
    parts = list(key) if isinstance(key, tuple) else [key]
    if not all(each is Ellipsis or isinstance(each, slice) or _is_integer(each) for each in parts):
        return None
    if Ellipsis in parts:
        place = parts.index(Ellipsis)
        parts[place : place + 1] = [slice(None)] * (len(shape) - len(parts) + 1)
    return parts + [slice(None)] * (len(shape) - len(parts))
