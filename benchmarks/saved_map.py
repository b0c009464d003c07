# SPDX-License-Identifier: Apache-2.0
"""A map in its file, and how well a robot that starts LOST in it finds itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from g2vlm_ros.demo.sim import drive_metrics
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.mapping.keyframe_files import KeyframeOrigin, from_bytes, to_bytes
from g2vlm_ros.mapping.keyframes import Keyframe, pose_gap
from g2vlm_ros.mapping.window_pose import LocalisationState
from g2vlm_ros.pipeline import MappingPipeline, PerceivedWindow
from g2vlm_ros.records import Frame

NEAR_M, NEAR_RAD = 0.25, np.deg2rad(5.0)
MAX_WINDOWS = 3
"""As many as a place may take to be confirmed (`localisation.CONFIRM_WINDOWS`)."""
NEIGHBOURS = 3
ORIGIN = KeyframeOrigin("benchmark", 0)
MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class SavedMap:
    """Keyframes out of a file, and where their map lies in the world."""

    keyframes: list[Keyframe]
    file_mib: float
    true: dict[int, np.ndarray]
    """world_from_camera (4, 4) by the stamp of a keyframe."""
    world_from_map: Sim3

    @classmethod
    def of(cls, live: MappingPipeline, true: dict[int, np.ndarray]) -> SavedMap:
        """The map of a pipeline; true: world_from_camera (4, 4) by stamp."""
        content, _ = to_bytes(live.map_views(), ORIGIN, MAX_BYTES)
        keyframes = from_bytes(content, ORIGIN)
        poses = {k.frame.stamp_ns: k.window_from_camera for k in keyframes}
        track = drive_metrics.track(poses, true)
        if track is None:
            raise SystemExit(f"a map of {len(keyframes)} keyframes cannot be judged")
        return cls(keyframes, len(content) / 2**20, true, track.home_from_map)

    def errors(self, update: PerceivedWindow, true: np.ndarray) -> np.ndarray:
        """(2, 3): by which a window's newest view is off from its true pose (4, 4), in the axes
        of the map: metres, and a rotation vector in radians.

        Beside that of the NEIGHBOURS nearest keyframes which it fits best: where a map is bent
        between two of them there is no one truth.
        """
        pose = update.map_from_camera[update.window.newest]
        gaps = [pose_gap(k.window_from_camera, pose, NEAR_M, NEAR_RAD) for k in self.keyframes]
        errors = []
        for index in np.argsort(gaps)[:NEIGHBOURS]:
            near = self.keyframes[index]
            there = self.true[near.frame.stamp_ns]
            expected = near.window_from_camera @ np.linalg.inv(there) @ true
            turn, _ = cv2.Rodrigues(pose[:3, :3] @ expected[:3, :3].T)
            errors.append(np.stack([pose[:3, 3] - expected[:3, 3], turn[:, 0]]))
        return min(errors, key=lambda e: max(np.linalg.norm(e, axis=1) / (NEAR_M, NEAR_RAD)))

    def overall(self, update: PerceivedWindow, true: np.ndarray) -> tuple[float, float]:
        """Metres and radians by which it is off after one similarity between map and world."""
        pose = self.world_from_map.apply_pose(update.map_from_camera[update.window.newest])
        turn, _ = cv2.Rodrigues(pose[:3, :3] @ true[:3, :3].T)
        return float(np.linalg.norm(pose[:3, 3] - true[:3, 3])), float(np.linalg.norm(turn))


@dataclass(frozen=True)
class Find:
    """How the search from one place ended."""

    windows: int
    """Until it was LOCALISED; 0 where it was not."""
    metres: float
    radians: float
    overall: tuple[float, float]
    """Metres and radians after one similarity between map and world."""
    nees: tuple[float, float]
    searches: tuple[str, ...]
    """Outcome by window."""
    search_s: tuple[float, ...]

    @property
    def right(self) -> bool:
        """Whether the place is the true one."""
        return self.windows > 0 and self.metres < NEAR_M and self.radians < NEAR_RAD


def pass_by(live: MappingPipeline, frames: Iterable[Frame]) -> Iterable[PerceivedWindow]:
    """The windows of frames that are offered one by one."""
    for frame in frames:
        live.offer(frame)
        while (update := live.step()) is not None:
            yield update


def find(
    live: MappingPipeline, saved: SavedMap, frames: Iterable[Frame], pose_of: Callable
) -> Find:
    """Start LOST in a saved map, and drive on until it is found, for MAX_WINDOWS at most."""
    live.load(saved.keyframes)
    searches, search_s = [], []
    for update in pass_by(live, frames):
        searches.append(str(update.localisation.search))
        search_s.append(update.stage_times_s["localisation"])
        if update.localisation.state is LocalisationState.LOCALISED:
            newest = update.window.newest
            true = pose_of(update.window.frames[newest].stamp_ns)
            off = saved.errors(update, true)
            return Find(
                len(searches),
                *np.linalg.norm(off, axis=1),
                saved.overall(update, true),
                surprise(off, update.placement.covariance[newest]),
                tuple(searches),
                tuple(search_s),
            )
        if len(searches) == MAX_WINDOWS:
            break
    nothing = float("nan")
    unknown = nothing, nothing
    return Find(0, nothing, nothing, unknown, unknown, tuple(searches), tuple(search_s))


def surprise(off: np.ndarray, covariance: np.ndarray) -> tuple[float, float]:
    """Squared errors (2, 3) over a covariance (6, 6), per axis: position and rotation."""
    parts = covariance[:3, :3], covariance[3:, 3:]
    values = [float(e @ np.linalg.solve(c, e)) / 3 for e, c in zip(off, parts, strict=True)]
    return values[0], values[1]


def scores(finds: Sequence[Find]) -> dict[str, Any]:
    """Of searches from many places."""
    right = [f for f in finds if f.right]
    times_ms = 1e3 * np.array([t for f in finds for t in f.search_s])
    nees = np.array([f.nees for f in right]).reshape(-1, 2)
    return {
        "places": len(finds),
        "right": len(right),
        "at_once": sum(f.windows == 1 for f in right),
        "wrong": sum(f.windows > 0 and not f.right for f in finds),
        "ended": dict(Counter(f.searches[-1] if f.searches else "no_window" for f in finds)),
        "median_m": round(float(np.median([f.metres for f in right])), 3) if right else None,
        "median_deg": round(float(np.degrees(np.median([f.radians for f in right]))), 2)
        if right
        else None,
        "overall_m": round(float(np.median([f.overall[0] for f in right])), 3) if right else None,
        "overall_right": sum(
            bool(f.overall[0] < NEAR_M and f.overall[1] < NEAR_RAD) for f in finds
        ),
        "nees": np.round(nees.mean(0), 2).tolist() if right else None,
        "search_ms": dict(zip(("p50", "p95", "max"), np.round(
            np.percentile(times_ms, [50, 95, 100]), 0).tolist(), strict=True)),
    }  # fmt: skip
