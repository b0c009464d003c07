#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes requirements/hashes/<python>.txt: the packages of `make test` with their files' hashes.

    python3.12 tools/write_hashes.py          # for the Python that runs it, on x86-64 Linux

pip resolves requirements/ without installing (--dry-run) and reports what it would take from
where. `REQUIRE_HASHES=1 make test` then installs exactly these files (tools/setup_env.py). torch,
TensorRT-RTX and what is installed for them alone are left out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from setup_env import CONSTRAINTS, PURPOSES, ROOT, hashes_file

HEADER = """# Written by tools/write_hashes.py: Python {python}, x86-64 Linux, for `make test`.
# Without torch, whose files differ by index (TORCH_INDEX), TensorRT-RTX and what these bring.
"""


def report(folder: Path) -> dict:
    """pip's account of what it would install into an empty environment."""
    target = folder / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
    command += ["--quiet", "--report", str(target), "-c", str(CONSTRAINTS)]
    for group in (group for group in PURPOSES["test"] if group not in ("torch", "tensorrt")):
        command += ["-r", str(ROOT / "requirements" / f"{group}.txt")]
    subprocess.run(command, check=True)
    return json.loads(target.read_text())


def lines(document: dict) -> list[str]:
    """name==version --hash=... of each package, by name."""
    pins = []
    for package in document["install"]:
        name, version = package["metadata"]["name"], package["metadata"]["version"]
        sha256 = package["download_info"]["archive_info"]["hashes"]["sha256"]
        pins.append(f"{name}=={version} --hash=sha256:{sha256}")
    return sorted(pins, key=str.lower)


def main() -> int:
    """Exit code of pip where it cannot resolve."""
    with tempfile.TemporaryDirectory() as folder:
        content = lines(report(Path(folder)))
    path = hashes_file()
    path.parent.mkdir(exist_ok=True)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    path.write_text(HEADER.format(python=python) + "\n".join(content) + "\n")
    print(f"{path}: {len(content)} packages")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
