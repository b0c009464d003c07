# SPDX-License-Identifier: Apache-2.0
"""Compiles the kernels: ``python -m g2vlm_ros.kernels.build [FOLDER]``. Standard library only.

colcon compiles them by CMakeLists.txt, pip by setup.py, and a source checkout by itself when they
are first needed (`library`). All use the flags below.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"
)  # fmt: skip
"""Nobody reads errno or the processor's flags of invalid operations: as long as compilers keep
these right, they make no vector instructions of a choice between two numbers. CMakeLists.txt
repeats them; a test compares."""
SAME_EVERYWHERE = "-ffp-contract=off"
"""No fused multiply-add, so that every processor gives the same bits."""
VARIANTS = {"g2vlm_kernels": (), "g2vlm_kernels_avx2": ("-mavx2",)}
"""Library name to flags. The second is for x86-64 only, and faster where the processor has it."""


class BuildError(OSError):
    """The kernels cannot be compiled here; the message says what is missing. An OSError, as what
    a machine lacks: nodes and commands say those in a sentence."""


def variants_here() -> list[str]:
    """The libraries that this processor can run, fastest first."""
    if platform.machine() in ("x86_64", "AMD64") and "avx2" in _processor_flags():
        return ["g2vlm_kernels_avx2", "g2vlm_kernels"]
    return ["g2vlm_kernels"]


def variants_for_packages() -> list[str]:
    """The libraries that belong into a package for machines like this one."""
    return list(VARIANTS) if platform.machine() in ("x86_64", "AMD64") else ["g2vlm_kernels"]


def digest(name: str) -> str:
    """A hash of all that a library is made of, but for the compiler."""
    content = hashlib.sha256(" ".join((*FLAGS, SAME_EVERYWHERE, *VARIANTS[name])).encode())
    content.update(platform.machine().encode())
    for file in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"), *SOURCES.glob("*.cuh")]):
        content.update(file.name.encode() + file.read_bytes())
    return content.hexdigest()[:16]


def compile_library(name: str, target: Path) -> Path:
    """Compile a library to the file `target`, which is there whole or not at all."""
    compiler = _compiler()
    target.parent.mkdir(parents=True, exist_ok=True)
    sources = [str(file) for file in sorted(SOURCES.glob("*.cpp"))]
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".compiling-") as folder:
        unfinished = Path(folder) / target.name
        command = [compiler, "-shared", *FLAGS, SAME_EVERYWHERE, *VARIANTS[name]]
        result = subprocess.run(
            [*command, *sources, "-o", str(unfinished)],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            reason = next(
                (line for line in result.stderr.splitlines() if "error" in line.lower()),
                result.stderr.strip()[-200:] or f"it ended with {result.returncode}",
            )
            raise BuildError(f"{compiler} cannot compile the kernels in {SOURCES}: {reason}")
        unfinished.replace(target)
    return target


def _compiler() -> str:
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return name
    raise BuildError(
        "no C++ compiler is at hand to compile the kernels in g2vlm_ros/kernels; on Debian and "
        "Ubuntu: apt install g++"
    )


def _processor_flags() -> set[str]:
    """What /proc/cpuinfo says the processor can do; empty where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.split() for line in lines if line.startswith("flags")), []))


def main() -> int:
    """Compile for this machine: into FOLDER all that a package needs, else into the checkout."""
    try:
        if len(sys.argv) > 1:
            for name in variants_for_packages():
                print(compile_library(name, Path(sys.argv[1]) / f"lib{name}.so"))
        else:
            from g2vlm_ros.kernels.library import library_file

            print(library_file(variants_here()[0]))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
