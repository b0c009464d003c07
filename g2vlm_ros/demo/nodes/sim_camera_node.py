# SPDX-License-Identifier: Apache-2.0
"""The node `sim_camera`: a robot's camera in a simulated home, with ground truth beside it.

Publishes <camera>/image_raw and camera_info, the robot's `odom`, and on /tf_static how its cameras
are mounted. What only the simulation can know goes to topics of its own: ~/truth/pose (frame
`home`, optical axes) and ~/truth/depth/image. The robot walks once through the home, then the node
is finished, or it walks back and forth (`loop`).
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage

from g2vlm_ros.demo.nodes.demo_arguments import MAX_LEGS, MIN_LEGS
from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.sim.renderer import RenderedViews, render
from g2vlm_ros.demo.sim.robot_path import RATE_HZ
from g2vlm_ros.demo.sim.scenes import make_scene
from g2vlm_ros.demo.sim.splits import MAX_HOME, SPLITS, home_seed
from g2vlm_ros.demo.sim.wheel_odometry import base_poses, mount, odometry
from g2vlm_ros.parameter_schema import TOPIC, SettingError, parameter
from g2vlm_ros.ros import parameters
from g2vlm_ros.ros.conversions import geometry, images
from g2vlm_ros.ros.run_node import run

HOME_FRAME, ODOM_FRAME, BASE_FRAME = "home", "odom", "base_link"
FIRST_NS = 1_000_000_000
"""Simulated time starts here: to ROS, time 0 means that there is no time yet."""

MAX_MOMENTS = 10_000
"""Frames whose truth is remembered, half an hour at 5 Hz; a walk that loops has no end."""


def there_and_back(steps: range) -> Iterator[int]:
    """The steps forwards, then backwards, and so on, without standing at either end."""
    while True:
        yield from steps[:-1]
        yield from reversed(steps[1:])


@dataclass(frozen=True)
class SimCameraSettings:
    """All settings of the node; they are read once, at start."""

    home: int = parameter(8, "Index of the home in its split.", low=0, high=MAX_HOME)
    split: str = parameter("heldout", "Which homes; training never saw heldout.", choices=SPLITS)
    legs: int = parameter(8, "Straight legs of the walk, about.", low=MIN_LEGS, high=MAX_LEGS)
    cameras: list[str] = parameter(
        ["camera"], "Namespaces; camera:30 looks 30 degrees to the left of ahead."
    )
    rate_hz: float = parameter(5.0, "Frames per second of simulated time.", low=0.1, high=RATE_HZ)
    speed: float = parameter(1.0, "Simulated seconds per second.", low=0.01, high=100.0)
    width_px: int = parameter(224, "Width of the images; they are 4:3.", low=28, high=2048)
    odometry_noise: float = parameter(
        0.02, "Standard deviation of steps and turns of odom, relative.", low=0.0, high=1.0
    )
    sim_time: bool = parameter(False, "Stamp with simulated time and publish /clock.")
    loop: bool = parameter(
        False, "Walk back the same way at the end, and so on; otherwise the node ends."
    )
    start_s: float = parameter(
        0.0, "Seconds of the walk that are left out at its start.", low=0.0, high=10**6
    )
    wait_for_subscriber: bool = parameter(True, "Hold the first frame until somebody subscribes.")

    def __post_init__(self) -> None:
        if not self.cameras:
            raise SettingError("cameras is empty; name at least one, such as camera")
        self.mounted()

    def mounted(self) -> dict[str, float]:
        """Heading of each camera in degrees, positive to the left."""
        mounts = {}
        for camera in self.cameras:
            name, _, heading = camera.partition(":")
            try:
                if not TOPIC.pattern.fullmatch(name):
                    raise ValueError
                mounts[name] = float(heading or 0.0)
            except ValueError:
                raise SettingError(
                    f"cameras has {camera!r}; write a ROS name (letters, digits and _), or "
                    "name:degrees such as left:30"
                ) from None
        return mounts


@dataclass(frozen=True)
class Moment:
    """What was true when a frame was taken."""

    world_from_camera: np.ndarray
    """(4, 4)."""
    time_s: float
    """Since the walk began; moving things are where they are then."""
    items: np.ndarray
    """uint8 (H, W): the item that each pixel shows."""


class SimCamera(Node):
    """Walks in a thread of its own from the start on. Raises SettingError."""

    def __init__(self, **node_arguments):
        super().__init__(
            "sim_camera", automatically_declare_parameters_from_overrides=True, **node_arguments
        )
        try:
            parameters.declare(self, SimCameraSettings)
            self._settings = settings = parameters.read(self, SimCameraSettings)
            self.camera = lens(settings.width_px, settings.width_px * 3 // 4)
        except BaseException:
            self.destroy_node()
            raise
        self.scene = make_scene(home_seed(settings.split, settings.home), settings.legs)
        self.moments: dict[int, Moment] = {}
        """Of the first camera, by stamp."""
        self.finished = False
        self._odometry = base_poses(
            *odometry(self.scene.walk, settings.odometry_noise, self.scene.home.seed)
        )
        self._make_topics()
        seconds = self.scene.walk.time_s[-1] - settings.start_s
        if seconds <= 0:
            raise SettingError(f"start_s is {settings.start_s}; the walk ends before")
        self.get_logger().info(
            f"home {settings.home} of {settings.split}: {len(self.scene.home.rooms)} rooms, "
            f"{seconds:.0f} s of walking"
        )
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sim_camera", daemon=True)
        self._thread.start()

    def destroy_node(self) -> None:
        """Stop walking, then destroy."""
        if hasattr(self, "_thread"):
            self._closing.set()
            self._thread.join()
        super().destroy_node()

    def _make_topics(self) -> None:
        def publisher(kind, name, qos=qos_profile_sensor_data):
            return self.create_publisher(kind, name, qos)

        cameras = list(self._settings.mounted())
        self._images = [publisher(Image, f"{name}/image_raw") for name in cameras]
        self._infos = [publisher(CameraInfo, f"{name}/camera_info") for name in cameras]
        self._odom = publisher(Odometry, "odom")
        self._pose = publisher(PoseStamped, "~/truth/pose", 100)
        self._depth = publisher(Image, "~/truth/depth/image", 10)
        self._clock_topic = publisher(Clock, "/clock", 10) if self._settings.sim_time else None
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._mounts = publisher(TFMessage, "/tf_static", latched)
        header = geometry.header(FIRST_NS, BASE_FRAME)
        poses = self._turned(mount(self.scene.walk))
        self._mounts.publish(
            TFMessage(
                transforms=[
                    geometry.transform_message(header, f"{name}_optical_frame", pose)
                    for name, pose in zip(cameras, poses, strict=True)
                ]
            )
        )

    def _run(self) -> None:
        try:
            self._walk()
        except Exception:
            if not self._closing.is_set():
                self.get_logger().error(f"the walk ends early:\n{traceback.format_exc()}")
        self.finished = True

    def _walk(self) -> None:
        while self._settings.wait_for_subscriber and not self._images[0].get_subscription_count():
            if self._closing.wait(0.05):
                return
        gap = round(RATE_HZ / self._settings.rate_hz)
        begin_s = time.monotonic()
        first = round(self._settings.start_s * RATE_HZ)
        there = range(first, len(self.scene.walk.time_s), gap)
        for count, step in enumerate(there_and_back(there) if self._settings.loop else there):
            poses = self._turned(self.scene.walk.world_from_camera[step])
            views = self._views(poses, step)
            walked_s = count * gap / RATE_HZ
            due_s = begin_s + walked_s / self._settings.speed
            if self._closing.wait(max(0.0, due_s - time.monotonic())):
                return
            self._publish(step, walked_s, poses, views)

    def _turned(self, pose: np.ndarray) -> np.ndarray:
        """Poses (C, 4, 4) of all cameras, one of which looks ahead from a pose (4, 4)."""
        headings = np.deg2rad(list(self._settings.mounted().values()))
        poses = np.repeat(pose[None], len(headings), axis=0)
        poses[:, :3, :3] = base_poses(np.zeros(2), headings)[:, :3, :3] @ pose[:3, :3]
        return poses

    def _views(self, poses: np.ndarray, step: int) -> RenderedViews:
        count = len(poses)
        times = np.full(count, self.scene.walk.time_s[step])
        return render([self.scene.home], np.zeros(count, np.int64), poses, times, self.camera)

    def _publish(
        self, step: int, walked_s: float, poses: np.ndarray, views: RenderedViews
    ) -> None:
        time_s = float(self.scene.walk.time_s[step])
        stamp_ns = self.get_clock().now().nanoseconds
        if self._clock_topic is not None:
            stamp_ns = FIRST_NS + round(walked_s * 1e9)
            self._clock_topic.publish(Clock(clock=geometry.stamp(stamp_ns)))
        if len(self.moments) >= MAX_MOMENTS:
            del self.moments[next(iter(self.moments))]
        self.moments[stamp_ns] = Moment(poses[0], time_s, np.asarray(views.items[0]))
        self._odom.publish(self._odometry_message(step, stamp_ns))
        truth = geometry.header(stamp_ns, HOME_FRAME)
        self._pose.publish(geometry.pose_stamped(truth, poses[0]))
        width, height = self.camera.width_px, self.camera.height_px
        for camera, name in enumerate(self._settings.mounted()):
            header = geometry.header(stamp_ns, f"{name}_optical_frame")
            if camera == 0:
                self._depth.publish(images.depth_image(header, np.asarray(views.depth_m[0])))
            self._infos[camera].publish(images.camera_info(header, self.camera, width, height))
            self._images[camera].publish(
                images.rgb_image(header, np.asarray(views.images[camera]))
            )

    def _odometry_message(self, step: int, stamp_ns: int) -> Odometry:
        message = Odometry(header=geometry.header(stamp_ns, ODOM_FRAME), child_frame_id=BASE_FRAME)
        message.pose.pose = geometry.pose_message(self._odometry[step])
        return message


def main(arguments: list[str] | None = None) -> int:
    """``ros2 run g2vlm_ros sim_camera --ros-args -p home:=3``; ends with the walk."""
    return run("sim_camera", SimCamera, arguments, ended=lambda node: node.finished)


if __name__ == "__main__":
    raise SystemExit(main())
