# SPDX-License-Identifier: Apache-2.0
"""Wheels of several versions and the FAKE libraries under them, for tests without a GPU.

The real Python bindings of TensorRT and of CUDA run over libraries that g++ compiles from
test/inference/tensorrt/fakes. Each version is loaded in a process of its own. Nothing here
computes what a GPU would.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WHEELS = ROOT / ".venv" / ".setup" / "wheels"
"""Where tools/setup_env.py puts requirements/side_by_side.txt, a folder per requirement."""
FAKES = ROOT / "test" / "inference" / "tensorrt" / "fakes"
KERNELS = ROOT / "g2vlm_ros" / "inference" / "tensorrt"
PACKING, STORING = KERNELS / "point_packing.cu", KERNELS / "store_tokens.cu"
POINTS = ROOT / "g2vlm_ros" / "kernels" / "window_points.cu"
CPU_S = 60
"""Of a process over fake libraries, which takes 2 s. Processor time, since the load of a machine
is no fault of it; by the clock one took more than 120 s."""
HANG_S = 600
"""After which such a process waits for something that never comes."""
FLAGS = ("-std=c++17", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-ffp-contract=off")


def wheel(name: str) -> Path:
    """The folder of a wheel such as "cuda-bindings==12.9.2"; skips the test where it is absent."""
    if platform.machine() != "x86_64":
        pytest.skip("the fake libraries are for x86-64")
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ to compile the fake libraries with")
    folder = WHEELS / name
    if not folder.exists():
        pytest.skip(f"{name} has no wheel for this Python, or the set-up has not run")
    return folder


def compile_library(target: Path, source: Path | None, *defines: str) -> Path:
    """A shared library of that name; empty without a source."""
    target.parent.mkdir(parents=True, exist_ok=True)
    what = [str(source)] if source else ["-x", "c++", os.devnull]
    command = ["g++", *FLAGS, *defines, f"-Wl,-soname,{target.name}", "-o", str(target), *what]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def fake_cuda(folder: Path, compiler: bool) -> Path:
    """A folder with libcuda.so.1 and, where wanted, a CUDA compiler beside it."""
    sources = (
        f'-DPACK_SOURCE="{PACKING}"',
        f'-DPOINTS_SOURCE="{POINTS}"',
        f'-DSTORE_SOURCE="{STORING}"',
    )
    compile_library(folder / "libcuda.so.1", FAKES / "libcuda.cpp", *sources)
    if compiler:
        for version in (12, 13):
            compile_library(folder / f"libnvrtc.so.{version}", FAKES / "libnvrtc.cpp")
    return folder


def fake_tensorrt(folder: Path) -> Path:
    """A folder with the libraries that the bindings of TensorRT 10, 11 and RTX link against."""
    for version in (10, 11):
        compile_library(folder / f"libnvinfer.so.{version}", FAKES / "libnvinfer.cpp")
        for name in ("libnvonnxparser", "libnvinfer_plugin"):
            compile_library(folder / f"{name}.so.{version}", None)
    compile_library(folder / "libtensorrt_rtx.so.1", FAKES / "libnvinfer.cpp")
    compile_library(folder / "libtensorrt_onnxparser_rtx.so.1", None)
    return folder


def limit_processor_time() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))


def run_over(
    code: str, libraries: Path, wheels: list[Path], *arguments: str, **variables: str
) -> subprocess.CompletedProcess:
    """Runs Python code in a process that finds these libraries and wheels before any other."""
    paths = [str(path) for path in wheels] + [str(ROOT)]
    if old := os.environ.get("PYTHONPATH"):
        paths.append(old)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{libraries}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":"),
        "PYTHONPATH": os.pathsep.join(paths),
        **variables,
    }
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        preexec_fn=limit_processor_time,
        env=environment,
        cwd=ROOT,
    )
