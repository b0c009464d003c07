# SPDX-License-Identifier: Apache-2.0
"""A robot that drives the same way through a simulated home, there and back, over and over.

After the first round it sees nothing new, so that what still grows is no map.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from g2vlm_tests.faults.robot import Robot
from nav_msgs.msg import Odometry

from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.sim.renderer import render
from g2vlm_ros.demo.sim.robot_path import RATE_HZ
from g2vlm_ros.demo.sim.scenes import make_scene
from g2vlm_ros.demo.sim.splits import home_seed
from g2vlm_ros.demo.sim.wheel_odometry import base_poses, odometry
from g2vlm_ros.ros.conversions import geometry, images

HOME, LEGS = 8, 6
WIDTH_PX = 224
VIEWS = 60
GAP_S = 0.55
"""Of the walk, between two views: that of the demo checkpoint's training."""
FRAMES_PER_VIEW = 3
"""The camera's 10 Hz; the robot stands at a view meanwhile, and so drives 1.8 times its speed."""
ROUND_S = 0.1 * FRAMES_PER_VIEW * (2 * VIEWS - 2)
"""Seconds of a round."""


def there_and_back(count: int, at: int) -> int:
    """The view at a step of a walk of `count` views: 0, ..., count-1, count-2, ..., 0, 1."""
    step = at % (2 * count - 2)
    return min(step, 2 * count - 2 - step)


class RoundTripRobot(Robot):
    """Its camera shows a home instead of noise; its wheels say where it is."""

    def __init__(self, **arguments: Any):
        scene = make_scene(home_seed("heldout", HOME), LEGS)
        steps = np.arange(0, len(scene.walk.time_s), round(GAP_S * RATE_HZ))[:VIEWS]
        poses = scene.walk.world_from_camera[steps]
        camera = lens(WIDTH_PX, WIDTH_PX * 3 // 4)
        homes = np.zeros(len(steps), np.int64)
        views = render([scene.home], homes, poses, scene.walk.time_s[steps], camera)
        self._pixels = np.array(views.images)
        self._base = base_poses(*odometry(scene.walk, 0.0, scene.home.seed))[steps]
        self._steps = 0
        self.standing = False
        """Whether the camera goes on to show the same view."""
        self.windows_kept, self.max_windows = 0, 1
        """Of the task `memory` of /diagnostics."""
        super().__init__(**arguments)

    def on_diagnostics(self, message: DiagnosticArray) -> None:
        """What the node says of itself, and how many windows it keeps."""
        super().on_diagnostics(message)
        values = {pair.key: pair.value for task in message.status for pair in task.values}
        if "windows" in values and " of " in values["windows"]:
            self.windows_kept, self.max_windows = map(int, values["windows"].split(" of "))

    def send_view(self, count: int) -> None:
        """A frame of the camera, and where the wheels were."""
        self._steps += not self.standing
        at = there_and_back(len(self._pixels), self._steps // FRAMES_PER_VIEW)
        stamp_ns = time.time_ns()
        message = Odometry(header=geometry.header(stamp_ns, "odom"), child_frame_id="base_link")
        message.pose.pose = geometry.pose_message(self._base[at])
        self.odometry.publish(message)
        header = geometry.header(stamp_ns, "optical")
        self.camera.publish(images.rgb_image(header, self._pixels[at]))
