# SPDX-License-Identifier: Apache-2.0
"""Space that a depth view on a device proves empty (window_points.cu)."""

from __future__ import annotations

from typing import Any

import numpy as np

from g2vlm_ros.kernels.device_maps import DeviceMap
from g2vlm_ros.kernels.device_points import DevicePoints
from g2vlm_ros.kernels.free_space import FreeSpace
from g2vlm_ros.kernels.voxels import slots_in_blocks


class DeviceDepth:
    """The depth float32 (H, W) of one view of a window, with its confidence, on the device."""

    def __init__(self, points: DevicePoints, confidence: np.ndarray | DeviceMap, view: int):
        self.points, self.confidence, self.view = points, confidence, view
        self.shape = points.shape[1:3]
        self.size = self.shape[0] * self.shape[1]


class DeviceFreeSpace(FreeSpace):
    """`FreeSpace` of a `DeviceDepth`; the host gets what is large in tiles, which of its voxels
    were seen through, and the depth of the rays that may cross the ground."""

    def _surveyed(
        self, depth: DeviceDepth, confidence: None, tiles: tuple[int, int]
    ) -> tuple[np.ndarray, float]:
        self._depth, self._device = depth, depth.points.device
        self._memory = memory = self._device.memory
        size, launch = (self.height, self.width), self._device.launch

        def run() -> np.ndarray:
            trusted = self._trusted_there(1)
            self._nearest = memory.empty(size, "FLOAT", "nearest depths")
            largest = memory.zeros((4 * (tiles[0] * tiles[1] + 1),), "UINT8", "largest depths")
            farthest = memory.empty((tiles[0] * tiles[1] + 1,), "FLOAT", "farthest depths")
            shape = np.int64((*size, self._tile, tiles[1]))
            launch("nearest_depths", depth.size, trusted, *shape, self._nearest, largest)
            launch("farthest_depths", farthest.size, largest, *np.int64(tiles), farthest)
            return memory.download([farthest])[0]

        farthest = memory.guarded(run)
        return farthest[:-1].reshape(tiles), float(farthest[-1])

    def seen_through(
        self,
        rows: np.ndarray,
        index: np.ndarray,
        voxels: np.ndarray,
        capacity: int,
        slack: float,
        stamp_ns: int,
    ) -> np.ndarray:
        slots = slots_in_blocks(rows, index, voxels, capacity)
        slots = slots[voxels["stamp_ns"][slots] < stamp_ns]
        places, memory = voxels["position"][slots], self._memory

        def run() -> np.ndarray:
            passed = memory.empty((len(slots),), "UINT8", "voxels seen through")
            self._device.launch(
                "find_seen_through",
                len(slots),
                memory.upload(places, "FLOAT", "voxels in view"),
                np.int64(len(slots)),
                self._nearest,
                memory.upload(self._pose.view(np.uint8), "UINT8", "pose of a view"),
                memory.upload(self._pinhole, "FLOAT", "pinhole of a view"),
                *np.int64((self.height, self.width)),
                np.float32(slack),
                passed,
            )
            return memory.download([passed])[0]

        return slots[memory.guarded(run).view(np.bool_)]

    def _trusted(self, step: int) -> np.ndarray:
        def run() -> np.ndarray:
            return self._memory.download([self._trusted_there(step)])[0]

        return self._memory.guarded(run)

    def _trusted_there(self, step: int) -> Any:
        """On the device."""
        depth = self._depth
        rows, columns = -(-self.height // step), -(-self.width // step)
        trusted = self._memory.empty((rows, columns), "FLOAT", "depths of rays")
        self._device.launch(
            "trusted_depths",
            trusted.size,
            depth.points.array,
            depth.points.confidence_there(depth.confidence),
            *np.int64((depth.view, self.height, self.width)),
            *np.float32((self._scale, self._min_confidence)),
            np.int64(step),
            trusted,
        )
        return trusted
