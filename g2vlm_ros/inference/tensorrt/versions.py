# SPDX-License-Identifier: Apache-2.0
"""Which TensorRT is here, and all that differs between TensorRT 10.3 to 11 and TensorRT-RTX.

Both are one API under two names: TensorRT (package `tensorrt`) on Jetson and data-centre GPUs,
TensorRT-RTX (package `tensorrt_rtx`, a small wheel) on desktop GPUs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from g2vlm_ros.inference.tensorrt.engine_metadata import EngineError
from g2vlm_ros.records import UnfitError

PACKAGES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
MIN_VERSION = (10, 3)
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT-RTX 1.7 builds for; no Orin (8.7), Hopper (9.0), Thor."""
MIN_BFLOAT16_CAPABILITY = (8, 0)
"""Older GPUs (GeForce 20: 7.5) have none: TensorRT-RTX refuses "HW-specific datatypes: b16"."""
GIB = 1 << 30
WRONG_VIT_VERSIONS = {(10, 3), (10, 4)}
"""Versions that compute vision transformers wrongly, by what their users report."""
WRONG_VIT_REPORTS = (
    "NVIDIA/TensorRT#4419, #4558, #4723, #4742, ika-rwth-aachen/ros2-depth-anything-v3-trt#16, "
    "spacewalk01/depth-anything-tensorrt#49, Intellindust-AI-Lab/DEIMv2#112"
)
FUSED_ATTENTION = re.compile(r"mha|flash|fused_attention", re.IGNORECASE)
"""In the names of the kernels that compute an attention at once (_gemm_mha_v2, fmha_v2, ...)."""


@dataclass(frozen=True)
class TensorRTVersion:
    """One installed TensorRT."""

    name: str
    """"tensorrt" or "rtx"."""
    trt: Any
    """The module."""

    @property
    def version(self) -> str:
        return self.trt.__version__

    @property
    def label(self) -> str:
        """As it stands in file names."""
        return f"trt{self.version}" if self.name == "tensorrt" else f"rtx{self.version}"

    # --- building ----------------------------------------------------------------------------

    def builder(self, logger: Any) -> Any:
        """A builder. Raises EngineError without a driver, which bindings answer by a TypeError."""
        return self._create(lambda: self.trt.Builder(logger), "build")

    def network(self, builder: Any) -> Any:
        """An empty strongly typed network: a flag up to 10, the only kind from 11 on."""
        flag = getattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return builder.create_network(0 if flag is None else 1 << int(flag))

    def builder_config(self, builder: Any, memory_gib: float, level: int) -> Any:
        """Settings that every stage is built with."""
        config = builder.create_builder_config()
        config.clear_flag(self.trt.BuilderFlag.TF32)
        config.set_memory_pool_limit(self.trt.MemoryPoolType.WORKSPACE, int(memory_gib * GIB))
        if self.name == "tensorrt":  # RTX chooses kernels when it first runs, not when it builds
            config.builder_optimization_level = level
            config.profiling_verbosity = self.trt.ProfilingVerbosity.DETAILED  # names of kernels
            config.max_aux_streams = 0  # parts of an attention in turn, in the same memory
        return config

    def set_target(self, config: Any, capability: str) -> None:
        """Builds for a GPU that is not here; only TensorRT-RTX can."""
        if self.name != "rtx":
            raise UnfitError(
                f"TensorRT builds for the GPU that is there, not for {capability}; run this on "
                "that machine, or install tensorrt-rtx"
            )
        target = getattr(self.trt.ComputeCapability, "SM" + capability.replace(".", ""), None)
        if target is None:
            raise UnfitError(
                f"TensorRT-RTX {self.version} does not build for compute capability {capability}; "
                "it must be one of " + ", ".join(RTX_CAPABILITIES)
            )
        config.num_compute_capabilities = 1
        config.set_compute_capability(target, 0)

    def load_timings(self, config: Any, path: Path) -> bool:
        """Goes on with the kernel timings of earlier builds; RTX times nothing at build.

        False where the file was damaged or of another TensorRT or GPU: then from nothing.
        """
        if self.name != "tensorrt":
            return True
        for data in [path.read_bytes()] if path.exists() else []:
            timings = config.create_timing_cache(data)
            if timings is not None and config.set_timing_cache(timings, ignore_mismatch=False):
                return True
        if (fresh := config.create_timing_cache(b"")) is not None:
            config.set_timing_cache(fresh, ignore_mismatch=False)
        return not path.exists()

    def save_timings(self, config: Any, path: Path) -> None:
        """Keeps the kernel timings for the next build, where TensorRT has some."""
        timings = config.get_timing_cache() if self.name == "tensorrt" else None
        data = None if timings is None else timings.serialize()
        if data is not None:
            _write_whole(path, data)

    # --- running -----------------------------------------------------------------------------

    def runtime(self, logger: Any) -> Any:
        """A runtime. Raises EngineError without a driver."""
        return self._create(lambda: self.trt.Runtime(logger), "run engines")

    def context(self, engine: Any, shapes_repeat: bool, kernels: Path) -> tuple[Any, Any]:
        """An execution context that works in memory of ours, and the cache of its kernels.

        shapes_repeat: whether the same shapes come again and again. TensorRT-RTX then records
        CUDA graphs and compiles kernels for a shape; else each new shape would cost both anew.
        It keeps its kernels in `kernels`; of TensorRT the cache is None.
        """
        by_user = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.name != "rtx":
            return engine.create_execution_context(by_user), None
        settings = engine.create_runtime_config()
        settings.set_execution_context_allocation_strategy(by_user)
        graphs, special = (
            self.trt.CudaGraphStrategy,
            self.trt.DynamicShapesKernelSpecializationStrategy,
        )
        settings.cuda_graph_strategy = (
            graphs.WHOLE_GRAPH_CAPTURE if shapes_repeat else graphs.DISABLED
        )
        settings.dynamic_shapes_kernel_specialization_strategy = (
            special.LAZY if shapes_repeat else special.NONE
        )
        cache = settings.create_runtime_cache()
        if kernels.exists() and not cache.deserialize(kernels.read_bytes()):
            cache.reset()
        settings.set_runtime_cache(cache)
        return engine.create_execution_context(settings), cache

    def save_kernels(self, cache: Any, path: Path) -> None:
        """Keeps what TensorRT-RTX compiled while it ran, so that the next start need not."""
        data = None if cache is None else cache.serialize()
        if data is not None:
            _write_whole(path, data)

    def fused_attentions(self, engine: Any) -> int | None:
        """In how many places a kernel computes a whole attention; None where nobody can say.

        Of several profiles the one with the fewest. Engines of TensorRT-RTX choose their kernels
        when they run, so there is nothing to see in them.
        """
        if self.name != "tensorrt":
            return None
        inspector = engine.create_engine_inspector()
        text = inspector.get_engine_information(self.trt.LayerInformationFormat.JSON)
        return count_fused(text)

    def _create(self, create: Callable[[], Any], purpose: str) -> Any:
        try:
            return create()
        except (TypeError, RuntimeError) as error:
            raise EngineError(
                f"{self.label} cannot {purpose} here ({error}); is there an NVIDIA driver? "
                "`nvidia-smi` says, on a Jetson `cat /proc/driver/nvidia/version`"
            ) from error


