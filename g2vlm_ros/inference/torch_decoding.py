# SPDX-License-Identifier: Apache-2.0
"""Decoding token by token in torch with fixed shapes, so that a GPU can replay it as one graph.

With a growing cache every step launches some 400 kernels and plans attention for a new length; on
an H100 that took 29 to 38 ms per token, a static cache in one CUDA graph 5.6 ms. Here keys and
values of a conversation lie in a buffer of a fixed number of tokens, and a mask says how many.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from g2vlm_ros.inference.torch_cache import TorchCache
from g2vlm_ros.model.decoder import Tokens
from g2vlm_ros.model.layers import attend
from g2vlm_ros.model.network import G2VLM

MIN_BUCKET = 1024
"""Tokens of the smallest buffer; larger ones are twice as large as the one before."""


def bucket(tokens: int) -> int:
    """The size of the buffer in which so many tokens lie."""
    return max(MIN_BUCKET, 1 << (tokens - 1).bit_length())


class StaticCache:
    """Keys and values with a fixed number of places; implements `model.decoder.KeyValues`.

    A step writes one token at `place` and looks at the places up to it.
    """

    def __init__(self, like: Tensor, capacity: int):
        """like: the data of a `TorchCache`, (2, layers, kv_heads, any, D)."""
        sides, layers, kv_heads, _, channels = like.shape
        self.data = like.new_zeros((sides, layers, kv_heads, capacity, channels))
        self.place = torch.zeros(1, dtype=torch.int64, device=like.device)
        self._places = torch.arange(capacity, device=like.device)

    @property
    def capacity(self) -> int:
        return self.data.shape[3]

    def attend(
        self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        for side, new in enumerate((keys, values)):
            self.data[side, layer].index_copy_(1, self.place, new[0])
        everything = self.data[:, layer, None]
        return attend(q, everything[0], everything[1], mask)

    def visible(self) -> Tensor:
        """bool (1, capacity): the places up to the one that is written."""
        return (self._places <= self.place)[None]


class TokenDecoder:
    """One decoding step of fixed shapes, as a CUDA graph where the network is on a GPU."""

    def __init__(
        self, network: G2VLM, cache: TorchCache, capacity: int, capture: bool | None = None
    ):
        """capture: as a CUDA graph; left out: on a GPU. Buffers are like those of `cache`."""
        self._network = network
        self._static = StaticCache(cache.data, capacity)
        device = self._static.place.device
        self._token = torch.zeros(1, dtype=torch.int64, device=device)
        self._positions = torch.zeros((3, 1), dtype=torch.int64, device=device)
        self._logits: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._holds: tuple[weakref.ref, int] | None = None
        if device.type == "cuda" if capture is None else capture:
            self._capture()

    @property
    def capacity(self) -> int:
        return self._static.capacity

    def step(self, token: Tensor, positions: Tensor, cache: TorchCache) -> Tensor:
        """Appends one token, int64 (1,), at positions (3, 1); logits (vocabulary,) after it."""
        length = cache.length
        if self._holds is None or (self._holds[0](), self._holds[1]) != (cache, length):
            self._static.data[..., :length, :] = cache.data[..., :length, :]
        self._token.copy_(token)
        self._positions.copy_(positions)
        self._static.place.fill_(length)
        if self._graph is None:
            self._logits = self._run()
        else:
            self._graph.replay()
        cache.append(self._static.data[..., length : length + 1, :])
        self._holds = (weakref.ref(cache), cache.length)
        return self._logits

    def _run(self) -> Tensor:
        model = self._network.language_model
        tokens = Tokens(model.model.embed_tokens(self._token)[None])
        hidden = model.model(tokens, self._positions, self._static, self._static.visible())
        return model.lm_head(hidden.semantic[0, -1]).float()

    def _capture(self) -> None:
        """Warms up on a stream of its own, as graphs ask for, then records one step."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._logits = self._run()
        self._graph = graph
