# SPDX-License-Identifier: Apache-2.0
"""Graph SLAM back end: windows into one map frame that stays put, in metres and level.

The first camera of a map is the origin, taken as level (x forward, y left, z up) until gravity
or, without an IMU, the floors and walls in view say better (`GravityAlignment`). Map units are the
first window's until the scale is known, metres from then on; whatever moves earlier windows is
listed in the placement that moved them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from g2vlm_ros.geometry.registration import RelativePose
from g2vlm_ros.geometry.sim3 import ZUP_FROM_OPTICAL, Sim3
from g2vlm_ros.mapping.gravity_alignment import Floor, GravityAlignment
from g2vlm_ros.mapping.keyframes import SAVED_MAP
from g2vlm_ros.mapping.loop_closure import LoopMatch
from g2vlm_ros.mapping.odometry_constraint import OdometryConstraint, odometry_constraint
from g2vlm_ros.mapping.pose_graph import PoseGraph
from g2vlm_ros.mapping.scale_filter import ScaleEstimate, ScaleFilter
from g2vlm_ros.mapping.scale_measurements import (
    MIN_STD,
    ScaleMeasurement,
    evidence,
    rig_baselines_m,
)
from g2vlm_ros.mapping.window_pose import (
    LoopOutcome,
    ScaleUpdate,
    WindowPose,
    view_covariances,
)
from g2vlm_ros.mapping.window_registration import Constraint, WindowRegistrar
from g2vlm_ros.records import Reconstruction, ScaleSource, ScaleState, Window
from g2vlm_ros.settings import MapSettings

MAX_STRAIN = 2.0
"""Standard deviations, mean of the seven unknowns, by which a loop may contradict the map."""
UNIT_STD = 0.3
"""Of the logarithm of a window's unit over that of the window before, where nothing tells."""
MAX_SCALE_OFF = 2.0
"""Standard deviations by which a map may miss its metres before it is rescaled."""
MIN_CORRECTION = 1e-4
"""Change (rad, map units, log scale) from which a window counts as corrected."""


@dataclass
class _Map:
    """What is known about the frame of one map."""

    id: int
    scale: ScaleFilter = field(default_factory=ScaleFilter)
    metric: bool = False
    level: GravityAlignment = field(default_factory=GravityAlignment)
    saved: bool = False
    """Whether it continues a saved map, whose voxels stand still."""

    @classmethod
    def of_saved(cls, map_id: int) -> _Map:
        """In metres and level."""
        frame = cls(map_id, metric=True, level=GravityAlignment(fixed=True), saved=True)
        frame.scale.update([ScaleMeasurement(1.0, MIN_STD[ScaleSource.MAP], ScaleSource.MAP)], 1.0)
        return frame

    def copy(self) -> _Map:
        """One that takes windows in without this one."""
        return replace(self, scale=self.scale.copy(), level=self.level.copy())

    def scale_update(self, estimate: ScaleEstimate, rescaled: float = 1.0) -> ScaleUpdate:
        return ScaleUpdate(
            ScaleState.METRIC if self.metric else ScaleState.RELATIVE,
            estimate.relative_std,
            estimate.source,
            estimate.jump,
            estimate.refused,
            estimate.clash,
            rescaled,
        )


