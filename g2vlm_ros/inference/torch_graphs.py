# SPDX-License-Identifier: Apache-2.0
"""Work on a GPU recorded once and replayed: CUDA graphs in torch.

Below some four views a window's time on an H100 was launches and Python, about 100 ms whatever
its size. A graph has neither; it is of one number of views and one size of images.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MAX_GRAPHS = 12
"""Graphs that are kept: each holds the memory of its stage. Three stages at four shapes."""
MAX_DEVIATION = {
    torch.float64: 1e-6,
    torch.float32: 1e-3,
    torch.float16: 0.02,
    torch.bfloat16: 0.1,
}
"""Largest ||output - want|| / ||want|| of what a graph or a fused part gives, as for engines."""
Function = Callable[..., tuple[Tensor, ...]]
Recorder = Callable[[Callable[[], None], torch.device], Callable[[], None]]
"""Records what a function does on a device; what it returns does that again."""


class GraphRecorder:
    """Records CUDA graphs that share the memory of what they compute on the way.

    They may, because one replay follows the other and results are copied out in between.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: Callable[[], None], device: torch.device) -> Callable[[], None]:
        with torch.cuda.device(device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            return self._captured(run)

    def _captured(self, run: Callable[[], None]) -> Callable[[], None]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # a first run chooses kernels and allocates, off the graph
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Of this thread only: what other threads allocate meanwhile would break the recording.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            run()
        return graph.replay


def deviation(result: Tensor, want: Tensor) -> float:
    """||result - want|| / ||want||; 0 where `want` itself has other values than numbers."""
    if not torch.isfinite(want).all():
        return 0.0  # what computed it is wrong, and says so
    difference = (result.double() - want.double()).norm()
    return float(difference / want.double().norm().clamp(min=1e-12))


@dataclass
class Recorded:
    """A function with memory of its own for what goes in and what comes out."""

    inputs: list[Tensor]
    outputs: tuple[Tensor, ...] = ()
    replay: Callable[[], None] = lambda: None

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for buffer, value in zip(self.inputs, inputs, strict=True):
            buffer.copy_(value)
        self.replay()
        return tuple(output.clone() for output in self.outputs)


class StageGraphs:
    """Stages recorded as graphs, one for each stage and shapes of its inputs."""

    def __init__(
        self,
        max_deviation: float,
        record: Recorder | None = None,
    ):
        """max_deviation: largest ||output - want|| / ||want|| of the first replay.

        record: instead of CUDA graphs.
        """
        self._max_deviation, self._record = max_deviation, record or GraphRecorder()
        self._graphs: OrderedDict[tuple, Recorded] = OrderedDict()

    def __len__(self) -> int:
        return len(self._graphs)

    def keys(self) -> list[tuple]:
        """(stage, shape of each input ...) of every graph, the least recently used first."""
        return [(stage, *(shape for shape, _ in inputs)) for stage, *inputs in self._graphs]

    def run(self, stage: str, function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the function gives. RuntimeError where its graph gives something else."""
        key = (stage, *((tuple(x.shape), x.dtype) for x in inputs))
        if key not in self._graphs:
            want = function(*inputs)
            self._graphs[key] = recorded = self._recorded(function, inputs)
            self._compare(stage, recorded(inputs), want)
            while len(self._graphs) > MAX_GRAPHS:
                self._graphs.popitem(last=False)
            return want
        self._graphs.move_to_end(key)
        return self._graphs[key](inputs)

    def _recorded(self, function: Function, inputs: tuple[Tensor, ...]) -> Recorded:
        recorded = Recorded([x.clone() for x in inputs])

        def run() -> None:
            recorded.outputs = function(*recorded.inputs)

        recorded.replay = self._record(run, inputs[0].device)
        return recorded

    def _compare(self, stage: str, results: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
        for result, exact in zip(results, want, strict=True):
            if not (error := deviation(result, exact)) <= self._max_deviation:
                raise RuntimeError(
                    f"the graph of {stage} is off by {error:.2g} of its size, above "
                    f"{self._max_deviation}"
                )
