"""Our torch path against a plain eager implementation with the original's structure, on the CPU.

`python -m benchmarks.model` makes a random checkpoint of middle size and reconstructs four views
of 252x196 in three processes of their own: eager float32, ours in float32, ours in bfloat16. Each
reports the best seconds per window and its peak memory: of the process, and above the interpreter
while loading and while running. The result, with the deviation of bfloat16 relative to depth, goes
to benchmarks/results/model.json.
"""

from __future__ import annotations

import argparse
import json
import os
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
from g2vlm_ros.core.config import PATCH_PX, ModelConfig
from g2vlm_ros.core.datatypes import RawGeometry
from g2vlm_ros.core.sequence import SpecialTokens, Walk
from g2vlm_ros.model.checkpoint import empty_network
from g2vlm_ros.runtime.torch_stages import TorchStages

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
ROUNDS = 4


def make_checkpoint(folder: Path) -> int:
    """Writes a random float32 checkpoint and returns its number of parameters."""
    from safetensors.torch import save_file

    for name, values in (("text", TEXT), ("vit", VIT), ("dino", DINO)):
        (folder / f"{name}_config.json").write_text(json.dumps(values))
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, parameter in empty_network(ModelConfig.read(folder), []).state_dict().items():
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
    stages = TorchStages.open(folder, device="cpu", dtype=dtype)
    views, grid_hw = images(), (HEIGHT // PATCH_PX, WIDTH // PATCH_PX)

    def reconstruct() -> RawGeometry:
        cache, walk = stages.new_cache(), Walk(SPECIAL)
        stages.language(walk.text(PROMPT), cache)
        features = stages.encode_geometry(views)
        hidden = stages.geometry(features, walk.geometry(VIEWS, grid_hw), cache)
        return stages.heads(hidden, grid_hw)

    return reconstruct


def eager(folder: Path) -> Callable[[], RawGeometry]:
    network, views = EagerReference(folder), torch.tensor(images())
    walk = Walk(SPECIAL)
    segments = (walk.text(PROMPT), walk.geometry(VIEWS, (HEIGHT // PATCH_PX, WIDTH // PATCH_PX)))
    positions = torch.tensor(np.concatenate([s.positions for s in segments], axis=1))

    def reconstruct() -> RawGeometry:
        out = network.reconstruct(views, torch.tensor(PROMPT), positions)
        poses = out["poses"].numpy()
        return RawGeometry(out["local_points"].numpy(), poses, np.zeros((VIEWS, 9), np.float32))

    return reconstruct


def measure(run: str, folder: Path) -> None:
    """One process of the benchmark: writes its numbers and its depth to the folder."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    before = _memory("VmRSS")
    implementation, dtype = run.split("_")
    reconstruct = eager(folder) if implementation == "eager" else ours(folder, dtype)
    loading_peak = _memory("VmHWM")
    geometry = reconstruct()  # warms up, and brings the mapped weights that it needs into memory
    warm = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        reconstruct()
        seconds.append(time.perf_counter() - start)
    running_peak = _memory("VmHWM")
    np.savez(
        folder / f"{run}.npz", points=geometry.local_points_u, poses=geometry.window_from_camera
    )
    numbers = {
        "seconds": min(seconds),
        "seconds_all": [round(x, 4) for x in seconds],
        "peak_mb": max(loading_peak, running_peak),
        "loading_peak_mb": loading_peak - before,
        "running_peak_mb": running_peak - before,
        "running_above_weights_mb": running_peak - warm,
    }
    (folder / f"{run}.json").write_text(json.dumps(numbers))


def _memory(field: str) -> float:
    status = Path("/proc/self/status").read_text().split(field + ":")[1]
    return int(status.split()[0]) / 1024


def depth_deviation(folder: Path, run: str, reference: str) -> dict[str, float]:
    """Point and pose differences between two runs, as fractions of the reference depth."""
    got, want = (np.load(folder / f"{name}.npz") for name in (run, reference))
    depth = want["points"][..., 2]
    error = np.linalg.norm(got["points"] - want["points"], axis=-1) / depth
    chord = np.linalg.norm(got["poses"][:, :3, :3] - want["poses"][:, :3, :3], axis=(1, 2))
    return {
        "points_over_depth_median": float(np.median(error)),
        "points_over_depth_p99": float(np.quantile(error, 0.99)),
        "depth_median": float(np.median(np.abs(got["points"][..., 2] - depth) / depth)),
        "rotation_rad_max": float(2 * np.arcsin(chord / 8**0.5).max()),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", nargs=2, metavar=("RUN", "DIR"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        measure(options.measure[0], Path(options.measure[1]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parameters = make_checkpoint(folder)
        for run in RUNS:
            command = [sys.executable, "-m", "benchmarks.model", "--measure", run, str(folder)]
            subprocess.run(command, check=True)
        runs = {run: json.loads((folder / f"{run}.json").read_text()) for run in RUNS}
        half, whole = runs["ours_bfloat16"], runs["ours_float32"]
        peer = runs["eager_float32"]
        result = {
            "parameters": parameters,
            "views": [VIEWS, HEIGHT, WIDTH],
            "runs": runs,
            "float32_time_over_eager": whole["seconds"] / peer["seconds"],
            "float32_peak_over_eager": whole["peak_mb"] / peer["peak_mb"],
            "bfloat16_speedup_over_eager": peer["seconds"] / half["seconds"],
            "float32_against_eager": depth_deviation(folder, "ours_float32", "eager_float32"),
            "bfloat16_against_float32": depth_deviation(folder, "ours_bfloat16", "ours_float32"),
        }
    print(json.dumps(result, indent=1))
    print(record("model", result).name)


if __name__ == "__main__":
    main()
