# SPDX-License-Identifier: Apache-2.0
"""Frames without ROS: a folder of images, a single image or a video file.

A source yields (image uint8 (h, w, 3) RGB, stamp_ns) as often as it is iterated, says how many
frames it has where that is known, what it left out and why, and where its stamps come from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from g2vlm_ros.images.preprocessing import image_size, load_image

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
)
DEFAULT_RATE_HZ = 1.0
"""Of image files whose names carry no seconds and for which no rate is given."""

_SECONDS_IN_NAME = re.compile(r"(?:(?P<id>.*)_)?(?P<seconds>\d+\.\d+)")


class FrameSource(Protocol):
    """What `open_source` returns."""

    length: int | None
    """How many frames iteration yields, None where the file does not tell."""
    skipped: tuple[str, ...]
    """What was left out, one "name: reason" each."""
    stamps: str
    """Where the stamps come from, in words."""

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        """(image uint8 (h, w, 3) RGB, stamp_ns) in order of time."""


@dataclass(frozen=True)
class Selection:
    """Which frames of a source: from `start` on every `stride`-th, at most `count` of them."""

    start: int = 0
    stride: int = 1
    count: int | None = None

    def __post_init__(self) -> None:
        if self.start < 0 or self.stride < 1 or (self.count is not None and self.count < 1):
            raise ValueError(
                f"start {self.start}, stride {self.stride}, count {self.count}: start must be at "
                "least 0, stride and count at least 1"
            )

    def indices(self, available: int) -> range:
        """The selected ones of `available` frames."""
        return range(available)[self.start :: self.stride][: self.count]


@dataclass(frozen=True)
class ImageFiles:
    """Image files in order, each with its stamp."""

    paths: tuple[Path, ...]
    stamps_ns: tuple[int, ...]
    skipped: tuple[str, ...]
    stamps: str

    @property
    def length(self) -> int:
        """How many files."""
        return len(self.paths)

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        for path, stamp_ns in zip(self.paths, self.stamps_ns, strict=True):
            yield load_image(path), stamp_ns


@dataclass(frozen=True)
class VideoFile:
    """A video at a constant frame rate; stamps count from the first frame of the file."""

    path: Path
    rate_hz: float
    length: int | None
    """From the container's frame count, which a damaged file may not keep."""
    selection: Selection
    stamps: str
    skipped: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        video = cv2.VideoCapture(str(self.path))
        try:
            index = yielded = 0
            while yielded != self.selection.count and video.grab():
                since_start = index - self.selection.start
                if since_start >= 0 and since_start % self.selection.stride == 0:
                    yield _decoded(video, self.path, index), round(index * 1e9 / self.rate_hz)
                    yielded += 1
                index += 1
        finally:
            video.release()


def open_source(
    path: str | Path,
    start: int = 0,
    stride: int = 1,
    count: int | None = None,
    rate_hz: float | None = None,
) -> FrameSource:
    """The frames at `path`: a folder of images (natural order of names), an image or a video.

    start, stride, count: take every stride-th frame from start on, at most count.
    rate_hz: frames per second, before striding. Image files named ``<id>_<seconds>.jpg`` with one
    id bring their own stamps; others use rate_hz, or DEFAULT_RATE_HZ. Videos use their own rate
    unless rate_hz is given. FileNotFoundError or ValueError say what is wrong with the path.
    """
    path, selection = Path(path), Selection(start, stride, count)
    if rate_hz is not None and not 0 < rate_hz < float("inf"):
        raise ValueError(f"rate_hz is {rate_hz}; it must be finite and above 0")
    if path.is_dir():
        return _open_images(path, *_usable_images(path), selection, rate_hz)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; give a folder of images, an image or a video file"
        )
    if path.suffix.lower() in IMAGE_SUFFIXES:
        image_size(path)
        return _open_images(path, [path], (), selection, rate_hz)
    return _open_video(path, selection, rate_hz)


