# SPDX-License-Identifier: Apache-2.0
"""Arrays where ONNX Runtime left them, and key/value caches that runs read and write in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnxruntime

from g2vlm_ros.checkpoint.config import TextConfig
from g2vlm_ros.inference.kv_buffer import ForkedCache

ELEMENTS = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
}
"""What is passed from run to run, by ONNX Runtime's names."""
SIDES = ("keys", "values")


class OnnxArray:
    """Features, hidden states or ids on the device of the sessions."""

    def __init__(
        self,
        value: onnxruntime.OrtValue,
        stage: str,
        source: OnnxArray | None = None,
        shape: tuple[int, ...] | None = None,
    ):
        """stage computed it, from source; shape is another view of the same memory."""
        self.value, self.stage, self.source = value, stage, source
        self.shape = shape or tuple(value.shape())
        self.descriptor: OnnxArray | None = None
        """Of features of views: the mean token of each."""

    @staticmethod
    def of(array: OnnxArray | np.ndarray, device: str) -> OnnxArray:
        """The same on the device; arrays of the host are taken too, by experiments and tests."""
        if isinstance(array, OnnxArray):
            return array
        host = np.ascontiguousarray(array)
        return OnnxArray(onnxruntime.OrtValue.ortvalue_from_numpy(host, device, 0), "input")

    @staticmethod
    def on_host(array: np.ndarray, stage: str, source: OnnxArray | None = None) -> OnnxArray:
        """What a stage computed, in the memory of a numpy array."""
        return OnnxArray(onnxruntime.OrtValue.ortvalue_from_numpy(array), stage, source)

    def numpy(self) -> np.ndarray:
        """A copy on the host.

        ONNX Runtime's own array may be the memory of the session's arena: one that is kept there
        keeps the megabytes around it, and windows that come later take others beside them.
        """
        return self.value.numpy().reshape(self.shape).copy()

    def reshaped(self, shape: tuple[int, ...]) -> OnnxArray:
        return OnnxArray(self.value, self.stage, self.source, shape)

    def bind(self, binding: onnxruntime.IOBinding, name: str, device: str) -> None:
        """Gives it to a run without a copy; who calls keeps it until the run is over."""
        element = ELEMENTS[self.value.data_type()]
        binding.bind_input(name, device, 0, element, self.shape, self.value.data_ptr())


class KeysValues(NamedTuple):
    """The buffers of keys and of values, (layers, kv_heads, places, D) each."""

    keys: onnxruntime.OrtValue
    values: onnxruntime.OrtValue

    @property
    def places(self) -> int:
        return self.keys.shape()[2]


class OnnxCache(ForkedCache[KeysValues]):
    """Keys and values of all layers on the device, head-major, in buffers with free places."""

    def __init__(self, text: TextConfig, element: type, device: str):
        super().__init__()
        self._text, self._element, self._device = text, np.dtype(element), device

    def _shape(self, places: int) -> tuple[int, int, int, int]:
        return (self._text.layers, self._text.kv_heads, places, self._text.head_dim)

    def allocate(self, capacity: int) -> KeysValues:
        # Free places are read under a mask, so they must hold numbers.
        zeros = (np.zeros(self._shape(capacity), self._element) for _ in SIDES)
        return KeysValues(
            *(onnxruntime.OrtValue.ortvalue_from_numpy(z, self._device, 0) for z in zeros)
        )

    def bind(self, binding: onnxruntime.IOBinding, data: KeysValues, in_place: bool) -> list[str]:
        """Gives a run the buffers of each layer to read, and to write where it puts them in place.

        Returns the names of the outputs that were bound.
        """
        _, kv_heads, places, channels = self._shape(data.places)
        layer_bytes = kv_heads * places * channels * self._element.itemsize
        shape, element = (1, kv_heads, places, channels), self._element.type
        outputs = []
        for side, buffer in zip(SIDES, data, strict=True):
            for layer in range(self._text.layers):
                name, address = f"{side}_{layer}", buffer.data_ptr() + layer * layer_bytes
                where = (self._device, 0, element, shape, address)
                binding.bind_input(f"past_{name}", *where)
                if in_place:
                    binding.bind_output(name, *where)
                    outputs.append(name)
        return outputs

    def compact(self) -> dict[str, OnnxArray | np.ndarray]:
        """past_keys and past_values (layers, kv_heads, length, D), without free places."""
        raise NotImplementedError

    def store(self, new: Sequence[onnxruntime.OrtValue], tokens: int) -> None:
        """Puts keys and values (layers, kv_heads, tokens, D) behind those of the cache."""
        raise NotImplementedError


