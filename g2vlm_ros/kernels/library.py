# SPDX-License-Identifier: Apache-2.0
"""Finds the compiled kernels and loads them: an installed library, or one made of the checkout."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

from g2vlm_ros.kernels.build import (
    SOURCES,
    BuildError,
    compile_library,
    digest,
    variants_here,
)

IN_CHECKOUT = SOURCES / "compiled"


@cache
def library(name: str = "") -> ctypes.CDLL:
    """The kernels; by default the fastest variant that this processor can run.

    BuildError, in one sentence with the remedy, where there is none and none can be made.
    """
    return ctypes.CDLL(str(library_file(name or variants_here()[0])))


def library_file(name: str) -> Path:
    """The file of a library. Where the sources lie beside this file it is made of them, once."""
    if not any(SOURCES.glob("*.cpp")):
        installed = SOURCES / f"lib{name}.so"
        if not installed.exists():
            raise BuildError(f"{installed} is missing; build or install g2vlm_ros again")
        return installed
    file_name = f"lib{name}-{digest(name)}.so"
    for folder in (IN_CHECKOUT, _cache()):
        if (folder / file_name).exists():
            return folder / file_name
    try:
        return compile_library(name, IN_CHECKOUT / file_name)
    except BuildError:
        raise
    except OSError:  # a checkout that only others may write
        return compile_library(name, _cache() / file_name)


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "g2vlm_ros" / "kernels"
