# SPDX-License-Identifier: Apache-2.0
"""Bundle adjustment of a window: poses and smooth errors of depth that its images agree with.

Unknown are the pose of each view and, on a few knots of each view, the logarithm of a factor on
its depth. Three kinds of evidence are weighed: tracks (where a point of one view is in another
one), depth (what one view sees lies on the other's surface), and the network, whose poses and
depth are the prior with the deviations that `NetworkErrors` says. Odometry adds turns. Depth is
no truth: how far single depths are off shows in what tracks miss along their epipolar lines more
than across them, and they count by so much less along these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from g2vlm_ros.kernels.window_adjustment import (
    DepthField,
    TrackArrays,
    surface_equations,
    track_equations,
    track_errors,
)
from g2vlm_ros.mapping.view_tracks import (
    BORDER_PX,
    MAX_VIEWS_APART,
    TrackedViews,
    Tracks,
    reduced,
)
from g2vlm_ros.records import ViewStd

KNOTS = (4, 3)
"""Columns and rows of knots on which a view's depth may be wrong."""
PER_VIEW = 6 + KNOTS[0] * KNOTS[1]
"""Unknowns of a view: rotation, translation (right tangent), then its knots."""
SURFACE_PX = 112
"""Surfaces are compared on maps of so many columns or a little more."""
GRID = (14, 10)
"""Columns and rows of points that are laid onto other views' surfaces."""
MIN_TRACK_PX = 0.3
"""Standard deviation of a track at best."""
MIN_DEPTH_STD = 0.005
"""Relative deviation of depth between views at best."""
ALIKE_TRACKS, ALIKE_DEPTH = 4.0, 16.0
"""Errors of neighbours are alike: so many count as one; things have whole errors of depth."""
MAX_POINT_STD = 0.5
"""Relative deviation of single depths at most, which a window's tracks show: nothing is known."""
PAIR_RAD = 0.004
"""What a whole pair of views has wrong in common and no number of tracks averages out: lens,
calibration, a shutter of 20 ms that rolls while the camera turns by 12 degrees a second."""
CAUCHY = 2.385
STEPS = 5
SMALL_STEP = 1e-3
"""Change of the unknowns below which the adjustment ends."""
MIN_POINTS = 30
"""Points of a pair of views that must overlap for their depth to be compared."""
NEAREST = 0.05
"""Of its depth in the source: a point that a pose puts behind the target counts as so near."""


@dataclass(frozen=True)
class NetworkStd:
    """Standard deviations of the network's answers."""

    turn_rad: float
    shift: float
    """Of a camera's place, as a share of the window's median depth."""
    scale: float
    """Relative, of a view's depth as a whole."""
    field: float
    """Relative, of the depth at a knot beside that."""

    def information(self, views: int, depth_u: float) -> np.ndarray:
        """(N PER_VIEW, N PER_VIEW) of the unknowns: views err independently of each other."""
        knots = PER_VIEW - 6
        block = np.zeros((PER_VIEW, PER_VIEW))
        shift = (self.shift * depth_u) ** -2.0
        block[:6, :6] = np.diag([self.turn_rad**-2.0] * 3 + [shift] * 3)
        # The inverse of scale**2 everywhere plus field**2 on the diagonal (Sherman & Morrison).
        common = self.scale**2 / (self.field**2 + knots * self.scale**2)
        block[6:, 6:] = (np.eye(knots) - common) / self.field**2
        information = np.zeros((views, PER_VIEW, views, PER_VIEW))
        information[np.arange(views), :, np.arange(views)] = block
        return information.reshape(views * PER_VIEW, -1)


@dataclass(frozen=True)
class Turn:
    """A turn between two views as something else than the network measured it."""

    earlier: int
    later: int
    rotation: np.ndarray
    """float64 (3, 3), earlier_from_later."""
    std_rad: float


@dataclass(frozen=True)
class Adjustment:
    """What an adjustment found."""

    poses: np.ndarray
    """float64 (N, 4, 4)."""
    log_depth: np.ndarray
    """float64 (N, knots): logarithm of the factor on each view's depth."""
    change: np.ndarray
    """float64 (N, PER_VIEW): from the network's poses and depth, as unknowns."""
    information: np.ndarray
    """float64 (N PER_VIEW, N PER_VIEW) of the unknowns, the prior included."""


def adjusted_std(adjustment: Adjustment, depth_u: float) -> ViewStd:
    """What an adjustment leaves of the errors of its views; depth_u: as of `WindowAdjustment`."""
    views, half = len(adjustment.poses), len(adjustment.poses) // 2
    shares = np.zeros(views)
    shares[:half], shares[views - half :] = -1 / half, 1 / half
    # Last half less first half, in the axes of the window: turn, shift, mean logarithm of depth.
    between = np.zeros((7, views, PER_VIEW))
    for view, (share, pose) in enumerate(zip(shares, adjustment.poses, strict=True)):
        between[:3, view, :3] = share * pose[:3, :3]
        between[3:6, view, 3:6] = share / depth_u * pose[:3, :3]
        between[6, view, 6:] = share / (PER_VIEW - 6)
    between = between.reshape(7, -1)
    variance = (between * np.linalg.solve(adjustment.information, between.T).T).sum(1)
    # Of the difference of two halves of two views each, as that of one view: see `ViewStd`.
    turn, shift, scale = variance[:3].mean(), variance[3:6].mean(), variance[6]
    return ViewStd(float(np.sqrt(turn)), float(np.sqrt(shift)), float(np.sqrt(scale)))


