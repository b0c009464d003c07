# SPDX-License-Identifier: Apache-2.0
"""The stages in torch: the readable reference, on CPU or CUDA, in any float dtype."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from g2vlm_ros.checkpoint.config import PATCH_PX, ModelConfig
from g2vlm_ros.checkpoint.prompt_layout import Segment
from g2vlm_ros.inference.decoding_state import STEPS_AHEAD
from g2vlm_ros.inference.device_errors import lost_is_final, says_lost
from g2vlm_ros.inference.input_checks import check_boundaries, check_grid, check_ids, check_images
from g2vlm_ros.inference.kv_buffer import GROWTH_TOKENS, bucket
from g2vlm_ros.inference.points_on_device import PointKernels
from g2vlm_ros.inference.torch_cache import PastTokens, TorchCache
from g2vlm_ros.inference.torch_decoding import TokenDecoder
from g2vlm_ros.inference.torch_fusion import fused_or_plain
from g2vlm_ros.inference.torch_graphs import MAX_DEVIATION, StageGraphs, deviation
from g2vlm_ros.inference.torch_points import point_kernels, points_of
from g2vlm_ros.model.network import G2VLM
from g2vlm_ros.model.weights import load
from g2vlm_ros.records import NonFiniteError, RawGeometry

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
log = logging.getLogger(__name__)


def _stage(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that computes: without gradients, and a lost device is one for good."""

    @functools.wraps(method)
    def run(*arguments: Any, **named: Any) -> Any:
        with torch.inference_mode(), lost_is_final(f"torch, {method.__name__}"):
            return method(*arguments, **named)

    return run


