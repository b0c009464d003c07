# SPDX-License-Identifier: Apache-2.0
"""The stages in ONNX Runtime: numpy, onnxruntime and the files of `export.export_onnx`; no torch.

Features, hidden states and the key/value cache stay on the device, bound to the runs that read
them (IO binding). Sessions are opened when their stage is first used, so a node is ready before it
has loaded any weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

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
from g2vlm_ros.inference.cpu_quota import usable_cores
from g2vlm_ros.inference.device_errors import lost_sentence, says_lost
from g2vlm_ros.inference.input_checks import (
    check_boundaries,
    check_grid,
    check_ids,
    check_images,
    text_feeds,
)
from g2vlm_ros.inference.kv_buffer import ForkedCache
from g2vlm_ros.records import BackendGoneError, NonFiniteError, RawGeometry

DTYPES = ("float32", "float16", "int8")
ELEMENTS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
"""What features and hidden states are made of, by ONNX Runtime's names."""


class OnnxBackend:
    """Implements `inference.backend.Backend`; two calls with the same input give the same bits."""

    times_s: Mapping[str, float] = {}

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        manifest: Manifest,
        device: str,
        dtype: str,
        check_each_stage: bool | None = None,
    ):
        """check_each_stage: look for NaN after every stage, which copies its result to the host.

        Left out: on the CPU, where it is no copy; else in what comes to the host anyway, and the
        stage that made it is searched for when there is some.
        """
        self.config = config
        self.backend = f"onnx {device} {dtype}"
        self._folder, self._manifest = folder, manifest
        self._device, self._dtype = device, dtype
        self._element = np.float16 if dtype == "float16" else np.float32
        self._check_each_stage = device == "cpu" if check_each_stage is None else check_each_stage
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
        available = [dtype for dtype in DTYPES if manifest.of(dtype=dtype)]
        if dtype == "auto":
            preferred = "float16" if device == "cuda" else "float32"
            dtype = preferred if preferred in available else next(iter(available), preferred)
        if dtype not in available:
            raise ManifestError(
                f"{folder} has ONNX files of dtype {', '.join(available) or 'none'}, not {dtype}; "
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
        return OnnxCache(entry, self._element, self._device)

    def encode_geometry(self, images: np.ndarray) -> OnnxArray:
        check_images("images", images, ndim=4, multiple=PATCH_PX)
        fewest, most = self._manifest.views
        if not fewest <= len(images) <= most:
            raise ManifestError(
                f"{len(images)} views; the ONNX files take {fewest} to {most}; change the number "
                f"or run `{command(self._folder, '--views', f'1..{len(images)}')}`"
            )
        windows = self.config.dino.windows
        session = self._session("encode_geometry", images.shape[1:3], dino_windows=windows)
        # An earlier export has no descriptor; it is computed when somebody asks for it.
        names = [output.name for output in session.get_outputs()]
        results = self._run("encode_geometry", session, {"images": images}, names, ("features",))
        results["features"].descriptor = results.get("descriptor")
        return results["features"]

    def describe(self, features: OnnxArray) -> np.ndarray:
        if features.descriptor is not None:
            return features.descriptor.numpy()
        return features.numpy().mean(1, dtype=np.float32)

    def fetch(self, features: OnnxArray) -> np.ndarray:
        return features.numpy().astype(np.float32)

    def encode_semantics(self, image: np.ndarray) -> OnnxArray:
        check_images("image", image, ndim=3, multiple=PATCH_PX * self.config.vision.merge)
        session = self._session("encode_semantics", image.shape[:2])
        names = ("features",)
        return self._run("encode_semantics", session, {"image": image}, names, names)["features"]

    def geometry(self, features: OnnxArray, segment: Segment, cache: OnnxCache) -> OnnxArray:
        features = OnnxArray.of(features, self._device)
        views, patches = features.shape[:2]
        check_boundaries(segment, "geometry", views, patches)
        check_ids(segment.token_ids, self.config.text.vocab_size)
        feeds = {
            "features": features,
            "boundary_ids": segment.token_ids.reshape(views, 2),
            "positions": segment.positions,
        }
        return self._append("geometry", "hidden", feeds, segment.length, cache, features)

    def heads(
        self, hidden: OnnxArray, grid_hw: tuple[int, int], global_points: bool = False
    ) -> RawGeometry:
        check_grid(hidden.shape[1], grid_hw)
        size_hw = (grid_hw[0] * PATCH_PX, grid_hw[1] * PATCH_PX)
        session = self._session(GLOBAL if global_points else "heads", size_hw)
        hidden = OnnxArray.of(hidden, self._device)
        grid = hidden.reshaped((hidden.shape[0], *grid_hw, hidden.shape[-1]))
        names = [output.name for output in session.get_outputs()]
        results = self._run("heads", session, {"hidden": grid}, names)
        arrays = {name: result.numpy() for name, result in results.items()}
        self._check("heads", arrays.values(), hidden)
        return RawGeometry(
            arrays["local_points"],
            arrays["poses"],
            arrays["rotation9"],
            arrays.get("confidence"),
            arrays.get("global_points"),
        )

    def language(
        self, segment: Segment, cache: OnnxCache, features: OnnxArray | None = None
    ) -> np.ndarray:
        features = None if features is None else OnnxArray.of(features, self._device)
        image_tokens = None if features is None else features.shape[0]
        feeds = text_feeds(segment, cache.length, image_tokens, self.config.text.vocab_size)
        none = np.empty((0, self.config.text.hidden_size), self._element)
        feeds["features"] = none if segment.kind == "text" else features
        logits = self._append("language", "logits", feeds, segment.length, cache, features)
        return logits.numpy()

    # --- running -----------------------------------------------------------------------------

    def _run(
        self,
        stage: str,
        session: onnxruntime.InferenceSession,
        feeds: Mapping[str, np.ndarray | OnnxArray],
        names: Sequence[str],
        stay: Sequence[str] = (),
    ) -> dict[str, OnnxArray]:
        """Runs a stage; of its outputs `names`, those in `stay` are left on the device."""
        with _failures_of(stage):
            binding = session.io_binding()
            self._bind_inputs(binding, feeds)
            for name in names:
                binding.bind_output(name, self._device if name in stay else "cpu")
            session.run_with_iobinding(binding)
            values = binding.get_outputs()
        results = {name: OnnxArray(v, stage) for name, v in zip(names, values, strict=True)}
        if self._check_each_stage:
            for name in stay:
                _finite(stage, results[name].numpy())
        return results

    def _append(
        self,
        stage: str,
        result: str,
        feeds: Mapping[str, np.ndarray | OnnxArray],
        tokens: int,
        cache: OnnxCache,
        source: OnnxArray | None,
    ) -> OnnxArray:
        """Runs a stage that reads the cache and writes behind it; the cache grows on success."""
        session = self._session(stage)
        with _failures_of(stage):
            binding = session.io_binding()
            self._bind_inputs(binding, feeds)
            cache.bind(binding, tokens)
            binding.bind_output(result, "cpu" if result == "logits" else self._device)
            session.run_with_iobinding(binding)
            output = OnnxArray(binding.get_outputs()[-1], stage, source)
        if result == "logits" or self._check_each_stage:
            self._check(stage, [output.numpy()], source)
        cache.commit(tokens)
        return output

    def _bind_inputs(
        self, binding: onnxruntime.IOBinding, feeds: Mapping[str, np.ndarray | OnnxArray]
    ) -> None:
        for name, feed in feeds.items():
            if isinstance(feed, OnnxArray):
                feed.bind(binding, name, self._device)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(feed))

    def _check(self, stage: str, arrays: Iterable[np.ndarray], source: OnnxArray | None) -> None:
        """NonFiniteError with the first stage that made a value that is not finite."""
        if all(np.isfinite(array).all() for array in arrays):
            return
        while source is not None:
            if not np.isfinite(source.numpy()).all():
                stage = source.stage
            source = source.source
        raise NonFiniteError(stage)

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


