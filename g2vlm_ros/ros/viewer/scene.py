# SPDX-License-Identifier: Apache-2.0
"""What the browser shows, made from messages: points, camera frusta, path and lines of text.

No viser here. Lengths are those of the map (metres, or model units while the scale is unknown),
poses are map_from_camera with optical axes.
"""

from __future__ import annotations

import html
import math
from collections import defaultdict
from dataclasses import dataclass

import cv2
import numpy as np
from g2vlm_ros.msg import ReconstructionStatus, SpatialExample
from geometry_msgs.msg import PoseArray
from nav_msgs.msg import Path
from sensor_msgs.msg import CameraInfo, PointCloud2

from g2vlm_ros.records import Frame
from g2vlm_ros.ros.conversions import geometry, images

THUMBNAIL_PX = 160
"""Width of the images in the frusta."""
IMAGES_PER_CAMERA = 300
"""Most images kept until their window is known: ten seconds at 30 Hz, 4 MB each 100."""


@dataclass(frozen=True)
class Cloud:
    """Coloured points: float32 (n, 3) in the map, uint8 (n, 3) RGB."""

    positions: np.ndarray
    colours: np.ndarray

    @classmethod
    def of(cls, message: PointCloud2) -> Cloud:
        """The finite points of a cloud with float32 x, y, z and packed rgb; ValueError without."""
        offsets = {field.name: field.offset for field in message.fields}
        if missing := {"x", "y", "z", "rgb"} - set(offsets):
            raise ValueError(f"cloud lacks {', '.join(sorted(missing))}; it needs x y z rgb")
        names = ("x", "y", "z", "rgb")
        layout = np.dtype(
            {
                "names": names,
                "formats": ("<f4", "<f4", "<f4", "<u4"),
                "offsets": [offsets[name] for name in names],
                "itemsize": message.point_step,
            }
        )
        packed = np.frombuffer(message.data, layout)
        positions = np.stack([packed[axis] for axis in "xyz"], axis=-1)
        good = np.isfinite(positions).all(axis=1)
        rgb = packed["rgb"][good]
        colours = np.stack([rgb >> 16 & 255, rgb >> 8 & 255, rgb & 255], axis=-1)
        return cls(positions[good], colours.astype(np.uint8))

    def thinned(self, most: int) -> Cloud:
        """At most `most` of the points, evenly chosen."""
        step = max(1, math.ceil(len(self.positions) / most))
        return Cloud(self.positions[::step], self.colours[::step])

    def below(self, share: float) -> Cloud:
        """The points in the lowest `share` of the height; 1 keeps all. Opens rooms to the eye."""
        if share >= 1 or not len(self.positions):
            return self
        low, high = np.percentile(self.positions[:, 2], [1, 99])
        keep = self.positions[:, 2] <= low + share * (high - low)
        return Cloud(self.positions[keep], self.colours[keep])

    def extent(self) -> tuple[np.ndarray, float]:
        """Middle (3,) and longest side of the box around all but the farthest points."""
        low, high = np.percentile(self.positions, [2, 98], axis=0)
        return (low + high) / 2, float((high - low).max())

    def spacing(self) -> float:
        """About the distance between neighbours: the points cover surfaces, not the volume."""
        return 1.5 * self.extent()[1] / math.sqrt(len(self.positions))


@dataclass(frozen=True)
class Frustum:
    """A view of the newest window at its place in the map."""

    camera: str
    map_from_camera: np.ndarray
    """float64 (4, 4)."""
    image: np.ndarray
    """uint8 (H, W, 3), small."""
    fov_rad: float
    """Vertical angle of view."""


