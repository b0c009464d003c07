# SPDX-License-Identifier: Apache-2.0
"""A recorded sequence with true camera poses: the records that every reader returns.

A reader is a module with `FORMAT`, `recognises(path)` and `read(path, options)`; `open_sequence`
asks them in turn. Poses are camera-to-world, optical axes (x right, y down, z forward), metres
unless `metric` is False. Pictures and depth are decoded when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from g2vlm_ros.records import Intrinsics

MAX_TRUTH_GAP_NS = 200_000_000
"""True poses further apart are not interpolated: a hand turns by tens of degrees meanwhile."""
MAX_ROTATION_ERROR = 1e-3
"""Of a pose matrix times its transpose: more is no rotation, but a file read the wrong way."""
GAP_FACTOR = 5.0
"""Times the usual distance of two frames from which on a pause is mentioned."""


MAX_STAMP_NS = 2**63 - 1
"""As stamps are kept in arrays of int64."""


class SequenceError(ValueError):
    """A sequence that cannot be evaluated: one sentence with file, fault and remedy."""


@dataclass(frozen=True)
class SequenceFrame:
    """One picture of one camera, with what is known of that moment."""

    stamp_ns: int
    camera: str
    image: Callable[[], np.ndarray]
    """Returns uint8 (h, w, 3) RGB without lens distortion; ValueError where it is damaged."""
    world_from_camera: np.ndarray
    """float64 (4, 4), the true pose."""
    intrinsics: Intrinsics
    """Of the picture at its full size."""
    depth_m: Callable[[], np.ndarray] | None = None
    """Returns float32 (h', w') metres along z, 0 where unknown, registered to the picture but
    maybe of another size; None where the sequence has no depth."""
    up: np.ndarray | None = None
    """Up by an accelerometer, unit float64 (3,) in optical axes, or None."""
    rig_from_camera: np.ndarray | None = None
    """Fixed pose of the camera on what carries it, float64 (4, 4) metres; None where the format
    does not know it."""
    ignored: Callable[[], np.ndarray] | None = None
    """Returns bool (h, w): pixels of what moves; None where the sequence does not say."""


@dataclass(frozen=True)
class PosedSequence:
    """All frames of a sequence, oldest first."""

    path: Path
    format: str
    frames: tuple[SequenceFrame, ...]
    metric: bool = True
    """Whether the true poses are in metres; those of structure from motion are not."""
    notes: tuple[str, ...] = ()
    """What was left out, assumed or odd, one sentence each."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras, in the order of their first frames."""
        return tuple(dict.fromkeys(frame.camera for frame in self.frames))


@dataclass(frozen=True)
class ReaderOptions:
    """What a user may say about a recording that its files leave open."""

    rate_hz: float = 5.0
    """Frames per second of formats without stamps."""
    image_topic: str = ""
    depth_topic: str = ""
    truth_topic: str = ""
    """Topics of a recording; empty for the only one there is."""


class SequenceReader(Protocol):
    """The module of one format."""

    FORMAT: str
    """Its name, for people."""

    def recognises(self, path: Path) -> bool:
        """Whether the files at `path` look like this format."""

    def read(self, path: Path, options: ReaderOptions) -> PosedSequence:
        """The sequence; SequenceError says what is wrong with it."""


@dataclass(frozen=True)
class TrueTrajectory:
    """True poses over time, of a camera or of a body that carries it."""

    stamps_ns: np.ndarray
    """int64 (n,), rising."""
    poses: np.ndarray
    """float64 (n, 4, 4); NaN where what tracked was lost."""
    source: str
    """Which file or topic, for messages."""

    def __post_init__(self) -> None:
        if not len(self.stamps_ns):
            raise SequenceError(
                f"{self.source} holds no true poses; an evaluation compares against them"
            )
        check_rising(self.stamps_ns, self.source)

    def at(self, stamp_ns: int) -> np.ndarray | None:
        """The pose (4, 4) at a moment, between its neighbours; None where they are too far apart
        (MAX_TRUTH_GAP_NS) or the moment lies outside; NaN where one of them is."""
        after = int(np.searchsorted(self.stamps_ns, stamp_ns))
        if after < len(self.stamps_ns) and self.stamps_ns[after] == stamp_ns:
            return self.poses[after]
        if after == 0 or after == len(self.stamps_ns):
            return None
        start_ns, end_ns = (int(ns) for ns in self.stamps_ns[after - 1 : after + 1])
        if end_ns - start_ns > MAX_TRUTH_GAP_NS:
            return None
        if not np.isfinite(self.poses[after - 1 : after + 1]).all():
            return np.full((4, 4), np.nan)
        share = (stamp_ns - start_ns) / (end_ns - start_ns)
        return interpolated_pose(self.poses[after - 1], self.poses[after], share)


def interpolated_pose(start: np.ndarray, end: np.ndarray, share: float) -> np.ndarray:
    """The pose (4, 4) at a share 0..1 of the way: straight, and turning about one axis."""
    pose = np.eye(4)
    turn, _ = cv2.Rodrigues(start[:3, :3].T @ end[:3, :3])
    pose[:3, :3] = start[:3, :3] @ cv2.Rodrigues(share * turn)[0]
    pose[:3, 3] = (1 - share) * start[:3, 3] + share * end[:3, 3]
    return pose


