# SPDX-License-Identifier: Apache-2.0
"""Valid points of a window, and their packing for PointCloud2 (valid_points.cpp, pack.cpp)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from g2vlm_ros.kernels.checks import (
    I64,
    call,
    check_in_place,
    f32,
    i64,
    input_array,
    positive,
    shape_of,
    view_indices,
)


def valid_points(points: np.ndarray, edge_step: float = 0.0) -> np.ndarray:
    """bool (N, H, W): pixels of point maps float32 (N, H, W, 3) that are finite, in front of the
    camera, and not at a depth step above the fraction `edge_step` (0 keeps steps)."""
    views, height, width, _ = shape_of(points, "points", (None, None, None, 3))
    valid = np.empty((views, height, width), np.bool_)
    source = input_array(points, "points", np.float32, (views, height, width, 3))
    call("valid_points", None, source, i64(views), i64(height), i64(width), f32(edge_step), valid)
    return valid


def count_points(
    confidence: np.ndarray,
    valid: np.ndarray,
    views: Sequence[int],
    stride: int,
    min_confidence: float,
) -> int:
    """How many points a dense cloud of the views has; the arguments of `pack_points`."""
    shape = shape_of(confidence, "confidence", (None, None, None))
    confidence = input_array(confidence, "confidence", np.float32, shape)
    valid = input_array(valid, "valid", np.bool_, shape)
    index = view_indices(views, shape[0])
    return call(
        "count_points",
        I64,
        confidence,
        valid,
        index,
        i64(len(index)),
        i64(shape[1]),
        i64(shape[2]),
        i64(positive(stride, "stride")),
        f32(min_confidence),
    )


def pack_points(
    points: np.ndarray,
    colours: np.ndarray,
    confidence: np.ndarray,
    valid: np.ndarray,
    views: Sequence[int],
    affines: np.ndarray,
    out: np.ndarray,
    *,
    stride: int = 1,
    min_confidence: float = 0.0,
    organised: bool = False,
) -> int:
    """Write points of some views into `out`, uint8 (20 M,), at most M of them; returns how many.

    points float32 (N, H, W, 3), colours uint8 alike, confidence float32 (N, H, W), valid bool
    (N, H, W); affines float32 (V, 3, 4) take the points of each of the V views to the cloud.
    organised keeps invalid points, with x, y and z NaN.
    """
    shape = shape_of(points, "points", (None, None, None, 3))
    index = view_indices(views, shape[0])
    arrays = [
        input_array(points, "points", np.float32, shape),
        input_array(colours, "colours", np.uint8, shape),
        input_array(confidence, "confidence", np.float32, shape[:3]),
        input_array(valid, "valid", np.bool_, shape[:3]),
    ]
    affines = input_array(affines, "affines", np.float32, (len(index), 3, 4))
    check_in_place(out, "out", np.uint8, (None,))
    return call(
        "pack_points",
        I64,
        *arrays,
        index,
        i64(len(index)),
        i64(shape[1]),
        i64(shape[2]),
        i64(positive(stride, "stride")),
        affines,
        f32(min_confidence),
        ctypes.c_int32(organised),
        out,
        i64(len(out) // 20),
    )
