# SPDX-License-Identifier: Apache-2.0
"""The map of a checkpoint that sees, in homes no training saw, against windows simply chained.

Drives as `make demo` does, without DDS: rendered views, noisy odometry, the settings of
config/demo.yaml, ONNX Runtime on the CPU. Per map of MIN_VIEWS views or more: trajectory error
(ATE) after the best similarity, its growth per metre, the error of the metres, accuracy and
completeness of the last map, its tilt and the height of its floor; and whether the errors of the
published poses are what their covariances say (`nees_...`, 1 where they are). Beside them, over
the same frames and after a similarity of its own, the baseline: the network's poses chained by the
first shared view of the same windows (`alignment.chained`), and the same chain of the poses that
the images mended (`refine_poses`), which shows what the joint adds to them. A chain ends where no
view is shared; a map that odometry carries on does not, and `whole_...` judges all of it. `--set
window.views=4` tries other settings.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from benchmarks.alignment import chained
from benchmarks.record import record
from g2vlm_ros.demo.sim import drive_metrics
from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.sim.home import Home
from g2vlm_ros.demo.sim.renderer import render
from g2vlm_ros.demo.sim.robot_path import RATE_HZ, RobotPath
from g2vlm_ros.demo.sim.scenes import make_scene
from g2vlm_ros.demo.sim.splits import home_seed
from g2vlm_ros.demo.sim.wheel_odometry import base_poses, mount, odometry
from g2vlm_ros.dense_map.dense_map import DenseMap
from g2vlm_ros.mapping.window_pose import MappedWindow
from g2vlm_ros.parameter_schema import flattened
from g2vlm_ros.perception import Perception, Scene
from g2vlm_ros.pipeline import MappingPipeline
from g2vlm_ros.records import Frame, Reconstruction, ScaleState
from g2vlm_ros.settings import Settings

ROOT = Path(__file__).parents[1]
CAMERA_HZ, WIDTH_PX, LEGS, ODOMETRY_NOISE = 5.0, 224, 8, 0.02
MIN_VIEWS = 8
"""A shorter piece of way is fitted by almost any track."""
DRIFT_OVER_M = 1.0
CLEARLY = 0.8
"""Share of the baseline's error below which the map is clearly better."""
FIRST_NS = 10**9