class OnnxArray:
    """Features or hidden states where ONNX Runtime left them: on the device of the sessions."""

    def __init__(
        self,
        value: onnxruntime.OrtValue,
        stage: str,
        source: OnnxArray | None = None,
        shape: tuple[int, ...] | None = None,
    ):
        """stage computed it, from source; shape is another view of the same memory."""
        self.value, self.stage, self.source = value, stage, source
        self.shape = shape or tuple(value.shape())
        self.descriptor: OnnxArray | None = None
        """Of features of views: the mean token of each."""

    @staticmethod
    def of(array: OnnxArray | np.ndarray, device: str) -> OnnxArray:
        """The same on the device; arrays of the host are taken too, by experiments and tests."""
        if isinstance(array, OnnxArray):
            return array
        host = np.ascontiguousarray(array)
        return OnnxArray(onnxruntime.OrtValue.ortvalue_from_numpy(host, device, 0), "input")

    def numpy(self) -> np.ndarray:
        """A copy on the host."""
        return self.value.numpy().reshape(self.shape)

    def reshaped(self, shape: tuple[int, ...]) -> OnnxArray:
        return OnnxArray(self.value, self.stage, self.source, shape)

    def bind(self, binding: onnxruntime.IOBinding, name: str, device: str) -> None:
        """Gives it to a run without a copy; who calls keeps it until the run is over."""
        element = ELEMENTS[self.value.data_type()]
        binding.bind_input(name, device, 0, element, self.shape, self.value.data_ptr())


