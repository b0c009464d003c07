# SPDX-License-Identifier: Apache-2.0
"""Records of the voxel map that numpy and the kernels share (voxel.h has them in C++)."""

from __future__ import annotations

import numpy as np

VOXEL = np.dtype(
    [
        ("position", "<f4", 3),  # mean of the points that fell in, map frame
        ("confidence", "<f4"),  # mean confidence of those points, 0..1
        ("stamp_ns", "<i8"),  # newest acquisition time
        ("window", "<i4"),  # window that contributed last
        ("revision", "<i4"),  # of the map when the voxel changed last
        ("born", "<i4"),  # revision at which it came into being
        ("cell", "<u4"),  # row of its block << 9 | cell within the block
        ("colour", "<u2", 3),  # mean RGB in 1/256 steps
        ("count", "<u2"),  # points seen, less what free space took; 0 in a free slot
    ]
)
"""A voxel of the map, 48 bytes."""

CELL = np.dtype(
    [
        ("key", "<i8"),
        ("stamp_ns", "<i8"),  # of the newest contribution
        ("weight", "<f8"),  # sum of confidence
        ("position", "<f8", 3),  # sum weighted by confidence
        ("colour", "<f8", 3),  # the same, in 1/256 steps
        ("count", "<i4"),  # points
        ("window", "<i4"),  # of the newest contribution
    ]
)
"""What is to be folded into one cell of the map, 80 bytes."""
MAX_COUNT = 1000
"""Counts of voxels end here, so that the mean keeps following and a parked car can still leave."""

SIGHTING = np.dtype([("depth", "<f8"), ("surface", "<f4"), ("pixel", "<i4")])
"""A point as another view sees it: its depth there, that of the surface, the pixel or -1."""

ROW_LINES = np.dtype([("across", "<f8", 5), ("down", "<f8", 5)])
"""Sums of what a row of points says of its camera (RowLines of pixel.cuh)."""

NORMAL = np.dtype([("normal", "<f8", 3)])
"""Of a smooth surface at a pixel, in the window's frame; NaN where there is none."""
