# SPDX-License-Identifier: Apache-2.0
"""One TensorRT engine: loaded, checked, verified on golden inputs, bound and run."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from g2vlm_ros.inference.tensorrt.device_memory import DeviceArray, DeviceMemory
from g2vlm_ros.inference.tensorrt.engine_metadata import EngineError, EngineMetadata
from g2vlm_ros.inference.tensorrt.versions import TensorRTVersion

MAX_DEVIATION = {"float32": 2e-3, "float16": 0.02, "bfloat16": 0.1}
"""Largest ||output - wanted|| / ||wanted|| of a golden output. The known faults of attention in
half precision are of the size of the values themselves."""
VARYING_SHAPES = ("language",)
"""Stages whose shapes are new at every call: each token has a longer cache before it."""


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
        self._profile = 0
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
        shapes_repeat = metadata.stage not in VARYING_SHAPES
        self._context, self._compiled = version.context(self._engine, shapes_repeat, self._kernels)
        if self._context is None:
            raise EngineError(
                f"{version.label} has no room to run {metadata.file}; its messages are above; end "
                "other programs on this GPU or build for a smaller profile of the plan"
            )
        self._scratch_bytes = self._engine.device_memory_size_v2

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
    ) -> dict[str, DeviceArray]:
        """Queues the engine; outputs that are not given get new memory.

        Raises EngineError when a shape is outside every profile, OutOfMemoryError,
        DeviceLostError.
        """
        self._choose_profile({name: array.shape for name, array in inputs.items()})
        for name, array in inputs.items():
            if not self._context.set_input_shape(name, array.shape):
                raise EngineError(f"{self.metadata.file} refuses {array.shape} for {name}")
            self._bind(name, array)
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
        with self._device.timed(self.metadata.stage):
            stream = self._device.cuda.handle(self._device.compute)
            if not self._context.execute_async_v3(stream):
                self._device.synchronize()  # a lost context says so here
                raise EngineError(f"{self._version.label} failed to run {self.metadata.file}")
        return results

    def _bind(self, name: str, array: DeviceArray) -> None:
        if not self._context.set_tensor_address(name, array.address):
            raise EngineError(
                f"{self.metadata.file} does not take the address {array.address:#x} for {name}"
            )

    def _choose_profile(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        index = self.profile_for(shapes)
        if index != self._profile:
            stream = self._device.cuda.handle(self._device.compute)
            if not self._context.set_optimization_profile_async(index, stream):
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


# --- verifying -----------------------------------------------------------------------------------

Case = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]
"""Golden inputs and outputs."""


def read_golden(folder: Path, metadata: EngineMetadata) -> list[Case]:
    """Golden inputs and outputs of an engine, one pair per case; EngineError when damaged."""
    path = folder / str(metadata.golden)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EngineError(
            f"{metadata.file} has no golden values ({error}); build again"
        ) from error
    if hashlib.sha256(data).hexdigest() != metadata.golden_sha256:
        raise EngineError(f"{path} is damaged or was changed; build {metadata.file} again")
    return unpack_golden(np.load(io.BytesIO(data)))


def unpack_golden(arrays: Mapping[str, np.ndarray]) -> list[Case]:
    """Arrays named `<case>/in/<input>` and `<case>/out/<output>` as pairs.

    `<case>/repeat/<input>` says how often an input is to be repeated along its first axis.
    """
    cases: dict[str, Case] = {}
    for key in arrays:
        case, kind, name = key.split("/")
        inputs, outputs = cases.setdefault(case, ({}, {}))
        if kind == "out":
            outputs[name] = arrays[key]
        elif kind == "in":
            array = arrays[key]
            times = int(arrays.get(f"{case}/repeat/{name}", 1))
            inputs[name] = np.tile(array, (times, *[1] * (array.ndim - 1)))
    return [cases[case] for case in sorted(cases)]


def verify(engine: Engine, device: DeviceMemory, cases: list[Case]) -> dict[str, float]:
    """Runs golden inputs; returns the largest error of each output, or raises EngineError.

    An engine may be wrong without an error: 16-bit attention of some TensorRT versions is.
    """
    metadata, worst = engine.metadata, dict[str, float]()
    bound = MAX_DEVIATION[metadata.precision]
    for inputs, wanted in cases:
        arrays = {
            name: device.upload(value, metadata.inputs[name][0], f"golden {name}")
            for name, value in inputs.items()
        }
        results = engine.run(arrays)
        outputs = device.download([results[name] for name in wanted])
        for (name, want), output in zip(wanted.items(), outputs, strict=True):
            worst[name] = max(worst.get(name, 0.0), deviation(output, want))
    wrong = {name: error for name, error in worst.items() if not error <= bound}
    if wrong:
        name, error = max(wrong.items(), key=lambda item: item[1])
        raise EngineError(
            f"{metadata.file} computes wrong values: {name} is off by {error:.3g} of its size, "
            f"allowed are {bound}"
        )
    return worst


def deviation(output: np.ndarray, want: np.ndarray) -> float:
    """||output - want|| / ||want||; infinite where a value is not finite."""
    if output.shape != want.shape or not np.isfinite(output).all():
        return float("inf")
    difference = np.linalg.norm((output.astype(np.float64) - want).ravel())
    return float(difference / max(np.linalg.norm(want.astype(np.float64).ravel()), 1e-12))


def open_engine(
    version: TensorRTVersion,
    device: DeviceMemory,
    folder: Path,
    metadata: EngineMetadata,
    remedy: str,
) -> Engine:
    """Loads an engine and verifies it; EngineError says what to run."""
    data = metadata.load(folder, remedy)
    try:
        engine = Engine(version, device, metadata, data, folder)
        verify(engine, device, read_golden(folder, metadata))
    except EngineError as error:
        raise EngineError(f"{error}; run `{remedy}`") from error
    engine.save_kernels()
    return engine
