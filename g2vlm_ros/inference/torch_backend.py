# SPDX-License-Identifier: Apache-2.0
"""The stages in torch: the readable reference, on CPU or CUDA, in any float dtype."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from g2vlm_ros.checkpoint.config import PATCH_PX, ModelConfig
from g2vlm_ros.checkpoint.prompt_layout import Segment
from g2vlm_ros.inference.device_errors import lost_is_final, says_lost
from g2vlm_ros.inference.input_checks import check_boundaries, check_grid, check_ids, check_images
from g2vlm_ros.inference.torch_cache import TorchCache
from g2vlm_ros.inference.torch_decoding import TokenDecoder, bucket
from g2vlm_ros.model.network import G2VLM
from g2vlm_ros.model.weights import load
from g2vlm_ros.records import NonFiniteError, RawGeometry

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


MAX_DECODER_DEVIATION = {
    torch.float64: 1e-6,
    torch.float32: 1e-3,
    torch.float16: 0.02,
    torch.bfloat16: 0.1,
}
"""Largest ||logits - wanted|| / ||wanted|| of decoding with fixed shapes, as for engines."""
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

    def __init__(self, network: G2VLM, fixed_shapes: bool | None = None):
        """fixed_shapes: decode by `TokenDecoder`; left out: on a GPU, where it is a CUDA graph."""
        weight = network.dino2llm.weight
        self.network = network
        self.config: ModelConfig = network.config
        self.device = weight.device
        self.backend = f"torch {weight.device} {str(weight.dtype).removeprefix('torch.')}"
        on_gpu = weight.device.type == "cuda"
        self.fixed_shapes = on_gpu if fixed_shapes is None else fixed_shapes
        self._decoder: TokenDecoder | None = None

    @classmethod
    def open(
        cls,
        folder: str | Path,
        device: str = "auto",
        dtype: str = "auto",
        dino_windows: str | None = None,
    ) -> TorchBackend:
        """Loads a checkpoint folder.

        device "auto" is CUDA where there is one, else the CPU; dtype "auto" is bfloat16 on CUDA
        (as released) and float32 on the CPU. dino_windows overrides the folder's setting.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device '{device}' needs CUDA, which torch does not find; use 'cpu'")
        if dtype == "auto":
            dtype = "float32" if torch.device(device).type == "cpu" else "bfloat16"
        if dtype not in DTYPES:
            raise ValueError(f"dtype is '{dtype}'; it must be auto or one of {', '.join(DTYPES)}")
        return cls(load(folder, device, DTYPES[dtype], dino_windows))

    def new_cache(self) -> TorchCache:
        return TorchCache(self.config.text.layers)

    @_stage
    def encode_geometry(self, images: np.ndarray) -> Tensor:
        check_images("images", images, ndim=4, multiple=PATCH_PX)
        return _finite("encode_geometry", self.network.encode_geometry(self._put(images)))

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
        return _finite("geometry", self.network.geometry(features, ids, positions, cache))

    @_stage
    def heads(
        self, hidden: Tensor, grid_hw: tuple[int, int], global_points: bool = False
    ) -> RawGeometry:
        check_grid(hidden.shape[1], grid_hw)
        results = self.network.heads(hidden, grid_hw, global_points)
        arrays = [None if x is None else _finite("heads", x).float() for x in results]
        return RawGeometry(*(None if x is None else x.cpu().numpy() for x in arrays))

    @_stage
    def language(
        self, segment: Segment, cache: TorchCache, features: Tensor | None = None
    ) -> np.ndarray:
        ids, positions = self._ids(segment), self._put(segment.positions)
        if segment.kind == "text":
            if self.fixed_shapes and segment.length == 1 and cache.length:
                return _finite("language", self._decode(ids, positions, cache)).cpu().numpy()
            logits = self.network.text(ids, positions, cache, cache.length)
        else:
            if features is None:
                raise ValueError("a semantic segment needs the features of its image; pass them")
            check_boundaries(segment, "semantic", 1, features.shape[0])
            logits = self.network.semantic(features, ids, positions, cache)
        return _finite("language", logits).cpu().numpy()

    def _decode(self, token: Tensor, positions: Tensor, cache: TorchCache) -> Tensor:
        """One token by the decoder of fixed shapes; by the network where that is not possible."""
        capacity = bucket(cache.length + 1)
        if self._decoder is None or self._decoder.capacity != capacity:
            if self._decoder is not None:
                log.info("the buffer for decoding holds %d tokens from now on", capacity)
            self._decoder = None  # its memory first
            try:
                self._decoder = self._checked_decoder(token, positions, cache, capacity)
            except (RuntimeError, NonFiniteError) as error:  # of CUDA, or of our own check
                if says_lost(str(error)):
                    raise
                log.warning("decoding without a CUDA graph: %s", error)
                self.fixed_shapes = False
                return self.network.text(token, positions, cache, cache.length)
        return self._decoder.step(token, positions, cache)

    def _checked_decoder(
        self, token: Tensor, positions: Tensor, cache: TorchCache, capacity: int
    ) -> TokenDecoder:
        """A decoder whose first token is as the network's own; RuntimeError where it is not."""
        decoder = TokenDecoder(self.network, cache, capacity)
        want = self.network.text(token, positions, cache.fork(), cache.length)
        error = (decoder.step(token, positions, cache.fork()) - want).norm() / want.norm()
        bound = MAX_DECODER_DEVIATION[self.network.dino2llm.weight.dtype]
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
