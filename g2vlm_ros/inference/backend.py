# SPDX-License-Identifier: Apache-2.0
"""The stages of the network as every backend offers them, and the door to the backends.

A reconstruction: `encode_geometry`, `language` (the prompt), `geometry`, `heads`. A question goes
on with `language` for each semantic image and for the text, then `decode` gives the answer token
by token. Features and hidden states are opaque and stay on the device; only numpy and ids go in
and come out.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from g2vlm_ros.checkpoint.config import ModelConfig
from g2vlm_ros.checkpoint.prompt_layout import Segment
from g2vlm_ros.records import RawGeometry, UnfitError

Features = Any
"""What a backend's encoders and trunk return; only the same backend can read it."""

BACKENDS = {
    "tensorrt": ("g2vlm_ros.inference.tensorrt.backend", "TensorRTBackend"),
    "onnx": ("g2vlm_ros.inference.onnx_backend", "OnnxBackend"),
    "torch": ("g2vlm_ros.inference.torch_backend", "TorchBackend"),
    "triton": ("g2vlm_ros.inference.triton_backend", "TritonBackend"),
}
"""Name of a backend -> module and class; imported when opened, so each needs only its own."""
GPU_DEVICES = ("/dev/nvidiactl", "/dev/nvgpu", "/dev/dxg")
"""One of them is there where a driver for NVIDIA GPUs runs: desktop, Jetson, WSL."""


class Cache(Protocol):
    """The keys and values of the tokens so far."""

    length: int

    def fork(self) -> Cache:
        """A cache with the same content; appending to one never changes the other."""


class Backend(Protocol):
    """One network on one device. A result with NaN or infinity raises NonFiniteError(stage)."""

    config: ModelConfig
    backend: str
    """What runs, for people: backend, device and precision."""
    chosen_because: str
    """Why this backend, for the log; set by `open_backend`."""
    times_s: Mapping[str, float]
    """What each stage took on the device when it last ran; empty where a caller can time it."""

    def encode_geometry(self, images: np.ndarray) -> Features:
        """uint8 (N, H, W, 3) RGB, sides multiples of 14: geometric tokens (N, P, C)."""

    def describe(self, features: Features) -> np.ndarray:
        """float32 (N, C): each view's mean geometric token, by which a place is recognised."""

    def fetch(self, features: Features) -> np.ndarray:
        """float32: features or hidden states on the host; for comparisons, not on the way."""

    def encode_semantics(self, image: np.ndarray) -> Features:
        """uint8 (H, W, 3) RGB, sides multiples of 28: semantic tokens of one image (T, C)."""

    def new_cache(self) -> Cache:
        """An empty cache."""

    def geometry(self, features: Features, segment: Segment, cache: Cache) -> Features:
        """Appends a geometry segment with all views; hidden states (N, P, C) for the heads."""

    def heads(
        self, hidden: Features, grid_hw: tuple[int, int], global_points: bool = False
    ) -> RawGeometry:
        """Points and poses from the hidden states; grid_hw are the patches of a view."""

    def language(
        self, segment: Segment, cache: Cache, features: Features | None = None
    ) -> Features:
        """Appends a text segment, or a semantic one with its features.

        The result is the hidden state of its last token, for `logits`.
        """

    def logits(self, hidden: Features) -> np.ndarray:
        """float32 (vocabulary,): how likely each token is behind one of `language`."""

    def decode(self, token: int, position: int, cache: Cache) -> Generator[int, None, None]:
        """Appends `token` at a position and yields the likeliest next one, again and again.

        A backend may be some tokens ahead; when the iterator is closed the cache holds what was
        fed to get the ids that were taken. NonFiniteError where logits are not finite.
        """


def open_backend(
    backend: str,
    folder: str | Path,
    engines: str | Path = "",
    threads: int = 0,
    cuda_graphs: bool = True,
    fused_kernels: bool = True,
    **options: Any,
) -> Backend:
    """Opens a checkpoint folder with a backend; options are those of the backend's `open`.

    engines: cache folder of built engines, for tensorrt alone; empty for the default one.
    threads: of ONNX Runtime on the CPU; 0 for the cores that this process may use. cuda_graphs,
    fused_kernels: what torch does on a GPU.
    "auto" takes the first that can run the folder: with a GPU tensorrt, torch, onnx; without one
    onnx, which is faster there, then torch. `chosen_because` of the result says why.
    """
    if not Path(folder).is_dir():
        raise UnfitError(f"{folder} is not a folder; give the folder of a checkpoint")
    special = {
        "tensorrt": {"engines": engines} if engines else {},
        "onnx": {"threads": threads} if threads else {},
        "torch": {"cuda_graphs": cuda_graphs, "fused_kernels": fused_kernels},
    }
    if backend != "auto":
        if backend not in BACKENDS:
            names = ", ".join(["auto", *BACKENDS])
            raise ValueError(f"backend '{backend}' is not there; choose one of {names}")
        try:
            return _open(backend, folder, "asked for", special, options)
        except ImportError as error:
            raise UnfitError(
                f"model.backend is {backend}, which needs what is not installed here: {error}; "
                "install it, or choose another (auto takes one that is here)"
            ) from error
    passed_over = []
    for name in _by_preference(options.get("device", "auto")):
        try:
            why = "; ".join([*passed_over, "the best that is here"])
            return _open(name, folder, why, special, options)
        except (ImportError, UnfitError) as error:
            passed_over.append(f"not {name}: {error}")
    raise UnfitError(f"no backend can run {folder}: {'; '.join(passed_over)}")


def _by_preference(device: str) -> tuple[str, ...]:
    if device != "cpu" and any(Path(path).exists() for path in GPU_DEVICES):
        return ("tensorrt", "torch", "onnx")
    return ("onnx", "torch")


def _open(
    name: str,
    folder: str | Path,
    why: str,
    special: dict[str, dict[str, Any]],
    options: dict[str, Any],
) -> Backend:
    """special: options that only one backend has, by its name."""
    module, kind = BACKENDS[name]
    options = {**options, **special.get(name, {})}
    stages = getattr(import_module(module), kind).open(folder, **options)
    stages.chosen_because = why
    return stages