class TorchBackend:
    """Implements `inference.backend.Backend`; two calls with the same input give the same bits."""

    times_s: Mapping[str, float] = {}

    def __init__(
        self,
        network: G2VLM,
        fixed_shapes: bool | None = None,
        graphs: StageGraphs | None = None,
        points: PointKernels | None = None,
    ):
        """fixed_shapes: decode by `TokenDecoder`; left out: on a GPU, where it is a CUDA graph.

        graphs: run the stages of a window as graphs, by which `open` does it on a GPU.
        points: leave the points of windows on the device; None: they go to the host.
        """
        weight = network.dino2llm.weight
        self.network = network
        self.config: ModelConfig = network.config
        self.device = weight.device
        self.backend = f"torch {weight.device} {str(weight.dtype).removeprefix('torch.')}"
        on_gpu = weight.device.type == "cuda"
        self.fixed_shapes = on_gpu if fixed_shapes is None else fixed_shapes
        self.steps_ahead = STEPS_AHEAD if on_gpu else 1
        self._decoder: TokenDecoder | None = None
        self.graphs = graphs
        self.points = points

    @classmethod
    def open(
        cls,
        folder: str | Path,
        device: str = "auto",
        dtype: str = "auto",
        dino_windows: str | None = None,
        cuda_graphs: bool = True,
        fused_kernels: bool = True,
    ) -> TorchBackend:
        """Loads a checkpoint folder.

        device "auto" is CUDA where there is one, else the CPU; dtype "auto" is bfloat16 on CUDA
        (as released) and float32 on the CPU. dino_windows overrides the folder's setting.
        cuda_graphs and fused_kernels are for GPUs: windows and decoding steps are recorded, small
        parts compiled. What fails or computes something else is left out, with a warning.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device '{device}' needs CUDA, which torch does not find; use 'cpu'")
        if dtype == "auto":
            dtype = "float32" if torch.device(device).type == "cpu" else "bfloat16"
        if dtype not in DTYPES:
            raise ValueError(f"dtype is '{dtype}'; it must be auto or one of {', '.join(DTYPES)}")
        network = load(folder, device, DTYPES[dtype], dino_windows)
        if torch.device(device).type != "cuda":
            return cls(network)
        return cls.on_gpu(network, cuda_graphs, fused_kernels)

    @classmethod
    def on_gpu(
        cls, network: G2VLM, cuda_graphs: bool = True, fused_kernels: bool = True
    ) -> TorchBackend:
        """A network that is on a GPU already, made as fast there as it can be."""
        if fused_kernels:
            network = fused_or_plain(network)
        bound = MAX_DEVIATION[network.dino2llm.weight.dtype]
        graphs = StageGraphs(bound) if cuda_graphs else None
        device = network.dino2llm.weight.device
        points = point_kernels(device) if device.type == "cuda" else None
        return cls(network, fixed_shapes=cuda_graphs, graphs=graphs, points=points)

    def new_cache(self) -> TorchCache:
        return TorchCache(self.config.text.layers)

    @_stage
    def encode_geometry(self, images: np.ndarray) -> Tensor:
        check_images("images", images, ndim=4, multiple=PATCH_PX)
        encode = lambda pixels: (self.network.encode_geometry(pixels),)  # noqa: E731
        (features,) = self._computed("encode_geometry", encode, self._put(images))
        return _finite("encode_geometry", features)

    @_stage
    def describe(self, features: Tensor) -> np.ndarray:
        return features.float().mean(1).cpu().numpy()

    @_stage
    def fetch(self, features: Tensor) -> np.ndarray:
        return features.float().cpu().numpy()

    @_stage
    def encode_semantics(self, image: np.ndarray) -> Tensor:
        check_images("image", image, ndim=3, multiple=PATCH_PX * self.config.vision.merge)
        return _finite("encode_semantics", self.network.encode_semantics(self._put(image)))

    @_stage
    def geometry(self, features: Tensor, segment: Segment, cache: TorchCache) -> Tensor:
        views, patches = features.shape[:2]
        check_boundaries(segment, "geometry", views, patches)
        ids = self._ids(segment).reshape(views, 2)
        positions = self._put(segment.positions)
        if self.graphs is None or not cache.length:
            return _finite("geometry", self.network.geometry(features, ids, positions, cache))
        inputs = (features, ids, positions, cache.past())
        hidden, new = self._computed("geometry", self._geometry, *inputs)
        _finite("geometry", hidden)
        cache.append(new)
        return hidden

    def _geometry(self, features: Tensor, ids: Tensor, positions: Tensor, past: Tensor) -> Any:
        """The stage as a function of tensors: hidden states, new keys and values."""
        cache = PastTokens(past)
        return self.network.geometry(features, ids, positions, cache), cache.new()

    @_stage
    def heads(
        self, hidden: Tensor, grid_hw: tuple[int, int], global_points: bool = False
    ) -> RawGeometry:
        check_grid(hidden.shape[1], grid_hw)

        def compute(states: Tensor) -> tuple[Tensor, ...]:
            results = self.network.heads(states, grid_hw, global_points)
            return tuple(x for x in results if x is not None)

        # What there is besides the first three is up to the checkpoint.
        points, *others = (
            _finite("heads", x)
            for x in self._computed(f"heads {grid_hw} {global_points}", compute, hidden)
        )
        poses, rotation9, *more = (x.float().cpu().numpy() for x in others)
        if self.points is None:
            points = points.float().cpu().numpy()
        else:
            points = points_of(self.points, points)
        confidence = more.pop(0) if self.network.confidence else None
        return RawGeometry(points, poses, rotation9, confidence, *more)

    def _computed(
        self, stage: str, function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        """What a stage gives, by its graph where graphs are asked for and compute the same."""
        if self.graphs is not None:
            try:
                return self.graphs.run(stage, function, *inputs)
            except RuntimeError as error:
                if says_lost(str(error)):
                    raise
                log.warning("windows without CUDA graphs: %s", error)
                self.graphs = None
        return function(*inputs)

    @_stage
    def language(
        self, segment: Segment, cache: TorchCache, features: Tensor | None = None
    ) -> Tensor:
        ids, positions = self._ids(segment), self._put(segment.positions)
        if segment.kind == "text":
            with self._any_length():
                hidden = self.network.text(ids, positions, cache, cache.length)
        else:
            if features is None:
                raise ValueError("a semantic segment needs the features of its image; pass them")
            check_boundaries(segment, "semantic", 1, features.shape[0])
            with self._any_length():
                hidden = self.network.semantic(features, ids, positions, cache)
        return _finite("language", hidden)

    def _any_length(self) -> AbstractContextManager[None]:
        """Attention over texts, whose length is another in every call.

        cuDNN plans anew for each, which took 1.5 ms per layer on an H100; the others do not plan.
        """
        if self.device.type != "cuda":
            return contextlib.nullcontext()
        return sdpa_kernel(
            [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
        )

    @_stage
    def logits(self, hidden: Tensor) -> np.ndarray:
        return _finite("next_token", self.network.logits(hidden)).cpu().numpy()

    def decode(self, token: int, position: int, cache: TorchCache) -> Generator[int, None, None]:
        check_ids(np.array([token]), self.config.text.vocab_size)
        while self.fixed_shapes and (decoder := self._ready_decoder(token, position, cache)):
            room = decoder.capacity - cache.length
            for newest in self._decode_by(decoder, cache, room):
                token, position = newest, position + 1
                yield newest
        while True:  # with a cache that grows
            token, position = self._next_token(token, position, cache), position + 1
            yield token

    @_stage
    def _next_token(self, token: int, position: int, cache: TorchCache) -> int:
        """Feeds one token; the likeliest one behind it."""
        ids = torch.full((1,), token, device=self.device)
        positions = torch.full((3, 1), position, device=self.device)
        with self._any_length():
            hidden = self.network.text(ids, positions, cache, cache.length)
        return int(_finite("next_token", self.network.logits(hidden)).argmax())

    def _decode_by(self, decoder: TokenDecoder, cache: TorchCache, room: int) -> Iterator[int]:
        """Ids by a decoder that has started, until its buffer is full or nobody asks for more."""
        fed = 0
        try:
            while fed < room:
                steps = min(self.steps_ahead, room - fed)
                for newest in self._steps(decoder, steps):
                    if newest < 0:
                        raise NonFiniteError("language")
                    fed += 1
                    yield newest
        finally:
            self._hand_back(decoder, cache, fed)

    @_stage
    def _steps(self, decoder: TokenDecoder, steps: int) -> list[int]:
        for _ in range(steps):
            decoder.step()
        return decoder.newest(steps)

    @_stage
    def _hand_back(self, decoder: TokenDecoder, cache: TorchCache, tokens: int) -> None:
        decoder.hand_back(cache, tokens)

    @_stage
    def _ready_decoder(self, token: int, position: int, cache: TorchCache) -> TokenDecoder | None:
        """A decoder that has taken over the cache; None where there cannot be one."""
        capacity = bucket(cache.length + GROWTH_TOKENS)
        if self._decoder is None or self._decoder.capacity != capacity:
            if self._decoder is not None:
                log.info("the buffer for decoding holds %d tokens from now on", capacity)
            self._decoder = None  # its memory first
            try:
                self._decoder = self._checked_decoder(token, position, cache, capacity)
            except RuntimeError as error:  # of CUDA, or of our own check
                if says_lost(str(error)):
                    raise
                log.warning("decoding without a CUDA graph: %s", error)
                self.fixed_shapes = False
                return None
        self._decoder.start(token, position, cache)
        return self._decoder

    def _checked_decoder(
        self, token: int, position: int, cache: TorchCache, capacity: int
    ) -> TokenDecoder:
        """A decoder whose first token is as the network's own; RuntimeError where it is not."""
        decoder = TokenDecoder(self.network, cache, capacity)
        ids = torch.full((1,), token, device=self.device)
        positions = torch.full((3, 1), position, device=self.device)
        hidden = self.network.text(ids, positions, cache.fork(), cache.length)
        reference = self.network.logits(hidden)
        decoder.start(token, position, cache)
        decoder.step()
        error = deviation(decoder.logits, reference)
        bound = MAX_DEVIATION[self.network.dino2llm.weight.dtype]
        if not error <= bound:
            raise RuntimeError(f"its logits are off by {error:.2g} of their size, above {bound}")
        return decoder

    def _ids(self, segment: Segment) -> Tensor:
        check_ids(segment.token_ids, self.config.text.vocab_size)
        return self._put(segment.token_ids)

    def _put(self, array: np.ndarray) -> Tensor:
        return torch.tensor(array, device=self.device)


def _finite(stage: str, result: Tensor) -> Tensor:
    if not torch.isfinite(result).all():
        raise NonFiniteError(stage)
    return result
