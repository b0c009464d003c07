# SPDX-License-Identifier: Apache-2.0
"""Where a window lies in the map, and how well that is known: what mapping says of a window."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from g2vlm_ros.geometry.registration import RelativePose
from g2vlm_ros.geometry.sim3 import Sim3, cross_matrices
from g2vlm_ros.mapping.scale_measurements import VIEW_NOISE
from g2vlm_ros.records import Reason, Reconstruction, ScaleSource, ScaleState, Window

VIEW_TURN_RAD = 0.005
"""Assumed orientation error of a view in its window, where the window does not say it."""


class StartReason(Reason):
    """Why no shared view joins a window to the map before it."""

    FIRST = "first"
    """Nothing was before it."""
    NO_SHARED_VIEW = "no_shared_view"
    NO_OVERLAP = "no_overlap"
    """A turn too fast for the views to overlap."""
    POOR_REGISTRATION = "poor_registration"
    """The shared views do not fit to each other."""
    WINDOWS_FAILED = "windows_failed"
    """Window after window could not be entered into the map before, which was given up."""


class LoopOutcome(Reason):
    """How a try to close a loop ended."""

    CLOSED = "closed"
    NO_OVERLAP = "no_overlap"
    """Old and new views do not show the same surfaces."""
    LOOKS_DIFFERENT = "looks_different"
    """They do, but not in the same colours."""
    POOR_REGISTRATION = "poor_registration"
    """The reconstruction of both fits to one of the two windows only."""
    CONTRADICTS_MAP = "contradicts_map"
    """It would bend the map, or its metres, too far."""
    NON_FINITE = "non_finite"
    """The network failed on the two together."""


class SearchOutcome(Reason):
    """How a try to find a window in a map ended."""

    LOCALISED = "localised"
    UNCONFIRMED = "unconfirmed"
    """A place fits; a second window has to agree."""
    AMBIGUOUS = "ambiguous"
    """Two places fit about as well."""
    NOT_FOUND = "not_found"
    """Nothing fits."""
    NO_KEYFRAMES = "no_keyframes"
    CONTRADICTS_MAP = "contradicts_map"
    """A place fits, but would bend the map, or its metres, too far."""


class LocalisationState(Reason):
    """Whether the robot knows where it is in the map that it is to be in."""

    LOST = "LOST"
    RELOCALISING = "RELOCALISING"
    """One window was recognised; the next one has to confirm it."""
    LOCALISED = "LOCALISED"


@dataclass(frozen=True)
class Localisation:
    """Whether, since when and by what the robot knows where it is."""

    state: LocalisationState
    since_ns: int = 0
    """Stamp of the window at which that began; 0 before the first."""
    by: str = "start"
    """What made it so: "start", "keyframe", "loop", "saved_map", or a StartReason."""
    search: SearchOutcome | None = None
    """How the last try ended; None where none was needed."""
    placed: bool = True
    """Whether poses are in the map that is published: not while lost in a saved map."""


@dataclass(frozen=True)
class ScaleUpdate:
    """What is known of the unit of a map after a window, and what the window changed of it."""

    state: ScaleState
    relative_std: float = float("nan")
    """Relative standard deviation of the metres; NaN while nothing is known."""
    source: ScaleSource = ScaleSource.NONE
    """What weighs most in it."""
    jump: float = 1.0
    """New over old estimate of the scale where it changed by more than its deviation."""
    refused: int = 0
    """Measurements of scale in a row that contradict their source's others and were left out."""
    clash: str = ""
    """The sources of scale that contradict the believed ones and are not used; or ""."""
    rescaled: float = 1.0
    """Factor by which all lengths of the map grew with this window; 1 where none did."""

    @property
    def metres_per_unit(self) -> float:
        """Metres per map unit: 1 when METRIC, NaN otherwise."""
        return 1.0 if self.state is ScaleState.METRIC else float("nan")


