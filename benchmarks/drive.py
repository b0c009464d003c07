# SPDX-License-Identifier: Apache-2.0
"""Half an hour of driving through a simulated home: does the map stay true, bounded and cheap?

The robot loops over one walk there and back again, at RATE_HZ frames a second of simulated time.
Windows, joints, loop closure, metres from odometry and map are the node's; geometry is exact up to
depth noise, each window in a unit and frame of its own (`home_map.ExactPerception`), at the size
of the demo's views. Reported over time: resident memory, voxels, cost per window, bytes of
~/map_updates; at the end loop closures and the trajectory error after Sim(3). Fails where a
promise is broken.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np

from benchmarks.home_map import GAP_S, ExactPerception
from benchmarks.record import record
from g2vlm_ros.demo.sim.scenes import make_scene
from g2vlm_ros.demo.sim.splits import home_seed
from g2vlm_ros.dense_map.dense_map import DenseMap
from g2vlm_ros.dense_map.map_changes import change_rows
from g2vlm_ros.geometry.registration import fit_sim3
from g2vlm_ros.pipeline import MappingPipeline
from g2vlm_ros.records import Frame, RawGeometry, Reconstruction
from g2vlm_ros.settings import Settings

FIRST_NS = 10**9
SAMPLES = 12
"""Points in time at which memory and voxels are reported."""
DEPTH_NOISE = 0.02
"""Standard deviation of each pixel's depth, as a share of it."""
MEMORY_MIB = 16
"""Bound of the map, small enough to be reached soon."""
WIDTH_PX = 112
SPAN = 20
"""Windows to each side over which costs are medians."""
MAX_GROWTH_MIB = 8.0
"""Of the resident memory over the second half: what is remembered of 4096 windows (places, free
space) is still filling up then."""


class NoisyPerception(ExactPerception):
    """As `ExactPerception`, with noise on every depth, drawn anew each time."""

    spent_s = 0.0
    """CPU seconds spent here, which are not the pipeline's."""

    def scene(self, images: list[np.ndarray]) -> list[int]:
        """Which views these are."""
        start = time.process_time()
        numbers = super().scene(images)
        self.spent_s += time.process_time() - start
        return numbers

    def reconstruct(self, numbers: list[int]) -> Reconstruction:
        """Geometry of views that are not quite right."""
        start, exact = time.process_time(), super().reconstruct(numbers)
        points = exact.local_points_u
        noise = self._rng.standard_normal((*points.shape[:3], 1), np.float32)
        noisy = (points * (1 + DEPTH_NOISE * noise)).astype(np.float32)
        geometry = RawGeometry(noisy, exact.window_from_camera, exact.geometry.rotation9)
        self.spent_s += time.process_time() - start
        return dataclasses.replace(exact, geometry=geometry)


def there_and_back(count: int, total: int) -> np.ndarray:
    """int64 (total,): 0, 1, ..., count-1, count-2, ..., 1, 0, 1, ... ."""
    step = np.arange(total) % (2 * count - 2)
    return np.where(step < count, step, 2 * count - 2 - step)


def resident_mib() -> float:
    """Memory of this process that is in RAM, from /proc."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


class Drive:
    """The pipeline on the move, and what it cost so far."""

    def __init__(self, perception: NoisyPerception, settings: Settings, views: np.ndarray):
        self._perception, self._views = perception, views
        self.live, self.map = MappingPipeline(perception, settings), DenseMap(settings)
        # Filled at once, so that keeping the books does not look like a leak.
        self.window_ms, self.update_bytes = np.full((2, len(views)), np.nan)
        self.places = np.full((len(views), 3), np.nan)
        """In the map, by frame, of the newest map since it has its unit and place."""
        self.windows, self.maps, self.joined = 0, 1, 0
        self._version = None

    def pass_by(self, number: int) -> None:
        """A frame of the walk arrives, and what can be computed is."""
        image = self._perception.images[self._views[number]]
        stamp_ns = FIRST_NS + round(number * GAP_S * 1e9)
        place = self._perception.world_from_camera[self._views[number], :3, 3]
        frame = Frame(stamp_ns, "camera", "optical", lambda: image, position_m=place)
        self.live.offer(frame)
        while True:
            start_s = time.process_time() - self._perception.spent_s
            if (update := self.live.step()) is None:
                return
            self.map.add(update)
            change, self._version = self.map.changes(self._version)
            self.update_bytes[self.windows] = change_rows(change).nbytes
            end_s = time.process_time() - self._perception.spent_s
            self.window_ms[self.windows] = 1e3 * (end_s - start_s)
            placement = update.placement
            self.maps += bool(placement.new_map and self.windows)
            self.joined += placement.merged_map_id is not None
            if (
                placement.new_map
                or placement.scale.rescaled != 1.0
                or placement.merged_map_id is not None
            ):
                self.places[:] = np.nan
            for i, frame in enumerate(update.window.frames):
                at = round((frame.stamp_ns - FIRST_NS) / GAP_S * 1e-9)
                self.places[at] = update.map_from_camera[i, :3, 3]
            self.windows += 1

    def cost_ms(self, window: int) -> float | None:
        """CPU time per window around one; None where the drive did not come so far."""
        if window + SPAN > self.windows:
            return None
        return round(float(np.median(self.window_ms[window - SPAN : window + SPAN])), 1)

    def error(self) -> dict[str, float]:
        """Of the newest map's trajectory, after the best Sim(3)."""
        finite = np.isfinite(self.places[:, 0])
        track = self.places[finite]
        truth = self._perception.world_from_camera[self._views[finite], :3, 3]
        error_m = fit_sim3(track, truth, np.ones(len(track))).apply(track) - truth
        rms_m = float(np.sqrt((error_m**2).sum(1).mean()))
        length_m = float(np.linalg.norm(np.diff(truth, axis=0), axis=1).sum())
        return {
            "path_m": round(length_m, 1),
            "error_rms_m": round(rms_m, 4),
            "error_percent_of_path": round(100 * rms_m / length_m, 4),
        }


