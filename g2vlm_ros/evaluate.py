# SPDX-License-Identifier: Apache-2.0
"""The command line that judges the pipeline on a recorded sequence with true poses.

    python -m g2vlm_ros.evaluate SEQUENCE --stand-in "turn=1,shift=0.015,depth=0.04"
    python -m g2vlm_ros.evaluate SEQUENCE --checkpoint DIR --odometry --out DIR --json

Frames go through the live pipeline as a camera would send them. With --out: trajectories in TUM's
format, the map as PLY, its picture and the figures as JSON. Exit code 2 and one sentence where the
input is wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from g2vlm_ros.datasets.open_sequence import open_sequence
from g2vlm_ros.datasets.sequence import (
    PosedSequence,
    ReaderOptions,
    SequenceError,
    SequenceFrame,
)
from g2vlm_ros.dense_map.dense_map import DenseMap
from g2vlm_ros.evaluation.frames_between import FramesBetween
from g2vlm_ros.evaluation.map_metrics import map_errors, true_surfaces
from g2vlm_ros.evaluation.map_record import MapRecord, ViewKey
from g2vlm_ros.evaluation.stand_in import StandInErrors, StandInPerception
from g2vlm_ros.evaluation.trajectory_metrics import consistency, trajectory_errors
from g2vlm_ros.geometry.point_cloud import write_ply
from g2vlm_ros.geometry.sim3 import Sim3, quaternion_xyzw
from g2vlm_ros.images.map_preview import picture, picture_by_height
from g2vlm_ros.perception import Perception
from g2vlm_ros.pipeline import MappingPipeline
from g2vlm_ros.records import Frame, NonFiniteError
from g2vlm_ros.settings import Settings

ODOMETRY_DRIFT = 0.01
"""Standard deviation of each step of the simulated odometry, as a share of its way and turn."""
INSTANTS = 3
"""Of a window of several cameras, unless --set says otherwise."""
DIGITS = 5
"""Decimals of the figures."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    options = _parse(arguments)
    try:
        result = _run(options)
    except NonFiniteError as error:
        return _refuse(str(error), 1)
    except ImportError as error:
        return _refuse(f"{error}; install it or choose another --backend", 2)
    except (OSError, ValueError) as error:
        return _refuse(str(error), 2)
    print(json.dumps(result) if options.json else _text(result))
    return 0


