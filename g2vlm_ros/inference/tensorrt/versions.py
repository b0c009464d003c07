# SPDX-License-Identifier: Apache-2.0
"""Which TensorRT is here, and all that differs between TensorRT 10.3 to 11 and TensorRT-RTX.

Both flavours are one API under two names: TensorRT (package `tensorrt`) on Jetson and data-centre
GPUs, TensorRT-RTX (package `tensorrt_rtx`, a small wheel) on desktop GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from g2vlm_ros.records import UnfitError

PACKAGES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
OLDEST = (10, 3)
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT-RTX 1.7 builds for; no Orin (8.7), Hopper (9.0), Thor."""
GIB = 1 << 30


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
        return config

    def set_target(self, config: Any, capability: str) -> None:
        """Builds for a GPU that is not here; only TensorRT-RTX can."""
        if self.name != "rtx":
            raise UnfitError(
                f"TensorRT builds for the GPU that is there, not for {capability}; run this on "
                "that machine, or install tensorrt-rtx"
            )
        wanted = getattr(self.trt.ComputeCapability, "SM" + capability.replace(".", ""), None)
        if wanted is None:
            raise UnfitError(
                f"TensorRT-RTX {self.version} does not build for compute capability {capability}; "
                "it must be one of " + ", ".join(RTX_CAPABILITIES)
            )
        config.num_compute_capabilities = 1
        config.set_compute_capability(wanted, 0)

    def load_timings(self, config: Any, path: Path) -> None:
        """Goes on with the kernel timings of earlier builds; RTX times nothing at build."""
        if self.name == "tensorrt":
            data = path.read_bytes() if path.exists() else b""
            config.set_timing_cache(config.create_timing_cache(data), ignore_mismatch=False)

    def save_timings(self, config: Any, path: Path) -> None:
        if self.name == "tensorrt":
            path.write_bytes(memoryview(config.get_timing_cache().serialize()))

    # --- running -----------------------------------------------------------------------------

    def context(self, engine: Any) -> Any:
        """An execution context that works in memory of ours; with CUDA graphs inside on RTX."""
        by_user = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.name != "rtx":
            return engine.create_execution_context(by_user)
        settings = engine.create_runtime_config()
        settings.set_execution_context_allocation_strategy(by_user)
        settings.cuda_graph_strategy = self.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return engine.create_execution_context(settings)

    def scratch_bytes(self, engine: Any) -> int:
        """Working memory for the largest profile."""
        size = getattr(engine, "device_memory_size_v2", None)
        return engine.device_memory_size if size is None else size

    def set_scratch(self, context: Any, address: int, size: int) -> None:
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(address, size)
        else:
            context.device_memory = address


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
        except ImportError as error:
            passed_over.append(f"{PACKAGES[name]} cannot be imported ({error})")
            continue
        version = tuple(int(n) for n in trt.__version__.split(".")[:2])
        if name == "tensorrt" and version < OLDEST:
            passed_over.append(f"TensorRT {trt.__version__} is older than 10.3")
            continue
        return TensorRTVersion(name, trt)
    raise UnfitError(
        f"no TensorRT here: {'; '.join(passed_over)}; on a Jetson it is part of JetPack, on a "
        "desktop run `pip install tensorrt-rtx`"
    )
