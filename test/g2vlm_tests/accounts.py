# SPDX-License-Identifier: Apache-2.0
"""What a process has allocated, and what the stores of a program hold, in bytes."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

MIB = 1 << 20


def resident_bytes() -> int:
    """Memory of this process that lies in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


class Mallinfo2(ctypes.Structure):
    """glibc's `struct mallinfo2`: bytes over all arenas."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def malloc_mib() -> dict[str, float]:
    """Given out from its heaps, free there, and given out as mappings of their own."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo2
    info = mallinfo2()
    amounts = {"used": info.uordblks, "free": info.fordblks, "mapped": info.hblkhd}
    return {name: round(amount / MIB, 2) for name, amount in amounts.items()}


def store_bytes(parts: Mapping[str, Any]) -> dict[str, int]:
    """Bytes by ``part.attribute``; what two of them reach counts for the first.

    Arrays count in full, mapped pools of voxels not at all. Threads may run meanwhile: what they
    change is counted before or after.
    """
    counted = {id(part) for part in parts.values()}
    return {
        f"{name}.{attribute}": _reachable_bytes(value, counted)
        for name, part in parts.items()
        for attribute, value in list(vars(part).items())
    }


def _reachable_bytes(root: Any, counted: set[int]) -> int:
    """Bytes of the objects that a root reaches and that are not in `counted`, which grows."""
    total, queue = 0, [root]
    while queue:
        thing = queue.pop()
        if id(thing) in counted or isinstance(thing, (ModuleType, type)):
            continue
        counted.add(id(thing))
        total += sys.getsizeof(thing, 0)
        queue.extend(_referents(thing))
    return total


def _referents(thing: Any) -> Iterator[Any]:
    """What an object keeps alive, but for what a function sees because of where it is written."""
    if isinstance(thing, FunctionType):
        yield from thing.__defaults__ or ()
        for cell in thing.__closure__ or ():
            yield from gc.get_referents(cell)
    elif isinstance(thing, np.ndarray):
        yield thing.base  # the collector does not know of it
        if thing.dtype == object:
            yield from thing.flat
    else:
        yield from gc.get_referents(thing)
