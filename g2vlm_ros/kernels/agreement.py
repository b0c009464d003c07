# SPDX-License-Identifier: Apache-2.0
"""How far the views of a window agree on their surfaces (confidence.cpp, depth_fusion.cpp,
covisibility.cpp)."""

from __future__ import annotations

import numpy as np

from g2vlm_ros.kernels.checks import (
    call,
    check_indices,
    f32,
    f64,
    i64,
    input_array,
    positive,
    shape_of,
)


def multi_view_confidence(
    points: np.ndarray,
    j_from_i: np.ndarray,
    pinholes: np.ndarray,
    grid_px: int,
    agreement_step: float,
    edge_step: float,
) -> np.ndarray:
    """float32 (N, H, W): agreement of points float32 (N, H, W, 3) with the other views' surfaces.

    j_from_i float32 (N, N, 3, 4); pinholes float32 (N, 4), fx 0 where unknown; every grid_px-th
    pixel is compared. NaN where no other view sees the point.
    """
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


def pick_points(points: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """float32 (N, rows, columns, 3): points (N, H, W, 3) nearest to the pixels of another size."""
    views, height, width, _ = shape_of(points, "points", (None, None, None, 3))
    points = input_array(points, "points", np.float32, (views, height, width, 3))
    index = []
    for count, length in ((rows, height), (columns, width)):
        places = ((np.arange(positive(count, "size")) + 0.5) * length / count).astype(np.int64)
        check_indices(places, length, "rows or columns")
        index += [places, i64(count)]
    out = np.empty((views, rows, columns, 3), np.float32)
    call("pick_points", None, points, i64(views), i64(height), i64(width), *index, out)
    return out


def scale_points(points: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """float32 (N, H, W, 3): points times factor (N, h, w), which is read linearly in between."""
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


def covisibility(
    points: np.ndarray,
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
    points = input_array(points, "points", np.float32, shape)
    colours = input_array(colours, "colours", np.uint8, shape)
    poses = input_array(poses, "poses", np.float32, (views, 4, 4))
    pinholes = input_array(pinholes, "pinholes", np.float32, (views, 4))
    outputs = np.empty((3, views, views))
    call(
        "covisibility",
        None,
        points,
        colours,
        poses,
        pinholes,
        i64(views),
        i64(height),
        i64(width),
        i64(positive(step, "step")),
        f64(agreement),
        f64(nearness),
        i64(positive(min_points, "min_points")),
        *outputs,
    )
    return outputs[0], outputs[1], outputs[2]
