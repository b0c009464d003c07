# SPDX-License-Identifier: Apache-2.0
"""What the wheels of the simulated robot report: its walk, with errors that add up."""

from __future__ import annotations

import numpy as np

from g2vlm_ros.demo.sim.robot_path import RobotPath


def odometry(walk: RobotPath, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions (T, 2) in metres and headings (T,) in radians, from the true start on.

    noise: standard deviation of every step's length and turn, relative to that step; 0 is exact.
    """
    if not 0.0 <= noise <= 1.0:
        raise ValueError(f"odometry noise is {noise}; it must be from 0 (exact) to 1")
    rng = np.random.default_rng([seed, 5])
    step = np.diff(walk.position_m, axis=0)
    turn = np.angle(np.exp(1j * np.diff(walk.yaw_rad)))
    length_error, turn_error = rng.normal(0.0, noise, (2, len(turn)))
    heading = walk.yaw_rad[0] + np.concatenate([[0.0], np.cumsum(turn * (1 + turn_error))])
    # A step keeps its direction relative to the robot, so it turns with the heading's error.
    off = heading[:-1] - walk.yaw_rad[:-1]
    c, s = np.cos(off), np.sin(off)
    turned = np.stack([c * step[:, 0] - s * step[:, 1], s * step[:, 0] + c * step[:, 1]], -1)
    way = np.cumsum(turned * (1 + length_error)[:, None], axis=0)
    return walk.position_m[0] + np.concatenate([np.zeros((1, 2)), way]), heading


def base_poses(position_m: np.ndarray, yaw_rad: np.ndarray) -> np.ndarray:
    """Poses (T, 4, 4) of the robot on the floor, x ahead, z up, from (T, 2) and (T,)."""
    poses = np.tile(np.eye(4), (len(yaw_rad), 1, 1))
    c, s = np.cos(yaw_rad), np.sin(yaw_rad)
    poses[:, :2, :2] = np.moveaxis(np.array([[c, -s], [s, c]]), -1, 0)
    poses[:, :2, 3] = position_m
    return poses


def mount(walk: RobotPath) -> np.ndarray:
    """base_from_camera (4, 4), optical axes: how the camera is mounted, without its sway."""
    base_from_camera = (
        np.linalg.inv(base_poses(walk.position_m, walk.yaw_rad)) @ walk.world_from_camera
    )
    mean = base_from_camera.mean(0)
    left, _, right = np.linalg.svd(mean[:3, :3])
    mean[:3, :3] = left @ right
    return mean