class SequenceRun:
    """One run of the live pipeline over a sequence."""

    def __init__(
        self,
        sequence: PosedSequence,
        perception: Perception | StandInPerception,
        settings: Settings,
        frames: Sequence[SequenceFrame] | None = None,
        odometry: bool = False,
        seed: int = 0,
        track: bool = False,
        masks: bool = False,
    ):
        """frames: those of the sequence that are used, by default all.

        odometry: the pipeline gets the true motion with errors of ODOMETRY_DRIFT that add up.
        track: all frames of the sequence are followed between windows, as the node does.
        masks: what the sequence says of pixels that move is ignored, as with `mask_topic`.
        """
        if odometry and not sequence.metric:
            raise SequenceError(
                f"{sequence.path} is not in metres, so there is no odometry of it; leave "
                "--odometry out"
            )
        self._sequence, self._perception, self._masks = sequence, perception, masks
        self._frames = sequence.frames if frames is None else tuple(frames)
        cameras = {frame.camera for frame in self._frames}
        self._followed = [f for f in sequence.frames if f.camera in cameras] if track else []
        every = (*self._frames, *self._followed)
        self._true = {(f.camera, f.stamp_ns): f.world_from_camera for f in every}
        self._odometry = _odometry(self._frames, seed) if odometry else {}
        self._pipeline, self.dense_map = MappingPipeline(perception, settings), DenseMap(settings)
        self.record, self._cpu_s, self._views = MapRecord(), [], 0
        self._between = FramesBetween(self.record)

    def play(self) -> None:
        """Offer all frames, one after the other, and run every window that they make."""
        views = {(frame.camera, frame.stamp_ns) for frame in self._frames}
        for frame in self._followed or self._frames:
            if self._followed:
                self._between.follow(frame)
            if (frame.camera, frame.stamp_ns) in views:
                self._pipeline.offer(self._as_camera_frame(frame))
                self._step()

    def _as_camera_frame(self, frame: SequenceFrame) -> Frame:
        return Frame(
            frame.stamp_ns, frame.camera, frame.camera, frame.image, frame.intrinsics,
            up=frame.up, rig_from_camera=frame.rig_from_camera,
            odom_from_camera=self._odometry.get((frame.camera, frame.stamp_ns)),
            ignored=frame.ignored if self._masks else None,
        )  # fmt: skip

    def _step(self) -> None:
        spent_s = getattr(self._perception, "spent_s", 0.0)
        start_s = time.process_time()
        while (update := self._pipeline.step()) is not None:
            if update.still:
                continue
            self.dense_map.add(update)
            stand_in_s = getattr(self._perception, "spent_s", 0.0) - spent_s
            self._cpu_s.append(time.process_time() - start_s - stand_in_s)
            self.record.add(update)
            if self._followed:
                self._between.add(update)
            self._views += len(update.new_views)
            spent_s += stand_in_s
            start_s = time.process_time()

    def results(self) -> dict[str, Any]:
        """All figures; None where one cannot be known. Those of a trajectory are of the map with
        the most views."""
        counts, maps = self._pipeline.counts(), self.record.maps
        figures: dict[str, Any] = {
            "sequence": self._sequence.path.name,
            "format": self._sequence.format,
            "perception": self._perception.backend,
            "frames": len(self._frames),
            "views": self._views,
            "windows": counts.windows,
            "maps": len(maps),
            "views_per_map": [len(self.record.track(map_id)) for map_id in maps],
            "new_map_reasons": self.record.reasons,
            "loops": counts.loops["closed"],
            "loop_tries": dict(counts.loops),
            "dropped": dict(counts.dropped),
            "cpu_ms_per_window": 1e3 * float(np.median(self._cpu_s)) if self._cpu_s else math.nan,
            "voxels": len(self.dense_map.points()),
            "notes": list(self._sequence.notes),
        }
        track = self.record.track(maps[0]) if maps else {}
        true = [self._true[view] for view in track]
        metric = bool(maps) and self.record.metric(maps[0])
        errors = (
            trajectory_errors(
                np.stack(list(track.values())), np.stack(true), metric and self._sequence.metric
            )
            if maps
            else None
        )
        if errors is not None:
            fit = errors.world_from_map
            figures |= {k: v for k, v in asdict(errors).items() if k != "world_from_map"}
            figures |= {"scale_state": "METRIC" if metric else "RELATIVE"}
            figures |= asdict(consistency(self.record.published(maps[0], self._true, fit.scale)))
            figures |= self._map_errors(maps[0], fit)
            if self._followed:
                figures |= self._between.results(maps[0], self._true, fit.scale)
        return {name: _plain(value) for name, value in figures.items()}

    def _map_errors(self, map_id: int, world_from_map: Sim3) -> dict[str, float]:
        """Of the dense map, which is that of the newest window: NaN where that is another one."""
        views = self.record.track(map_id)
        newest = max(((f.camera, f.stamp_ns) for f in self._frames), key=lambda view: view[1])
        points, _ = self.map_points()
        if newest not in views and self.record.maps[1:]:
            points = points[:0]
        frames = [f for f in self._frames if (f.camera, f.stamp_ns) in views]
        return map_errors(world_from_map.apply(points), true_surfaces(frames))

    def map_points(self) -> tuple[np.ndarray, np.ndarray]:
        """Points float64 (n, 3) and colours uint8 (n, 3) of the dense map."""
        points = self.dense_map.points()
        rgb = points["rgb"]
        colours = np.stack([rgb >> 16 & 255, rgb >> 8 & 255, rgb & 255], -1).astype(np.uint8)
        return np.stack([points[axis] for axis in "xyz"], -1).astype(np.float64), colours

    def write(self, folder: Path, figures: dict[str, Any]) -> None:
        """Trajectories, map, picture and figures into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        truth: dict[ViewKey, np.ndarray] = {}
        for rank, map_id in enumerate(self.record.maps):
            track = self.record.track(map_id)
            write_tum(folder / f"trajectory{f'_{rank}' if rank else ''}.txt", track)
            truth |= {view: self._true[view] for view in track}
        write_tum(folder / "truth.txt", truth)
        points, colours = self.map_points()
        write_ply(folder / "map.ply", points.astype(np.float32), colours)
        if self.record.maps:
            track = self.record.track(self.record.maps[0])
            places = np.stack([pose[:3, 3] for pose in track.values()])
            for name, image in (
                ("map.png", picture(points, colours, places)),
                ("map_by_height.png", picture_by_height(points, places)),
            ):
                cv2.imwrite(str(folder / name), image[..., ::-1])
        text = json.dumps(figures, indent=1)
        (folder / "result.json").write_text(text + "\n", encoding="utf-8")


def write_tum(path: Path, track: dict[ViewKey, np.ndarray]) -> None:
    """Poses as "seconds tx ty tz qx qy qz qw", which evo reads as `evo_ape tum`."""
    lines = ["# seconds tx ty tz qx qy qz qw (camera in the map, optical axes)"]
    for (_, stamp_ns), pose in sorted(track.items(), key=lambda item: item[0][1]):
        numbers = (*pose[:3, 3], *quaternion_xyzw(pose[:3, :3]))
        seconds = f"{stamp_ns // 1_000_000_000}.{stamp_ns % 1_000_000_000:09d}"
        lines.append(" ".join([seconds, *(f"{number:.6f}" for number in numbers)]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _odometry(frames: Sequence[SequenceFrame], seed: int) -> dict[ViewKey, np.ndarray]:
    """odom_from_camera of every frame: true steps of the first camera with errors that add up;
    other cameras are held to it as they truly are."""
    rng, leader = np.random.default_rng(seed), frames[0].camera
    true = odom = frames[0].world_from_camera
    poses = {}
    for frame in frames:
        if frame.camera == leader:
            step = np.linalg.inv(true) @ frame.world_from_camera
            vector, _ = cv2.Rodrigues(step[:3, :3])
            step[:3, :3] = cv2.Rodrigues(vector * (1 + ODOMETRY_DRIFT * rng.normal(size=(3, 1))))[
                0
            ]
            step[:3, 3] *= 1 + ODOMETRY_DRIFT * rng.normal(size=3)
            odom, true = odom @ step, frame.world_from_camera
        poses[frame.camera, frame.stamp_ns] = odom @ np.linalg.inv(true) @ frame.world_from_camera
    return poses


def _plain(value: Any) -> Any:
    """As JSON has it: rounded, None for what is not finite."""
    if isinstance(value, (float, np.floating)):
        return round(float(value), DIGITS) if math.isfinite(value) else None
    return value


def _text(figures: dict[str, Any]) -> str:
    lines = []
    for name, value in figures.items():
        text = "unknown" if value is None else f"{value:g}" if isinstance(value, float) else value
        lines.append(f"{name:20} {text}")
    return "\n".join(lines)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m g2vlm_ros.evaluate",
        description="Judge the pipeline on a recorded sequence with true poses.",
    )
    add = parser.add_argument
    add("sequence", metavar="SEQUENCE", type=Path,
        help="HoloLens, TUM RGB-D, EuRoC/ASL, transforms.json, rosbag2 or MCAP")  # fmt: skip
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument("--checkpoint", metavar="DIR", help="folder of a G2VLM checkpoint")
    network.add_argument(
        "--stand-in", metavar="ERRORS",
        help="true depth and poses with errors in the network's place: turn (degrees), shift "
        "(share of the median depth), depth (share), blur (px), every (n-th frame), seed; "
        'for example "turn=1,shift=0.015,depth=0.04", or "" for none',
    )  # fmt: skip
    add("--odometry", action="store_true", help="give the pipeline odometry made of the truth")
    add(
        "--track",
        action="store_true",
        help="follow every frame of the sequence between windows, those left out included",
    )
    add("--masks", action="store_true", help="ignore the pixels that the sequence says move")
    add("--out", metavar="DIR", type=Path, help="write trajectories, map, picture and figures")
    add("--json", action="store_true", help="print one JSON object instead of text")
    add("--set", nargs="*", default=[], metavar="NAME=VALUE", help="parameters of the pipeline")
    add("--rate", type=float, default=5.0, metavar="HZ",
        help="of sequences without stamps (default: %(default)s)")  # fmt: skip
    add("--cameras", nargs="*", default=[], metavar="NAME", help="use these cameras only")
    for what in ("image", "depth", "truth"):
        add(f"--{what}-topic", default="", metavar="TOPIC", help=f"{what} topic of a recording")
    add("--backend", default="auto", help="what runs the network (default: %(default)s)")
    add("--width", type=int, default=0, help="of the views in the model, px; 0: as trained")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    errors = StandInErrors.parse(options.stand_in) if options.stand_in is not None else None
    reader = ReaderOptions(
        options.rate, options.image_topic, options.depth_topic, options.truth_topic
    )
    sequence = open_sequence(options.sequence, reader)
    cameras = options.cameras or list(sequence.cameras)
    if unknown := set(cameras) - set(sequence.cameras):
        raise SequenceError(
            f"{sequence.path} has no camera {', '.join(sorted(unknown))}; it has "
            f"{', '.join(sequence.cameras)}"
        )
    frames = [frame for frame in sequence.frames if frame.camera in cameras]
    values: dict[str, Any] = {"cameras": cameras, "model.image_width_px": options.width}
    if len(cameras) > 1:
        values["window.views"] = INSTANTS * len(cameras)
    for entry in options.set:
        name, separator, value = entry.partition("=")
        if not separator:
            raise ValueError(f"--set has {entry!r}; it takes NAME=VALUE")
        values[name] = yaml.safe_load(value)
    if options.checkpoint:
        values |= {"model.checkpoint": options.checkpoint, "model.backend": options.backend}
    settings = Settings.from_flat(values)
    perception: Perception | StandInPerception
    if errors is None:
        perception, seed = Perception.open(settings), 0
    else:
        with_depth = [frame for frame in frames if frame.depth_m is not None]
        if without := len(frames) - len(with_depth):
            note = f"{without} pictures without depth are left out, as the stand-in needs it"
            sequence = replace(sequence, notes=(*sequence.notes, note))
        frames = with_depth
        stamps = sorted({frame.stamp_ns for frame in frames})[:: errors.every]
        frames = [frame for frame in frames if frame.stamp_ns in set(stamps)]
        perception, seed = StandInPerception(frames, errors), errors.seed
    run = SequenceRun(
        sequence, perception, settings, frames, options.odometry, seed, options.track,
        options.masks,
    )  # fmt: skip
    run.play()
    figures = run.results()
    if options.out:
        run.write(options.out, figures)
    return figures


def _refuse(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
