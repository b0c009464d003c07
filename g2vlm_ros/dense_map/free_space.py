# SPDX-License-Identifier: Apache-2.0
"""Posed depth images, and the space that they prove empty (kernels/free_space.cpp)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from g2vlm_ros.kernels.device_free_space import DeviceDepth, DeviceFreeSpace
from g2vlm_ros.kernels.free_space import FreeSpace
from g2vlm_ros.records import Intrinsics, frozen

TILES = 32
"""Across the image, for the quick sieve of blocks of voxels."""


@dataclass(frozen=True)
class DepthView:
    """One posed depth image; lengths in map units."""

    depth: np.ndarray | DeviceDepth
    """float32 (H, W): z in the optical frame over `scale`; NaN or not above 0 where unknown."""
    confidence: np.ndarray | None
    """float32 (H, W): 0..1, NaN where unknown. None where depth on a device has its own."""
    map_from_camera: np.ndarray
    """float64 (4, 4), rigid."""
    camera: Intrinsics
    """For the H x W image."""
    stamp_ns: int
    scale: float = 1.0
    """Map units of a unit of depth."""
    _spaces: dict[float, FreeSpace] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        size = (self.camera.height_px, self.camera.width_px)
        maps = () if isinstance(self.depth, DeviceDepth) else ("depth", "confidence")
        for name, shape, dtype in (
            *((name, size, np.float32) for name in maps),
            ("map_from_camera", (4, 4), np.float64),
        ):
            view = frozen(getattr(self, name), f"DepthView.{name}", shape, dtype)
            object.__setattr__(self, name, view)

    @property
    def origin(self) -> np.ndarray:
        """float64 (3,): the camera's place in the map."""
        return self.map_from_camera[:3, 3]

    def free_space(self, min_confidence: float) -> FreeSpace:
        """What the view proves empty; pixels below the confidence prove nothing. Made once.

        A pixel proves only what lies in front of the nearest surface in its 3 x 3 neighbourhood,
        and nothing where one of these is unknown: depth edges and half-pixel errors remove
        nothing.
        """
        if min_confidence not in self._spaces:
            camera = self.camera
            kind = DeviceFreeSpace if isinstance(self.depth, DeviceDepth) else FreeSpace
            self._spaces[min_confidence] = kind(
                self.depth,
                self.confidence,
                self.map_from_camera,
                (camera.fx_px, camera.fy_px, camera.cx_px, camera.cy_px),
                scale=self.scale,
                min_confidence=min_confidence,
                tile=max(1, camera.width_px // TILES),
            )
        return self._spaces[min_confidence]
