# SPDX-License-Identifier: Apache-2.0
"""The sources of kernels for GPUs as one text each, as the compilers of CUDA take them."""

from __future__ import annotations

import re
from pathlib import Path

WINDOW_POINTS = Path(__file__).with_name("window_points.cu")
INCLUDE = re.compile(r'#include "(.+)"')
KERNEL = re.compile(r"^(?:DEVICE_KERNEL|extern \"C\" void) (\w+)\(([^)]*)\)", re.MULTILINE)


def device_source(file: Path) -> str:
    """A file with the files that it includes by name in their places, each of them once."""
    return "\n".join(_lines(file.resolve(), set())) + "\n"


def kernels_of(source: str) -> dict[str, list[str]]:
    """The parameters of each kernel by its name, in the words of the source."""
    return {name: parameters.split(",") for name, parameters in KERNEL.findall(source)}


def _lines(file: Path, included: set[Path]) -> list[str]:
    if file in included:
        return []
    included.add(file)
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        include = INCLUDE.fullmatch(line)
        if include:
            lines += _lines((file.parent / include[1]).resolve(), included)
        elif line != "#pragma once":  # which it is here
            lines.append(line)
    return lines
