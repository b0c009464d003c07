# SPDX-License-Identifier: Apache-2.0
"""Engines verified on golden inputs: after the build, and at every start.

An engine may be wrong without an error: 16-bit attention of some TensorRT versions is.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from g2vlm_ros.inference.tensorrt.device_memory import DeviceMemory
from g2vlm_ros.inference.tensorrt.engine import Engine
from g2vlm_ros.inference.tensorrt.engine_metadata import EngineError, EngineMetadata
from g2vlm_ros.inference.tensorrt.kv_cache import SIDES, Arrays, TensorRTCache, reads_buffers
from g2vlm_ros.inference.tensorrt.versions import TensorRTVersion

MAX_DEVIATION = {"float32": 2e-3, "float16": 0.02, "bfloat16": 0.1}
"""Largest ||output - wanted|| / ||wanted|| of a golden output. The known faults of attention in
half precision are of the size of the values themselves."""
TOKEN_AXIS = 2
"""Of keys and values, which may be repeated in a long case."""
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

    `<case>/repeat/<input>` says how often keys or values are to be repeated.
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
            inputs[name] = array if times == 1 else np.concatenate([array] * times, TOKEN_AXIS)
    return [cases[case] for case in sorted(cases)]


def verify(engine: Engine, device: DeviceMemory, cases: list[Case]) -> dict[str, float]:
    """Runs golden inputs; returns the largest error of each output, or raises EngineError.

    Cases with more tokens than the buffers of the engine hold are for engines with larger ones.
    """
    metadata, worst = engine.metadata, dict[str, float]()
    bound = MAX_DEVIATION[metadata.precision]
    for inputs, golden in cases:
        if reads_buffers(engine) and metadata.places_for(_tokens(inputs)) is None:
            continue
        results = _run(engine, device, inputs)
        outputs = device.download([results[name] for name in golden])
        for (name, want), output in zip(golden.items(), outputs, strict=True):
            worst[name] = max(worst.get(name, 0.0), deviation(output, want))
    if not worst:
        raise EngineError(
            f"{metadata.file} has no golden values that fit its buffers; build again"
        )
    wrong = {name: error for name, error in worst.items() if not error <= bound}
    if wrong:
        name, error = max(wrong.items(), key=lambda item: item[1])
        raise EngineError(
            f"{metadata.file} computes wrong values: {name} is off by {error:.3g} of its size, "
            f"allowed are {bound}"
        )
    return worst


def _tokens(inputs: Mapping[str, np.ndarray]) -> int:
    """Of a case of a stage with a cache: those before it and its own."""
    return inputs["past_keys"].shape[TOKEN_AXIS] + inputs["positions"].shape[1]


def _run(engine: Engine, device: DeviceMemory, inputs: Mapping[str, np.ndarray]) -> Arrays:
    """The outputs for golden inputs. Past keys and values go where the engine reads them."""
    if not reads_buffers(engine):
        elements = engine.metadata.inputs
        return engine.run(
            {n: device.upload(a, elements[n][0], f"golden {n}") for n, a in inputs.items()}
        )
    past = {side: inputs[f"past_{side}"] for side in SIDES}
    cache = _filled_cache(engine, device, past)
    others = {name: inputs[name] for name in engine.metadata.inputs if name in inputs}
    arrays = {
        name: device.upload(value, engine.metadata.inputs[name][0], f"golden {name}")
        for name, value in others.items()
    }
    tokens = inputs["positions"].shape[1]
    hidden = cache.append_by(engine, arrays, tokens)
    cache.commit(tokens)
    return {"hidden": hidden, **cache.newest(tokens)}


def _filled_cache(
    engine: Engine, device: DeviceMemory, past: Mapping[str, np.ndarray]
) -> TensorRTCache:
    element = engine.metadata.inputs["past_keys_0"][0]
    cache = TensorRTCache(device, past["keys"].shape, element, engine.metadata.places_for)
    arrays = {s: device.upload(past[s], element, f"golden past {s}") for s in SIDES}
    tokens = past["keys"].shape[TOKEN_AXIS]
    cache.store(arrays, tokens)
    cache.commit(tokens)
    return cache


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
