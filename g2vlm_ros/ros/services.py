"""The services of the node: requests checked, answered from the newest window, never raising."""

from __future__ import annotations

import concurrent.futures
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from geometry_msgs.msg import Point32

from g2vlm_ros.core import cloud
from g2vlm_ros.core.geometry import rotation_from_xyzw
from g2vlm_ros.core.preprocess import PixelMap
from g2vlm_ros.live import Update
from g2vlm_ros.perception import Perception
from g2vlm_ros.ros import convert
from g2vlm_ros.srv import GetPoints, SaveMap, SpatialQuery

MAX_QUESTION_CHARACTERS = 512
REFRESH_WAIT_S = 1.5
"""How long a geometry request waits for a window when none is fresh enough."""


class RequestError(Exception):
    """A request that cannot be served: an error code and one sentence with the remedy."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


def answering(handler: Callable) -> Callable:
    """Turns a handler's RequestError, or any failure, into the error fields of its response."""

    def answer(self, request, response):
        try:
            handler(self, request, response)
            response.success = True
        except RequestError as refused:
            response.error_code, response.error_msg = refused.code, str(refused)
        except Exception as error:  # a service callback that raises would leave the caller waiting
            self.log_failure(handler.__name__, error)
            response.error_code = SpatialQuery.Response.UNKNOWN
            response.error_msg = f"{type(error).__name__}: {error}"
        return response

    return answer


