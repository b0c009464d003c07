# SPDX-License-Identifier: Apache-2.0
"""The pose of a camera from points and where an image shows them: perspective-n-point by
Gauss-Newton with Cauchy weights, from a guess."""

from __future__ import annotations

import cv2
import numpy as np

from g2vlm_ros.records import Intrinsics

STEPS, SMALL_STEP = 6, 1e-4
"""Of the perspective-n-point at most, and the change (rad, share of the depth) that ends it."""
MIN_TRACK_PX = 0.15
"""Standard deviation of a track at best."""
ALIKE = 4.0
"""Errors of neighbouring corners are alike: so many count as one."""
CAUCHY = 2.385
NEAREST = 0.05
"""Of the median depth: nearer points count as so near, and are seen nowhere."""


def perspective_n_point(
    points: np.ndarray, pixels: np.ndarray, camera: Intrinsics, pose: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """camera_from_reference (4, 4) that projects points (n, 3) to pixels (n, 2), from a guess.

    Also the information (6, 6) of the camera's own motion (turn, shift in its axes), and the
    errors (n,) in pixels.
    """
    focal = np.array([camera.fx_px, camera.fy_px])
    rays = (pixels - (camera.cx_px, camera.cy_px)) / focal
    depth = float(np.median(points[:, 2]))
    for _ in range(STEPS):
        in_camera = transformed(pose, points)
        in_camera[:, 2] = np.maximum(in_camera[:, 2], NEAREST * depth)
        residual = (in_camera[:, :2] / in_camera[:, 2:] - rays) * focal
        error_px = np.linalg.norm(residual, axis=1)
        std_px = max(MIN_TRACK_PX, float(np.median(error_px)) / 1.1774)
        weight = 1 / (1 + (error_px / (CAUCHY * std_px)) ** 2) / std_px**2
        jacobian = _projection_rows(in_camera, focal)
        weighted = jacobian * weight[:, None, None]
        information = np.einsum("nai,naj->ij", weighted, jacobian)
        gradient = np.einsum("nai,na->i", weighted, residual)
        information += np.diag([1e-9] * 3 + [1e-9 / depth**2] * 3) * np.trace(information)
        step = np.linalg.solve(information, -gradient)
        motion = np.eye(4)
        motion[:3, :3], motion[:3, 3] = cv2.Rodrigues(step[:3])[0], step[3:]
        pose = motion @ pose
        if max(np.abs(step[:3]).max(), np.abs(step[3:]).max() / depth) < SMALL_STEP:
            break
    in_camera = transformed(pose, points)
    in_camera[:, 2] = np.maximum(in_camera[:, 2], NEAREST * depth)
    error_px = np.linalg.norm((in_camera[:, :2] / in_camera[:, 2:] - rays) * focal, axis=1)
    return pose, information / ALIKE, error_px


def _projection_rows(in_camera: np.ndarray, focal: np.ndarray) -> np.ndarray:
    """(n, 2, 6): derivatives of pixels of points (n, 3) by their motion (turn, shift)."""
    near = 1 / in_camera[:, 2]
    slope = np.zeros((len(in_camera), 2, 3))
    slope[:, 0, 0], slope[:, 1, 1] = focal[0] * near, focal[1] * near
    slope[:, :, 2] = -focal * in_camera[:, :2] * near[:, None] ** 2
    return np.concatenate([np.cross(in_camera[:, None], slope), slope], -1)


def transformed(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (..., 3) by a pose (4, 4)."""
    return points @ pose[:3, :3].T + pose[:3, 3]
