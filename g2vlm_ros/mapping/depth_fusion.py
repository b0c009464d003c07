# SPDX-License-Identifier: Apache-2.0
"""Depth of a window's views made to agree: what several of them see is where most put it.

Each view's network depth has errors of its own. Seen from another view, a point should lie on that
view's surface; the relative error there says how much farther or nearer it would have to be. Every
pixel moves along its ray by the least-squares mean of what all views say, its own one included;
views that are far off see something else (an occlusion, an edge) and hardly count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from g2vlm_ros.geometry.camera import depth_edges, project
from g2vlm_ros.geometry.confidence import EDGE_STEP
from g2vlm_ros.records import Intrinsics, Reconstruction

WIDTH_PX = 112
"""Wider views are compared on a grid of so many columns, and moved smoothly between."""
TOLERANCE = 0.2
"""Relative depth error at which what another view says counts a quarter."""


def fuse_depth(result: Reconstruction) -> Reconstruction:
    """The same window with points moved along their rays to where all its views put them.

    Poses, intrinsics and confidence stay: the agreement of views that were made to agree would say
    nothing. Views without intrinsics are moved, but move no other. Points that no other view sees
    stay, and so nearly do those where the poses are wrong. Clouds of moved points are packed on
    the host: the device has the network's.
    """
    points = result.local_points_u
    corrections = _corrections(points, result.window_from_camera, result.intrinsics)
    if not corrections.any():
        return result
    moved = points * np.exp(corrections)[..., None]
    geometry = replace(result.geometry, local_points_u=moved, pack=None)
    return replace(result, geometry=geometry)


def _corrections(
    points: np.ndarray, window_from_camera: np.ndarray, intrinsics: Sequence[Intrinsics | None]
) -> np.ndarray:
    """float32 (N, H, W): logarithm of the factor on each depth; points (N, H, W, 3)."""
    views, height, width, _ = points.shape
    scale = min(1.0, WIDTH_PX / width)
    size = round(scale * width), round(scale * height)
    nearest = cv2.INTER_NEAREST_EXACT
    small = np.stack([cv2.resize(view, size, interpolation=nearest) for view in points])
    with np.errstate(divide="ignore"):
        surfaces = [
            np.dstack([1 / view, depth_edges(view, EDGE_STEP)]).astype(np.float32)
            for view in small[..., 2]
        ]
    cameras = [camera and camera.resized(*size) for camera in intrinsics]
    poses = window_from_camera.astype(np.float64)
    found = np.empty(points.shape[:3], np.float32)
    for i in range(views):
        # A pixel's own depth says with weight 1 that nothing is to change.
        pull, weight = np.zeros(size[::-1], np.float32), np.ones(size[::-1], np.float32)
        for j, camera in enumerate(cameras):
            if i != j and camera is not None:
                other_from_camera = (np.linalg.inv(poses[j]) @ poses[i]).astype(np.float32)
                wanted, slope, counts = _wanted(small[i], other_from_camera, surfaces[j], camera)
                pull += counts * slope * wanted
                weight += counts * slope**2
        found[i] = cv2.resize(pull / weight, (width, height))
    return found


def _wanted(
    points: np.ndarray, other_from_camera: np.ndarray, surface: np.ndarray, camera: Intrinsics
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What another view says of points (h, w, 3), each float32 (h, w).

    surface: float32 (h, w, 2), of that view: inverse depth, and 1 at depth edges, else 0.
    The change of the logarithm of the depth there that would put a point on the surface, how fast
    that depth changes with the point's own, and how much this counts, 0..1.
    """
    turned = points @ other_from_camera[:3, :3].T
    moved = turned + other_from_camera[:3, 3]
    pixel = project(moved, camera)
    inside = np.isfinite(pixel).all(-1) & (pixel > -0.5).all(-1)
    inside &= (pixel < (camera.width_px - 0.5, camera.height_px - 0.5)).all(-1)
    at = np.where(inside[..., None], pixel, 0).astype(np.float32)
    # The inverse depth of a plane is linear in the image; across an edge there is no plane.
    there = cv2.remap(surface, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    nearness, edge = there[..., 0], there[..., 1]
    with np.errstate(all="ignore"):
        wanted, slope = -np.log(nearness * moved[..., 2]), turned[..., 2] / moved[..., 2]
    seen = inside & (edge == 0) & np.isfinite(wanted)
    wanted, slope = np.where(seen, wanted, 0), np.where(seen, slope, 0)
    counts = np.where(seen, 1 / (1 + (wanted / TOLERANCE) ** 2) ** 2, 0)
    return wanted, slope, counts