class ViewFrustums:
    """Images, calibrations and poses, put together by camera and stamp."""

    def __init__(self) -> None:
        self._images: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
        self._frame_ids: dict[str, str] = {}
        self._fov_rad: dict[str, float] = {}
        self._poses = PoseArray()
        self._status = ReconstructionStatus()

    def add_image(self, frame: Frame) -> None:
        """Keep a small copy of an image; the oldest of its camera goes. Raises ImageError."""
        image, newest = frame.decode(), self._images[frame.camera]
        height = max(1, round(image.shape[0] * THUMBNAIL_PX / image.shape[1]))
        size = (THUMBNAIL_PX, height)
        newest[frame.stamp_ns] = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        if len(newest) > IMAGES_PER_CAMERA:
            del newest[min(newest)]
        self._frame_ids[frame.camera] = frame.frame_id

    def stamps_ns(self, camera: str) -> list[int]:
        """Stamps of a camera's images that are kept."""
        return list(self._images[camera])

    def add_calibration(self, message: CameraInfo) -> None:
        """The angle of view of a camera frame; an uncalibrated one says nothing."""
        calibration = images.intrinsics_from_info(message)
        if calibration is not None:
            angle = 2 * math.atan(calibration.height_px / (2 * calibration.fy_px))
            self._fov_rad[message.header.frame_id] = angle

    def add_poses(self, message: PoseArray) -> None:
        """The poses of all views of a window."""
        self._poses = message

    def add_status(self, message: ReconstructionStatus) -> None:
        """Which camera and stamp each view of a window has."""
        self._status = message

    def frusta(self) -> list[Frustum] | None:
        """The views of the newest window; None while poses and status tell of different ones.

        Views whose image or calibration has not been received are left out.
        """
        status, poses = self._status, self._poses
        if not poses.poses or poses.header.stamp != status.header.stamp:
            return None
        views = zip(status.view_cameras, status.view_stamps, poses.poses, strict=True)
        candidates = (
            self._frustum(camera, geometry.stamp_ns(at), pose) for camera, at, pose in views
        )
        return [frustum for frustum in candidates if frustum is not None]

    def _frustum(self, camera: str, stamp_ns: int, pose) -> Frustum | None:
        image = self._images[camera].get(stamp_ns)
        fov_rad = self._fov_rad.get(self._frame_ids.get(camera, ""))
        if image is None or fov_rad is None:
            return None
        return Frustum(camera, geometry.pose_matrix(pose), image, fov_rad)


def path_segments(message: Path) -> np.ndarray:
    """float32 (n, 2, 3): the lines between the poses of a path."""
    places = [geometry.position(stamped.pose.position) for stamped in message.poses]
    points = np.array(places, np.float32).reshape(-1, 3)
    return np.stack([points[:-1], points[1:]], axis=1)


def overview(cloud: Cloud) -> tuple[np.ndarray, np.ndarray]:
    """Where to look from and at, both (3,), to have the whole cloud before one's eyes."""
    middle, span = cloud.extent()
    return middle + span * np.array([-0.3, -0.45, 0.6]), middle


def status_lines(message: ReconstructionStatus) -> dict[str, str]:
    """Scale, place, cost and frames, each in a few words; `Problem` only where there is one."""
    if not message.window_id:
        lines = {"Scale": "unknown", "Window": "none yet"}
    else:
        lines = {
            "Scale": _scale(message),
            "Latency": f"{message.latency_s:.2f} s",
            "Window": f"{message.window_id}, map {message.map_id}",
        }
        if message.alignment_quality >= 0:
            lines["Alignment"] = f"{message.alignment_quality:.0%} agree"
    lines["Frames"] = f"{message.frames_used} used of {message.frames_received}"
    lines["Model"] = f"{message.model_version} on {message.backend}"
    if message.message:
        lines["Problem"] = message.message
    return lines


def _scale(message: ReconstructionStatus) -> str:
    if message.scale_state != ReconstructionStatus.SCALE_METRIC:
        return "relative: lengths are model units"
    std = message.scale_relative_std
    sure = f" ±{std:.1%}" if math.isfinite(std) else ""
    return f"metres from {message.scale_source.replace('_', ' ')}{sure}"


def answer_lines(message: SpatialExample) -> dict[str, str]:
    """The newest question and its answer."""
    return {"Question": message.question, "Answer": message.answer}


def table(lines: dict[str, str]) -> str:
    """The lines as HTML. What people or the model wrote stays text: nothing of it is markup."""
    quiet = "opacity:.6;padding-right:.8em;vertical-align:top"
    rows = (
        f"<tr><td style='{quiet}'>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>"
        for name, value in lines.items()
    )
    return f"<table style='margin:.6em;font-size:.85em'>{''.join(rows)}</table>"
