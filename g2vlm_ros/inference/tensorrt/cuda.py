# SPDX-License-Identifier: Apache-2.0
"""The few CUDA calls that engines need, over cuda-python or pycuda, whichever is installed.

Addresses are integers, streams and events opaque. Both use the device's primary context, as
TensorRT does. Copies to and from the host are asynchronous: their memory must be pinned, and
stay untouched until the stream was synchronised.

A context that is lost is lost for the process (`inference.device_errors`): nothing is tried again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from g2vlm_ros.inference.device_errors import lost_sentence, says_lost
from g2vlm_ros.records import BackendGoneError, UnfitError

MIB = 1 << 20
SAME_AS_PROCESSOR = "--fmad=false"
"""No fused multiply-add, as in the kernels of the processor, which then give the same bits."""


class CudaError(RuntimeError):
    """A CUDA call failed."""


class DeviceLostError(CudaError, BackendGoneError):
    """The context is lost, with everything on the device; the process has to start anew."""


class OutOfMemoryError(CudaError):
    """The device, or the host for pinned memory, has not what was asked for."""


def out_of_memory(what: str, size: int, free: int, total: int) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"the GPU has no room for {what}: {size / MIB:.0f} MiB asked for, {free / MIB:.0f} of "
        f"{total / MIB:.0f} MiB free; use fewer views, smaller images or a smaller profile, or "
        "end other programs on this GPU"
    )


def out_of_host_memory(size: int) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"the host has no {size / MIB:.0f} MiB of pinned memory for copies; use fewer views or "
        "smaller images, or end other programs"
    )


def failure(call: str, reason: str) -> CudaError:
    """The error for a status name (CUDA_ERROR_ILLEGAL_ADDRESS) or a sentence of the driver."""
    if says_lost(reason):
        return DeviceLostError(lost_sentence(call, reason))
    return CudaError(f"{call} failed: {reason}")


def open_cuda(device: int = 0) -> Cuda:
    """cuda-python where it is installed, else pycuda. Raises UnfitError without a GPU."""
    missing, failed = [], []
    for kind in (CudaPython, PyCuda):
        try:
            return kind(device)
        except ImportError as error:
            missing.append(str(error))
        except CudaError as error:
            failed.append(str(error))
    if failed:
        raise UnfitError(f"no usable NVIDIA GPU {device} here ({'; '.join(failed)})")
    raise UnfitError(
        f"neither cuda-python nor pycuda can be imported ({'; '.join(missing)}); "
        "run `pip install cuda-bindings`, on JetPack 6 `pip install 'cuda-bindings==12.9.*'`"
    )


class Cuda(ABC):
    """One device; every call is for the thread that made it active last."""

    backend: str
    gpu: str
    capability: str
    """As "8.7"."""
    driver: str

    @abstractmethod
    def active(self) -> AbstractContextManager[None]:
        """The context is current in this thread inside of the block."""

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the device."""

    @abstractmethod
    def alloc(self, size: int, what: str) -> int:
        """Device memory, aligned to 256 bytes. OutOfMemoryError names `what`."""

    @abstractmethod
    def free(self, address: int) -> None: ...

    @abstractmethod
    def alloc_host(self, size: int) -> int:
        """Pinned host memory, which is copied without a detour; kept until the process ends."""

    @abstractmethod
    def stream(self) -> Any: ...

    @abstractmethod
    def handle(self, stream: Any) -> int:
        """The stream as TensorRT takes it."""

    @abstractmethod
    def synchronize(self, stream: Any) -> None: ...

    @abstractmethod
    def event(self) -> Any: ...

    @abstractmethod
    def record(self, event: Any, stream: Any) -> None: ...

    @abstractmethod
    def wait(self, stream: Any, event: Any) -> None:
        """What is put on the stream from now on starts after the event."""

    @abstractmethod
    def elapsed_s(self, start: Any, end: Any) -> float: ...

    @abstractmethod
    def upload(self, address: int, host: np.ndarray, stream: Any) -> None: ...

    @abstractmethod
    def download(self, host: np.ndarray, address: int, stream: Any) -> None: ...

    @abstractmethod
    def copy(self, to: int, source: int, size: int, stream: Any) -> None: ...

    @abstractmethod
    def copy_rows(
        self, to: tuple[int, int], source: tuple[int, int], width: int, rows: int, stream: Any
    ) -> None:
        """Copies `rows` of `width` bytes; to and source are address and bytes from row to row."""

    @abstractmethod
    def zero(self, address: int, size: int, stream: Any) -> None: ...

    @abstractmethod
    def compile(self, source: str) -> Any:
        """A module from CUDA C++ with extern "C" kernels."""

    @abstractmethod
    def function(self, module: Any, name: str) -> Any: ...

    @abstractmethod
    def launch(
        self, function: Any, blocks: int, threads: int, arguments: Sequence[Any], stream: Any
    ) -> None:
        """Arguments are numpy scalars; addresses are np.uint64."""

    def begin_capture(self, stream: Any) -> None:
        """What is put on the stream from now on is recorded, not run."""
        raise CudaError(f"{self.backend} records no CUDA graphs; install cuda-bindings for that")

    def end_capture(self, stream: Any) -> Any:
        """Ends the recording; a graph for `replay`, which may run again and again."""
        raise CudaError(f"{self.backend} records no CUDA graphs; install cuda-bindings for that")

    def replay(self, graph: Any, stream: Any) -> None:
        """Puts the recorded work on the stream."""
        raise CudaError(f"{self.backend} replays no CUDA graphs; install cuda-bindings for that")

    def discard(self, graph: Any) -> None:
        """Gives a graph back that is not replayed any more."""
        raise CudaError(f"{self.backend} replays no CUDA graphs; install cuda-bindings for that")


