# SPDX-License-Identifier: Apache-2.0
"""Views of a robot's walk through a simulated home at the camera's rate, with what is true."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from g2vlm_ros.datasets.sequence import SequenceFrame
from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.sim.renderer import render
from g2vlm_ros.demo.sim.robot_path import RATE_HZ
from g2vlm_ros.demo.sim.scenes import make_scene
from g2vlm_ros.demo.sim.splits import home_seed
from g2vlm_ros.evaluation.stand_in import StandInErrors, StandInPerception

FIRST_NS = 1_000_000_000_000
STEP_NS = round(1e9 / RATE_HZ)


@cache
def walk_views(count: int = 16, first: int = 32, width: int = 224) -> tuple[SequenceFrame, ...]:
    """Successive frames of a validation home."""
    scene = make_scene(home_seed("validation", 0), legs=3)
    camera = lens(width, width * 3 // 4)
    steps = np.arange(first, first + count)
    poses = scene.walk.world_from_camera[steps]
    views = render([scene.home], np.zeros(count, int), poses, scene.walk.time_s[steps], camera)
    images, depths_m = np.array(views.images), np.asarray(views.depth_m)
    return tuple(
        SequenceFrame(
            FIRST_NS + i * STEP_NS, "camera", lambda i=i: images[i], poses[i], camera,
            lambda i=i: depths_m[i],
        )
        for i in range(count)
    )  # fmt: skip


class NodePerception(StandInPerception):
    """True geometry in the network's place, as a node asks it."""

    chosen_because = "it is the truth"
    warnings = ()
    speaks = False

    def __init__(self, frames: tuple[SequenceFrame, ...], errors: StandInErrors):
        super().__init__(frames, errors)


def checkpoint() -> str:
    """Of random weights, whose digest a node shows."""
    return str(Path(__file__).parents[1] / "data" / "golden" / "A")


def _mount(x_m: float, yaw_rad: float) -> np.ndarray:
    """rig_from_camera of an upright camera: x_m to the right, turned to the right."""
    c, s = np.cos(yaw_rad), np.sin(yaw_rad)
    pose = np.eye(4)
    pose[:3, :3] = [[c, 0, s], [0, 1, 0], [-s, 0, c]]
    pose[0, 3] = x_m
    return pose


RIG = {"left": _mount(-0.25, -0.3), "right": _mount(0.25, 0.3)}
"""Two cameras half a metre apart that squint outwards, 34 degrees between them."""


@cache
def rig_views(count: int = 11, first: int = 32, width: int = 168) -> tuple[SequenceFrame, ...]:
    """Frames of both cameras of RIG, instant by instant, left before right."""
    scene = make_scene(home_seed("validation", 0), legs=3)
    camera = lens(width, width * 3 // 4)
    frames = []
    for i, step in enumerate(range(first, first + 2 * count, 2)):
        for name, mount in RIG.items():
            pose = scene.walk.world_from_camera[step] @ mount
            view = render([scene.home], np.zeros(1, int), pose[None],
                          scene.walk.time_s[step : step + 1], camera)  # fmt: skip
            image, depth_m = np.array(view.images)[0], np.asarray(view.depth_m)[0]
            frames.append(
                SequenceFrame(
                    FIRST_NS + 2 * i * STEP_NS, name, lambda image=image: image, pose, camera,
                    lambda depth_m=depth_m: depth_m,
                )
            )  # fmt: skip
    return tuple(frames)
