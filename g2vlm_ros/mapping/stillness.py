# SPDX-License-Identifier: Apache-2.0
"""Whether a camera stands still: a new image against the last one that the map took in.

Compared is always with the image that the map knows, so that a slow creep adds up until it counts.
Corners are followed (Lucas & Kanade, IJCAI 1981); noise, exposure and a few things that move by
themselves do not matter. Odometry has the last word where it says that the robot moved.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from g2vlm_ros.records import Frame

WIDTH_PX = 160
"""Images are compared at this width; a smaller one as it is."""
STILL_PX = 0.35
"""Median motion of the corners up to which a camera stands still: a seventh of a degree of a lens
of 60 degrees, the noise of a track."""
MOVED_PX, MAX_MOVED_SHARE = 1.0, 0.35
"""Corners that moved further; a larger share of them is the camera's motion, or a crowd."""
MIN_FOLLOWED_SHARE = 0.5
"""Of the corners that must be found again; fewer show another view."""
MIN_CORNERS, MAX_CORNERS = 12, 120
MAX_DIFFERENCE = 1.5
"""Mean difference of brightness (0..255) of smoothed images without corners that are the same."""
MIN_MOTION_M, MIN_TURN_RAD = 0.02, np.deg2rad(0.5)
"""Motion by odometry from which on the robot does not stand still, whatever images say."""
PATCH_PX, LEVELS = 11, 2


@dataclass
class _Reference:
    """The last image of a camera that the map took in."""

    grey: np.ndarray
    corners: np.ndarray
    """float32 (n, 1, 2)."""
    odom_from_camera: np.ndarray | None


class StillnessDetector:
    """Remembers what the map knows of each camera."""

    def __init__(self) -> None:
        self._references: dict[str, _Reference] = {}
        self._latest: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        """By camera: the image that was asked about last, and its small grey copy."""

    def clear(self) -> None:
        """Forget everything: the next image of each camera is new."""
        self._references.clear()
        self._latest.clear()

    def take(self, frame: Frame, image: np.ndarray) -> None:
        """The map takes in this image, uint8 (h, w, 3), in place of the camera's earlier ones."""
        latest = self._latest.pop(frame.camera, None)
        grey = latest[1] if latest is not None and latest[0] is image else _small(image)
        corners = cv2.goodFeaturesToTrack(grey, MAX_CORNERS, 0.01, 5, blockSize=5)
        if corners is None:
            corners = np.zeros((0, 1, 2), np.float32)
        self._references[frame.camera] = _Reference(grey, corners, frame.odom_from_camera)

    def is_still(self, frame: Frame, image: np.ndarray) -> bool:
        """Whether an image shows what the map knows already, from the same place."""
        reference = self._references.get(frame.camera)
        if reference is None or _moved(reference.odom_from_camera, frame.odom_from_camera):
            return False
        grey = _small(image)
        self._latest[frame.camera] = image, grey
        if grey.shape != reference.grey.shape:
            return False
        if np.array_equal(grey, reference.grey):
            return True
        if len(reference.corners) < MIN_CORNERS:
            # A gain of exposure is no motion.
            one, other = (_smoothed(each) for each in (reference.grey, grey))
            return float(np.abs(one - other).mean()) < MAX_DIFFERENCE
        options = {"winSize": (PATCH_PX,) * 2, "maxLevel": LEVELS}
        ends, there, _ = cv2.calcOpticalFlowPyrLK(
            reference.grey, grey, reference.corners, None, **options
        )
        followed = there[:, 0] == 1
        if followed.mean() < MIN_FOLLOWED_SHARE:
            return False
        motion_px = np.linalg.norm((ends - reference.corners)[followed, 0], axis=1)
        moved_share = float((motion_px > MOVED_PX).mean())
        return float(np.median(motion_px)) < STILL_PX and moved_share < MAX_MOVED_SHARE


def _small(image: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if grey.shape[1] <= WIDTH_PX:
        return grey
    size = WIDTH_PX, max(1, round(grey.shape[0] * WIDTH_PX / grey.shape[1]))
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA)


def _smoothed(grey: np.ndarray) -> np.ndarray:
    smooth = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), 3.0)
    return smooth - smooth.mean()


def _moved(before: np.ndarray | None, now: np.ndarray | None) -> bool:
    """Whether odometry says that the camera moved; no where it does not know."""
    if before is None or now is None:
        return False
    turn = before[:3, :3].T @ now[:3, :3]
    angle = np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))
    shift_m = np.linalg.norm(now[:3, 3] - before[:3, 3])
    return bool(shift_m > MIN_MOTION_M or angle > MIN_TURN_RAD)
