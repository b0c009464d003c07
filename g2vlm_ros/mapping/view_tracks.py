# SPDX-License-Identifier: Apache-2.0
"""Corners of a window's views found again in its other views.

Each earlier view is first warped into the later one by the window's own depth and poses, so that
what is left between the two is small: the error of the poses, not the motion of the camera.
Corners (Shi & Tomasi, CVPR 1994) are then followed from the warped image to the real one (Lucas &
Kanade, IJCAI 1981) and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from g2vlm_ros.geometry.camera import unproject
from g2vlm_ros.geometry.confidence import EDGE_STEP
from g2vlm_ros.kernels.agreement import pick_points
from g2vlm_ros.kernels.device_points import DevicePoints
from g2vlm_ros.kernels.packing import valid_points
from g2vlm_ros.kernels.window_adjustment import see_points
from g2vlm_ros.mapping.ignored_pixels import resized_mask
from g2vlm_ros.mapping.view_images import Flow, ViewImage
from g2vlm_ros.records import Reconstruction

MAX_VIEWS_APART = 3
"""Views further apart in their window are not compared: they mostly overlap through others."""
PATCH_PX, LEVELS, LEVELS_BACK = 11, 3, 1
"""Side of the square that is followed, and how often the images are halved for it; less on the way
back, which begins where it should end."""
MIN_TEXTURE = 1e-4
"""Smallest eigenvalue of a patch's gradients, as OpenCV scales it."""
MAX_RETURN_PX = 0.7
"""How far a track followed back may end from where it began."""
MAX_DEPTH_OFF = 0.3
"""Logarithm of the depths of two views up to which they may see the same surface."""
MIN_TRACKS = 8
"""Of a pair of views; fewer are chance."""
MAX_TRACKS = 1500
"""Of a window; more are thinned out, since neighbours repeat each other."""
BORDER_PX = 3
"""Patches nearer to the edge of an image are cut off."""