class Services:
    """Answers GetPoints, SaveMap and SpatialQuery; knows no node, only what it is given.

    newest: returns the newest Update and its age in seconds, or None. refresh(timeout_s): makes
    the next window now, if frames for one are here. submit: runs a function on
    the device thread and returns its Future. now_s: the node's clock. active: whether requests
    are served. log_failure(name, error): reports what should not have happened.
    """

    def __init__(
        self,
        perception: Perception,
        map_frame: str,
        model_version: str,
        newest: Callable[[], tuple[Update, float] | None],
        refresh: Callable[[float], None],
        submit: Callable[..., concurrent.futures.Future],
        active: Callable[[], bool],
        log_failure: Callable[[str, Exception], None],
    ):
        self._perception = perception
        self._map_frame = map_frame
        self._model_version = model_version
        self._newest = newest
        self._refresh = refresh
        self._submit = submit
        self._active = active
        self.log_failure = log_failure

    @answering
    def get_points(self, request: GetPoints.Request, response: GetPoints.Response) -> None:
        """3D points of pixels, or of a box, from the newest window, in the map frame."""
        update = self._current(request.max_age_s, REFRESH_WAIT_S)
        self._check_map_frame("target_frame", request.target_frame or self._map_frame)
        if request.camera:
            points, confidence, view = self._points_of_pixels(request, update)
            stamp_ns = update.window.frames[view].stamp_ns
        else:
            points, confidence = self._points_in_box(request, update)
            stamp_ns = update.window.stamp_ns
        response.header.stamp = convert.stamp(stamp_ns)
        response.header.frame_id = self._map_frame
        response.points = [Point32(x=float(x), y=float(y), z=float(z)) for x, y, z in points]
        response.confidence = [-1.0 if math.isnan(c) else float(c) for c in confidence]
        response.scale_state = int(update.placement.scale_state)
        response.window_id = update.window.id

    @answering
    def save_map(self, request: SaveMap.Request, response: SaveMap.Response) -> None:
        """Write the points of the newest window, in the map frame, as PLY."""
        update = self._current(math.inf, REFRESH_WAIT_S)
        path = Path(request.path).expanduser()
        kind = request.format or path.suffix.lstrip(".").lower()
        if kind != SaveMap.Request.FORMAT_PLY:
            raise self._invalid(
                f"format '{kind}' is not known; give a path that ends in .ply, or format 'ply'"
            )
        if not path.is_absolute() or not path.parent.is_dir():
            raise self._invalid(
                f"path '{request.path}' must be absolute and its folder must exist on the robot"
            )
        result, points = update.result, update.map_points()
        cloud.write_ply(path, points, result.colours, result.confidence)
        response.points = points.size // 3
        response.path = str(path)

    @answering
    def query(self, request: SpatialQuery.Request, response: SpatialQuery.Response) -> None:
        """Answer a question in words from the newest window, within max_wait_s."""
        self._check_query(request)
        deadline = time.monotonic() + request.max_wait_s
        update = self._current(request.max_age_s, request.max_wait_s)
        job = self._submit(
            self._perception.ask,
            update.scene,
            request.question,
            should_stop=lambda: time.monotonic() > deadline,
        )
        try:
            answer = job.result(timeout=max(0.0, deadline - time.monotonic()) + 0.1)
        except concurrent.futures.TimeoutError:
            job.cancel()
            answer = None
        if answer is None or not answer.finished and time.monotonic() > deadline:
            raise RequestError(
                SpatialQuery.Response.TIMEOUT,
                f"no answer within max_wait_s = {request.max_wait_s:g}; allow more, or ask again "
                "now that the window is encoded",
            )
        self._fill_answer(response, update, answer)

    def _fill_answer(self, response: SpatialQuery.Response, update: Update, answer) -> None:
        response.answer = answer.text
        response.answer_kind = SpatialQuery.Request.TEXT
        response.number = float("nan")
        response.confidence = -1.0
        response.scale_state = int(update.placement.scale_state)
        response.scale_relative_std = float("nan")
        response.stamp = convert.stamp(update.window.stamp_ns)
        response.age_s = self._newest()[1]
        response.window_id = update.window.id
        response.stage_names = list(answer.stage_times_s)
        response.stage_times_s = list(answer.stage_times_s.values())
        response.model_version = self._model_version

    def _check_query(self, request: SpatialQuery.Request) -> None:
        length = len(request.question)
        if not request.question.strip() or length > MAX_QUESTION_CHARACTERS:
            raise self._invalid(
                f"question has {length} characters; it must have 1 to {MAX_QUESTION_CHARACTERS}"
            )
        if not request.max_wait_s > 0:
            raise self._invalid(f"max_wait_s is {request.max_wait_s:g}; it must be above 0")
        if request.answer_kind not in (SpatialQuery.Request.AUTO, SpatialQuery.Request.TEXT):
            raise RequestError(
                SpatialQuery.Response.NO_MODEL,
                f"answer_kind {request.answer_kind} cannot be answered yet; ask for AUTO or TEXT",
            )

    def _current(self, max_age_s: float, max_wait_s: float) -> Update:
        """The newest window's update; a fresh one is tried when there is none young enough."""
        if not self._active():
            raise RequestError(
                SpatialQuery.Response.INACTIVE,
                "the node is not active; activate it (ros2 lifecycle set ... activate)",
            )
        if not max_age_s > 0:
            raise self._invalid(f"max_age_s is {max_age_s:g}; it must be above 0")
        newest = self._newest()
        if newest is None or newest[1] > max_age_s:
            self._refresh(max_wait_s)
            newest = self._newest()
        if newest is None:
            raise RequestError(
                SpatialQuery.Response.NO_GEOMETRY,
                "no window has been reconstructed yet; see ~/status for frames and drops",
            )
        update, age_s = newest
        if age_s > max_age_s:
            raise RequestError(
                SpatialQuery.Response.NO_GEOMETRY,
                f"the newest window is {age_s:.1f} s old, max_age_s is {max_age_s:g}; wait for "
                "frames or allow more",
            )
        return update

    def _points_of_pixels(
        self, request: GetPoints.Request, update: Update
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Map points (n, 3) and confidence (n,) of pixels of a camera's newest view."""
        frames = update.window.frames
        views = [i for i, frame in enumerate(frames) if frame.camera == request.camera]
        if not views:
            cameras = ", ".join(sorted({frame.camera for frame in frames}))
            raise self._invalid(
                f"camera '{request.camera}' is not in the window; it has {cameras}"
            )
        u, v = np.array(request.u_px, np.float64), np.array(request.v_px, np.float64)
        if len(u) != len(v) or not len(u):
            raise self._invalid(f"{len(u)} u_px for {len(v)} v_px; give one pair or more")
        view = views[-1]
        image_height, image_width = update.scene.images[view].shape[:2]
        height, width = update.result.confidence.shape[1:]
        pixel_map = PixelMap((image_width, image_height), (width, height))
        inside = (u > -0.5) & (u < image_width - 0.5) & (v > -0.5) & (v < image_height - 0.5)
        if not inside.all():
            first = int(np.argmin(inside))
            raise self._invalid(
                f"pixel ({u[first]:g}, {v[first]:g}) is outside the {image_width}x{image_height} "
                "image"
            )
        column, row = np.rint(pixel_map.model_from_image(np.stack([u, v], -1))).astype(int).T
        column, row = np.clip(column, 0, width - 1), np.clip(row, 0, height - 1)
        points = update.map_points()[view, row, column]
        confidence = update.result.confidence[view, row, column]
        points[confidence < request.min_confidence] = np.nan
        return points, confidence, view

    def _points_in_box(
        self, request: GetPoints.Request, update: Update
    ) -> tuple[np.ndarray, np.ndarray]:
        """Map points (n, 3) and confidence (n,) inside an oriented box."""
        size = np.array([request.box_size.x, request.box_size.y, request.box_size.z])
        if not (size > 0).all():
            raise self._invalid(
                f"camera is empty and box_size is {size.tolist()}; name a camera, or give a box "
                "with every side above 0"
            )
        self._check_map_frame("box_pose frame", request.box_pose.header.frame_id)
        position, turn = request.box_pose.pose.position, request.box_pose.pose.orientation
        rotation = rotation_from_xyzw(np.array([turn.x, turn.y, turn.z, turn.w]))
        result = update.result
        points, confidence = update.map_points().reshape(-1, 3), result.confidence.reshape(-1)
        inside = (points - [position.x, position.y, position.z]) @ rotation
        keep = (np.abs(inside) <= size / 2).all(1) & ~(confidence < request.min_confidence)
        chosen = np.flatnonzero(keep)
        if not chosen.size:
            raise RequestError(
                SpatialQuery.Response.NOT_VISIBLE, "the box holds no point; enlarge it"
            )
        if chosen.size > request.max_points:
            chosen = chosen[np.linspace(0, chosen.size - 1, request.max_points).astype(int)]
        return points[chosen], confidence[chosen]

    def _check_map_frame(self, field: str, frame: str) -> None:
        if frame != self._map_frame:
            raise RequestError(
                SpatialQuery.Response.TF_ERROR,
                f"{field} is '{frame}'; only the map frame '{self._map_frame}' is served",
            )

    @staticmethod
    def _invalid(message: str) -> RequestError:
        return RequestError(SpatialQuery.Response.INVALID_REQUEST, message)