class WindowAdjustment:
    """The adjustment of one window."""

    def __init__(self, views: TrackedViews, poses: np.ndarray, depth_u: float):
        """poses: the network's, float64 (N, 4, 4). depth_u: the window's median depth."""
        self._prior, self._depth_u, self._views = poses, depth_u, views
        self._surfaces = _Surfaces(views)

    def solve(
        self,
        std: NetworkStd,
        tracks: Tracks | None,
        turns: Sequence[Turn] = (),
        start: Adjustment | None = None,
        steps: int = STEPS,
        surfaces: bool = True,
    ) -> Adjustment:
        """Gauss-Newton with Cauchy weights from the network's answers or an earlier adjustment.

        surfaces: False leaves the evidence of depth out.
        """
        count = len(self._prior)
        poses = (self._prior if start is None else start.poses).copy()
        knots = np.zeros((count, PER_VIEW - 6)) if start is None else start.log_depth.copy()
        prior = std.information(count, self._depth_u)
        lines = None if tracks is None else _TrackEquations(tracks, self._views.size)
        for _ in range(steps):
            hessian, relative = prior.copy(), relative_poses(poses)
            gradient = prior @ self._change(poses, knots).reshape(-1)
            parts = [lines] if lines is not None else []
            for part in parts + ([self._surfaces] if surfaces else []):
                part.add(relative, knots, hessian, gradient)
            for turn in turns:
                _add_turn(turn, poses, hessian, gradient)
            step = np.linalg.solve(hessian, -gradient).reshape(count, PER_VIEW)
            poses = poses @ motions(step[:, :6])
            knots = knots + step[:, 6:]
            if np.abs(step).max() < SMALL_STEP:
                break
        return Adjustment(poses, knots, self._change(poses, knots), hessian)

    def unchanged(self) -> Adjustment:
        """The network's answers as they are."""
        change = np.zeros((len(self._prior), PER_VIEW))
        return Adjustment(self._prior, change[:, 6:], change, np.eye(change.size))

    def changed(self, change: np.ndarray, information: np.ndarray) -> Adjustment:
        """An adjustment by its change (N, PER_VIEW) from the network's answers."""
        poses = self._prior @ motions(change[:, :6])
        return Adjustment(poses, change[:, 6:], change, information)

    def _change(self, poses: np.ndarray, knots: np.ndarray) -> np.ndarray:
        return np.concatenate([pose_differences(self._prior, poses), knots], axis=1)


class _TrackEquations:
    """Where points were found, less where poses and depth put them."""

    def __init__(self, tracks: Tracks, size: tuple[int, int]):
        self._tracks, self._field = track_arrays(tracks), DepthField(KNOTS, size)

    def add(
        self,
        relative: np.ndarray,
        log_depth: np.ndarray,
        hessian: np.ndarray,
        gradient: np.ndarray,
    ) -> None:
        track_equations(
            self._field, relative, log_depth, self._tracks, hessian, gradient,
            nearest=NEAREST, cauchy=CAUCHY, min_px=MIN_TRACK_PX, max_point=MAX_POINT_STD,
            pair_std=PAIR_RAD, alike=ALIKE_TRACKS,
        )  # fmt: skip


