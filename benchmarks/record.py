# SPDX-License-Identifier: Apache-2.0
"""Writes a benchmark's result to `benchmarks/results/` with the machine that made it."""

from __future__ import annotations

import datetime
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
CPU_FLAGS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")


def record(name: str, data: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Writes <folder>/<name>.json: data, machine, versions and date. Returns its path."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    today = datetime.date.today().isoformat()
    document = {"name": name, "date": today, "machine": machine(), "result": data}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path


def machine() -> dict[str, Any]:
    """CPU model, cores, matrix instructions, memory and versions; nothing that names a host."""
    lines = _lines("/proc/cpuinfo")
    model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")
    flags = next((x.split() for x in lines if x.startswith("flags")), [])
    memory = next((x.split()[1] for x in _lines("/proc/meminfo") if x.startswith("MemTotal")), 0)
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in CPU_FLAGS if flag in flags],
        "memory_gib": round(int(memory) / 2**20, 1),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in ("torch", "numpy", "onnxruntime")},
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
