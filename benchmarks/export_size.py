# SPDX-License-Identifier: Apache-2.0
"""The export of a checkpoint of the released size: time and memory; results/export_size.json.

A random checkpoint of 4.5 B parameters in bfloat16 is exported in its own process. Its weights
are a hole of 9 GB in a file, which takes no disk: an export reads none of them. `--layers N`
instead of 28 makes it smaller. After `--minutes` the export is ended, and what it finished by then
is the result.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from math import prod
from pathlib import Path

from benchmarks.gpu_network import RELEASED
from benchmarks.record import record
from g2vlm_ros.checkpoint.config import ModelConfig
from g2vlm_ros.checkpoint.onnx_manifest import STAGES
from g2vlm_ros.model.weights import empty_network

BYTES = 2


def write_checkpoint(folder: Path, layers: int) -> int:
    """A checkpoint in the released format without content; how many bytes its weights have."""
    configs = {**RELEASED, "text": RELEASED["text"] | {"num_hidden_layers": layers}}
    for name, values in configs.items():
        (folder / f"{name}_config.json").write_text(json.dumps(values))
    network = empty_network(ModelConfig.read(folder), ["global_point_head"])
    entries, end = {}, 0
    for name, parameter in network.state_dict().items():
        start, end = end, end + BYTES * prod(parameter.shape)
        shape = tuple(parameter.shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    return end


def main(arguments: list[str] | None = None) -> int:
    """Run, record, print; exit code 1 where a stage is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=28, help="of the trunk")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--opset", default="20")
    parser.add_argument("--minutes", type=float, default=120, help="after which it is ended")
    parser.add_argument("--folder", type=Path, help="for temporary files")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        weights = write_checkpoint(Path(name), options.layers)
        start, usage = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        finished = run_export(name, options.dtype, options.opset, 60 * options.minutes)
        seconds, used = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        graphs = sum(path.stat().st_size for path in Path(name).glob("*.onnx"))
    result = {
        "layers": options.layers,
        "dtype": options.dtype,
        "opset": options.opset,
        "parameters_millions": weights / BYTES / 1e6,
        "weights_gb": weights / 1e9,
        "graphs_mb": graphs / 1e6,
        "export_s": seconds,
        "processor_s": used.ru_utime + used.ru_stime - usage.ru_utime - usage.ru_stime,
        "peak_memory_mb": used.ru_maxrss / 1024,
        "stages": finished,
        "all_stages": len(finished) == len(STAGES),
    }
    print(record("export_size", result).name)
    return int(not result["all_stages"])


def run_export(folder: str, dtype: str, opset: str, seconds: float) -> list[str]:
    """What the command says of each stage that it finishes in this time."""
    command = [
        "timeout",
        str(seconds),
        sys.executable,
        "-m",
        "g2vlm_ros.export.export_onnx",
        "--checkpoint",
        folder,
        "--dtype",
        dtype,
        "--opset",
        opset,
    ]
    finished = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as export:
        for line in export.stdout:
            print(line.replace(folder, "."), end="", flush=True)
            if ".onnx:" in line:
                finished.append(line.strip())
    return finished


if __name__ == "__main__":
    raise SystemExit(main())
