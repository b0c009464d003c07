# SPDX-License-Identifier: Apache-2.0
"""The one camera of the simulation: fixed lens, fixed height, pitched down a little."""

from __future__ import annotations

import numpy as np

from g2vlm_ros.geometry.sim3 import ZUP_FROM_OPTICAL
from g2vlm_ros.records import Intrinsics

HORIZONTAL_FIELD_RAD = np.deg2rad(70.0)
ASPECT = 4 / 3
HEIGHT_M = (1.2, 1.4)
PITCH_DOWN_RAD = (0.0, np.deg2rad(12.0))
"""Ranges from which each robot draws how its camera is mounted."""


def lens(width_px: int, height_px: int) -> Intrinsics:
    """The pinhole camera for an image of this size; ValueError unless it is 4:3."""
    if width_px * 3 != height_px * 4:
        raise ValueError(f"image size {width_px}x{height_px} is not 4:3; try 112x84 or 640x480")
    focal = width_px / 2 / np.tan(HORIZONTAL_FIELD_RAD / 2)
    centre = ((width_px - 1) / 2, (height_px - 1) / 2)
    return Intrinsics(focal, focal, *centre, width_px, height_px)


def world_from_camera(
    position_m: np.ndarray,
    yaw_rad: float | np.ndarray,
    pitch_down_rad: float | np.ndarray,
    roll_rad: float | np.ndarray = 0.0,
) -> np.ndarray:
    """Poses (..., 4, 4) of the optical frame for positions (..., 3) and angles (...).

    Yaw turns about the vertical and 0 looks along world x; pitch and roll act in the turned frame.
    """
    cy, sy = np.cos(yaw_rad), np.sin(yaw_rad)
    cp, sp = np.cos(pitch_down_rad), np.sin(pitch_down_rad)
    cr, sr = np.cos(roll_rad), np.sin(roll_rad)
    rows = (
        (cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr),
        (sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr),
        (-sp, cp * sr, cp * cr),
    )
    shape = np.shape(position_m)[:-1]
    rotation = np.stack([np.broadcast_to(e, shape) for row in rows for e in row], -1)
    pose = np.zeros((*shape, 4, 4))
    pose[..., :3, :3] = rotation.reshape(*shape, 3, 3) @ ZUP_FROM_OPTICAL
    pose[..., :3, 3] = position_m
    pose[..., 3, 3] = 1.0
    return pose