class Drive:
    """A walk, seen by the robot's camera.

    home_by_step: for each step of the walk, which of the homes (all of one plan) stands there.
    """

    def __init__(
        self,
        homes: Sequence[Home],
        walk: RobotPath,
        home_by_step: np.ndarray,
        camera_hz: float = CAMERA_HZ,
    ):
        steps = np.arange(0, len(walk.time_s), round(RATE_HZ / camera_hz))
        self.poses, self.time_s = walk.world_from_camera[steps], walk.time_s[steps]
        self.camera = lens(WIDTH_PX, WIDTH_PX * 3 // 4)
        views = render(homes, home_by_step[steps], self.poses, self.time_s, self.camera)
        self.images, self.depth_m = np.array(views.images), np.asarray(views.depth_m)
        self.items = np.asarray(views.items)
        robot = base_poses(*odometry(walk, ODOMETRY_NOISE, homes[0].seed))[steps]
        self._odom_from_camera = robot @ mount(walk)

    def frame(self, number: int) -> Frame:
        """The view as the node would get it."""
        stamp_ns = FIRST_NS + round(self.time_s[number] * 1e9)
        return Frame(
            stamp_ns,
            "camera",
            "optical",
            lambda: self.images[number],
            odom_from_camera=self._odom_from_camera[number],
        )


class Network:
    """A perception that remembers what the network itself said of each scene."""

    def __init__(self, perception: Perception):
        self._perception = perception
        self.scene = perception.scene
        self.said: dict[int, Reconstruction] = {}

    def reconstruct(self, scene: Scene) -> Reconstruction:
        self.said[id(scene)] = result = self._perception.reconstruct(scene)
        return result


class Log:
    """The windows of each map, as they lie after all corrections."""

    def __init__(self) -> None:
        self.windows: dict[int, list] = defaultdict(list)
        self._places: dict[int, Any] = {}

    def take(self, update: MappedWindow, numbers: list[int], network: Reconstruction) -> None:
        """One more window; `numbers` are its views', `network` is what the network said."""
        placement = update.placement
        ended = placement.merged_map_id
        if ended is not None:
            moved = self.windows.pop(ended, [])
            self.windows[placement.map_id] = sorted(
                self.windows[placement.map_id] + moved, key=lambda window: window[0]
            )
        self._places[update.window.id] = placement.map_from_window
        self._places.update(placement.corrections)
        window = (update.window.id, numbers, update.result, update.trusted_views, network)
        self.windows[placement.map_id].append(window)

    def track(self, map_id: int) -> dict[int, np.ndarray]:
        """map_from_camera (4, 4) by view."""
        poses = {}
        for window, numbers, result, trusted, _ in self.windows[map_id]:
            found = self._places[window].apply_pose(result.window_from_camera.astype(np.float64))
            poses |= {numbers[i]: found[i] for i in trusted}
        return poses

    def surprise(self, update: MappedWindow, path: Drive, number: int) -> np.ndarray | None:
        """(2,): squared errors of a window's newest pose as published, of position and rotation,
        over what its covariance says, per axis: 1 on average where that is true (NEES).

        From the map's first camera, without fitting. number: of the newest view. None while
        the map is not in metres.
        """
        placement = update.placement
        if placement.scale.state is not ScaleState.METRIC:
            return None
        first, numbers, result, *_ = self.windows[placement.map_id][0]
        start = self._places[first].apply_pose(result.window_from_camera[0].astype(np.float64))
        true = start @ np.linalg.inv(path.poses[numbers[0]]) @ path.poses[number]
        stamps_ns = [frame.stamp_ns for frame in update.window.frames]
        newest = stamps_ns.index(max(stamps_ns))
        pose, covariance = update.map_from_camera[newest], placement.covariance[newest]
        turned, _ = cv2.Rodrigues(pose[:3, :3] @ true[:3, :3].T)
        off = np.stack([pose[:3, 3] - true[:3, 3], turned[:, 0]])
        parts = np.stack([covariance[:3, :3], covariance[3:, 3:]])
        return np.einsum("ki,kij,kj->k", off, np.linalg.inv(parts), off) / 3

    def chained(self, map_id: int, mended: bool) -> dict[int, np.ndarray]:
        """Positions by view of the same windows, chained; their longest stretch.

        mended: the poses after `refine_poses` instead of the network's; its points either way.
        """
        best: list = []
        stretch: list = []
        for _, numbers, result, _, network in self.windows[map_id]:
            if stretch and not set(numbers) & set(stretch[-1][0]):
                stretch = []
            poses = (result if mended else network).window_from_camera
            posed = replace(network, geometry=replace(network.geometry, window_from_camera=poses))
            stretch = [*stretch, (numbers, posed)]
            best = max(best, stretch, key=len)
        views = sorted({n for numbers, _ in best for n in numbers})
        rank = {n: i for i, n in enumerate(views)}
        log = [([rank[n] for n in numbers], result) for numbers, result in best]
        return dict(zip(views, chained(log, len(views)), strict=True))


def errors(estimates: dict[int, np.ndarray], truth: np.ndarray) -> dict[str, float]:
    """ATE and drift of positions or poses by view; {} where they are too few.

    Drift: error of the ways of about DRIFT_OVER_M between two views, as a share of them.
    """
    places = {n: p[:3, 3] if p.ndim == 2 else p for n, p in estimates.items()}
    poses = {n: np.block([[np.eye(3), p[:, None]], [np.zeros(3), 1.0]]) for n, p in places.items()}
    track = drive_metrics.track(poses, dict(enumerate(truth)))
    if track is None:
        return {}
    moved = track.home_from_map.apply(track.estimated)
    way = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(track.true, axis=0), axis=1))])
    ends = np.searchsorted(way, way + DRIFT_OVER_M)
    starts = np.flatnonzero(ends < len(way))
    ends = ends[starts]
    drift = np.linalg.norm(
        (moved[ends] - moved[starts]) - (track.true[ends] - track.true[starts]), axis=1
    ) / (way[ends] - way[starts])
    return track.scores() | {"drift_per_m": float(np.median(drift)) if len(drift) else np.nan}


def drive(home: int, perception: Perception, settings: Settings) -> dict[str, Any]:
    """One home."""
    scene = make_scene(home_seed("heldout", home), LEGS)
    path = Drive([scene.home], scene.walk, np.zeros(len(scene.walk.time_s), np.int64))
    log = Log()
    network = Network(perception)
    live, dense_map = MappingPipeline(network, settings), DenseMap(settings)
    numbers = {path.frame(n).stamp_ns: n for n in range(len(path.images))}
    started, last, surprises = time.process_time(), None, []
    for number in range(len(path.images)):
        live.offer(path.frame(number))
        while (update := live.step()) is not None:
            if update.still:  # the last window once more: the network was not asked
                continue
            dense_map.add(update)
            views = [numbers[frame.stamp_ns] for frame in update.window.frames]
            log.take(update, views, network.said[id(update.scene)])
            network.said.clear()
            last = update
            surprise = log.surprise(update, path, max(views))
            surprises += [] if surprise is None else [surprise]
    windows = live.counts().windows
    nees = np.mean(surprises, axis=0) if surprises else np.full(2, np.nan)
    row: dict[str, Any] = {"home": home, "windows": windows, "maps": len(log.windows)}
    row["cpu_ms_per_window"] = round(1e3 * (time.process_time() - started) / max(windows, 1), 1)
    row["nees_position"], row["nees_rotation"] = np.round(nees, 2).tolist()
    row["loops"], row["parts"] = dict(live.counts().loops), []
    for map_id in log.windows:
        tracks = log.track(map_id), *(log.chained(map_id, mended) for mended in (False, True))
        common = tracks[0].keys() & tracks[1].keys()
        if len(common) >= MIN_VIEWS:
            ours, *chains = (errors({n: p[n] for n in common}, path.poses) for p in tracks)
            for name, chain in zip(("chained", "mended_chained"), chains, strict=True):
                ours[f"{name}_error_m"] = chain["trajectory_error_m"]
                ours[f"{name}_drift_per_m"] = chain["drift_per_m"]
            all_views = errors(tracks[0], path.poses)
            ours |= {f"whole_{name}": all_views[name] for name in ("path_m", "trajectory_error_m")}
            row["parts"].append(ours)
    row |= _map_scores(path, dense_map, log, last) if last else {}
    print(row, flush=True)
    return row


