# SPDX-License-Identifier: Apache-2.0
"""Where a window lies by odometry: it carries the map on where images cannot.

A turn too fast for views to overlap, or a bare wall, leaves a window unregistered; the wheels
know all the same about where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from g2vlm_ros.geometry.registration import RelativePose, about
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.mapping.scale_measurements import MAX_SPEED_M_S, ScaleMeasurement
from g2vlm_ros.records import Frame, Reconstruction, newest_view

DRIFT = 0.05
"""Deviation of odometry, per metre of way and per radian of turn."""
MIN_STD_M = 0.01
"""Of odometry over no way at all: its own resolution, and the mount of the camera..."""
MIN_STD_RAD = 0.01
"""...as an angle."""


@dataclass(frozen=True)
class OdometryConstraint:
    """The newest view of a window that odometry knows, and where it lies in its window."""

    stamp_ns: int
    odom_from_camera: np.ndarray
    """float64 (4, 4), metres."""
    window_from_camera: np.ndarray
    """float64 (4, 4), the window's unit."""

    @classmethod
    def of(
        cls, frames: Sequence[Frame], result: Reconstruction, trusted: Sequence[bool]
    ) -> OdometryConstraint | None:
        """Of the trusted views; None where odometry knows none of them."""
        views = [i for i, f in enumerate(frames) if trusted[i] and f.odom_from_camera is not None]
        if not views:
            return None
        newest = newest_view(frames, views)
        pose = result.window_from_camera[newest].astype(np.float64)
        return cls(frames[newest].stamp_ns, frames[newest].odom_from_camera, pose)


def odometry_constraint(
    before: OdometryConstraint,
    now: OdometryConstraint,
    unit_m: float,
    now_unit: ScaleMeasurement,
    reach_m: float,
) -> RelativePose | None:
    """The relative pose of two windows by odometry; `before` is the target.

    unit_m: metres per unit of the window before; now_unit: of the other. None beyond reach_m of
    way, or where the odometry has jumped. It claims no inliers and no quality.
    """
    moved = np.linalg.inv(before.odom_from_camera) @ now.odom_from_camera
    way_m = float(np.linalg.norm(moved[:3, 3]))
    seconds = abs(now.stamp_ns - before.stamp_ns) * 1e-9
    if way_m > min(reach_m, MAX_SPEED_M_S * seconds):
        return None
    turn_rad = float(np.linalg.norm((Sim3(1.0, moved[:3, :3], np.zeros(3))).log()[:3]))
    moved[:3, 3] /= unit_m
    camera = before.window_from_camera @ moved
    scale = now_unit.metres_per_unit / unit_m
    rotation = camera[:3, :3] @ now.window_from_camera[:3, :3].T
    shift = camera[:3, 3] - scale * rotation @ now.window_from_camera[:3, 3]
    std = np.array(
        [MIN_STD_RAD + DRIFT * turn_rad] * 3
        + [(MIN_STD_M + DRIFT * way_m) / unit_m] * 3
        + [now_unit.relative_std]
    )
    covariance = about(camera[:3, 3], std)
    return RelativePose(Sim3(scale, rotation, shift), 0.0, np.nan, covariance, 0.0, 1.0)
