# SPDX-License-Identifier: Apache-2.0
"""Views of one instant, held together by the fixed transforms between their cameras.

In each instant the poses become those of one rigid rig: its orientation is the mean of what the
cameras say, its place likewise, and one unit for the whole window is the least-squares ratio of
the recovered and the known distances. Errors that single views have average out, and what is
between the cameras is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from g2vlm_ros.records import Frame, Reconstruction

MAX_SKEW_NS = 30_000_000
"""Views further apart in time are no instant: a robot that turns by 30 degrees a second has turned
by one meanwhile."""
MAX_TURN_OFF_RAD = np.deg2rad(15.0)
"""Median turn by which the cameras of a window may contradict their transforms: more is a wrong
transform, or a window that shows nothing."""
VIEW_NOISE = 0.01
"""Error of a view's place, as a share of the median depth..."""
MIN_REACH = 3.0
"""...of which the distances between the cameras must be so many times the deviation to tell the
window's unit; else only turns are held."""


@dataclass(frozen=True)
class RigFit:
    """A window as the rig sees it."""

    window_from_camera: np.ndarray
    """float64 (N, 4, 4)."""
    turn_off_rad: float
    """Median turn of a view that the rig changed."""
    used: bool
    """False where the transforms and the views contradict each other."""


def rig_fit(result: Reconstruction, frames: Sequence[Frame]) -> RigFit | None:
    """The poses of a window after its rig; None where no instant has two cameras of it."""
    instants = _instants(frames)
    if not instants:
        return None
    poses = result.window_from_camera.astype(np.float64)
    mounts = {i: frames[i].rig_from_camera for views in instants for i in views}
    turns = [_mean_turn(poses[views], [mounts[i] for i in views]) for views in instants]
    off = [
        _angle_rad(poses[i, :3, :3].T @ turn @ mounts[i][:3, :3])
        for views, turn in zip(instants, turns, strict=True)
        for i in views
    ]
    turn_off_rad = float(np.median(off))
    if turn_off_rad > MAX_TURN_OFF_RAD:
        return RigFit(poses, turn_off_rad, used=False)
    depth_u = result.median_depth_u
    unit = _units_per_metre(poses, instants, turns, mounts, VIEW_NOISE * depth_u)
    for views, turn in zip(instants, turns, strict=True):
        arms = np.stack([turn @ mounts[i][:3, 3] for i in views])
        place = poses[views, :3, 3].mean(0)
        for i, arm in zip(views, arms, strict=True):
            poses[i, :3, :3] = turn @ mounts[i][:3, :3]
            if unit is not None:
                poses[i, :3, 3] = place + unit * (arm - arms.mean(0))
    return RigFit(poses, turn_off_rad, used=True)


def with_rig(result: Reconstruction, fit: RigFit | None) -> Reconstruction:
    """The window with the poses of a fit; the same object where there is none to use."""
    if fit is None or not fit.used:
        return result
    poses = fit.window_from_camera.astype(np.float32)
    return replace(result, geometry=replace(result.geometry, window_from_camera=poses))


def rig_distance_m(one: Frame, other: Frame) -> float | None:
    """Known distance between the optical centres of two cameras of an instant, or None."""
    if one.rig_from_camera is None or other.rig_from_camera is None:
        return None
    return float(np.linalg.norm(one.rig_from_camera[:3, 3] - other.rig_from_camera[:3, 3])) or None


def _instants(frames: Sequence[Frame]) -> list[list[int]]:
    """Views of one moment, two or more of different cameras whose place on the rig is known."""
    mounted = [i for i, frame in enumerate(frames) if frame.rig_from_camera is not None]
    groups: list[list[int]] = []
    for i in sorted(mounted, key=lambda i: frames[i].stamp_ns):
        group = groups[-1] if groups else []
        near = group and frames[i].stamp_ns - frames[group[0]].stamp_ns <= MAX_SKEW_NS
        if near and frames[i].camera not in {frames[j].camera for j in group}:
            group.append(i)
        else:
            groups.append([i])
    return [group for group in groups if len(group) > 1]


def _mean_turn(poses: np.ndarray, mounts: Sequence[np.ndarray]) -> np.ndarray:
    """window_from_rig (3, 3): the rotation nearest to what all views say of it (chordal mean)."""
    total = sum(pose[:3, :3] @ mount[:3, :3].T for pose, mount in zip(poses, mounts, strict=True))
    u, _, vt = np.linalg.svd(total)
    return u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt


def _units_per_metre(
    poses: np.ndarray,
    instants: Sequence[Sequence[int]],
    turns: Sequence[np.ndarray],
    mounts: dict[int, np.ndarray],
    noise_u: float,
) -> float | None:
    """Of the whole window; None where the cameras are too near to each other to tell."""
    along = square = 0.0
    for views, turn in zip(instants, turns, strict=True):
        arms = np.stack([turn @ mounts[i][:3, 3] for i in views])
        places = poses[list(views), :3, 3]
        arms, places = arms - arms.mean(0), places - places.mean(0)
        along += float((arms * places).sum())
        square += float((arms**2).sum())
    if square <= 0:
        return None
    unit = along / square
    return unit if unit * np.sqrt(square) > MIN_REACH * noise_u else None


def _angle_rad(rotation: np.ndarray) -> float:
    return float(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1.0, 1.0)))
