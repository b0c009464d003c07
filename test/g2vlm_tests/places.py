# SPDX-License-Identifier: Apache-2.0
"""Drives through simulated homes with true geometry in the network's place, to be known again."""

from __future__ import annotations

from functools import cache

import numpy as np

from g2vlm_ros.datasets.sequence import SequenceFrame
from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.sim.renderer import render
from g2vlm_ros.demo.sim.scenes import make_scene
from g2vlm_ros.demo.sim.splits import home_seed
from g2vlm_ros.evaluation.stand_in import StandInErrors, StandInPerception
from g2vlm_ros.pipeline import MappingPipeline
from g2vlm_ros.records import Frame
from g2vlm_ros.settings import Settings

WIDTH_PX, HEIGHT_PX = 168, 126
STEP = 4
"""Samples of the walk, 0.1 s each, between two views."""
SPOILT = StandInErrors(turn=0.5, shift=0.01, depth=0.02)


@cache
def home_frames(home: int, count: int = 16) -> tuple[SequenceFrame, ...]:
    """The first views of a walk through a validation home."""
    scene = make_scene(home_seed("validation", home), legs=3)
    steps = STEP * np.arange(count)
    camera, poses = lens(WIDTH_PX, HEIGHT_PX), scene.walk.world_from_camera[steps]
    index = np.zeros(count, np.int64)
    views = render([scene.home], index, poses, scene.walk.time_s[steps], camera)
    images, depths = np.array(views.images), np.asarray(views.depth_m)
    return tuple(
        SequenceFrame(
            10**9 + i * STEP * 10**8, "camera", images[i].copy, poses[i], camera, depths[i].copy
        )
        for i in range(count)
    )


def perception_of(*homes: int, errors: StandInErrors = SPOILT) -> StandInPerception:
    """True geometry, a little spoilt, of the views of these homes."""
    frames = [frame for home in homes for frame in home_frames(home)]
    return StandInPerception(frames, errors, WIDTH_PX)


def pipeline(perception: StandInPerception, **values) -> MappingPipeline:
    """A pipeline for `pass_by`; settings as ``map__mode``."""
    flat = {"window.views": 3, "window.overlap": 1, "model.image_width_px": WIDTH_PX}
    flat |= {"map.loop_closure": False}
    flat |= {name.replace("__", "."): value for name, value in values.items()}
    return MappingPipeline(perception, Settings.from_flat(flat))


def pass_by(live: MappingPipeline, frames, later_s: float = 0.0, **more) -> list:
    """Offer frames one by one, with depth for the scale; the updates."""
    updates = []
    for frame in frames:
        stamp_ns = frame.stamp_ns + round(later_s * 1e9)
        live.offer(
            Frame(
                stamp_ns, "camera", "optical", frame.image, frame.intrinsics,
                depth=frame.depth_m, **more,
            )
        )  # fmt: skip
        while (update := live.step()) is not None:
            updates.append(update)
    return updates


def pose_error(update, frames, world_from_map: np.ndarray, later_s: float = 0.0):
    """(metres, radians) by which the newest view of a window is off."""
    newest = update.window.newest
    stamp_ns = update.window.frames[newest].stamp_ns - round(later_s * 1e9)
    true = next(f for f in frames if f.stamp_ns == stamp_ns).world_from_camera
    pose = world_from_map @ update.map_from_camera[newest]
    cosine = (np.trace(pose[:3, :3].T @ true[:3, :3]) - 1) / 2
    return float(np.linalg.norm(pose[:3, 3] - true[:3, 3])), float(np.arccos(min(cosine, 1.0)))


def world_from_map(updates, frames) -> np.ndarray:
    """(4, 4), by the first view of the first window."""
    first = updates[0].window.frames[0].stamp_ns
    true = next(f for f in frames if f.stamp_ns == first).world_from_camera
    return true @ np.linalg.inv(updates[0].map_from_camera[0])
