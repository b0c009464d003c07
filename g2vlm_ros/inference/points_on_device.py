# SPDX-License-Identifier: Apache-2.0
"""The kernels for point maps that stay on the GPU where the network made them.

What they do is said in kernels/window_points.cu, what the host sees of it in
`kernels.device_points`. A backend calls `PointKernels.points`; where kernels cannot be compiled
points go to the host as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from g2vlm_ros.inference.tensorrt.device_memory import DeviceArray, DeviceMemory
from g2vlm_ros.inference.tensorrt.point_packing import THREADS, PointPacker
from g2vlm_ros.kernels.checks import shape_of
from g2vlm_ros.kernels.device_maps import Uploads
from g2vlm_ros.kernels.device_points import DevicePoints
from g2vlm_ros.kernels.device_source import WINDOW_POINTS, device_source, kernels_of

FIRST_BITS = 16
"""Of a hash table of cells: twice as many entries as a window of the released size has cells."""


class PointKernels:
    """The kernels of window_points.cu and of `PointPacker`, compiled for a device
    (`kernels.device_maps.Device`)."""

    def __init__(self, memory: DeviceMemory):
        self.memory, cuda = memory, memory.cuda
        source = device_source(WINDOW_POINTS)
        module = cuda.compile(source)
        self._functions = {name: cuda.function(module, name) for name in kernels_of(source)}
        self.packed = PointPacker(memory).pack
        self.table_bits = FIRST_BITS

    def points(self, array: DeviceArray) -> DevicePoints:
        """Point maps FLOAT (N, H, W, 3) as a window has them; their memory is theirs from now."""
        shape_of(array, "points", (None, None, None, 3))
        return DevicePoints(self, array, Uploads(self.memory))

    def copy_of(self, address: int, shape: Sequence[int]) -> DevicePoints:
        """The same of float32 memory that is another's, who may use it again afterwards."""

        def run() -> DevicePoints:
            duplicate = self.memory.empty(shape, "FLOAT", "points of a window")
            self.memory.duplicate(duplicate, DeviceArray(address, tuple(shape), "FLOAT"))
            self.memory.synchronize()
            return self.points(duplicate)

        return self.memory.guarded(run)

    def launch(self, kernel: str, threads: int, *arguments: Any) -> None:
        """Put a kernel on the stream; arrays among the arguments are passed by address."""
        values = [np.uint64(a.address) if isinstance(a, DeviceArray) else a for a in arguments]
        blocks = -(-threads // THREADS)
        if blocks:
            self.memory.cuda.launch(
                self._functions[kernel], int(blocks), THREADS, values, self.memory.compute
            )

    def is_finite(self, array: DeviceArray) -> bool:
        """Whether all values of a FLOAT array are finite; 4 bytes come to the host."""
        flag = self.memory.zeros((4,), "UINT8", "a flag")
        self.launch("find_not_finite", array.size, array, np.int64(array.size), flag)
        return not self.memory.download([flag])[0].any()
