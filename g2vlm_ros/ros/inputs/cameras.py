# SPDX-License-Identifier: Apache-2.0
"""What comes in: images of the cameras with what else is known of their moment, as frames."""

from __future__ import annotations

import functools
import math
import re
import time
from collections.abc import Callable
from dataclasses import replace

from nav_msgs.msg import Odometry
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, Imu
from tf2_msgs.msg import TFMessage

from g2vlm_ros.images.decoding import ImageError
from g2vlm_ros.mapping.ignored_pixels import united
from g2vlm_ros.records import DropReason, Frame, Intrinsics
from g2vlm_ros.ros.conversions import images
from g2vlm_ros.ros.inputs.depth import DepthImages
from g2vlm_ros.ros.inputs.detections import Detections
from g2vlm_ros.ros.inputs.imu import ImuGravity
from g2vlm_ros.ros.inputs.label_masks import LabelMasks
from g2vlm_ros.ros.inputs.masks import MaskImages
from g2vlm_ros.ros.inputs.odometry import OdometryPoses
from g2vlm_ros.ros.inputs.rig import RigMounts
from g2vlm_ros.ros.inputs.sensor_subscription import SensorSubscription
from g2vlm_ros.ros.inputs.static_tf import StaticTf
from g2vlm_ros.ros.inputs.unmatched import printable
from g2vlm_ros.settings import Settings

TF_STATIC = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)

REPEAT_S = 5.0
"""A sentence that differs from an earlier one by numbers only is not said again within this."""
MAX_KINDS = 100
"""Kinds of sentences remembered; names in them come from outside."""
MAX_ASPECT_DIFFERENCE = 0.01
"""Relative difference of width to height, of image and camera_info, up to which one is the other
scaled."""