def bounded_stamp(stamp_ns: int, source: str) -> int:
    """The stamp; SequenceError where 64 bits do not hold it."""
    if abs(stamp_ns) > MAX_STAMP_NS:
        raise SequenceError(f"{source}: a stamp of {stamp_ns:.3g} ns is beyond the year 2262")
    return stamp_ns


def check_rising(stamps_ns: np.ndarray | Sequence[int], source: str) -> None:
    """SequenceError where stamps do not rise."""
    steps = np.diff(np.asarray(stamps_ns, dtype=np.int64))
    if len(steps) and steps.min() <= 0:
        entry = int(np.argmax(steps <= 0)) + 2
        raise SequenceError(
            f"{source}: stamp {stamps_ns[entry - 1]} of entry {entry} is not after the one before "
            "it; sort the entries by time"
        )


def finished_sequence(
    path: Path,
    format: str,
    frames: Sequence[SequenceFrame],
    notes: Sequence[str] = (),
    metric: bool = True,
) -> PosedSequence:
    """The record, once the first picture of each camera fits its calibration; pauses are noted.

    Frames whose true pose is not finite, as where a tracker was lost, are left out and counted.
    SequenceError where fewer than two frames are left, a true pose is not rigid, or the first
    picture's size is not that of its calibration; later pictures are compared when they are read.
    """
    finite = [frame for frame in frames if np.isfinite(frame.world_from_camera).all()]
    notes = [*notes, *not_finite(len(frames) - len(finite), str(path))]
    frames = finite
    if len(frames) < 2:
        remarks = "; ".join(notes)
        raise SequenceError(
            f"{path} has {len(frames)} frames with a true pose; an evaluation needs at least 2"
            + (f" ({remarks})" if remarks else "")
        )
    _check_rigid(frames, path)
    frames = sorted(frames, key=lambda frame: frame.stamp_ns)
    for camera in dict.fromkeys(frame.camera for frame in frames):
        first = next(frame for frame in frames if frame.camera == camera)
        try:
            height, width = first.image().shape[:2]
        except (OSError, ValueError) as error:
            raise SequenceError(f"{path}: the first picture cannot be read: {error}") from error
        intrinsics = first.intrinsics
        calibrated = (intrinsics.width_px, intrinsics.height_px)
        if (width, height) != calibrated:
            raise SequenceError(
                f"{path}: the calibration of '{camera}' is for {calibrated[0]}x{calibrated[1]} "
                f"pictures, but they are {width}x{height}; give the one of these pictures"
            )
    checked = (replace(frame, image=partial(_checked_picture, path, frame)) for frame in frames)
    return PosedSequence(path, format, tuple(checked), metric, (*notes, *_pauses(frames)))


def _checked_picture(path: Path, frame: SequenceFrame) -> np.ndarray:
    """The frame's picture; SequenceError where its size is not that of the calibration."""
    image, camera = frame.image(), frame.intrinsics
    height, width = image.shape[:2]
    if (width, height) != (camera.width_px, camera.height_px):
        raise SequenceError(
            f"{path}: the picture of '{frame.camera}' at {frame.stamp_ns} ns is {width}x{height}, "
            f"the others are {camera.width_px}x{camera.height_px}; leave it out"
        )
    return image


def _check_rigid(frames: Sequence[SequenceFrame], path: Path) -> None:
    """SequenceError where a true pose is no rotation with a place."""
    poses = np.stack([frame.world_from_camera for frame in frames])
    rotations = poses[:, :3, :3]
    off = np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
    off = np.maximum(off, np.abs(poses[:, 3] - [0, 0, 0, 1]).max(1))
    wrong = (off > MAX_ROTATION_ERROR) | (np.linalg.det(rotations) < 0)
    if wrong.any():
        raise SequenceError(
            f"{path}: the true pose of frame {int(np.argmax(wrong))} is no rotation with a place; "
            "expected world_from_camera, 4x4 row by row"
        )


def _pauses(frames: Sequence[SequenceFrame]) -> list[str]:
    """A sentence about the longest pause between frames, if there is one."""
    stamps_ns = np.unique([frame.stamp_ns for frame in frames])
    steps_s = np.diff(stamps_ns) * 1e-9
    long = steps_s > GAP_FACTOR * np.median(steps_s)
    if not long.any():
        return []
    at_s = (stamps_ns[int(np.argmax(steps_s))] - stamps_ns[0]) * 1e-9
    return [
        f"{int(long.sum())} pauses between frames, the longest {steps_s.max():.1f} s after "
        f"{at_s:.1f} s: a map may end there"
    ]


def not_finite(count: int, source: str) -> list[str]:
    """A sentence about true poses that are no numbers, if there are any."""
    if not count:
        return []
    return [f"{count} true poses of {source} are not finite and are left out"]


def without_truth(missing: int, source: str) -> list[str]:
    """A sentence about frames that have no true pose, if there are any."""
    if not missing:
        return []
    return [f"{missing} frames are left out: {source} has no pose within their time"]
