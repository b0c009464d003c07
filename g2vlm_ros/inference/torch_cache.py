# SPDX-License-Identifier: Apache-2.0
"""The key/value cache of the trunk in torch, which grows in place."""

from __future__ import annotations

import torch
from torch import Tensor

from g2vlm_ros.inference.kv_buffer import ForkedCache
from g2vlm_ros.model.layers import attend


class PastTokens:
    """What is cached, read only; implements `model.decoder.KeyValues` for one stage.

    So that a stage is a function of tensors, which can be recorded.
    """

    def __init__(self, past: Tensor):
        """past: keys and values (2, layers, kv_heads, S, D)."""
        self._past = past
        self._new: list[Tensor] = []

    def attend(
        self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        new = torch.stack((keys, values))
        self._new.append(new[:, 0])
        all_keys, all_values = torch.cat((self._past[:, layer, None], new), dim=3)
        return attend(q, all_keys, all_values, mask)

    def new(self) -> Tensor:
        """Keys and values of the stage, (2, layers, kv_heads, T, D)."""
        return torch.stack(self._new, dim=1)


class TorchCache(ForkedCache[Tensor]):
    """Keys and values of all layers, (2, layers, kv_heads, capacity, D), in place.

    Dtype and device are those of the first keys that come. Implements `model.decoder.KeyValues`:
    the layers append in turn, and the tokens count when the last one has.
    """

    def __init__(self, layers: int):
        super().__init__()
        self._layers = layers
        self._like: Tensor | None = None

    def allocate(self, capacity: int) -> Tensor:
        _, kv_heads, _, channels = self._like.shape
        return self._like.new_empty((2, self._layers, kv_heads, capacity, channels))

    def copy_tokens(self, target: Tensor, source: Tensor, tokens: int) -> None:
        target[..., :tokens, :] = source[..., :tokens, :]

    def attend(
        self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Attention of q (1, heads, T, D) over the cache and the new keys and values."""
        all_keys, all_values = self.extend(layer, keys, values)
        return attend(q, all_keys, all_values, mask)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Appends (1, kv_heads, T, D) of a layer and returns views of all its keys and values."""
        self._like, tokens = keys, keys.shape[2]
        start, end = self.length, self.length + tokens
        data = self.reserve(tokens)
        data[0, layer, :, start:end] = keys[0]
        data[1, layer, :, start:end] = values[0]
        if layer == self._layers - 1:
            self.commit(tokens)
        return data[0, layer, None, :, :end], data[1, layer, None, :, :end]

    @property
    def data(self) -> Tensor:
        """All keys and values with the room behind them, of which `length` tokens count."""
        return self._buffer.data

    def past(self) -> Tensor:
        """Keys and values of all cached tokens, (2, layers, kv_heads, length, D)."""
        return self._buffer.data[..., : self.length, :]

    def append(self, tokens: Tensor) -> None:
        """Appends keys and values of all layers, (2, layers, kv_heads, T, D)."""
        count, self._like = tokens.shape[3], tokens[0, 0, None]
        data = self.reserve(count)
        data[..., self.length : self.length + count, :] = tokens
        self.commit(count)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Views of the keys and values of one layer, (1, kv_heads, length, D)."""
        data = self._buffer.data
        return data[0, index, None, :, : self.length], data[1, index, None, :, : self.length]
