# SPDX-License-Identifier: Apache-2.0
"""EuRoC MAV and other sequences in the ASL format: cameras, IMU and truth (Burri et al., 2016).

`mav0/cam0` (and `cam1`) hold `data.csv`, `data/*.png` and `sensor.yaml`; `imu0` the samples;
`state_groundtruth_estimate0` (or `leica0`-like `mocap0`) the pose of the body. Pictures lose their
distortion when they are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from g2vlm_ros.datasets.picture_files import (
    Undistortion,
    colour_loader,
    numbers,
    pinhole,
    pose,
    text,
)
from g2vlm_ros.datasets.sequence import (
    PosedSequence,
    ReaderOptions,
    SequenceError,
    SequenceFrame,
    TrueTrajectory,
    bounded_stamp,
    check_rising,
    finished_sequence,
    without_truth,
)
from g2vlm_ros.records import Intrinsics

FORMAT = "EuRoC / ASL"
TRUTH_FOLDERS = ("state_groundtruth_estimate0", "mocap0", "vicon0")
GRAVITY, MAX_GRAVITY_ERROR = 9.81, 0.1
"""m/s²; a mean acceleration that differs by a larger share does not show which way is up."""
AVERAGED_NS = 500_000_000
"""Samples this near a picture count, so that shaking averages out."""


def recognises(path: Path) -> bool:
    """The folder above `mav0`, or `mav0` itself."""
    return (_root(path) / "cam0").is_dir()


def read(path: Path, options: ReaderOptions) -> PosedSequence:
    """All cameras of the sequence; pictures without a true pose at their time are left out."""
    del options  # The format says everything.
    root = _root(path)
    truth, body_from_truth = _truth(root)
    gravity = _Gravity.read(root / "imu0") if (root / "imu0" / "data.csv").is_file() else None
    frames, missing = [], 0
    for folder in sorted(root.glob("cam[0-9]")):
        sensor = _sensor(folder / "sensor.yaml")
        camera, undistort = _calibration(folder / "sensor.yaml", sensor)
        body_from_camera = _mount(folder / "sensor.yaml", sensor)
        for stamp_ns, file in _pictures(folder):
            world_from_truth = truth.at(stamp_ns)
            if world_from_truth is None:
                missing += 1
                continue
            world_from_camera = (
                world_from_truth @ np.linalg.inv(body_from_truth) @ body_from_camera
            )
            up = None if gravity is None else gravity.up(stamp_ns, body_from_camera)
            image = colour_loader(file, undistort)
            frames.append(
                SequenceFrame(
                    stamp_ns,
                    folder.name,
                    image,
                    world_from_camera,
                    camera,
                    up=up,
                    rig_from_camera=body_from_camera,
                )  # fmt: skip
            )
    return finished_sequence(path, FORMAT, frames, without_truth(missing, truth.source))


def _root(path: Path) -> Path:
    return path / "mav0" if (path / "mav0").is_dir() else path


def _table(path: Path, columns: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """(stamps int64 (n,), float64 (n, columns)) of a CSV file; stamps are too long for a float."""
    values = numbers(path, columns + 1, f"nanoseconds, {what}", ",")
    lines = (line.split("#")[0] for line in text(path).splitlines())
    words = [line.split(",")[0].strip() for line in lines if line.strip()]
    if odd := next((word for word in words if not word.lstrip("-").isdigit()), None):
        raise SequenceError(f"{path}: {odd!r} are no whole nanoseconds")
    stamps_ns = [bounded_stamp(int(word), str(path)) for word in words]
    return np.array(stamps_ns, np.int64), values[:, 1:]


def _truth(root: Path) -> tuple[TrueTrajectory, np.ndarray]:
    """Poses of what was tracked, and body_from_tracked (4, 4)."""
    folder = next((root / name for name in TRUTH_FOLDERS if (root / name).is_dir()), None)
    if folder is None:
        raise SequenceError(
            f"{root} has no true poses ({', '.join(TRUTH_FOLDERS)}); an evaluation needs them"
        )
    stamps_ns, table = _table(folder / "data.csv", 7, "position, quaternion w x y z")
    try:
        poses = np.array([pose(row[:3], np.roll(row[3:7], -1)) for row in table])
    except ValueError as error:
        raise SequenceError(f"{folder / 'data.csv'}: {error}") from error
    mount = np.eye(4)
    if (folder / "sensor.yaml").is_file():
        mount = _mount(folder / "sensor.yaml", _sensor(folder / "sensor.yaml"))
    return TrueTrajectory(stamps_ns, poses, str(folder / "data.csv")), mount


def _sensor(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise SequenceError(f"{path} is missing; it holds the calibration and the mount")
    try:
        content = yaml.safe_load(text(path).replace("%YAML:1.0", ""))
    except yaml.YAMLError as error:
        raise SequenceError(f"{path} cannot be read as YAML") from error
    return content if isinstance(content, dict) else {}


def _mount(path: Path, sensor: dict[str, Any]) -> np.ndarray:
    """body_from_sensor (4, 4)."""
    try:
        mount = np.array(sensor["T_BS"]["data"], dtype=np.float64).reshape(4, 4)
        if not np.isfinite(mount).all():
            raise ValueError("a number is not finite")
    except (KeyError, TypeError, ValueError) as error:
        raise SequenceError(f"{path} has no T_BS of 16 numbers (body_from_sensor)") from error
    return mount


def _calibration(path: Path, sensor: dict[str, Any]) -> tuple[Intrinsics, Undistortion | None]:
    try:
        fx, fy, cx, cy = (float(value) for value in sensor["intrinsics"])
        size = tuple(int(value) for value in sensor["resolution"])
        if len(size) != 2:
            raise ValueError(f"'resolution' has {len(size)} numbers")
        coefficients = np.array(sensor.get("distortion_coefficients", []), dtype=np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise SequenceError(
            f"{path} has no calibration: 'intrinsics' of 4 and 'resolution' of 2 numbers"
        ) from error
    camera = pinhole(path, (fx, fy, cx, cy), size)
    fisheye = sensor.get("distortion_model") == "equidistant"
    bent = fisheye or coefficients.any()
    return camera, Undistortion(camera, coefficients, fisheye) if bent else None


def _pictures(folder: Path) -> list[tuple[int, Path]]:
    """(stamp, file) of each line of data.csv."""
    table = folder / "data.csv"
    if not table.is_file():
        raise SequenceError(f"{table} is missing; it lists stamps and pictures")
    pictures = []
    for count, line in enumerate(text(table).splitlines(), 1):
        words = [word.strip() for word in line.split("#")[0].split(",")]
        if not any(words):
            continue
        file = folder / "data" / words[-1]
        if len(words) < 2 or not words[0].isdigit() or not file.is_file():
            raise SequenceError(f"{table}, line {count}: there is no picture for {line[:60]!r}")
        pictures.append((bounded_stamp(int(words[0]), f"{table}, line {count}"), file))
    check_rising([ns for ns, _ in pictures], str(table))
    return pictures


class _Gravity:
    """Up in the body by its accelerometer."""

    def __init__(self, stamps_ns: np.ndarray, acceleration: np.ndarray, body_from_imu: np.ndarray):
        """stamps_ns: int64 (n,), rising. acceleration: (n, 3) m/s² in the sensor's axes."""
        self._stamps_ns, self._acceleration = stamps_ns, acceleration
        self._body_from_imu = body_from_imu

    @classmethod
    def read(cls, folder: Path) -> _Gravity:
        """Of an `imu0` folder."""
        stamps_ns, table = _table(folder / "data.csv", 6, "turn rates, accelerations")
        check_rising(stamps_ns, str(folder / "data.csv"))
        mount = _mount(folder / "sensor.yaml", _sensor(folder / "sensor.yaml"))
        return cls(stamps_ns, table[:, 3:6], mount)

    def up(self, stamp_ns: int, body_from_camera: np.ndarray) -> np.ndarray | None:
        """Unit (3,) in optical axes; None while the body accelerates otherwise than by gravity."""
        first, last = np.searchsorted(
            self._stamps_ns, (stamp_ns - AVERAGED_NS, stamp_ns + AVERAGED_NS)
        )
        if first == last:
            return None
        mean = self._acceleration[first:last].mean(0)
        if not np.isfinite(mean).all():
            return None
        strength = float(np.linalg.norm(mean))
        if abs(strength - GRAVITY) > MAX_GRAVITY_ERROR * GRAVITY:
            return None
        return body_from_camera[:3, :3].T @ self._body_from_imu[:3, :3] @ mean / strength
