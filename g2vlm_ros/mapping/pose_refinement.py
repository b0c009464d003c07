# SPDX-License-Identifier: Apache-2.0
"""Poses of a window's views made to agree with its images: bundle adjustment of poses alone.

A small network's poses are worst for views far from the first one, and its own points show it:
what one view saw does not lie where the next one sees it. Points are followed from view to view
through the images (Lucas & Kanade, IJCAI 1981, from where the poses expect them), and the poses
moved until they land there; depth stays the network's. Poses that the images confirm stay as well;
where they do not, odometry says how the camera turned, and where that does not help either,
features that views share (`view_matching`), if more points are found again from there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from g2vlm_ros.geometry.camera import depth_edges, project
from g2vlm_ros.geometry.confidence import EDGE_STEP, multi_view_confidence
from g2vlm_ros.mapping.feature_matching import matched_poses
from g2vlm_ros.records import Intrinsics, Reconstruction

WIDTH_PX = 112
"""Wider views are tracked at this width."""
GRID_PX = 5
"""Every GRID_PX-th pixel of a view is followed into the others."""
PATCH_PX, LEVELS = 7, 3
"""Side of the square that is followed, and how often the images are halved for it."""
MIN_TEXTURE = 1e-4
"""Smallest eigenvalue of a patch's gradients, as OpenCV scales it."""
MAX_RETURN_PX = 0.7
"""How far a track followed back may end from where it began."""
MIN_TRACKS = 8
NEAREST = 1e-3
"""Of its depth in the source: a point that a pose puts behind the target counts as so near."""
TRACK_PX = 0.5
"""Standard deviation of a track."""
CONFIRMED_PX = 1.0
"""Median error of the tracks of every view up to which the network's poses stay as they are."""
ALIKE = 4.0
"""Errors of neighbouring tracks are alike: so many count as one."""
POSE_RAD, POSE_SHIFT = np.deg2rad(2.0), 0.01
"""Assumed error of the network's pose of the second view relative to the first, angle and fraction
of the median depth; its square grows with the number of views between."""
TURN_RAD, TURN_SHARE = np.deg2rad(1.0), 0.05
"""Assumed error of a turn by odometry, and its growth with the turn."""
CAUCHY = 2.385
STEPS = 8
ENOUGH = 1e-4


@dataclass(frozen=True)
class _Tracks:
    """Points of one view found in another one, k of them over all pairs of views."""

    source: np.ndarray
    """int (k,): the view that has the point."""
    target: np.ndarray
    """int (k,): the view that it was found in."""
    point_u: np.ndarray
    """float64 (k, 3) in the optical frame of the source."""
    ray: np.ndarray
    """float64 (k, 2): where it was found, x/z and y/z."""
    pixel: np.ndarray
    """float64 (k,): a pixel of the target as x/z."""


class _Views:
    """The views of a window at the width at which they are tracked."""

    def __init__(self, result: Reconstruction):
        scale = min(1.0, WIDTH_PX / result.colours.shape[2])
        size = tuple(round(scale * length) for length in result.colours.shape[2:0:-1])
        grey = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in result.colours)
        self.grey = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in grey]
        self.cameras = [camera and camera.resized(*size) for camera in result.intrinsics]
        self.starts = [_starts(view, size[::-1]) for view in result.local_points_u]


def refine_poses(
    result: Reconstruction, odometry: Sequence[np.ndarray | None] = ()
) -> Reconstruction:
    """The same window with poses that its images confirm, and the confidence that follows.

    odometry: per view odom_from_camera (4, 4) or None; only its turns count, which need no unit.
    The first view keeps its pose; so do views that neither tracks nor odometry connect with it,
    unless features turn a view before them, which they then follow.
    """
    views, poses = _Views(result), result.window_from_camera.astype(np.float64)
    if _confirmed(poses, _follow(views, poses, itertools.pairwise(range(result.views)))):
        return result
    depth = float(np.median(result.local_points_u[:, ::GRID_PX, ::GRID_PX, 2]))
    start, turn_std = _turned(poses, odometry)
    made, tracks = _mended(views, start, turn_std, depth)
    if not _confirmed(made, tracks):
        matched = matched_poses(result, start)
        if matched is not start:
            other, found = _mended(views, matched, turn_std, depth)
            if found is not None and (tracks is None or len(found.pixel) > len(tracks.pixel)):
                made = other
    if made is poses:
        return result
    moved = made.astype(np.float32)
    geometry, confidence = replace(result.geometry, window_from_camera=moved), result.confidence
    if geometry.confidence is None:
        confidence = multi_view_confidence(result.local_points_u, moved, result.intrinsics)
    return replace(result, geometry=geometry, confidence=confidence)