class _Surfaces:
    """Where views see the surface, less where others' points lie: along the target's depth."""

    def __init__(self, views: TrackedViews):
        step = max(1, views.size[0] // SURFACE_PX)
        size = tuple(n // step for n in views.size)
        cameras = [camera and camera.resized(*size) for camera in views.cameras]
        points = reduced(views.points_u, size)
        edges = np.stack([cv2.resize(each, size, interpolation=cv2.INTER_NEAREST)
                          for each in views.edges])  # fmt: skip
        column, row = _grid(size)
        self._border_px = BORDER_PX / step
        with_camera = [i for i, camera in enumerate(cameras) if camera is not None]
        source, target, at = [], [], []
        for i in range(len(views)):
            smooth = np.flatnonzero(edges[i, row, column] == 0)
            for j in with_camera:
                if i != j and abs(i - j) <= MAX_VIEWS_APART:
                    source.append(np.full(len(smooth), i))
                    target.append(np.full(len(smooth), j))
                    at.append(smooth)
        none = [np.zeros(0, int)]
        self._source, self._target, at = (
            np.concatenate(none + each) for each in (source, target, at)
        )
        self._points = points[self._source, row[at], column[at]].astype(np.float64)
        self._places = np.stack([column[at], row[at]], 1).astype(np.float64)
        self._field = DepthField(KNOTS, size)
        self._maps = np.stack([_slopes(p, e) for p, e in zip(points[..., 2], edges, strict=True)])
        self._cameras = np.array(
            [(c.fx_px, c.fy_px, c.cx_px, c.cy_px) if c else (1, 1, 0, 0) for c in cameras],
            np.float64,
        )

    def add(
        self,
        relative: np.ndarray,
        log_depth: np.ndarray,
        hessian: np.ndarray,
        gradient: np.ndarray,
    ) -> float:
        """The relative deviation of depth between views; 0 where too little overlaps."""
        return surface_equations(
            self._field, relative, log_depth, self._source, self._target, self._points,
            self._places, self._maps, self._cameras, hessian, gradient,
            nearest=NEAREST, cauchy=CAUCHY, border_px=self._border_px, min_points=MIN_POINTS,
            min_std=MIN_DEPTH_STD, alike=ALIKE_DEPTH,
        )  # fmt: skip


@lru_cache(maxsize=8)
def _grid(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """int (n,), (n,): columns and rows of GRID on an image of a size (columns, rows)."""
    places = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(GRID, size, strict=True))
    column, row = np.meshgrid(*places)
    return column.reshape(-1), row.reshape(-1)


def _slopes(depth: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """float32 (h, w, 4): logarithm of the depth, its slopes per pixel in x and y, edge or not."""
    logs = np.log(depth)
    smooth = cv2.GaussianBlur(logs, (5, 5), 0.7)
    slopes = [cv2.Sobel(smooth, cv2.CV_32F, *axis, ksize=3, scale=1 / 8)
              for axis in ((1, 0), (0, 1))]  # fmt: skip
    return np.dstack([logs, *slopes, edges.astype(np.float32)])


def _add_turn(turn: Turn, poses: np.ndarray, hessian: np.ndarray, gradient: np.ndarray) -> None:
    """The squared angle between a measured turn and that of the poses."""
    between = poses[turn.earlier][:3, :3].T @ poses[turn.later][:3, :3]
    off = cv2.Rodrigues(turn.rotation.T @ between)[0][:, 0]
    jacobian = np.zeros((3, gradient.size))
    first, second = PER_VIEW * turn.earlier, PER_VIEW * turn.later
    jacobian[:, first : first + 3] = -between.T
    jacobian[:, second : second + 3] = np.eye(3)
    information = turn.std_rad**-2.0 * cauchy_weights(np.linalg.norm(off) / turn.std_rad)
    hessian += information * jacobian.T @ jacobian
    gradient += information * jacobian.T @ off


def relative_poses(poses: np.ndarray) -> np.ndarray:
    """float64 (N, N, 4, 4): [target, source] is target_from_source."""
    return np.linalg.inv(poses)[:, None] @ poses[None]


def track_arrays(tracks: Tracks) -> TrackArrays:
    """Tracks as the kernels take them."""
    return TrackArrays(
        tracks.source,
        tracks.target,
        tracks.point_u,
        tracks.source_px,
        tracks.ray,
        tracks.pixel,
    )


def errors_px(adjustment: Adjustment, tracks: Tracks, size: tuple[int, int]) -> np.ndarray:
    """float64 (k,): how far tracks end from where an adjustment puts them; size: of the views."""
    relative, field = relative_poses(adjustment.poses), DepthField(KNOTS, size)
    arrays = track_arrays(tracks)
    return track_errors(field, relative, adjustment.log_depth, arrays, nearest=NEAREST)


def knot_field(log_depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float32 (rows, columns) of one view's knots, bilinear between and constant beyond."""
    columns, rows = (
        np.clip((np.arange(n) + 0.5) / n * knots - 0.5, 0, knots - 1).astype(np.float32)
        for n, knots in zip(size, KNOTS, strict=True)
    )
    table = log_depth.reshape(KNOTS[1], KNOTS[0]).astype(np.float32)
    return cv2.remap(table, *np.meshgrid(columns, rows), cv2.INTER_LINEAR)


def cauchy_weights(error: np.ndarray | float) -> np.ndarray | float:
    """Of errors in standard deviations."""
    return 1 / (1 + (error / CAUCHY) ** 2)


def pose_differences(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n, 6): rotation vectors and translations of poses (n, 4, 4) from others, in their axes."""
    turns = ones[:, :3, :3].transpose(0, 2, 1) @ others[:, :3, :3]
    shifts = (others - ones)[:, None, :3, 3] @ others[:, :3, :3]
    vectors = [cv2.Rodrigues(turn)[0][:, 0] for turn in turns]
    return np.concatenate([vectors, shifts[:, 0]], axis=1)


def motions(steps: np.ndarray) -> np.ndarray:
    """Poses (n, 4, 4) of rotation vectors and translations (n, 6)."""
    moved = np.zeros((len(steps), 4, 4))
    for pose, step in zip(moved, steps, strict=True):
        pose[:3, :3] = cv2.Rodrigues(step[:3])[0]
    moved[:, :3, 3], moved[:, 3, 3] = steps[:, 3:], 1.0
    return moved
