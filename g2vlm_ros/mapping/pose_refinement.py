# SPDX-License-Identifier: Apache-2.0
"""Poses and depth of a window made to agree with its images, as far as these know better.

Views are first laid onto each other's surfaces, then corners are followed from view to view
(`view_tracks`), and an adjustment (`window_adjustment`) weighs tracks, depth, odometry's turns and
the network by what each is worth; how much the network is worth is learnt from window to window
(`network_errors`). A part of the tracks takes no part: the result is accepted where these fit
better than before.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import cv2
import numpy as np

from g2vlm_ros.geometry.confidence import multi_view_confidence
from g2vlm_ros.kernels.agreement import scale_points
from g2vlm_ros.mapping.feature_matching import matched_poses
from g2vlm_ros.mapping.network_errors import FIRST, NetworkErrors
from g2vlm_ros.mapping.view_images import ViewMemory
from g2vlm_ros.mapping.view_tracks import TrackedViews, Tracks, follow_corners
from g2vlm_ros.mapping.window_adjustment import (
    PAIR_RAD,
    Adjustment,
    Turn,
    WindowAdjustment,
    adjusted_std,
    errors_px,
    knot_field,
)
from g2vlm_ros.records import Reconstruction

TURN_RAD, TURN_SHARE = np.deg2rad(1.0), 0.05
"""Assumed error of a turn by odometry, and its growth with the turn."""
LEFT_OUT = 5
"""Every so many-th track judges the adjustment instead of taking part."""
SURFACE_STEPS = 4
MIN_JUDGES = 4
"""Tracks left out, with fewer of which nothing is changed."""
MAX_CHANGE = 1.0
"""Radians, median depths, logarithms: an adjustment that changes more has gone astray."""
LOST_PX, MAX_SEARCHES = 6.0, 2
"""Median error of the tracks from which on they are followed again from the adjusted poses, and
how often they are followed at most."""
MIN_FIELD_PX = 112
"""Depth is moved by a field of at least so many columns and rows, where the image has them."""


class PoseRefiner:
    """Refines the windows of one network, and learns how good they are."""

    def __init__(self) -> None:
        self._errors = NetworkErrors()
        self._memory = ViewMemory()

    def forget_views(self) -> None:
        """Views to come may have the stamps of earlier ones; what was learnt stays."""
        self._memory.clear()

    @property
    def errors(self) -> NetworkErrors:
        """What was learnt of the network."""
        return self._errors

    def refine(
        self,
        result: Reconstruction,
        odometry: Sequence[np.ndarray | None] = (),
        keys: Sequence[Hashable] = (),
    ) -> Reconstruction:
        """The same window with better poses and depth, and the confidence that follows.

        odometry: per view odom_from_camera (4, 4) or None; only its turns count, which need no
        unit. keys: what identifies each view, so that what was computed for those of the window
        before is used again. The same poses and depth where images do not know better.
        """
        if result.views < 2:
            return result
        images = self._memory.images(result.colours, keys)
        views = TrackedViews(result, images, self._memory.flows(keys))
        refined = self._refine(result, views, odometry)
        if refined is result and self._errors.view_std is not None:
            refined = replace(result, view_std=self._errors.view_std)
        self._memory.keep(keys, images, views.flows)
        return refined

    def _refine(
        self,
        result: Reconstruction,
        views: TrackedViews,
        odometry: Sequence[np.ndarray | None],
    ) -> Reconstruction:
        poses = result.window_from_camera.astype(np.float64)
        depth_u = result.median_depth_u
        std = self._errors.std
        turns = _turns(odometry)
        adjusting = WindowAdjustment(views, poses, depth_u)
        guess = adjusting.solve(std, None, turns, steps=SURFACE_STEPS)
        tracks, start = _found_tracks(result, views, guess)
        if tracks is None:
            # Odometry alone still knows how the camera turned.
            return _applied(result, guess) if turns else result
        if by_features := start is not guess.poses:
            # The network is too far off to be a prior; features take its place.
            adjusting, std = WindowAdjustment(views, start, depth_u), FIRST
            guess = adjusting.unchanged()
        for _ in range(MAX_SEARCHES):
            judging = np.arange(len(tracks)) % LEFT_OUT == 0
            judges = tracks[judging]
            lost = np.median(errors_px(guess, tracks, views.size)) > LOST_PX
            adjustment = adjusting.solve(std, tracks[~judging], turns, guess)
            again = follow_corners(views, adjustment.poses, afresh=True) if lost else None
            if again is None or len(again) <= len(tracks):
                break
            tracks, guess = again, adjustment
        if not np.abs(adjustment.change).max() < MAX_CHANGE * max(1.0, depth_u):
            return result
        if not by_features:
            adjustment = adjusting.changed(*self._errors.learn(adjustment, depth_u))
        network = replace(adjustment, poses=poses, log_depth=np.zeros_like(adjustment.log_depth))
        known_better = _is_better(adjustment, network, judges, views.size)
        if not known_better:
            return result
        std = self._errors.refined_std(adjusted_std(adjustment, depth_u))
        return replace(_applied(result, adjustment), view_std=std)


def refine_poses(
    result: Reconstruction, odometry: Sequence[np.ndarray | None] = ()
) -> Reconstruction:
    """`PoseRefiner.refine` of a single window, about whose network nothing is known."""
    return PoseRefiner().refine(result, odometry)


def _found_tracks(
    result: Reconstruction, views: TrackedViews, guess: Adjustment
) -> tuple[Tracks | None, np.ndarray]:
    """Tracks, and the poses from which they were found: the guess's, or where features put a view
    that no track reaches, if more tracks are found from there."""
    poses = guess.poses
    tracks = follow_corners(views, poses)
    if tracks is not None and tracks.linked(len(views)).any(1).all():
        return tracks, poses
    sure = None if tracks is None else _sure_links(guess, tracks, views)
    matched = matched_poses(result, views.images, poses, sure)
    if matched is poses:
        return tracks, poses
    flows = dict(views.flows)
    others = follow_corners(views, matched, afresh=True)
    if others is None or (tracks is not None and len(others) <= len(tracks)):
        views.flows = flows
        return tracks, poses
    return others, matched


def _sure_links(guess: Adjustment, tracks: Tracks, views: TrackedViews) -> np.ndarray:
    """bool (N, N): pairs of views whose tracks end near where a guess puts them."""
    errors = errors_px(guess, tracks, views.size)
    sure = np.zeros((len(views), len(views)), bool)
    for i, j in set(zip(tracks.source.tolist(), tracks.target.tolist(), strict=True)):
        of_pair = errors[(tracks.source == i) & (tracks.target == j)]
        sure[i, j] = sure[j, i] = np.median(of_pair) <= LOST_PX
    return sure


def _turns(odometry: Sequence[np.ndarray | None]) -> list[Turn]:
    """Turns of odometry between successive views that it knows."""
    with_odometry = [i for i, pose in enumerate(odometry) if pose is not None]
    turns = []
    for i, j in zip(with_odometry, with_odometry[1:], strict=False):
        rotation = odometry[i][:3, :3].T @ odometry[j][:3, :3]
        angle = float(np.linalg.norm(cv2.Rodrigues(rotation)[0]))
        turns.append(Turn(i, j, rotation, TURN_RAD + TURN_SHARE * angle))
    return turns


def _is_better(one: Adjustment, other: Adjustment, judges: Tracks, size: tuple[int, int]) -> bool:
    """Whether tracks that took no part fit one clearly better than the other: by more than what
    lens, calibration and shutter may have wrong in common."""
    if len(judges) < MIN_JUDGES:
        return False
    after, before = (float(np.median(errors_px(each, judges, size))) for each in (one, other))
    common_px = PAIR_RAD / float(np.median(judges.pixel))
    return before**2 - after**2 > common_px**2


def _applied(result: Reconstruction, adjustment: Adjustment) -> Reconstruction:
    """The window with an adjustment's poses and depth."""
    poses = adjustment.poses.astype(np.float32)
    # The field is smooth: read on a coarser grid, and linearly between.
    size = tuple(
        min(length, max(MIN_FIELD_PX, length // 4))
        for length in result.local_points_u.shape[2:0:-1]
    )
    stretch = np.exp([knot_field(knots, size) for knots in adjustment.log_depth])
    points = scale_points(result.local_points_u, stretch)
    geometry = replace(result.geometry, window_from_camera=poses, local_points_u=points)
    confidence = result.confidence
    if geometry.confidence is None:
        confidence = multi_view_confidence(points, poses, result.intrinsics)
    return replace(result, geometry=geometry, confidence=confidence)
