# SPDX-License-Identifier: Apache-2.0
"""Pose of a camera between windows: each frame against the newest view that the map holds.

The frame is warped into that view by its points and a predicted pose, so that what is left between
the two is the error of the prediction. Corners of the view are followed into it (Lucas & Kanade,
IJCAI 1981) and back, and the pose is what projects their points to where they were found
(perspective-n-point by Gauss-Newton with Cauchy weights). Where few of them are left, the last
frame takes the view's place, with the view's points as it sees them. A frame costs a few
milliseconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from g2vlm_ros.geometry.camera import depth_edges, project, unproject
from g2vlm_ros.geometry.confidence import EDGE_STEP
from g2vlm_ros.geometry.sim3 import cross_matrix
from g2vlm_ros.mapping.ignored_pixels import believed_points
from g2vlm_ros.mapping.view_images import MIN_WIDTH_PX, WIDTH_PX
from g2vlm_ros.mapping.window_pose import MappedWindow, Reason
from g2vlm_ros.records import Intrinsics

MAX_CORNERS, MIN_DISTANCE_PX, MIN_STRENGTH = 150, 7, 0.003
"""Corners of the reference: how many at most, how far apart, how strong against the strongest."""
PATCH_PX, LEVELS = 13, 3
"""Side of the square that is followed, and how often the images are halved for it."""
MIN_TEXTURE = 1e-5
"""Smallest eigenvalue of a patch's gradients, as OpenCV scales it: painted walls have some."""
MAX_RETURN_PX = 0.7
"""How far a track followed back may end from where it began."""
BORDER_PX = 4
"""Patches nearer to the edge of an image are cut off."""
MIN_INLIERS = 15
"""Two and a half points per unknown of a pose; fewer fit to anything."""
MIN_INLIER_SHARE = 0.3
"""Of the corners that should be in the frame: below, most of what is seen is something else."""
RENEWED_SHARE = 0.6
"""Share of the corners below which the frame becomes what the next ones are compared with..."""
MIN_RENEWED = 40
"""...if so many of its own corners have points."""
COARSE_PX = 64
"""Width at which a frame is laid over the template where nothing else predicts its pose."""
INLIER_PX = 2.0
"""Distance between a track and its projected point up to which both are the same."""
STEPS, SMALL_STEP = 6, 1e-4
"""Of the perspective-n-point at most, and the change (rad, share of the depth) that ends it."""
ROUNDS, FAR_PX = 3, 2.0
"""Times a frame is warped at most: again where the pose moved its corners further than this."""
MIN_TRACK_PX = 0.15
"""Standard deviation of a track at best."""
ALIKE = 4.0
"""Errors of neighbouring corners are alike: so many count as one."""
DEPTH_SHARE = 0.02
"""What the reference's depth has wrong in common, as a share of the way from it."""
DRIFT_PER_S = 0.002
"""Share of the median depth, and radians, by which a pose is less sure per second."""
KEPT_POSES = 120
"""Poses remembered to go over to a new reference: four seconds at 30 Hz."""
MAX_ASPECT_OFF = 0.15
"""Relative difference of width to height, of a frame and the view: views have whole patches."""
MAX_GAP_NS = 500_000_000
"""Motion is not extrapolated over longer gaps between frames."""
CAUCHY = 2.385
NEAREST = 0.05
"""Of the median depth: nearer points count as so near, and are seen nowhere."""
NOWHERE_PX = -1e3
FAR = 1e9
"""Stands for an unknown depth while the nearest ones are taken."""


class TrackingFailure(Reason):
    """Why a frame has no pose."""

    NO_REFERENCE = "no_reference"
    """No window has been mapped yet, or it knows no view of this camera."""
    WRONG_SIZE = "wrong_size"
    """The frame's aspect is not that of the reference."""
    OUT_OF_ORDER = "out_of_order"
    """It is not newer than the last one, or than the reference."""
    FEW_CORNERS = "few_corners"
    """The reference shows too little that can be followed: a bare wall, or all at edges."""
    OUT_OF_VIEW = "out_of_view"
    """Too little of the reference is expected in the frame."""
    FEW_INLIERS = "few_inliers"
    """Too few corners were found again where one pose puts them."""


@dataclass(frozen=True)
class TrackingReference:
    """The view that frames are followed against."""

    stamp_ns: int
    grey: np.ndarray
    """uint8 (h, w)."""
    points: np.ndarray
    """float32 (h, w, 3): a point per pixel in the view's optical frame, map units."""
    camera: Intrinsics
    """Of the h x w image."""
    map_from_camera: np.ndarray
    """float64 (4, 4), rigid."""
    covariance: np.ndarray
    """float64 (6, 6) of that pose, as `WindowPose.covariance`."""
    map_id: int = 0


