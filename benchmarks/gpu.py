# SPDX-License-Identifier: Apache-2.0
"""`make gpu`: everything that only a GPU can show, in one command; results/gpu.json.

`python -m benchmarks.gpu [--skip engines windows] [--views 1 2 4 8] [--seconds 480]` runs, each
in a process of its own so that one failure costs one line, and within a limit of time:
  floors        measured matrix product rate and copy bandwidth, the limits of everything else
  parity        the reference checkpoint on the GPU against its golden values, per backend and type
  packing       the kernels that pack point clouds, against numpy
  points        a window's points on the device until they are cells of the map, against the host;
                windows of a drive to the map: the bytes that come to the host, and its time
  lost_context  an illegal address, and what our error says of it
  decoding      a token by three designs: growing cache, fixed shapes, fixed shapes as a CUDA graph
  windows       a random network of the released size (4.5 B parameters, made on the device, never
                written): our torch path in bfloat16, plain and as CUDA graphs, and the original's
                structure, for 1 to 8 views at 518x392 and 252x196; prefill of the language stage
  fused         windows and tokens once more with small parts compiled, as the node has it on a GPU
  training      the demo's training on the GPU for half a minute
  engines       builds TensorRT engines of the reference checkpoint and runs parity on them
What is not installed, does not run or takes too long is said in the result and fails nothing.

`--device cpu` runs the same code on a tiny network, so that a slip does not wait for the day when
there is a GPU: graphs are recorded as functions, parts traced but not compiled, engines built by
TensorRT-RTX for a GPU that is not there. What cannot be done so says it in a sentence.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_commands import (
    GOLDEN,
    card,
    engines,
    lost_context,
    packing,
    parity,
    points,
    training,
)
from benchmarks.gpu_network import (
    RELEASED,
    SEMANTIC,
    SIZES,
    Designs,
    decoding,
    floors,
    fused,
    language,
    random_network,
    windows,
)
from benchmarks.record import RESULTS, record
from g2vlm_ros.checkpoint.config import ModelConfig
from g2vlm_ros.model.network import G2VLM
from g2vlm_ros.records import UnfitError

LANGUAGE_GB, CACHE_BYTES = 3.1, 28_672
"""What a decoding step reads: the language stage in bfloat16, and each cached token."""
LIMITS_S = {
    "floors": 25,
    "parity": 100,
    "packing": 15,
    "points": 45,
    "lost_context": 10,
    "decoding": 50,
    "windows": 105,
    "fused": 75,
    "training": 55,
    "engines": 480,
}
"""The parts in their order, and how long each may take; all together within --seconds. Engines
have what the others leave."""
PARITY = (("torch", "fp32"), ("torch", "bf16"), ("torch", "fp16"), ("onnx", "fp32"))
"""Backends and precisions that are compared with the golden values."""
NO_CARD = {"name": "none: tried on a CPU with a tiny network"}
CACHED = (4163, 8315)
"""Tokens behind a prompt and 4 or 8 views at 518x392."""


@dataclass(frozen=True)
class Scale:
    """How large the parts are: as released on a GPU, or tiny to try the command on a CPU."""

    device: str
    config: ModelConfig
    sizes: tuple[tuple[int, int], ...]
    semantic: tuple[int, int]
    views: list[int]
    cached: tuple[int, ...]
    product_side: int
    steps: int
    training_minutes: float
    parity: tuple[tuple[str, str], ...]

    @staticmethod
    def of(device: str, views: list[int]) -> Scale:
        if device == "cuda":
            config = ModelConfig.from_dicts(RELEASED["text"], RELEASED["vit"], RELEASED["dino"])
            return Scale(device, config, SIZES, SEMANTIC, views, CACHED, 8192, 16, 0.5, PARITY)
        config = ModelConfig.read(GOLDEN)
        return Scale(device, config, ((112, 84),), (84, 84), views, (50,), 256, 2, 0.0, PARITY[3:])


def serve(part: str, scale: Scale) -> None:
    """One part in this process; a line of JSON per result."""
    device, designs = scale.device, Designs.of(scale.device)
    parts: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "floors": lambda: iter([floors(device, scale.product_side)]),
        "parity": lambda: (parity(GOLDEN, *pair) for pair in scale.parity),
        "packing": lambda: packing(scale.views, scale.sizes[0]),
        "points": lambda: points(device, scale.views, scale.sizes[0]),
        "lost_context": lost_context,
        "decoding": lambda: decoding(network(), designs, scale.cached, scale.steps),
        "windows": lambda: all_windows(network()),
        "fused": lambda: fused(
            network(), designs, scale.views, scale.sizes, scale.cached, scale.steps
        ),
        "training": lambda: iter([training(device, scale.training_minutes)]),
        "engines": lambda: engines(device),
    }

    def network() -> G2VLM:
        return random_network(scale.config, device)

    def all_windows(network: G2VLM) -> Iterator[dict[str, Any]]:
        yield from windows(network, designs, scale.views, scale.sizes)
        yield from language(network, device, scale.sizes[0], scale.views, scale.semantic)

    for line in parts[part]():
        print(json.dumps(line), flush=True)


def summary(parts: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The goals of the engines, as far as they were measured."""
    floor = next((x for x in parts.get("floors", []) if "matmul_tflop_per_s" in x), None)
    runs = {
        (x["what"], *x["size"], x["views"]): x
        for x in [*parts.get("windows", []), *parts.get("fused", [])]
        if "size" in x and "seconds" in x
    }
    ratios: dict[str, Any] = {}
    for key, line in runs.items():
        peer = runs.get(("eager", *key[1:]))
        if key[0] != "eager" and peer:
            name = f"{key[0]} over eager, {key[3]} views at {key[1]}x{key[2]}"
            ratios[name] = peer["seconds"] / line["seconds"]
        if floor and "tflop_per_s" in line:
            name = f"{key[0]}, {key[3]} views, of the matrix product rate"
            ratios[name] = line["tflop_per_s"] / floor["matmul_tflop_per_s"]
    for line in [*parts.get("decoding", []), *parts.get("fused", [])]:
        if floor and "s_per_token" in line:
            read_gb = LANGUAGE_GB + CACHE_BYTES * line["cached"] / 1e9
            least = read_gb / floor["copy_gb_per_s"]
            name = f"{line['what']} behind {line['cached']} tokens, of the bandwidth"
            ratios[name] = least / line["s_per_token"]
    return ratios


