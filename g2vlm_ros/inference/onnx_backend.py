# SPDX-License-Identifier: Apache-2.0
"""The stages in ONNX Runtime: numpy, onnxruntime and the files of `export.export_onnx`; no torch.

Features, hidden states and the key/value cache stay on the device, bound to the runs that read
them (IO binding). Sessions are opened when their stage is first used, so a node is ready before it
has loaded any weight.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime

from g2vlm_ros.checkpoint.config import PATCH_PX, ModelConfig
from g2vlm_ros.checkpoint.onnx_manifest import (
    CACHE_GRAPHS,
    GLOBAL,
    GraphFile,
    Manifest,
    ManifestError,
    check_graph,
    command,
)
from g2vlm_ros.checkpoint.prompt_layout import Segment
from g2vlm_ros.inference.cpu_quota import usable_cores
from g2vlm_ros.inference.decoding_state import STATE, STEPS_AHEAD, first_state
from g2vlm_ros.inference.device_errors import lost_sentence, says_lost
from g2vlm_ros.inference.input_checks import (
    check_boundaries,
    check_grid,
    check_ids,
    check_images,
    text_feeds,
)
from g2vlm_ros.inference.onnx_cache import (
    SIDES,
    DeviceCache,
    HostCache,
    OnnxArray,
    OnnxCache,
)
from g2vlm_ros.records import BackendGoneError, NonFiniteError, RawGeometry

DTYPES = ("float32", "float16", "int8")
WINDOW_STAGES = ("encode_geometry", "geometry", "heads", GLOBAL)
"""What runs for every window, on the CPU in memory that it keeps (`open_session`)."""
REMEMBERED_SHAPES = 4
"""Sizes of window that a stage keeps memory for: two cameras, with and without a question."""


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
        on_host: bool | None = None,
        threads: int = 0,
    ):
        """on_host: the memory of the device is the host's; left out: on the CPU.

        Then caches are numpy arrays, and every stage is looked at for NaN. Else that happens in
        what comes to the host anyway, and the stage that made it is searched for.
        """
        self.config = config
        self.backend = f"onnx {device} {dtype}"
        self._folder, self._manifest = folder, manifest
        self._device, self._dtype = device, dtype
        self._element = np.float16 if dtype == "float16" else np.float32
        self._on_host = device == "cpu" if on_host is None else on_host
        self._steps_ahead = 1 if self._on_host else STEPS_AHEAD
        self._threads = threads
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._shapes: dict[str, deque[tuple]] = {}

    @classmethod
    def open(
        cls,
        folder: str | Path,
        device: str = "auto",
        dtype: str = "auto",
        dino_windows: str | None = None,
        threads: int = 0,
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
        return cls(folder, config, manifest, device, dtype, threads=threads)

    def new_cache(self) -> OnnxCache:
        text = self.config.text
        if self._on_host:
            return HostCache(text, self._element)
        store, load = (self._session(stage) for stage in CACHE_GRAPHS)
        return DeviceCache(text, self._element, self._device, store, load)

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
        names = ("features", "descriptor")
        results = self._run("encode_geometry", session, {"images": images}, names, names[:1])
        descriptor = results["descriptor"].numpy()
        results["features"].descriptor = OnnxArray.on_host(descriptor, "encode_geometry")
        return results["features"]

    def describe(self, features: OnnxArray) -> np.ndarray:
        return features.descriptor.numpy()

    def fetch(self, features: OnnxArray) -> np.ndarray:
        return features.numpy().astype(np.float32, copy=False)

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
            **cache.compact(),
        }
        return self._append("geometry", feeds, segment.length, cache, features)

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
    ) -> OnnxArray:
        features = None if features is None else OnnxArray.of(features, self._device)
        image_tokens = None if features is None else features.shape[0]
        feeds = text_feeds(segment, image_tokens, self.config.text.vocab_size)
        feeds["features"] = self._no_features() if segment.kind == "text" else features
        feeds["stored"] = np.array([cache.length])
        return self._append("language", feeds, segment.length, cache, features)

    def logits(self, hidden: OnnxArray) -> np.ndarray:
        state = first_state(0, 0, 0)
        del state["ids"]  # what was fed is in the hidden state
        session = self._session("next_token")
        results = self._run("next_token", session, {"hidden": hidden, **state}, ("logits",))
        logits = results["logits"].numpy()
        self._check("next_token", [logits], hidden)
        return logits

    def decode(self, token: int, position: int, cache: OnnxCache) -> Generator[int, None, None]:
        check_ids(np.array([token]), self.config.text.vocab_size)
        state, length = first_state(token, position, cache.length), cache.length
        try:
            while True:
                for _ in range(self._steps_ahead):
                    state = self._step(state, cache)
                for newest in state["recent"].numpy()[-self._steps_ahead :]:
                    if newest < 0:
                        raise NonFiniteError("language")
                    length += 1
                    yield int(newest)
        finally:
            cache.cut(length)

    def _step(
        self, state: dict[str, np.ndarray | OnnxArray], cache: OnnxCache
    ) -> dict[str, OnnxArray]:
        """One token, and what the next step is fed; all of it stays on the device."""
        feeds = {name: state[name] for name in ("ids", "positions", "stored")}
        feeds |= {"reach": np.zeros(1, np.int64), "features": self._no_features()}
        hidden = self._append("language", feeds, 1, cache, None)
        feeds = {name: state[name] for name in ("positions", "stored", "recent")}
        names = tuple(f"next_{name}" for name in STATE)
        session = self._session("next_token")
        results = self._run("next_token", session, {"hidden": hidden, **feeds}, names, names)
        return {name: results[f"next_{name}"] for name in STATE}

    def _no_features(self) -> np.ndarray:
        return np.empty((0, self.config.text.hidden_size), self._element)

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
            session.run_with_iobinding(binding, self._run_options(stage, feeds))
            values = binding.get_outputs()
        results = {name: OnnxArray(v, stage) for name, v in zip(names, values, strict=True)}
        if self._on_host:
            for name in stay:
                array = _finite(stage, results[name].numpy())
                results[name] = OnnxArray.on_host(array, stage)
        return results

    def _append(
        self,
        stage: str,
        feeds: Mapping[str, np.ndarray | OnnxArray],
        tokens: int,
        cache: OnnxCache,
        source: OnnxArray | None,
    ) -> OnnxArray:
        """Runs a stage that adds tokens to the cache, which grows on success."""
        session = self._session(stage)
        buffers = cache.reserve(tokens)
        outputs = [output.name for output in session.get_outputs()]
        in_place = "keys" not in outputs
        names = ("hidden",) if in_place else ("hidden", *SIDES)
        with _failures_of(stage):
            binding = session.io_binding()
            self._bind_inputs(binding, feeds)
            if stage == "language":
                cache.bind(binding, buffers, in_place)
            for name in names:
                binding.bind_output(name, self._device)
            session.run_with_iobinding(binding, self._run_options(stage, feeds))
            results = binding.get_outputs()[-len(names) :]
        values = dict(zip(names, results, strict=True))
        hidden = OnnxArray(values["hidden"], stage, source)
        if self._on_host:
            array = hidden.numpy()
            self._check(stage, [array], source)
            hidden = OnnxArray.on_host(array, stage, source)
        if not in_place:
            cache.store([values[side] for side in SIDES], tokens)
        cache.commit(tokens)
        return hidden

    def _run_options(
        self, stage: str, feeds: Mapping[str, np.ndarray | OnnxArray]
    ) -> onnxruntime.RunOptions | None:
        """None, but where a stage with memory of its own runs on sizes that are new to it: then
        it gives back after the run what is free."""
        if stage not in WINDOW_STAGES or self._device != "cpu":
            return None
        shapes = self._shapes.setdefault(stage, deque(maxlen=REMEMBERED_SHAPES))
        shape = tuple(feed.shape for feed in feeds.values())
        if shape in shapes:
            return None
        shapes.append(shape)
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        return options

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
        self, stage: str, size_hw: tuple[int, ...] | None = None, **properties: str
    ) -> onnxruntime.InferenceSession:
        graph = self._graph(stage, size_hw, properties)
        if graph.file not in self._sessions:
            path = check_graph(self._folder, graph)
            try:
                keeps_memory = stage in WINDOW_STAGES
                self._sessions[graph.file] = open_session(
                    path, self._device, self._threads, keeps_memory
                )
            except Exception as error:  # onnxruntime has one class per status, none in common
                raise ManifestError(
                    f"onnxruntime {onnxruntime.__version__} cannot load {path} ({error}); "
                    f"run `{command(self._folder)}`, or use another backend"
                ) from error
        return self._sessions[graph.file]

    def _graph(
        self, stage: str, size_hw: tuple[int, ...] | None, properties: Mapping[str, str]
    ) -> GraphFile:
        """The graph of a stage, one fixed to the size before one that takes any."""
        graphs = self._manifest.of(stage=stage, dtype=self._dtype, **properties)
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


def open_session(
    path: Path, device: str, threads: int = 0, keeps_memory: bool = False
) -> onnxruntime.InferenceSession:
    """threads: on the CPU; 0 for the cores that this process may use.

    keeps_memory: on the CPU, from run to run, in an arena that all such sessions of the process
    share. It pays for stages that run on large arrays of one size again and again: fresh pages for
    the scores of attention took a fifth of a window's time.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    # Idle threads that spin would take the processor from the rest of the robot.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Products with int4 weights would else round their activations to int8.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    # Images and texts of many lengths: an arena keeps a block for each it ever saw, and the
    # memory pattern of each shape, where malloc gives them back.
    options.enable_cpu_mem_arena = keeps_memory
    options.enable_mem_pattern = False
    if keeps_memory and device == "cpu":
        _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    if device == "cuda":
        providers.insert(0, "CUDAExecutionProvider")
    return onnxruntime.InferenceSession(str(path), options, providers)


@functools.cache
def _share_arena() -> None:
    """Registers the arena: once in a process, for ONNX Runtime takes no second one."""
    info = onnxruntime.OrtMemoryInfo(
        "Cpu",
        onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR,
        0,
        onnxruntime.OrtMemType.DEFAULT,
    )
    default = -1
    arena = onnxruntime.OrtArenaCfg(0, default, default, default)
    onnxruntime.create_and_register_allocator(info, arena)


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
