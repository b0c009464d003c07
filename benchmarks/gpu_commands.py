# SPDX-License-Identifier: Apache-2.0
"""What `make gpu` runs by the project's own commands, and the context that it loses."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_network import SIZES, caught
from g2vlm_ros.checkpoint.onnx_manifest import GLOBAL, STAGES

GOLDEN = Path(__file__).parents[1] / "test" / "data" / "golden" / "A"
PLAN = Path(__file__).parents[1] / "engines" / "plan.yaml"
PRECISIONS = {"bf16": "bfloat16", "fp16": "float16"}


def lost_context() -> Iterator[dict[str, Any]]:
    """Writes to an address that nobody has; ends with a process whose context is lost."""
    from g2vlm_ros.inference.tensorrt.cuda import DeviceLostError, open_cuda
    from g2vlm_ros.records import UnfitError

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
    """The demo's first stage of training, from nothing."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "g2vlm_ros.demo.train", "--out", f"{folder}/run"]
        command += ["--stage", "geometry", "--minutes", str(minutes), "--device", device]
        done = subprocess.run(command, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return {"what": f"training on {device}", "passed": not done.returncode, "says": lines[-3:]}


def packing(views: Sequence[int]) -> list[dict[str, Any]]:
    """The kernels that pack point clouds, against numpy."""
    from benchmarks.overhead import packing as pack
    from g2vlm_ros.inference.tensorrt.cuda import open_cuda
    from g2vlm_ros.inference.tensorrt.device_memory import DeviceMemory

    cuda = open_cuda()
    with cuda.active():
        return list(pack(DeviceMemory(cuda), SIZES[0], views))


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


def engines(precision: str) -> Iterator[dict[str, Any]]:
    """Exports, builds and checks the reference checkpoint with whatever TensorRT is here."""
    import yaml

    from g2vlm_ros.export.export_onnx import export
    from g2vlm_ros.export.weight_only import WEIGHT_ONLY_STAGES
    from g2vlm_ros.inference.tensorrt.versions import installed

    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    flavour = installed(capability=capability)
    version = tuple(int(n) for n in flavour.version.split(".")[:2])
    opset = 24 if flavour.name == "rtx" or version >= (10, 15) else 20
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "A"
        shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("*.onnx", "*.manifest"))
        half = PRECISIONS[precision]
        export(folder, dtype=half, opset=opset, global_points=True)
        aligned = ("--stages", "encode_geometry", "--dino-windows", "aligned")
        export(folder, dtype=half, opset=opset, stages=aligned[1:2], dino_windows=aligned[3])
        plan = yaml.safe_load(PLAN.read_text())["profiles"]["desktop"] | {
            "opset": opset,
            "precision": PRECISIONS[precision],
            "capability": capability,
            "sizes": [[518, 392], [140, 112], [140, 84], [112, 154], [112, 84]],
            "semantic_sizes": [[756, 756], [112, 112], [84, 84]],
        }
        profiles = {"gpu": plan, "int4": plan | {"weight_only": "int4"}}
        (Path(name) / "plan.yaml").write_text(yaml.safe_dump({"profiles": profiles}))
        command = [
            sys.executable,
            "-m",
            "g2vlm_ros.export.build_engines",
            "--plan",
            f"{name}/plan.yaml",
            "--onnx",
            str(folder),
        ]
        runs = [("--profile", "gpu", "--stages", *STAGES, GLOBAL), ("--profile", "gpu", *aligned)]
        if opset == 24:  # this one is only verified; the golden set is of whole weights
            export(folder, dtype=half, opset=opset, stages=WEIGHT_ONLY_STAGES, weight_only="int4")
            runs.append(
                ("--profile", "int4", "--stages", *WEIGHT_ONLY_STAGES, "--out", f"{name}/int4")
            )
        for more in runs:
            start = time.monotonic()
            done = subprocess.run([*command, *more], capture_output=True, text=True)
            lines = (done.stdout + done.stderr).strip().splitlines()
            yield {
                "what": f"build {more[1]} with {flavour.label}",
                "passed": not done.returncode,
                "seconds": time.monotonic() - start,
                "says": [x for x in lines if ".engine" in x or "error" in x or "warning" in x],
            }
        yield parity(folder, "tensorrt", precision)
