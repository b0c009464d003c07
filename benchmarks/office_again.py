# SPDX-License-Identifier: Apache-2.0
"""Real pixels: the first half of a recorded office is the map, and all of it passes by again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from benchmarks.saved_map import MAX_WINDOWS, Find, SavedMap, find, pass_by, scores
from benchmarks.sequence import NAME, office
from g2vlm_ros.datasets.open_sequence import open_sequence
from g2vlm_ros.datasets.sequence import SequenceFrame
from g2vlm_ros.evaluation.stand_in import StandInErrors, StandInPerception
from g2vlm_ros.geometry.camera import project, unproject
from g2vlm_ros.pipeline import MappingPipeline
from g2vlm_ros.records import Frame, Intrinsics
from g2vlm_ros.settings import Settings

MIN_SHARED, SAME_SURFACE = 0.3, 0.1
THUMB_PX = (54, 36)
ERRORS = "turn=1,shift=0.015,depth=0.04"


def office_passes(errors: str = ERRORS, every: int = 4) -> dict[str, Any]:
    """The office: its first half is the map, all of it passes by again."""
    folder = office()
    if folder is None:
        return {"skipped": f"no {NAME} in G2VLM_SEQUENCES or ../shared/data"}
    frames = open_sequence(folder).frames[::every]
    half = frames[: len(frames) // 2]
    surfaces = [TrueSurface.of(frame) for frame in half]
    settings = Settings.from_flat({"cameras": ["camera"]})
    true = {frame.stamp_ns: frame.world_from_camera for frame in frames}
    live = MappingPipeline(StandInPerception(half, StandInErrors.parse(errors)), settings)
    for _ in pass_by(live, map(_as_frame, half)):
        pass
    saved = SavedMap.of(live, {frame.stamp_ns: true[frame.stamp_ns] for frame in half})
    again = replace(StandInErrors.parse(errors), seed=1)
    eyes = StandInPerception(frames, again)
    rows: dict[str, list[Find]] = {"overlapping": [], "elsewhere": []}
    need = MAX_WINDOWS * settings.window.views
    for start in range(0, len(frames) - settings.window.views):
        live = MappingPipeline(eyes, settings)
        part = frames[start : start + need]
        newest = part[settings.window.views - 1]
        kind = "overlapping" if shown_share(newest, surfaces) >= MIN_SHARED else "elsewhere"
        rows[kind].append(find(live, saved, map(_as_frame, part), true.__getitem__))
    return {
        "errors": errors,
        "keyframes": len(saved.keyframes),
        **{kind: scores(finds) for kind, finds in rows.items() if finds},
    }


def _as_frame(frame: SequenceFrame) -> Frame:
    return Frame(
        frame.stamp_ns, frame.camera, frame.camera, frame.image, frame.intrinsics,
        depth=frame.depth_m,
    )  # fmt: skip


@dataclass(frozen=True)
class TrueSurface:
    """What a frame shows, small: depth in metres, 0 where unknown; its camera and its pose."""

    depth_m: np.ndarray
    camera: Intrinsics
    world_from_camera: np.ndarray

    @classmethod
    def of(cls, frame: SequenceFrame) -> TrueSurface:
        """At THUMB_PX."""
        depth_m = cv2.resize(frame.depth_m(), THUMB_PX, interpolation=cv2.INTER_NEAREST_EXACT)
        return cls(depth_m, frame.intrinsics.resized(*THUMB_PX), frame.world_from_camera)

    def points(self) -> np.ndarray:
        """float64 (n, 3) in the world."""
        rows, columns = np.nonzero(self.depth_m)
        pixels, pose = np.stack([columns, rows], -1), self.world_from_camera
        local = unproject(pixels, self.depth_m[rows, columns], self.camera)
        return local @ pose[:3, :3].T + pose[:3, 3]

    def shown(self, points: np.ndarray) -> float:
        """0..1: the share of points (n, 3) that lie on this surface."""
        pose = self.world_from_camera
        local = (points - pose[:3, 3]) @ pose[:3, :3]
        column, row = np.nan_to_num(project(local, self.camera), nan=-1.0).round().astype(int).T
        height, width = self.depth_m.shape
        inside = (column >= 0) & (row >= 0) & (column < width) & (row < height)
        depth_m = self.depth_m[np.where(inside, row, 0), np.where(inside, column, 0)]
        return float((inside & (np.abs(depth_m - local[:, 2]) < SAME_SURFACE * depth_m)).mean())


def shown_share(frame: SequenceFrame, others: Sequence[TrueSurface]) -> float:
    """0..1: of the surfaces that a frame shows, the share that the best other one shows too."""
    points = TrueSurface.of(frame).points()
    return max(other.shown(points) for other in others)
