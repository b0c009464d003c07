# SPDX-License-Identifier: Apache-2.0
"""The stages on TensorRT engines: numpy, TensorRT and CUDA; no torch.

Features, hidden states and the key/value cache stay on the device. Engines are built by
`export.build_engines`, never here; each one is verified on golden inputs when it is loaded.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from g2vlm_ros.checkpoint.config import PATCH_PX, ModelConfig
from g2vlm_ros.checkpoint.onnx_manifest import Manifest
from g2vlm_ros.checkpoint.prompt_layout import Segment
from g2vlm_ros.inference.decoding_state import STEPS_AHEAD, first_state
from g2vlm_ros.inference.input_checks import (
    check_boundaries,
    check_grid,
    check_ids,
    check_images,
    text_feeds,
)
from g2vlm_ros.inference.points_on_device import PointKernels
from g2vlm_ros.inference.tensorrt.cuda import Cuda, CudaError, DeviceLostError, open_cuda
from g2vlm_ros.inference.tensorrt.decoding import DecodingState, TokenDecoder, TokenStore
from g2vlm_ros.inference.tensorrt.device_memory import DeviceArray, DeviceMemory
from g2vlm_ros.inference.tensorrt.engine import Engine
from g2vlm_ros.inference.tensorrt.engine_metadata import (
    EngineError,
    EngineMetadata,
    Here,
    build_command,
    default_cache,
    engine_folder,
    read_folder,
)
from g2vlm_ros.inference.tensorrt.golden import open_engine
from g2vlm_ros.inference.tensorrt.kv_cache import KeysValues, TensorRTCache
from g2vlm_ros.inference.tensorrt.versions import TensorRTVersion, doubt, installed
from g2vlm_ros.records import NonFiniteError, RawGeometry

ELEMENT = {"float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16"}
NEEDED = ("encode_geometry", "geometry", "heads", "language")
"""The prompt before the views goes through the language stage as well."""
log = logging.getLogger(__name__)
Result = TypeVar("Result")
Kernels = TypeVar("Kernels")


@dataclass(frozen=True, eq=False)
class EncodedViews:
    """What `encode_geometry` leaves on the device."""

    tokens: DeviceArray
    """(N, P, C)"""
    descriptor: DeviceArray
    """FLOAT (N, C): the mean token of each view."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tokens.shape


