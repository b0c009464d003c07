# SPDX-License-Identifier: Apache-2.0
"""How well windows become one map, with the truth in place of the network, and at what price.

A drive of 60 windows around a block (`g2vlm_ros/demo/sim/analytic_hall.py`), each window in a
unit and frame of its own:
trajectory error after a similarity, as a share of the path's length, against poses chained over a
single shared view. Then scale by odometry, and a drive of 1000 windows for cost and memory.
"""

from __future__ import annotations

import resource
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import record
from g2vlm_ros.demo.sim.analytic_hall import (
    LAP_M,
    DrivePerception,
    Noise,
    drive,
    frame_of,
    lap_poses,
    trajectory_error,
)
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.pipeline import MappingPipeline
from g2vlm_ros.settings import Settings

WINDOWS, SEEDS = 60, 4
NOISES = {
    "perfect": Noise(),
    "5 % depth noise, 10 % outliers": Noise(0.05, 0.1),
    "the same and 0.3 degrees, 0.5 % pose noise": Noise(0.05, 0.1, 0.005, 0.005),
}
LIMITS = {"perfect": (0.005, 0.002), "5 % depth noise, 10 % outliers": (0.015, 0.015)}
LONG, SPAN = 1000, 20


def chained(log: list, views: int) -> np.ndarray:
    """Positions (views, 3) by the baseline: orientation, position and the median ratio of depth of
    the first view that a window shares with the one before."""
    placed: dict[int, np.ndarray] = {}
    previous, map_from_window = None, Sim3.identity()
    for numbers, result in log:
        if previous is not None:
            old_numbers, old = previous
            shared = next(n for n in numbers if n in old_numbers)
            i, j = numbers.index(shared), old_numbers.index(shared)
            depths = old.local_points_u[j, ..., 2] / result.local_points_u[i, ..., 2]
            a, b = (r.window_from_camera[k].astype(float) for r, k in ((old, j), (result, i)))
            scale, turn = float(np.median(depths)), a[:3, :3] @ b[:3, :3].T
            relative_pose = Sim3(scale, turn, a[:3, 3] - scale * turn @ b[:3, 3])
            map_from_window = map_from_window @ relative_pose
        previous = numbers, result
        centres = map_from_window.apply(result.window_from_camera[:, :3, 3].astype(float))
        for number, centre in zip(numbers, centres, strict=True):
            placed.setdefault(number, centre)
    return np.stack([placed[n] for n in range(views)])


def accuracy() -> list[dict[str, Any]]:
    """One row per kind of noise and overlap: errors in per cent of the path, mean over seeds."""
    rows = []
    for name, noise in NOISES.items():
        for overlap in (1, 2, 3):
            views = overlap + (4 - overlap) * WINDOWS
            poses = lap_poses(views, 1.04 * LAP_M / views, weave=0.0)
            errors: dict[str, list[float]] = {"chained": [], "joints": [], "loop": []}
            loops = 0
            for seed in range(1 if name == "perfect" else SEEDS):
                for kind in ("joints", "loop"):
                    perception = DrivePerception(poses, noise, seed)
                    perception.keep_log = kind == "joints"
                    values = {"window.overlap": overlap, "map.loop_closure": kind == "loop"}
                    track = drive(perception, **values)
                    numbers, places = track.positions()
                    errors[kind].append(trajectory_error(places, poses[numbers, :3, 3]))
                    loops += track.counts.loops["closed"]
                    if kind == "joints":
                        base = chained(perception.log, len(numbers))
                        errors["chained"].append(trajectory_error(base, poses[numbers, :3, 3]))
            rows.append(
                {
                    "noise": name,
                    **asdict(noise),
                    "shared_views": overlap,
                    "loops_closed": loops,
                    **{
                        f"{k}_percent": round(100 * float(np.mean(e)), 4)
                        for k, e in errors.items()
                    },
                    "worst_percent": round(100 * max(errors["joints"]), 4),
                }
            )
            print(rows[-1], flush=True)
    return rows