@dataclass(frozen=True)
class Tracks:
    """Points of one view found in another one, k of them over all pairs of views."""

    source: np.ndarray
    """int (k,): the earlier view; tracks of one pair of views follow each other."""
    target: np.ndarray
    """int (k,): the later view."""
    source_px: np.ndarray
    target_px: np.ndarray
    """float64 (k, 2) at the size of `TrackedViews`."""
    point_u: np.ndarray
    """float64 (k, 3) in the optical frame of the source."""
    ray: np.ndarray
    """float64 (k, 2): where it was found, x/z and y/z."""
    pixel: np.ndarray
    """float64 (k,): a pixel of the target as x/z."""

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: np.ndarray) -> Tracks:
        """Those of a mask or of indices."""
        return Tracks(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def linked(self, views: int) -> np.ndarray:
        """bool (views, views): pairs of views that tracks connect."""
        linked = np.zeros((views, views), bool)
        linked[self.source, self.target] = linked[self.target, self.source] = True
        return linked


class TrackedViews:
    """The views of a window at the size at which they are tracked."""

    def __init__(
        self,
        result: Reconstruction,
        images: Sequence[ViewImage],
        flows: dict[tuple[int, int], Flow] | None = None,
    ):
        """images: of its views; flows: tracks of pairs of views that are known already."""
        self.images, self.flows = images, dict(flows or {})
        self.size = images[0].tracked_size
        """Columns, rows."""
        self.cameras = [camera and camera.resized(*self.size) for camera in result.intrinsics]
        self.points_u = reduced(result.local_points_u, self.size)
        """float32 (N, rows, columns, 3), optical frames; on a device where the window's are."""
        self.edges = _edges(self.points_u)
        """uint8 (N, rows, columns): 1 at and beside depth edges, and at ignored pixels."""
        self.ignored: np.ndarray | None = None
        """bool (N, rows, columns): pixels of what moves, or None."""
        if result.ignored is not None:
            self.ignored = np.stack([resized_mask(view, self.size) for view in result.ignored])
            self.edges |= self.ignored
        self._corners: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.images)

    def corners(self, view: int) -> np.ndarray:
        """float32 (n, 2) pixels, away from depth edges."""
        if view not in self._corners:
            corners = self.images[view].corners
            self._corners[view] = corners[self.at(self.edges[view], corners) == 0]
        return self._corners[view]

    def pairs(self) -> list[tuple[int, int]]:
        """(earlier, later) views that may be compared."""
        with_camera = [i for i, camera in enumerate(self.cameras) if camera is not None]
        return [(i, j) for j in with_camera for i in with_camera if 0 < j - i <= MAX_VIEWS_APART]

    def inside(self, pixels: np.ndarray) -> np.ndarray:
        """bool (n,): pixels (n, 2) whose patch lies in the image."""
        limit = np.array(self.size) - BORDER_PX - 1
        return ((pixels > BORDER_PX) & (pixels < limit)).all(1)

    def places(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int (n,), (n,): rows and columns of the pixels of an image nearest to (n, 2)."""
        column, row = np.clip(np.rint(pixels), 0, np.array(self.size) - 1).astype(int).T
        return row, column

    def at(self, images: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        """An image's values at the nearest of its pixels to (n, 2)."""
        return images[self.places(pixels)]

    def depths_at(self, view: int, pixels: np.ndarray) -> np.ndarray:
        """float32 (n,): a view's depths at the nearest of its pixels to (n, 2)."""
        return self.points_u[(view, *self.places(pixels), 2)]


def reduced(points: np.ndarray | DevicePoints, size: tuple[int, int]) -> np.ndarray | DevicePoints:
    """Those of point maps (N, h, w, 3) nearest to the pixels of a size (columns, rows)."""
    if isinstance(points, DevicePoints):
        return points.resized(size[1], size[0])
    return pick_points(points, size[1], size[0])


def _edges(points: np.ndarray | DevicePoints) -> np.ndarray:
    """uint8 (N, h, w): 1 at and beside depth edges of point maps (N, h, w, 3)."""
    if isinstance(points, DevicePoints):
        return points.uneven(EDGE_STEP).view(np.uint8)
    kernel, smooth = np.ones((3, 3), np.uint8), valid_points(points, EDGE_STEP)
    return np.stack([cv2.dilate((~view).view(np.uint8), kernel) for view in smooth])


def follow_corners(views: TrackedViews, poses: np.ndarray, afresh: bool = False) -> Tracks | None:
    """Corners of later views in earlier ones, from where poses (N, 4, 4) expect them.

    Pairs whose flow is known are not searched, unless `afresh`. None where no pair of views has
    MIN_TRACKS.
    """
    if afresh:
        views.flows.clear()
    parts = [part for pair in views.pairs() if (part := _follow(views, poses, *pair))]
    if not parts:
        return None
    tracks = Tracks(*(np.concatenate(each) for each in zip(*parts, strict=True)))
    if len(tracks) <= MAX_TRACKS:
        return tracks
    return tracks[np.linspace(0, len(tracks) - 1, MAX_TRACKS).astype(int)]


def _follow(
    views: TrackedViews, poses: np.ndarray, source: int, target: int
) -> tuple[np.ndarray, ...] | None:
    """The fields of `Tracks` for one pair of views, or None."""
    if (source, target) not in views.flows:
        flow = _search(views, poses, source, target)
        if flow is None:
            return None
        views.flows[source, target] = flow
    begins, ends = (pixels.astype(np.float64) for pixels in views.flows[source, target])
    if views.ignored is not None:
        # A mask may have come after the window in which the pair was searched.
        still = ~views.at(views.ignored[source], begins) & ~views.at(views.ignored[target], ends)
        begins, ends = begins[still], ends[still]
        if len(ends) < MIN_TRACKS:
            return None
    camera = views.cameras[target]
    depth = views.depths_at(source, begins).astype(np.float64)
    focal, centre = (camera.fx_px, camera.fy_px), (camera.cx_px, camera.cy_px)
    return (
        np.full(len(ends), source),
        np.full(len(ends), target),
        begins,
        ends,
        unproject(begins, depth, views.cameras[source]),
        (ends - centre) / focal,
        np.full(len(ends), 1 / camera.fx_px),
    )


def _search(views: TrackedViews, poses: np.ndarray, source: int, target: int) -> Flow | None:
    """Pixels of the source, and where they are in the target, from where poses expect them."""
    starts = views.corners(target)
    if len(starts) < MIN_TRACKS:
        return None
    source_from_target = (np.linalg.inv(poses[source]) @ poses[target])[:3].astype(np.float32)
    camera = views.cameras[source]
    pinhole = np.array([camera.fx_px, camera.fy_px, camera.cx_px, camera.cy_px], np.float32)
    points = views.points_u[(target, *views.places(starts))]
    begins, depth = see_points(points, source_from_target, pinhole)
    surface = views.depths_at(source, begins)
    near = np.abs(np.log(np.maximum(depth, 1e-9) / surface)) < MAX_DEPTH_OFF
    near &= views.inside(begins)
    starts, begins = starts[near], begins[near]
    if len(starts) < MIN_TRACKS:
        return None
    grey = views.images[source].grey
    warped = _warped(grey, views.points_u, target, source_from_target, pinhole)
    ends, sound = _flow(warped, views.images[target].grey, starts)
    sound &= views.inside(begins) & views.inside(ends)
    return (begins[sound], ends[sound]) if sound.sum() >= MIN_TRACKS else None


def _warped(
    grey: np.ndarray,
    points: np.ndarray | DevicePoints,
    target: int,
    source_from_target: np.ndarray,
    pinhole: np.ndarray,
) -> np.ndarray:
    """uint8 (h, w): the image of a source as a target sees it."""
    if isinstance(points, DevicePoints):
        return points.warped(target, source_from_target, pinhole, grey)
    places, _ = see_points(points[target].reshape(-1, 3), source_from_target, pinhole)
    return cv2.remap(grey, places.reshape(*grey.shape, 2), None, cv2.INTER_LINEAR)


def _flow(one: np.ndarray, other: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where pixels (n, 2) of one image are in another one; which of them also lead back."""
    options = {
        "winSize": (PATCH_PX,) * 2,
        "maxLevel": LEVELS,
        "criteria": (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 15, 0.02),
        "minEigThreshold": MIN_TEXTURE,
    }
    ends, there, _ = cv2.calcOpticalFlowPyrLK(one, other, starts, None, **options)
    options["maxLevel"] = LEVELS_BACK
    options["flags"] = cv2.OPTFLOW_USE_INITIAL_FLOW
    back, here, _ = cv2.calcOpticalFlowPyrLK(other, one, ends, starts.copy(), **options)
    returned = np.linalg.norm(back - starts, axis=1) < MAX_RETURN_PX
    return ends, (there & here)[:, 0].astype(bool) & returned
