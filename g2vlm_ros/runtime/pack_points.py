"""Packs point maps that are on the device into the bytes of a PointCloud2, then copies them once.

The numpy path, `core.cloud.valid_points` and `core.cloud.pack`, is its oracle.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from g2vlm_ros.core.cloud import POINT_BYTES
from g2vlm_ros.runtime.device import Device, DeviceArray

SOURCE = Path(__file__).with_suffix(".cu")
THREADS = 256
"""Of a block; also in the source."""


class PointPacker:
    """The kernels of `pack_points.cu`, compiled for a device when this is made."""

    def __init__(self, device: Device):
        self._device, cuda = device, device.cuda
        module = cuda.compile(SOURCE.read_text(encoding="utf-8"))
        names = ("count_points", "sum_counts", "write_points")
        self._count, self._sum, self._write = (cuda.function(module, name) for name in names)

    def pack(
        self,
        points: DeviceArray,
        colours: DeviceArray,
        confidence: DeviceArray,
        affines: np.ndarray,
        min_confidence: float = 0.0,
        max_depth: float | None = None,
    ) -> np.ndarray:
        """uint8 (20 M,): the M valid points of all views, in the order of the pixels.

        points FLOAT (N, H, W, 3) in the optical frame, colours UINT8 (N, H, W, 3), confidence
        FLOAT (N, H, W); affines (N, 3, 4) take a point to the cloud's frame and unit. Points
        drop out as in `core.cloud.valid_points` without its edges.
        """
        device, cuda = self._device, self._device.cuda
        views, height, width, _ = points.shape
        pixels, blocks = views * height * width, -(-views * height * width // THREADS)
        moves = device.upload(np.asarray(affines, np.float32), "FLOAT", "poses of the cloud")
        counts = device.empty((4 * (blocks + 1),), "UINT8", "counts of points")
        packed = device.empty((pixels, POINT_BYTES), "UINT8", "a packed cloud")
        limits = (np.float32(min_confidence), np.float32(max_depth or 0.0))
        inputs = [np.uint64(a.address) for a in (points, colours, confidence, moves)]
        counted, written = np.uint64(counts.address), np.uint64(packed.address)
        size = np.int32(pixels)
        with device.timed("pack_points"):
            cuda.launch(
                self._count, blocks, THREADS,
                (inputs[0], inputs[2], size, *limits, counted), device.compute,
            )  # fmt: skip
            cuda.launch(self._sum, 1, 1, (counted, np.int32(blocks)), device.compute)
            cuda.launch(
                self._write, blocks, THREADS,
                (*inputs, size, np.int32(height * width), *limits, counted, written),
                device.compute,
            )  # fmt: skip
        (total,) = device.download([counts.rows(4 * blocks, 4 * blocks + 4)])
        valid = int(total.view(np.uint32)[0])
        return device.download([packed.rows(0, valid)])[0].reshape(-1)
