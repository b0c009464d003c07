# SPDX-License-Identifier: Apache-2.0
"""A STAND-IN for CUDA and TensorRT, for tests on machines without a GPU. Nothing here is a GPU.

Device memory is host memory. Streams are queues whose work is done as late as they allow: only
when somebody synchronises, and only what that needs, or, with `others_first`, all that other
streams may do before; so a missing wait between two streams shows as wrong values. Engines are
ONNX Runtime on the ONNX file, with real values in float32.
"""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Union

import numpy as np
import onnx
import onnxruntime

from benchmarks.host_cuda import HostKernels
from g2vlm_ros.inference.onnx_backend import open_session
from g2vlm_ros.inference.tensorrt.cuda import Cuda, failure, out_of_memory
from g2vlm_ros.inference.tensorrt.device_memory import NUMPY
from g2vlm_ros.inference.tensorrt.point_packing import THREADS
from g2vlm_ros.inference.tensorrt.versions import TensorRTVersion

VERSION = "10.3.0"


def at(address: int, size: int) -> np.ndarray:
    """The bytes at an address."""
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)


Job = Union[Callable[[], None], "tuple[Stream, int]"]
"""Something to do, or another stream and how much of it must be finished first."""


@dataclass(eq=False)
class Event:
    stream: Stream | None = None
    place: int = 0


@dataclass(eq=False)
class Stream:
    """Work that waits; `finished` counts what was done."""

    work: list[Job] = field(default_factory=list)
    finished: int = 0
    recording: list[Job] | None = None
    """Where work goes instead while a graph is captured."""

    def put(self, job: Job) -> None:
        (self.work if self.recording is None else self.recording).append(job)

    def drain(self, until: int | None = None) -> None:
        stop = self.finished + len(self.work) if until is None else until
        while self.finished < stop:
            job = self.work.pop(0)
            if isinstance(job, tuple):
                stream, place = job
                stream.drain(max(place, stream.finished))
            else:
                job()
            self.finished += 1


