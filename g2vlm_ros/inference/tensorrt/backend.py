# SPDX-License-Identifier: Apache-2.0
"""The stages on TensorRT engines: numpy, TensorRT and CUDA; no torch.

Features, hidden states and the key/value cache stay on the device. Engines are built by
`export.build`, never here; each one proves itself on golden inputs when it is loaded.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from g2vlm_ros.checkpoint.config import PATCH_PX, ModelConfig
from g2vlm_ros.checkpoint.onnx_manifest import Manifest
from g2vlm_ros.checkpoint.prompt_layout import Segment
from g2vlm_ros.inference.input_checks import check_boundaries, check_grid, check_ids, check_images
from g2vlm_ros.inference.tensorrt.cuda import (
    Cuda,
    CudaError,
    DeviceGoneError,
    DeviceLostError,
    open_cuda,
)
from g2vlm_ros.inference.tensorrt.device_memory import BLOCK_BYTES, DeviceArray, DeviceMemory
from g2vlm_ros.inference.tensorrt.engine import Engine, open_engine
from g2vlm_ros.inference.tensorrt.engine_metadata import (
    EngineError,
    EngineRecord,
    Here,
    build_command,
    default_cache,
    engine_folder,
    records,
)
from g2vlm_ros.inference.tensorrt.point_packing import PointPacker
from g2vlm_ros.inference.tensorrt.versions import TensorRTVersion, installed
from g2vlm_ros.records import NonFiniteError, RawGeometry

ELEMENT = {"float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16"}
NEEDED = ("encode_geometry", "geometry", "heads")
GROWTH_TOKENS = 256
log = logging.getLogger(__name__)
Result = TypeVar("Result")


class TensorRTBackend:
    """Implements `runtime.stages.Backend`; calls must come one at a time."""

    def __init__(
        self,
        config: ModelConfig,
        flavour: TensorRTVersion,
        cuda: Cuda,
        folder: Path,
        found: list[EngineRecord],
        remedy: str,
    ):
        self.config = config
        self._flavour, self._cuda = flavour, cuda
        self._folder, self._records, self._remedy = folder, found, remedy
        precision = found[0].precision
        self._element = ELEMENT[precision]
        self.backend = f"tensorrt {flavour.label} {cuda.gpu} {precision}"
        self._generation, self._gone = 0, ""
        try:
            self._load()
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

        engines is the cache folder of `export.build`. dtype "auto" takes the precision that the
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
        flavour: TensorRTVersion,
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
        here = Here(cuda.gpu, cuda.capability, flavour.label, cuda.driver)
        where = engine_folder(Path(engines) if engines else default_cache(), manifest.weights)
        found = _choose(where, manifest, here, dtype, config.dino.windows, remedy)
        return cls(config, flavour, cuda, where, found, remedy)

    @property
    def times_s(self) -> dict[str, float]:
        """What each stage took on the device when it ran last."""
        return self.device.times_s

    def _load(self) -> None:
        self.device = DeviceMemory(self._cuda)
        self._engines = [
            open_engine(self._flavour, self.device, self._folder, record, self._remedy)
            for record in self._records
        ]
        try:
            self._packer = PointPacker(self.device)
        except CudaError as error:
            self._packer = None
            log.warning("clouds are packed on the CPU: %s", error)

    # --- the stages --------------------------------------------------------------------------

    def new_cache(self) -> TensorRTCache:
        text = self.config.text
        entry = (text.layers, text.kv_heads, text.head_dim)
        return TensorRTCache(self.device, entry, self._element, self._generation)

    def encode_geometry(self, images: np.ndarray) -> DeviceArray:
        check_images("images", images, ndim=4, multiple=PATCH_PX)
        engine = self._engine("encode_geometry", images.shape[1:3])
        return self._guarded(lambda: self._encode(engine, "images", images))

    def describe(self, features: DeviceArray) -> np.ndarray:
        return self._guarded(lambda: self.device.download([features])[0].mean(axis=1))

    def encode_semantics(self, image: np.ndarray) -> DeviceArray:
        check_images("image", image, ndim=3, multiple=PATCH_PX * self.config.vision.merge)
        engine = self._engine("encode_semantics", image.shape[:2])
        return self._guarded(lambda: self._encode(engine, "image", image))

    def geometry(
        self, features: DeviceArray, segment: Segment, cache: TensorRTCache
    ) -> DeviceArray:
        views, patches = features.shape[:2]
        check_boundaries(segment, "geometry", views, patches)
        check_ids(segment.token_ids, self.config.text.vocab_size)
        feeds = {
            "boundary_ids": segment.token_ids.reshape(views, 2),
            "positions": segment.positions,
        }
        hidden = self._append("geometry", feeds, features, segment.length, cache)["hidden"]
        hidden.source = features
        return hidden

    def heads(
        self, hidden: DeviceArray, grid_hw: tuple[int, int], global_points: bool = False
    ) -> RawGeometry:
        check_grid(hidden.shape[1], grid_hw)
        size_hw = (grid_hw[0] * PATCH_PX, grid_hw[1] * PATCH_PX)
        engine = self._engine("heads_global" if global_points else "heads", size_hw)
        grid = hidden.reshaped(hidden.shape[0], *grid_hw, hidden.shape[-1])

        def run() -> tuple[dict[str, np.ndarray], DeviceArray]:
            results = engine.run({"hidden": grid})
            found = dict(zip(results, self.device.download(list(results.values())), strict=True))
            self._check("heads", found.values(), hidden)
            return found, results["local_points"]

        found, points = self._guarded(run)
        return RawGeometry(
            found["local_points"],
            found["poses"],
            found["rotation9"],
            found.get("confidence"),
            found.get("global_points"),
            self._packer and functools.partial(self._pack, self._generation, points),
        )

    def language(
        self, segment: Segment, cache: TensorRTCache, features: DeviceArray | None = None
    ) -> np.ndarray:
        check_ids(segment.token_ids, self.config.text.vocab_size)
        last = cache.length + segment.length - 1
        reach = np.arange(cache.length, last + 1)
        if segment.kind != "text":
            if features is None:
                raise ValueError("a semantic segment needs the features of its image; pass them")
            check_boundaries(segment, "semantic", 1, features.shape[0])
            reach = np.full(segment.length, last)
        else:
            features = self.device.empty((0, self.config.text.hidden_size), self._element, "text")
        feeds = {"ids": segment.token_ids, "reach": reach, "positions": segment.positions}

        def fetch(results: dict[str, DeviceArray]) -> np.ndarray:
            logits = self.device.download([results["logits"]])[0]
            self._check("language", [logits], features)
            return logits

        return self._append("language", feeds, features, segment.length, cache, fetch)

    # --- running -----------------------------------------------------------------------------

    def _encode(self, engine: Engine, name: str, pixels: np.ndarray) -> DeviceArray:
        feed = self.device.upload(pixels, "UINT8", name)
        return engine.run({name: feed})["features"]

    def _pack(self, generation: int, points: DeviceArray, *cloud: Any) -> np.ndarray | None:
        """`PointPacker.pack`; None where the points were lost with their context."""
        if generation != self._generation or self._gone:
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
        if cache.generation != self._generation:
            raise EngineError(
                "this cache was lost with the CUDA context; begin with a new one (new_cache)"
            )

        def run() -> Any:
            inputs = {n: self.device.upload(a, "INT64", n) for n, a in feeds.items()}
            inputs["features"] = features
            with cache.room(tokens) as (past, new):
                result = then(engine.run({**inputs, **past}, new))
            return result

        return self._guarded(run)

    def _guarded(self, run: Callable[[], Result]) -> Result:
        """Runs; after a lost context everything is loaded anew once, and the call has failed."""
        try:
            self._cuda.activate()
            return run()
        except DeviceLostError as error:
            self._recover(error)
            raise DeviceLostError(
                f"{error}; the engines were loaded again, this window is lost"
            ) from error

    def _recover(self, error: DeviceLostError) -> None:
        """A new context with the engines in it, once. Raises DeviceGoneError."""
        log.error("%s", error)
        self._engines.clear()
        try:
            if self._generation:
                raise DeviceGoneError("it was lost before")
            self._generation += 1
            self._cuda.reset()
            self._load()
        except (CudaError, EngineError) as again:
            self._gone = (
                f"{error}, and for good ({again}); restart the node, and if it stays so check the "
                "GPU with `dmesg`"
            )
            raise DeviceGoneError(self._gone) from error

    def _engine(self, stage: str, size_hw: tuple[int, ...] | None = None) -> Engine:
        if self._gone:
            raise DeviceGoneError(self._gone)
        size = None if size_hw is None else (size_hw[1], size_hw[0])
        sizes = []
        for engine in self._engines:
            if engine.record.stage == stage:
                if engine.record.size == size:
                    return engine
                sizes.append("{}x{}".format(*engine.record.size))
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


def _choose(
    where: Path, manifest: Manifest, here: Here, dtype: str, windows: str, remedy: str
) -> list[EngineRecord]:
    """The engines that fit, of one precision; EngineError says why the others do not."""
    digests = {graph.file: graph.sha256 for graph in manifest.graphs}
    found, refused = [], []
    for record in records(where):
        if record.dino_windows not in (None, windows):
            continue
        try:
            record.check_fits(here, digests.get(record.onnx, "none"), manifest.weights, remedy)
            found.append(record)
        except EngineError as error:
            refused.append(str(error))
    made = sorted(r.precision for r in found)
    precision = max(made, key=made.count, default="") if dtype == "auto" else dtype
    chosen = [record for record in found if record.precision == precision]
    missing = [s for s in NEEDED if s not in {record.stage for record in chosen}]
    if missing:
        why = refused[0] if refused else f"run `{remedy}`"
        of = "" if dtype == "auto" else f" of {dtype}"
        raise EngineError(f"{where} has no engine{of} for {', '.join(missing)}: {why}")
    return chosen


class TensorRTCache:
    """Keys and values on the device, token-major; engines write behind the cached tokens.

    Forks share their buffer, as in `onnx_stages`: what has been written never changes, so a fork
    may go on behind the shared tokens as long as nobody else has; otherwise it takes a copy first.
    """

    def __init__(
        self,
        device: DeviceMemory,
        entry: tuple[int, int, int],
        element: str,
        generation: int,
    ):
        self.length, self.generation = 0, generation
        self._device, self._entry, self._element = device, entry, element
        self._buffer = _Buffer(device, entry, element, GROWTH_TOKENS)

    def fork(self) -> TensorRTCache:
        """A cache with the same content; appending to one never changes the other."""
        other = TensorRTCache.__new__(TensorRTCache)
        other.__dict__.update(self.__dict__)
        return other

    def room(self, tokens: int) -> _Room:
        """Past tokens to read and room for new ones; they belong to the cache after the block."""
        needed, old = self.length + tokens, self._buffer
        if old.used != self.length or needed > old.capacity:
            self._buffer = _Buffer(
                self._device, self._entry, self._element, needed + GROWTH_TOKENS
            )
            for target, source in zip(self._buffer.pair, old.pair, strict=True):
                if self.length:
                    self._device.duplicate(
                        target.rows(0, self.length), source.rows(0, self.length)
                    )
            self._buffer.used = self.length
        return _Room(self, self._device, tokens)


class _Buffer:
    """Keys and values with room for `capacity` tokens, of which `used` are written."""

    def __init__(self, device: DeviceMemory, entry: tuple[int, ...], element: str, capacity: int):
        shape = (capacity, *entry)
        self.pair = [device.empty(shape, element, "the key/value cache") for _ in range(2)]
        self.capacity, self.used = capacity, 0


class _Room:
    """What an engine reads and writes of a cache."""

    def __init__(self, cache: TensorRTCache, device: DeviceMemory, tokens: int):
        self._cache, self._device, self._tokens = cache, device, tokens

    def __enter__(self) -> tuple[dict[str, DeviceArray], dict[str, DeviceArray]]:
        cache, end = self._cache, self._cache.length + self._tokens
        past, self._behind, self._new = {}, {}, {}
        for name, array in zip(("keys", "values"), cache._buffer.pair, strict=True):
            past[f"past_{name}"] = array.rows(0, cache.length)
            self._behind[name] = behind = array.rows(cache.length, end)
            # Rows of small models do not begin where TensorRT can write: then by a copy.
            aligned = behind.address % BLOCK_BYTES == 0
            self._new[name] = (
                behind
                if aligned
                else self._device.empty(behind.shape, behind.element, "new keys and values")
            )
        return past, self._new

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None:
            return
        for name, behind in self._behind.items():
            if self._new[name] is not behind:
                self._device.duplicate(behind, self._new[name])
        self._cache.length += self._tokens
        self._cache._buffer.used = self._cache.length
