# SPDX-License-Identifier: Apache-2.0
"""Decoding token by token in torch with fixed shapes, so that a GPU can replay it as one graph.

With a growing cache every step launches some 400 kernels and plans attention for a new length; on
an H100 that took 29 to 38 ms per token, a static cache in one CUDA graph 5.6 ms. Here keys and
values of a conversation lie in a buffer of a fixed number of tokens, and a mask says how many. The
token, its position and its place advance on the device; the host reads the newest ids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from g2vlm_ros.inference.decoding_state import RECENT_TOKENS
from g2vlm_ros.inference.torch_cache import TorchCache
from g2vlm_ros.inference.torch_graphs import GraphRecorder, Recorder
from g2vlm_ros.model.decoder import Tokens
from g2vlm_ros.model.layers import attend
from g2vlm_ros.model.network import G2VLM


class StaticCache:
    """Keys and values with a fixed number of places; implements `model.decoder.KeyValues`.

    A step writes one token at `place` and looks at the places up to it. The query heads that
    share keys are rows of one matrix, so that no kernel repeats the keys for each of them.
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
        heads = q.unflatten(1, (keys.shape[1], -1))[..., 0, :]
        out = attend(heads, everything[0], everything[1], mask)
        return out.unflatten(-1, (keys.shape[1], -1)).transpose(1, 2).reshape(1, 1, -1)

    def visible(self) -> Tensor:
        """bool (1, capacity): the places up to the one that is written."""
        return (self._places <= self.place)[None]


class TokenDecoder:
    """Greedy decoding of fixed shapes, a step as a CUDA graph where the network is on a GPU."""

    def __init__(
        self,
        network: G2VLM,
        cache: TorchCache,
        capacity: int,
        capture: bool | None = None,
        record: Recorder | None = None,
    ):
        """capture: as a graph; left out: on a GPU. record: instead of a CUDA graph.

        Buffers are like those of `cache`.
        """
        self._network = network
        self._static = StaticCache(cache.data, capacity)
        device = self._static.place.device
        self._token = torch.zeros(1, dtype=torch.int64, device=device)
        self._positions = torch.zeros((3, 1), dtype=torch.int64, device=device)
        self._recent = torch.zeros(RECENT_TOKENS, dtype=torch.int64, device=device)
        self._no_number = torch.full((1,), -1, device=device)
        self.logits: Tensor | None = None
        """float32 (vocabulary,) of the step before."""
        self._step = self._run
        if device.type == "cuda" if capture is None else capture:
            self._step = (record or GraphRecorder())(self._run, device)

    @property
    def capacity(self) -> int:
        return self._static.capacity

    def start(self, token: int, position: int, cache: TorchCache) -> None:
        """Takes over what a cache holds; the next step feeds `token` at `position`."""
        length = cache.length
        self._static.data[..., :length, :] = cache.data[..., :length, :]
        self._static.place.fill_(length)
        self._token.fill_(token)
        self._positions.fill_(position)

    def step(self) -> None:
        """Feeds one token and goes on to the likeliest one behind it."""
        self._step()

    def newest(self, count: int) -> list[int]:
        """The last ids, at most `RECENT_TOKENS`; -1 where logits were not finite."""
        return self._recent[-count:].tolist()

    def hand_back(self, cache: TorchCache, tokens: int) -> None:
        """Appends the first tokens that were fed since the start to the cache."""
        start = cache.length
        cache.append(self._static.data[..., start : start + tokens, :])

    def _run(self) -> None:
        model = self._network.language_model
        tokens = Tokens(model.model.embed_tokens(self._token)[None])
        hidden = model.model(tokens, self._positions, self._static, self._static.visible())
        logits = self._network.logits(hidden.semantic[:, -1])
        finite = torch.isfinite(logits).all()
        token = logits.argmax(dim=-1, keepdim=True)
        newest = torch.where(finite, token, self._no_number)
        self._recent.copy_(torch.cat((self._recent[1:], newest)))
        self._token.copy_(token)
        self._positions.add_(1)
        self._static.place.add_(1)
        self.logits = logits
