# SPDX-License-Identifier: Apache-2.0
"""Normal equations of a window's adjustment (window_adjustment.cpp).

Poses come as relative float64 (N, N, 4, 4), [target, source] target_from_source; log_depth
float64 (N, knots); hessian (n, n) and gradient (n,) of all unknowns are added to in place.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

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

MOTION = 6


class DepthField(NamedTuple):
    """Where the knots of log_depth lie in an image."""

    knots: tuple[int, int]
    """Columns and rows of them, two at least."""
    size: tuple[int, int]
    """Columns and rows of pixels."""


class TrackArrays(NamedTuple):
    """k tracks (`mapping.view_tracks.Tracks`), those of a pair of views together."""

    source: np.ndarray
    target: np.ndarray
    """int64 (k,): views."""
    points: np.ndarray
    """float64 (k, 3) in the optical frame of the source."""
    places: np.ndarray
    """float64 (k, 2): their pixels there."""
    rays: np.ndarray
    """float64 (k, 2): where they were found in the target, x/z and y/z."""
    pixel: np.ndarray
    """float64 (k,): a pixel of the target as x/z."""


def track_equations(
    field: DepthField,
    relative: np.ndarray,
    log_depth: np.ndarray,
    tracks: TrackArrays,
    hessian: np.ndarray,
    gradient: np.ndarray,
    *,
    nearest: float,
    cauchy: float,
    min_px: float,
    max_point: float,
    pair_std: float,
    alike: float,
) -> tuple[float, float]:
    """Add where tracks were found, less where poses and depth put them.

    Returns the deviation of tracks in pixels and the relative one of single depths, both as these
    tracks show them.
    """
    noise = np.empty(2)
    window, views, unknowns = _window(field, relative, log_depth)
    positive(len(tracks.pixel), "number of tracks")
    arrays = _tracks(field, tracks, views)
    _check_sums(hessian, gradient, unknowns)
    call(
        "track_equations",
        None,
        *window,
        f64(nearest),
        *arrays,
        f64(cauchy),
        f64(min_px),
        f64(max_point),
        f64(pair_std),
        f64(alike),
        hessian,
        gradient,
        noise,
    )
    return float(noise[0]), float(noise[1])


def track_errors(
    field: DepthField,
    relative: np.ndarray,
    log_depth: np.ndarray,
    tracks: TrackArrays,
    *,
    nearest: float,
) -> np.ndarray:
    """float64 (k,): how far tracks end from where poses and depth put them, in pixels."""
    window, views, _ = _window(field, relative, log_depth)
    errors = np.empty(len(tracks.pixel))
    call("track_errors", None, *window, f64(nearest), *_tracks(field, tracks, views), errors)
    return errors


def surface_equations(
    field: DepthField,
    relative: np.ndarray,
    log_depth: np.ndarray,
    source: np.ndarray,
    target: np.ndarray,
    points: np.ndarray,
    places: np.ndarray,
    maps: np.ndarray,
    cameras: np.ndarray,
    hessian: np.ndarray,
    gradient: np.ndarray,
    *,
    nearest: float,
    cauchy: float,
    border_px: float,
    min_points: int,
    min_std: float,
    alike: float,
) -> float:
    """Add how far points of source views lie off the surfaces of target views.

    source, target, points and places as of `TrackArrays`; maps float32 (N, h, w, 4): log depth,
    its slopes per pixel, not 0 at edges; cameras float64 (N, 4): fx, fy, cx, cy. Returns the
    relative deviation of depth between views; 0 for fewer than min_points, which say nothing.
    """
    window, views, unknowns = _window(field, relative, log_depth)
    width, height = field.size
    arrays = _points(field, source, target, points, places, len(source), views)
    maps = input_array(maps, "maps", np.float32, (views, height, width, 4))
    cameras = input_array(cameras, "cameras", np.float64, (views, 4))
    _check_sums(hessian, gradient, unknowns)
    return call(
        "surface_equations",
        ctypes.c_double,
        *window,
        f64(nearest),
        *arrays,
        maps,
        cameras,
        f64(cauchy),
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


def _window(field: DepthField, relative: np.ndarray, log_depth: np.ndarray) -> tuple:
    """What all kernels of the adjustment begin with; how many views, and how many unknowns."""
    columns, rows = (positive(n - 1, "knots less one") + 1 for n in field.knots)
    views, depths = shape_of(log_depth, "log_depth", (None, columns * rows))
    arguments = (
        i64(views),
        i64(columns),
        i64(rows),
        input_array(relative, "relative", np.float64, (views, views, 4, 4)),
        input_array(log_depth, "log_depth", np.float64, (views, depths)),
    )
    return arguments, views, views * (MOTION + depths)


def _points(
    field: DepthField,
    source: np.ndarray,
    target: np.ndarray,
    points: np.ndarray,
    places: np.ndarray,
    count: int,
    views: int,
) -> tuple:
    source = input_array(source, "source", np.int64, (count,))
    target = input_array(target, "target", np.int64, (count,))
    check_indices(source, views, "source")
    check_indices(target, views, "target")
    width, height = (positive(length, "size") for length in field.size)
    points = input_array(points, "points", np.float64, (count, 3))
    places = input_array(places, "places", np.float64, (count, 2))
    return i64(width), i64(height), i64(count), source, target, points, places


def _tracks(field: DepthField, tracks: TrackArrays, views: int) -> tuple:
    source, target, points, places, rays, pixel = tracks
    count = len(pixel)
    return (
        *_points(field, source, target, points, places, count, views),
        input_array(rays, "rays", np.float64, (count, 2)),
        input_array(pixel, "pixel", np.float64, (count,)),
    )


def _check_sums(hessian: np.ndarray, gradient: np.ndarray, unknowns: int) -> None:
    check_in_place(hessian, "hessian", np.float64, (unknowns, unknowns))
    check_in_place(gradient, "gradient", np.float64, (unknowns,))