def metres() -> dict[str, Any]:
    """Odometry with 1 cm of noise on a spoilt drive: when metres come, and how right they are."""
    rng = np.random.default_rng(0)
    poses = lap_poses(181, LAP_M / 181, weave=0.0)
    perception = DrivePerception(poses, NOISES["the same and 0.3 degrees, 0.5 % pose noise"])
    noisy = poses[:, :3, 3] + 0.01 * rng.normal(size=(181, 3))
    live = MappingPipeline(perception, Settings.from_flat({"window.max_age_s": 10.0}))
    metric, factors, updates = None, [], []
    for number in range(181):
        live.offer(frame_of(perception, number, position_m=noisy[number]))
        while (update := live.step()) is not None:
            updates.append(update)
            if update.placement.scale.state.name == "METRIC":
                metric = metric or update.window.id
                true_scale = 1 / perception.window_from_world.scale
                if not update.placement.loop_closed:
                    factors.append(update.placement.map_from_window.scale / true_scale)
    last = updates[-1].placement
    return {
        "metric_from_window": metric,
        "scale_error_mean": round(float(np.mean(factors)) - 1, 4),
        "scale_error_largest": round(float(np.abs(np.array(factors) - 1).max()), 4),
        "stated_relative_std": round(last.scale.relative_std, 4),
    }


def long_drive() -> dict[str, Any]:
    """CPU seconds of the map per window, and resident memory, over LONG windows of many laps."""
    lap = round(LAP_M / 0.4)
    one = np.stack(lap_poses(lap, LAP_M / lap, weave=0.0))
    views = 1 + 3 * LONG
    perception = DrivePerception(one[np.arange(views) % lap], Noise(0.03, 0.05))
    settings = {"window.max_age_s": 10.0, "map.loop_gap_windows": 20}
    live = MappingPipeline(perception, Settings.from_flat(settings))
    times_s = _clocked(live)
    cost, memory = [], []
    for number in range(views):
        live.offer(frame_of(perception, number))
        while live.step() is not None:
            cost.append((times_s.pop("place"), times_s.pop("close_loop", 0.0)))
            if len(cost) % 100 == 0:
                memory.append(_resident_mib())
    place, close = np.array(cost).T

    def around(window: int) -> float:
        return float(np.median(place[window - SPAN : window + SPAN]))

    counts = live.counts()
    return {
        "windows": len(cost),
        "place_ms_at_60": round(1e3 * around(60), 2),
        "place_ms_at_600": round(1e3 * around(600), 2),
        "place_ms_at_980": round(1e3 * around(980), 2),
        "ratio_600_to_60": round(around(600) / around(60), 3),
        "loops": dict(counts.loops),
        "close_loop_ms_largest": round(1e3 * float(close.max()), 1),
        "close_loop_ms_per_window": round(1e3 * float(close.mean()), 2),
        "resident_mib_every_100": memory,
        "growth_mib_after_400": round(memory[-1] - memory[3], 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _clocked(live: MappingPipeline) -> dict[str, float]:
    """Wraps the aligner's methods; the dictionary holds the CPU seconds of the last calls."""
    times_s: dict[str, float] = {}
    slam = live._slam
    for name in ("place", "close_loop"):
        method = getattr(slam, name)

        def timed(*arguments, method=method, name=name):
            start = time.thread_time()
            answer = method(*arguments)
            times_s[name] = time.thread_time() - start
            return answer

        setattr(slam, name, timed)
    return times_s


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / 2**20, 1)


def _breaks(row: dict[str, Any]) -> bool:
    alone, closed = LIMITS.get(row["noise"], (1.0, 1.0))
    return row["worst_percent"] > 100 * alone or row["loop_percent"] > 100 * closed


def main() -> int:
    """Measure, record, and fail where a promise of the README is broken."""
    result = {"accuracy": accuracy(), "scale_by_odometry": metres(), "long_drive": long_drive()}
    print(result["scale_by_odometry"], result["long_drive"], sep="\n")
    print(record("alignment", result))
    broken = [row for row in result["accuracy"] if _breaks(row)]
    return bool(broken) or result["long_drive"]["ratio_600_to_60"] > 1.1


if __name__ == "__main__":
    raise SystemExit(main())
