# SPDX-License-Identifier: Apache-2.0
"""Windows of a drive with the errors of a network, and how far off they are."""

from dataclasses import replace

import numpy as np

from g2vlm_ros.demo.sim.analytic_hall import (
    DrivePerception,
    Noise,
    lap_poses,
)

SPOILT = Noise(depth=0.02, outliers=0.002)


WRONG = replace(SPOILT, turn_rad=0.06, shift=0.02)


def window(noise, seed=0, count=4):
    """A window of a drive and where its cameras truly are, in its own frame and unit."""
    perception = DrivePerception(lap_poses(count, 0.2), noise, seed)
    result = perception.reconstruct(list(range(count)))
    return result, perception.window_from_world.apply_pose(perception.poses)


def errors(result, truth):
    """Angle (rad) and distance (share of the depth) between the first view and each other one."""
    relative = (
        np.linalg.inv(result.window_from_camera[0].astype(float)) @ result.window_from_camera
    )
    right = np.linalg.inv(truth[0]) @ truth
    cosine = (np.einsum("nij,nij->n", relative[:, :3, :3], right[:, :3, :3]) - 1) / 2
    off = np.linalg.norm(relative[:, :3, 3] - right[:, :3, 3], axis=1)
    depth = np.median(result.local_points_u[..., 2])
    return np.arccos(np.clip(cosine, -1, 1))[1:].mean(), off[1:].mean() / depth
