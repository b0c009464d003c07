"""The live map: what all windows of a sub-map saw, bounded, corrected, as points and as a grid.

Fed by `LiveMapping` updates on the device thread; readable from any thread.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from g2vlm_ros.core.cloud import valid_points
from g2vlm_ros.core.datatypes import ScaleState
from g2vlm_ros.core.geometry import Similarity
from g2vlm_ros.core.mapping.changes import PointMirror
from g2vlm_ros.core.mapping.files import MapInfo, save_map
from g2vlm_ros.core.mapping.free_space import DepthView
from g2vlm_ros.core.mapping.occupancy import Occupancy, OccupancyMapper
from g2vlm_ros.core.mapping.voxel_map import VoxelMap
from g2vlm_ros.core.settings import Settings
from g2vlm_ros.live import Update

VOXELS_PER_DEPTH = 100
"""Voxel edge of a map without metres: the first window's median depth over this."""
REMEMBERED_WINDOWS = 4096
"""Windows whose place is remembered, to know how far a correction moved them."""


class SceneMap:
    """Voxels and occupancy of the current sub-map; a new sub-map starts an empty map."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._lock = threading.RLock()
        self._start_over()

    def add(self, update: Update) -> None:
        """Integrate a window: corrections first, then its points, then what its views see free."""
        placement = update.placement
        with self._lock:
            if placement.new_sub_map or placement.sub_map != self._sub_map:
                self._start_over(placement.sub_map)
            self._correct(dict(placement.corrections))
            self._places[update.window.id] = placement.map_from_window
            if len(self._places) > REMEMBERED_WINDOWS:
                del self._places[min(self._places)]
            self._scale = placement.scale_state
            if self._voxels is None:
                self._voxels, self._occupancy = self._make(update)
            self._integrate(update)

    def reset(self) -> None:
        """Forget everything."""
        with self._lock:
            self._start_over()

    def points(self) -> np.ndarray:
        """Packed points (n,) of `core.map_changes.POINT`, map frame; only changes are repacked."""
        with self._lock:
            if self._voxels is None:
                return self._mirror.dense()
            self._mirror.apply(self._voxels.changes(self._mirror.revision))
            return self._mirror.dense()

    @property
    def stamp_ns(self) -> int:
        """Acquisition of the newest view in the map; 0 for an empty map."""
        return self._stamp_ns

    def occupancy(self) -> Occupancy | None:
        """The grid around the camera, or None for an empty map."""
        with self._lock:
            if self._voxels is None:
                return None
            points = self.points()
            positions = np.stack([points[axis] for axis in "xyz"], axis=-1)
            return self._occupancy.grid(positions, self._camera, self._floor)

    def save(self, path: Path) -> int:
        """Write the map as .npz, .ply or .pcd; returns the voxel count. Raises MapFileError."""
        with self._lock:
            if self._voxels is None:
                return 0
            metres = 1.0 if self._scale is ScaleState.METRIC else float("nan")
            info = MapInfo(self._settings.map.frame, self._scale, metres)
            return save_map(path, self._voxels, info)

    def _start_over(self, sub_map: int = -1) -> None:
        self._sub_map = sub_map
        self._voxels: VoxelMap | None = None
        self._occupancy: OccupancyMapper | None = None
        self._mirror = PointMirror()
        self._places: dict[int, Similarity] = {}
        self._scale = ScaleState.UNKNOWN
        self._stamp_ns = 0

    def _make(self, update: Update) -> tuple[VoxelMap, OccupancyMapper]:
        """A map in metres takes lengths from the settings; one without takes them from depth."""
        chosen, unit = self._settings.voxel, 1.0
        if self._scale is not ScaleState.METRIC:
            depth = float(np.nanmedian(update.result.local_points_u[..., 2]))
            unit = (
                depth * update.placement.map_from_window.scale / VOXELS_PER_DEPTH / chosen.size_m
            )
        voxels = VoxelMap(
            chosen.size_m * unit,
            chosen.memory_mib << 20,
            chosen.min_ray_confidence,
            chosen.replaced_per_update,
        )
        grid = OccupancyMapper(
            chosen.cell_m * unit,
            chosen.obstacle_low_m * unit,
            chosen.obstacle_high_m * unit,
            chosen.min_ray_confidence,
        )
        return voxels, grid

    def _correct(self, places: dict[int, Similarity]) -> None:
        """Windows that a loop or a new scale moved take their voxels along."""
        moves = {
            window: place @ self._places[window].inverse()
            for window, place in places.items()
            if window in self._places
        }
        self._places.update({window: places[window] for window in moves})
        if moves and self._voxels is not None:
            self._voxels.correct(moves)
            self._occupancy.correct(moves)

    def _integrate(self, update: Update) -> None:
        result, placement, window = update.result, update.placement, update.window
        cloud = self._settings.cloud
        keep = valid_points(
            result.local_points_u, result.confidence, cloud.min_confidence, cloud.max_edge_step
        )
        stamp_ns, origins = window.stamp_ns, update.map_from_camera[:, :3, 3]
        self._voxels.integrate(
            update.map_points()[keep],
            result.colours[keep],
            result.confidence[keep],
            origins,
            stamp_ns,
            window.id,
        )
        floor = 0.0 if np.isnan(placement.floor_z) else placement.floor_z
        self._floor = (0.0, 0.0, 1.0, -floor)
        scale = np.float32(placement.map_from_window.scale)
        for i in update.new_views:
            if result.intrinsics[i] is None:
                continue
            view = DepthView(
                result.local_points_u[i, ..., 2] * scale,
                result.confidence[i],
                update.map_from_camera[i],
                result.intrinsics[i],
                window.frames[i].stamp_ns,
            )
            self._voxels.carve(view)
            self._occupancy.observe(view, window.id, self._floor)
        self._stamp_ns, self._camera = stamp_ns, origins[-1]
