# SPDX-License-Identifier: Apache-2.0
"""The kernels for point maps on the processor: compiled as C++, where memory of the host stands
for a device's. By this the tests, and `benchmarks.gpu --device cpu`, run what a GPU would,
one thread after the other."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from g2vlm_ros.inference.tensorrt.cuda import Cuda, CudaError
from g2vlm_ros.kernels.build import FLAGS, SAME_EVERYWHERE
from g2vlm_ros.kernels.device_source import kernels_of

TYPES = {
    "int64_t": (np.int64, ctypes.c_int64),
    "int32_t": (np.int32, ctypes.c_int32),
    "int": (np.int32, ctypes.c_int32),
    "float": (np.float32, ctypes.c_float),
    "double": (np.float64, ctypes.c_double),
}
"""Of kernels' parameters: what numpy passes for them, and ctypes. Pointers are np.uint64."""


class HostKernels:
    """CUDA C++ whose kernels a processor runs; CudaError with the compiler's first complaint.

    threads: how many share a kernel, where its source lets them (device_kernel.cuh).
    """

    def __init__(self, source: str, threads: int = 1):
        self._library = _compiled(source)
        self._threads = threads if hasattr(self._library, "take_part") else 1
        self._parameters = {
            name: [_type_of(each) for each in parameters]
            for name, parameters in kernels_of(source).items()
        }

    def run(self, name: str, arguments: Sequence[np.generic]) -> None:
        """A kernel with all its threads. The arguments are those of `Cuda.launch`, and must be of
        the very types that a device would read from their memory."""
        parameters = self._parameters[name]
        kinds = [each.dtype for each in arguments]
        if kinds != [kind for kind, _ in parameters]:
            expected = [np.dtype(kind).name for kind, _ in parameters]
            raise CudaError(f"{name} takes {expected}, not {[str(kind) for kind in kinds]}")
        values = [kind(v.item()) for (_, kind), v in zip(parameters, arguments, strict=True)]
        kernel = getattr(self._library, name)
        if self._threads == 1:
            kernel(*values)
            return
        start = threading.Barrier(self._threads)

        def share(part: int) -> None:
            self._library.take_part(ctypes.c_int64(part), ctypes.c_int64(self._threads))
            start.wait()
            kernel(*values)

        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(share, range(self._threads)))


def _type_of(parameter: str) -> tuple[type, type]:
    if "*" in parameter:
        return np.uint64, ctypes.c_void_p
    return TYPES[parameter.split()[-2]]


@cache
def _compiled(source: str) -> ctypes.CDLL:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise CudaError("there is no C++ compiler to compile device kernels for the processor")
    folder = Path(tempfile.mkdtemp(prefix="device-kernels-"))
    try:
        name = hashlib.sha256(source.encode()).hexdigest()[:16]
        file, library = folder / f"{name}.cpp", folder / f"{name}.so"
        file.write_text(source)
        flags = [*FLAGS, SAME_EVERYWHERE, "-Wall", "-Wextra", "-fvisibility=default"]
        command = [compiler, "-shared", *flags, str(file), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or done.stderr:
            raise CudaError(f"device kernels do not compile as C++: {done.stderr[:500]}")
        return ctypes.CDLL(str(library))
    finally:
        shutil.rmtree(folder)


class HostCuda(Cuda):
    """A device that is the processor: everything is done when its call returns.

    threads: how many share a kernel, so that they may disturb each other as those of a GPU.
    """

    backend, gpu, capability, driver = "host", "the processor", "0.0", "0"

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._blocks: dict[int, np.ndarray] = {}

    def active(self) -> AbstractContextManager[None]:
        return nullcontext()

    def memory(self) -> tuple[int, int]:
        return 1 << 30, 1 << 30

    def alloc(self, size: int, what: str) -> int:
        block = np.empty(size + 256, np.uint8)
        address = block.ctypes.data + -block.ctypes.data % 256
        self._blocks[address] = block
        return address

    def alloc_host(self, size: int) -> int:
        return self.alloc(size, "the host")

    def free(self, address: int) -> None:
        del self._blocks[address]

    def stream(self) -> int:
        return 0

    def handle(self, stream: int) -> int:
        return stream

    def synchronize(self, stream: int) -> None:
        """Nothing is ever under way."""

    def event(self) -> list[float]:
        return [0.0]

    def record(self, event: list[float], stream: int) -> None:
        event[0] = time.perf_counter()

    def wait(self, stream: int, event: list[float]) -> None:
        """Nothing is ever under way."""

    def elapsed_s(self, start: list[float], end: list[float]) -> float:
        return end[0] - start[0]

    def upload(self, address: int, host: np.ndarray, stream: int) -> None:
        ctypes.memmove(address, host.ctypes.data, host.nbytes)

    def download(self, host: np.ndarray, address: int, stream: int) -> None:
        ctypes.memmove(host.ctypes.data, address, host.nbytes)

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        ctypes.memmove(to, source, size)

    def copy_rows(
        self, to: tuple[int, int], source: tuple[int, int], width: int, rows: int, stream: int
    ) -> None:
        for row in range(rows):
            ctypes.memmove(to[0] + row * to[1], source[0] + row * source[1], width)

    def zero(self, address: int, size: int, stream: int) -> None:
        ctypes.memset(address, 0, size)

    def compile(self, source: str) -> HostKernels:
        return HostKernels(source, self._threads)

    def function(self, module: HostKernels, name: str) -> tuple[HostKernels, str]:
        return module, name

    def launch(
        self,
        function: tuple[HostKernels, str],
        blocks: int,
        threads: int,
        arguments: Sequence[Any],
        stream: int,
    ) -> None:
        kernels, name = function
        kernels.run(name, arguments)
