# SPDX-License-Identifier: Apache-2.0
"""Known calibration in the place of what the network's points say of the camera.

A network knows the focal length about as well as a look at a picture tells it. Where camera_info
tells it, depth stays the network's and each point moves onto the ray of its pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from g2vlm_ros.records import Intrinsics, Reconstruction


def with_known_cameras(
    result: Reconstruction, cameras: Sequence[Intrinsics | None]
) -> Reconstruction:
    """The window with points on the rays of known cameras, one per view at any size, or None.

    The same object where none is known.
    """
    if all(camera is None for camera in cameras):
        return result
    rows, columns = result.local_points_u.shape[1:3]
    points, intrinsics = result.local_points_u.copy(), list(result.intrinsics)
    for view, camera in enumerate(cameras):
        if camera is None:
            continue
        camera = camera.resized(columns, rows)
        intrinsics[view] = camera
        x = (np.arange(columns, dtype=np.float32) - camera.cx_px) / camera.fx_px
        y = (np.arange(rows, dtype=np.float32) - camera.cy_px) / camera.fy_px
        depth = points[view, ..., 2]
        points[view, ..., 0] = x * depth
        points[view, ..., 1] = y[:, None] * depth
    geometry = replace(result.geometry, local_points_u=points, pack=None)
    return replace(
        result,
        geometry=geometry,
        intrinsics=tuple(intrinsics),
        recovered_intrinsics=result.intrinsics,
    )