class TensorRTBackend:
    """Implements `inference.backend.Backend`; calls must come one at a time."""

    def __init__(
        self,
        config: ModelConfig,
        version: TensorRTVersion,
        cuda: Cuda,
        folder: Path,
        metadata: list[EngineMetadata],
        remedy: str,
    ):
        self.config = config
        self._version, self._cuda = version, cuda
        self._folder, self._remedy = folder, remedy
        precision = metadata[0].precision
        self._element = ELEMENT[precision]
        self.backend = f"tensorrt {version.label} {cuda.gpu} {precision}"
        for warning in filter(None, [doubt(version.label), *(each.unfused for each in metadata)]):
            log.warning("%s", warning)
        try:
            with cuda.active():
                self._load(metadata)
        except DeviceLostError:
            raise
        except CudaError as error:
            raise EngineError(f"the engines of {folder} cannot be loaded: {error}") from error

    @classmethod
    def open(
        cls,
        folder: str | Path,
        device: str = "auto",
        dtype: str = "auto",
        dino_windows: str | None = None,
        engines: str | Path | None = None,
        flavour: str = "auto",
    ) -> TensorRTBackend:
        """A checkpoint folder with ONNX files, for which engines were built.

        engines is the cache folder of `export.build_engines`; flavour auto, tensorrt or rtx. dtype
        "auto" takes the precision that the
        engines have. Raises UnfitError where there is no GPU, no TensorRT or no fitting engine.
        """
        if device.split(":")[0] not in ("auto", "cuda"):
            raise EngineError(f"device is '{device}'; TensorRT runs on 'cuda' only")
        cuda = open_cuda(int(device.partition(":")[2] or 0))
        return cls.on(
            cuda, installed(flavour, cuda.capability), folder, dtype, dino_windows, engines
        )

    @classmethod
    def on(
        cls,
        cuda: Cuda,
        version: TensorRTVersion,
        folder: str | Path,
        dtype: str = "auto",
        dino_windows: str | None = None,
        engines: str | Path | None = None,
    ) -> TensorRTBackend:
        """The same on a given device and TensorRT."""
        manifest, remedy = Manifest.read(folder), build_command(folder, engines)
        manifest.check_weights(folder)
        config = ModelConfig.read(folder)
        if dino_windows is not None:
            config = replace(config, dino=replace(config.dino, windows=dino_windows))
        here = Here(cuda.gpu, cuda.capability, version.label, cuda.driver)
        where = engine_folder(Path(engines) if engines else default_cache(), manifest.weights)
        metadata = _choose(where, manifest, here, dtype, config.dino.windows, remedy)
        return cls(config, version, cuda, where, metadata, remedy)

    @property
    def times_s(self) -> dict[str, float]:
        """What each stage took on the device when it ran last."""
        return self.device.times_s

    def _load(self, metadata: list[EngineMetadata]) -> None:
        self.device = DeviceMemory(self._cuda)
        self.engines = [
            open_engine(self._version, self.device, self._folder, each, self._remedy)
            for each in metadata
        ]
        weakref.finalize(self, _save_kernels, self.engines)
        self.device.release_idle()  # golden cases are longer than what most windows need
        self._points = self._compiled(PointKernels, "points of windows go to the host")
        self._store = self._compiled(TokenStore, "the host puts decoded tokens in their places")
        self._state = DecodingState(self.device)
        self._decoder: TokenDecoder | None = None
        self._decoding_engines: dict[int, tuple[Engine, Engine]] = {}

    def _compiled(self, kind: Callable[[DeviceMemory], Kernels], otherwise: str) -> Kernels | None:
        """Kernels of our own; None where there is no compiler for them."""
        try:
            return kind(self.device)
        except DeviceLostError:
            raise
        except CudaError as error:
            log.warning("%s: %s", otherwise, error)
            return None

    # --- the stages --------------------------------------------------------------------------

    def new_cache(self) -> TensorRTCache:
        text = self.config.text
        shape = (text.layers, text.kv_heads, 0, text.head_dim)
        return TensorRTCache(self.device, shape, self._element, self._places_for)

    def _places_for(self, tokens: int) -> int:
        """The smallest buffer for so many tokens that an engine takes."""
        sizes = [
            engine.metadata.places_for(tokens)
            for engine in self.engines
            if engine.metadata.stage == "language"
        ]
        places = min((size for size in sizes if size is not None), default=None)
        if places is None:
            raise EngineError(
                f"{tokens} tokens are more than the buffers of keys and values hold; ask about "
                f"fewer views, or build with larger buckets in the plan: `{self._remedy}`"
            )
        return places

    def encode_geometry(self, images: np.ndarray) -> EncodedViews:
        check_images("images", images, ndim=4, multiple=PATCH_PX)
        engine = self._engine("encode_geometry", images.shape[1:3])
        results = self._guarded(lambda: self._encode(engine, "images", images))
        return EncodedViews(results["features"], results["descriptor"])

    def describe(self, features: EncodedViews) -> np.ndarray:
        return self._guarded(lambda: self.device.download([features.descriptor])[0])

    def fetch(self, features: EncodedViews | DeviceArray) -> np.ndarray:
        array = features.tokens if isinstance(features, EncodedViews) else features
        return self._guarded(lambda: self.device.download([array])[0])

    def encode_semantics(self, image: np.ndarray) -> DeviceArray:
        check_images("image", image, ndim=3, multiple=PATCH_PX * self.config.vision.merge)
        engine = self._engine("encode_semantics", image.shape[:2])
        return self._guarded(lambda: self._encode(engine, "image", image))["features"]

    def geometry(
        self, features: EncodedViews, segment: Segment, cache: TensorRTCache
    ) -> DeviceArray:
        views, patches = features.shape[:2]
        check_boundaries(segment, "geometry", views, patches)
        check_ids(segment.token_ids, self.config.text.vocab_size)
        feeds = {
            "boundary_ids": segment.token_ids.reshape(views, 2),
            "positions": segment.positions,
        }
        engine = self._engine("geometry")
        return self._append(engine, feeds, features.tokens, segment.length, cache)

    def heads(
        self, hidden: DeviceArray, grid_hw: tuple[int, int], global_points: bool = False
    ) -> RawGeometry:
        check_grid(hidden.shape[1], grid_hw)
        size_hw = (grid_hw[0] * PATCH_PX, grid_hw[1] * PATCH_PX)
        engine = self._engine("heads_global" if global_points else "heads", size_hw)
        grid = hidden.reshaped(hidden.shape[0], *grid_hw, hidden.shape[-1])

        def run() -> RawGeometry:
            results = engine.run({"hidden": grid})
            points = results.pop("local_points") if self._points else None
            arrays = dict(zip(results, self.device.download(list(results.values())), strict=True))
            self._check("heads", arrays.values(), hidden, points)
            if points is None:
                local = arrays["local_points"]
            else:
                local = self._points.points(points)
            return RawGeometry(
                local,
                arrays["poses"],
                arrays["rotation9"],
                arrays.get("confidence"),
                arrays.get("global_points"),
            )

        return self._guarded(run)

    def language(
        self, segment: Segment, cache: TensorRTCache, features: DeviceArray | None = None
    ) -> DeviceArray:
        image_tokens = None if features is None else features.shape[0]
        feeds = text_feeds(segment, image_tokens, self.config.text.vocab_size)
        if segment.kind == "text":
            features = self.device.empty((0, self.config.text.hidden_size), self._element, "text")
        engine = self._language_engine(cache, segment.length)
        return self._append(engine, feeds, features, segment.length, cache)

    def logits(self, hidden: DeviceArray) -> np.ndarray:
        state = first_state(0, 0, 0)
        del state["ids"]  # what was fed is in the hidden state
        engine = self._engine("next_token")

        def run() -> np.ndarray:
            inputs = {n: self.device.upload(a, "INT64", n) for n, a in state.items()}
            results = engine.run({"hidden": hidden, **inputs})
            return self.device.download([results["logits"]])[0]

        logits = self._guarded(run)
        self._check("next_token", [logits], hidden)
        return logits

    def decode(
        self, token: int, position: int, cache: TensorRTCache
    ) -> Generator[int, None, None]:
        check_ids(np.array([token]), self.config.text.vocab_size)
        length = cache.length
        try:
            while True:
                fed = self._guarded(functools.partial(self._burst, token, position, cache))
                for newest in fed:
                    if newest < 0:
                        raise NonFiniteError("language")
                    length, position, token = length + 1, position + 1, newest
                    yield token
        finally:
            cache.cut(length)

    def _burst(self, token: int, position: int, cache: TensorRTCache) -> list[int]:
        """Some steps on the device; the ids that came out."""
        before = cache.places
        buffers = cache.reserve(STEPS_AHEAD)
        if before and buffers.places > before:
            log.info(
                "the answer outgrows the %d places of its buffer, which has %d from now on",
                before,
                buffers.places,
            )
        decoder = self._decoder_for(buffers, token, position, cache.length)
        self._state.begin(token, position, cache.length)
        for step in range(STEPS_AHEAD):
            decoder.step(buffers, cache.length + step)
        cache.commit(STEPS_AHEAD)
        return self._state.newest(STEPS_AHEAD)

    def _decoder_for(
        self, buffers: KeysValues, token: int, position: int, stored: int
    ) -> TokenDecoder:
        """The decoder of these buffers: recorded once, replayed as long as they are the same."""
        if self._decoder is not None and self._decoder.serves(buffers):
            return self._decoder
        if self._decoder is not None:
            self._decoder.close()
        if buffers.places not in self._decoding_engines:
            engines = (self._engine("language", places=buffers.places), self._engine("next_token"))
            self._decoding_engines[buffers.places] = tuple(
                engine.for_repeated_shapes() for engine in engines
            )
        language, head = self._decoding_engines[buffers.places]
        self._decoder = TokenDecoder(
            self.device, self._state, language, head, buffers, self._store
        )
        self._decoder.record(buffers, token, position, stored)
        return self._decoder

    # --- running -----------------------------------------------------------------------------

    def _encode(self, engine: Engine, name: str, pixels: np.ndarray) -> dict[str, DeviceArray]:
        return engine.run({name: self.device.upload(pixels, "UINT8", name)})

    def _append(
        self,
        engine: Engine,
        feeds: dict[str, np.ndarray],
        features: DeviceArray,
        tokens: int,
        cache: TensorRTCache,
    ) -> DeviceArray:
        """Runs a stage that adds tokens to the cache, which grows on success."""

        def run() -> DeviceArray:
            inputs = {n: self.device.upload(a, "INT64", n) for n, a in feeds.items()}
            hidden = cache.append_by(engine, {**inputs, "features": features}, tokens)
            cache.commit(tokens)
            hidden.source = features
            return hidden

        return self._guarded(run)

    def _language_engine(self, cache: TensorRTCache, tokens: int) -> Engine:
        """The engine for the buffer that the cache has, or will have with so many more tokens."""
        places = self._guarded(lambda: cache.reserve(tokens)).places
        return self._engine("language", places=places)

    def _guarded(self, run: Callable[[], Result]) -> Result:
        return self.device.guarded(run)

    def _engine(
        self, stage: str, size_hw: tuple[int, ...] | None = None, places: int | None = None
    ) -> Engine:
        self.device.check()
        size = None if size_hw is None else (size_hw[1], size_hw[0])
        engines = [engine for engine in self.engines if engine.metadata.stage == stage]
        for engine in engines:
            if engine.metadata.size == size and engine.metadata.places in (None, places):
                return engine
        sentence = f"no engine of stage {stage}"
        if size:
            sentence += f" for images of {size[0]}x{size[1]} pixels"
        sizes = [engine.metadata.size for engine in engines if engine.metadata.size]
        if sizes:
            listed = ", ".join(f"{width}x{height}" for width, height in sizes)
            sentence += f" (there are engines for {listed})"
        raise EngineError(f"{sentence}; run `{self._remedy}`")

    def _check(
        self,
        stage: str,
        arrays: Any,
        source: DeviceArray | None,
        points: DeviceArray | None = None,
    ) -> None:
        """NonFiniteError with the first stage that made a value that is not finite.

        points: what stays on the device, to be looked at there.
        """
        on_host = all(np.isfinite(array).all() for array in arrays)
        if on_host and (points is None or self._points.is_finite(points)):
            return
        while source is not None:
            if source.bytes and not np.isfinite(self.device.download([source])[0]).all():
                stage = source.stage
            source = source.source
        raise NonFiniteError(stage)


