# SPDX-License-Identifier: Apache-2.0
"""The live map: what all windows of a map saw, bounded, corrected, as points and as a grid.

One map is shown. Others are put aside while the robot is lost, and come back, or become part of
it, when it is known where they lie. Fed by `MappingPipeline` updates on the device's thread;
readable from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from g2vlm_ros.dense_map.deformation import Deformation
from g2vlm_ros.dense_map.free_space import DepthView
from g2vlm_ros.dense_map.map_changes import POINT, ChangeSet, MapCounts
from g2vlm_ros.dense_map.map_editor import Edit, MapEditor
from g2vlm_ros.dense_map.map_files import MapFileError, MapInfo, load_map, save_map
from g2vlm_ros.dense_map.occupancy import Occupancy, OccupancyMapper
from g2vlm_ros.dense_map.rooms import WALL_BAND_M
from g2vlm_ros.dense_map.voxel_fusion import PointViews
from g2vlm_ros.dense_map.voxel_map import VoxelMap
from g2vlm_ros.geometry.point_cloud import affines
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.kernels.cells import CellSums
from g2vlm_ros.kernels.device_free_space import DeviceDepth
from g2vlm_ros.mapping.pose_graph import max_folded
from g2vlm_ros.mapping.window_pose import MappedWindow, WindowPose
from g2vlm_ros.records import ScaleState
from g2vlm_ros.settings import Settings

VOXELS_PER_DEPTH = 50
"""Voxel edge of a map without metres: the windows' median depth over this. Networks err by some
two hundredths of the depth; and the limits in metres of the settings, which go with a voxel of
5 cm, then mean what they say where the median depth is 2.5 m, as in rooms."""
COARSER = 2.0
"""Times too fine that the voxels of a map without metres may be before they are merged."""
MOVED_VOXELS = 0.5
"""Voxel edges by which a window's content must have moved before its voxels follow."""
CONTRADICTED = 0.05
"""Confidence, e^-3 of agreement, below which the window's other views see through a point or
before it, each by three times `confidence.AGREEMENT_STEP`: what moved, or was never there."""
NO_MAP = -1
"""No window yet: the next one enters whatever map is there."""
EARLIER_SESSION = 0
"""Window of loaded voxels; windows of this session count from 1, so no correction moves them."""
_Held = tuple[Sim3, np.ndarray, float]
"""Where a window's voxels lie: its place, its cameras' centre, and how far they saw."""
Version = tuple[int, int]
"""Which map, and its revision."""


@dataclass
class _Content:
    """What is held of one map."""

    voxels: VoxelMap | None = None
    occupancy: OccupancyMapper | None = None
    editor: MapEditor | None = None
    unit: float = 1.0
    """Map units per metre of the settings."""
    scale: ScaleState = ScaleState.UNKNOWN
    places: dict[int, _Held] = field(default_factory=dict)
    """Of its windows, as long as the pose graph holds them."""
    stamp_ns: int = 0
    camera: np.ndarray = field(default_factory=lambda: np.zeros(3))
    floor: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 0.0)
    saved: bool = False
    """Whether it continues a saved map, which can be found again without any of its windows."""

    @property
    def nbytes(self) -> int:
        """Memory of its voxels and of the ground that its views saw free."""
        return 0 if self.voxels is None else self.voxels.nbytes + self.occupancy.nbytes

    def forget(self, windows: Iterable[int]) -> bool:
        """Let go the places of windows that the pose graph no longer holds.

        Whether the map can never come back: no loop and no search leads to it any more.
        """
        for window in windows:
            self.places.pop(window, None)
        return not (self.places or self.saved)


@dataclass(frozen=True)
class MapStats:
    """Size and history of the map that is shown."""

    voxel_size: float
    """Edge in map units; NaN while the map is empty."""
    nbytes: int
    """Memory of its voxels."""
    counts: MapCounts
    """Since the map began."""
    pending_corrections: int
    """Corrections of windows' poses that some voxels still wait for."""