def _confirmed(poses: np.ndarray, tracks: _Tracks | None) -> bool:
    """Whether tracks reach every view and end where the poses put them."""
    return tracks is not None and bool((_errors_px(poses, tracks) < CONFIRMED_PX).all())


def _mended(
    views: _Views, poses: np.ndarray, turn_std: np.ndarray, depth: float
) -> tuple[np.ndarray, _Tracks | None]:
    """Poses moved to agree with the tracks that are found from them, if they do not, and these."""
    tracks = _follow(views, poses, itertools.permutations(range(len(poses)), 2))
    if tracks is None or not (_errors_px(poses, tracks) > CONFIRMED_PX).any():
        return poses, tracks
    return _adjust(poses, tracks, turn_std, depth), tracks


def _turned(
    poses: np.ndarray, odometry: Sequence[np.ndarray | None]
) -> tuple[np.ndarray, np.ndarray]:
    """Poses with the turns of odometry since the first view, and deviations (N - 1,) of turns.

    The same poses where odometry does not know the first view.
    """
    turn_std = POSE_RAD * np.sqrt(np.arange(1, len(poses)))
    if not len(odometry) or odometry[0] is None:
        return poses, turn_std
    poses = poses.copy()
    for i, pose in enumerate(odometry[1:], 1):
        if pose is not None:
            turn = odometry[0][:3, :3].T @ pose[:3, :3]
            poses[i, :3, :3] = poses[0, :3, :3] @ turn
            turn_std[i - 1] = TURN_RAD + TURN_SHARE * np.linalg.norm(cv2.Rodrigues(turn)[0])
    return poses, turn_std


def _follow(views: _Views, poses: np.ndarray, pairs: Iterable[tuple[int, int]]) -> _Tracks | None:
    """Tracks from one view to another that overlap by their poses; None where there are none."""
    found = []
    for i, j in pairs:
        camera = views.cameras[j]
        if camera is None:
            continue
        pixels, points = views.starts[i]
        relative = np.linalg.inv(poses[j]) @ poses[i]
        goals = project(points @ relative[:3, :3].T + relative[:3, 3], camera)
        inside = _inside(goals, views.grey[j].shape)
        ends, good = _flow(views.grey[i], views.grey[j], pixels[inside], goals[inside])
        if good.sum() >= MIN_TRACKS:
            found.append((i, j, points[inside][good], _rays(ends[good], camera)))
    if not found:
        return None
    size = [len(points) for _, _, points, _ in found]
    return _Tracks(
        np.repeat([i for i, *_ in found], size),
        np.repeat([j for _, j, *_ in found], size),
        np.concatenate([points for *_, points, _ in found]),
        np.concatenate([rays for *_, rays in found]),
        np.repeat([1 / views.cameras[j].fx_px for _, j, *_ in found], size),
    )


