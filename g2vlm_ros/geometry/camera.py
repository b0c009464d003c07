# SPDX-License-Identifier: Apache-2.0
"""Pinhole camera: projection, rays, intrinsics from a point map, depth edges.

Pixel convention of the whole package: the centre of the top-left pixel is (0, 0), as in OpenCV
and ROS.
"""

from __future__ import annotations

import numpy as np

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


def intrinsics_from_points(local_points: np.ndarray) -> Intrinsics:
    """The pinhole camera that explains a point map (H, W, 3) best, by least squares.

    u = fx * x/z + cx and v = fy * y/z + cy are linear in the four unknowns. Raises ValueError
    when the rays of the map do not spread as a camera's do (focal length not above 0).
    """
    height, width, _ = local_points.shape
    step = max(1, min(height, width) // 64)
    sample = local_points[::step, ::step].astype(np.float64)
    rows, columns = np.mgrid[0:height:step, 0:width:step]
    rays = sample[..., :2] / sample[..., 2:]
    fx, cx = _fit_line(rays[..., 0], columns)
    fy, cy = _fit_line(rays[..., 1], rows)
    return Intrinsics(fx, fy, cx, cy, width, height)


def _fit_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and offset of the least-squares line y = slope * x + offset over finite pairs."""
    good = np.isfinite(x)
    x, y = x[good], y[good]
    if x.size < 2:
        return np.nan, np.nan
    centred = x - x.mean()
    variance = float((centred * centred).sum())
    slope = float((centred * y).sum()) / variance if variance > 0 else np.nan
    return slope, float(y.mean() - slope * x.mean())


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