def drive(home: int, minutes: float, most_views: int) -> dict:
    """Drive for so many simulated minutes."""
    scene = make_scene(home_seed("heldout", home), legs=12)
    perception = NoisyPerception(scene, most_views, WIDTH_PX)
    settings = Settings.from_flat({"window.max_age_s": 10.0, "voxel.memory_mib": MEMORY_MIB})
    views = there_and_back(len(perception.images), round(60 * minutes / GAP_S))
    robot = Drive(perception, settings, views)
    samples, started_s = [], time.monotonic()
    for number in range(len(views)):
        robot.pass_by(number)
        if (number + 1) % (len(views) // SAMPLES) == 0:
            samples.append(
                {
                    "minute": round((number + 1) * GAP_S / 60, 2),
                    "resident_mib": round(resident_mib(), 1),
                    "voxels": len(robot.map.points()),
                    "windows": robot.windows,
                }
            )
            print(samples[-1], flush=True)
    sent = robot.update_bytes[1 : robot.windows]
    middle, last = (samples[i]["resident_mib"] for i in (len(samples) // 2 - 1, -1))
    return {
        "home": home,
        "simulated_minutes": minutes,
        "real_minutes": round((time.monotonic() - started_s) / 60, 1),
        "depth_noise": DEPTH_NOISE,
        "map_memory_mib": MEMORY_MIB,
        **robot.error(),
        "maps": robot.maps,
        "maps_merged": robot.joined,
        "frames_left_out": dict(robot.live.counts().dropped),
        "loops": dict(robot.live.counts().loops),
        "window_cpu_ms_at": {at: robot.cost_ms(at) for at in (60, 600, 2000)},
        "map_updates_bytes_median": int(np.median(sent)),
        "map_updates_bytes_p95": int(np.quantile(sent, 0.95)),
        "resident_growth_second_half_mib": round(last - middle, 1),
        "over_time": samples,
    }


def broken_promises(result: dict) -> list[str]:
    """What a drive of half an hour has to keep, and did not; a shorter one fills its bounds."""
    cost, broken = result["window_cpu_ms_at"], []
    apart = result["maps"] - result["maps_merged"]
    if apart > 1 or not result["loops"].get("closed"):
        broken.append(f"not one closed map: {apart} apart, loops {result['loops']}")
    if cost[600] is not None and cost[600] > 1.1 * cost[60]:
        broken.append(f"a window costs {cost[600]} ms at 600 and {cost[60]} ms at 60")
    grown = result["resident_growth_second_half_mib"]
    if result["simulated_minutes"] >= 30 and grown > MAX_GROWTH_MIB:
        broken.append(f"resident memory grew by {grown} MiB over the second half")
    return broken


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--home", type=int, default=8, help="index of a held-out home")
    parser.add_argument("--minutes", type=float, default=30.0, help="simulated time")
    parser.add_argument("--views", type=int, default=120, help="views of the walk, one way")
    options = parser.parse_args()
    result = drive(options.home, options.minutes, options.views)
    print(record("drive", result))
    broken = broken_promises(result)
    print(*broken, sep="\n")
    return bool(broken)


if __name__ == "__main__":
    raise SystemExit(main())
