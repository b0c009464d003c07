# SPDX-License-Identifier: Apache-2.0
"""Folders as deep-video-mvs samples have them: `rgb/`, `depth/` (mm), `K.txt`, `poses.txt`.

`poses.txt` has one line per picture, world_from_camera 4x4 row by row, metres, optical axes. There
are no stamps: frames follow each other at `rate_hz`.
"""

from __future__ import annotations

from pathlib import Path

from g2vlm_ros.datasets.picture_files import (
    colour_loader,
    depth_loader,
    mask_loader,
    numbers,
    pinhole,
)
from g2vlm_ros.datasets.sequence import (
    PosedSequence,
    ReaderOptions,
    SequenceError,
    SequenceFrame,
    finished_sequence,
)
from g2vlm_ros.images.preprocessing import image_size
from g2vlm_ros.images.sources import IMAGE_SUFFIXES

FORMAT = "HoloLens folder"
DEPTH_UNIT_M = 1e-3
FIRST_NS = 1_000_000_000


def recognises(path: Path) -> bool:
    """A folder with `rgb/` and one of the two text files."""
    tables = ((path / name).is_file() for name in ("poses.txt", "K.txt"))
    return (path / "rgb").is_dir() and not (path / "rgb.txt").is_file() and any(tables)


def read(path: Path, options: ReaderOptions) -> PosedSequence:
    """The sequence, with depth where `depth/` has a PNG of a picture's name, and what moves where
    `masks/` has one."""
    files = sorted(f for f in (path / "rgb").iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise SequenceError(f"{path / 'rgb'} has no pictures")
    matrix = numbers(path / "K.txt", 3, "the 3x3 calibration matrix of the pictures")
    if matrix.shape != (3, 3):
        raise SequenceError(f"{path / 'K.txt'} has {len(matrix)} rows of numbers; K has 3")
    poses = numbers(path / "poses.txt", 16, "world_from_camera, 4x4 row by row, per picture")
    if len(poses) != len(files):
        raise SequenceError(
            f"{path} has {len(files)} pictures but {len(poses)} poses; each picture needs its line"
        )
    poses = poses.reshape(-1, 4, 4)
    focal_and_centre = matrix[[0, 1, 0, 1], [0, 1, 2, 2]]
    camera = pinhole(path / "K.txt", focal_and_centre, image_size(files[0]))
    step_ns = round(1e9 / options.rate_hz)
    frames = []
    for i, (file, pose) in enumerate(zip(files, poses, strict=True)):
        depth = path / "depth" / f"{file.stem}.png"
        loader = depth_loader(depth, DEPTH_UNIT_M) if depth.is_file() else None
        stamp_ns = FIRST_NS + i * step_ns
        mask = path / "masks" / f"{file.stem}.png"
        frames.append(
            SequenceFrame(
                stamp_ns, "camera", colour_loader(file), pose, camera, loader,
                ignored=mask_loader(mask) if mask.is_file() else None,
            )
        )  # fmt: skip
    notes = [f"no stamps in this format: {options.rate_hz:g} Hz assumed"]
    return finished_sequence(path, FORMAT, frames, notes)