def _starts(view: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels float32 (n, 2) of a grey image and their points (n, 3), on a grid, not at edges."""
    rows, columns = np.mgrid[tuple(slice(GRID_PX // 2, size, GRID_PX) for size in shape)]
    pixels = np.stack([columns, rows], -1).reshape(-1, 2)
    at = (
        (np.arange(size) + 0.5) * whole / size
        for size, whole in zip(shape, view.shape[:2], strict=True)
    )
    small = view[np.ix_(*(each.astype(int) for each in at))]
    edges = depth_edges(small[..., 2], EDGE_STEP).astype(np.uint8)
    smooth = cv2.dilate(edges, np.ones((3, 3), np.uint8))[pixels[:, 1], pixels[:, 0]] == 0
    points = small[pixels[:, 1], pixels[:, 0]].astype(np.float64)
    return pixels[smooth].astype(np.float32), points[smooth]


def _inside(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return ((pixels > 2) & (pixels < np.array(shape[::-1]) - 3)).all(1)


def _flow(
    one: np.ndarray, other: np.ndarray, starts: np.ndarray, goals: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where pixels (n, 2) of one image are in another one, from goals (n, 2); which are sound."""
    if len(starts) < MIN_TRACKS:
        return goals, np.zeros(len(goals), bool)
    options = {
        "winSize": (PATCH_PX,) * 2,
        "maxLevel": LEVELS,
        "criteria": (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 0.02),
        "flags": cv2.OPTFLOW_USE_INITIAL_FLOW,
        "minEigThreshold": MIN_TEXTURE,
    }
    goals = goals.astype(np.float32)
    ends, there, _ = cv2.calcOpticalFlowPyrLK(one, other, starts, goals.copy(), **options)
    back, here, _ = cv2.calcOpticalFlowPyrLK(other, one, ends, starts.copy(), **options)
    returned = np.linalg.norm(back - starts, axis=1) < MAX_RETURN_PX
    sound = (there & here)[:, 0].astype(bool) & returned & _inside(ends, one.shape)
    return ends.astype(np.float64), sound


def _rays(pixels: np.ndarray, camera: Intrinsics) -> np.ndarray:
    centre, focal = (camera.cx_px, camera.cy_px), (camera.fx_px, camera.fy_px)
    return (pixels - centre) / focal


def _adjust(poses: np.ndarray, tracks: _Tracks, turn_std: np.ndarray, depth: float) -> np.ndarray:
    """Poses (N, 4, 4) by Gauss-Newton on the tracks, with the poses given as a prior."""
    before = poses
    shift_std = POSE_SHIFT * depth * np.sqrt(np.arange(1, len(poses)))
    deviation = np.repeat(np.stack([turn_std, shift_std], 1), 3, axis=1)
    prior = (deviation**-2.0).reshape(-1)
    for _ in range(STEPS):
        residual, jacobian, weights = _equations(poses, tracks)
        jacobian = jacobian[..., 6:]
        weighted = jacobian * weights[:, None, None]
        off = np.concatenate([_apart(a, b) for a, b in zip(before[1:], poses[1:], strict=True)])
        hessian = np.tensordot(weighted, jacobian, ((0, 1), (0, 1))) + np.diag(prior)
        gradient = np.tensordot(weighted, residual, ((0, 1), (0, 1))) + prior * off
        step = np.linalg.solve(hessian, -gradient).reshape(-1, 6)
        poses = np.concatenate([poses[:1], poses[1:] @ _motions(step)])
        if np.abs(step).max() < ENOUGH:
            break
    return poses


def _errors_px(poses: np.ndarray, tracks: _Tracks) -> np.ndarray:
    """(N,) median error of the tracks from and to each view; NaN where there are none."""
    error_px = np.linalg.norm(_seen(poses, tracks)[0], axis=1) / tracks.pixel
    touching = [(tracks.source == i) | (tracks.target == i) for i in range(len(poses))]
    return np.array([np.median(error_px[own]) if own.any() else np.nan for own in touching])


def _seen(poses: np.ndarray, tracks: _Tracks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Residual (k, 2) of the rays, points (k, 3) as the targets see them, target_from_source."""
    turn = np.linalg.inv(poses)[tracks.target] @ poses[tracks.source]
    seen = np.einsum("kij,kj->ki", turn[:, :3, :3], tracks.point_u) + turn[:, :3, 3]
    seen[:, 2] = np.maximum(seen[:, 2], NEAREST * tracks.point_u[:, 2])
    return seen[:, :2] / seen[:, 2:] - tracks.ray, seen, turn[:, :3, :3]


def _equations(poses: np.ndarray, tracks: _Tracks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Residual (k, 2), jacobian (k, 2, 6 N) by motions of the cameras, weight (k,)."""
    residual, seen, turn = _seen(poses, tracks)
    deviation = TRACK_PX * tracks.pixel
    error = np.linalg.norm(residual, axis=1) / deviation
    weights = 1 / (1 + (error / CAUCHY) ** 2) / deviation**2 / ALIKE
    each = np.arange(len(seen))
    slope = np.zeros((len(seen), 2, 3))
    slope[:, [0, 1], [0, 1]] = 1 / seen[:, 2:]
    slope[:, :, 2] = -(residual + tracks.ray) / seen[:, 2:]
    jacobian = np.zeros((len(seen), 2, len(poses), 6))
    away = slope @ turn
    jacobian[each, :, tracks.source, :3] = np.cross(tracks.point_u[:, None], away)
    jacobian[each, :, tracks.source, 3:] = away
    jacobian[each, :, tracks.target, :3] = -np.cross(seen[:, None], slope)
    jacobian[each, :, tracks.target, 3:] = -slope
    return residual, jacobian.reshape(len(seen), 2, -1), weights


def _apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(6,): rotation vector and translation of a pose (4, 4) in another one's axes."""
    turn = one[:3, :3].T @ other[:3, :3]
    return np.concatenate([cv2.Rodrigues(turn)[0][:, 0], other[:3, :3].T @ (other - one)[:3, 3]])


def _motions(steps: np.ndarray) -> np.ndarray:
    """Poses (n, 4, 4) of rotation vectors and translations (n, 6)."""
    moved = np.tile(np.eye(4), (len(steps), 1, 1))
    for motion, step in zip(moved, steps, strict=True):
        motion[:3, :3], motion[:3, 3] = cv2.Rodrigues(step[:3])[0], step[3:]
    return moved
