# SPDX-License-Identifier: Apache-2.0
"""Keys and values on the device: head-major buffers with a fixed number of places.

An engine reads them where they lie. Addresses and shapes of a decoding step stay the same as long
as the buffer does, which is what a CUDA graph needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from g2vlm_ros.inference.kv_buffer import ForkedCache
from g2vlm_ros.inference.tensorrt.device_memory import DeviceArray, DeviceMemory
from g2vlm_ros.inference.tensorrt.engine import Engine

SIDES = ("keys", "values")
Arrays = dict[str, DeviceArray]


class KeysValues(NamedTuple):
    """The buffers of keys and of values, (layers, kv_heads, places, D) each."""

    keys: DeviceArray
    values: DeviceArray

    @property
    def places(self) -> int:
        return self.keys.shape[2]

    def of_layers(self, prefix: str = "") -> Arrays:
        """The part of each layer, (1, kv_heads, places, D), by the names that engines have."""
        return {
            f"{prefix}{side}_{layer}": buffer.rows(layer, layer + 1)
            for side, buffer in zip(SIDES, self, strict=True)
            for layer in range(buffer.shape[0])
        }


class TensorRTCache(ForkedCache[KeysValues]):
    """Keys and values of a conversation."""

    def __init__(
        self,
        device: DeviceMemory,
        shape: tuple[int, ...],
        element: str,
        capacity_for: Callable[[int], int],
    ):
        """shape: (layers, kv_heads, any, D); capacity_for: how many places the engines want in a
        buffer for so many tokens."""
        super().__init__()
        self._device, self._of, self._element = device, shape, element
        self.capacity_for = capacity_for

    def _shape(self, tokens: int) -> tuple[int, ...]:
        layers, kv_heads, _, channels = self._of
        return (layers, kv_heads, tokens, channels)

    @property
    def places(self) -> int:
        """Of the buffer that the cache has now; 0 without one."""
        return 0 if self._buffer is None else self._buffer.capacity

    def allocate(self, capacity: int) -> KeysValues:
        # Free places are read under a mask, so they must hold numbers.
        what = "the key/value cache"
        buffers = (self._device.zeros(self._shape(capacity), self._element, what) for _ in SIDES)
        return KeysValues(*buffers)

    def copy_tokens(self, target: KeysValues, source: KeysValues, tokens: int) -> None:
        for new, old in zip(target, source, strict=True):
            self._device.copy_tokens(new, 0, old, 0, tokens)

    def compact(self) -> Arrays:
        """past_keys and past_values (layers, kv_heads, length, D), without free places."""
        arrays = {}
        for index, side in enumerate(SIDES):
            array = self._device.empty(self._shape(self.length), self._element, f"past {side}")
            if self.length:
                buffer = self.reserve(0)[index]
                self._device.copy_tokens(array, 0, buffer, 0, self.length)
            arrays[f"past_{side}"] = array
        return arrays

    def store(self, new: Mapping[str, DeviceArray], tokens: int) -> None:
        """Puts keys and values (layers, kv_heads, tokens, D) behind those of the cache."""
        for buffer, side in zip(self.reserve(tokens), SIDES, strict=True):
            self._device.copy_tokens(buffer, self.length, new[side], 0, tokens)

    def newest(self, tokens: int) -> Arrays:
        """Keys and values of the last tokens, (layers, kv_heads, tokens, D)."""
        arrays = {}
        for side, buffer in zip(SIDES, self.reserve(0), strict=True):
            array = self._device.empty(self._shape(tokens), self._element, f"new {side}")
            self._device.copy_tokens(array, 0, buffer, self.length - tokens, tokens)
            arrays[side] = array
        return arrays

    def append_by(self, engine: Engine, inputs: Arrays, tokens: int) -> DeviceArray:
        """Runs a stage that adds tokens; its hidden states. The tokens count after `commit`."""
        buffers = self.reserve(tokens)
        if reads_buffers(engine):
            stored = self._device.upload(np.array([self.length]), "INT64", "stored")
            inputs = {**inputs, "stored": stored, **buffers.of_layers("past_")}
        else:
            inputs = {**inputs, **self.compact()}
        in_place = writes_in_place(engine)
        results = engine.run(inputs, buffers.of_layers() if in_place else None)
        if not in_place:
            self.store(results, tokens)
        return results["hidden"]


def reads_buffers(engine: Engine) -> bool:
    """Whether a stage reads the buffers of each layer, and not a compact array of past tokens."""
    return "past_keys_0" in engine.metadata.inputs


def writes_in_place(engine: Engine) -> bool:
    """Whether a stage puts new tokens into the buffers itself (TensorScatter)."""
    return "keys_0" in engine.metadata.outputs
