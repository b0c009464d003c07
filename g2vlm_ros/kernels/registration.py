# SPDX-License-Identifier: Apache-2.0
"""Robust similarity between the points of two views (registration.cpp)."""

from __future__ import annotations

import ctypes

import numpy as np

from g2vlm_ros.kernels.checks import (
    call,
    check_indices,
    i64,
    input_array,
    positive,
    shape_of,
)


def fit_view(
    source: np.ndarray,
    target: np.ndarray,
    weights: np.ndarray,
    ranges: np.ndarray,
    directions: np.ndarray,
    blocks: np.ndarray,
    centre: np.ndarray,
    *,
    robust_steps: int,
    polish_steps: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Robust similarity target_from_source over the points of one view; None on a line.

    source, target float64 (n, 3), weights float64 (n,); ranges (n,) and directions (n, 3) of the
    target's points from the camera at centre (3,); blocks int64 (n,): the patch of each point.
    (fit (13,): scale, rotation, translation; hessian (7, 7); curvature (7, 7); gradient summed up
    by patch (patches, 7)).
    """
    (count,) = shape_of(weights, "weights", (None,))
    arrays = [
        input_array(source, "source", np.float64, (count, 3)),
        input_array(target, "target", np.float64, (count, 3)),
        input_array(weights, "weights", np.float64, (count,)),
        input_array(ranges, "ranges", np.float64, (count,)),
        input_array(directions, "directions", np.float64, (count, 3)),
        input_array(blocks, "blocks", np.int64, (count,)),
    ]
    centre = input_array(centre, "centre", np.float64, (3,))
    patches = int(blocks.max(initial=0)) + 1
    check_indices(arrays[5], patches, "blocks")
    fit, hessian, curvature = np.empty(13), np.empty((7, 7)), np.empty((7, 7))
    pulls = np.empty((patches, 7))
    done = call(
        "fit_view",
        ctypes.c_int32,
        *arrays,
        i64(count),
        centre,
        i64(patches),
        i64(positive(robust_steps, "robust_steps")),
        i64(polish_steps),
        fit,
        hessian,
        curvature,
        pulls,
    )
    return (fit, hessian, curvature, pulls) if done else None