class HostCache(OnnxCache):
    """Buffers in the memory of the host, where numpy copies."""

    def __init__(self, text: TextConfig, element: type):
        super().__init__(text, element, "cpu")

    def _arrays(self, data: KeysValues) -> list[np.ndarray]:
        """The buffers as numpy arrays over the same memory."""
        return [np.asarray(_HostMemory(each, self._element)) for each in data]

    def copy_tokens(self, target: KeysValues, source: KeysValues, tokens: int) -> None:
        for new, old in zip(self._arrays(target), self._arrays(source), strict=True):
            new[:, :, :tokens] = old[:, :, :tokens]

    def compact(self) -> dict[str, np.ndarray]:
        if self.length == 0:
            return {f"past_{side}": np.zeros(self._shape(0), self._element) for side in SIDES}
        arrays = zip(SIDES, self._arrays(self.reserve(0)), strict=True)
        return {f"past_{side}": np.ascontiguousarray(a[:, :, : self.length]) for side, a in arrays}

    def store(self, new: Sequence[onnxruntime.OrtValue], tokens: int) -> None:
        for array, value in zip(self._arrays(self.reserve(tokens)), new, strict=True):
            array[:, :, self.length : self.length + tokens] = value.numpy()


class _HostMemory:
    """Memory of a value on the host, for numpy to look at without a copy."""

    def __init__(self, value: onnxruntime.OrtValue, element: np.dtype):
        self._value = value
        self.__array_interface__ = {
            "version": 3,
            "shape": tuple(value.shape()),
            "typestr": element.str,
            "data": (value.data_ptr(), False),
        }


class DeviceCache(OnnxCache):
    """Buffers on a device, where two small graphs copy: ONNX Runtime's Python cannot."""

    def __init__(
        self,
        text: TextConfig,
        element: type,
        device: str,
        store: onnxruntime.InferenceSession,
        load: onnxruntime.InferenceSession,
    ):
        super().__init__(text, element, device)
        self._store_session, self._load_session = store, load

    def copy_tokens(self, target: KeysValues, source: KeysValues, tokens: int) -> None:
        for buffer, old in zip(target, source, strict=True):
            self._put(buffer, self._first(old, tokens), 0)

    def compact(self) -> dict[str, OnnxArray]:
        data = self.reserve(0) if self.length else self.allocate(1)
        sides = zip(SIDES, data, strict=True)
        return {f"past_{s}": OnnxArray(self._first(b, self.length), "cache") for s, b in sides}

    def store(self, new: Sequence[onnxruntime.OrtValue], tokens: int) -> None:
        for buffer, value in zip(self.reserve(tokens), new, strict=True):
            self._put(buffer, value, self.length)

    def _first(self, buffer: onnxruntime.OrtValue, tokens: int) -> onnxruntime.OrtValue:
        """The first tokens of a buffer, compact."""
        binding = self._load_session.io_binding()
        binding.bind_ortvalue_input("buffer", buffer)
        binding.bind_cpu_input("stored", np.array([tokens]))
        binding.bind_output("tokens", self._device)
        self._load_session.run_with_iobinding(binding)
        return binding.get_outputs()[0]

    def _put(
        self, buffer: onnxruntime.OrtValue, tokens: onnxruntime.OrtValue, stored: int
    ) -> None:
        """Writes tokens into a buffer from a place on; the output is the memory of the input."""
        binding = self._store_session.io_binding()
        binding.bind_ortvalue_input("buffer", buffer)
        binding.bind_ortvalue_input("tokens", tokens)
        binding.bind_cpu_input("stored", np.array([stored]))
        binding.bind_ortvalue_output("written", buffer)
        self._store_session.run_with_iobinding(binding)
