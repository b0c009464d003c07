# SPDX-License-Identifier: Apache-2.0
"""TUM RGB-D: `rgb.txt`, `depth.txt`, `groundtruth.txt` (Sturm et al., IROS 2012).

Lines are "seconds file" or "seconds tx ty tz qx qy qz qw" (world_from_camera, optical axes); depth
PNGs count 1/5000 m. The calibration is not part of the format: `calibration.txt` with
"fx fy cx cy [k1 k2 p1 p2 k3]" is read if it is there, else the one that the folder's name says.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np

from g2vlm_ros.datasets.picture_files import (
    Undistortion,
    colour_loader,
    depth_loader,
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
from g2vlm_ros.images.preprocessing import image_size
from g2vlm_ros.records import Intrinsics

FORMAT = "TUM RGB-D"
DEPTH_UNIT_M = 1 / 5000
MAX_DEPTH_LAG_NS = 20_000_000
"""A depth image this near in time belongs to a picture, as the benchmark's own tools have it."""
CALIBRATIONS = {
    "freiburg1": (517.3, 516.5, 318.6, 255.3, 0.2624, -0.9531, -0.0054, 0.0026, 1.1633),
    "freiburg2": (520.9, 521.0, 325.1, 249.7, 0.2312, -0.7849, -0.0033, -0.0001, 0.9172),
    "freiburg3": (535.4, 539.2, 320.1, 247.6, 0, 0, 0, 0, 0),
}
"""As published with the benchmark, for pictures of 640x480; freiburg3 is without distortion."""


def recognises(path: Path) -> bool:
    """A folder with `rgb.txt`."""
    return (path / "rgb.txt").is_file()


def read(path: Path, options: ReaderOptions) -> PosedSequence:
    """The sequence; pictures without a true pose at their time are left out."""
    del options  # The format says everything.
    table = numbers(path / "groundtruth.txt", 8, "seconds tx ty tz qx qy qz qw")
    stamps_ns = np.array(_stamps_ns(path / "groundtruth.txt"), dtype=np.int64)
    try:
        poses = np.stack([pose(row[1:4], row[4:8]) for row in table]) if len(table) else table
    except ValueError as error:
        raise SequenceError(f"{path / 'groundtruth.txt'}: {error}") from error
    truth = TrueTrajectory(stamps_ns, poses, str(path / "groundtruth.txt"))
    pictures = _files(path / "rgb.txt")
    depths = _files(path / "depth.txt") if (path / "depth.txt").is_file() else []
    if not pictures:
        raise SequenceError(f"{path / 'rgb.txt'} lists no pictures")
    camera, coefficients = _calibration(path, image_size(pictures[0][1]))
    undistort = Undistortion(camera, coefficients, False) if any(coefficients) else None
    depth_ns = np.array([ns for ns, _ in depths], dtype=np.int64)
    frames, missing = [], 0
    for stamp_ns, file in pictures:
        world_from_camera = truth.at(stamp_ns)
        if world_from_camera is None:
            missing += 1
            continue
        loader = None
        if len(depths):
            near = int(np.argmin(np.abs(depth_ns - stamp_ns)))
            if abs(int(depth_ns[near]) - stamp_ns) <= MAX_DEPTH_LAG_NS:
                loader = depth_loader(depths[near][1], DEPTH_UNIT_M)
        image = colour_loader(file, undistort)
        frames.append(SequenceFrame(stamp_ns, "camera", image, world_from_camera, camera, loader))
    return finished_sequence(path, FORMAT, frames, without_truth(missing, truth.source))


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """(line number, words) of the lines that are no comments."""
    lines = enumerate(text(path).splitlines(), 1)
    split = ((count, line.split("#")[0].split()) for count, line in lines)
    return [(count, words) for count, words in split if words]


def _stamp_ns(path: Path, count: int, word: str) -> int:
    try:
        stamp_ns = int(Decimal(word) * 1_000_000_000)
    except (InvalidOperation, OverflowError, ValueError) as error:
        raise SequenceError(f"{path}, line {count}: {word!r} are no seconds") from error
    return bounded_stamp(stamp_ns, f"{path}, line {count}")


def _stamps_ns(path: Path) -> list[int]:
    """Seconds of each line in whole nanoseconds; a float would round them."""
    return [_stamp_ns(path, count, words[0]) for count, words in _lines(path)]


def _files(path: Path) -> list[tuple[int, Path]]:
    """(stamp, file) of each line."""
    files = []
    for count, words in _lines(path):
        file = path.parent / words[1] if len(words) > 1 else None
        if file is None or not file.is_file():
            raise SequenceError(f"{path}, line {count}: there is no file {' '.join(words[1:])!r}")
        files.append((_stamp_ns(path, count, words[0]), file))
    check_rising([ns for ns, _ in files], str(path))
    return files


def _calibration(path: Path, size: tuple[int, int]) -> tuple[Intrinsics, tuple[float, ...]]:
    """The camera and its distortion k1 k2 p1 p2 k3."""
    file = path / "calibration.txt"
    name = next((name for name in CALIBRATIONS if name in path.resolve().name.lower()), None)
    if file.is_file():
        table = numbers(file, 4, "fx fy cx cy [k1 k2 p1 p2 k3]")
        if not len(table):
            raise SequenceError(f"{file} is empty; it holds fx fy cx cy [k1 k2 p1 p2 k3]")
        values, words = table[0], _lines(file)[0][1][4:9]
        coefficients = tuple(float(word) for word in words)
    elif name is not None and size == (640, 480):
        values, coefficients = np.array(CALIBRATIONS[name][:4]), CALIBRATIONS[name][4:]
    else:
        raise SequenceError(
            f"{path} has no calibration: write 'fx fy cx cy [k1 k2 p1 p2 k3]' of its "
            f"{size[0]}x{size[1]} pictures to {file.name} there"
        )
    return pinhole(file, values, size), coefficients