def count_fused(text: str) -> int | None:
    """Fused attentions in what the engine inspector says (JSON); None when not understood."""
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError):
        return None
    counts: dict[str, int] = {"": 0}
    for layer in layers:
        line = layer if isinstance(layer, str) else json.dumps(layer)
        profile = re.search(r"\[profile (\d+)\]", line)
        key = profile[1] if profile else ""
        names = (
            line
            if isinstance(layer, str)
            else " ".join(str(layer.get(key, "")) for key in ("Name", "LayerType", "TacticName"))
        )
        counts[key] = counts.get(key, 0) + bool(FUSED_ATTENTION.search(names))
    return min(counts.values())


def doubt(label: str) -> str:
    """What speaks against a TensorRT, as a sentence; empty where nothing is known.

    label as in file names, "trt10.3.0".
    """
    numbers = re.match(r"trt(\d+)\.(\d+)", label)
    if not numbers or (int(numbers[1]), int(numbers[2])) not in WRONG_VIT_VERSIONS:
        return ""
    return (
        f"TensorRT {label.removeprefix('trt')} is reported to compute vision transformers wrongly "
        f"({WRONG_VIT_REPORTS}); every engine is checked on golden values after the build and at "
        "every start, but prefer 10.6 or later (JetPack 7.2 has 10.16)"
    )


def check_precision(precision: str, capability: str) -> None:
    """Refuses bfloat16 where the GPU has none. Raises UnfitError."""
    numbers = tuple(int(n) for n in capability.split("."))
    if precision == "bfloat16" and numbers < MIN_BFLOAT16_CAPABILITY:
        raise UnfitError(
            f"a GPU of compute capability {capability} (GeForce 20 and older) has no bfloat16; "
            "export and build with a profile of precision float16, or use a GeForce 30 or later"
        )


def installed(flavour: str = "auto", capability: str | None = None) -> TensorRTVersion:
    """The TensorRT to use: the one named, else the first that is installed and fits the GPU.

    capability as "8.7". Raises UnfitError with what to install.
    """
    if flavour not in ("auto", *PACKAGES):
        raise UnfitError(f"flavour is '{flavour}'; it must be auto, tensorrt or rtx")
    passed_over = []
    for name in PACKAGES if flavour == "auto" else (flavour,):
        if name == "rtx" and capability is not None and capability not in RTX_CAPABILITIES:
            passed_over.append(f"TensorRT-RTX does not run on compute capability {capability}")
            continue
        try:
            trt = import_module(PACKAGES[name])
        except (ImportError, OSError) as error:  # OSError: a library of it cannot be loaded
            passed_over.append(f"{PACKAGES[name]} cannot be imported ({error})")
            continue
        version = tuple(int(n) for n in trt.__version__.split(".")[:2])
        if name == "tensorrt" and version < MIN_VERSION:
            passed_over.append(f"TensorRT {trt.__version__} is older than 10.3")
            continue
        return TensorRTVersion(name, trt)
    raise UnfitError(
        f"no TensorRT here: {'; '.join(passed_over)}; on a Jetson it is part of JetPack, on a "
        "desktop run `pip install tensorrt-rtx`"
    )


def _write_whole(path: Path, data: Any) -> None:
    """Writes a file or leaves the old one; never half of it."""
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(memoryview(data))
    partial.replace(path)
