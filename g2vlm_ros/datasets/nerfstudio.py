# SPDX-License-Identifier: Apache-2.0
"""nerfstudio's `transforms.json`, as COLMAP, Polycam, Record3D and others are converted to.

Poses are camera-to-world in OpenGL's axes (y up, z backward). Whether their unit is the metre is
not said; structure from motion does not know it, so errors in metres are not reported unless the
file says ``"metric": true``. Frames without `time` (seconds) follow each other at `rate_hz`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from g2vlm_ros.datasets.picture_files import (
    Undistortion,
    colour_loader,
    depth_loader,
    document,
    pinhole,
)
from g2vlm_ros.datasets.sequence import (
    PosedSequence,
    ReaderOptions,
    SequenceError,
    SequenceFrame,
    bounded_stamp,
    check_rising,
    finished_sequence,
)
from g2vlm_ros.records import Intrinsics

FORMAT = "nerfstudio"
FIRST_NS = 1_000_000_000
DEPTH_UNIT = 1e-3
"""Of depth files, unless `depth_unit_scale_factor` says otherwise."""
OPTICAL_AXES = np.diag([1.0, -1.0, -1.0, 1.0])
"""From OpenGL's camera axes to optical ones."""
LENS_WORDS = ("k1", "k2", "p1", "p2", "k3")
FISHEYE_WORDS = ("k1", "k2", "k3", "k4")


def recognises(path: Path) -> bool:
    """A `transforms.json`, or a folder that holds one."""
    return _file(path).is_file()


def read(path: Path, options: ReaderOptions) -> PosedSequence:
    """The sequence in the order of the file, or of `time` where every frame has one."""
    file = _file(path)
    content = document(file, "frames with file_path and transform_matrix")
    entries = content.get("frames")
    if not isinstance(entries, list) or not entries:
        raise SequenceError(f"{file} lists no frames")
    timed = all(isinstance(e, dict) and "time" in e for e in entries)
    metres = _number(
        file, "depth_unit_scale_factor", content.get("depth_unit_scale_factor"), DEPTH_UNIT
    )
    frames = []
    for count, entry in enumerate(entries):
        seconds = count / options.rate_hz
        if timed:
            seconds = _number(file, f"time of frame {count}", entry["time"])
        stamp_ns = bounded_stamp(FIRST_NS + round(seconds * 1e9), f"{file} (time)")
        frames.append(_frame(file, content, count, entry, stamp_ns, metres))
    check_rising([frame.stamp_ns for frame in frames], f"{file} (time)")
    notes = [] if timed else [f"no time in {file.name}: {options.rate_hz:g} Hz assumed"]
    metric = bool(content.get("metric", False))
    if not metric:
        notes.append(f'{file.name} does not say that its unit is the metre ("metric": true)')
    return finished_sequence(path, FORMAT, frames, notes, metric)


def _file(path: Path) -> Path:
    return path if path.name == "transforms.json" else path / "transforms.json"


def _number(file: Path, name: str, value: Any, default: float = np.nan) -> float:
    """A finite number of the file, or the default where it has none."""
    try:
        number = default if value is None else float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not np.isfinite(number):
        raise SequenceError(f"{file}: {name} is {value!r}; it must be a number")
    return number


def _frame(
    file: Path, content: dict[str, Any], count: int, entry: Any, stamp_ns: int, metres: float
) -> SequenceFrame:
    try:
        picture = file.parent / entry["file_path"]
        opengl = np.array(entry["transform_matrix"], dtype=np.float64).reshape(4, 4)
    except (KeyError, TypeError, ValueError) as error:
        raise SequenceError(
            f"{file}, frame {count}: expected file_path and a transform_matrix of 4x4 numbers"
        ) from error
    if not picture.is_file():
        raise SequenceError(f"{file}, frame {count}: there is no file {entry['file_path']!r}")
    camera, undistort = _calibration(file, content | entry)
    depth = entry.get("depth_file_path")
    if depth and not (isinstance(depth, str) and (file.parent / depth).is_file()):
        raise SequenceError(f"{file}, frame {count}: there is no depth file {depth!r}")
    loader = depth_loader(file.parent / depth, metres) if depth else None
    image = colour_loader(picture, undistort)
    return SequenceFrame(stamp_ns, "camera", image, opengl @ OPTICAL_AXES, camera, loader)


def _calibration(file: Path, words: dict[str, Any]) -> tuple[Intrinsics, Undistortion | None]:
    """Of a frame's words, or else those of the file."""
    try:
        fx = float(words["fl_x"])
        fy = float(words.get("fl_y", fx))
        width, height = int(words["w"]), int(words["h"])
        cx, cy = float(words.get("cx", width / 2)), float(words.get("cy", height / 2))
    except (KeyError, TypeError, ValueError) as error:
        raise SequenceError(f"{file} has no calibration: fl_x, w and h are needed") from error
    # The centre of the first pixel is (0.5, 0.5) there and (0, 0) here.
    camera = pinhole(file, (fx, fy, cx - 0.5, cy - 0.5), (width, height))
    fisheye = words.get("camera_model") == "OPENCV_FISHEYE"
    names = FISHEYE_WORDS if fisheye else LENS_WORDS
    coefficients = np.array([_number(file, name, words.get(name), 0.0) for name in names])
    bent = fisheye or coefficients.any()
    return camera, Undistortion(camera, coefficients, fisheye) if bent else None
