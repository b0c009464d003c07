"""The export of a checkpoint of the released size: time and peak memory; results/export_size.json.

Writes a random checkpoint of 4.5 B parameters in bfloat16 (9 GB) tensor by tensor into a temporary
folder, exports it in a process of its own, and deletes it. `--layers N` instead of 28 makes it
smaller. The values are a block of noise again and again: an export reads none of them.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from math import prod
from pathlib import Path

import numpy as np

from benchmarks.gpu import RELEASED
from benchmarks.record import record
from g2vlm_ros.core.config import ModelConfig
from g2vlm_ros.model.checkpoint import empty_network
from g2vlm_ros.runtime.device import to_element

BYTES = 2
SPARE_GB = 2


def write_checkpoint(folder: Path, layers: int) -> int:
    """A random checkpoint in the released format; how many bytes its weights have."""
    configs = {**RELEASED, "text": RELEASED["text"] | {"num_hidden_layers": layers}}
    for name, values in configs.items():
        (folder / f"{name}_config.json").write_text(json.dumps(values))
    network = empty_network(ModelConfig.read(folder), ["global_point_head"])
    shapes = {name: tuple(p.shape) for name, p in network.state_dict().items()}
    entries, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + BYTES * prod(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    free = shutil.disk_usage(folder).free
    if free < end + SPARE_GB * 1e9:
        raise SystemExit(f"{end / 1e9:.1f} GB are needed in {folder}, {free / 1e9:.1f} are free")
    header = json.dumps(entries).encode()
    noise = np.random.default_rng(0).normal(0, 0.02, 1 << 22).astype(np.float32)
    block = to_element(noise, "BFLOAT16").tobytes()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for start in range(0, end, len(block)):
            file.write(block[: end - start])
    return end


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=28, help="of the trunk")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--opset", default="20")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        weights = write_checkpoint(Path(name), options.layers)
        command = [sys.executable, "-m", "g2vlm_ros.export.onnx", "--checkpoint", name,
                   "--dtype", options.dtype, "--opset", options.opset]  # fmt: skip
        start = time.monotonic()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.monotonic() - start
        graphs = sum(path.stat().st_size for path in Path(name).glob("*.onnx*"))
    print(done.stdout.replace(name, "."), flush=True)
    result = {
        **vars(options),
        "parameters_millions": weights / BYTES / 1e6,
        "weights_gb": weights / 1e9,
        "graphs_mb": graphs / 1e6,
        "export_s": seconds,
        "peak_memory_mb": float(re.search(r"peak memory (\d+) MB", done.stdout)[1]),
        "stages": [line for line in done.stdout.splitlines() if line.count(".onnx:")],
    }
    print(record("export_size", result).name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
