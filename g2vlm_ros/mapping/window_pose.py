# SPDX-License-Identifier: Apache-2.0
"""Where a window lies in the map, and how well that is known: what `GraphSlam` says of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from g2vlm_ros.geometry.registration import RelativePose
from g2vlm_ros.geometry.sim3 import Sim3, cross_matrix
from g2vlm_ros.records import Reconstruction, ScaleState

VIEW_TURN_RAD = 0.005
"""Assumed orientation error of a view in its window."""


@dataclass(frozen=True)
class WindowPose:
    """Where a window lies in the map."""

    map_from_window: Sim3
    map_id: int
    """Counts from 0, up each time a window could not be joined to the ones before. It goes back
    when a loop joins a later map to an earlier one."""
    scale_state: ScaleState
    metres_per_unit: float
    """Metres per map unit: 1 when METRIC, NaN otherwise."""
    relative_pose: RelativePose | None
    """The best joint with an earlier window; None for the first window of a map, and where
    odometry placed the window."""
    new_map: str = ""
    """Why a map starts here: "first", "no_shared_view", "no_overlap" (a turn too fast for the
    views to overlap) or "poor_registration"; empty where none starts."""
    by_odometry: str = ""
    """Why odometry, and no joint, placed the window: one of the reasons above; or ""."""
    covariance: np.ndarray = field(default_factory=lambda: np.full((0, 6, 6), np.nan))
    """float64 (N, 6, 6) of each view's pose: x y z, then rotation about x y z of the map
    (REP-103), relative to the origin of the map."""
    trusted: tuple[bool, ...] = ()
    """Per view: whether overlaps connect it with the views that place the window."""
    scale_std: float = float("nan")
    """Relative standard deviation of the metres; NaN while nothing is known."""
    scale_source: str = "none"
    """"odometry", "rig", "depth", "camera_height", "fixed" or "none"."""
    scale_jump: float = 1.0
    """New over old estimate of the scale where it changed by more than its deviation."""
    scale_refused: int = 0
    """Measurements of scale in a row that contradict their source's others and were left out."""
    scale_clash: str = ""
    """The sources of scale that contradict the believed ones and are not heard; or ""."""
    rescaled: float = 1.0
    """Factor by which all lengths of the map grew with this window; 1 where none did."""
    floor_z: float = float("nan")
    """Height of the floor in the map (map units); NaN while none was seen."""
    loop_closed: bool = False
    """Whether this window was joined to a place seen long ago."""
    merged_map_id: int | None = None
    """The map that ended because the loop joined it to `map_id`."""
    corrections: tuple[tuple[int, Sim3], ...] = ()
    """Earlier windows that moved: (window id, new map_from_window)."""

    def camera_poses(self, window_from_camera: np.ndarray) -> np.ndarray:
        """map_from_camera float64 (N, 4, 4), rigid, z-up map."""
        return self.map_from_window.apply_pose(window_from_camera)


def view_covariances(
    map_from_window: Sim3,
    window_covariance: np.ndarray,
    result: Reconstruction,
    view_noise: float,
    scale_std: float,
) -> np.ndarray:
    """float64 (N, 6, 6) of the views' poses in the map, in the order of `WindowPose.covariance`.

    window_covariance: (7, 7) of the window's place. view_noise: error of a view's position in its
    window, as a fraction of its median depth. scale_std: relative, of the map about its origin.
    """
    depth = np.median(result.local_points_u[:, ::8, ::8, 2].reshape(result.views, -1), axis=1)
    centres = map_from_window.apply(result.window_from_camera[:, :3, 3].astype(np.float64))
    noise = view_noise * depth * map_from_window.scale
    covariance = np.zeros((result.views, 6, 6))
    for found, centre, std in zip(covariance, centres, noise, strict=True):
        jacobian = np.zeros((6, 7))
        jacobian[:3] = np.column_stack([-cross_matrix(centre), np.eye(3), centre])
        jacobian[3:, :3] = np.eye(3)
        found += jacobian @ window_covariance @ jacobian.T
        found[:3, :3] += np.eye(3) * std**2 + scale_std**2 * np.outer(centre, centre)
        found[3:, 3:] += np.eye(3) * VIEW_TURN_RAD**2
    return covariance
