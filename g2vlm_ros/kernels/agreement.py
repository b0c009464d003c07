# SPDX-License-Identifier: Apache-2.0
"""How far the views of a window agree on their surfaces (confidence.cpp, depth_fusion.cpp,
covisibility.cpp)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from g2vlm_ros.kernels.checks import (
    call,
    f32,
    f64,
    i64,
    input_array,
    nearest_pixels,
    positive,
    shape_of,
)
from g2vlm_ros.kernels.device_maps import DeviceConfidence
from g2vlm_ros.kernels.device_points import DevicePoints
from g2vlm_ros.kernels.records import SIGHTING


def multi_view_confidence(
    points: np.ndarray | DevicePoints,
    j_from_i: np.ndarray,
    pinholes: np.ndarray,
    grid_px: int,
    agreement_step: float,
    edge_step: float,
) -> np.ndarray | DeviceConfidence:
    """float32 (N, H, W): agreement of points float32 (N, H, W, 3) with the other views' surfaces.

    j_from_i float32 (N, N, 3, 4); pinholes float32 (N, 4), fx 0 where unknown; every grid_px-th
    pixel is compared. NaN where no other view sees the point.
    """
    if isinstance(points, DevicePoints):
        return points.multi_view_confidence(j_from_i, pinholes, grid_px, agreement_step, edge_step)
    views, height, width, _ = shape_of(points, "points", (None, None, None, 3))
    points = input_array(points, "points", np.float32, (views, height, width, 3))
    j_from_i = input_array(j_from_i, "j_from_i", np.float32, (views, views, 3, 4))
    pinholes = input_array(pinholes, "pinholes", np.float32, (views, 4))
    confidence = np.empty((views, height, width), np.float32)
    call(
        "multi_view_confidence",
        None,
        points,
        i64(views),
        i64(height),
        i64(width),
        j_from_i,
        pinholes,
        i64(positive(grid_px, "grid_px")),
        f32(agreement_step),
        f32(edge_step),
        confidence,
    )
    return confidence


def fusion_factors(
    points: np.ndarray,
    j_from_i: np.ndarray,
    pinholes: np.ndarray,
    edge_step: float,
    tolerance: float,
) -> np.ndarray:
    """float32 (N, h, w): factors on the depth of points float32 (N, h, w, 3) of a small grid.

    j_from_i and pinholes (of that grid) as above; edge_step: depth steps where no surface is;
    tolerance: relative error at which what another view says counts a quarter.
    """
    views, height, width, _ = shape_of(points, "points", (None, None, None, 3))
    points = input_array(points, "points", np.float32, (views, height, width, 3))
    j_from_i = input_array(j_from_i, "j_from_i", np.float32, (views, views, 3, 4))
    pinholes = input_array(pinholes, "pinholes", np.float32, (views, 4))
    factor = np.empty((views, height, width), np.float32)
    call(
        "fusion_factors",
        None,
        points,
        i64(views),
        i64(height),
        i64(width),
        j_from_i,
        pinholes,
        f32(edge_step),
        f32(tolerance),
        factor,
    )
    return factor


def pick_points(
    points: np.ndarray | DevicePoints, rows: int, columns: int, views: Sequence[int] | None = None
) -> np.ndarray:
    """float32 (N, rows, columns, 3): points (N, H, W, 3) nearest to the pixels of another size;
    of all views, or of those named."""
    if isinstance(points, DevicePoints):
        return points.picked(rows, columns, views)
    points = points if views is None else points[list(views)]
    total, height, width, _ = shape_of(points, "points", (None, None, None, 3))
    points = input_array(points, "points", np.float32, (total, height, width, 3))
    index = []
    for count, length in ((rows, height), (columns, width)):
        index += [nearest_pixels(count, length), i64(count)]
    out = np.empty((total, rows, columns, 3), np.float32)
    call("pick_points", None, points, i64(total), i64(height), i64(width), *index, out)
    return out


def pick_halves(
    points: np.ndarray | DevicePoints, rows: int, columns: int, view: int
) -> np.ndarray:
    """float16 (rows, columns, 3): `pick_points` of one view; what is too large for a half is the
    largest one."""
    if isinstance(points, DevicePoints):
        return points.halves(rows, columns, view)
    largest = np.finfo(np.float16).max
    picked = pick_points(points, rows, columns, [view])[0]
    return np.clip(picked, -largest, largest).astype(np.float16)


def fuse_points(
    points: np.ndarray | DevicePoints,
    j_from_i: np.ndarray,
    pinholes: np.ndarray,
    size: tuple[int, int],
    edge_step: float,
    tolerance: float,
) -> np.ndarray | DevicePoints:
    """Points (N, H, W, 3) times the `fusion_factors` of a grid of `size` (rows, columns); the
    same object where all of these are 1."""
    if isinstance(points, DevicePoints):
        return points.fused(j_from_i, pinholes, size, edge_step, tolerance)
    factors = fusion_factors(pick_points(points, *size), j_from_i, pinholes, edge_step, tolerance)
    return points if (factors == 1).all() else scale_points(points, factors)


def scale_points(
    points: np.ndarray | DevicePoints, factor: np.ndarray
) -> np.ndarray | DevicePoints:
    """float32 (N, H, W, 3): points times factor (N, h, w), which is read linearly in between."""
    if isinstance(points, DevicePoints):
        return points.scaled(np.asarray(factor, np.float32))
    views, height, width, _ = shape_of(points, "points", (None, None, None, 3))
    _, rows, columns = shape_of(factor, "factor", (views, None, None))
    points = input_array(points, "points", np.float32, (views, height, width, 3))
    factor = input_array(factor, "factor", np.float32, (views, rows, columns))
    out = np.empty_like(points)
    call(
        "scale_points",
        None,
        points,
        i64(views),
        i64(height),
        i64(width),
        factor,
        i64(rows),
        i64(columns),
        out,
    )
    return out


def see_grid(
    points: np.ndarray | DevicePoints, poses: np.ndarray, pinholes: np.ndarray, step: int
) -> np.ndarray:
    """SIGHTING (N, N, rows, columns): every step-th point of view i as view j sees it.

    Arguments as for `covisibility`; of a view in itself and in one of an unknown camera it has
    any content.
    """
    if isinstance(points, DevicePoints):
        return points.seen_grid(poses, pinholes, step)
    views, height, width, _ = shape = shape_of(points, "points", (None, None, None, 3))
    sightings = np.empty((views, views, -(-height // step), -(-width // step)), SIGHTING)
    call(
        "see_grid",
        None,
        input_array(points, "points", np.float32, shape),
        input_array(poses, "poses", np.float32, (views, 4, 4)),
        input_array(pinholes, "pinholes", np.float32, (views, 4)),
        i64(views),
        i64(height),
        i64(width),
        i64(step),
        sightings,
    )
    return sightings


def covisibility(
    points: np.ndarray | DevicePoints,
    colours: np.ndarray,
    poses: np.ndarray,
    pinholes: np.ndarray,
    *,
    step: int,
    agreement: float,
    nearness: float,
    min_points: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(shared, alike, stretch) float64 (N, N) of every step-th point of view i in view j.

    points float32 (N, H, W, 3), colours uint8 alike, poses float32 (N, 4, 4) window_from_camera,
    pinholes float32 (N, 4), fx 0 where unknown. shared: share on j's surface, within `agreement`
    of the logarithm of depth; alike: correlation of brightness there; stretch: median logarithm
    of the depth ratio of the points within `nearness`. NaN where unknown or too few.
    """
    views, height, width, _ = shape = shape_of(points, "points", (None, None, None, 3))
    step = positive(step, "step")
    sightings = see_grid(points, poses, pinholes, step)
    colours = input_array(colours, "colours", np.uint8, shape)
    pinholes = input_array(pinholes, "pinholes", np.float32, (views, 4))
    outputs = np.empty((3, views, views))
    call(
        "covisibility",
        None,
        sightings,
        colours,
        pinholes,
        i64(views),
        i64(height),
        i64(width),
        i64(step),
        f64(agreement),
        f64(nearness),
        i64(positive(min_points, "min_points")),
        *outputs,
    )
    return outputs[0], outputs[1], outputs[2]
