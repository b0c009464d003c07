# SPDX-License-Identifier: Apache-2.0
"""Arrays on the GPU: a pool of memory, uploads and downloads, and the order between two streams.

Engines run on the compute stream, copies on the copy stream. An upload starts after everything
computed so far and the next engine starts after it, so a block of the pool may be used again as
soon as Python has let go of it.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from g2vlm_ros.inference.tensorrt.cuda import Cuda, DeviceLostError, OutOfMemoryError

Result = TypeVar("Result")

ELEMENT_BYTES = {"FLOAT": 4, "FLOAT16": 2, "BFLOAT16": 2, "UINT8": 1, "INT64": 8}
NUMPY = {
    "FLOAT": np.float32,
    "FLOAT16": np.float16,
    "BFLOAT16": np.uint16,
    "UINT8": np.uint8,
    "INT64": np.int64,
}
"""bfloat16 is kept as its 16 bits, which numpy does not know."""
BLOCK_BYTES = 256
"""TensorRT wants addresses that are multiples of this; the pool gives sizes that are."""


def to_element(array: np.ndarray, element: str) -> np.ndarray:
    """An array as the device holds it; bfloat16 rounds to nearest, ties to even."""
    if element != "BFLOAT16":
        return np.ascontiguousarray(array, NUMPY[element])
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(array), np.uint16(0x7FC0), rounded)


def from_element(array: np.ndarray, element: str) -> np.ndarray:
    """What the device held, float16 and bfloat16 as float32."""
    if element == "BFLOAT16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32) if element == "FLOAT16" else array


@dataclass(eq=False)
class DeviceArray:
    """An array on the device; its memory goes back to the pool with the last reference."""

    address: int
    shape: tuple[int, ...]
    element: str
    stage: str = ""
    """What computed it."""
    source: DeviceArray | None = None
    """What it was computed from, where that is worth knowing."""
    owner: object = field(default=None, repr=False)
    """Keeps the memory."""

    @property
    def size(self) -> int:
        """How many elements."""
        return int(np.prod(self.shape))

    @property
    def bytes(self) -> int:
        return self.size * ELEMENT_BYTES[self.element]

    def reshaped(self, *shape: int) -> DeviceArray:
        """The same memory, seen in another shape."""
        return DeviceArray(self.address, shape, self.element, self.stage, self.source, self)

    def rows(self, start: int, stop: int) -> DeviceArray:
        """A part along the first axis, in the same memory."""
        row = int(np.prod(self.shape[1:])) * ELEMENT_BYTES[self.element]
        shape = (stop - start, *self.shape[1:])
        address = self.address + start * row
        return DeviceArray(address, shape, self.element, self.stage, owner=self)


class DeviceMemory:
    """Memory and streams of one GPU for engines that run in turn."""

    def __init__(self, cuda: Cuda):
        self.cuda = cuda
        self.compute, self.copy = cuda.stream(), cuda.stream()
        self.times_s: dict[str, float] = {}
        """What each stage took when it ran last; filled when results are fetched."""
        self.bytes_up = 0
        """From the host, since the start."""
        self.bytes_down: Counter[str] = Counter()
        """To the host, by what computed them or what it is."""
        self._idle: dict[int, list[int]] = defaultdict(list)
        self._idle_host: dict[int, list[int]] = defaultdict(list)
        self._staging = np.empty(0, np.uint8)
        self._staged = 0
        self._scratch = (0, 0)
        self._pending: list[tuple[str, Any, Any]] = []
        self._timers: list[tuple[Any, Any]] = []
        self._turn = cuda.event()
        self._lock = threading.RLock()
        self.lost = ""
        """Why the context is lost, once it is."""

    def guarded(self, run: Callable[[], Result]) -> Result:
        """Runs with the context active, one thread at a time; once it was lost nothing runs."""
        with self._lock:
            self.check()
            try:
                with self.cuda.active():
                    return run()
            except DeviceLostError as error:
                self.lost = str(error)
                raise

    def check(self) -> None:
        """DeviceLostError after the context was lost."""
        if self.lost:
            raise DeviceLostError(self.lost)

    # --- memory ------------------------------------------------------------------------------

    def empty(self, shape: Sequence[int], element: str, what: str) -> DeviceArray:
        """A new array with any content. OutOfMemoryError names `what`."""
        array = DeviceArray(0, tuple(shape), element, what)
        size = -(-max(array.bytes, 1) // BLOCK_BYTES) * BLOCK_BYTES
        idle = self._idle[size]
        array.address = idle.pop() if idle else self._alloc(size, what)
        weakref.finalize(array, idle.append, array.address)
        return array

    def zeros(self, shape: Sequence[int], element: str, what: str) -> DeviceArray:
        """A new array of zeros, in the order of computing."""
        array = self.empty(shape, element, what)
        if array.bytes:
            self.cuda.zero(array.address, array.bytes, self.compute)
        return array

    def scratch(self, size: int) -> tuple[int, int]:
        """Address and size of the working memory that engines share, at least `size` bytes."""
        if self._scratch[1] < size:
            self.synchronize()
            if self._scratch[1]:
                self.cuda.free(self._scratch[0])
                self._scratch = (0, 0)
            self._scratch = (self._alloc(size, "the working memory of the engines"), size)
        return self._scratch

    def _alloc(self, size: int, what: str) -> int:
        try:
            return self.cuda.alloc(size, what)
        except OutOfMemoryError:
            self.release_idle()
            return self.cuda.alloc(size, what)

    def release_idle(self) -> None:
        """Gives memory that no array uses back to the device."""
        self.synchronize()
        for idle in self._idle.values():
            while idle:
                self.cuda.free(idle.pop())

    def close(self) -> None:
        """Gives all memory back that no array uses."""
        self.release_idle()
        if self._scratch[1]:
            self.cuda.free(self._scratch[0])
            self._scratch = (0, 0)

    # --- copies ------------------------------------------------------------------------------

    def upload(self, array: np.ndarray, element: str, what: str) -> DeviceArray:
        """An array on the device; the next engine waits for it, the caller does not."""
        data = to_element(array, element)
        target = self.empty(data.shape, element, what)
        if data.nbytes:
            staging = self._stage(data.nbytes)
            staging[:] = data.reshape(-1).view(np.uint8)
            self._after(self.copy, self.compute)
            self.cuda.upload(target.address, staging, self.copy)
            self.bytes_up += data.nbytes
            self._after(self.compute, self.copy)
        return target

    def download(self, arrays: Sequence[DeviceArray]) -> list[np.ndarray]:
        """The arrays on the host, after all that was computed for them."""
        self._after(self.copy, self.compute)
        hosts = []
        for array in arrays:
            host = self._pinned(array.bytes)
            if array.bytes:
                self.cuda.download(host, array.address, self.copy)
                self.bytes_down[array.stage] += array.bytes
            hosts.append(host.view(NUMPY[array.element]).reshape(array.shape))
        self.cuda.synchronize(self.copy)
        self._staged = 0
        self._take_times()
        return [from_element(h, a.element) for h, a in zip(hosts, arrays, strict=True)]

    def duplicate(self, target: DeviceArray, source: DeviceArray) -> None:
        """Copies on the device, in the order of computing."""
        if source.bytes:
            self.cuda.copy(target.address, source.address, source.bytes, self.compute)

    def copy_tokens(
        self, target: DeviceArray, place: int, source: DeviceArray, start: int, tokens: int
    ) -> None:
        """Copies tokens of arrays (layers, kv_heads, any, D), from one place to another."""
        *blocks, _, channels = source.shape
        row = channels * ELEMENT_BYTES[source.element]
        if tokens:
            self.cuda.copy_rows(
                (target.address + place * row, target.shape[2] * row),
                (source.address + start * row, source.shape[2] * row),
                tokens * row,
                int(np.prod(blocks)),
                self.compute,
            )

    def _pinned(self, size: int) -> np.ndarray:
        """uint8 (size,) of pinned host memory, which comes back when the array is let go."""
        rounded = max(1 << (size - 1).bit_length(), BLOCK_BYTES) if size else BLOCK_BYTES
        idle = self._idle_host[rounded]
        address = idle.pop() if idle else self.cuda.alloc_host(rounded)
        block = (ctypes.c_uint8 * size).from_address(address)
        weakref.finalize(block, idle.append, address)
        return np.frombuffer(block, np.uint8)

    def _stage(self, size: int) -> np.ndarray:
        """Pinned memory that no upload under way reads."""
        if self._staged + size > self._staging.size:
            self.cuda.synchronize(self.copy)
            self._staged = 0
            if size > self._staging.size:
                self._staging = self._pinned(max(size, 2 * self._staging.size))
        self._staged += size
        return self._staging[self._staged - size : self._staged]

    # --- order and time ----------------------------------------------------------------------

    def synchronize(self) -> None:
        self.cuda.synchronize(self.copy)
        self.cuda.synchronize(self.compute)
        self._staged = 0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Measures what is put on the compute stream inside."""
        start, end = self._timers.pop() if self._timers else (self.cuda.event(), self.cuda.event())
        self.cuda.record(start, self.compute)
        yield
        self.cuda.record(end, self.compute)
        self._pending.append((stage, start, end))

    def _take_times(self) -> None:
        for stage, start, end in self._pending:
            self.times_s[stage] = self.cuda.elapsed_s(start, end)
            self._timers.append((start, end))
        self._pending.clear()

    def _after(self, later: Any, earlier: Any) -> None:
        # A wait means what the event stands for when it is queued, so one event serves all.
        self.cuda.record(self._turn, earlier)
        self.cuda.wait(later, self._turn)
