# SPDX-License-Identifier: Apache-2.0
"""Every backend against plain eager float32 torch on the CPU: time, memory, start-up, accuracy.

`python -m benchmarks.backends` takes the small checkpoint that is kept with the project and a
random one of middle size (`benchmarks/model.py`), and reconstructs windows of 1, 2, 4 and 8 views
of 252x196 with each: onnx float32 and int8, torch float32 and bfloat16, and eager torch with the
original's structure. Each runs in a process of its own. The peer computes the global points, as
the original always does; the others leave them out. Rounds of all backends alternate, so that
other load on the machine meets all of them. A CPU without instructions for bfloat16 runs it a
hundred times slower than float32; there it is left out.
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

from benchmarks.record import machine, record
from g2vlm_ros.checkpoint.config import PATCH_PX
from g2vlm_ros.checkpoint.prompt_layout import SpecialTokens, TokenCursor
from g2vlm_ros.records import RawGeometry

SMALL = Path(__file__).parents[1] / "test" / "data" / "golden" / "A"
HEIGHT, WIDTH = 196, 252
VIEWS = (1, 2, 4, 8)
PROMPT = np.arange(10, 21)
SPECIAL = SpecialTokens(2, 3, 0, 1, 4)
RUNS = ("eager float32", "onnx float32", "onnx int8", "torch float32", "torch bfloat16")
PEER = RUNS[0]
BFLOAT16_FLAGS = ("amx_bf16", "avx512_bf16")
ROUNDS = {"small": 9, "middle": 3}


def images(views: int) -> np.ndarray:
    """Smooth random views."""
    coarse = np.random.default_rng(0).integers(0, 256, (views, 7, 9, 3)).astype(np.uint8)
    return coarse.repeat(HEIGHT // 7, axis=1).repeat(WIDTH // 9, axis=2)


# --- one backend, in a process of its own --------------------------------------------------------


def opened(run: str, folder: str) -> Callable[[np.ndarray], RawGeometry]:
    """A function from views to geometry."""
    backend, dtype = run.split()
    if backend == "eager":
        return _eager(folder)
    from g2vlm_ros.inference.backend import open_backend

    stages = open_backend(backend, folder, device="cpu", dtype=dtype)
    grid_hw = (HEIGHT // PATCH_PX, WIDTH // PATCH_PX)

    def reconstruct(views: np.ndarray) -> RawGeometry:
        cache, walk = stages.new_cache(), TokenCursor(SPECIAL)
        stages.language(walk.text(PROMPT), cache)
        features = stages.encode_geometry(views)
        hidden = stages.geometry(features, walk.geometry(len(views), grid_hw), cache)
        return stages.heads(hidden, grid_hw)

    return reconstruct


def _eager(folder: str) -> Callable[[np.ndarray], RawGeometry]:
    import torch

    from benchmarks.eager_reference import EagerReference

    network = EagerReference(folder)

    def reconstruct(views: np.ndarray) -> RawGeometry:
        walk = TokenCursor(SPECIAL)
        grid_hw = (HEIGHT // PATCH_PX, WIDTH // PATCH_PX)
        segments = (walk.text(PROMPT), walk.geometry(len(views), grid_hw))
        positions = torch.tensor(np.concatenate([s.positions for s in segments], axis=1))
        out = network.reconstruct(torch.tensor(views), torch.tensor(PROMPT), positions)
        empty = np.zeros((len(views), 9), np.float32)
        return RawGeometry(out["local_points"].numpy(), out["poses"].numpy(), empty)

    return reconstruct


def serve(run: str, folder: str) -> None:
    """Answers each line with a number of views by one line of JSON: a round of that many."""
    start = time.perf_counter()
    reconstruct = opened(run, folder)
    reconstruct(images(1))
    first = time.perf_counter() - start
    print(json.dumps({"first_window_s": first}), flush=True)
    for line in sys.stdin:
        views, file = line.split(maxsplit=1)
        start = time.perf_counter()
        geometry = reconstruct(images(int(views)))
        seconds = time.perf_counter() - start
        if file.strip() != "-":
            np.savez(
                file.strip(), points=geometry.local_points_u, poses=geometry.window_from_camera
            )
        print(json.dumps({"seconds": seconds, "peak_mb": _peak_mb()}), flush=True)


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
    return int(status.split()[0]) / 1024


# --- all of them ---------------------------------------------------------------------------------


class Server:
    """A process that runs one backend; it starts with its imports, which count as start-up."""

    def __init__(self, run: str, folder: Path):
        self.run = run
        command = [sys.executable, "-m", "benchmarks.backends", "--serve", run, str(folder)]
        start = time.perf_counter()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.first_window_s = self._line()["first_window_s"]
        self.start_s = time.perf_counter() - start

    def round(self, views: int, file: str = "-") -> dict[str, float]:
        self.process.stdin.write(f"{views} {file}\n")
        self.process.stdin.flush()
        return self._line()

    def _line(self) -> dict[str, float]:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.run} ended with exit code {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def runs_here() -> list[str]:
    """Those of RUNS that this CPU has instructions for."""
    bfloat16 = any(flag in machine()["flags"] for flag in BFLOAT16_FLAGS)
    return [run for run in RUNS if bfloat16 or "bfloat16" not in run]


def compare(folder: Path, rounds: int, scratch: Path) -> dict:
    """All runs on one checkpoint."""
    servers = {run: Server(run, folder) for run in runs_here()}
    result = {
        run: {"start_s": server.start_s, "first_window_s": server.first_window_s, "views": {}}
        for run, server in servers.items()
    }
    for views in VIEWS:
        for run, server in servers.items():
            server.round(views, str(scratch / f"{run}.npz"))
        times = {run: [] for run in servers}
        for _ in range(rounds):
            for run, server in servers.items():
                times[run].append(server.round(views))
        peer = np.array([each["seconds"] for each in times[PEER]])
        for run in servers:
            seconds = np.array([each["seconds"] for each in times[run]])
            result[run]["views"][views] = {
                "seconds": float(np.median(seconds)),
                "times_faster_than_eager": float(np.median(peer / seconds)),
                "peak_mb": times[run][-1]["peak_mb"],
                **deviation(scratch / f"{run}.npz", scratch / f"{PEER}.npz"),
            }
            print(views, run, json.dumps(result[run]["views"][views]), flush=True)
    for server in servers.values():
        server.close()
    return result


def deviation(outputs: Path, reference: Path) -> dict[str, float]:
    """Differences of depth, as fractions of it, and of rotations."""
    outputs, reference = np.load(outputs), np.load(reference)
    depth = reference["points"][..., 2]
    error = np.abs(outputs["points"][..., 2] - depth) / depth
    turn = np.einsum("nji,njk->nik", outputs["poses"][:, :3, :3], reference["poses"][:, :3, :3])
    cosine = np.clip((np.trace(turn, axis1=1, axis2=2) - 1) / 2, -1, 1)
    return {
        "depth_error_median": float(np.median(error)),
        "depth_error_p99": float(np.quantile(error, 0.99)),
        "rotation_error_rad_max": float(np.arccos(cosine).max()),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", nargs=2, metavar=("RUN", "DIR"), help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=ROUNDS, help="one of the checkpoints")
    options = parser.parse_args(arguments)
    if options.serve:
        serve(*options.serve)
        return
    from benchmarks.model import make_checkpoint
    from g2vlm_ros.export.export_onnx import copy_checkpoint, export

    result = {}
    for name in [options.only] if options.only else ROUNDS:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / name
            folder.mkdir()
            if name == "small":
                copy_checkpoint(SMALL, folder)
            else:
                make_checkpoint(folder)
            for dtype in ("float32", "int8"):
                stages = ("encode_geometry", "geometry", "heads", "language")
                export(folder, dtype=dtype, stages=stages, progress=print)
            result[name] = compare(folder, ROUNDS[name], Path(scratch))
    result["left_out"] = [run for run in RUNS if run not in runs_here()]
    result["threads"] = len(os.sched_getaffinity(0))
    print(record("backends", result).name)


if __name__ == "__main__":
    main()