def _save_kernels(engines: list[Engine]) -> None:
    """Keeps what TensorRT-RTX compiled while it ran, for the next start: at the end of a backend.

    A context that was lost, or a full disk, costs the next start some time and nothing else.
    """
    for engine in engines:
        try:
            engine.save_kernels()
        except (OSError, RuntimeError) as error:
            log.warning("kernels of %s are not kept: %s", engine.metadata.file, error)


def _choose(
    folder: Path, manifest: Manifest, here: Here, dtype: str, windows: str, remedy: str
) -> list[EngineMetadata]:
    """The engines that fit, of one precision; EngineError says why the others do not."""
    digests = {graph.file: graph.sha256 for graph in manifest.graphs}
    engines, refused = read_folder(folder)
    fitting = []
    for engine in engines:
        if engine.dino_windows not in (None, windows):
            continue
        try:
            engine.check_fits(here, digests.get(engine.onnx, "none"), manifest.weights, remedy)
            fitting.append(engine)
        except EngineError as error:
            refused.append(str(error))
    precisions = sorted(engine.precision for engine in fitting)
    commonest = max(precisions, key=precisions.count, default="")
    precision = commonest if dtype == "auto" else dtype
    candidates = [engine for engine in fitting if engine.precision == precision]
    missing = [s for s in NEEDED if s not in {engine.stage for engine in candidates}]
    if missing:
        why = refused[0] if refused else f"run `{remedy}`"
        of = "" if dtype == "auto" else f" of {dtype}"
        raise EngineError(f"{folder} has no engine{of} for {', '.join(missing)}: {why}")
    return candidates