@dataclass(frozen=True)
class DenseMapSizes:
    """What is held of maps; memory in bytes."""

    voxels: int
    max_voxels: int
    nbytes: int
    """Of the voxels of the map that is shown."""
    edits: int
    """That hold in it."""
    undo_bytes: int
    maps_aside: int
    aside_bytes: int


@dataclass(frozen=True)
class LoadedMap:
    """A saved map that was read and checked, and is in no one's place yet."""

    content: _Content

    def __len__(self) -> int:
        return len(self.content.voxels)


class DenseMap:
    """Voxels and occupancy of the current map; a new map starts an empty map.

    A map in metres, such as a loaded one, takes in no window without metres.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._lock = threading.RLock()
        self._sums = CellSums()
        self._maps = 0
        self._session = self._least_session = 0
        self._start_over()

    def add(self, update: MappedWindow) -> None:
        """Integrate a window: corrections first, then its points, then what its views see free.

        Views that nothing connects with the place of their window stay out.
        """
        placement = update.placement
        with self._lock:
            if update.session < self._least_session:
                return
            self._session = update.session
            if self._settings.map.mode == "localization":
                return
            if placement.merged_map_id is not None:
                self._merge_maps(placement)
            if update.localisation.placed:
                self._show(placement.map_id)
                self._take_in(update)
            else:
                self._take_in_aside(update)
            self._current.forget(placement.forgotten)
            self._bound_aside(placement.forgotten)

    def _take_in_aside(self, update: MappedWindow) -> None:
        """Lost in the map that is shown: what the window adds waits beside it."""
        map_id = update.placement.map_id
        current, self._current = self._current, self._aside.pop(map_id, _Content())
        self._take_in(update)
        self._aside[map_id], self._current = self._current, current

    def _take_in(self, update: MappedWindow) -> None:
        placement, current = update.placement, self._current
        metric = placement.scale.state is ScaleState.METRIC
        if current.scale is ScaleState.METRIC and not metric:
            return
        self._correct(dict(placement.corrections))
        current.places[update.window.id] = self._held(update)
        unit = 1.0 if metric else self._seen_unit()
        if current.voxels is None:
            self._hold(unit, *self._make(unit))
        elif (metric and current.scale is not ScaleState.METRIC) or unit > COARSER * current.unit:
            self._resize(unit)
        current.scale = placement.scale.state
        self._integrate(update)

    def _show(self, map_id: int) -> None:
        """Show this map; the one before is put aside."""
        if self._map_id not in (NO_MAP, map_id):
            if self._current.voxels is not None:
                self._aside[self._map_id] = self._current
            self._current = self._aside.pop(map_id, _Content())
            self._maps += 1
        self._map_id = map_id

    def _bound_aside(self, forgotten: Iterable[int]) -> None:
        """What is put aside is what can come back, as much as the map itself at most.

        The smallest goes: a robot that is lost begins one short map after the other, and they
        must not drive out the one that it knows its home by.
        """
        self._aside = {m: each for m, each in self._aside.items() if not each.forget(forgotten)}
        bound = self._settings.voxel.memory_mib << 20
        while sum(each.nbytes for each in self._aside.values()) > bound and len(self._aside) > 1:
            del self._aside[min(self._aside, key=lambda m: self._aside[m].nbytes)]

    @property
    def maps_aside(self) -> tuple[int, int]:
        """How many maps are put aside, and their memory in bytes."""
        with self._lock:
            return len(self._aside), sum(each.nbytes for each in self._aside.values())

    def sizes(self) -> DenseMapSizes:
        """What is held now; waits for no lock, as a map is locked while its file is written."""
        voxels, editor = self._current.voxels, self._current.editor
        edits = () if editor is None else editor.edits
        aside = list(self._aside.values())
        return DenseMapSizes(
            0 if voxels is None else len(voxels),
            0 if voxels is None else voxels.max_voxels,
            0 if voxels is None else voxels.nbytes,
            len(edits),
            sum(edit.nbytes for edit in edits),
            len(aside),
            sum(each.nbytes for each in aside),
        )

    def _merge_maps(self, placement: WindowPose) -> None:
        """A map has become part of another one: its voxels go where its windows are now."""
        self._show(placement.map_id)
        ended = self._aside.pop(placement.merged_map_id, None)
        if ended is None or ended.voxels is None:
            return
        corrections, moves, current = dict(placement.corrections), {}, self._current
        for window, (before, centre, reach) in ended.places.items():
            place = corrections.get(window, before)
            motion = moves[window] = place @ before.inverse()
            current.places[window] = place, motion.apply(centre), reach * motion.scale
        if current.voxels is None:
            unit = 1.0 if placement.scale.state is ScaleState.METRIC else self._seen_unit()
            self._hold(unit, *self._make(unit))
            current.scale = placement.scale.state
        ended.voxels.settle()
        _, voxels = ended.voxels.voxels()
        positions = voxels["position"].astype(np.float64)
        moved = Deformation.of(ended.voxels.revision + 1, moves).apply(voxels, positions)
        current.voxels.merge(positions[moved], voxels[moved])
        current.occupancy.absorb(ended.occupancy, moves)

    def reset(self, session: int | None = None) -> None:
        """Forget everything, and take in no window of an earlier session that is still running.

        session: what `MappingPipeline.reset` returned; by default the one after the newest
        window's.
        """
        with self._lock:
            self._least_session = self._session + 1 if session is None else session
            self._start_over()

    def points(self) -> np.ndarray:
        """Packed points (n,) of `changes.POINT`, map frame."""
        with self._lock:
            return (
                np.empty(0, POINT)
                if self._current.voxels is None
                else self._current.voxels.packed()
            )

    def changes(self, since: Version | None) -> tuple[ChangeSet, Version] | None:
        """What changed since a version (None: everything) and the version now.

        None for an empty map. The set starts over where the version was of another map.
        """
        with self._lock:
            if self._current.voxels is None:
                return None
            same = since is not None and since[0] == self._maps
            change = self._current.voxels.changes(since[1] if same else 0)
            if not same:
                change = replace(change, start_over=True, removed=change.removed[:0])
            return change, (self._maps, change.revision)

    @property
    def version(self) -> Version:
        """Differs after every change; never comes back."""
        with self._lock:
            return (
                self._maps,
                self._current.voxels.revision if self._current.voxels is not None else 0,
            )

    @property
    def stamp_ns(self) -> int:
        """Acquisition of the newest view in the map; 0 for an empty map."""
        return self._current.stamp_ns

    @property
    def metric(self) -> bool:
        """Whether there is a map, and its lengths are metres."""
        return self._current.voxels is not None and self._current.scale is ScaleState.METRIC

    @property
    def voxel_size(self) -> float:
        """Edge of a voxel in map units; NaN while the map is empty."""
        voxels = self._current.voxels
        return float("nan") if voxels is None else float(voxels.size)

    def stats(self) -> MapStats:
        """Size and history of the map that is shown."""
        with self._lock:
            voxels = self._current.voxels
            if voxels is None:
                return MapStats(float("nan"), 0, MapCounts(), 0)
            return MapStats(
                float(voxels.size), voxels.nbytes, voxels.counts, voxels.pending_corrections
            )

    def settle(self) -> None:
        """Apply every correction now, which otherwise happens little by little."""
        with self._lock:
            if self._current.voxels is not None:
                self._current.voxels.settle()

    def occupancy(self) -> Occupancy | None:
        """The grid around the camera, or None for an empty map."""
        with self._lock:
            if self._current.voxels is None:
                return None
            return self._grid(self._positions())

    def floor_plan(self) -> tuple[Occupancy, np.ndarray] | None:
        """`occupancy`, and float32 (n, 2) x and y of what stands at the heights of walls alone,
        map frame; None for an empty map."""
        with self._lock:
            if self._current.voxels is None:
                return None
            positions = self._positions()
            plane = np.asarray(self._current.floor, np.float32)
            heights = positions @ plane[:3] + plane[3]
            low, high = WALL_BAND_M
            walls = positions[(heights > low) & (heights < high), :2]
            return self._grid(positions), walls

    def _positions(self) -> np.ndarray:
        """float32 (n, 3): the voxels."""
        points = self.points()
        return np.stack([points[axis] for axis in "xyz"], axis=-1)

    def _grid(self, positions: np.ndarray) -> Occupancy:
        current = self._current
        return current.occupancy.grid(positions, current.camera, current.floor)

    def save(self, path: Path, objects: bytes = b"", keyframes: bytes = b"") -> int:
        """Write the map as .npz, .ply or .pcd; returns the voxel count. Raises MapFileError.

        objects, keyframes: kept with the map, in .npz files (`map_files.load_objects`).
        """
        with self._lock:
            if self._current.voxels is None:
                return 0
            metres = 1.0 if self._current.scale is ScaleState.METRIC else float("nan")
            info = MapInfo(
                self._settings.map.frame, self._current.scale, metres, objects, keyframes
            )
            return save_map(path, self._current.voxels, info)

    def load(self, path: Path, map_from_file: Sim3) -> int:
        """Continue in a saved .npz instead; returns its voxel count.

        map_from_file, rigid: where the file's origin lies in the map; the identity keeps every
        voxel as it was. Raises MapFileError, also for a map without metres, and changes nothing.
        """
        loaded = self.read(path, map_from_file)
        self.put(loaded)
        return len(loaded)

    def read(self, path: Path, map_from_file: Sim3) -> LoadedMap:
        """What `load` puts in place; raises as it does."""
        voxels, occupancy = self._make(1.0, CellSums())
        info = load_map(path, voxels)
        if info.scale_state is not ScaleState.METRIC:
            raise MapFileError(
                f"{path} is not in metres, and its unit means nothing later; save it again once "
                "the scale is known"
            )
        ids, rows = voxels.voxels()
        rows["window"] = EARLIER_SESSION
        if _is_identity(map_from_file):
            voxels.put(voxels.keys(ids), rows)
        else:
            voxels.reset()
            voxels.merge(map_from_file.apply(rows["position"].astype(np.float64)), rows)
        stamp_ns = int(rows["stamp_ns"].max(initial=0))
        metric = ScaleState.METRIC
        content = _Content(voxels, occupancy, scale=metric, stamp_ns=stamp_ns, saved=True)
        return LoadedMap(content)

    def put(self, loaded: LoadedMap, map_id: int | None = None) -> None:
        """Show a map that was read; map_id: its own, by default it is the map that goes on."""
        with self._lock:
            self._start_over(self._map_id if map_id is None else map_id)
            self._current = loaded.content

    def edit(self, change: Callable[[MapEditor], Edit | None]) -> Edit | None:
        """Let `change` edit the map; what it returns. ValueError for an empty map, or as it says.

        Later windows respect the edit (`dense_map.map_editor`).
        """
        with self._lock:
            if self._current.voxels is None:
                raise ValueError("the map is empty; wait for a window or load a map")
            if self._current.editor is None:
                self._current.editor = MapEditor(self._current.voxels)
            return change(self._current.editor)

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edits that later windows respect, oldest first."""
        with self._lock:
            return () if self._current.editor is None else self._current.editor.edits

    def _start_over(self, map_id: int = NO_MAP) -> None:
        self._map_id = map_id
        self._maps += 1
        self._current = _Content()
        self._aside: dict[int, _Content] = {}

    def _hold(self, unit: float, voxels: VoxelMap, occupancy: OccupancyMapper) -> None:
        current = self._current
        current.unit, current.voxels, current.occupancy = unit, voxels, occupancy

    def _seen_unit(self) -> float:
        """Map units that stand for a metre of the settings while there are no metres."""
        reach = float(np.median([reach for _, _, reach in self._current.places.values()]))
        return reach / VOXELS_PER_DEPTH / self._settings.voxel.size_m

    def _make(self, unit: float, sums: CellSums | None = None) -> tuple[VoxelMap, OccupancyMapper]:
        """An empty map and grid; `unit`: map units per metre of the settings.

        sums: for one that is written without the lock.
        """
        voxel = self._settings.voxel
        voxels = VoxelMap(
            voxel.size_m * unit,
            voxel.memory_mib << 20,
            voxel.min_ray_confidence,
            voxel.replaced_per_update,
            sums or self._sums,
        )
        grid = OccupancyMapper(
            voxel.cell_m * unit,
            voxel.obstacle_low_m * unit,
            voxel.obstacle_high_m * unit,
            voxel.min_ray_confidence,
            max_fans=max_folded(self._settings.map.graph_windows),
        )
        return voxels, grid

    def _resize(self, unit: float) -> None:
        """The voxels, corrected already, go into a map of other lengths: metres, or coarser."""
        before = self._current.voxels
        before.settle()
        _, voxels = before.voxels()
        self._hold(unit, *self._make(unit))
        self._current.voxels.merge(voxels["position"].astype(np.float64), voxels)
        if self._current.editor is not None:
            self._current.editor.move_to(self._current.voxels)
        self._maps += 1

    def _correct(self, places: dict[int, Sim3]) -> None:
        """Windows that a loop or a new scale moved take their voxels along.

        The joints of every window move the ones before it a little; what adds up to less than
        MOVED_VOXELS stays where it is, or the map would be placed anew all the time.
        """
        moves = {}
        for window, place in places.items():
            if self._current.voxels is None or window not in self._current.places:
                continue
            before, centre, reach = self._current.places[window]
            motion = place @ before.inverse()
            tangent, moved = motion.log(), motion.apply(centre)
            turned = np.linalg.norm(tangent[:3]) + abs(tangent[6])
            if (
                np.linalg.norm(moved - centre) + turned * reach
                > MOVED_VOXELS * self._current.voxels.size
            ):
                moves[window] = motion
                self._current.places[window] = place, moved, reach * motion.scale
        if moves:
            self._current.voxels.correct(moves)
            self._current.occupancy.correct(moves)

    @staticmethod
    def _held(update: MappedWindow) -> _Held:
        place = update.placement.map_from_window
        reach = update.result.median_depth_u * place.scale
        return place, update.map_from_camera[:, :3, 3].mean(0), reach

    def _integrate(self, update: MappedWindow) -> None:
        result, window, settings = update.result, update.window, self._settings.voxel
        sound, scale = update.trusted_views, update.placement.map_from_window.scale
        poses = update.map_from_camera
        focal_px = [0.0 if camera is None else camera.fx_px for camera in result.intrinsics]
        views = PointViews(
            result.local_points_u,
            result.colours,
            result.confidence,
            result.valid(settings.max_edge_step) if result.device_points_u is None else None,
            sound,
            affines(len(sound), poses[list(sound)], scale).astype(np.float32),
            np.array(focal_px)[list(sound)] / scale,
            settings.min_confidence,
            CONTRADICTED,
            settings.max_depth_m * self._current.unit / scale or np.inf,
            settings.max_edge_step,
            result.ignored,
        )
        self._current.voxels.integrate_views(views, poses[:, :3, 3], window.stamp_ns, window.id)
        floor_z = update.placement.floor_z
        self._current.floor = (0.0, 0.0, 1.0, 0.0 if np.isnan(floor_z) else -floor_z)
        for i in update.new_views:
            if result.intrinsics[i] is None or i not in sound:
                continue
            points, confidence = result.device_points_u, result.confidence
            if points is None:
                depth, confidence = result.local_points_u[i, ..., 2], confidence[i]
            else:
                depth, confidence = DeviceDepth(points, confidence, i), None
            view = DepthView(
                depth,
                confidence,
                poses[i],
                result.intrinsics[i],
                window.frames[i].stamp_ns,
                scale,
            )
            self._current.voxels.carve(view)
            self._current.occupancy.observe(view, window.id, self._current.floor)
        self._current.stamp_ns, self._current.camera = window.stamp_ns, poses[-1, :3, 3]


def _is_identity(motion: Sim3) -> bool:
    return np.array_equal(motion.rotation, np.eye(3)) and not motion.translation.any()
