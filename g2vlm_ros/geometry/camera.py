# SPDX-License-Identifier: Apache-2.0
"""Pinhole camera: projection, rays, intrinsics from a point map, depth edges.

Pixel convention of the whole package: the centre of the top-left pixel is (0, 0), as in OpenCV
and ROS.
"""

from __future__ import annotations

import numpy as np

from g2vlm_ros.kernels.pinholes import pinholes_of_points
from g2vlm_ros.records import Intrinsics


def project(points: np.ndarray, camera: Intrinsics) -> np.ndarray:
    """Pixels (..., 2) of optical-frame points (..., 3); NaN behind the camera."""
    z = np.where(points[..., 2] > 0, points[..., 2], np.nan)
    return np.stack(
        [
            camera.fx_px * points[..., 0] / z + camera.cx_px,
            camera.fy_px * points[..., 1] / z + camera.cy_px,
        ],
        axis=-1,
    )


def unproject(pixels: np.ndarray, depth: np.ndarray, camera: Intrinsics) -> np.ndarray:
    """Optical-frame points (..., 3) of pixels (..., 2) at z = `depth` (...)."""
    x = (pixels[..., 0] - camera.cx_px) / camera.fx_px * depth
    y = (pixels[..., 1] - camera.cy_px) / camera.fy_px * depth
    return np.stack([x, y, np.broadcast_to(depth, x.shape)], axis=-1)


def intrinsics_of_views(local_points: np.ndarray) -> tuple[Intrinsics | None, ...]:
    """The pinhole camera that explains each point map float32 (N, H, W, 3) best; None for none.

    u = fx * x/z + cx and v = fy * y/z + cy are linear in the four unknowns. There is none where
    the rays of a map do not spread as a camera's do (focal length not above 0).
    """
    height, width = local_points.shape[1:3]
    step = max(1, min(height, width) // 64)
    cameras = []
    for fx, fy, cx, cy in pinholes_of_points(local_points, step).tolist():
        try:
            cameras.append(Intrinsics(fx, fy, cx, cy, width, height))
        except ValueError:
            cameras.append(None)
    return tuple(cameras)


def depth_edges(depth: np.ndarray, relative_step: float) -> np.ndarray:
    """bool (..., H, W): pixels whose depth differs from a 4-neighbour by more than the step.

    The network smears surfaces across such edges; `relative_step` is a fraction of the nearer
    depth (0.1 = 10 %).
    """
    edges = np.zeros(depth.shape, dtype=bool)
    for first, second in (
        ((..., slice(None, -1)), (..., slice(1, None))),
        ((..., slice(None, -1), slice(None)), (..., slice(1, None), slice(None))),
    ):
        a, b = depth[first], depth[second]
        step = np.abs(a - b) > relative_step * np.minimum(a, b)
        edges[first] |= step
        edges[second] |= step
    return edges
