# SPDX-License-Identifier: Apache-2.0
"""Pose of a camera between windows: each frame against the newest view that the map holds.

Corners of the view are followed into the frame (`tracking_template`), and the pose is what
projects their points to where they were found (`perspective_n_point`). Where few of them are left,
the last frame takes the view's place, with the view's points as it sees them. A frame costs a few
milliseconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from g2vlm_ros.geometry.camera import project
from g2vlm_ros.geometry.sim3 import cross_matrix
from g2vlm_ros.mapping.perspective_n_point import perspective_n_point, transformed
from g2vlm_ros.mapping.tracking_template import (
    MIN_POINTS,
    TrackingReference,
    TrackingTemplate,
    local_contrast,
    points_as_seen,
    resized,
)
from g2vlm_ros.records import Reason

MIN_INLIER_SHARE = 0.3
"""Of the corners that should be in the frame: below, most of what is seen is something else."""
RENEWED_SHARE = 0.6
"""Share of the corners below which the frame becomes what the next ones are compared with..."""
MIN_RENEWED = 40
"""...if so many of its own corners have points."""
INLIER_PX = 2.0
"""Distance between a track and its projected point up to which both are the same."""
ROUNDS, FAR_PX = 3, 2.0
"""Times a frame is warped at most: again where the pose moved its corners further than this."""
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


class CameraTracker:
    """Follows one camera. Not thread-safe."""

    def __init__(self) -> None:
        self._reference: TrackingReference | None = None
        self._template: TrackingTemplate | None = None
        self._equalised: TrackingTemplate | None = None
        """The same with `local_contrast`, once a frame needs it."""
        self._poses: deque[tuple[int, np.ndarray]] = deque(maxlen=KEPT_POSES)
        """(stamp_ns, reference_from_camera) of the frames tracked last, oldest first."""

    @property
    def reference(self) -> TrackingReference | None:
        """The view of a window that poses are relative to now."""
        return self._reference

    def clear(self) -> None:
        """Forget everything; nothing is tracked until the next reference."""
        self._reference = self._template = self._equalised = None
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
        self._reference = reference
        self._template, self._equalised = TrackingTemplate(reference, reference.grey), None

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
        failure, grey = None, resized(image, (columns, rows))
        for template, frame in self._versions(grey):
            outcome = self._track(template, frame, stamp_ns)
            if isinstance(outcome, TrackedPose):
                self._poses.append((stamp_ns, outcome.reference_from_camera))
                if outcome.inlier_share < RENEWED_SHARE:
                    self._renew(grey, outcome)
                return outcome
            failure = failure or outcome
        return failure

    def _versions(self, grey: np.ndarray) -> Iterator[tuple[TrackingTemplate, np.ndarray]]:
        """The template and a frame: as they are, which is more exact, and with the same contrast
        everywhere, which no exposure changes."""
        yield self._template, grey
        if self._equalised is None:
            view = self._template.view
            self._equalised = TrackingTemplate(view, local_contrast(view.grey))
        yield self._equalised, local_contrast(grey)

    def _track(
        self, template: TrackingTemplate, frame: np.ndarray, stamp_ns: int
    ) -> TrackedPose | TrackingFailure:
        """The pose from the first prediction that leads to one."""
        if len(template.corners) < MIN_POINTS:
            return TrackingFailure.FEW_CORNERS
        for start in self._predictions(template, frame, stamp_ns):
            outcome = self._follow(template, frame, stamp_ns, start)
            if isinstance(outcome, TrackedPose):
                break
        return outcome

    def _predictions(
        self, template: TrackingTemplate, frame: np.ndarray, stamp_ns: int
    ) -> Iterator[np.ndarray]:
        """Where the camera may be, template_from_camera: as it moved, where it was, or by the
        image as a whole, or where the template was."""
        template_from_reference = (
            np.linalg.inv(template.view.map_from_camera) @ self._reference.map_from_camera
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
        yield template.turn_to(frame)
        if not self._poses:
            yield np.eye(4)

    def _follow(
        self, template: TrackingTemplate, frame: np.ndarray, stamp_ns: int, start: np.ndarray
    ) -> TrackedPose | TrackingFailure:
        """The pose from where a prediction puts the camera."""
        pose, camera = np.linalg.inv(start), template.view.camera
        for _ in range(ROUNDS):
            pixels, sound, expected = template.find(frame, pose)
            if expected < MIN_POINTS:
                return TrackingFailure.OUT_OF_VIEW
            if sound.sum() < MIN_POINTS:
                return TrackingFailure.FEW_INLIERS
            points, before = template.points[sound], pose
            pose, information, error_px = perspective_n_point(points, pixels[sound], camera, pose)
            ends = (project(transformed(each, points), camera) for each in (before, pose))
            if not np.median(np.abs(np.subtract(*ends))) > FAR_PX:
                break
        inliers = int((error_px < INLIER_PX).sum())
        share = min(inliers / expected, 1.0)
        if inliers < MIN_POINTS or share < MIN_INLIER_SHARE:
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
        points = points_as_seen(
            transformed(camera_from_template.astype(np.float32), view.points), view.camera
        )
        renewed = TrackingTemplate(
            TrackingReference(
                tracked.stamp_ns,
                grey,
                points,
                view.camera,
                tracked.map_from_camera,
                tracked.covariance,
                view.map_id,
            ),
            grey,
        )
        if len(renewed.corners) >= MIN_RENEWED:
            self._template, self._equalised = renewed, None


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
