# SPDX-License-Identifier: Apache-2.0
"""What `make gpu` runs by the project's own commands, and the context that it loses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_network import SIZES, caught
from g2vlm_ros.checkpoint.onnx_manifest import GLOBAL, STAGES
from g2vlm_ros.records import UnfitError

GOLDEN = Path(__file__).parents[1] / "test" / "data" / "golden" / "A"
PLAN = Path(__file__).parents[1] / "engines" / "plan.yaml"
PRECISIONS = {"bf16": "bfloat16", "fp16": "float16"}


CARD = """
import json, torch
gpu = torch.cuda.get_device_properties(0)
print(json.dumps({"name": gpu.name, "cuda": torch.version.cuda,
                  "memory_gib": gpu.total_memory / 2**30,
                  "capability": f"{gpu.major}.{gpu.minor}"}))
"""


def card() -> dict[str, Any]:
    """Name, CUDA, memory (GiB) and compute capability of the GPU; UnfitError where there is none.

    Read by a process that ends: a context here would keep the parts, which are processes of their
    own, off a card in exclusive-process mode.
    """
    done = subprocess.run([sys.executable, "-c", CARD], capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UnfitError(f"torch finds no CUDA GPU here ({why}); run this on a machine with one")
    return json.loads(done.stdout)


def lost_context() -> Iterator[dict[str, Any]]:
    """Writes to an address that nobody has; ends with a process whose context is lost."""
    from g2vlm_ros.inference.tensorrt.cuda import DeviceLostError, open_cuda

    cuda = open_cuda()
    source = 'extern "C" __global__ void write_anywhere(int* place) { *place = 1; }'
    line: dict[str, Any] = {"what": f"illegal address over {cuda.backend}", "recognised": False}
    with caught(line), cuda.active():
        kernel = cuda.function(cuda.compile(source), "write_anywhere")
        stream = cuda.stream()
        try:
            cuda.launch(kernel, 1, 1, (np.uint64(8),), stream)
            cuda.synchronize(stream)
        except DeviceLostError as error:
            line |= {"recognised": True, "says": str(error)}
    yield line
    again = {"what": "a new context in the same process", "possible": True}
    try:
        with open_cuda().active():
            pass
    except (UnfitError, DeviceLostError) as error:
        again |= {"possible": False, "says": str(error)}
    yield again


def training(device: str = "cuda", minutes: float = 0.5) -> dict[str, Any]:
    """The demo's first stage of training, from nothing; no minutes: only its options are read."""
    from g2vlm_ros.demo.train.__main__ import parse_options

    line: dict[str, Any] = {"what": f"training on {device}"}
    with tempfile.TemporaryDirectory() as folder:
        options = ["--out", f"{folder}/run", "--stage", "geometry", "--minutes", str(minutes)]
        options += ["--device", device]
        if not minutes:
            parse_options(options)
            return line | {"skipped": "on a CPU it would render homes for minutes"}
        command = [sys.executable, "-m", "g2vlm_ros.demo.train", *options]
        done = subprocess.run(command, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return line | {"passed": not done.returncode, "says": lines[-3:]}


def packing(views: Sequence[int], size: tuple[int, int] = SIZES[0]) -> Iterator[dict[str, Any]]:
    """The kernels that pack point clouds, against numpy."""
    from benchmarks.overhead import packing as pack
    from g2vlm_ros.inference.tensorrt.cuda import open_cuda
    from g2vlm_ros.inference.tensorrt.device_memory import DeviceMemory

    cuda = open_cuda()
    with cuda.active():
        yield from pack(DeviceMemory(cuda), size, list(views))


def points(
    device: str, views: Sequence[int], size: tuple[int, int] = SIZES[0]
) -> Iterator[dict[str, Any]]:
    """The kernels of window_points.cu against the host's, then whole windows to the map both ways;
    on a CPU the same ones as C++."""
    from benchmarks.device_drive import FRAMES, windows_on_device
    from benchmarks.device_points import window_on_device
    from benchmarks.host_cuda import HostCuda
    from g2vlm_ros.inference.tensorrt.cuda import open_cuda

    cuda = HostCuda() if device == "cpu" else open_cuda()
    for count in views:
        yield window_on_device(cuda, count, *size)
    yield windows_on_device(cuda, 4 if device == "cpu" else FRAMES)


def parity(folder: Path, backend: str, precision: str) -> dict[str, Any]:
    """The parity command on the GPU, as a line."""
    command = [
        sys.executable,
        "-m",
        "g2vlm_ros.export.parity",
        "--golden",
        str(folder),
        "--backend",
        backend,
        "--precision",
        precision,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    error = done.stderr.strip().splitlines()[-1:] if done.returncode else []
    return {
        "what": f"{backend} {precision}",
        "passed": not done.returncode,
        "says": " ".join([last, *error]),
    }


@dataclass(frozen=True)
class Builds:
    """What engines of the reference checkpoint are built for."""

    capability: str
    label: str
    opset: int
    target: tuple[str, ...]
    """Options of the command for a GPU that is not here."""
    stages: tuple[str, ...]
    precisions: tuple[str, ...]

    @staticmethod
    def of(device: str) -> Builds:
        """For the GPU; without one the smallest stage, for a GeForce 40 by TensorRT-RTX."""
        from g2vlm_ros.inference.tensorrt.versions import installed

        if device != "cuda":
            label = installed("rtx").label
            return Builds("8.9", label, 24, ("--target", "8.9"), ("next_token",), ("bf16",))
        capability = card()["capability"]
        version = installed(capability=capability)
        numbers = tuple(int(n) for n in version.version.split(".")[:2])
        opset = 24 if version.name == "rtx" or numbers >= (10, 15) else 20
        return Builds(capability, version.label, opset, (), (*STAGES, GLOBAL), tuple(PRECISIONS))

    def plan(self, precision: str) -> dict[str, Any]:
        """The desktop's, for the image sizes of golden set A."""
        import yaml

        return yaml.safe_load(PLAN.read_text())["profiles"]["desktop"] | {
            "opset": self.opset,
            "precision": PRECISIONS[precision],
            "capability": self.capability,
            "sizes": [[518, 392], [140, 112], [140, 84], [112, 154], [112, 84]],
            "semantic_sizes": [[756, 756], [112, 112], [84, 84]],
        }


def engines(device: str = "cuda") -> Iterator[dict[str, Any]]:
    """Exports, builds and checks the reference checkpoint with whatever TensorRT is here."""
    builds = Builds.of(device)
    for precision in builds.precisions:
        line = {"what": f"engines in {precision} with {builds.label}"}
        with caught(line), tempfile.TemporaryDirectory() as folder:
            yield from _engines(builds, precision, Path(folder))
        if "failed" in line:
            yield line


def _engines(builds: Builds, precision: str, root: Path) -> Iterator[dict[str, Any]]:
    import yaml

    from g2vlm_ros.export.export_onnx import export
    from g2vlm_ros.export.weight_only import WEIGHT_ONLY_STAGES

    folder = root / "A"
    shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("*.onnx", "*.manifest"))
    half, whole = PRECISIONS[precision], not builds.target
    stages = STAGES if whole else builds.stages
    export(folder, dtype=half, opset=builds.opset, global_points=whole, stages=stages)
    aligned = ("--stages", "encode_geometry", "--dino-windows", "aligned")
    plan = builds.plan(precision)
    profiles = {"gpu": plan, "int4": plan | {"weight_only": "int4"}}
    (root / "plan.yaml").write_text(yaml.safe_dump({"profiles": profiles}))
    command = [sys.executable, "-m", "g2vlm_ros.export.build_engines", *builds.target]
    command += ["--plan", f"{root}/plan.yaml", "--onnx", str(folder)]
    out = () if whole else ("--out", f"{root}/engines")
    runs = [("--profile", "gpu", "--stages", *builds.stages, *out)]
    if whole:
        export(folder, dtype=half, opset=builds.opset, stages=aligned[1:2], dino_windows="aligned")
        runs.append(("--profile", "gpu", *aligned))
    if whole and builds.opset == 24:  # only verified; the golden set is of whole weights
        export(folder, dtype=half, opset=24, stages=WEIGHT_ONLY_STAGES, weight_only="int4")
        runs.append(
            ("--profile", "int4", "--stages", *WEIGHT_ONLY_STAGES, "--out", f"{root}/int4")
        )
    for more in runs:
        start = time.monotonic()
        done = subprocess.run([*command, *more], capture_output=True, text=True)
        lines = (done.stdout + done.stderr).strip().splitlines()
        yield {
            "what": f"build {more[1]} with {builds.label}",
            "passed": not done.returncode,
            "seconds": time.monotonic() - start,
            "says": [x for x in lines if ".engine" in x or "error" in x or "warning" in x],
        }
    if whole:
        yield parity(folder, "tensorrt", precision)
