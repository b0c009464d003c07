# SPDX-License-Identifier: Apache-2.0
"""The model that Triton's Python backend runs: a backend of ours behind a StageService.

The repository that `export.triton_repository` writes imports it; its parameters say checkpoint,
backend, device and dtype. Only Triton has triton_python_backend_utils.
"""

from __future__ import annotations

import json
import os
from contextlib import redirect_stderr
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from g2vlm_ros.checkpoint.digest import model_version
from g2vlm_ros.inference.backend import open_backend
from g2vlm_ros.inference.stage_service import StageService
from g2vlm_ros.inference.triton_transport import (
    HEADER,
    PAYLOAD,
    REPLY_HEADER,
    REPLY_PAYLOAD,
    packed,
    unpacked,
)
from g2vlm_ros.records import BackendGoneError

GONE_EXIT_CODE = 75


def numpy_fits() -> bool:
    """Whether Triton's stub and this numpy agree on what an array is.

    Stubs that were compiled for numpy 1 (Triton 2.51 in nvidia-pytriton 0.7) see other strides and
    sizes under numpy 2; arrays go through DLPack there.
    """
    probe = np.arange(3, dtype=np.uint8)[None]
    return output("probe", probe[0], fits=False).as_numpy().tobytes() == probe.tobytes()


def content(request: Any, name: str, fits: bool) -> np.ndarray:
    """uint8 (n,) of an input."""
    tensor = triton.get_input_tensor_by_name(request, name)
    return (tensor.as_numpy() if fits else np.from_dlpack(tensor))[0]


def output(name: str, array: np.ndarray, fits: bool) -> Any:
    """An output of uint8 (n,)."""
    if fits:
        return triton.Tensor(name, array[None])
    owned = array if array.flags.writeable else array.copy()  # DLPack takes no others
    # numpy complains on stderr of the name that the stub gives to a capsule it has taken.
    with redirect_stderr(None):
        return triton.Tensor.from_dlpack(name, owned[None])


class TritonPythonModel:
    """Triton's names: initialize, execute, finalize."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the checkpoint; what that raises is Triton's reason for not being ready."""
        parameters = json.loads(args["model_config"])["parameters"]
        values = {name: value["string_value"] for name, value in parameters.items()}
        folder = values.pop("checkpoint")
        backend = open_backend(values.pop("backend"), folder, values.pop("engines"), **values)
        self._fits = numpy_fits()
        self._service = StageService(backend, model_version(folder))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Requests of several robots, in turn on the one device."""
        return [self._reply(request) for request in requests]

    def _reply(self, request: Any) -> Any:
        try:
            head, payload = (content(request, name, self._fits) for name in (HEADER, PAYLOAD))
            reply = packed(*self._service.handle(*unpacked(head, payload)))
        except BackendGoneError as error:
            # Nothing runs in this process any more: Triton starts another, callers send again.
            triton.Logger.log_error(f"g2vlm_ros: {error}")
            os._exit(GONE_EXIT_CODE)
        except (ValueError, KeyError) as error:
            return triton.InferenceResponse(error=triton.TritonError(f"no request: {error}"))
        names = (REPLY_HEADER, REPLY_PAYLOAD)
        tensors = [output(*pair, self._fits) for pair in zip(names, reply, strict=True)]
        return triton.InferenceResponse(output_tensors=tensors)
