# SPDX-License-Identifier: Apache-2.0
"""What a view shows of a remembered object's place: its box in the image, and what rays say.

Lengths are metres, boxes (u0, v0, u1, v1) in model pixels.
"""

from __future__ import annotations

import itertools

import numpy as np

from g2vlm_ros.query.map_object import MapObject
from g2vlm_ros.query.point_map import PointMap, Region
from g2vlm_ros.records import Intrinsics

Box = tuple[float, float, float, float]
MIN_DEPTH_M = 0.1
"""Nearer points have no place in an image that could be trusted."""
CORNERS = np.array(list(itertools.product((-0.5, 0.5), repeat=3)))


def pixels(
    points: PointMap, camera: Intrinsics, view: int, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns, rows and depths (n,) of places (n, 3) in a view; NaN where they lie behind it."""
    pose = points.map_from_camera[view]
    local = (places - pose[:3, 3]) @ pose[:3, :3]
    depth = np.where(local[:, 2] > MIN_DEPTH_M, local[:, 2], np.nan)
    u = camera.fx_px * local[:, 0] / depth + camera.cx_px
    v = camera.fy_px * local[:, 1] / depth + camera.cy_px
    return u, v, depth


def image_box(
    points: PointMap, camera: Intrinsics | None, view: int, thing: MapObject
) -> tuple[Box, float] | None:
    """The box of an object in a view, and the share of it that the image shows; None where it is
    not before the camera or its size is not known."""
    if camera is None or not (thing.size > 0).all():
        return None
    u, v, depth = pixels(
        points, camera, view, thing.centre + (CORNERS * thing.size) @ thing.axes.T
    )
    if np.isnan(depth).any():
        return None
    low, high = np.array([u.min(), v.min()]), np.array([u.max(), v.max()])
    edge = np.subtract(points.size_px, 1.0)
    shown_low, shown_high = np.clip(low, 0, edge), np.clip(high, 0, edge)
    area = float(np.prod(np.maximum(high - low, 1e-6)))
    share = float(np.prod(np.maximum(shown_high - shown_low, 0.0))) / area
    return (*shown_low.tolist(), *shown_high.tolist()), share


def overlap(box: Box, region: Region) -> float:
    """Intersection over union of a box and a region of one view."""
    (left, top), (right, bottom) = region.low_px, region.high_px
    width = min(box[2], right) - max(box[0], left)
    height = min(box[3], bottom) - max(box[1], top)
    if width <= 0 or height <= 0:
        return 0.0
    areas = (box[2] - box[0]) * (box[3] - box[1]) + (right - left) * (bottom - top)
    return width * height / (areas - width * height)
