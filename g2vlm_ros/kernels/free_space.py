# SPDX-License-Identifier: Apache-2.0
"""Space that a depth view proves empty (free_space.cpp)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from g2vlm_ros.kernels.checks import (
    I64,
    call,
    check_in_place,
    check_indices,
    f32,
    f64,
    i64,
    input_array,
    positive,
    shape_of,
)
from g2vlm_ros.kernels.records import VOXEL
from g2vlm_ros.kernels.voxels import CELLS_PER_BLOCK


class FreeSpace:
    """The space that one depth view proves empty.

    depth: float32 (H, W), a plane of a point map (H, W, 3) as well; times `scale` it is in map
    units. confidence float32 (H, W). pose float64 (4, 4) map_from_camera, rigid; pinhole (4,): fx,
    fy, cx, cy. tile: side in pixels of the tiles for the quick sieve.
    """

    def __init__(
        self,
        depth: np.ndarray,
        confidence: np.ndarray,
        pose: np.ndarray,
        pinhole: Sequence[float],
        *,
        scale: float,
        min_confidence: float,
        tile: int,
    ):
        self.height, self.width = shape_of(depth, "depth", (None, None))
        self._pose = input_array(pose, "pose", np.float64, (4, 4))
        self._pinhole = input_array(np.array(pinhole, np.float32), "pinhole", np.float32, (4,))
        self._scale, self._min_confidence = scale, min_confidence
        self._tile = positive(tile, "tile")
        tiles = -(-self.height // tile), -(-self.width // tile)
        self._farthest, self.reach = self._surveyed(depth, confidence, tiles)
        """Of tiles; the largest trusted depth."""

    def _surveyed(
        self, depth: np.ndarray, confidence: np.ndarray, tiles: tuple[int, int]
    ) -> tuple[np.ndarray, float]:
        """(float32 (tile rows, columns), reach): the farthest of what is near, around each tile;
        the largest trusted depth."""
        plane, stride = _plane(depth)
        confidence = input_array(confidence, "confidence", np.float32, (self.height, self.width))
        self._view = plane, i64(stride), confidence, i64(self.height), i64(self.width)
        self._limits = f32(self._scale), f32(self._min_confidence)
        self._nearest = np.empty((self.height, self.width), np.float32)
        farthest = np.empty(tiles, np.float32)
        reach = call(
            "free_depth",
            ctypes.c_float,
            *self._view,
            *self._limits,
            i64(self._tile),
            i64(tiles[0]),
            i64(tiles[1]),
            self._nearest,
            farthest,
        )
        return farthest, reach

    def blocks(self, blocks: dict[str, np.ndarray], end: int, radius: float) -> np.ndarray:
        """int64 (n,): rows below `end` of blocks that may hold voxels which the view sees through.

        blocks: arrays centre, voxels and stale by row; radius: of the balls around the centres.
        """
        rows = len(blocks["voxels"])
        centres = input_array(blocks["centre"], "centre", np.float32, (rows, 3))
        counts = input_array(blocks["voxels"], "voxels", np.int32, (rows,))
        stale = input_array(blocks["stale"], "stale", np.int32, (rows,))
        if not 0 <= end <= rows:
            raise ValueError(f"end is {end}; there are {rows} rows of blocks")
        out = np.empty(end, np.int64)
        size = call(
            "blocks_in_view",
            I64,
            centres,
            counts,
            stale,
            i64(end),
            *self._camera(),
            f32(self.reach),
            f32(radius),
            i64(self._tile),
            i64(self._farthest.shape[1]),
            self._farthest,
            out,
        )
        return out[:size]

    def seen_through(
        self,
        rows: np.ndarray,
        index: np.ndarray,
        voxels: np.ndarray,
        capacity: int,
        slack: float,
        stamp_ns: int,
    ) -> np.ndarray:
        """int64 (n,): slots of voxels that a ray passed on its way to a surface clearly behind,
        and that were not seen as late as `stamp_ns`.

        rows int64 (b,) of the blocks to test; index int32 (rows, 512) as for `find_cells`; voxels
        VOXEL (s,); capacity: how many voxels these blocks hold. slack: map units a surface must
        lie behind a voxel, besides a twentieth of the depth.
        """
        rows = input_array(rows, "rows", np.int64, (None,))
        check_in_place(index, "index", np.int32, (None, CELLS_PER_BLOCK))
        check_in_place(voxels, "voxels", VOXEL, (None,))
        check_indices(rows, len(index), "rows")
        slots = np.empty(capacity, np.int64)
        pose, pinhole, height, width = self._camera()
        size = call(
            "seen_through",
            I64,
            rows,
            i64(len(rows)),
            index,
            voxels,
            self._nearest,
            height,
            width,
            pose,
            pinhole,
            f32(slack),
            i64(stamp_ns),
            slots,
            i64(capacity),
        )
        return slots[:size]

    def ground(
        self,
        plane: Sequence[float],
        low: float,
        high: float,
        resolution: float,
        rays: int,
        step: int,
    ) -> np.ndarray | None:
        """float64 (2, rays, 3): near and far edge of the ground that every step-th ray crossed.

        plane (4,): heights above the floor; low..high: of obstacles. None where no ray did.
        """
        depths = self._trusted(positive(step, "step"))
        edges = np.empty((2, positive(rays, "rays"), 3))
        plane = input_array(np.array(plane, np.float64), "plane", np.float64, (4,))
        pinhole = self._pinhole.astype(np.float64)
        crossed = call(
            "ground_fan",
            ctypes.c_int32,
            depths,
            i64(depths.shape[0]),
            i64(depths.shape[1]),
            i64(step),
            self._pose,
            pinhole,
            plane,
            f64(low),
            f64(high),
            f64(resolution),
            i64(rays),
            edges,
        )
        return edges if crossed else None

    def _trusted(self, step: int) -> np.ndarray:
        """float32 (rows, columns): every step-th pixel in map units, 0 where not trusted."""
        depths = np.empty((-(-self.height // step), -(-self.width // step)), np.float32)
        call("trusted_depths", None, *self._view, *self._limits, i64(step), depths)
        return depths

    def _camera(self) -> tuple:
        return self._pose, self._pinhole, i64(self.height), i64(self.width)


def _plane(array: np.ndarray) -> tuple[np.ndarray, int]:
    """float32 (H, W) whose pixels lie a whole number of floats apart, and that number.

    One axis of a point map is such a plane; other arrays are copied.
    """
    if array.dtype != np.float32:
        raise ValueError(f"depth is {array.dtype}; it must be float32")
    rows, columns = array.strides
    if columns > 0 and columns % 4 == 0 and rows == columns * array.shape[1]:
        return array, columns // 4
    return np.ascontiguousarray(array), 1