def run_part(
    part: str, views: list[int], limit_s: float, device: str = "cuda"
) -> list[dict[str, Any]]:
    """The results of a part in a process of its own, which ends with its children at the limit."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", part, "--device", device]
    process = subprocess.Popen(
        [*command, "--views", *map(str, views)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    failure = ""
    try:
        out, error = process.communicate(timeout=limit_s)
        if process.returncode:
            failure = (error.strip().splitlines() or ["no message"])[-1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
        failure = f"stopped after {limit_s:.0f} s"
    lines = [line for line in map(_parsed, out.splitlines()) if line]
    return [*lines, {"failed": failure[:300]}] if failure else lines


def _parsed(line: str) -> dict[str, Any]:
    """A result; empty for other lines and for one that was cut when its process was stopped."""
    try:
        return json.loads(line) if line.startswith("{") else {}
    except ValueError:
        return {}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--skip", nargs="*", default=[], choices=LIMITS_S)
    parser.add_argument("--views", nargs="*", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=480, help="for all parts together")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of gpu.json")
    parser.add_argument("--part", choices=LIMITS_S, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part:
        serve(options.part, Scale.of(options.device, options.views))
        return 0
    try:
        gpu = NO_CARD if options.device == "cpu" else card()
    except UnfitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    end = time.monotonic() + options.seconds
    parts: dict[str, list[dict[str, Any]]] = {}
    for part in (name for name in LIMITS_S if name not in options.skip):
        print(f"== {part}", flush=True)
        limit_s = min(LIMITS_S[part], end - time.monotonic())
        if limit_s <= 0:
            parts[part] = [{"failed": f"no time left of {options.seconds:.0f} s"}]
        else:
            parts[part] = run_part(part, options.views, limit_s, options.device)
        print(json.dumps(parts[part], indent=1), flush=True)
        # After each part: what is there already stays, whatever ends this command.
        result = {"gpu": gpu, **parts, "summary": summary(parts)}
        path = record("gpu", result, options.out)
    print(path.name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
