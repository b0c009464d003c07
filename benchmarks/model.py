# SPDX-License-Identifier: Apache-2.0
"""Our torch path against a plain eager implementation with the original's structure, on the CPU.

`python -m benchmarks.model` makes a random checkpoint of middle size and reconstructs four views
of 252x196 in three processes that take turns: eager float32, ours in float32, ours in bfloat16.
Times are CPU seconds of one thread, which other load on the machine disturbs least. Peak memory is
that of each whole process, loading included (the original fills random modules from a state dict
read whole), and apart for loading and running. The result, with deviations relative to depth, goes
to benchmarks/results/model.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.eager_reference import EagerReference
from benchmarks.record import record
from g2vlm_ros.checkpoint.config import PATCH_PX, ModelConfig
from g2vlm_ros.checkpoint.prompt_layout import SpecialTokens, TokenCursor
from g2vlm_ros.inference.torch_backend import TorchBackend
from g2vlm_ros.model.weights import empty_network
from g2vlm_ros.records import RawGeometry

TEXT = {
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 2048,
    "vocab_size": 16384,
    "rms_norm_eps": 1e-6,
    "rope_scaling": {"mrope_section": [8, 12, 12]},
}
VIT = {"depth": 2, "embed_dim": 320, "num_heads": 4, "hidden_size": 512}
DINO = {
    "hidden_size": 384,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "image_size": 518,
    "patch_size": 14,
}
VIEWS, HEIGHT, WIDTH = 4, 196, 252
PROMPT = np.arange(10, 21)
SPECIAL = SpecialTokens(2, 3, 0, 1, 4)
RUNS = ("eager_float32", "ours_float32", "ours_bfloat16")
ROUNDS = 3
WHOLE = ["global_point_head"]
"""A key that says: with the head that only training needs, as released."""


def make_checkpoint(folder: Path) -> int:
    """Writes a random float32 checkpoint and returns its number of parameters."""
    from safetensors.torch import save_file

    for name, values in (("text", TEXT), ("vit", VIT), ("dino", DINO)):
        (folder / f"{name}_config.json").write_text(json.dumps(values))
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, parameter in empty_network(ModelConfig.read(folder), WHOLE).state_dict().items():
        if parameter.ndim < 2:
            value = torch.full(parameter.shape, 0.0 if name.endswith("bias") else 1.0)
        else:
            fan_in = parameter[0].numel()
            value = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
        state[name] = value
    # Depth = exp(third output): keep it within what rooms have.
    state["point_head.proj.weight"] *= 0.3
    save_file(state, folder / "model.safetensors")
    return sum(value.numel() for value in state.values())


def images() -> np.ndarray:
    """Four smooth random views."""
    coarse = np.random.default_rng(0).integers(0, 256, (VIEWS, 7, 9, 3)).astype(np.uint8)
    return coarse.repeat(HEIGHT // 7, axis=1).repeat(WIDTH // 9, axis=2)


def ours(folder: Path, dtype: str) -> Callable[[], RawGeometry]:
    stages = TorchBackend.open(folder, device="cpu", dtype=dtype)
    views, grid_hw = images(), (HEIGHT // PATCH_PX, WIDTH // PATCH_PX)

    def reconstruct() -> RawGeometry:
        cache, walk = stages.new_cache(), TokenCursor(SPECIAL)
        stages.language(walk.text(PROMPT), cache)
        features = stages.encode_geometry(views)
        hidden = stages.geometry(features, walk.geometry(VIEWS, grid_hw), cache)
        return stages.heads(hidden, grid_hw)

    return reconstruct


def eager(folder: Path) -> Callable[[], RawGeometry]:
    network, views = EagerReference(folder), torch.tensor(images())
    walk = TokenCursor(SPECIAL)
    segments = (walk.text(PROMPT), walk.geometry(VIEWS, (HEIGHT // PATCH_PX, WIDTH // PATCH_PX)))
    positions = torch.tensor(np.concatenate([s.positions for s in segments], axis=1))

    def reconstruct() -> RawGeometry:
        out = network.reconstruct(views, torch.tensor(PROMPT), positions)
        poses = out["poses"].numpy()
        return RawGeometry(out["local_points"].numpy(), poses, np.zeros((VIEWS, 9), np.float32))

    return reconstruct


def serve(run: str, folder: Path) -> None:
    """One process of the benchmark: reconstructs once per line on its input, then reports."""
    torch.set_num_threads(1)
    interpreter = _memory("VmRSS")
    implementation, dtype = run.split("_")
    reconstruct = eager(folder) if implementation == "eager" else ours(folder, dtype)
    loading_peak = _memory("VmHWM")
    Path("/proc/self/clear_refs").write_text("5")  # starts a new peak
    geometry = reconstruct()
    points, poses = geometry.local_points_u, geometry.window_from_camera
    np.savez(folder / f"{run}.npz", points=points, poses=poses)
    seconds = []
    print("ready", flush=True)
    while sys.stdin.readline().strip():
        start = time.process_time()
        reconstruct()
        seconds.append(time.process_time() - start)
        print("done", flush=True)
    running_peak = _memory("VmHWM")
    numbers = {
        "cpu_seconds": [round(x, 4) for x in seconds],
        "process_peak_mb": round(max(loading_peak, running_peak)),
        "loading_above_interpreter_mb": round(loading_peak - interpreter),
        "running_above_interpreter_mb": round(running_peak - interpreter),
    }
    (folder / f"{run}.json").write_text(json.dumps(numbers))


def in_turns(folder: Path) -> dict[str, dict]:
    """Runs the processes side by side, one round at a time, so that other load hits all alike."""
    command = [sys.executable, "-m", "benchmarks.model", "--serve"]
    processes = {}
    for run in RUNS:
        processes[run] = subprocess.Popen(
            [*command, run, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes[run].stdout.readline()
    for _ in range(ROUNDS):
        for process in processes.values():
            process.stdin.write("go\n")
            process.stdin.flush()
            process.stdout.readline()
    for run, process in processes.items():
        process.stdin.close()
        if process.wait():
            raise RuntimeError(f"the run {run} failed; its error is above")
    return {run: json.loads((folder / f"{run}.json").read_text()) for run in RUNS}


def speed_ratio(one: dict, other: dict) -> float:
    """Median over rounds of one's time over the other's in the same round."""
    pairs = zip(one["cpu_seconds"], other["cpu_seconds"], strict=True)
    return float(np.median([a / b for a, b in pairs]))


def _memory(field: str) -> float:
    status = Path("/proc/self/status").read_text().split(field + ":")[1]
    return int(status.split()[0]) / 1024


def deviation(folder: Path, run: str, reference: str) -> dict[str, float]:
    """Point and pose differences between two runs, as fractions of the reference depth."""
    outputs, expected = (np.load(folder / f"{name}.npz") for name in (run, reference))
    depth = expected["points"][..., 2]
    error = np.linalg.norm(outputs["points"] - expected["points"], axis=-1) / depth
    chord = np.linalg.norm(outputs["poses"][:, :3, :3] - expected["poses"][:, :3, :3], axis=(1, 2))
    return {
        "points_over_depth_median": float(np.median(error)),
        "points_over_depth_p99": float(np.quantile(error, 0.99)),
        "depth_median": float(np.median(np.abs(outputs["points"][..., 2] - depth) / depth)),
        "rotation_rad_max": float(2 * np.arcsin(chord / 8**0.5).max()),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", nargs=2, metavar=("RUN", "DIR"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options.serve[0], Path(options.serve[1]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parameters = make_checkpoint(folder)
        runs = in_turns(folder)
        peer, whole, half = (runs[run] for run in RUNS)
        result = {
            "parameters": parameters,
            "views": [VIEWS, HEIGHT, WIDTH],
            "runs": runs,
            "float32_time_over_eager": speed_ratio(whole, peer),
            "float32_process_peak_over_eager": whole["process_peak_mb"] / peer["process_peak_mb"],
            "bfloat16_speedup_over_eager": speed_ratio(peer, half),
            "bfloat16_speedup_over_float32": speed_ratio(whole, half),
            "float32_against_eager": deviation(folder, "ours_float32", "eager_float32"),
            "bfloat16_against_float32": deviation(folder, "ours_bfloat16", "ours_float32"),
        }
    print(json.dumps(result, indent=1))
    print(record("model", result).name)


if __name__ == "__main__":
    main()