class CudaPython(Cuda):
    """Over cuda-python (package cuda-bindings); kernels by NVRTC."""

    backend = "cuda-python"

    def __init__(self, device: int = 0):
        import cuda.bindings
        from cuda.bindings import driver, nvrtc

        self._driver, self._nvrtc = driver, nvrtc
        self._waits: dict[int, Any] = {}
        """An event for each stream that somebody waited for."""
        self._call("cuInit", 0)
        version = self._call("cuDriverGetVersion")
        check_bindings(cuda.bindings.__version__, version)
        self.driver = str(version)
        self._device = self._call("cuDeviceGet", device)
        # The driver ends the name by a NUL and leaves the rest of the buffer as it was.
        name = self._call("cuDeviceGetName", 128, self._device)
        self.gpu = name.split(b"\0")[0].decode().strip()
        key = driver.CUdevice_attribute
        self.capability = ".".join(
            str(self._call("cuDeviceGetAttribute", attribute, self._device))
            for attribute in (
                key.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                key.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)

    def _call(self, name: str, *arguments: Any) -> Any:
        return checked_call(self._driver, name, *arguments)

    @contextmanager
    def active(self) -> Iterator[None]:
        self._call("cuCtxSetCurrent", self._context)
        yield

    def memory(self) -> tuple[int, int]:
        return self._call("cuMemGetInfo")

    def alloc(self, size: int, what: str) -> int:
        try:
            return int(self._call("cuMemAlloc", size))
        except CudaError as error:
            if "OUT_OF_MEMORY" not in str(error):
                raise
            raise out_of_memory(what, size, *self.memory()) from error

    def free(self, address: int) -> None:
        self._call("cuMemFree", address)

    def alloc_host(self, size: int) -> int:
        try:
            return int(self._call("cuMemHostAlloc", size, 0))
        except CudaError as error:
            if "OUT_OF_MEMORY" not in str(error):
                raise
            raise out_of_host_memory(size) from error

    def stream(self) -> Any:
        flag = int(self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        return self._call("cuStreamCreate", flag)

    def handle(self, stream: Any) -> int:
        return int(stream)

    def synchronize(self, stream: Any) -> None:
        # Asleep: while a network runs, a thread that spins has a core that navigation needs.
        event = self._waits.get(int(stream))
        if event is None:
            flags = self._driver.CUevent_flags
            sleeping = int(flags.CU_EVENT_BLOCKING_SYNC) | int(flags.CU_EVENT_DISABLE_TIMING)
            event = self._waits[int(stream)] = self._call("cuEventCreate", sleeping)
        self._call("cuEventRecord", event, stream)
        self._call("cuEventSynchronize", event)

    def event(self) -> Any:
        return self._call("cuEventCreate", 0)

    def record(self, event: Any, stream: Any) -> None:
        self._call("cuEventRecord", event, stream)

    def wait(self, stream: Any, event: Any) -> None:
        self._call("cuStreamWaitEvent", stream, event, 0)

    def elapsed_s(self, start: Any, end: Any) -> float:
        return self._call("cuEventElapsedTime", start, end) / 1e3

    def upload(self, address: int, host: np.ndarray, stream: Any) -> None:
        self._call("cuMemcpyHtoDAsync", address, host.ctypes.data, host.nbytes, stream)

    def download(self, host: np.ndarray, address: int, stream: Any) -> None:
        self._call("cuMemcpyDtoHAsync", host.ctypes.data, address, host.nbytes, stream)

    def copy(self, to: int, source: int, size: int, stream: Any) -> None:
        self._call("cuMemcpyDtoDAsync", to, source, size, stream)

    def copy_rows(
        self, to: tuple[int, int], source: tuple[int, int], width: int, rows: int, stream: Any
    ) -> None:
        copy = self._driver.CUDA_MEMCPY2D()
        on_device = self._driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.dstMemoryType = copy.srcMemoryType = on_device
        copy.dstDevice, copy.dstPitch = to
        copy.srcDevice, copy.srcPitch = source
        copy.WidthInBytes, copy.Height = width, rows
        self._call("cuMemcpy2DAsync", copy, stream)

    def zero(self, address: int, size: int, stream: Any) -> None:
        self._call("cuMemsetD8Async", address, 0, size, stream)

    def begin_capture(self, stream: Any) -> None:
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", stream, mode)

    def end_capture(self, stream: Any) -> Any:
        graph = self._call("cuStreamEndCapture", stream)
        try:
            return self._call("cuGraphInstantiate", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)

    def replay(self, graph: Any, stream: Any) -> None:
        self._call("cuGraphLaunch", graph, stream)

    def discard(self, graph: Any) -> None:
        self._call("cuGraphExecDestroy", graph)

    def compile(self, source: str) -> Any:
        cubin = nvrtc_compile(self._nvrtc, source, self.capability)
        return self._call("cuModuleLoadData", cubin)

    def function(self, module: Any, name: str) -> Any:
        return self._call("cuModuleGetFunction", module, name.encode())

    def launch(
        self, function: Any, blocks: int, threads: int, arguments: Sequence[Any], stream: Any
    ) -> None:
        values = [np.array(argument) for argument in arguments]
        pointers = np.array([argument.ctypes.data for argument in values], np.uint64)
        self._call(
            "cuLaunchKernel",
            function,
            blocks,
            1,
            1,
            threads,
            1,
            1,
            0,
            stream,
            pointers.ctypes.data,
            0,
        )


def checked_call(library: Any, name: str, *arguments: Any) -> Any:
    """Calls a function of cuda-python; what it gives behind its status. Raises CudaError.

    A function that the driver is too old for, or a library that is not installed, is a
    RuntimeError of cuda-python's own.
    """
    try:
        status, *result = getattr(library, name)(*arguments)
    except RuntimeError as error:
        raise CudaError(f"{name} cannot be called here ({error})") from error
    if int(status):
        raise failure(name, status.name)
    return result[0] if len(result) == 1 else tuple(result)


def check_bindings(bindings: str, driver: int) -> None:
    """Refuses bindings of a later CUDA than the driver's, whose calls it does not have.

    bindings as "13.5.0", driver as 12060 for CUDA 12.6.
    """
    major = driver // 1000
    if int(bindings.split(".")[0]) > major:
        version = "12.9.*" if major == 12 else f"{major}.*"
        raise CudaError(
            f"cuda-bindings {bindings} are newer than this driver, which is of CUDA {major}."
            f"{driver % 1000 // 10}; run `pip install 'cuda-bindings=={version}'`"
        )


def nvrtc_compile(nvrtc: Any, source: str, capability: str) -> bytes:
    """Machine code for a compute capability; needs no GPU. CudaError holds the compiler's log."""
    try:
        program = checked_call(
            nvrtc, "nvrtcCreateProgram", source.encode(), b"kernels.cu", 0, [], []
        )
    except CudaError as error:
        raise CudaError(
            f"{error}; run `pip install nvidia-cuda-nvrtc`, with CUDA 12 nvidia-cuda-nvrtc-cu12"
        ) from error
    architecture = f"--gpu-architecture=sm_{capability.replace('.', '')}"
    options = [architecture.encode(), SAME_AS_PROCESSOR.encode()]
    try:
        checked_call(nvrtc, "nvrtcCompileProgram", program, len(options), options)
    except CudaError as error:
        # Written by C: bytes of one character would be Python's own, shared by everybody.
        log = bytearray(checked_call(nvrtc, "nvrtcGetProgramLogSize", program))
        checked_call(nvrtc, "nvrtcGetProgramLog", program, log)
        text = log.decode(errors="replace").rstrip("\0")
        raise CudaError(f"{error}: {text}") from error
    code = bytearray(checked_call(nvrtc, "nvrtcGetCUBINSize", program))
    checked_call(nvrtc, "nvrtcGetCUBIN", program, code)
    return bytes(code)


class PyCuda(Cuda):
    """Over pycuda; kernels by nvcc, which pycuda needs anyway.

    pycuda keeps a stack of contexts per thread and aborts the process when a thread ends, or the
    process, while there is one on it. So the context is pushed for a block and popped behind it.
    """

    backend = "pycuda"

    def __init__(self, device: int = 0):
        import pycuda.driver as driver

        self._driver, self._allocations = driver, dict[int, Any]()
        self._checked(driver.init)
        self._device = self._checked(driver.Device, device)
        self.gpu = self._device.name().strip()
        self.capability = "{}.{}".format(*self._device.compute_capability())
        self.driver = str(driver.get_driver_version())
        self._context = self._checked(self._device.retain_primary_context)

    def _checked(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        try:
            return call(*arguments, **named)
        except self._driver.Error as error:
            raise failure(getattr(call, "__name__", "CUDA"), str(error)) from error

    @contextmanager
    def active(self) -> Iterator[None]:
        self._checked(self._context.push)
        try:
            yield
        finally:
            # On a lost context as well: it stays on the stack otherwise, and the exit is an abort.
            self._driver.Context.pop()

    def memory(self) -> tuple[int, int]:
        return self._checked(self._driver.mem_get_info)

    def alloc(self, size: int, what: str) -> int:
        try:
            allocation = self._driver.mem_alloc(size)
        except self._driver.MemoryError as error:
            raise out_of_memory(what, size, *self.memory()) from error
        except self._driver.Error as error:
            raise failure("mem_alloc", str(error)) from error
        self._allocations[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        self._checked(self._allocations.pop(address).free)

    def alloc_host(self, size: int) -> int:
        try:
            memory = self._driver.pagelocked_empty(size, np.uint8)
        except self._driver.MemoryError as error:
            raise out_of_host_memory(size) from error
        except self._driver.Error as error:
            raise failure("pagelocked_empty", str(error)) from error
        self._allocations[memory.ctypes.data] = memory
        return memory.ctypes.data

    def stream(self) -> Any:
        return self._checked(self._driver.Stream)

    def handle(self, stream: Any) -> int:
        return stream.handle

    def synchronize(self, stream: Any) -> None:
        self._checked(stream.synchronize)

    def event(self) -> Any:
        return self._checked(self._driver.Event)

    def record(self, event: Any, stream: Any) -> None:
        self._checked(event.record, stream)

    def wait(self, stream: Any, event: Any) -> None:
        self._checked(stream.wait_for_event, event)

    def elapsed_s(self, start: Any, end: Any) -> float:
        return self._checked(start.time_till, end) / 1e3

    def upload(self, address: int, host: np.ndarray, stream: Any) -> None:
        self._checked(self._driver.memcpy_htod_async, address, host, stream)

    def download(self, host: np.ndarray, address: int, stream: Any) -> None:
        self._checked(self._driver.memcpy_dtoh_async, host, address, stream)

    def copy(self, to: int, source: int, size: int, stream: Any) -> None:
        self._checked(self._driver.memcpy_dtod_async, to, source, size, stream)

    def copy_rows(
        self, to: tuple[int, int], source: tuple[int, int], width: int, rows: int, stream: Any
    ) -> None:
        copy = self._driver.Memcpy2D()
        copy.set_dst_device(to[0])
        copy.set_src_device(source[0])
        copy.dst_pitch, copy.src_pitch = to[1], source[1]
        copy.width_in_bytes, copy.height = width, rows
        self._checked(copy, stream)

    def zero(self, address: int, size: int, stream: Any) -> None:
        self._checked(self._driver.memset_d8_async, address, 0, size, stream)

    def compile(self, source: str) -> Any:
        from pycuda.compiler import SourceModule

        try:
            return self._checked(
                SourceModule, source, options=[SAME_AS_PROCESSOR], no_extern_c=True
            )
        except OSError as error:  # pytools' own where nvcc cannot be started
            raise CudaError(f"nvcc cannot be run here ({error}); put it on the PATH") from error

    def function(self, module: Any, name: str) -> Any:
        return self._checked(module.get_function, name)

    def launch(
        self, function: Any, blocks: int, threads: int, arguments: Sequence[Any], stream: Any
    ) -> None:
        self._checked(function, *arguments, grid=(blocks, 1), block=(threads, 1, 1), stream=stream)
