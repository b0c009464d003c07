# SPDX-License-Identifier: Apache-2.0
"""One TensorRT engine: loaded, checked, proven on golden inputs, bound and run."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from g2vlm_ros.inference.tensorrt.device_memory import DeviceArray, DeviceMemory
from g2vlm_ros.inference.tensorrt.engine_metadata import EngineError, EngineRecord
from g2vlm_ros.inference.tensorrt.versions import TensorRTVersion

PROOF_BOUND = {"float32": 2e-3, "float16": 0.02, "bfloat16": 0.1}
"""Largest ||got - wanted|| / ||wanted|| of a golden output. The known faults of attention in half
precision are of the size of the values themselves."""


class Engine:
    """An engine on a device. Working memory is the device's, shared with the other engines."""

    def __init__(
        self,
        flavour: TensorRTVersion,
        device: DeviceMemory,
        record: EngineRecord,
        data: bytes,
    ):
        self.record = record
        self._flavour, self._device = flavour, device
        self._profile = 0
        trt = flavour.trt
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise EngineError(
                f"{flavour.label} cannot load {record.file}; it was built by {record.tensorrt}"
            )
        names = {self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)}
        if names != {*record.inputs, *record.outputs}:
            raise EngineError(
                f"{record.file} has the tensors {', '.join(sorted(names))}, which is not what "
                "its record says; build it again"
            )
        self._context = flavour.context(self._engine)
        if self._context is None:
            raise EngineError(
                f"{flavour.label} has no room to run {record.file}; its messages are above; end "
                "other programs on this GPU or build for a smaller profile of the plan"
            )
        self._scratch_bytes = flavour.scratch_bytes(self._engine)

    def run(
        self,
        inputs: Mapping[str, DeviceArray],
        outputs: Mapping[str, DeviceArray] | None = None,
    ) -> dict[str, DeviceArray]:
        """Queues the engine; outputs that are not given get new memory.

        Raises EngineError when a shape is outside every profile, OutOfMemoryError.
        """
        self._choose_profile({name: array.shape for name, array in inputs.items()})
        for name, array in inputs.items():
            if not self._context.set_input_shape(name, array.shape):
                raise EngineError(f"{self.record.file} refuses {array.shape} for {name}")
            self._context.set_tensor_address(name, array.address)
        results = {}
        for name, (element, _) in self.record.outputs.items():
            shape = tuple(self._context.get_tensor_shape(name))
            given = (outputs or {}).get(name)
            if given is not None and given.shape != shape:
                raise EngineError(f"{self.record.file} gives {name} {shape}, not {given.shape}")
            results[name] = given or self._device.empty(shape, element, self.record.stage)
            self._context.set_tensor_address(name, results[name].address)
        # Set every time: another engine may have made the shared memory grow and move.
        scratch = self._device.scratch(self._scratch_bytes)
        self._flavour.set_scratch(self._context, *scratch)
        with self._device.timed(self.record.stage):
            stream = self._device.cuda.handle(self._device.compute)
            if not self._context.execute_async_v3(stream):
                raise EngineError(f"{self._flavour.label} failed to run {self.record.file}")
        return results

    def _choose_profile(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        index = self.record_profile(shapes)
        if index != self._profile:
            stream = self._device.cuda.handle(self._device.compute)
            self._context.set_optimization_profile_async(index, stream)
            self._profile = index

    def record_profile(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The last profile that takes these shapes: narrow ones stand behind wide ones."""
        for index in reversed(range(len(self.record.profiles))):
            profile = self.record.profiles[index]
            if all(_within(shape, profile[name]) for name, shape in shapes.items()):
                return index
        raise EngineError(self._misfit(shapes))

    def _misfit(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        for name, shape in shapes.items():
            if not any(_within(shape, profile[name]) for profile in self.record.profiles):
                ranges = " or ".join(f"{p[name][0]} to {p[name][2]}" for p in self.record.profiles)
                return (
                    f"{name} is {list(shape)}; {self.record.file} takes {ranges}; change the "
                    "number of views or tokens, or build for another profile of the plan"
                )
        return f"no profile of {self.record.file} takes {dict(shapes)} together"


def _within(shape: tuple[int, ...], bounds: list[list[int]]) -> bool:
    low, _, high = bounds
    return len(shape) == len(low) and all(
        a <= n <= b for a, n, b in zip(low, shape, high, strict=True)
    )


# --- proving -------------------------------------------------------------------------------------


def read_proof(folder: Path, record: EngineRecord) -> list[tuple[dict, dict]]:
    """Golden inputs and outputs of an engine, one pair per case; EngineError when damaged."""
    path = folder / str(record.proof)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EngineError(f"{record.file} has no golden values ({error}); build again") from error
    if hashlib.sha256(data).hexdigest() != record.proof_sha256:
        raise EngineError(f"{path} is damaged or was changed; build {record.file} again")
    return unpack_proof(np.load(io.BytesIO(data)))


def unpack_proof(arrays: Mapping[str, np.ndarray]) -> list[tuple[dict, dict]]:
    """Arrays named `<case>/in/<input>` and `<case>/out/<output>` as pairs."""
    cases: dict[str, tuple[dict, dict]] = {}
    for key in arrays:
        case, kind, name = key.split("/")
        pair = cases.setdefault(case, ({}, {}))
        pair[kind == "out"][name] = arrays[key]
    return [cases[case] for case in sorted(cases)]


def prove(
    engine: Engine, device: DeviceMemory, cases: list[tuple[dict, dict]]
) -> dict[str, float]:
    """Runs golden inputs; returns the largest error of each output, or raises EngineError.

    An engine may be wrong without an error: 16-bit attention of some TensorRT versions is.
    """
    record, worst = engine.record, dict[str, float]()
    bound = PROOF_BOUND[record.precision]
    for inputs, wanted in cases:
        arrays = {
            name: device.upload(value, record.inputs[name][0], f"golden {name}")
            for name, value in inputs.items()
        }
        results = engine.run(arrays)
        got = dict(zip(wanted, device.download([results[n] for n in wanted]), strict=True))
        for name, want in wanted.items():
            worst[name] = max(worst.get(name, 0.0), deviation(got[name], want))
    wrong = {name: error for name, error in worst.items() if not error <= bound}
    if wrong:
        name, error = max(wrong.items(), key=lambda item: item[1])
        raise EngineError(
            f"{record.file} computes wrong values: {name} is off by {error:.3g} of its size, "
            f"allowed are {bound}"
        )
    return worst


def deviation(got: np.ndarray, want: np.ndarray) -> float:
    """||got - want|| / ||want||; infinite where a value is not finite."""
    if got.shape != want.shape or not np.isfinite(got).all():
        return float("inf")
    difference = np.linalg.norm((got.astype(np.float64) - want).ravel())
    return float(difference / max(np.linalg.norm(want.astype(np.float64).ravel()), 1e-12))


def open_engine(
    flavour: TensorRTVersion,
    device: DeviceMemory,
    folder: Path,
    record: EngineRecord,
    remedy: str,
) -> Engine:
    """Loads an engine and lets it prove itself; EngineError says what to run."""
    data: Any = record.load(folder, remedy)
    engine = Engine(flavour, device, record, data)
    del data
    try:
        prove(engine, device, read_proof(folder, record))
    except EngineError as error:
        raise EngineError(f"{error}; run `{remedy}`") from error
    return engine
