# SPDX-License-Identifier: Apache-2.0
"""What a simulated camera tells of the truth, kept beside what the perception node says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from geometry_msgs.msg import PoseStamped
from PIL import Image as Picture
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from g2vlm_ros.demo.sim import drive_metrics
from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.sim.contact_sheet import Exhibit, sheet
from g2vlm_ros.ros.conversions import geometry

SHOWN = 6
"""Depth images in the picture."""


@dataclass(frozen=True)
class Judged:
    """The verdict on a drive."""

    track: drive_metrics.Track
    scores: dict[str, float]
    depths: Picture.Image
    """Some views with true and estimated depth."""


class GroundTruth:
    """Subscribes to the truth of `sim_camera`; without one nothing ever arrives."""

    def __init__(self, node: Node, sim_camera: str = "/sim_camera", camera: str = "camera"):
        self._poses: dict[int, np.ndarray] = {}
        self._depths: dict[int, np.ndarray] = {}
        self._images: dict[int, np.ndarray] = {}
        self._estimates: dict[int, np.ndarray] = {}
        truth = f"{sim_camera}/truth"
        images = f"/{camera}/image_raw"
        for kind, topic, keep, qos in (
            (PoseStamped, f"{truth}/pose", self._keep_pose, 100),
            (Image, f"{truth}/depth/image", self._keep_into(self._depths, np.float32), 100),
            (Image, images, self._keep_into(self._images, np.uint8), qos_profile_sensor_data),
        ):
            node.create_subscription(kind, topic, keep, qos)

    def _keep_pose(self, message: PoseStamped) -> None:
        self._poses[geometry.stamp_ns(message.header.stamp)] = geometry.pose_matrix(message.pose)

    @staticmethod
    def _keep_into(store: dict[int, np.ndarray], dtype: type):
        def keep(message: Image) -> None:
            pixels = np.frombuffer(message.data, dtype)
            pixels = pixels.reshape(message.height, message.width, -1).squeeze()
            store[geometry.stamp_ns(message.header.stamp)] = pixels

        return keep

    def compare_depth(self, message: Image) -> None:
        """Keep an estimated depth image, to be compared at the end."""
        self._keep_into(self._estimates, np.float32)(message)

    def judge(self, path: dict[int, np.ndarray], points: np.ndarray) -> Judged | None:
        """The errors of path {stamp: (4, 4)} and map points (n, 3); None where no truth came."""
        track = drive_metrics.track(path, self._poses)
        stamps = sorted(self._estimates.keys() & self._depths.keys() & self._images.keys())
        if track is None or not stamps:
            return None
        scored = {
            s: drive_metrics.depth_scores(self._estimates[s], self._depths[s]) for s in stamps
        }
        scored = {stamp: scores for stamp, scores in scored.items() if scores is not None}
        if not scored:
            return None
        scores = track.scores()
        for name in ("abs_rel", "metric_abs_rel"):
            mean = np.mean([values[name] for values in scored.values()])
            scores[f"depth_{name}"] = round(float(mean), 3)
        height, width = self._depths[stamps[0]].shape
        surfaces = drive_metrics.surfaces(self._depths, self._poses, lens(width, height))
        scores |= drive_metrics.map_scores(track.home_from_map.apply(points), surfaces)
        return Judged(track, scores, self._depth_sheet(sorted(scored), scores["depth_abs_rel"]))

    def _depth_sheet(self, stamps: list[int], error: float) -> Picture.Image:
        """A few moments, evenly spaced in time."""
        sample = [stamps[i] for i in np.linspace(0, len(stamps) - 1, SHOWN).round().astype(int)]
        true = np.stack([self._depths[stamp] for stamp in sample])
        guess = np.stack(
            [drive_metrics.at_size(self._estimates[s], true.shape[1:]) for s in sample]
        )
        images = np.stack([self._images[stamp] for stamp in sample])
        return sheet(Exhibit("mean of the drive", error, images, true, guess), "depth")
