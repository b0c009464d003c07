# SPDX-License-Identifier: Apache-2.0
"""Packs point maps that are on the device into the bytes of a PointCloud2, then copies them once.

On the host the same is done by `geometry.point_cloud.valid_points` and `pack`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from g2vlm_ros.geometry.point_cloud import POINT_BYTES
from g2vlm_ros.inference.tensorrt.device_memory import DeviceArray, DeviceMemory
from g2vlm_ros.kernels.device_source import device_source

SOURCE = Path(__file__).with_suffix(".cu")
THREADS = 256
"""Of a block; also in the source."""


class PointPacker:
    """The kernels of `pack_points.cu`, compiled for a device when this is made."""

    def __init__(self, device: DeviceMemory):
        self._device, cuda = device, device.cuda
        module = cuda.compile(device_source(SOURCE))
        names = ("count_points", "sum_counts", "write_points")
        self._count, self._sum, self._write = (cuda.function(module, name) for name in names)

    def pack(
        self,
        points: DeviceArray,
        colours: DeviceArray,
        confidence: DeviceArray,
        ignored: DeviceArray | None,
        views: Sequence[int],
        affines: np.ndarray,
        min_confidence: float,
        edge_step: float,
    ) -> np.ndarray:
        """uint8 (20 M,): the M valid points of the chosen views, in the order of the pixels.

        points FLOAT (N, H, W, 3) in the optical frame, colours UINT8, confidence FLOAT and
        ignored UINT8 of the same pixels, which stay out where that is not 0; affines (V, 3, 4)
        take points of the views to the cloud's frame and unit. Limits as in
        `geometry.point_cloud.valid_points`.
        """
        device, launch = self._device, self._device.cuda.launch
        height, width = points.shape[1:3]
        pixels = len(views) * height * width
        blocks = -(-pixels // THREADS)
        maps = [self._of_views(each, views) for each in (points, colours, confidence)]
        masks = None if ignored is None else self._of_views(ignored, views)
        poses = device.upload(np.asarray(affines, np.float32), "FLOAT", "poses of the cloud")
        counts = device.empty((4 * (blocks + 1),), "UINT8", "counts of points")
        cloud = device.empty((pixels, POINT_BYTES), "UINT8", "a packed cloud")
        points_at, colours_at, confidence_at, poses_at, counts_at, cloud_at = (
            np.uint64(array.address) for array in (*maps, poses, counts, cloud)
        )
        ignored_at = np.uint64(0 if masks is None else masks.address)
        limits = (*np.int32((pixels, width, height)), *np.float32((min_confidence, edge_step)))
        with device.timed("pack_points"):
            launch(
                self._count,
                blocks,
                THREADS,
                (points_at, confidence_at, ignored_at, *limits, counts_at),
                device.compute,
            )
            launch(self._sum, 1, 1, (counts_at, np.int32(blocks)), device.compute)
            launch(
                self._write,
                blocks,
                THREADS,
                (
                    points_at,
                    colours_at,
                    confidence_at,
                    ignored_at,
                    poses_at,
                    *limits,
                    counts_at,
                    cloud_at,
                ),
                device.compute,
            )
        (total,) = device.download([counts.rows(4 * blocks, 4 * blocks + 4)])
        valid = int(total.view(np.uint32)[0])
        return device.download([cloud.rows(0, valid)])[0].reshape(-1)

    def _of_views(self, maps: DeviceArray, views: Sequence[int]) -> DeviceArray:
        """The maps of some views behind each other."""
        if list(views) == list(range(maps.shape[0])):
            return maps
        shape = (len(views), *maps.shape[1:])
        parts = self._device.empty(shape, maps.element, "views of a cloud")
        for row, view in enumerate(views):
            self._device.duplicate(parts.rows(row, row + 1), maps.rows(view, view + 1))
        return parts
