# SPDX-License-Identifier: Apache-2.0
"""The key/value cache of the trunk, which grows in place."""

from __future__ import annotations

from torch import Tensor

GROWTH_TOKENS = 256


class _Buffer:
    """Keys or values of one layer, (1, kv_heads, capacity, D), filled up to `used` tokens."""

    def __init__(self, data: Tensor, used: int):
        self.data = data
        self.used = used


class KVCache:
    """Keys and values of all layers, in place and append-only.

    Forks share their buffers. What a cache has written never changes, so a fork may go on writing
    behind the shared tokens as long as nobody else has; otherwise it takes a copy first.
    """

    def __init__(self, layers: int):
        self._pairs: list[tuple[_Buffer, _Buffer] | None] = [None] * layers
        self._lengths = [0] * layers

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._lengths[0]

    def fork(self) -> KVCache:
        """A cache with the same content; appending to one never changes the other."""
        other = KVCache(0)
        other._pairs, other._lengths = list(self._pairs), list(self._lengths)
        return other

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Appends (1, kv_heads, T, D) of a layer and returns views of all its keys and values."""
        start, end = self._lengths[layer], self._lengths[layer] + keys.shape[2]
        old = self._pairs[layer] or (None, None)
        pair = tuple(
            _writable(buffer, new, start, end)
            for buffer, new in zip(old, (keys, values), strict=True)
        )
        for buffer, new in zip(pair, (keys, values), strict=True):
            buffer.data[:, :, start:end] = new
            buffer.used = end
        self._pairs[layer], self._lengths[layer] = pair, end
        return tuple(buffer.data[:, :, :end] for buffer in pair)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Views of the keys and values of one layer, (1, kv_heads, length, D)."""
        keys, values = self._pairs[index]
        end = self._lengths[index]
        return keys.data[:, :, :end], values.data[:, :, :end]


def _writable(buffer: _Buffer | None, new: Tensor, start: int, end: int) -> _Buffer:
    """The buffer when [start, end) is free in it, else a larger copy of its first tokens."""
    if buffer is not None and buffer.used == start and end <= buffer.data.shape[2]:
        return buffer
    # Room for about one answer: a decode step then copies nothing, a prefill wastes little.
    shape = (1, new.shape[1], end + GROWTH_TOKENS, new.shape[3])
    data = new.new_empty(shape)
    if buffer is not None:
        data[:, :, :start] = buffer.data[:, :, :start]
    return _Buffer(data, start)