class StandInCuda(Cuda):
    backend, gpu, capability, driver = "stand-in", "Stand In GPU", "8.9", "0"

    def __init__(self, total: int = 1 << 30, others_first: bool = False):
        self.total, self.used, self.others_first = total, 0, others_first
        self.blocks: dict[int, np.ndarray] = {}
        self.hosts: dict[int, np.ndarray] = {}
        self.streams: list[Stream] = []
        self.allocations = self.copies = self.events = 0
        self.bytes_down = 0
        self.lose_at: int | None = None
        """After how many more engine runs the context is lost, which it then stays."""
        self.lost = False
        self.graphs: list[list[Job]] = []
        """What was recorded and not discarded."""
        self.replays = 0
        self.engines: list[StandInEngine] = []
        """Those that were loaded, in that order."""

    def active(self) -> AbstractContextManager[None]:
        return nullcontext()

    def memory(self) -> tuple[int, int]:
        return self.total - self.used, self.total

    def alloc(self, size: int, what: str) -> int:
        assert not any(stream.recording is not None for stream in self.streams)
        if self.used + size > self.total:
            raise out_of_memory(what, size, *self.memory())
        self.allocations += 1
        address, block = aligned(size)
        block.view(np.uint8)[:] = 0xFF  # NaN, should anybody read it unwritten
        self.blocks[address] = block
        self.used += size
        return address

    def free(self, address: int) -> None:
        self.used -= self.blocks.pop(address).size - 256

    def alloc_host(self, size: int) -> int:
        address, block = aligned(size)
        self.hosts[address] = block
        return address

    def stream(self) -> Stream:
        self.streams.append(Stream())
        return self.streams[-1]

    def handle(self, stream: Stream) -> int:
        return self.streams.index(stream)

    def synchronize(self, stream: Stream) -> None:
        assert stream.recording is None, "nothing that is recorded is ever finished"
        if self.lost:
            raise failure("cuStreamSynchronize", "CUDA_ERROR_ILLEGAL_ADDRESS")
        for other in self.streams if self.others_first else ():
            if other is not stream:
                other.drain()
        stream.drain()

    def event(self) -> Event:
        self.events += 1
        return Event()

    def record(self, event: Event, stream: Stream) -> None:
        assert stream.recording is None, "an event that is recorded measures nothing"
        event.stream, event.place = stream, stream.finished + len(stream.work)

    def wait(self, stream: Stream, event: Event) -> None:
        stream.put((event.stream, event.place))

    def elapsed_s(self, start: Event, end: Event) -> float:
        for event in (start, end):
            assert event.stream.finished >= event.place, "time was taken of unfinished work"
        return 0.001

    def upload(self, address: int, host: np.ndarray, stream: Stream) -> None:
        self._within(address, host.nbytes)
        stream.put(lambda: np.copyto(at(address, host.nbytes), host.reshape(-1).view(np.uint8)))

    def download(self, host: np.ndarray, address: int, stream: Stream) -> None:
        self._within(address, host.nbytes)
        self.bytes_down += host.nbytes
        stream.put(lambda: np.copyto(host.reshape(-1).view(np.uint8), at(address, host.nbytes)))

    def copy(self, to: int, source: int, size: int, stream: Stream) -> None:
        self.copies += 1
        self._within(to, size)
        self._within(source, size)
        stream.put(lambda: np.copyto(at(to, size), at(source, size)))

    def copy_rows(
        self, to: tuple[int, int], source: tuple[int, int], width: int, rows: int, stream: Any
    ) -> None:
        self.copies += 1
        for address, pitch in (to, source):
            assert pitch >= width
            self._within(address, (rows - 1) * pitch + width)

        def run() -> None:
            for row in range(rows):
                target, origin = (address + row * pitch for address, pitch in (to, source))
                at(target, width)[:] = at(origin, width)

        stream.put(run)

    def zero(self, address: int, size: int, stream: Stream) -> None:
        self._within(address, size)
        stream.put(lambda: at(address, size).fill(0))

    def begin_capture(self, stream: Stream) -> None:
        assert stream.recording is None
        stream.recording = []

    def end_capture(self, stream: Stream) -> list[Job]:
        self.graphs.append(stream.recording)
        stream.recording = None
        return self.graphs[-1]

    def replay(self, graph: list[Job], stream: Stream) -> None:
        assert any(graph is each for each in self.graphs), "a graph that was discarded"
        self.replays += 1
        for job in graph:
            stream.put(job)

    def discard(self, graph: list[Job]) -> None:
        self.graphs = [each for each in self.graphs if each is not graph]

    def compile(self, source: str) -> HostKernels | None:
        return None if "void store_token(" in source else HostKernels(source)

    def function(self, module: HostKernels | None, name: str) -> Callable[..., None]:
        if module is None:
            assert name == "store_token"
            return lambda blocks, arguments: store_token(blocks, *(x.item() for x in arguments))
        return lambda _, arguments: module.run(name, arguments)

    def launch(
        self,
        function: Callable[..., None],
        blocks: int,
        threads: int,
        arguments: Sequence[Any],
        stream: Stream,
    ) -> None:
        assert threads in (1, THREADS)
        stream.put(lambda: function(blocks, list(arguments)))

    def _within(self, address: int, size: int) -> None:
        inside = any(
            start <= address and address + size <= start + block.size
            for start, block in self.blocks.items()
        )
        assert inside, "a copy outside of what was allocated"


def aligned(size: int) -> tuple[int, np.ndarray]:
    block = np.empty(size + 256, np.uint8)
    offset = -block.ctypes.data % 256
    return block.ctypes.data + offset, block


def store_token(blocks: int, *arguments: int) -> None:
    """The kernel of store_tokens.cu."""
    *addresses, rows, units, places = arguments
    assert blocks * THREADS >= rows * units
    keys, values, key_buffer, value_buffer, stored = addresses
    place = int(at(stored, 8).view(np.int64)[0])
    assert 0 <= place < places
    for token, buffer in ((keys, key_buffer), (values, value_buffer)):
        held = at(buffer, rows * places * units * 16).reshape(rows, places, units * 16)
        held[:, place] = at(token, rows * units * 16).reshape(rows, -1)


# --- TensorRT ------------------------------------------------------------------------------------