def _usable_images(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Readable images of a folder in natural order, and why the other entries are left out."""
    paths, skipped = [], []
    for path in sorted(folder.iterdir(), key=_natural):
        if path.is_dir():
            skipped.append(f"{path.name}: a folder")
        elif path.name.startswith("."):
            skipped.append(f"{path.name}: hidden")
        elif path.suffix.lower() not in IMAGE_SUFFIXES:
            skipped.append(f"{path.name}: not an image by its name")
        else:
            try:
                image_size(path)
                paths.append(path)
            except (OSError, ValueError) as error:
                skipped.append(f"{path.name}: {error}")
    return paths, tuple(skipped)


def _open_images(
    path: Path,
    paths: list[Path],
    skipped: tuple[str, ...],
    selection: Selection,
    rate_hz: float | None,
) -> ImageFiles:
    if not paths:
        raise ValueError(
            f"{path} has no readable image (left out: {'; '.join(skipped) or 'nothing'}); "
            f"it needs files ending in {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    stamped = _stamps_of_names(paths)
    if stamped:
        paths, stamps_ns = [p for _, p in stamped], [ns for ns, _ in stamped]
        origin = "seconds in the file names"
    else:
        rate = DEFAULT_RATE_HZ if rate_hz is None else rate_hz
        stamps_ns = [round(index * 1e9 / rate) for index in range(len(paths))]
        origin = f"{rate:g} Hz " + ("by default" if rate_hz is None else "as given")
    chosen = _chosen(selection, len(paths), path)
    return ImageFiles(
        tuple(paths[i] for i in chosen), tuple(stamps_ns[i] for i in chosen), skipped, origin
    )


def _stamps_of_names(paths: list[Path]) -> list[tuple[int, Path]]:
    """(stamp_ns, path) in order of time if every name tells its own seconds, otherwise nothing."""
    matches = [_SECONDS_IN_NAME.fullmatch(path.stem) for path in paths]
    if not all(matches) or len({match["id"] for match in matches}) != 1:
        return []
    stamps = [int(Decimal(match["seconds"]).scaleb(9)) for match in matches]
    ordered = sorted(zip(stamps, paths, strict=True))
    distinct = all(earlier[0] < later[0] for earlier, later in pairwise(ordered))
    return ordered if distinct else []


def _open_video(path: Path, selection: Selection, rate_hz: float | None) -> VideoFile:
    video = cv2.VideoCapture(str(path))
    try:
        if not video.isOpened() or not video.grab():
            raise ValueError(
                f"{path} cannot be read as a video; convert it to MP4 (H.264) or extract its "
                "frames into a folder of images"
            )
        own_rate, frames = video.get(cv2.CAP_PROP_FPS), video.get(cv2.CAP_PROP_FRAME_COUNT)
    finally:
        video.release()
    if rate_hz is None and not 0 < own_rate < float("inf"):
        raise ValueError(f"{path} does not tell its frame rate ({own_rate}); give rate_hz")
    known = 0 < frames < float("inf")
    return VideoFile(
        path,
        own_rate if rate_hz is None else rate_hz,
        len(_chosen(selection, int(frames), path)) if known else None,
        selection,
        "the video's frame rate" if rate_hz is None else f"{rate_hz:g} Hz as given",
    )


def _chosen(selection: Selection, available: int, path: Path) -> range:
    chosen = selection.indices(available)
    if not chosen:
        raise ValueError(
            f"start is {selection.start} but {path} has {available} frames; choose a smaller one"
        )
    return chosen


def _decoded(video: cv2.VideoCapture, path: Path, index: int) -> np.ndarray:
    decoded, image = video.retrieve()
    if not decoded:
        raise ValueError(f"frame {index} of {path} cannot be decoded; use count to stop before it")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort key: digits count as numbers, so that 2.png comes before 10.png."""
    pieces = re.findall(r"\d+|\D+", path.name.lower())
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in pieces]