class GraphSlam:
    """Places successive windows in one map frame. Not thread-safe."""

    def __init__(self, settings: MapSettings):
        self._settings = settings
        self._measure = partial(
            evidence,
            rig_m=rig_baselines_m(settings.rig_baselines),
            camera_height_m=settings.camera_height_m,
            metres_per_unit=settings.metres_per_unit,
        )
        self._map_count = 0
        self.reset()

    def reset(self) -> None:
        """Forget the map; the next window starts a new map."""
        self._graph = PoseGraph(self._settings.graph_windows)
        self._map_of: dict[int, _Map] = {}
        self._registrar = WindowRegistrar(self._settings)
        self._last_odometry: tuple[int, OdometryConstraint | None] | None = None

    def add_saved_map(self, map_id: int | None = None) -> int:
        """Put a saved map in metres into the empty graph, as a node of its own; its id.

        map_id: the one that it has already; otherwise it is the next map.
        """
        if map_id is None:
            map_id = self._map_count
            self._map_count += 1
        self._graph.add(SAVED_MAP, Sim3.identity())
        self._map_of[SAVED_MAP] = _Map.of_saved(map_id)
        return map_id

    def map_id_of(self, window_id: int) -> int:
        """The map in which a window lies that the graph still holds."""
        return self._map_of[self._graph.keeper(window_id)].id

    def map_from(self, window_id: int) -> Sim3:
        """Where a window lies that the graph still holds, in its map."""
        return self._graph.pose(window_id)

    def __len__(self) -> int:
        """Nodes of the pose graph, bounded by `graph_windows`."""
        return len(self._graph)

    @property
    def windows(self) -> int:
        """Windows whose place is known."""
        return self._graph.windows

    @property
    def max_windows(self) -> int:
        """Most of `windows`."""
        return self._graph.max_windows

    def __contains__(self, window_id: int) -> bool:
        """Whether the map still knows where a window lies."""
        return window_id in self._graph

    def place(self, window: Window, result: Reconstruction) -> WindowPose:
        """Join a window to the map by the views it shares with the ones before.

        Where no shared view does, odometry carries a map in metres on, if it knows the way; else
        a new map starts, so that a wrong pose is never published as a continuation. A window
        that raises leaves the map as it was.
        """
        before = self._graph, self._map_of, self._map_count, self._last_odometry
        self._graph, self._map_of = self._graph.copy(), _copied(self._map_of)
        try:
            return self._place(window, result)
        except Exception:
            self._graph, self._map_of, self._map_count, self._last_odometry = before
            raise

    def _place(self, window: Window, result: Reconstruction) -> WindowPose:
        node = window.id
        constraint = self._constrain(window, result)
        self._add(node, constraint, result)
        frame = self._map_of[node]
        level = frame.level.update(self._graph, node, window.frames, result)
        scale, estimate = self._update_scale(window, result, constraint, level.floor)
        moves_all = level.turned or scale.rescaled != 1.0
        corrections = self._settle(node, constraint, moves_all)
        target, by_odometry = constraint.target, constraint.by_odometry
        new_map = target is None
        placement = WindowPose(
            map_from_window=self._graph.pose(node),
            map_id=frame.id,
            scale=scale,
            relative_pose=None if new_map or by_odometry else constraint.relative_poses[target],
            new_map=constraint.reason if new_map else None,
            by_odometry=constraint.reason if by_odometry else None,
            covariance=self._covariance(node, result, estimate),
            trusted=constraint.trusted,
            floor_z=frame.level.floor_z(self._graph),
            corrections=corrections,
            forgotten=self._fold(),
        )
        self._registrar.remember(new_map)
        return placement

    def between(self, node: int, other: int) -> Sim3 | None:
        """A placed window from another one by their ids, or None in different maps."""
        if self._map_of[node] is not self._map_of[self._graph.keeper(other)]:
            return None
        return self._graph.pose(node).inverse() @ self._graph.pose(other)

    def close_loop(
        self, match: LoopMatch, placement: WindowPose
    ) -> tuple[WindowPose, LoopOutcome]:
        """Join the window just placed to windows of long ago, and move what lies between.

        Returns the new placement and CLOSED, or the old one and why not: POOR_REGISTRATION or
        CONTRADICTS_MAP; the map then is as it was.
        """
        relative_poses = {}
        for window_id, pairs in match.pairs.items():
            pose = self._registrar.register(pairs)
            if pose is not None:
                relative_poses[window_id] = pose
        if len(relative_poses) < 2 or match.window_id not in relative_poses:
            return placement, LoopOutcome.POOR_REGISTRATION
        join = partial(self._join, match.window_id, relative_poses)
        return self._joined(match.window_id, match.result, placement, join)

    def localise(
        self,
        node: int,
        target: int,
        target_from_node: Sim3,
        covariance: np.ndarray,
        result: Reconstruction,
        placement: WindowPose,
    ) -> tuple[WindowPose, LoopOutcome]:
        """Hold the window just placed at `node` to a window of long ago, where it was recognised.

        covariance: (7, 7), as `RelativePose.covariance`. Where the two lie in different maps, the
        newer map becomes part of the older one. Returns as `close_loop` does.
        """
        join = partial(self._connect_maps, node, target, target_from_node, covariance)
        return self._joined(node, result, placement, join)

    def _joined(
        self,
        node: int,
        result: Reconstruction,
        placement: WindowPose,
        join: Callable[[], tuple[bool, int | None]],
    ) -> tuple[WindowPose, LoopOutcome]:
        """The placement after `join`, which says whether the map agrees and which map ended; the
        old placement, and the map as it was, where it does not."""
        graph, maps = self._graph, self._map_of
        self._graph, self._map_of = graph.copy(), dict(maps)
        before = self._poses(self._graph.nodes)
        agrees, merged_map_id = join()
        if not agrees:
            self._graph, self._map_of = graph, maps
            return placement, LoopOutcome.CONTRADICTS_MAP
        frame = self._map_of[node]
        estimate = frame.scale.belief()
        last = placement.scale
        moved = dict(placement.corrections) | dict(self._corrections(before, node))
        placement = replace(
            placement,
            map_from_window=self._graph.pose(node),
            map_id=frame.id,
            scale=replace(
                frame.scale_update(estimate, last.rescaled),
                jump=last.jump,
                refused=last.refused,
                clash=last.clash,
            ),
            covariance=self._covariance(node, result, estimate),
            floor_z=frame.level.floor_z(self._graph),
            loop_closed=True,
            merged_map_id=merged_map_id,
            corrections=tuple(moved.items()),
            forgotten=placement.forgotten + self._fold(),
        )
        return placement, LoopOutcome.CLOSED

    # Steps of place --------------------------------------------------------------------------

    def _constrain(self, window: Window, result: Reconstruction) -> Constraint:
        """By shared views, or else by odometry."""
        constraint = self._registrar.constrain(window, result)
        odometry = OdometryConstraint.of(window.frames, result, constraint.trusted)
        if not constraint.relative_poses:
            relative_poses = self._by_odometry(window, result, odometry)
            if relative_poses:
                constraint = replace(constraint, relative_poses=relative_poses, by_odometry=True)
        self._last_odometry = window.id, odometry
        return constraint

    def _by_odometry(
        self, window: Window, result: Reconstruction, now: OdometryConstraint | None
    ) -> dict[int, RelativePose]:
        """The relative pose to the window before by odometry; {} where that cannot tell.

        The window's unit is what its own measurements say, or else that of the window before.
        """
        node, before = self._last_odometry or (0, None)
        if now is None or before is None or not self._map_of[node].metric:
            return {}
        unit_m = self._graph.pose(node).scale
        noise = self._map_of[node].scale.view_noise
        measurements = self._measure(window, result, None, view_noise=noise)
        now_unit = next(iter(measurements), ScaleMeasurement(unit_m, UNIT_STD, "before"))
        reach_m = self._settings.odometry_reach_m
        relative_pose = odometry_constraint(before, now, unit_m, now_unit, reach_m)
        return {} if relative_pose is None else {node: relative_pose}

    def _add(self, node: int, constraint: Constraint, result: Reconstruction) -> None:
        """The window into the graph, where its best relative pose puts it, or into a new map."""
        if constraint.target is not None:
            self._attach(node, constraint.target, constraint.relative_poses)
            return
        pose = result.window_from_camera[0].astype(np.float64)
        rotation = ZUP_FROM_OPTICAL @ pose[:3, :3].T
        self._graph.add(node, Sim3(1.0, rotation, -(rotation @ pose[:3, 3])))
        self._map_of[node] = _Map(self._map_count)
        self._map_count += 1

    def _attach(self, node: int, target: int, relative_poses: dict[int, RelativePose]) -> None:
        """A node where one relative pose puts it; the others become further edges."""
        pose = relative_poses[target]
        self._graph.attach(node, target, pose.target_from_source, pose.covariance, pose.errors)
        self._map_of[node] = self._map_of[target]
        for other in relative_poses.keys() - {target}:
            self._connect(other, node, relative_poses[other])

    def _update_scale(
        self, window: Window, result: Reconstruction, constraint: Constraint, floor: Floor | None
    ) -> tuple[ScaleUpdate, ScaleEstimate]:
        """Measure the window's unit; once that is good, map units become metres."""
        node, frame = window.id, self._map_of[window.id]
        unit = self._graph.pose(node).scale
        expected = frame.scale.belief().metres_per_unit * unit
        noise = frame.scale.view_noise
        measurements = self._measure(window, result, floor, expected=expected, view_noise=noise)
        estimate = frame.scale.update(measurements, unit, constraint.scale_drift)
        rescaled = self._rescale(node, frame, estimate)
        if frame.metric and estimate.newest is not None:
            measured = estimate.newest
            self._graph.measure_scale(node, measured.metres_per_unit, measured.relative_std)
        return frame.scale_update(estimate, rescaled), estimate

    def _rescale(self, node: int, frame: _Map, estimate: ScaleEstimate) -> float:
        """The factor by which the map grew; 1 where its lengths are as good as they can be."""
        if frame.saved:
            return 1.0
        good = estimate.confirmed and estimate.relative_std <= self._settings.max_scale_std
        off = abs(np.log(estimate.metres_per_unit)) > MAX_SCALE_OFF * estimate.relative_std
        if frame.metric:
            due = estimate.jump != 1.0 or off
        else:
            due = good
        if not due:
            return 1.0
        factor = estimate.metres_per_unit
        by = Sim3(factor, np.eye(3), np.zeros(3))
        self._graph.move(self._graph.component(node), by, measured=estimate.jump != 1.0)
        frame.scale.rescaled(factor)
        frame.metric = True
        return factor

    def _settle(
        self, node: int, constraint: Constraint, moves_all: bool
    ) -> tuple[tuple[int, Sim3], ...]:
        """Let the newest windows find their places; which earlier ones moved.

        moves_all: whether the whole map was turned or rescaled.
        """
        frame = self._map_of[node]
        before = self._poses(self._graph.recent(node))
        if len(constraint.relative_poses) > 1 or frame.metric or frame.level.source:
            self._graph.optimise_recent(node)
        if moves_all:
            before = dict.fromkeys(self._graph.members(self._graph.component(node)))
        return self._corrections(before, node)

    # Steps of close_loop ---------------------------------------------------------------------

    def _join(self, node: int, relative_poses: dict[int, RelativePose]) -> tuple[bool, int | None]:
        """A node for the joint reconstruction between the window and the old ones.

        Whether the map agrees, and the id of the map that ended. Where it does not, the graph
        is left to be restored.
        """
        bridge, others = -node, {n: p for n, p in relative_poses.items() if n != node}
        self._attach(bridge, node, {node: relative_poses[node]})
        cost = self._cost_of_maps([node, *others])
        leading = {n: pose.target_from_source for n, pose in others.items()}
        agrees, merged_map_id = self._merge(bridge, leading)
        if not agrees:
            return False, None
        for other, relative_pose in others.items():
            self._connect(other, bridge, relative_pose)
        strain = (self._graph.optimise(node) - cost) / 7
        return strain <= MAX_STRAIN**2, merged_map_id

    def _connect_maps(
        self, node: int, target: int, target_from_node: Sim3, covariance: np.ndarray
    ) -> tuple[bool, int | None]:
        """As `_join`, by one relative pose to an old window."""
        cost = self._cost_of_maps([node, target])
        agrees, merged_map_id = self._merge(node, {target: target_from_node})
        if not agrees:
            return False, None
        self._graph.connect(target, node, target_from_node, covariance)
        strain = (self._graph.optimise(node) - cost) / 7
        return strain <= MAX_STRAIN**2, merged_map_id

    def _cost_of_maps(self, nodes: Sequence[int]) -> float:
        """What already strains the maps of these nodes."""
        keepers = [self._graph.keeper(n) for n in nodes]
        components = {frozenset(self._graph.component(n)) for n in keepers}
        return sum(self._graph.cost(next(iter(component))) for component in components)

    def _merge(self, node: int, leading: dict[int, Sim3]) -> tuple[bool, int | None]:
        """Make one of the node's map and another that a relative pose (other_from_node) leads to.

        Whether that agrees with what both know of metres, and the id that ended. The node's map
        moves, unless it is a saved one. Where both are in metres their measured scales stay, so
        that less of it strains the graph.
        """
        here = self._map_of[node]
        for other, other_from_node in leading.items():
            keeper = self._graph.keeper(other)
            goal = self._map_of[keeper]
            if goal is here:
                continue
            pose = self._graph.pose(other) @ other_from_node
            by = pose @ self._graph.pose(node).inverse()
            if goal.scale.contradicts(here.scale, by.scale):
                return False, None
            members, ended = self._graph.component(node), here
            if here.saved:
                members, ended, goal, by = self._graph.component(keeper), goal, here, by.inverse()
            self._graph.move(members, by, measured=not (here.metric and goal.metric))
            self._map_of.update(dict.fromkeys(members, goal))
            return True, ended.id
        return True, None

    # Both ------------------------------------------------------------------------------------

    def _connect(self, target: int, source: int, pose: RelativePose) -> None:
        self._graph.connect(target, source, pose.target_from_source, pose.covariance, pose.errors)

    def _poses(self, nodes: Sequence[int]) -> dict[int, Sim3 | None]:
        """Poses of the windows that these nodes carry."""
        return {n: self._graph.pose(n) for n in self._graph.members(nodes)}

    def _corrections(
        self, before: dict[int, Sim3 | None], newest: int
    ) -> tuple[tuple[int, Sim3], ...]:
        """Earlier windows whose pose differs from before (None: differs anyway)."""
        moved = []
        for node, old in before.items():
            if node <= 0 or node == newest:
                continue
            new = self._graph.pose(node)
            if old is None or np.abs((new @ old.inverse()).log()).max() > MIN_CORRECTION:
                moved.append((node, new))
        return tuple(moved)

    def _covariance(
        self, node: int, result: Reconstruction, estimate: ScaleEstimate
    ) -> np.ndarray:
        """float64 (N, 6, 6), see `WindowPose`: chain of edges, view noise, scale if metric."""
        pose, frame = self._graph.pose(node), self._map_of[node]
        move = pose.adjoint()
        in_map = move @ self._graph.covariance(node) @ move.T
        scale_std = estimate.relative_std if frame.metric else 0.0
        return view_covariances(pose, in_map, result, frame.scale.view_noise, scale_std)

    def _fold(self) -> tuple[int, ...]:
        """Keep the graph within its bound; the windows that are forgotten for it."""
        forgotten = tuple(self._graph.fold())
        self._map_of = {n: self._map_of[n] for n in self._graph.nodes}
        return forgotten


def _copied(map_of: dict[int, _Map]) -> dict[int, _Map]:
    """Nodes and their maps, of which those of one map share one copy."""
    copies = {id(frame): frame.copy() for frame in {id(f): f for f in map_of.values()}.values()}
    return {node: copies[id(frame)] for node, frame in map_of.items()}
