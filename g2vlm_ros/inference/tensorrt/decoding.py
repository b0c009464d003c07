# SPDX-License-Identifier: Apache-2.0
"""Decoding on the device: steps follow each other without the host, as one CUDA graph.

A step is the language engine for one token, the new keys and values put into the buffers, and the
engine that chooses the next token. All it is fed lies in one block of memory, which the step
itself brings up to date; the host reads the newest ids once in a while.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from g2vlm_ros.inference.decoding_state import RECENT_TOKENS, STATE, first_state
from g2vlm_ros.inference.tensorrt.cuda import CudaError, DeviceLostError
from g2vlm_ros.inference.tensorrt.device_memory import BLOCK_BYTES, DeviceArray, DeviceMemory
from g2vlm_ros.inference.tensorrt.engine import Engine
from g2vlm_ros.inference.tensorrt.engine_metadata import EngineError
from g2vlm_ros.inference.tensorrt.golden import MAX_DEVIATION, deviation
from g2vlm_ros.inference.tensorrt.kv_cache import SIDES, KeysValues, writes_in_place

SOURCE = Path(__file__).with_name("store_tokens.cu")
THREADS = 256
UNIT_BYTES = 16
"""What a thread of the kernel copies."""
SHAPES = {"ids": (1,), "positions": (3, 1), "stored": (1,), "recent": (RECENT_TOKENS,)}
log = logging.getLogger(__name__)


class DecodingState:
    """What a step is fed, and room for what it leaves, each in one block on the device."""

    def __init__(self, device: DeviceMemory):
        self._device = device
        size = len(STATE) * BLOCK_BYTES
        self._now, self._next = (device.zeros((size,), "UINT8", "a decoding step") for _ in "12")
        self.fed = self._views(self._now)
        self.left = {f"next_{name}": view for name, view in self._views(self._next).items()}

    def _views(self, block: DeviceArray) -> dict[str, DeviceArray]:
        return {
            name: DeviceArray(block.address + BLOCK_BYTES * i, SHAPES[name], "INT64", owner=block)
            for i, name in enumerate(STATE)
        }

    def begin(self, token: int, position: int, stored: int) -> None:
        """The next step feeds `token` at `position`, behind so many tokens."""
        block = np.zeros((len(STATE), BLOCK_BYTES), np.uint8)
        values = first_state(token, position, stored)
        for row, name in zip(block, STATE, strict=True):
            row[: values[name].nbytes] = values[name].reshape(-1).view(np.uint8)
        self._device.duplicate(self._now, self._device.upload(block, "UINT8", "a decoding step"))

    def advance(self) -> None:
        """What a step left is what the next one is fed."""
        self._device.duplicate(self._now, self._next)

    def newest(self, count: int) -> list[int]:
        """The last ids, after all steps so far; -1 where logits were not finite."""
        (recent,) = self._device.download([self.fed["recent"]])
        return [int(n) for n in recent[-count:]]


class TokenStore:
    """The kernel that puts a token into the buffers at a place that stands on the device."""

    def __init__(self, device: DeviceMemory):
        self._device = device
        module = device.cuda.compile(SOURCE.read_text(encoding="utf-8"))
        self._kernel = device.cuda.function(module, "store_token")

    def put(self, new: dict[str, DeviceArray], buffers: KeysValues, stored: DeviceArray) -> None:
        """new: keys and values (layers, kv_heads, 1, D); stored: the place, INT64 (1,)."""
        layers, kv_heads, places, _ = buffers.keys.shape
        rows = layers * kv_heads
        units = new["keys"].bytes // rows // UNIT_BYTES
        addresses = (*(new[side] for side in SIDES), *buffers, stored)
        self._device.cuda.launch(
            self._kernel,
            -(-rows * units // THREADS),
            THREADS,
            (*(np.uint64(a.address) for a in addresses), *np.int32((rows, units, places))),
            self._device.compute,
        )


class TokenDecoder:
    """Steps behind one pair of buffers; as a CUDA graph where that is possible."""

    def __init__(
        self,
        device: DeviceMemory,
        state: DecodingState,
        language: Engine,
        head: Engine,
        buffers: KeysValues,
        store: TokenStore | None,
    ):
        """language and head: engines with contexts of their own, `Engine.for_repeated_shapes`.

        store: None where no kernel can be compiled; the host then puts each token in its place.
        """
        self._device, self._state = device, state
        self._language, self._head, self._store = language, head, store
        self._place = (buffers.keys.address, buffers.values.address, buffers.places)
        element, (_, width) = language.metadata.outputs["hidden"]
        self._hidden = device.empty((1, width), element, "decoding")
        self._logits = device.empty(head.metadata.outputs["logits"][1], "FLOAT", "logits")
        self._constant = {
            "features": device.empty((0, width), element, "text"),
            "reach": device.zeros((1,), "INT64", "reach"),
        }
        shape = (*buffers.keys.shape[:2], 1, buffers.keys.shape[3])
        in_place = writes_in_place(language)
        self._new = {} if in_place else {s: device.empty(shape, element, s) for s in SIDES}
        self._scratch = device.scratch(max(language.scratch_bytes, head.scratch_bytes))
        self._graph: Any = None

    def serves(self, buffers: KeysValues) -> bool:
        """Whether it is for these buffers, and the engines' working memory has not moved."""
        place = (buffers.keys.address, buffers.values.address, buffers.places)
        return (place, self._device.scratch(0)) == (self._place, self._scratch)

    def close(self) -> None:
        if self._graph is not None:
            self._device.synchronize()
            self._device.cuda.discard(self._graph)
            self._graph = None

    def step(self, buffers: KeysValues, stored: int) -> None:
        """Feeds one token, which gets the place `stored`."""
        if self._graph is None:
            self._queue(buffers, stored)
            return
        with self._device.timed("language"):
            self._device.cuda.replay(self._graph, self._device.compute)

    def record(self, buffers: KeysValues, token: int, position: int, stored: int) -> None:
        """Tries a step, records it and compares; goes on without a graph where that fails."""
        if self._language.records_itself:
            return
        if self._store is None and self._new:
            log.warning(
                "decoding without a CUDA graph: no kernel puts a token at its place; see above"
            )
            return
        try:
            self._record(buffers, token, position, stored)
        except DeviceLostError:
            raise
        except (CudaError, EngineError) as error:
            self.close()
            log.warning("decoding without a CUDA graph: %s", error)

    def _record(self, buffers: KeysValues, token: int, position: int, stored: int) -> None:
        cuda, stream = self._device.cuda, self._device.compute
        self._state.begin(token, position, stored)
        self._queue(buffers, stored)  # also chooses profiles, which must not be recorded
        (want,) = self._device.download([self._logits])
        cuda.begin_capture(stream)
        try:
            self._queue(buffers, stored, timed=False)
        finally:
            self._graph = cuda.end_capture(stream)
        self._state.begin(token, position, stored)
        cuda.replay(self._graph, stream)
        (logits,) = self._device.download([self._logits])
        bound = MAX_DEVIATION[self._language.metadata.precision]
        if np.isfinite(want).all() and not (error := deviation(logits, want)) <= bound:
            raise EngineError(
                f"the graph is off by {error:.3g} of its logits, allowed are {bound}"
            )

    def _queue(self, buffers: KeysValues, stored: int, timed: bool = True) -> None:
        fed = self._state.fed
        inputs = {name: fed[name] for name in ("ids", "positions", "stored")}
        outputs = {"hidden": self._hidden, **(self._new or buffers.of_layers())}
        inputs |= {**self._constant, **buffers.of_layers("past_")}
        self._language.run(inputs, outputs, timed)
        if self._new and self._store is not None:
            self._store.put(self._new, buffers, fed["stored"])
        elif self._new:
            for side, buffer in zip(SIDES, buffers, strict=True):
                self._device.copy_tokens(buffer, stored, self._new[side], 0, 1)
        inputs = {"hidden": self._hidden, **{n: fed[n] for n in STATE if n != "ids"}}
        self._head.run(inputs, {"logits": self._logits, **self._state.left}, timed)
        self._state.advance()
