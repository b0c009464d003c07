# SPDX-License-Identifier: Apache-2.0
"""Requests to a StageService behind Triton: one JSON header and one tensor of bytes per array.

Triton's configuration names each input, so a request's arrays travel in one UINT8 tensor, end to
end, and the header says where each lies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from g2vlm_ros.inference.triton_backend import ServerError
from g2vlm_ros.records import UnfitError

Arrays = dict[str, np.ndarray]

HEADER, PAYLOAD = "header", "payload"
"""Of the request."""
REPLY_HEADER, REPLY_PAYLOAD = "reply_header", "reply_payload"
ARRAY_KINDS = "biuf"
"""numpy's kinds of numbers that travel: truth values, integers, floats."""


def packed(header: Mapping[str, Any], arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (n,) header and uint8 (m,) payload of a message."""
    layout, parts, offset = {}, [], 0
    for name, array in arrays.items():
        flat = np.ascontiguousarray(array)
        layout[name] = [flat.dtype.str, list(array.shape), offset]
        parts.append(flat.reshape(-1).view(np.uint8))
        offset += flat.nbytes
    text = json.dumps({**header, "arrays": layout}).encode()
    payload = np.concatenate(parts) if parts else np.zeros(1, np.uint8)
    return np.frombuffer(text, np.uint8), payload


def unpacked(header: np.ndarray, payload: np.ndarray) -> tuple[dict[str, Any], Arrays]:
    """The message again; ValueError where header and payload are none."""
    try:
        content = json.loads(bytes(header))
        layout = content.pop("arrays").items()
        arrays = {name: _array(name, payload, *place) for name, place in layout}
    except (AttributeError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"no message of g2vlm_ros ({type(error).__name__}: {error})") from error
    return content, arrays


def _array(name: str, payload: np.ndarray, dtype: str, shape: list[int], offset: int) -> Any:
    """One array of a payload, read where its header says."""
    kind, count = np.dtype(str(dtype)), int(np.prod(shape, dtype=np.int64))
    if kind.kind not in ARRAY_KINDS:
        raise ValueError(f"array '{name}' is of {kind}; arrays hold numbers")
    if min([offset, *shape]) < 0 or offset + count * kind.itemsize > len(payload):
        raise ValueError(f"array '{name}' lies outside its message")
    return np.frombuffer(payload, kind, count, offset).reshape(shape)


class GrpcTransport:
    """A Triton server by tritonclient. timeout_s: from a request to its reply at most."""

    def __init__(self, url: str, model: str, timeout_s: float):
        try:
            import tritonclient.grpc as client
        except ImportError as error:
            raise UnfitError(
                f"backend triton needs the package tritonclient ({error}); "
                "pip install 'tritonclient[grpc]'"
            ) from error
        self.name, self._model, self._timeout_s = url, model, timeout_s
        self._client_module = client
        self._client = client.InferenceServerClient(url)
        self.bytes_sent = self.bytes_received = 0
        """Of headers and payloads since the start."""

    def call(self, header: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        head, payload = packed(header, arrays)
        inputs = []
        for name, array in ((HEADER, head), (PAYLOAD, payload)):
            tensor = self._client_module.InferInput(name, [1, len(array)], "UINT8")
            tensor.set_data_from_numpy(array[None])
            inputs.append(tensor)
        try:
            reply = self._client.infer(
                self._model,
                inputs,
                client_timeout=self._timeout_s,
                # In its queue a request waits no longer than its caller does.
                timeout=round(self._timeout_s * 1e6),
            )
        except self._client_module.InferenceServerException as error:
            raise ServerError(f"Triton at {self.name}: {error}") from None
        head, payload = reply.as_numpy(REPLY_HEADER)[0], reply.as_numpy(REPLY_PAYLOAD)[0]
        self.bytes_sent += sum(each.nbytes for each in packed(header, arrays))
        self.bytes_received += head.nbytes + payload.nbytes
        try:
            return unpacked(head, payload)
        except ValueError as error:
            raise ServerError(f"Triton at {self.name}: {error}") from error
