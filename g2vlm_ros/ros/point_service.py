# SPDX-License-Identifier: Apache-2.0
"""Geometry services: requests checked, answered from the newest window, never raising."""

from __future__ import annotations

import math

import numpy as np
from geometry_msgs.msg import Point32, PoseStamped, Vector3

from g2vlm_ros.dense_map.map_editor import OrientedBox
from g2vlm_ros.images.preprocessing import PixelMap
from g2vlm_ros.pipeline import PerceivedWindow
from g2vlm_ros.ros.conversions import geometry
from g2vlm_ros.ros.service_errors import (
    Codes,
    RequestError,
    check_age,
    check_map_frame,
    inactive,
    invalid,
    reply_errors,
)
from g2vlm_ros.ros.window_source import WindowSource
from g2vlm_ros.srv import GetPoints

MAX_PIXELS = 100_000
"""Of one request: so many take 2 s of Python, in which questions and windows wait."""
REFRESH_WAIT_S = 1.5
"""How long a geometry request waits for a window when none is fresh enough."""


def box_of(pose: PoseStamped, size: Vector3, map_frame: str) -> OrientedBox:
    """The box of a request in the map frame; RequestError names what is wrong with it."""
    extent = np.array([size.x, size.y, size.z])
    if not (extent > 0).all():
        raise invalid(f"box_size is {extent.tolist()}; give a box with every side above 0")
    check_map_frame("box_pose frame", pose.header.frame_id, map_frame)
    try:
        placed = geometry.pose_matrix(pose.pose)
        return OrientedBox(placed[:3, 3], extent / 2, placed[:3, :3])
    except ValueError as error:
        raise invalid(f"box_pose: {error}") from error


class PointService:
    """Answers GetPoints from the newest window of the node."""

    def __init__(self, map_frame: str, windows: WindowSource):
        self._map_frame = map_frame
        self._windows = windows
        self.log_failure = windows.log_failure

    @reply_errors
    def get_points(self, request: GetPoints.Request, response: GetPoints.Response) -> None:
        """3D points of pixels, or of a box, from the newest window, in the map frame."""
        update = self.current(request.max_age_s, REFRESH_WAIT_S)
        if not 0 <= request.min_confidence <= 1:
            raise invalid(f"min_confidence is {request.min_confidence:g}; it must lie in 0 to 1")
        target = request.target_frame or self._map_frame
        check_map_frame("target_frame", target, self._map_frame)
        if request.camera:
            points, confidence, view = self._points_of_pixels(request, update)
            stamp_ns = update.window.frames[view].stamp_ns
        else:
            points, confidence = self._points_in_box(request, update)
            stamp_ns = update.window.stamp_ns
        response.header.stamp = geometry.stamp(stamp_ns)
        response.header.frame_id = self._map_frame
        response.points = [Point32(x=float(x), y=float(y), z=float(z)) for x, y, z in points]
        response.confidence = [-1.0 if math.isnan(c) else float(c) for c in confidence]
        response.scale_state = int(update.placement.scale.state)
        response.window_id = update.window.id

    def check_active(self) -> None:
        """RequestError while the node is not active."""
        if not self._windows.is_active():
            raise inactive()

    def current(self, max_age_s: float, max_wait_s: float) -> PerceivedWindow:
        """The newest window; a fresh one is tried when there is none young enough."""
        self.check_active()
        if not max_age_s > 0:
            raise invalid(f"max_age_s is {max_age_s:g}; it must be above 0")
        newest = self._windows.newest_window()
        if newest is None or abs(newest[1]) > max_age_s:
            self._windows.refresh(max_wait_s)
            newest = self._windows.newest_window()
        if newest is None:
            raise RequestError(
                Codes.NO_GEOMETRY,
                f"no window has been reconstructed yet; {self._windows.why_no_window()}",
            )
        update, age_s = newest
        check_age(age_s, max_age_s)
        return update

    def _points_of_pixels(
        self, request: GetPoints.Request, update: PerceivedWindow
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Map points (n, 3) and confidence (n,) of pixels of a camera's newest view."""
        frames = update.window.frames
        views = [i for i, frame in enumerate(frames) if frame.camera == request.camera]
        if not views:
            cameras = ", ".join(sorted({frame.camera for frame in frames}))
            raise invalid(f"camera '{request.camera}' is not in the window; it has {cameras}")
        for field in ("u_px", "v_px"):
            if len(getattr(request, field)) > MAX_PIXELS:
                raise invalid(
                    f"{field} has {len(getattr(request, field))} values; at most {MAX_PIXELS} are "
                    "taken: ask again for the rest, or subscribe to ~/points"
                )
        u, v = np.array(request.u_px, np.float64), np.array(request.v_px, np.float64)
        if len(u) != len(v) or not len(u):
            raise invalid(f"{len(u)} u_px for {len(v)} v_px; give one pair or more")
        view = views[-1]
        image_height, image_width = update.scene.images[view].shape[:2]
        height, width = update.result.confidence.shape[1:]
        pixel_map = PixelMap((image_width, image_height), (width, height))
        inside = (u > -0.5) & (u < image_width - 0.5) & (v > -0.5) & (v < image_height - 0.5)
        if not inside.all():
            first = int(np.argmin(inside))
            raise invalid(
                f"pixel ({u[first]:g}, {v[first]:g}) is outside the {image_width}x{image_height} "
                "image"
            )
        column, row = np.rint(pixel_map.model_from_image(np.stack([u, v], -1))).astype(int).T
        column, row = np.clip(column, 0, width - 1), np.clip(row, 0, height - 1)
        points = update.map_points_at(view, row, column)
        confidence = update.result.confidence[view, row, column]
        points[confidence < request.min_confidence] = np.nan
        return points, confidence, view

    def _points_in_box(
        self, request: GetPoints.Request, update: PerceivedWindow
    ) -> tuple[np.ndarray, np.ndarray]:
        """Map points (n, 3) and confidence (n,) inside an oriented box."""
        if request.max_points < 1:
            raise invalid("max_points is 0; it must be 1 or more")
        box = box_of(request.box_pose, request.box_size, self._map_frame)
        result = update.result
        points, confidence = update.map_points().reshape(-1, 3), np.asarray(result.confidence)
        confidence = confidence.reshape(-1)
        keep = box.contains(points) & ~(confidence < request.min_confidence)
        indices = np.flatnonzero(keep)
        if not indices.size:
            raise RequestError(Codes.NOT_VISIBLE, "the box holds no point; enlarge it")
        if indices.size > request.max_points:
            indices = indices[np.linspace(0, indices.size - 1, request.max_points).astype(int)]
        return points[indices], confidence[indices]
