# SPDX-License-Identifier: Apache-2.0
"""Corners of a window's views found again in its other views.

Each earlier view is first warped into the later one by the window's own depth and poses, so that
what is left between the two is small: the error of the poses, not the motion of the camera.
Corners (Shi & Tomasi, CVPR 1994) are then followed from the warped image to the real one (Lucas &
Kanade, IJCAI 1981) and back.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from g2vlm_ros.geometry.camera import depth_edges, project, unproject
from g2vlm_ros.geometry.confidence import EDGE_STEP
from g2vlm_ros.records import Reconstruction

MIN_WIDTH_PX, MAX_WIDTH_PX = 160, 256
"""Views are tracked at their own width between these; patches need pixels."""
MAX_VIEWS_APART = 3
"""Views further apart in their window are not compared: they mostly overlap through others."""
MAX_CORNERS, MIN_DISTANCE_PX, MIN_STRENGTH = 350, 5, 0.001
"""Corners of a view: how many at most, how far apart, and how strong against the strongest."""
PATCH_PX, LEVELS = 11, 3
"""Side of the square that is followed, and how often the images are halved for it."""
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
    target_depth_u: np.ndarray
    """float64 (k,): depth of the target there."""
    pixel: np.ndarray
    """float64 (k,): a pixel of the target as x/z."""

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, chosen: np.ndarray) -> Tracks:
        """Those of a mask or of indices."""
        return Tracks(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def linked(self, views: int) -> np.ndarray:
        """bool (views, views): pairs of views that tracks connect."""
        linked = np.zeros((views, views), bool)
        linked[self.source, self.target] = linked[self.target, self.source] = True
        return linked


class TrackedViews:
    """The views of a window at the size at which they are tracked."""

    def __init__(self, result: Reconstruction):
        height, width = result.colours.shape[1:3]
        scale = np.clip(width, MIN_WIDTH_PX, MAX_WIDTH_PX) / width
        self.size = round(scale * width), round(scale * height)
        """Columns, rows."""
        self.cameras = [camera and camera.resized(*self.size) for camera in result.intrinsics]
        self.grey = [self._resized(cv2.cvtColor(c, cv2.COLOR_RGB2GRAY)) for c in result.colours]
        rows = ((np.arange(self.size[1]) + 0.5) * height / self.size[1]).astype(int)
        columns = ((np.arange(self.size[0]) + 0.5) * width / self.size[0]).astype(int)
        self.points_u = [view[np.ix_(rows, columns)] for view in result.local_points_u]
        """float32 (rows, columns, 3) per view, optical frames."""
        kernel = np.ones((3, 3), np.uint8)
        self.edges = [
            cv2.dilate(depth_edges(points[..., 2], EDGE_STEP).astype(np.uint8), kernel)
            for points in self.points_u
        ]
        """uint8 (rows, columns) per view: 1 at and beside depth edges."""
        self._corners: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.grey)

    def corners(self, view: int) -> np.ndarray:
        """float32 (n, 2) pixels, away from depth edges."""
        if view not in self._corners:
            corners = cv2.goodFeaturesToTrack(
                self.grey[view], MAX_CORNERS, MIN_STRENGTH, MIN_DISTANCE_PX,
                mask=(1 - self.edges[view]) * 255, blockSize=5,
            )  # fmt: skip
            empty = np.zeros((0, 2), np.float32)
            self._corners[view] = empty if corners is None else corners.reshape(-1, 2)
        return self._corners[view]

    def pairs(self) -> list[tuple[int, int]]:
        """(earlier, later) views that may be compared."""
        known = [i for i, camera in enumerate(self.cameras) if camera is not None]
        return [(i, j) for j in known for i in known if 0 < j - i <= MAX_VIEWS_APART]

    def inside(self, pixels: np.ndarray) -> np.ndarray:
        """bool (n,): pixels (n, 2) whose patch lies in the image."""
        limit = np.array(self.size) - BORDER_PX - 1
        return ((pixels > BORDER_PX) & (pixels < limit)).all(1)

    def at(self, images: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        """An image's values at the nearest of its pixels to (n, 2)."""
        column, row = np.clip(np.rint(pixels), 0, np.array(self.size) - 1).astype(int).T
        return images[row, column]

    def _resized(self, image: np.ndarray) -> np.ndarray:
        if image.shape[1::-1] == self.size:
            return image
        smaller = image.shape[1] > self.size[0]
        method = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
        return cv2.resize(image, self.size, interpolation=method)


def follow_corners(views: TrackedViews, poses: np.ndarray) -> Tracks | None:
    """Corners of later views in earlier ones, from where poses (N, 4, 4) expect them.

    None where no pair of views has MIN_TRACKS.
    """
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
    source_from_target = (np.linalg.inv(poses[source]) @ poses[target]).astype(np.float32)
    starts = views.corners(target)
    if len(starts) < MIN_TRACKS:
        return None
    moved = views.points_u[target] @ source_from_target[:3, :3].T + source_from_target[:3, 3]
    with np.errstate(over="ignore", invalid="ignore"):
        warp = project(moved, views.cameras[source]).astype(np.float32)
    warp = np.nan_to_num(warp, nan=-1e3, posinf=-1e3, neginf=-1e3)
    begins, depth = views.at(warp, starts), views.at(moved[..., 2], starts)
    surface = views.at(views.points_u[source][..., 2], begins)
    near = np.abs(np.log(np.maximum(depth, 1e-9) / surface)) < MAX_DEPTH_OFF
    starts = starts[views.inside(begins) & near]
    if len(starts) < MIN_TRACKS:
        return None
    warped = cv2.remap(views.grey[source], warp, None, cv2.INTER_LINEAR)
    ends, sound = _flow(warped, views.grey[target], starts)
    begins = cv2.remap(warp, starts[None], None, cv2.INTER_LINEAR)[0]
    sound &= views.inside(begins) & views.inside(ends)
    sound &= (views.at(views.edges[source], begins) + views.at(views.edges[target], ends)) == 0
    if sound.sum() < MIN_TRACKS:
        return None
    begins, ends = begins[sound].astype(np.float64), ends[sound].astype(np.float64)
    count, camera = len(ends), views.cameras[target]
    depth = views.at(views.points_u[source][..., 2], begins).astype(np.float64)
    focal, centre = (camera.fx_px, camera.fy_px), (camera.cx_px, camera.cy_px)
    return (
        np.full(count, source),
        np.full(count, target),
        begins,
        ends,
        unproject(begins, depth, views.cameras[source]),
        (ends - centre) / focal,
        views.at(views.points_u[target][..., 2], ends).astype(np.float64),
        np.full(count, 1 / camera.fx_px),
    )


def _flow(one: np.ndarray, other: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where pixels (n, 2) of one image are in another one; which of them also lead back."""
    options = {
        "winSize": (PATCH_PX,) * 2,
        "maxLevel": LEVELS,
        "criteria": (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 15, 0.02),
        "minEigThreshold": MIN_TEXTURE,
    }
    ends, there, _ = cv2.calcOpticalFlowPyrLK(one, other, starts, None, **options)
    options["flags"] = cv2.OPTFLOW_USE_INITIAL_FLOW
    back, here, _ = cv2.calcOpticalFlowPyrLK(other, one, ends, starts.copy(), **options)
    returned = np.linalg.norm(back - starts, axis=1) < MAX_RETURN_PX
    return ends, (there & here)[:, 0].astype(bool) & returned
