# SPDX-License-Identifier: Apache-2.0
"""The stages in ONNX Runtime: numpy, onnxruntime and the files of `export.onnx`; no torch.

Features and hidden states are numpy arrays; the key/value cache stays on the device. Sessions are
opened when their stage is first used, so a node is ready before it has loaded any weight.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from g2vlm_ros.checkpoint.config import PATCH_PX, ModelConfig
from g2vlm_ros.checkpoint.onnx_manifest import (
    GLOBAL,
    GraphFile,
    Manifest,
    ManifestError,
    check_graph,
    command,
)
from g2vlm_ros.checkpoint.prompt_layout import Segment
from g2vlm_ros.inference.input_checks import check_boundaries, check_grid, check_ids, check_images
from g2vlm_ros.records import NonFiniteError, RawGeometry

DTYPES = ("float32", "float16", "int8")
GROWTH_TOKENS = 256
"""Room for about one answer: a decode step then copies nothing, a prefill wastes little."""


class OnnxBackend:
    """Implements `runtime.stages.Backend`; two calls with the same input give the same bits."""

    times_s: Mapping[str, float] = {}

    def __init__(
        self, folder: Path, config: ModelConfig, manifest: Manifest, device: str, dtype: str
    ):
        self.config = config
        self.backend = f"onnx {device} {dtype}"
        self._folder, self._manifest = folder, manifest
        self._device, self._dtype = device, dtype
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    @classmethod
    def open(
        cls,
        folder: str | Path,
        device: str = "auto",
        dtype: str = "auto",
        dino_windows: str | None = None,
    ) -> OnnxBackend:
        """A checkpoint folder that `export.onnx` has put graphs in.

        device "auto" is CUDA where onnxruntime has it, else the CPU; dtype "auto" is float16 on
        CUDA and float32 on the CPU if such graphs are there, else what is. Raises ManifestError.
        """
        folder, manifest = Path(folder), Manifest.read(folder)
        manifest.check_weights(folder)
        has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        device = {"auto": "cuda" if has_cuda else "cpu"}.get(device, device.split(":")[0])
        if device == "cuda" and not has_cuda:
            raise ManifestError(
                "device 'cuda' needs the package onnxruntime-gpu; install it or use device cpu"
            )
        made = [dtype for dtype in DTYPES if manifest.of(dtype=dtype)]
        if dtype == "auto":
            preferred = "float16" if device == "cuda" else "float32"
            dtype = preferred if preferred in made else next(iter(made), preferred)
        if dtype not in made:
            raise ManifestError(
                f"{folder} has ONNX files of dtype {', '.join(made) or 'none'}, not {dtype}; "
                f"run `{command(folder, '--dtype', dtype)}`"
            )
        config = ModelConfig.read(folder)
        if dino_windows is not None:
            config = replace(config, dino=replace(config.dino, windows=dino_windows))
        windows = config.dino.windows
        if not manifest.of(stage="encode_geometry", dtype=dtype, dino_windows=windows):
            raise ManifestError(
                f"{folder} has no ONNX file with dino_windows {windows}; "
                f"run `{command(folder, '--dino-windows', windows)}`"
            )
        return cls(folder, config, manifest, device, dtype)

    def new_cache(self) -> OnnxCache:
        text = self.config.text
        entry = (text.layers, text.kv_heads, text.head_dim)
        return OnnxCache(
            entry, np.float16 if self._dtype == "float16" else np.float32, self._device
        )

    def encode_geometry(self, images: np.ndarray) -> np.ndarray:
        check_images("images", images, ndim=4, multiple=PATCH_PX)
        fewest, most = self._manifest.views
        if not fewest <= len(images) <= most:
            raise ManifestError(
                f"{len(images)} views; the ONNX files take {fewest} to {most}; change the number "
                f"or run `{command(self._folder, '--views', f'1..{len(images)}')}`"
            )
        windows = self.config.dino.windows
        session = self._session("encode_geometry", images.shape[1:3], dino_windows=windows)
        with _failures_of("encode_geometry"):
            features = session.run(None, {"images": images})[0]
        return _finite("encode_geometry", features)

    def describe(self, features: np.ndarray) -> np.ndarray:
        return features.mean(1, dtype=np.float32)

    def encode_semantics(self, image: np.ndarray) -> np.ndarray:
        check_images("image", image, ndim=3, multiple=PATCH_PX * self.config.vision.merge)
        session = self._session("encode_semantics", image.shape[:2])
        with _failures_of("encode_semantics"):
            features = session.run(None, {"image": image})[0]
        return _finite("encode_semantics", features)

    def geometry(self, features: np.ndarray, segment: Segment, cache: OnnxCache) -> np.ndarray:
        views, patches = features.shape[:2]
        check_boundaries(segment, "geometry", views, patches)
        check_ids(segment.token_ids, self.config.text.vocab_size)
        feeds = {
            "features": features,
            "boundary_ids": segment.token_ids.reshape(views, 2),
            "positions": segment.positions,
        }
        return self._append("geometry", "hidden", feeds, segment.length, cache)

    def heads(
        self, hidden: np.ndarray, grid_hw: tuple[int, int], global_points: bool = False
    ) -> RawGeometry:
        check_grid(hidden.shape[1], grid_hw)
        size_hw = (grid_hw[0] * PATCH_PX, grid_hw[1] * PATCH_PX)
        session = self._session(GLOBAL if global_points else "heads", size_hw)
        grid = hidden.reshape(len(hidden), *grid_hw, -1)
        names = [output.name for output in session.get_outputs()]
        with _failures_of("heads"):
            found = dict(zip(names, session.run(None, {"hidden": grid}), strict=True))
        for array in found.values():
            _finite("heads", array)
        return RawGeometry(
            found["local_points"],
            found["poses"],
            found["rotation9"],
            found.get("confidence"),
            found.get("global_points"),
        )

    def language(
        self, segment: Segment, cache: OnnxCache, features: np.ndarray | None = None
    ) -> np.ndarray:
        check_ids(segment.token_ids, self.config.text.vocab_size)
        last = cache.length + segment.length - 1
        if segment.kind == "text":
            features = np.empty((0, self.config.text.hidden_size), cache.dtype)
            reach = np.arange(cache.length, last + 1)
        else:
            if features is None:
                raise ValueError("a semantic segment needs the features of its image; pass them")
            check_boundaries(segment, "semantic", 1, features.shape[0])
            reach = np.full(segment.length, last)
        feeds = {
            "ids": segment.token_ids,
            "features": features,
            "reach": reach,
            "positions": segment.positions,
        }
        return self._append("language", "logits", feeds, segment.length, cache)

    def _append(
        self, stage: str, result: str, feeds: Mapping[str, Any], tokens: int, cache: OnnxCache
    ) -> np.ndarray:
        """Runs a stage that reads the cache and writes behind it; the cache grows on success."""
        session = self._session(stage)
        binding = session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        with _failures_of(stage):
            cache.bind(binding, tokens)
            binding.bind_output(result)
            session.run_with_iobinding(binding)
        output = _finite(stage, binding.get_outputs()[-1].numpy())
        cache.grow(tokens)
        return output

    def _session(
        self, stage: str, size_hw: tuple[int, ...] | None = None, **wanted: str
    ) -> onnxruntime.InferenceSession:
        graph = self._graph(stage, size_hw, wanted)
        if graph.file not in self._sessions:
            path = check_graph(self._folder, graph)
            try:
                self._sessions[graph.file] = open_session(path, self._device)
            except Exception as error:  # onnxruntime has one class per status, none in common
                raise ManifestError(
                    f"onnxruntime {onnxruntime.__version__} cannot load {path} ({error}); "
                    f"run `{command(self._folder)}`, or use another backend"
                ) from error
        return self._sessions[graph.file]

    def _graph(
        self, stage: str, size_hw: tuple[int, ...] | None, wanted: Mapping[str, str]
    ) -> GraphFile:
        """The graph of a stage, one fixed to the size before one that takes any."""
        graphs = self._manifest.of(stage=stage, dtype=self._dtype, **wanted)
        graphs.sort(key=lambda graph: graph.weight_only is not None)  # whole weights first
        size = None if size_hw is None else (size_hw[1], size_hw[0])
        for candidate in (size, None):
            for graph in graphs:
                if graph.size == candidate:
                    return graph
        if not graphs:
            more = "--global-points" if stage == GLOBAL else f"--dtype {self._dtype}"
            raise ManifestError(
                f"{self._folder} has no {self._dtype} ONNX file of stage {stage}; "
                f"run `{command(self._folder, more)}`"
            )
        sizes = ", ".join(f"{g.size[0]}x{g.size[1]}" for g in graphs)
        option = "--semantic-sizes" if stage == "encode_semantics" else "--sizes"
        raise ManifestError(
            f"images of {size[0]}x{size[1]} pixels; the ONNX files of stage {stage} take {sizes}; "
            f"run `{command(self._folder, option, f'{size[0]}x{size[1]}')}`"
        )


class OnnxCache:
    """Keys and values, token-major: a stage reads the first tokens and writes behind them.

    Forks share their buffer. What a cache has written never changes, so a fork may go on writing
    behind the shared tokens as long as nobody else has; otherwise it takes a copy first.
    """

    def __init__(self, entry: tuple[int, int, int], dtype: type, device: str):
        self.length, self.dtype = 0, np.dtype(dtype)
        self._entry, self._device = entry, device
        self._row_bytes = int(np.prod(entry)) * self.dtype.itemsize
        self._buffer = _Buffer([], 0, 0)

    def fork(self) -> OnnxCache:
        """A cache with the same content; appending to one never changes the other."""
        other = OnnxCache(self._entry, self.dtype.type, self._device)
        other.length, other._buffer = self.length, self._buffer
        return other

    def bind(self, binding: onnxruntime.IOBinding, tokens: int) -> None:
        """Gives a run the cached tokens to read and the room behind them to write."""
        self._make_room(tokens)
        for name, value in zip(("keys", "values"), self._buffer.pair, strict=True):
            start = value.data_ptr()
            binding.bind_input(
                f"past_{name}",
                self._device,
                0,
                self.dtype.type,
                (self.length, *self._entry),
                start,
            )
            binding.bind_output(
                name,
                self._device,
                0,
                self.dtype.type,
                (tokens, *self._entry),
                start + self.length * self._row_bytes,
            )

    def grow(self, tokens: int) -> None:
        """What was written behind the cached tokens now belongs to them."""
        self.length += tokens
        self._buffer.used = self.length

    def _make_room(self, tokens: int) -> None:
        needed, old = self.length + tokens, self._buffer
        if old.used == self.length and needed <= old.capacity:
            return
        capacity, pair = needed + GROWTH_TOKENS, []
        for index in range(2):
            data = np.empty((capacity, *self._entry), self.dtype)
            if self.length:
                data[: self.length] = old.pair[index].numpy()[: self.length]
            pair.append(onnxruntime.OrtValue.ortvalue_from_numpy(data, self._device, 0))
        self._buffer = _Buffer(pair, capacity, self.length)


class _Buffer:
    """Keys and values with room for `capacity` tokens, of which `used` are written."""

    def __init__(self, pair: list[onnxruntime.OrtValue], capacity: int, used: int):
        self.pair, self.capacity, self.used = pair, capacity, used


def open_session(path: Path, device: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    # Idle threads that spin would take the processor from the rest of the robot.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Products with int4 weights would else round their activations to int8.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    if device == "cuda":
        providers.insert(0, "CUDAExecutionProvider")
    return onnxruntime.InferenceSession(str(path), options, providers)


@contextmanager
def _failures_of(stage: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # onnxruntime has one class per status, none in common
        raise RuntimeError(
            f"onnxruntime {onnxruntime.__version__} failed in stage {stage} ({error}); if memory "
            "ran out, use fewer views or smaller images, or end other programs"
        ) from error


def _finite(stage: str, array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        raise NonFiniteError(stage)
    return array
