"""Half an hour of driving through a simulated home: does the map stay true, bounded and cheap?

The robot loops over one walk there and back again, at RATE_HZ frames a second of simulated time.
Windows, joints, loop closure and map are the node's; geometry is exact up to depth noise, each
window in a unit and frame of its own (`home_map.ExactPerception`). Reported over time: resident
memory, voxels, cost per window; at the end loop closures and the trajectory error after Sim(3).
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np

from benchmarks.home_map import GAP_S, ExactPerception
from benchmarks.record import record
from g2vlm_ros.core.alignment import fit_similarity
from g2vlm_ros.core.datatypes import Frame, RawGeometry, Reconstruction
from g2vlm_ros.core.settings import Settings
from g2vlm_ros.live import LiveMapping
from g2vlm_ros.scene_map import SceneMap
from g2vlm_ros.sim.scenes import make_scene
from g2vlm_ros.sim.splits import home_seed

SAMPLES = 12
"""Points in time at which memory and voxels are reported."""
DEPTH_NOISE = 0.02
"""Standard deviation of each pixel's depth, as a share of it."""
MEMORY_MIB = 64
"""Bound of the map, small enough to be reached."""


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

    def __init__(self, perception: NoisyPerception, settings: Settings):
        self._perception = perception
        self.live, self.map = LiveMapping(perception, settings), SceneMap(settings)
        self.window_ms: list[float] = []
        self.places: dict[int, tuple[int, np.ndarray]] = {}
        """Stamp -> view and its place in the map, of the newest sub-map."""
        self.sub_maps = 1
        self._view_at: dict[int, int] = {}

    def pass_by(self, view: int, stamp_ns: int) -> None:
        """A frame of the walk arrives, and what can be computed is."""
        self._view_at[stamp_ns] = view
        image = self._perception.images[view]
        self.live.offer(Frame(stamp_ns, "camera", "optical", lambda: image))
        while True:
            start_s = time.process_time() - self._perception.spent_s
            if (update := self.live.step()) is None:
                return
            self.map.add(update)
            end_s = time.process_time() - self._perception.spent_s
            self.window_ms.append(1e3 * (end_s - start_s))
            if update.placement.new_sub_map and self.places:
                self.places.clear()
                self.sub_maps += 1
            for i, frame in enumerate(update.window.frames):
                place = update.map_from_camera[i, :3, 3].copy()
                self.places[frame.stamp_ns] = (self._view_at[frame.stamp_ns], place)

    def error(self) -> dict[str, float]:
        """Of the newest sub-map's trajectory, after the best Sim(3)."""
        views, places = zip(*(self.places[at] for at in sorted(self.places)), strict=True)
        track, truth = np.stack(places), self._perception.world_from_camera[list(views), :3, 3]
        error_m = fit_similarity(track, truth, np.ones(len(track))).apply(track) - truth
        rms_m = float(np.sqrt((error_m**2).sum(1).mean()))
        length_m = float(np.linalg.norm(np.diff(truth, axis=0), axis=1).sum())
        return {
            "path_m": round(length_m, 1),
            "error_rms_m": round(rms_m, 4),
            "error_percent_of_path": round(100 * rms_m / length_m, 4),
        }


def drive(home: int, minutes: float, most_views: int) -> dict:
    """Drive for so many simulated minutes."""
    perception = NoisyPerception(make_scene(home_seed("heldout", home), legs=12), most_views)
    settings = Settings.from_flat({"window.max_age_s": 10.0, "voxel.memory_mib": MEMORY_MIB})
    robot = Drive(perception, settings)
    views = there_and_back(len(perception.images), round(60 * minutes / GAP_S))
    samples = []
    for number, view in enumerate(views):
        robot.pass_by(int(view), 10**9 + round(number * GAP_S * 1e9))
        if (number + 1) % (len(views) // SAMPLES) == 0:
            samples.append(
                {
                    "minute": round((number + 1) * GAP_S / 60, 2),
                    "resident_mib": round(resident_mib()),
                    "voxels": len(robot.map.points()),
                    "windows": len(robot.window_ms),
                }
            )
            print(samples[-1], flush=True)
    tenth = max(1, len(robot.window_ms) // 10)
    early, late = robot.window_ms[tenth : 2 * tenth], robot.window_ms[-tenth:]
    return {
        "home": home,
        "simulated_minutes": minutes,
        "depth_noise": DEPTH_NOISE,
        "map_memory_mib": MEMORY_MIB,
        **robot.error(),
        "sub_maps": robot.sub_maps,
        "loops": dict(robot.live.counts().loops),
        "window_cpu_ms_early": round(float(np.median(early)), 1),
        "window_cpu_ms_late": round(float(np.median(late)), 1),
        "over_time": samples,
    }


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--home", type=int, default=8, help="index of a held-out home")
    parser.add_argument("--minutes", type=float, default=30.0, help="simulated time")
    parser.add_argument("--views", type=int, default=120, help="views of the walk, one way")
    chosen = parser.parse_args()
    print(record("drive", drive(chosen.home, chosen.minutes, chosen.views)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