class Cameras:
    """Subscribes to every camera of the settings with sensor QoS, overridable.

    offer gets each good frame; reject the reason of each image that is none; pass_on_odometry each
    message of odometry. detections: whose boxes of `map.ignored_labels` are ignored. Nothing is
    decoded here, so the callbacks stay short.
    """

    def __init__(
        self,
        node: Node,
        settings: Settings,
        offer: Callable[[Frame], None],
        reject: Callable[[DropReason], None],
        pass_on_odometry: Callable[[Odometry], None] | None = None,
        detections: Detections | None = None,
    ):
        self._log = node.get_logger()
        self._max_px = settings.max_image_px
        self._offer, self._reject = offer, reject
        self._pass_on_odometry = pass_on_odometry
        self._intrinsics: dict[str, Intrinsics] = {}
        self._warned: set[tuple[str, str]] = set()
        self._said_s: dict[str, float] = {}
        self._group = MutuallyExclusiveCallbackGroup()
        compressed = settings.image_transport == "compressed"
        self._frame_from = images.frame_from_compressed if compressed else images.frame_from_image
        kind, suffix = (CompressedImage, "/compressed") if compressed else (Image, "")
        self._subscriptions: list[SensorSubscription] = []
        self._depth: DepthImages | None = None
        self._gravity: ImuGravity | None = None
        self._masks: MaskImages | None = None
        self._labels: LabelMasks | None = None
        if detections is not None and detections.listening:
            self._labels = LabelMasks(detections, settings.map.ignored_labels)
        self._odometry: OdometryPoses | None = None
        self.mounts = StaticTf(self._warn)
        self._rig: RigMounts | None = None
        if len(settings.cameras) > 1:
            self._rig = RigMounts(settings.cameras[0], self.mounts, self._warn)
        # Subscribing comes last: another thread may deliver a frame at once.
        topics = self._sensor_topics(settings)
        for camera in settings.cameras:
            image = functools.partial(self._on_image, camera)
            topics.append((kind, f"{camera}/image_raw{suffix}", image, qos_profile_sensor_data))
            info = functools.partial(self._on_camera_info, camera)
            topics.append((CameraInfo, f"{camera}/camera_info", info, qos_profile_sensor_data))
        try:
            for topic in topics:
                self._subscriptions.append(SensorSubscription(node, *topic, self._group))
        except BaseException:
            self.close()
            raise

    def _sensor_topics(self, settings: Settings) -> list[tuple]:
        """Kind, name, callback and QoS of what is listened to beside the cameras."""
        topics = []
        if settings.odometry_topic or settings.imu_topic or self._rig is not None:
            topics.append((TFMessage, "/tf_static", self.mounts.update, TF_STATIC))
        if settings.odometry_topic:
            self._odometry = OdometryPoses(self.mounts, self._warn)
            topics.append((Odometry, settings.odometry_topic, self._on_odometry))
        if settings.depth_topic:
            self._depth = DepthImages(settings.window.sync_slop_s, self._warn, self._max_px)
            topics.append((Image, settings.depth_topic, self._depth.update))
        if settings.mask_topic:
            self._masks = MaskImages(settings.window.sync_slop_s, self._warn, self._max_px)
            topics.append((Image, settings.mask_topic, self._masks.update))
        if settings.imu_topic:
            self._gravity = ImuGravity(self.mounts, self._warn)
            topics.append((Imu, settings.imu_topic, self._gravity.update))
        return [(*topic, qos_profile_sensor_data)[:4] for topic in topics]

    @property
    def received(self) -> dict[str, int]:
        """How many messages of each topic were taken in, whatever became of them."""
        return {each.topic: each.received for each in self._subscriptions}

    def renew_silent(self) -> None:
        """Subscribe again to sensors that have fallen silent beside their publisher."""
        for each in list(self._subscriptions):
            each.renew_if_silent()

    def close(self) -> None:
        """Stop listening."""
        while self._subscriptions:
            self._subscriptions.pop().close()

    def _warn(self, sentence: str) -> None:
        # rclpy's own throttle is per line of code: one kind of sentence would silence the others.
        kind, now_s = re.sub(r"[-0-9.]+", "#", sentence), time.monotonic()
        if now_s - self._said_s.get(kind, -math.inf) < REPEAT_S:
            return
        if len(self._said_s) >= MAX_KINDS:
            self._said_s.clear()
        self._said_s[kind] = now_s
        self._log.warning(printable(sentence))

    def _warn_once(self, camera: str, sentence: str) -> None:
        """Say it for each camera: rclpy's own `once` is per line of code."""
        if (camera, sentence) not in self._warned and len(self._warned) < MAX_KINDS:
            self._warned.add((camera, sentence))
            self._log.warning(printable(f"{camera}: {sentence}"))

    def _on_image(self, camera: str, message: Image | CompressedImage) -> None:
        try:
            frame = self._frame_from(
                message,
                camera,
                max_px=self._max_px,
                intrinsics=self._fitting_intrinsics(camera, message),
            )
        except ImageError as error:
            self._reject(error.reason)
            self._warn(f"{camera}: {error}")
            return
        self._offer(self._completed(frame, images.image_size(message)))

    def _on_odometry(self, message: Odometry) -> None:
        self._odometry.update(message)
        if self._pass_on_odometry is not None:
            self._pass_on_odometry(message)

    def _fitting_intrinsics(
        self, camera: str, message: Image | CompressedImage
    ) -> Intrinsics | None:
        """The camera's calibration; None where it is that of an image of another shape."""
        intrinsics = self._intrinsics.get(camera)
        if intrinsics is None:
            return None
        width, height = images.image_size(message)
        calibrated = intrinsics.width_px, intrinsics.height_px
        if abs(width * calibrated[1] / (height * calibrated[0]) - 1) <= MAX_ASPECT_DIFFERENCE:
            return intrinsics
        self._warn_once(
            camera,
            f"camera_info is of {calibrated[0]}x{calibrated[1]} px, the image has "
            f"{width}x{height}: it is not used; publish the calibration of this resolution",
        )
        return None

    def _completed(self, frame: Frame, size: tuple[int, int]) -> Frame:
        """The frame with its place on the rig, odometry, depth image, masks and up, where they
        come; size: width and height of its image."""
        stamp_ns, frame_id = frame.stamp_ns, frame.frame_id
        if self._rig is not None:
            frame = replace(frame, rig_from_camera=self._rig.mount(frame.camera, frame_id))
        if self._odometry is not None:
            frame = replace(frame, **self._odometry.camera_at(stamp_ns, frame_id))
        if self._depth is not None:
            frame = replace(frame, depth=self._depth.of(stamp_ns, frame_id))
        ignored = [] if self._masks is None else [self._masks.of(stamp_ns, frame_id)]
        if self._labels is not None:
            ignored.append(self._labels.of(stamp_ns, frame_id, size))
        if ignored:
            frame = replace(frame, ignored=functools.partial(united, ignored))
        if self._gravity is not None:
            frame = replace(frame, up=self._gravity.up_at(stamp_ns, frame_id))
        return frame

    def _on_camera_info(self, camera: str, message: CameraInfo) -> None:
        try:
            intrinsics = images.intrinsics_from_info(message)
        except ValueError as error:
            intrinsics = None
            self._warn(f"{camera}: camera_info is not used: {error}")
        if intrinsics is None:
            self._intrinsics.pop(camera, None)
            return
        self._intrinsics[camera] = intrinsics
        if images.is_distorted(message):
            self._warn_once(camera, "camera_info has lens distortion; use a rectified image topic")