class OnnxTokens(NamedTuple):
    """Keys or values with room for many tokens."""

    value: onnxruntime.OrtValue
    host: np.ndarray | None
    """The same memory, where it is the host's."""


class OnnxCache(ForkedCache[list[OnnxTokens]]):
    """Keys and values, token-major: a stage reads the first tokens and writes behind them."""

    def __init__(self, entry: tuple[int, int, int], element: type, device: str):
        super().__init__()
        self._entry, self._element, self._device = entry, np.dtype(element), device
        self._row_bytes = int(np.prod(entry)) * self._element.itemsize

    def allocate(self, capacity: int) -> list[OnnxTokens]:
        return [self._empty((capacity, *self._entry)) for _ in range(2)]

    def _empty(self, shape: tuple[int, ...]) -> OnnxTokens:
        if self._device == "cpu":
            host = np.empty(shape, self._element)
            return OnnxTokens(onnxruntime.OrtValue.ortvalue_from_numpy(host), host)
        value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
            shape, self._element.type, self._device, 0
        )
        return OnnxTokens(value, None)

    def copy_tokens(self, target: list[OnnxTokens], source: list[OnnxTokens], tokens: int) -> None:
        for new, old in zip(target, source, strict=True):
            if new.host is not None:
                new.host[:tokens] = old.host[:tokens]
                continue
            # ONNX Runtime's Python has no copy on the device: by way of the host, once per growth.
            rows = np.zeros(new.value.shape(), self._element)
            rows[:tokens] = old.value.numpy()[:tokens]
            new.value.update_inplace(rows)

    def bind(self, binding: onnxruntime.IOBinding, tokens: int) -> None:
        """Gives a run the cached tokens to read and the room behind them to write."""
        element = self._element.type
        for name, (value, _) in zip(("keys", "values"), self.reserve(tokens), strict=True):
            start = value.data_ptr()
            past, new = (self.length, *self._entry), (tokens, *self._entry)
            binding.bind_input(f"past_{name}", self._device, 0, element, past, start)
            behind = start + self.length * self._row_bytes
            binding.bind_output(name, self._device, 0, element, new, behind)


def open_session(path: Path, device: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
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
        if says_lost(str(error)):
            where = f"ONNX Runtime, {stage}"
            raise BackendGoneError(lost_sentence(where, str(error).split("\n")[0])) from error
        raise RuntimeError(
            f"onnxruntime {onnxruntime.__version__} failed in stage {stage} ({error}); if memory "
            "ran out, use fewer views or smaller images, or end other programs"
        ) from error


def _finite(stage: str, array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        raise NonFiniteError(stage)
    return array