@dataclass(frozen=True)
class TrackedPose:
    """Where a camera was at a frame's stamp."""

    stamp_ns: int
    map_from_camera: np.ndarray
    """float64 (4, 4), rigid, map units."""
    covariance: np.ndarray
    """float64 (6, 6): the reference's carried on, plus what following it added."""
    reference_from_camera: np.ndarray
    """float64 (4, 4): the same, relative to the reference."""
    inliers: int
    inlier_share: float
    """Of the corners that should be in the frame."""
    last_from_camera: np.ndarray | None
    """float64 (4, 4): motion since the frame tracked before, which no change of reference enters;
    None where there was none."""
    last_stamp_ns: int


def tracking_reference(update: MappedWindow, view: int) -> TrackingReference | None:
    """A view of a window as reference, at the size at which frames are tracked; None where no
    pinhole camera is known for it."""
    result, frame = update.result, update.window.frames[view]
    recovered = result.intrinsics[view]
    if recovered is None:
        return None
    rows, columns = result.colours.shape[1:3]
    scale = float(np.clip(columns, MIN_WIDTH_PX, WIDTH_PX)) / columns
    size = round(scale * columns), round(scale * rows)
    grey = resized(cv2.cvtColor(result.colours[view], cv2.COLOR_RGB2GRAY), size)
    unit = np.float32(update.placement.map_from_window.scale)
    points = believed_points(result)[view]
    if size != (columns, rows):
        at = [((np.arange(n) + 0.5) * m / n).astype(int) for n, m in
              zip(size[::-1], (rows, columns), strict=True)]  # fmt: skip
        points = points[np.ix_(*at)]
    return TrackingReference(
        frame.stamp_ns,
        grey,
        points * unit,
        recovered.resized(*size),
        update.map_from_camera[view],
        update.placement.covariance[view],
        update.placement.map_id,
    )


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image at (columns, rows)."""
    if image.shape[1::-1] == size:
        return image
    method = cv2.INTER_AREA if image.shape[1] > size[0] else cv2.INTER_LINEAR
    return cv2.resize(image, size, interpolation=method)


class _Template:
    """What frames are compared with: the newest view of a window, or a frame tracked since."""

    def __init__(self, view: TrackingReference):
        self.view = view
        self.size = np.array(view.grey.shape[::-1])
        edges = depth_edges(view.points[..., 2], EDGE_STEP).astype(np.uint8)
        usable = 1 - cv2.dilate(edges, np.ones((3, 3), np.uint8))
        unknown = ~(np.isfinite(view.points).all(-1) & (view.points[..., 2] > 0))
        usable[unknown] = 0
        inner = np.zeros_like(usable)
        inner[BORDER_PX + 1 : -BORDER_PX - 1, BORDER_PX + 1 : -BORDER_PX - 1] = 1
        usable &= inner
        self._surface = view.points
        """Points where all are known, others behind the camera."""
        if unknown.any():
            self._surface = np.where(unknown[..., None], np.float32([0, 0, -1]), view.points)
        corners = cv2.goodFeaturesToTrack(
            view.grey, MAX_CORNERS, MIN_STRENGTH, MIN_DISTANCE_PX, mask=usable * 255, blockSize=5
        )
        self.corners = np.zeros((0, 2), np.float32) if corners is None else corners[:, 0]
        """float32 (n, 2) pixels."""
        column, row = np.rint(self.corners).astype(int).T
        self._at = row, column
        self.points = view.points[row, column].astype(np.float64)
        """float64 (n, 3) in the view's optical frame."""
        self.depth = float(np.median(self.points[:, 2])) if len(self.points) else 1.0
        """Median, map units."""

    def find(self, grey: np.ndarray, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Where the corners are in a frame (n, 2), which were found, and how many should be there.

        pose: camera_from_template as predicted.
        """
        seen = cv2.transform(self._surface, self.view.camera.matrix() @ pose[:3])
        behind = seen[..., 2] <= NEAREST * self.depth
        seen[behind, 2] = 1.0
        seen[behind, :2] = NOWHERE_PX
        warp = seen[..., :2] / seen[..., 2:]
        expected = self._inside(warp[self._at])
        if expected.sum() < MIN_INLIERS:
            return self.corners, expected, int(expected.sum())
        warped = cv2.remap(grey, warp, None, cv2.INTER_LINEAR)
        options = {
            "winSize": (PATCH_PX,) * 2,
            "maxLevel": LEVELS,
            "minEigThreshold": MIN_TEXTURE,
            "criteria": (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 15, 0.02),
        }
        images, starts = (self.view.grey, warped), self.corners
        ends, there, _ = cv2.calcOpticalFlowPyrLK(*images, starts, None, **options)
        # The way back begins where it should end.
        options |= {"flags": cv2.OPTFLOW_USE_INITIAL_FLOW, "maxLevel": 0}
        back, here, _ = cv2.calcOpticalFlowPyrLK(*images[::-1], ends, starts.copy(), **options)
        sound = (there & here)[:, 0].astype(bool) & self._inside(ends) & expected
        sound &= np.linalg.norm(back - starts, axis=1) < MAX_RETURN_PX
        pixels = cv2.remap(warp, ends[None], None, cv2.INTER_LINEAR)[0]
        sound &= self._inside(pixels)
        return pixels.astype(np.float64), sound, int(expected.sum())

    def turn_to(self, grey: np.ndarray) -> np.ndarray:
        """template_from_camera (4, 4) of the turn that lays a frame over the template as a whole
        (phase correlation; Kuglin & Hines, 1975)."""
        scale = self.size[0] / COARSE_PX
        size = COARSE_PX, max(2, round(self.size[1] / scale))
        small = [resized(each, size).astype(np.float32) for each in (self.view.grey, grey)]
        window = cv2.createHanningWindow(size, cv2.CV_32F)
        (x, y), _ = cv2.phaseCorrelate(*small, window)
        camera = self.view.camera
        angles = np.array([y * scale / camera.fy_px, -x * scale / camera.fx_px, 0.0])
        pose = np.eye(4)
        pose[:3, :3] = cv2.Rodrigues(angles)[0]
        return pose

    def _inside(self, pixels: np.ndarray) -> np.ndarray:
        """bool (n,): pixels (n, 2) whose patch lies in the image."""
        return ((pixels > BORDER_PX) & (pixels < self.size - BORDER_PX - 1)).all(1)


class CameraTracker:
    """Follows one camera. Not thread-safe."""

    def __init__(self) -> None:
        self._reference: TrackingReference | None = None
        self._template: _Template | None = None
        self._poses: deque[tuple[int, np.ndarray]] = deque(maxlen=KEPT_POSES)
        """(stamp_ns, reference_from_camera) of the frames tracked last, oldest first."""

    @property
    def reference(self) -> TrackingReference | None:
        """The view of a window that poses are relative to now."""
        return self._reference

    def clear(self) -> None:
        """Forget everything; nothing is tracked until the next reference."""
        self._reference = self._template = None
        self._poses.clear()

    def set_reference(self, reference: TrackingReference, rescaled: float = 1.0) -> None:
        """Follow frames against another view from now on.

        rescaled: factor by which the lengths of the map grew since the last reference. Poses
        tracked since the view was taken go over with it, so that motion stays continuous.
        """
        before, poses = self._reference, list(self._poses)
        self._poses.clear()
        if before is not None and before.map_id == reference.map_id:
            self._poses.extend(_handed_over(before, reference, poses, rescaled))
        self._reference, self._template = reference, _Template(reference)

    def track(self, image: np.ndarray, stamp_ns: int) -> TrackedPose | TrackingFailure:
        """The pose of a frame: grey uint8 (height, width) of any size with the view's aspect."""
        reference, template = self._reference, self._template
        if reference is None or template is None:
            return TrackingFailure.NO_REFERENCE
        newest_ns = self._poses[-1][0] if self._poses else reference.stamp_ns - 1
        if stamp_ns <= newest_ns:
            return TrackingFailure.OUT_OF_ORDER
        columns, rows = template.size
        if abs(image.shape[1] * rows / (image.shape[0] * columns) - 1) > MAX_ASPECT_OFF:
            return TrackingFailure.WRONG_SIZE
        if len(template.corners) < MIN_INLIERS:
            return TrackingFailure.FEW_CORNERS
        grey = resized(image, (columns, rows))
        for start in self._predictions(grey, stamp_ns):
            outcome = self._follow(grey, stamp_ns, start)
            if isinstance(outcome, TrackedPose):
                self._poses.append((stamp_ns, outcome.reference_from_camera))
                if outcome.inlier_share < RENEWED_SHARE:
                    self._renew(grey, outcome)
                break
        return outcome

    def _predictions(self, grey: np.ndarray, stamp_ns: int) -> Iterator[np.ndarray]:
        """Where the camera may be, template_from_camera: as it moved, where it was, or by the
        image as a whole, or where the template was."""
        template_from_reference = (
            np.linalg.inv(self._template.view.map_from_camera) @ self._reference.map_from_camera
        )
        if self._poses:
            newest_ns, newest = self._poses[-1]
            newest = template_from_reference @ newest
            if len(self._poses) > 1:
                before_ns, before = self._poses[-2]
                gaps = stamp_ns - newest_ns, newest_ns - before_ns
                if max(gaps) <= MAX_GAP_NS:
                    before = template_from_reference @ before
                    yield newest @ _scaled(np.linalg.inv(before) @ newest, gaps[0] / gaps[1])
            yield newest
        yield self._template.turn_to(grey)
        if not self._poses:
            yield np.eye(4)

    def _follow(
        self, grey: np.ndarray, stamp_ns: int, start: np.ndarray
    ) -> TrackedPose | TrackingFailure:
        """The pose from where a prediction puts the camera."""
        template, pose = self._template, np.linalg.inv(start)
        camera = template.view.camera
        for _ in range(ROUNDS):
            pixels, sound, expected = template.find(grey, pose)
            if expected < MIN_INLIERS:
                return TrackingFailure.OUT_OF_VIEW
            if sound.sum() < MIN_INLIERS:
                return TrackingFailure.FEW_INLIERS
            points, before = template.points[sound], pose
            pose, information, error_px = _perspective_n_point(points, pixels[sound], camera, pose)
            moved = project(_moved(before, points), camera) - project(_moved(pose, points), camera)
            if not np.median(np.abs(moved)) > FAR_PX:
                break
        inliers = int((error_px < INLIER_PX).sum())
        share = min(inliers / expected, 1.0)
        if inliers < MIN_INLIERS or share < MIN_INLIER_SHARE:
            return TrackingFailure.FEW_INLIERS
        return self._tracked(stamp_ns, np.linalg.inv(pose), information, inliers, share)

    def _tracked(
        self,
        stamp_ns: int,
        template_from_camera: np.ndarray,
        information: np.ndarray,
        inliers: int,
        share: float,
    ) -> TrackedPose:
        map_from_camera = self._template.view.map_from_camera @ template_from_camera
        reference_from_camera = np.linalg.inv(self._reference.map_from_camera) @ map_from_camera
        last_ns, last = self._poses[-1] if self._poses else (stamp_ns, None)
        step = None if last is None else np.linalg.inv(last) @ reference_from_camera
        return TrackedPose(
            stamp_ns,
            map_from_camera,
            self._covariance(template_from_camera, information, stamp_ns, share),
            reference_from_camera,
            inliers,
            share,
            step,
            last_ns,
        )

    def _covariance(
        self,
        template_from_camera: np.ndarray,
        information: np.ndarray,
        stamp_ns: int,
        share: float,
    ) -> np.ndarray:
        """Of the pose in the map: the template's carried to the new place, plus the motion's."""
        view = self._template.view
        turn = view.map_from_camera[:3, :3]
        way = turn @ template_from_camera[:3, 3]
        carry = np.eye(6)
        carry[:3, 3:] = -cross_matrix(way)
        covariance = carry @ view.covariance @ carry.T
        # The motion's is of the tangent (turn, shift) in the camera: order and axes change.
        axes = np.zeros((6, 6))
        axes[:3, 3:] = axes[3:, :3] = turn @ template_from_camera[:3, :3]
        covariance += axes @ np.linalg.inv(information) @ axes.T / share
        seconds = max(stamp_ns - view.stamp_ns, 0) * 1e-9
        drift = DRIFT_PER_S * seconds * self._template.depth
        shift = DEPTH_SHARE * float(np.linalg.norm(way)) + drift
        covariance += np.diag([shift**2] * 3 + [(DRIFT_PER_S * seconds) ** 2] * 3)
        return (covariance + covariance.T) / 2

    def _renew(self, grey: np.ndarray, tracked: TrackedPose) -> None:
        """Compare the next frames with this one, if enough of it has points."""
        view = self._template.view
        camera_from_template = np.linalg.inv(tracked.map_from_camera) @ view.map_from_camera
        points = _as_seen(
            _moved(camera_from_template.astype(np.float32), view.points), view.camera
        )
        renewed = _Template(
            TrackingReference(
                tracked.stamp_ns,
                grey,
                points,
                view.camera,
                tracked.map_from_camera,
                tracked.covariance,
                view.map_id,
            )
        )
        if len(renewed.corners) >= MIN_RENEWED:
            self._template = renewed


def _as_seen(points: np.ndarray, camera: Intrinsics) -> np.ndarray:
    """A point per pixel, float32 (h, w, 3): the nearest of points (..., 3) that fall on it, or
    beside it; NaN where none does."""
    height, width = points.shape[:2]
    points = points[np.isfinite(points).all(-1) & (points[..., 2] > 0)]
    # The last one written stays: the nearest.
    points = points[np.argsort(-points[:, 2])]
    column, row = np.rint(project(points, camera)).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    depth = np.full((height, width), np.float32(FAR), np.float32)
    depth[row[inside].astype(int), column[inside].astype(int)] = points[inside, 2]
    hole = depth == FAR
    depth[hole] = cv2.erode(depth, np.ones((3, 3), np.uint8))[hole]
    depth[depth >= FAR] = np.nan
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    return unproject(pixels, depth, camera).astype(np.float32)


def _perspective_n_point(
    points: np.ndarray, pixels: np.ndarray, camera: Intrinsics, pose: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """camera_from_reference (4, 4) that projects points (n, 3) to pixels (n, 2), from a guess.

    Also the information (6, 6) of the camera's own motion (turn, shift in its axes), and the
    errors (n,) in pixels.
    """
    focal = np.array([camera.fx_px, camera.fy_px])
    rays = (pixels - (camera.cx_px, camera.cy_px)) / focal
    depth = float(np.median(points[:, 2]))
    for _ in range(STEPS):
        seen = _moved(pose, points)
        seen[:, 2] = np.maximum(seen[:, 2], NEAREST * depth)
        residual = (seen[:, :2] / seen[:, 2:] - rays) * focal
        error_px = np.linalg.norm(residual, axis=1)
        std_px = max(MIN_TRACK_PX, float(np.median(error_px)) / 1.1774)
        weight = 1 / (1 + (error_px / (CAUCHY * std_px)) ** 2) / std_px**2
        jacobian = _projection_rows(seen, focal)
        weighted = jacobian * weight[:, None, None]
        information = np.einsum("nai,naj->ij", weighted, jacobian)
        gradient = np.einsum("nai,na->i", weighted, residual)
        information += np.diag([1e-9] * 3 + [1e-9 / depth**2] * 3) * np.trace(information)
        step = np.linalg.solve(information, -gradient)
        motion = np.eye(4)
        motion[:3, :3], motion[:3, 3] = cv2.Rodrigues(step[:3])[0], step[3:]
        pose = motion @ pose
        if max(np.abs(step[:3]).max(), np.abs(step[3:]).max() / depth) < SMALL_STEP:
            break
    seen = _moved(pose, points)
    seen[:, 2] = np.maximum(seen[:, 2], NEAREST * depth)
    error_px = np.linalg.norm((seen[:, :2] / seen[:, 2:] - rays) * focal, axis=1)
    return pose, information / ALIKE, error_px


def _projection_rows(seen: np.ndarray, focal: np.ndarray) -> np.ndarray:
    """(n, 2, 6): derivatives of pixels of points (n, 3) by their motion (turn, shift)."""
    near = 1 / seen[:, 2]
    slope = np.zeros((len(seen), 2, 3))
    slope[:, 0, 0], slope[:, 1, 1] = focal[0] * near, focal[1] * near
    slope[:, :, 2] = -focal * seen[:, :2] * near[:, None] ** 2
    return np.concatenate([np.cross(seen[:, None], slope), slope], -1)


def _handed_over(
    before: TrackingReference,
    after: TrackingReference,
    poses: list[tuple[int, np.ndarray]],
    rescaled: float,
) -> list[tuple[int, np.ndarray]]:
    """Poses since the new reference's stamp, relative to it.

    By the pose tracked at that stamp; where none was, by where both references lie in the map.
    """
    if not poses:
        return []
    scaled = []
    for stamp_ns, pose in poses:
        pose = pose.copy()
        pose[:3, 3] *= rescaled
        scaled.append((stamp_ns, pose))
    at = {stamp_ns: pose for stamp_ns, pose in scaled}.get(after.stamp_ns)
    if at is None:
        map_from_before = before.map_from_camera.copy()
        map_from_before[:3, 3] *= rescaled
        at = np.linalg.inv(map_from_before) @ after.map_from_camera
    after_from_before = np.linalg.inv(at)
    return [
        (stamp_ns, after_from_before @ pose)
        for stamp_ns, pose in scaled
        if stamp_ns >= after.stamp_ns
    ]


def _scaled(motion: np.ndarray, share: float) -> np.ndarray:
    """A share of a motion (4, 4)."""
    part = np.eye(4)
    part[:3, :3] = cv2.Rodrigues(share * cv2.Rodrigues(motion[:3, :3])[0])[0]
    part[:3, 3] = share * motion[:3, 3]
    return part


def _moved(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (..., 3) by a pose (4, 4)."""
    return points @ pose[:3, :3].T + pose[:3, 3]
