# SPDX-License-Identifier: Apache-2.0
"""Known calibration in the place of what the network's points say of the camera.

A network knows the focal length about as well as a look at a picture tells it. Where camera_info
tells it, depth stays the network's and each point moves onto the ray of its pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from g2vlm_ros.geometry.confidence import pinholes
from g2vlm_ros.kernels.pinholes import points_on_rays
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
    cameras = [camera and camera.resized(columns, rows) for camera in cameras]
    points = points_on_rays(result.local_points_u, pinholes(cameras))
    intrinsics = [new or old for new, old in zip(cameras, result.intrinsics, strict=True)]
    geometry = replace(result.geometry, local_points_u=points)
    return replace(
        result,
        geometry=geometry,
        intrinsics=tuple(intrinsics),
        recovered_intrinsics=result.intrinsics,
    )
