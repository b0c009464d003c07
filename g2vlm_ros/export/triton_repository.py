# SPDX-License-Identifier: Apache-2.0
"""Writes the model repository that a Triton server needs to serve a checkpoint to robots.

    python -m g2vlm_ros.export.triton_repository --checkpoint DIR --out REPOSITORY
    tritonserver --model-repository REPOSITORY

Triton's Python backend then runs one of our backends in a process of its own; that Python needs
g2vlm_ros and the backend's packages.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from g2vlm_ros.checkpoint.config import ModelConfig
from g2vlm_ros.inference.backend import BACKENDS
from g2vlm_ros.inference.triton_transport import HEADER, PAYLOAD, REPLY_HEADER, REPLY_PAYLOAD

MAX_BATCH = 8
"""Requests of robots that Triton hands over at once."""
MODEL = "from g2vlm_ros.inference.triton_model import TritonPythonModel  # noqa: F401\n"
CONFIG = """name: "{name}"
backend: "python"
max_batch_size: {batch}
# One device, one instance: requests wait in Triton's queue. One that waited longer than its caller
# allows is refused, not computed.
instance_group [{{ count: 1, kind: KIND_CPU }}]
dynamic_batching {{
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {timeout_us}
    allow_timeout_override: true
  }}
}}
{tensors}
{parameters}
"""


def write(
    folder: Path,
    name: str,
    parameters: Mapping[str, str],
    timeout_s: float = 5.0,
) -> Path:
    """The repository's folder of one model. parameters: as `triton_model` reads them."""
    tensors = [
        tensor("input", HEADER, ragged=True),
        tensor("input", PAYLOAD, ragged=True),
        tensor("output", REPLY_HEADER),
        tensor("output", REPLY_PAYLOAD),
    ]
    config = CONFIG.format(
        name=name,
        batch=MAX_BATCH,
        timeout_us=round(timeout_s * 1e6),
        tensors="\n".join(tensors),
        parameters="\n".join(parameter(*pair) for pair in parameters.items()),
    )
    target = folder / name
    (target / "1").mkdir(parents=True, exist_ok=True)
    (target / "1" / "model.py").write_text(MODEL)
    (target / "config.pbtxt").write_text(config)
    return target


def tensor(side: str, name: str, ragged: bool = False) -> str:
    """A tensor of bytes of any length."""
    more = ", allow_ragged_batch: true" if ragged else ""
    return f'{side} [{{ name: "{name}", data_type: TYPE_UINT8, dims: [ -1 ]{more} }}]'


def parameter(key: str, value: str) -> str:
    """A parameter of the model; ValueError for a value that would end its quotes."""
    if not value.isprintable() or any(character in value for character in '"\\'):
        raise ValueError(f"{key} is {value!r}; quotes, backslashes and line breaks do not fit")
    return f'parameters {{ key: "{key}", value: {{ string_value: "{value}" }} }}'


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 2 and one sentence where the checkpoint is none."""
    parser = argparse.ArgumentParser(prog="triton_repository", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the repository")
    parser.add_argument("--name", default="g2vlm", help="of the model")
    local = [name for name in BACKENDS if name != "triton"]
    parser.add_argument("--backend", default="auto", choices=["auto", *local])
    parser.add_argument("--engines", default="", help="folder of engines, for tensorrt")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--timeout-s", type=float, default=5.0, help="longest wait in the queue")
    options = parser.parse_args(arguments)
    try:
        ModelConfig.read(options.checkpoint)
        parameters = {
            "checkpoint": str(options.checkpoint.resolve()),
            **{name: getattr(options, name) for name in ("backend", "engines", "device", "dtype")},
        }
        target = write(options.out, options.name, parameters, options.timeout_s)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{target}: start it with tritonserver --model-repository {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
