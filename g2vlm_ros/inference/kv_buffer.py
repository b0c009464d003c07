# SPDX-License-Identifier: Apache-2.0
"""Key/value caches that can be forked: the bookkeeping that all backends share.

What a cache has written never changes. So forks share one buffer, and each may go on writing
behind the shared tokens as long as no other has; the one that comes second takes a copy first.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

GROWTH_TOKENS = 256
"""Room for about one answer: a decode step then copies nothing, a prefill wastes little."""
MIN_BUCKET = 1024
"""Places of the smallest buffer of a fixed size; each larger one is twice as large."""


def bucket(tokens: int) -> int:
    """The size of the buffer of a fixed size in which so many tokens lie."""
    return max(MIN_BUCKET, 1 << (tokens - 1).bit_length())


Data = TypeVar("Data")
Self = TypeVar("Self", bound="ForkedCache")


@dataclass
class KVBuffer(Generic[Data]):
    """Keys and values with room for `capacity` tokens, of which the first `used` are written."""

    data: Data
    capacity: int
    used: int


class ForkedCache(ABC, Generic[Data]):
    """The keys and values of the tokens so far, of which there are `length`.

    To append tokens: `reserve`, write behind the first `length` tokens of what it gives, `commit`.
    Without the commit nothing was appended.
    """

    def __init__(self) -> None:
        self.length = 0
        self._buffer: KVBuffer[Data] | None = None

    @abstractmethod
    def allocate(self, capacity: int) -> Data:
        """Room for so many tokens, with any content."""

    def capacity_for(self, tokens: int) -> int:
        """How many places a new buffer gets that is to hold so many tokens."""
        return tokens + GROWTH_TOKENS

    @abstractmethod
    def copy_tokens(self, target: Data, source: Data, tokens: int) -> None:
        """Copies the first tokens of a buffer."""

    def fork(self: Self) -> Self:
        """A cache with the same content; appending to one never changes the other."""
        return copy.copy(self)

    def reserve(self, tokens: int) -> Data:
        """The buffer, in which so many tokens behind the cached ones are free to write."""
        old, end = self._buffer, self.length + tokens
        if old is not None and old.used == self.length and end <= old.capacity:
            return old.data
        capacity = self.capacity_for(end)
        data = self.allocate(capacity)
        if old is not None and self.length:
            self.copy_tokens(data, old.data, self.length)
        self._buffer = KVBuffer(data, capacity, self.length)
        return data

    def commit(self, tokens: int) -> None:
        """What was written behind the cached tokens now belongs to them."""
        self.length += tokens
        self._buffer.used = self.length

    def cut(self, length: int) -> None:
        """Forgets the tokens behind the first `length`, as if they had never been appended."""
        if self._buffer is not None and self._buffer.used == self.length:
            self._buffer.used = length
        self.length = length