def _map_scores(path: Drive, dense_map: DenseMap, log: Log, last: MappedWindow) -> dict:
    """Of the last map, as it is at the end."""
    poses = log.track(last.placement.map_id)
    track = drive_metrics.track(poses, dict(enumerate(path.poses)))
    if track is None:
        return {}
    points = dense_map.points()
    positions = np.stack([points[axis] for axis in "xyz"], -1)
    views = sorted(poses)
    true = drive_metrics.surfaces(
        {n: path.depth_m[n] for n in views}, {n: path.poses[n] for n in views}, path.camera
    )
    up = np.mean([poses[n][:3, :3] @ path.poses[n][2, :3] for n in views], axis=0)
    tilt_deg = float(np.degrees(np.arccos(np.clip(up[2] / np.linalg.norm(up), -1.0, 1.0))))
    below = np.mean([poses[n][:3, 3] for n in views], axis=0)
    below[2] = last.placement.floor_z
    floor_m = float(track.home_from_map.apply(below)[2])
    scores = drive_metrics.map_scores(track.home_from_map.apply(positions), true)
    return scores | {"tilt_deg": round(tilt_deg, 2), "floor_off_m": round(floor_m, 3)}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over all parts, weighed by their length, and over the homes' maps."""
    parts = [part for row in rows for part in row["parts"]]
    way = np.array([part["path_m"] for part in parts])

    def mean(name: str) -> float:
        values = np.abs([part[name] for part in parts])
        finite = np.isfinite(values)
        return round(float((values * way)[finite].sum() / way[finite].sum()), 4)

    kinds = ("trajectory_error_m", "chained_error_m", "mended_chained_error_m")
    names = (*kinds, *(name.replace("error_m", "drift_per_m") for name in kinds[1:]))
    names = (*names, "whole_trajectory_error_m", "drift_per_m", "scale_error")
    means = {name: mean(name) for name in names} if parts else {}
    maps = [row for row in rows if "map_accuracy_m" in row]
    names = ("map_accuracy_m", "map_completeness", "tilt_deg", "floor_off_m")
    for name in names if maps else ():
        means[name] = round(float(np.nanmean(np.abs([row[name] for row in maps]))), 3)
    means["floors_known"] = int(sum(np.isfinite(row["floor_off_m"]) for row in maps))
    for name in ("nees_position", "nees_rotation"):
        means[name] = round(float(np.nanmean([row[name] for row in rows])), 2)
    means["whole_way_m"] = round(sum(part["whole_path_m"] for part in parts), 1)
    counts = {"maps": sum(row["maps"] for row in rows), "parts": len(parts)}
    return {"judged_way_m": round(float(way.sum()), 1), **counts, **means}


def demo_settings(changes: Mapping[str, Any]) -> Settings:
    """Those of config/demo.yaml, with changes by parameter; odometry comes with the frames."""
    document = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())
    values = flattened(document["/**/perception"]["ros__parameters"])
    values.pop("odometry_topic", None)
    return Settings.from_flat(values | dict(changes))


def main() -> int:
    """Measure and record; fails where the map is not clearly better than chaining alone."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--homes", type=int, nargs="+", default=[3, 5, 8, 11, 14, 17])
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "engines" / "demo")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    changes = {name: yaml.safe_load(v) for name, v in (each.split("=") for each in options.set)}
    settings = demo_settings(changes | {"model.checkpoint": str(options.checkpoint)})
    perception = Perception.open(settings)
    rows = [drive(home, perception, settings) for home in options.homes]
    result = {"backend": perception.backend, "set": options.set, "mean": summary(rows)}
    print(result["mean"])
    print(record("demo_map", result | {"homes": rows}))
    mean = result["mean"]
    return not mean["parts"] or mean["trajectory_error_m"] > CLEARLY * mean["chained_error_m"]


if __name__ == "__main__":
    raise SystemExit(main())
