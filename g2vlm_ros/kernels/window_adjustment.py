# SPDX-License-Identifier: Apache-2.0
"""Normal equations of a window's adjustment (window_adjustment.cpp).

Poses come as relative float64 (N, N, 4, 4), [target, source] target_from_source; log_depth
float64 (N, knots); hessian (n, n) and gradient (n,) of all unknowns are added to in place.
"""

from __future__ import annotations

import ctypes

import numpy as np

from g2vlm_ros.kernels.checks import (
    call,
    check_in_place,
    check_indices,
    f64,
    i64,
    input_array,
    positive,
    shape_of,
)

CORNERS = 4
MOTION = 6


def track_equations(
    relative: np.ndarray,
    log_depth: np.ndarray,
    source: np.ndarray,
    target: np.ndarray,
    points: np.ndarray,
    rays: np.ndarray,
    pixel: np.ndarray,
    knots: tuple[np.ndarray, np.ndarray],
    hessian: np.ndarray,
    gradient: np.ndarray,
    *,
    cauchy: float,
    nearest: float,
    min_px: float,
    max_point: float,
    pair_std: float,
    alike: float,
) -> tuple[float, float]:
    """Add where tracks were found, less where poses and depth put them.

    source, target int64 (k,), tracks of a pair together; points (k, 3), rays (k, 2), pixel (k,);
    knots: int64 (k, 4) around each point, float64 (k, 4) their shares. Returns the deviation of
    tracks in pixels and the relative one of single depths, both as these tracks show them.
    """
    views, depths = shape_of(log_depth, "log_depth", (None, None))
    (count,) = shape_of(pixel, "pixel", (None,))
    relative, log_depth = _window(relative, log_depth)
    arrays = [
        *_points(source, target, points, count, views),
        input_array(rays, "rays", np.float64, (count, 2)),
        input_array(pixel, "pixel", np.float64, (positive(count, "number of tracks"),)),
        *_knots(knots, count, depths),
    ]
    _check_sums(hessian, gradient, views * (MOTION + depths))
    noise = np.empty(2)
    call(
        "track_equations",
        None,
        i64(views),
        i64(depths),
        relative,
        log_depth,
        f64(cauchy),
        f64(nearest),
        i64(count),
        *arrays,
        f64(min_px),
        f64(max_point),
        f64(pair_std),
        f64(alike),
        hessian,
        gradient,
        noise,
    )
    return float(noise[0]), float(noise[1])


def surface_equations(
    relative: np.ndarray,
    log_depth: np.ndarray,
    grid: tuple[int, int],
    source: np.ndarray,
    target: np.ndarray,
    points: np.ndarray,
    knots: tuple[np.ndarray, np.ndarray],
    maps: np.ndarray,
    cameras: np.ndarray,
    hessian: np.ndarray,
    gradient: np.ndarray,
    *,
    cauchy: float,
    nearest: float,
    border_px: float,
    min_points: int,
    min_std: float,
    alike: float,
) -> float:
    """Add how far points of source views lie off the surfaces of target views.

    grid: columns and rows of knots; points as in `track_equations`; maps float32 (N, h, w, 4): log
    depth, its slopes per pixel, not 0 at edges; cameras float64 (N, 4): fx, fy, cx, cy. Returns
    the relative deviation of depth between views; 0 for fewer than min_points, which say nothing.
    """
    views, height, width, _ = shape_of(maps, "maps", (None, None, None, 4))
    columns, rows = (positive(n - 1, "knots less one") + 1 for n in grid)
    depths = columns * rows
    shape_of(log_depth, "log_depth", (views, depths))
    count = len(source)
    relative, log_depth = _window(relative, log_depth)
    arrays = [
        *_points(source, target, points, count, views),
        *_knots(knots, count, depths),
        input_array(maps, "maps", np.float32, (views, height, width, 4)),
    ]
    cameras = input_array(cameras, "cameras", np.float64, (views, 4))
    _check_sums(hessian, gradient, views * (MOTION + depths))
    return call(
        "surface_equations",
        ctypes.c_double,
        i64(views),
        i64(columns),
        i64(rows),
        relative,
        log_depth,
        f64(cauchy),
        f64(nearest),
        i64(count),
        *arrays,
        i64(height),
        i64(width),
        cameras,
        f64(max(border_px, 0.0)),
        i64(positive(min_points, "min_points")),
        f64(min_std),
        f64(alike),
        hessian,
        gradient,
    )


def see_points(
    points: np.ndarray, source_from_target: np.ndarray, camera: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where a source sees points float32 (n, 3) of a target: pixels float32 (n, 2), far outside
    for points behind it, and depth float32 (n,).

    source_from_target float32 (3, 4); camera float32 (4,): fx, fy, cx, cy of the source.
    """
    count, _ = shape_of(points, "points", (None, 3))
    points = input_array(points, "points", np.float32, (count, 3))
    place, depth = np.empty((count, 2), np.float32), np.empty(count, np.float32)
    view = (
        input_array(source_from_target, "source_from_target", np.float32, (3, 4)),
        input_array(camera, "camera", np.float32, (4,)),
    )
    call("see_points", None, points, i64(count), *view, place, depth)
    return place, depth


def _window(relative: np.ndarray, log_depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    views, depths = log_depth.shape
    return (
        input_array(relative, "relative", np.float64, (views, views, 4, 4)),
        input_array(log_depth, "log_depth", np.float64, (views, depths)),
    )


def _points(
    source: np.ndarray, target: np.ndarray, points: np.ndarray, count: int, views: int
) -> list[np.ndarray]:
    source = input_array(source, "source", np.int64, (count,))
    target = input_array(target, "target", np.int64, (count,))
    check_indices(source, views, "source")
    check_indices(target, views, "target")
    return [source, target, input_array(points, "points", np.float64, (count, 3))]


def _knots(knots: tuple[np.ndarray, np.ndarray], count: int, depths: int) -> list[np.ndarray]:
    at = input_array(knots[0], "knots", np.int64, (count, CORNERS))
    check_indices(at, depths, "knots")
    return [at, input_array(knots[1], "shares of knots", np.float64, (count, CORNERS))]


def _check_sums(hessian: np.ndarray, gradient: np.ndarray, unknowns: int) -> None:
    check_in_place(hessian, "hessian", np.float64, (unknowns, unknowns))
    check_in_place(gradient, "gradient", np.float64, (unknowns,))
