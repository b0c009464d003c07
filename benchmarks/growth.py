# SPDX-License-Identifier: Apache-2.0
"""Does a window cost more the longer the robot drives? And what does it cost to start?

Processor time (one thread) around windows 60, 600 and 6 000 of one endless drive through a
simulated home (`drive.Drive`), and memory beside it: what is allocated, and what is resident once
freed pages are given back, as the node does every ten seconds (`ros.heap`). Until window FULL
graph, keyframes and voxels fill up to their bounds; what is allocated more from then on is told
per thousand windows. And a start-up in a process of its own: imports, the kernels, the demo
checkpoint opened, its first window of random images.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # one core, before numpy starts

import argparse
import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.drive import MEMORY_MIB, SPAN, WIDTH_PX, Drive, NoisyPerception, there_and_back
from benchmarks.drive import resident_mib as resident
from benchmarks.record import record
from g2vlm_ros.demo.sim.scenes import make_scene
from g2vlm_ros.demo.sim.splits import home_seed
from g2vlm_ros.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
MARKS = (60, 600, 6000)
"""Windows around which costs are compared: half a minute, five minutes, most of an hour."""
FULL, SAMPLE_EVERY = 240, 60
"""Windows after which the pose graph (`map.graph_windows`), the keyframes and the voxels of this
drive have reached their bounds, and from one look at memory to the next."""
MIN_LOOKS = 4
"""At memory, for a line through them to say anything."""
WALK_VIEWS = 120

START_UP = """
import json, time
from pathlib import Path
def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
times = {"interpreter": time.process_time()}
import numpy as np
from g2vlm_ros.dense_map.dense_map import DenseMap
from g2vlm_ros.perception import Perception
from g2vlm_ros.pipeline import MappingPipeline
from g2vlm_ros.settings import Settings
times["imports"] = time.process_time()
from g2vlm_ros.kernels.library import library
library()
times["kernels"] = time.process_time()
settings = Settings.from_flat({"model.checkpoint": "engines/demo", "model.image_width_px": 112})
perception = Perception.open(settings)
times["checkpoint"] = time.process_time()
images = np.random.default_rng(0).integers(0, 256, (4, 84, 112, 3), np.uint8)
perception.reconstruct(perception.scene(list(images)))
times["first window"] = time.process_time()
stamps = list(times.values())
spent = {name: round(b - a, 3) for name, a, b in zip(list(times)[1:], stamps, stamps[1:])}
print(json.dumps({"processor_s": spent, "resident_mib": round(resident_mib(), 1)}))
"""


class _MallocState(ctypes.Structure):
    """`struct mallinfo2` of glibc: bytes by kind."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd",
            "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


def memory_mib() -> dict[str, float]:
    """Allocated by malloc, and resident after free pages were given back; glibc only."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _MallocState
    state = libc.mallinfo2()
    libc.malloc_trim(ctypes.c_size_t(0))
    allocated = (state.uordblks + state.hblkhd) / 2**20
    return {"allocated": round(allocated, 1), "resident": round(resident(), 1)}


def slope(memory: dict[int, dict[str, float]], kind: str) -> float | None:
    """MiB per 1000 windows from window FULL on, the least-squares line; None for too few looks."""
    late = {window: looked[kind] for window, looked in memory.items() if window >= FULL}
    if len(late) < MIN_LOOKS:
        return None
    return round(1000 * float(np.polyfit(list(late), list(late.values()), 1)[0]), 2)


def start_up() -> dict[str, Any]:
    """Processor seconds and memory of a process until its first window is through."""
    output = subprocess.check_output([sys.executable, "-c", START_UP], cwd=ROOT, text=True)
    return json.loads(output.splitlines()[-1])


def growth(home: int, windows: int) -> dict[str, Any]:
    """One drive; costs and memory around the MARKS that it comes to."""
    settings = Settings.from_flat(
        {
            "model.image_width_px": WIDTH_PX,
            "window.max_age_s": 4.0,
            "voxel.memory_mib": MEMORY_MIB,
        }
    )
    perception = NoisyPerception(
        make_scene(home_seed("heldout", home), legs=12), WALK_VIEWS, WIDTH_PX
    )
    drive = Drive(perception, settings, there_and_back(len(perception.images), 3 * windows + 100))
    memory: dict[int, dict[str, float]] = {0: memory_mib()}
    number = 0
    while drive.windows < windows + SPAN and number < len(drive.window_ms):
        drive.pass_by(number)
        number += 1
        if drive.windows % SAMPLE_EVERY == 0 and drive.windows not in memory:
            memory[drive.windows] = memory_mib()
    marks = [mark for mark in MARKS if drive.cost_ms(mark) is not None]
    costs = {mark: drive.cost_ms(mark) for mark in marks}
    first = costs[marks[0]]
    return {
        "home": home,
        "windows": drive.windows,
        "frames": number,
        "maps": drive.maps,
        "loops": dict(drive.live.counts().loops),
        "processor_ms": costs,
        "over_first_mark": {mark: round(cost / first, 2) for mark, cost in costs.items()},
        "memory_mib": memory,
        "mib_per_1000_windows": {
            "from_window": FULL,
            **{kind: slope(memory, kind) for kind in ("allocated", "resident")},
        },
    }


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--home", type=int, default=8, help="index of a held-out home")
    parser.add_argument("--windows", type=int, default=MARKS[1], help="6000 take half an hour")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    result = {"start_up": start_up(), "growth": growth(options.home, options.windows)}
    print(record("growth", result).read_text())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
