# SPDX-License-Identifier: Apache-2.0
"""What frames between windows are compared with: a view with its points, and its corners.

The frame is warped into the view by the view's points and a predicted pose, so that what is left
between the two is the error of the prediction. Corners of the view are followed into it (Lucas &
Kanade, IJCAI 1981) and back. An exposure that changed, or a lens that is darker at its corners,
would be taken for motion: `local_contrast` takes both out, at some cost of what is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from g2vlm_ros.geometry.camera import depth_edges, project, unproject
from g2vlm_ros.geometry.confidence import EDGE_STEP
from g2vlm_ros.mapping.ignored_pixels import BelievedPoints
from g2vlm_ros.mapping.perspective_n_point import NEAREST
from g2vlm_ros.mapping.view_images import MIN_WIDTH_PX, WIDTH_PX
from g2vlm_ros.mapping.window_pose import MappedWindow
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
MIN_POINTS = 15
"""Two and a half points per unknown of a pose; fewer fit to anything."""
COARSE_PX = 64
"""Width at which a frame is laid over the template where nothing else predicts its pose."""
NOWHERE_PX = -1e3
FAR = 1e9
"""Stands for an unknown depth while the nearest ones are taken."""


SMOOTH_PX = 1.5
"""Deviation of the Gauss filter before contrast is measured: the noise of a dim room."""
AROUND_PX = 31
"""Side of the square over which brightness and contrast are made equal: wider than what is
followed, narrower than what vignetting and lamps change."""
MIN_CONTRAST = 6.0
"""Deviation of grey levels below which what is seen is noise, and stays below full contrast."""
CONTRAST = 40.0
"""Deviation of grey levels that every part of an image has afterwards."""


@dataclass(frozen=True)
class TrackingReference:
    """The view that frames are followed against."""

    stamp_ns: int
    grey: np.ndarray
    """uint8 (h, w): its image."""
    points: np.ndarray
    """float32 (h, w, 3): a point per pixel in the view's optical frame, map units."""
    camera: Intrinsics
    """Of the h x w image."""
    map_from_camera: np.ndarray
    """float64 (4, 4), rigid."""
    covariance: np.ndarray
    """float64 (6, 6) of that pose, as `WindowPose.covariance`."""
    map_id: int = 0


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
    points = BelievedPoints(result, view).at_size(size)
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


def local_contrast(grey: np.ndarray) -> np.ndarray:
    """uint8 (h, w): the image with the same brightness and contrast everywhere."""
    smooth = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), SMOOTH_PX)
    mean = cv2.blur(smooth, (AROUND_PX, AROUND_PX))
    variance = cv2.blur(smooth * smooth, (AROUND_PX, AROUND_PX)) - mean * mean
    gain = CONTRAST / np.sqrt(np.maximum(variance, 0.0) + MIN_CONTRAST**2)
    return np.clip(128.5 + gain * (smooth - mean), 0, 255).astype(np.uint8)


class TrackingTemplate:
    """What frames are compared with: the newest view of a window, or a frame tracked since."""

    def __init__(self, view: TrackingReference, image: np.ndarray):
        """image: uint8 (h, w), the view's `grey`, or what `local_contrast` makes of it."""
        self.view, self._image = view, image
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
            image, MAX_CORNERS, MIN_STRENGTH, MIN_DISTANCE_PX, mask=usable * 255, blockSize=5
        )
        self.corners = np.zeros((0, 2), np.float32) if corners is None else corners[:, 0]
        """float32 (n, 2) pixels."""
        column, row = np.rint(self.corners).astype(int).T
        self._at = row, column
        self.points = view.points[row, column].astype(np.float64)
        """float64 (n, 3) in the view's optical frame."""
        self.depth = float(np.median(self.points[:, 2])) if len(self.points) else 1.0
        """Median, map units."""

    def find(self, frame: np.ndarray, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Where the corners are in a frame (n, 2), which were found, and how many should be there.

        frame: uint8 (h, w), treated as the template's image was. pose: camera_from_template as
        predicted.
        """
        in_camera = cv2.transform(self._surface, self.view.camera.matrix() @ pose[:3])
        behind = in_camera[..., 2] <= NEAREST * self.depth
        in_camera[behind, 2] = 1.0
        in_camera[behind, :2] = NOWHERE_PX
        warp = in_camera[..., :2] / in_camera[..., 2:]
        expected = self._inside(warp[self._at])
        if expected.sum() < MIN_POINTS:
            return self.corners, expected, int(expected.sum())
        warped = cv2.remap(frame, warp, None, cv2.INTER_LINEAR)
        options = {
            "winSize": (PATCH_PX,) * 2,
            "maxLevel": LEVELS,
            "minEigThreshold": MIN_TEXTURE,
            "criteria": (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 15, 0.02),
        }
        images, starts = (self._image, warped), self.corners
        ends, there, _ = cv2.calcOpticalFlowPyrLK(*images, starts, None, **options)
        # The way back begins where it should end.
        options |= {"flags": cv2.OPTFLOW_USE_INITIAL_FLOW, "maxLevel": 0}
        back, here, _ = cv2.calcOpticalFlowPyrLK(*images[::-1], ends, starts.copy(), **options)
        sound = (there & here)[:, 0].astype(bool) & self._inside(ends) & expected
        sound &= np.linalg.norm(back - starts, axis=1) < MAX_RETURN_PX
        pixels = cv2.remap(warp, ends[None], None, cv2.INTER_LINEAR)[0]
        sound &= self._inside(pixels)
        return pixels.astype(np.float64), sound, int(expected.sum())

    def turn_to(self, frame: np.ndarray) -> np.ndarray:
        """template_from_camera (4, 4) of the turn that lays a frame over the template as a whole
        (phase correlation; Kuglin & Hines, 1975)."""
        scale = self.size[0] / COARSE_PX
        size = COARSE_PX, max(2, round(self.size[1] / scale))
        small = [resized(each, size).astype(np.float32) for each in (self._image, frame)]
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


def points_as_seen(points: np.ndarray, camera: Intrinsics) -> np.ndarray:
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
