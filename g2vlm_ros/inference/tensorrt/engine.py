# SPDX-License-Identifier: Apache-2.0
"""One TensorRT engine: loaded, checked, verified on golden inputs, bound and run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from g2vlm_ros.inference.tensorrt.device_memory import DeviceArray, DeviceMemory
from g2vlm_ros.inference.tensorrt.engine_metadata import EngineError, EngineMetadata
from g2vlm_ros.inference.tensorrt.versions import TensorRTVersion

VARYING_SHAPES = ("language",)
"""Stages whose shapes are new at every call, as texts are of any length. Decoding, whose shapes
repeat, has contexts of its own."""


class Engine:
    """An engine on a device. Working memory is the device's, shared with the other engines."""

    def __init__(
        self,
        version: TensorRTVersion,
        device: DeviceMemory,
        metadata: EngineMetadata,
        data: Any,
        folder: Path | None = None,
    ):
        """data: the engine as any buffer; folder: where TensorRT-RTX keeps compiled kernels."""
        self.metadata = metadata
        self._version, self._device = version, device
        trt = version.trt
        self._runtime = version.runtime(trt.Logger(trt.Logger.WARNING))
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise EngineError(
                f"{version.label} cannot load {metadata.file}; it was built by {metadata.tensorrt}"
            )
        names = {self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)}
        if names != {*metadata.inputs, *metadata.outputs}:
            raise EngineError(
                f"{metadata.file} has the tensors {', '.join(sorted(names))}, which is not what "
                "its record says; build it again"
            )
        self._kernels = folder and folder / metadata.kernels
        self._create_context(metadata.stage not in VARYING_SHAPES)
        self._scratch_bytes = self._engine.device_memory_size_v2

    def _create_context(self, shapes_repeat: bool) -> None:
        self._context, self._compiled = self._version.context(
            self._engine, shapes_repeat, self._kernels
        )
        self._profile = 0
        self._shapes_checked = False
        if self._context is None:
            raise EngineError(
                f"{self._version.label} has no room to run {self.metadata.file}; its messages are "
                "above; end other programs on this GPU or build for a smaller profile of the plan"
            )

    def for_repeated_shapes(self) -> Engine:
        """The same engine with a context of its own, whose shapes nobody else changes.

        What a CUDA graph records of a context holds only as long as that.
        """
        other = copy.copy(self)
        other._create_context(shapes_repeat=True)
        return other

    @property
    def scratch_bytes(self) -> int:
        """Working memory that a run needs."""
        return self._scratch_bytes

    @property
    def records_itself(self) -> bool:
        """Whether TensorRT makes CUDA graphs of repeated shapes by itself, as TensorRT-RTX."""
        return self._version.name == "rtx"

    @property
    def fused_attentions(self) -> int | None:
        """In how many places one kernel computes a whole attention, where the engine tells."""
        return self._version.fused_attentions(self._engine)

    def save_kernels(self) -> None:
        """Keeps what TensorRT-RTX compiled so far, for the next start; else nothing."""
        if self._kernels is not None:
            self._version.save_kernels(self._compiled, self._kernels)

    def run(
        self,
        inputs: Mapping[str, DeviceArray],
        outputs: Mapping[str, DeviceArray] | None = None,
        timed: bool = True,
    ) -> dict[str, DeviceArray]:
        """Queues the engine; outputs that are not given get new memory.

        timed: measures it, which cannot be while it is recorded.
        Raises EngineError when a shape is outside every profile, OutOfMemoryError,
        DeviceLostError.
        """
        self._choose_profile({name: array.shape for name, array in inputs.items()})
        for name, array in inputs.items():
            if not self._context.set_input_shape(name, array.shape):
                raise EngineError(f"{self.metadata.file} refuses {array.shape} for {name}")
            self._bind(name, array)
        self._check_shapes()
        results = {}
        for name, (element, _) in self.metadata.outputs.items():
            shape = tuple(self._context.get_tensor_shape(name))
            if any(size < 0 for size in shape):
                raise EngineError(
                    f"{self.metadata.file} cannot say the shape of {name} before it runs ({shape})"
                )
            target = (outputs or {}).get(name)
            if target is not None and target.shape != shape:
                raise EngineError(f"{self.metadata.file} gives {name} {shape}, not {target.shape}")
            results[name] = target or self._device.empty(shape, element, self.metadata.stage)
            self._bind(name, results[name])
        # Set every time: another engine may have made the shared memory grow and move.
        self._context.set_device_memory(*self._device.scratch(self._scratch_bytes))
        with self._device.timed(self.metadata.stage) if timed else nullcontext():
            stream = self._device.cuda.handle(self._device.compute)
            if not self._context.execute_async_v3(stream):
                self._device.synchronize()  # a lost context says so here
                raise EngineError(f"{self._version.label} failed to run {self.metadata.file}")
        return results

    def _check_shapes(self) -> None:
        """Whether the inputs fit together, at the first run of a context, which the proof makes.

        Not at every run: TensorRT infers shapes by itself, and a decoding step has no time for it.
        """
        if self._shapes_checked:
            return
        try:
            unset = self._context.infer_shapes()
        except RuntimeError as error:  # of the bindings, where inputs contradict each other
            raise EngineError(
                f"{self.metadata.file} cannot infer its shapes from these inputs ({error})"
            ) from error
        if unset:
            raise EngineError(f"{self.metadata.file} was given no shape for {', '.join(unset)}")
        self._shapes_checked = True

    def _bind(self, name: str, array: DeviceArray) -> None:
        if not self._context.set_tensor_address(name, array.address):
            raise EngineError(
                f"{self.metadata.file} does not take the address {array.address:#x} for {name}"
            )

    def _choose_profile(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        index = self.profile_for(shapes)
        if index != self._profile:
            stream = self._device.cuda.handle(self._device.compute)
            try:
                changed = self._context.set_optimization_profile_async(index, stream)
            except RuntimeError:  # what the bindings make of a change that is refused
                changed = False
            if not changed:
                raise EngineError(f"{self.metadata.file} cannot change to its profile {index}")
            self._profile = index

    def profile_for(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The last profile that takes these shapes: narrow ones stand behind wide ones."""
        for index in reversed(range(len(self.metadata.profiles))):
            profile = self.metadata.profiles[index]
            if all(_within(shape, profile[name]) for name, shape in shapes.items()):
                return index
        raise EngineError(self._misfit(shapes))

    def _misfit(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        profiles = self.metadata.profiles
        for name, shape in shapes.items():
            if not any(_within(shape, profile[name]) for profile in profiles):
                ranges = " or ".join(f"{p[name][0]} to {p[name][2]}" for p in profiles)
                return (
                    f"{name} is {list(shape)}; {self.metadata.file} takes {ranges}; change the "
                    "number of views or tokens, or build for another profile of the plan"
                )
        return f"no profile of {self.metadata.file} takes {dict(shapes)} together"


def _within(shape: tuple[int, ...], bounds: list[list[int]]) -> bool:
    low, _, high = bounds
    return len(shape) == len(low) and all(
        a <= n <= b for a, n, b in zip(low, shape, high, strict=True)
    )