@dataclass(frozen=True)
class WindowPose:
    """Where a window lies in the map, and what its arrival changed there."""

    map_from_window: Sim3
    map_id: int
    """Counts from 0, up each time a window could not be joined to the ones before. It goes back
    when a loop joins a later map to an earlier one."""
    scale: ScaleUpdate
    relative_pose: RelativePose | None = None
    """The best one to an earlier window; None for the first window of a map, and where
    odometry placed the window."""
    new_map: StartReason | None = None
    """Why a map starts here; None where none starts."""
    by_odometry: StartReason | None = None
    """Why odometry, and no shared view, placed the window; None where it did not."""
    covariance: np.ndarray = field(default_factory=lambda: np.full((0, 6, 6), np.nan))
    """float64 (N, 6, 6) of each view's pose: x y z, then rotation about x y z of the map
    (REP-103), relative to the origin of the map."""
    trusted: tuple[bool, ...] = ()
    """Per view: whether overlaps connect it with the views that place the window."""
    floor_z: float = float("nan")
    """Height of the floor in the map (map units); NaN while none was seen."""
    loop_closed: bool = False
    """Whether this window was joined to a place seen long ago."""
    merged_map_id: int | None = None
    """The map that ended because the loop joined it to `map_id`."""
    corrections: tuple[tuple[int, Sim3], ...] = ()
    """Earlier windows that moved: (window id, new map_from_window)."""
    forgotten: tuple[int, ...] = ()
    """Windows of long ago that the map holds no longer: nothing corrects their places now."""

    def camera_poses(self, window_from_camera: np.ndarray) -> np.ndarray:
        """map_from_camera float64 (N, 4, 4), rigid, z-up map."""
        return self.map_from_window.apply_pose(window_from_camera)


@dataclass(frozen=True)
class MappedWindow:
    """One window after model and map."""

    window: Window
    result: Reconstruction
    """The network's, its poses and its depth mended (`refine_poses`, `fuse_depth`)."""
    placement: WindowPose
    new_views: tuple[int, ...]
    """Indices of views that no earlier window held."""
    stage_times_s: dict[str, float] = field(default_factory=dict)
    session: int = 0
    """Resets before the window was taken."""
    localisation: Localisation = Localisation(LocalisationState.LOCALISED)
    still: bool = False
    """The cameras have not moved since: the same window once more, with the stamps of the images
    that say so and no new view."""

    @cached_property
    def map_from_camera(self) -> np.ndarray:
        """float64 (N, 4, 4) rigid poses of the views in the map (map units, optical axes)."""
        return self.placement.camera_poses(self.result.window_from_camera)

    @property
    def trusted_views(self) -> tuple[int, ...]:
        """Indices of the views that overlaps connect with what places the window."""
        trusted = self.placement.trusted or (True,) * self.result.views
        return tuple(np.flatnonzero(trusted).tolist())

    def map_points(self) -> np.ndarray:
        """float32 (N, H, W, 3): the points of all views in the map (map units)."""
        return self.placement.map_from_window.apply(self.result.points_u())

    def map_points_at(self, view: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """float32 (n, 3): those of pixels of a view, at int rows (n,) and columns (n,)."""
        pose, local = self.result.window_from_camera[view], self.result.local_points_u
        points = local[view, rows, columns] @ pose[:3, :3].T + pose[:3, 3]
        return self.placement.map_from_window.apply(points)


def view_covariances(
    map_from_window: Sim3,
    window_covariance: np.ndarray,
    result: Reconstruction,
    view_noise: float,
    scale_std: float,
) -> np.ndarray:
    """float64 (N, 6, 6) of the views' poses in the map, in the order of `WindowPose.covariance`.

    window_covariance: (7, 7) of the window's place. view_noise: error of a view's position in its
    window, as a fraction of its median depth, where the window does not say that itself.
    scale_std: relative, of the map about its origin.
    """
    turn_rad = VIEW_TURN_RAD
    if result.view_std is not None:
        # What odometry shows beyond the assumed noise counts here as well.
        view_noise *= result.view_std.shift / VIEW_NOISE
        turn_rad = result.view_std.turn_rad
    depth = result.view_depths_u
    centres = map_from_window.apply(result.window_from_camera[:, :3, 3].astype(np.float64))
    noise = view_noise * depth * map_from_window.scale
    jacobian = np.zeros((result.views, 6, 7))
    jacobian[:, :3, :3], jacobian[:, :3, 6] = -cross_matrices(centres), centres
    jacobian[:, :3, 3:6] = jacobian[:, 3:, :3] = np.eye(3)
    covariance = jacobian @ window_covariance @ jacobian.transpose(0, 2, 1)
    covariance[:, :3, :3] += noise[:, None, None] ** 2 * np.eye(3)
    covariance[:, 3:, 3:] += turn_rad**2 * np.eye(3)
    covariance[:, :3, :3] += scale_std**2 * centres[:, :, None] * centres[:, None]
    return covariance