class StandInContext:
    """Runs an ONNX file by ONNX Runtime, from and to addresses, when its stream gets there."""

    def __init__(self, engine: StandInEngine):
        self.engine, self.shapes, self.addresses = engine, {}, {}
        self.profile, self.scratch = 0, 0

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile, self.shapes = index, {}
        self.engine.profiles_used.append(index)
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.engine.device_memory_size_v2
        self.scratch = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine.inputs if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes: dict[str, int] = {}
        for key, known in self.shapes.items():
            for n, size in zip(self.engine.tensors[key][1], known, strict=True):
                if isinstance(n, str):
                    sizes[n] = size
        if "rows" in sizes:
            sizes |= {"height": 14 * sizes["rows"], "width": 14 * sizes["columns"]}
        elif "height" in sizes:
            patches = sizes["height"] // 14 * (sizes["width"] // 14)
            sizes |= {"patches": patches, "image_tokens": patches // 4}
        return tuple(sizes.get(n, n) for n in self.engine.tensors[name][1])

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0 or name.startswith("past_"), f"{name} at an odd address"
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        cuda = self.engine.cuda
        if cuda.lose_at is not None:
            cuda.lose_at -= 1
            cuda.lost = cuda.lost or cuda.lose_at < 0
        if cuda.lost:
            return False  # as TensorRT does; CUDA itself says why when it is asked
        addresses = dict(self.addresses)
        inputs = {n: (addresses[n], self.shapes[n]) for n in self.engine.inputs}
        outputs = {n: (addresses[n], self.get_tensor_shape(n)) for n in self.engine.outputs}
        assert self.scratch in cuda.blocks, "working memory that was given back"
        cuda.streams[stream].put(lambda: self.engine.compute(inputs, outputs))
        return True


@lru_cache
def session(path: Path) -> onnxruntime.InferenceSession:
    return open_session(path, "cpu")


class StandInEngine:
    device_memory_size_v2 = 4096

    def __init__(self, cuda: StandInCuda, path: Path, twist: float):
        self.cuda, self.path, self.twist = cuda, path, twist
        cuda.engines.append(self)
        self.profiles_used: list[int] = []
        self.session = session(path)
        graph = onnx.load(str(path), load_external_data=False).graph
        self.tensors = {v.name: _described(v) for v in (*graph.input, *graph.output)}
        self.inputs = [v.name for v in graph.input]
        self.outputs = [v.name for v in graph.output]
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def create_execution_context(self, strategy: Any) -> StandInContext:
        return StandInContext(self)

    def create_engine_inspector(self) -> SimpleNamespace:
        return SimpleNamespace(get_engine_information=lambda _: json.dumps({"Layers": []}))

    def compute(self, inputs: dict[str, tuple], outputs: dict[str, tuple]) -> None:
        feeds = {name: self.array(name, *place).copy() for name, place in inputs.items()}
        results = self.session.run(self.outputs, feeds)
        for name, result in zip(self.outputs, results, strict=True):
            target = self.array(name, *outputs[name])
            assert target.shape == result.shape
            target[...] = result * (1 + self.twist)

    def array(self, name: str, address: int, shape: Sequence[int]) -> np.ndarray:
        """The device's memory of a tensor."""
        kind = np.dtype(NUMPY[self.tensors[name][0]])
        size = int(np.prod(shape)) * kind.itemsize
        return at(address, size).view(kind).reshape(shape)


def _described(value: Any) -> tuple[str, list[int | str]]:
    kind = value.type.tensor_type
    sizes = [d.dim_param or d.dim_value for d in kind.shape.dim]
    return onnx.TensorProto.DataType.Name(kind.elem_type), sizes


def stand_in_version(cuda: StandInCuda, twist: dict[str, float] | None = None) -> TensorRTVersion:
    """TensorRT whose engines are the text "engine of <path> <way>".

    twist: by which fraction engines built in a way compute wrong values.
    """

    class Runtime:
        def __init__(self, logger: Any): ...

        def deserialize_cuda_engine(self, data: Any) -> StandInEngine | None:
            found = re.fullmatch(rb"engine of (.+) (\w+)", bytes(data))
            if not found:
                return None
            wrong = (twist or {}).get(found[2].decode(), 0.0)
            return StandInEngine(cuda, Path(found[1].decode()), wrong)

    class Logger:
        WARNING = ERROR = 0

        def __init__(self, severity: int): ...

    class Strategy(IntEnum):
        USER_MANAGED = 2

    trt = SimpleNamespace(
        __version__=VERSION,
        Runtime=Runtime,
        Logger=Logger,
        ExecutionContextAllocationStrategy=Strategy,
        LayerInformationFormat=SimpleNamespace(JSON=1),
    )
    return TensorRTVersion("tensorrt", trt)
