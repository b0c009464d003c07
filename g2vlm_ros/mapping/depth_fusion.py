# SPDX-License-Identifier: Apache-2.0
"""Depth of a window's views made to agree: what several of them see is where most put it.

Each view's network depth has errors of its own. Seen from another view, a point should lie on that
view's surface; the relative error there says how much farther or nearer it would have to be. Every
pixel moves along its ray by the least-squares mean of what all views say, its own one included;
views that are far off see something else (an occlusion, an edge) and hardly count.
"""

from __future__ import annotations

from dataclasses import replace

from g2vlm_ros.geometry.confidence import EDGE_STEP, pinholes, relative_affines
from g2vlm_ros.kernels.agreement import fuse_points
from g2vlm_ros.records import Reconstruction

WIDTH_PX = 112
"""Wider views are compared on a grid of so many columns, and moved smoothly between."""
TOLERANCE = 0.2
"""Relative depth error at which what another view says counts a quarter."""


def fuse_depth(result: Reconstruction) -> Reconstruction:
    """The same window with points moved along their rays to where all its views put them.

    Poses, intrinsics and confidence stay: the agreement of views that were made to agree would say
    nothing. Views without intrinsics are moved, but move no other. Points that no other view sees
    stay, and so nearly do those where the poses are wrong.
    """
    points = result.local_points_u
    height, width = points.shape[1:3]
    scale = min(1.0, WIDTH_PX / width)
    columns, rows = round(scale * width), round(scale * height)
    moved = fuse_points(
        points,
        relative_affines(result.window_from_camera),
        pinholes([camera and camera.resized(columns, rows) for camera in result.intrinsics]),
        (rows, columns),
        EDGE_STEP,
        TOLERANCE,
    )
    if moved is points:
        return result
    return replace(result, geometry=replace(result.geometry, local_points_u=moved))
