# SPDX-License-Identifier: Apache-2.0
"""cuda.py over a STAND-IN for pycuda that keeps contexts as pycuda does, a stack per thread.

pycuda itself needs CUDA's headers and a driver to be built and has not run here.
"""

from __future__ import annotations

import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest

from g2vlm_ros.inference.tensorrt.cuda import (
    CudaError,
    DeviceLostError,
    OutOfMemoryError,
    PyCuda,
    open_cuda,
)
from g2vlm_ros.records import UnfitError


class Error(Exception):
    """pycuda.driver.Error"""


class NoRoomError(Error):
    """pycuda.driver.MemoryError"""


class Stacks(threading.local):
    """The contexts of each thread; pycuda aborts the process when one is left."""

    def __init__(self) -> None:
        self.contexts: list[object] = []


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> Stacks:
    """pycuda as a module, whose stacks these are."""
    stacks = Stacks()

    class Context:
        def push(self) -> None:
            stacks.contexts.append(self)

        @staticmethod
        def pop() -> None:
            stacks.contexts.pop()

    class Device:
        def __init__(self, ordinal: int):
            if ordinal:
                raise Error("cuDeviceGet failed: invalid device ordinal")

        def name(self) -> str:
            return "Stand In GPU"

        def compute_capability(self) -> tuple[int, int]:
            return 8, 7

        def retain_primary_context(self) -> Context:
            return Context()

    class Stream:
        handle = 5

        def synchronize(self) -> None:
            raise Error("cuStreamSynchronize failed: an illegal memory access was encountered")

    def mem_alloc(size: int) -> int:
        assert stacks.contexts, "no context is current"
        raise NoRoomError("cuMemAlloc failed: out of memory")

    driver = ModuleType("pycuda.driver")
    vars(driver).update(
        init=lambda: None, Device=Device, Context=Context, Error=Error, MemoryError=NoRoomError,
        Stream=Stream, mem_alloc=mem_alloc, mem_get_info=lambda: (1 << 20, 1 << 30),
        get_driver_version=lambda: 12060,
    )  # fmt: skip
    compiler = ModuleType("pycuda.compiler")

    def without_nvcc(*_: object, **__: object) -> None:
        raise OSError("[Errno 2] No such file or directory: 'nvcc'")

    compiler.SourceModule = without_nvcc
    package = ModuleType("pycuda")
    package.driver, package.compiler = driver, compiler
    for name, module in (("pycuda", package), ("pycuda.driver", driver),
                         ("pycuda.compiler", compiler)):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "cuda", None)  # cuda-python is not installed
    return stacks


def test_no_context_is_left_on_any_thread(stacks: Stacks) -> None:
    cuda, left = PyCuda(), []

    def use() -> None:
        with cuda.active(), cuda.active():
            assert len(stacks.contexts) == 2
        left.append(len(stacks.contexts))

    use()
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert left == [0, 0]
    with pytest.raises(ValueError), cuda.active():
        raise ValueError
    assert not stacks.contexts


def test_a_lost_context_is_recognised_by_the_sentence_of_the_driver(stacks: Stacks) -> None:
    cuda = open_cuda()
    assert (cuda.backend, cuda.gpu, cuda.capability) == ("pycuda", "Stand In GPU", "8.7")
    with pytest.raises(DeviceLostError, match="illegal memory access.*start it again"):
        with cuda.active():
            cuda.synchronize(cuda.stream())
    assert not stacks.contexts


def test_out_of_memory_and_a_missing_compiler_are_sentences(stacks: Stacks) -> None:
    cuda = PyCuda()
    with cuda.active(), pytest.raises(OutOfMemoryError, match="no room for a cache: 2 MiB"):
        cuda.alloc(2 << 20, "a cache")
    with cuda.active(), pytest.raises(CudaError, match="nvcc cannot be run here .*on the PATH"):
        cuda.compile("kernels")


def test_cuda_python_is_preferred_and_both_reasons_are_given(
    stacks: Stacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnfitError, match="GPU 1 here .cuDeviceGet|Device failed"):
        open_cuda(1)
    driver = SimpleNamespace(cuInit=lambda _: (SimpleNamespace(name="BAD", __int__=None), None))

    def no_driver(_: int) -> None:
        raise RuntimeError("libcuda.so.1 was not found")

    driver.cuInit = no_driver
    bindings = ModuleType("cuda.bindings")
    bindings.driver, bindings.nvrtc, bindings.__version__ = driver, None, "13.5.0"
    package = ModuleType("cuda")
    package.bindings = bindings
    monkeypatch.setitem(sys.modules, "cuda", package)
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    assert open_cuda().backend == "pycuda"  # what works is taken
    with pytest.raises(UnfitError, match="cuInit cannot be called here .libcuda.*; .*Device"):
        open_cuda(1)
