# SPDX-License-Identifier: Apache-2.0
"""Frames without ROS: a folder of images, a single image or a video file.

A source yields (image uint8 (h, w, 3) RGB, stamp_ns) as often as it is iterated, says how many
frames it has where that is known, what it left out and why, and where its stamps come from.
"""

from __future__ import annotations

import logging
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

_SECONDS_IN_NAME = re.compile(r"(?:(?P<id>.*)_)?(?P<time>\d+\.\d+)")
_NANOSECONDS_IN_NAME = re.compile(r"(?:(?P<id>.*)_)?(?P<time>\d{18,19})")
"""As EuRoC and other ASL data sets name images: 1.4e18 is a moment of our days."""
MAX_FRAME_RATE_HZ = 240.0
"""A container that says more (browsers and screen recorders write 1000) tells a unit of time, not
a rate, and its count of frames is the length in that unit."""

MAX_STAMP_NS = 2**31 * 10**9
"""Stamps of ROS end there; a name of more digits counts something else."""

_log = logging.getLogger(__name__)


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
            try:
                image = load_image(path, upright=True)
            except (OSError, ValueError) as error:
                # As a live camera's broken frame: left out, and said.
                _log.warning("%s is left out: %s", path.name, error)
                continue
            yield image, stamp_ns


@dataclass(frozen=True)
class VideoFile:
    """A video; stamps are the times of its frames, or count at a rate that was given.

    Recordings of browsers and screens come with gaps, and with a nominal rate that means nothing.
    """

    path: Path
    nominal_rate_hz: float
    rate_hz: float | None
    """As given; None takes the frames' own times."""
    length: int | None
    """From the container's frame count, which a damaged file may not keep."""
    selection: Selection
    stamps: str
    skipped: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        video = cv2.VideoCapture(str(self.path))
        try:
            index = yielded = 0
            stamp_ns = -1
            while yielded != self.selection.count and video.grab():
                since_start = index - self.selection.start
                stamp_ns = self._stamp_ns(video, index, stamp_ns)
                if since_start >= 0 and since_start % self.selection.stride == 0:
                    image = _decoded(video, self.path, index)
                    if image is not None:
                        yield image, stamp_ns
                        yielded += 1
                index += 1
        finally:
            video.release()

    def _stamp_ns(self, video: cv2.VideoCapture, index: int, before_ns: int) -> int:
        """Of the frame just grabbed; where its container tells no later time, one period on."""
        if self.rate_hz is not None:
            return round(index * 1e9 / self.rate_hz)
        own_ns = round(video.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
        if index and own_ns <= before_ns:
            return before_ns + round(1e9 / self.nominal_rate_hz)
        return max(0, own_ns)


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
        origin = "times in the file names"
    else:
        rate = DEFAULT_RATE_HZ if rate_hz is None else rate_hz
        stamps_ns = [round(index * 1e9 / rate) for index in range(len(paths))]
        origin = f"{rate:g} Hz " + ("by default" if rate_hz is None else "as given")
    indices = _chosen(selection, len(paths), path)
    return ImageFiles(
        tuple(paths[i] for i in indices), tuple(stamps_ns[i] for i in indices), skipped, origin
    )


def _stamps_of_names(paths: list[Path]) -> list[tuple[int, Path]]:
    """(stamp_ns, path) in order of time if every name tells its own time, otherwise nothing."""
    for pattern, scale in ((_SECONDS_IN_NAME, 9), (_NANOSECONDS_IN_NAME, 0)):
        matches = [pattern.fullmatch(path.stem) for path in paths]
        if all(matches) and len({match["id"] for match in matches}) == 1:
            stamps = [int(Decimal(match["time"]).scaleb(scale)) for match in matches]
            break
    else:
        return []
    ordered = sorted(zip(stamps, paths, strict=True))
    possible = ordered[-1][0] < MAX_STAMP_NS
    distinct = possible and all(earlier[0] < later[0] for earlier, later in pairwise(ordered))
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
    plausible = 0 < frames < float("inf") and own_rate <= MAX_FRAME_RATE_HZ
    return VideoFile(
        path,
        own_rate,
        rate_hz,
        len(_chosen(selection, int(frames), path)) if plausible else None,
        selection,
        "the video's own times" if rate_hz is None else f"{rate_hz:g} Hz as given",
    )


def _chosen(selection: Selection, available: int, path: Path) -> range:
    indices = selection.indices(available)
    if not indices:
        raise ValueError(
            f"start is {selection.start} but {path} has {available} frames; choose a smaller one"
        )
    return indices


def _decoded(video: cv2.VideoCapture, path: Path, index: int) -> np.ndarray | None:
    """RGB of the frame just grabbed; None, and said, where it cannot be decoded."""
    decoded, image = video.retrieve()
    if not decoded:
        _log.warning("frame %d of %s is left out: it cannot be decoded", index, path.name)
        return None
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort key: digits count as numbers, so that 2.png comes before 10.png."""
    pieces = re.findall(r"\d+|\D+", path.name.lower())
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in pieces]
