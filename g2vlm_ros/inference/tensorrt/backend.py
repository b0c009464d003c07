# SPDX-License-Identifier: Apache-2.0
"""The stages on TensorRT engines: numpy, TensorRT and CUDA; no torch.

Features, hidden states and the key/value cache stay on the device. Engines are built by
`export.build_engines`, never here; each one is verified on golden inputs when it is loaded.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from g2vlm_ros.checkpoint.config import PATCH_PX, ModelConfig
from g2vlm_ros.checkpoint.onnx_manifest import Manifest
from g2vlm_ros.checkpoint.prompt_layout import Segment
from g2vlm_ros.inference.input_checks import (
    check_boundaries,
    check_grid,
    check_ids,
    check_images,
    text_feeds,
)
from g2vlm_ros.inference.kv_buffer import ForkedCache
from g2vlm_ros.inference.tensorrt.cuda import Cuda, CudaError, DeviceLostError, open_cuda
from g2vlm_ros.inference.tensorrt.device_memory import BLOCK_BYTES, DeviceArray, DeviceMemory
from g2vlm_ros.inference.tensorrt.engine import Engine, open_engine
from g2vlm_ros.inference.tensorrt.engine_metadata import (
    EngineError,
    EngineMetadata,
    Here,
    build_command,
    default_cache,
    engine_folder,
    read_folder,
)
from g2vlm_ros.inference.tensorrt.point_packing import PointPacker
from g2vlm_ros.inference.tensorrt.versions import TensorRTVersion, doubt, installed
from g2vlm_ros.records import NonFiniteError, RawGeometry

ELEMENT = {"float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16"}
NEEDED = ("encode_geometry", "geometry", "heads")
log = logging.getLogger(__name__)
Result = TypeVar("Result")


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
        self._lost = ""
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
        self._engines = [
            open_engine(self._version, self.device, self._folder, each, self._remedy)
            for each in metadata
        ]
        weakref.finalize(self, _save_kernels, self._engines)
        self.device.release_idle()  # golden cases are longer than what most windows need
        try:
            self._packer = PointPacker(self.device)
        except DeviceLostError:
            raise
        except CudaError as error:
            self._packer = None
            log.warning("clouds are packed on the CPU: %s", error)

    # --- the stages --------------------------------------------------------------------------

    def new_cache(self) -> TensorRTCache:
        text = self.config.text
        entry = (text.layers, text.kv_heads, text.head_dim)
        return TensorRTCache(self.device, entry, self._element)

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
        results = self._append("geometry", feeds, features.tokens, segment.length, cache)
        results["hidden"].source = features.tokens
        return results["hidden"]

    def heads(
        self, hidden: DeviceArray, grid_hw: tuple[int, int], global_points: bool = False
    ) -> RawGeometry:
        check_grid(hidden.shape[1], grid_hw)
        size_hw = (grid_hw[0] * PATCH_PX, grid_hw[1] * PATCH_PX)
        engine = self._engine("heads_global" if global_points else "heads", size_hw)
        grid = hidden.reshaped(hidden.shape[0], *grid_hw, hidden.shape[-1])

        def run() -> tuple[dict[str, np.ndarray], DeviceArray]:
            results = engine.run({"hidden": grid})
            arrays = dict(zip(results, self.device.download(list(results.values())), strict=True))
            self._check("heads", arrays.values(), hidden)
            return arrays, results["local_points"]

        arrays, points = self._guarded(run)
        return RawGeometry(
            arrays["local_points"],
            arrays["poses"],
            arrays["rotation9"],
            arrays.get("confidence"),
            arrays.get("global_points"),
            self._packer and functools.partial(self._pack, points),
        )

    def language(
        self, segment: Segment, cache: TensorRTCache, features: DeviceArray | None = None
    ) -> np.ndarray:
        image_tokens = None if features is None else features.shape[0]
        feeds = text_feeds(segment, cache.length, image_tokens, self.config.text.vocab_size)

        def fetch(results: dict[str, DeviceArray]) -> np.ndarray:
            logits = self.device.download([results["logits"]])[0]
            self._check("language", [logits], features)
            return logits

        if segment.kind == "text":
            features = self.device.empty((0, self.config.text.hidden_size), self._element, "text")
        return self._append("language", feeds, features, segment.length, cache, fetch)

    # --- running -----------------------------------------------------------------------------

    def _encode(self, engine: Engine, name: str, pixels: np.ndarray) -> dict[str, DeviceArray]:
        return engine.run({name: self.device.upload(pixels, "UINT8", name)})

    def _pack(self, points: DeviceArray, *cloud: Any) -> np.ndarray | None:
        """`PointPacker.pack`; None where the points were lost with their context."""
        if self._lost:
            return None
        return self._guarded(lambda: self._packer.pack(points, *cloud))

    def _append(
        self,
        stage: str,
        feeds: dict[str, np.ndarray],
        features: DeviceArray,
        tokens: int,
        cache: TensorRTCache,
        then: Callable[[dict[str, DeviceArray]], Any] = lambda results: results,
    ) -> Any:
        """Runs a stage that reads the cache and writes behind it; the cache grows on success."""
        engine = self._engine(stage)

        def run() -> Any:
            inputs = {n: self.device.upload(a, "INT64", n) for n, a in feeds.items()}
            inputs["features"] = features
            with cache.room(tokens) as (past, new):
                result = then(engine.run({**inputs, **past}, new))
            return result

        return self._guarded(run)

    def _guarded(self, run: Callable[[], Result]) -> Result:
        """Runs with the context active; after it was lost nothing runs any more."""
        if self._lost:
            raise DeviceLostError(self._lost)
        try:
            with self._cuda.active():
                return run()
        except DeviceLostError as error:
            self._lost = str(error)
            raise

    def _engine(self, stage: str, size_hw: tuple[int, ...] | None = None) -> Engine:
        if self._lost:
            raise DeviceLostError(self._lost)
        size = None if size_hw is None else (size_hw[1], size_hw[0])
        sizes = []
        for engine in self._engines:
            if engine.metadata.stage == stage:
                if engine.metadata.size == size:
                    return engine
                sizes.append("{}x{}".format(*engine.metadata.size))
        wanted = f" for images of {size[0]}x{size[1]} pixels" if size else ""
        there = f" (there are engines for {', '.join(sizes)})" if sizes else ""
        raise EngineError(f"no engine of stage {stage}{wanted}{there}; run `{self._remedy}`")

    def _check(self, stage: str, arrays: Any, source: DeviceArray | None) -> None:
        """NonFiniteError with the first stage that made a value that is not finite."""
        if all(np.isfinite(array).all() for array in arrays):
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
    chosen = [engine for engine in fitting if engine.precision == precision]
    missing = [s for s in NEEDED if s not in {engine.stage for engine in chosen}]
    if missing:
        why = refused[0] if refused else f"run `{remedy}`"
        of = "" if dtype == "auto" else f" of {dtype}"
        raise EngineError(f"{folder} has no engine{of} for {', '.join(missing)}: {why}")
    return chosen


class TensorRTCache(ForkedCache[list[DeviceArray]]):
    """Keys and values on the device, token-major; engines write behind the cached tokens."""

    def __init__(self, device: DeviceMemory, entry: tuple[int, int, int], element: str):
        super().__init__()
        self._device, self._entry, self._element = device, entry, element

    def allocate(self, capacity: int) -> list[DeviceArray]:
        shape = (capacity, *self._entry)
        return [self._device.empty(shape, self._element, "the key/value cache") for _ in range(2)]

    def copy_tokens(
        self, target: list[DeviceArray], source: list[DeviceArray], tokens: int
    ) -> None:
        for new, old in zip(target, source, strict=True):
            self._device.duplicate(new.rows(0, tokens), old.rows(0, tokens))

    @contextmanager
    def room(self, tokens: int) -> Iterator[tuple[dict[str, DeviceArray], dict[str, DeviceArray]]]:
        """Past tokens to read and room for new ones; they belong to the cache after the block."""
        past, behind, new = {}, {}, {}
        for name, array in zip(("keys", "values"), self.reserve(tokens), strict=True):
            past[f"past_{name}"] = array.rows(0, self.length)
            rows = behind[name] = array.rows(self.length, self.length + tokens)
            # Rows of small models do not begin where TensorRT can write: then by a copy.
            aligned = rows.address % BLOCK_BYTES == 0
            new[name] = (
                rows
                if aligned
                else self._device.empty(rows.shape, rows.element, "new keys and values")
            )
        yield past, new
        for name, rows in behind.items():
            if new[name] is not rows:
                self._device.duplicate(rows, new[name])
        self.commit(tokens)
