# SPDX-License-Identifier: Apache-2.0
"""Windows into one map frame that stays put: joints, maps, loop closure, metres and level.

The first camera of a map is the origin, taken as level (x forward, y left, z up) until gravity
or, without an IMU, the floors and walls in view say better (`GravityAlignment`). Map units are
the first
window's until the scale is known, metres from then on; whatever moves earlier windows is listed in
the placement that moved them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from g2vlm_ros.geometry.registration import RelativePose, ViewSample, register_views, sample_view
from g2vlm_ros.geometry.sim3 import ZUP_FROM_OPTICAL, Sim3
from g2vlm_ros.mapping.gravity_alignment import Floor, GravityAlignment
from g2vlm_ros.mapping.keyframes import Covisibility, loop_refusal, measure_covisibility
from g2vlm_ros.mapping.odometry_constraint import OdometryConstraint, odometry_constraint
from g2vlm_ros.mapping.pose_graph import PoseGraph
from g2vlm_ros.mapping.scale_filter import ScaleEstimate, ScaleFilter
from g2vlm_ros.mapping.scale_measurements import ScaleMeasurement, evidence, rig_baselines_m
from g2vlm_ros.mapping.window_pose import WindowPose, view_covariances
from g2vlm_ros.records import Frame, Reconstruction, ScaleState, Window
from g2vlm_ros.settings import MapSettings

REMEMBERED_WINDOWS = 4
"""Earlier windows that a new one may be joined to by shared views."""
MAX_STRAIN = 2.0
"""Standard deviations, mean of the seven unknowns, by which a loop may contradict the map."""
UNIT_STD = 0.3
"""Of the logarithm of a window's unit over that of the window before, where nothing tells."""
MAX_SCALE_OFF = 2.0
"""Standard deviations by which a map may miss its metres before it is rescaled."""
UNIT_WINDOWS = 8
"""Windows over which the units of single views are compared."""
MOVED = 1e-4
"""Change (rad, map units, log scale) from which a window counts as corrected."""


@dataclass
class _Map:
    """What is known about the frame of one map."""

    id: int
    scale: ScaleFilter = field(default_factory=ScaleFilter)
    metric: bool = False
    level: GravityAlignment = field(default_factory=GravityAlignment)


class GraphSlam:
    """Places successive windows in one map frame. Not thread-safe."""

    def __init__(self, settings: MapSettings):
        self._settings = settings
        self._evidence = partial(
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
        self._recent: deque[tuple[int, dict[tuple[str, int], ViewSample]]] = deque(
            maxlen=REMEMBERED_WINDOWS
        )
        self._reckoned: tuple[int, OdometryConstraint | None] | None = None
        self._spread = 1.0
        self._unit_variance, self._windows = 0.0, 0
        self.forgotten: set[int] = set()

    def place(self, window: Window, result: Reconstruction) -> WindowPose:
        """Join a window to the map by the views it shares with the ones before.

        A joint below `min_joint_inliers` or `min_joint_quality` is refused, and so are views that
        no overlap connects with the shared ones. Then odometry carries a map in metres on, if it
        knows the way; else a new map starts, so that a wrong pose is never published as a
        continuation.
        """
        samples = {_key(f): sample_view(result, i) for i, f in enumerate(window.frames)}
        relative_poses, trusted, reason = self._joints(window.frames, samples, result)
        node, by_odometry = window.id, ""
        reckoned = OdometryConstraint.of(window.frames, result, trusted)
        if not relative_poses and (
            relative_poses := self._joint_by_odometry(window, result, reckoned)
        ):
            by_odometry, reason = reason, ""
        if relative_poses:
            self._continue(node, relative_poses)
        else:
            self._start(node, result)
        map_id = self._map_of[node]
        turned, floor = map_id.level.update(self._graph, node, window.frames, result)
        belief, rescaled = self._measure(window, result, map_id, relative_poses, floor)
        before = self._poses(self._graph.recent(node))
        if len(relative_poses) > 1 or map_id.metric or map_id.level.source:
            self._graph.optimise_recent(node)
        if turned or rescaled != 1.0:
            before = dict.fromkeys(self._graph.members(self._graph.component(node)))
        self._recent.append((node, samples))
        self._reckoned = node, reckoned
        best = max(relative_poses.values(), key=lambda j: j.quality, default=None)
        placement = WindowPose(
            map_from_window=self._graph.pose(node),
            map_id=map_id.id,
            scale_state=ScaleState.METRIC if map_id.metric else ScaleState.RELATIVE,
            metres_per_unit=1.0 if map_id.metric else float("nan"),
            relative_pose=None if by_odometry else best,
            new_map=reason,
            by_odometry=by_odometry,
            covariance=self._covariance(node, result, map_id, belief),
            trusted=trusted,
            scale_std=belief.relative_std,
            scale_source=belief.source,
            scale_jump=belief.jump,
            scale_refused=belief.refused,
            scale_clash=belief.clash,
            rescaled=rescaled,
            floor_z=map_id.level.floor_z(self._graph),
            corrections=self._moved(before, node),
        )
        self._fold()
        return placement

    def between(self, node: int, other: int) -> Sim3 | None:
        """A placed window from another one by their ids, or None in different maps."""
        if self._map_of[node] is not self._map_of[self._graph.keeper(other)]:
            return None
        return self._graph.pose(node).inverse() @ self._graph.pose(other)

    def close_loop(
        self,
        placement: WindowPose,
        window: Window,
        result: Reconstruction,
        old: Sequence[tuple[int, ViewSample]],
        views: Sequence[int],
        bridge: Reconstruction,
    ) -> tuple[WindowPose, str]:
        """Join the window just placed to windows of long ago, and move what lies between.

        bridge: the network's answer to the old views and then `views` of the window, together.
        old: (window id, sample in that window) of each old view. Returns the new placement and
        "closed", or the old one and why not: "no_overlap", "looks_different" (brightness),
        "poor_registration" or "contradicts_map".
        """
        reason = loop_refusal(bridge, len(old))
        if reason:
            return placement, reason
        node, name = window.id, -window.id
        samples = [sample_view(bridge, i) for i in range(bridge.views)]
        own = [(samples[len(old) + k], sample_view(result, v)) for k, v in enumerate(views)]
        pairs: dict[int, list[tuple[ViewSample, ViewSample]]] = {node: own}
        for (window_id, sample), bridged in zip(old, samples, strict=False):
            pairs.setdefault(window_id, []).append((bridged, sample))
        relative_poses = {n: j for n, p in pairs.items() if (j := self._accepted(p)) is not None}
        if len(relative_poses) < 2 or node not in relative_poses:
            return placement, "poor_registration"
        saved, labels = self._graph.snapshot(), dict(self._map_of)
        before = self._poses(self._graph.nodes)
        self._map_of[name] = self._map_of[node]
        self._continue(name, {node: relative_poses.pop(node)})
        kept = [self._graph.keeper(n) for n in (node, *relative_poses)]
        parts = {frozenset(self._graph.component(n)) for n in kept}
        cost = sum(self._graph.cost(next(iter(part))) for part in parts)
        contradicts, ended = self._merge(name, relative_poses)
        if not contradicts:
            for other, relative_pose in relative_poses.items():
                self._graph.connect(
                    other, name, relative_pose.target_from_source, relative_pose.covariance
                )
            contradicts = (self._graph.optimise(node) - cost) / 7 > MAX_STRAIN**2
        if contradicts:
            self._graph.restore(saved)
            self._map_of = labels
            return placement, "contradicts_map"
        return self._closed(placement, window, result, before, ended), "closed"

    def _closed(
        self,
        placement: WindowPose,
        window: Window,
        result: Reconstruction,
        before: dict[int, Sim3 | None],
        ended: int | None,
    ) -> WindowPose:
        """The placement after a loop closure."""
        node, map_id = window.id, self._map_of[window.id]
        moved = dict(placement.corrections) | dict(self._moved(before, node))
        closed = replace(
            placement,
            map_from_window=self._graph.pose(node),
            map_id=map_id.id,
            scale_state=ScaleState.METRIC if map_id.metric else ScaleState.RELATIVE,
            metres_per_unit=1.0 if map_id.metric else float("nan"),
            covariance=self._covariance(node, result, map_id, map_id.scale.belief()),
            scale_std=map_id.scale.belief().relative_std,
            scale_source=map_id.scale.belief().source,
            floor_z=map_id.level.floor_z(self._graph),
            loop_closed=True,
            merged_map_id=ended,
            corrections=tuple(moved.items()),
        )
        self._fold()
        return closed

    def _joints(
        self,
        frames: Sequence[Frame],
        samples: dict[tuple[str, int], ViewSample],
        result: Reconstruction,
    ) -> tuple[dict[int, RelativePose], tuple[bool, ...], str]:
        """Accepted joints by earlier window, trust of each view, and why there is no joint."""
        known = {key for _, views in self._recent for key in views}
        shared = [i for i, f in enumerate(frames) if _key(f) in known]
        # A camera that is back, or new, may look elsewhere than those that carry the map on.
        cameras = {frames[i].camera for i in shared or range(len(frames))}
        carrying = (i for i, frame in enumerate(frames) if frame.camera in cameras)
        newest = max(carrying, key=lambda i: frames[i].stamp_ns)
        overlap = measure_covisibility(result)
        self._learn_units(overlap)
        least = self._settings.min_view_overlap
        reached = overlap.reachable(shared, least)
        alone = tuple(overlap.reachable([newest], least).tolist())
        if not shared:
            return {}, alone, "no_shared_view" if known else "first"
        if not reached[newest]:
            return {}, alone, "no_overlap"
        relative_poses = {}
        for node, views in self._recent:
            relative_pose = self._accepted([(samples[k], views[k]) for k in samples if k in views])
            if relative_pose is not None:
                relative_poses[node] = relative_pose
        return (
            relative_poses,
            tuple(reached.tolist()) if relative_poses else alone,
            "" if relative_poses else "poor_registration",
        )

    def _learn_units(self, overlap: Covisibility) -> None:
        """How far the units of single views lie apart in their window, over the last windows."""
        apart = overlap.stretch[np.isfinite(overlap.stretch)]
        if len(apart):
            self._windows = min(self._windows + 1, UNIT_WINDOWS)
            found = float(np.mean(apart**2)) / 2
            self._unit_variance += (found - self._unit_variance) / self._windows

    def _accepted(self, pairs: list[tuple[ViewSample, ViewSample]]) -> RelativePose | None:
        """The joint over pairs of views, or None where there is none that can be trusted."""
        try:
            relative_pose = register_views(
                pairs, self._spread, float(np.sqrt(self._unit_variance))
            )
        except ValueError:
            return None
        if len(pairs) > 1:
            self._spread = relative_pose.spread
        limits = self._settings
        good = relative_pose.inliers >= limits.min_joint_inliers
        return (
            relative_pose if good and relative_pose.quality >= limits.min_joint_quality else None
        )

    def _joint_by_odometry(
        self, window: Window, result: Reconstruction, now: OdometryConstraint | None
    ) -> dict[int, RelativePose]:
        """The joint of a window with the one before by odometry; {} where that cannot tell.

        The window's unit is what its own evidence says, or else that of the window before.
        """
        node, before = self._reckoned or (0, None)
        if now is None or before is None or not self._map_of[node].metric:
            return {}
        unit_m = self._graph.pose(node).scale
        noise = self._map_of[node].scale.view_noise
        found = self._evidence(window, result, None, view_noise=noise)
        now_unit = next(iter(found), ScaleMeasurement(unit_m, UNIT_STD, "before"))
        relative_pose = odometry_constraint(
            before, now, unit_m, now_unit, self._settings.odometry_reach_m
        )
        return {} if relative_pose is None else {node: relative_pose}

    def _continue(self, node: int, relative_poses: dict[int, RelativePose]) -> None:
        """Place a node by its best joint; the others become further edges."""
        best = max(relative_poses, key=lambda n: relative_poses[n].quality)
        relative_pose = relative_poses[best]
        self._graph.attach(node, best, relative_pose.target_from_source, relative_pose.covariance)
        self._map_of[node] = self._map_of[best]
        for other in relative_poses.keys() - {best}:
            relative_pose = relative_poses[other]
            self._graph.connect(
                other, node, relative_pose.target_from_source, relative_pose.covariance
            )

    def _start(self, node: int, result: Reconstruction) -> None:
        """A new map: the first view at the origin, level."""
        pose = result.window_from_camera[0].astype(np.float64)
        rotation = ZUP_FROM_OPTICAL @ pose[:3, :3].T
        self._graph.add(node, Sim3(1.0, rotation, -(rotation @ pose[:3, 3])))
        self._recent.clear()
        self._map_of[node] = _Map(self._map_count)
        self._map_count += 1

    def _merge(
        self, bridge: int, relative_poses: dict[int, RelativePose]
    ) -> tuple[bool, int | None]:
        """Move the bridge's map to an older one that a joint leads to.

        Returns whether the joint contradicts what both know of metres, and the id that ended.
        Where both are in metres their measured scales stay, so that less of it strains the graph.
        """
        for other, relative_pose in relative_poses.items():
            goal, own = self._map_of[self._graph.keeper(other)], self._map_of[bridge]
            if goal is own:
                continue
            pose = self._graph.pose(other) @ relative_pose.target_from_source
            by = pose @ self._graph.pose(bridge).inverse()
            if goal.scale.contradicts(own.scale, by.scale):
                return True, None
            members = self._graph.component(bridge)
            self._graph.move(members, by, measured=not (own.metric and goal.metric))
            self._map_of.update(dict.fromkeys(members, goal))
            return False, own.id
        return False, None

    def _measure(
        self,
        window: Window,
        result: Reconstruction,
        map_id: _Map,
        relative_poses: dict[int, RelativePose],
        floor: Floor | None,
    ) -> tuple[ScaleEstimate, float]:
        """Hear the window's evidence of scale; once it is good, map units become metres."""
        node, pose = window.id, self._graph.pose(window.id)
        expected = map_id.scale.belief().metres_per_unit * pose.scale
        noise = map_id.scale.view_noise
        found = self._evidence(window, result, floor, expected=expected, view_noise=noise)
        variances = [relative_pose.covariance[6, 6] for relative_pose in relative_poses.values()]
        belief = map_id.scale.update(found, pose.scale, float(np.sqrt(min(variances, default=0))))
        rescaled = 1.0
        known = belief.confirmed and belief.relative_std <= self._settings.max_scale_std
        off = abs(np.log(belief.metres_per_unit)) > MAX_SCALE_OFF * belief.relative_std
        if (known and not map_id.metric) or (map_id.metric and (belief.jump != 1.0 or off)):
            rescaled = belief.metres_per_unit
            by = Sim3(rescaled, np.eye(3), np.zeros(3))
            self._graph.move(self._graph.component(node), by, measured=belief.jump != 1.0)
            map_id.scale.rescaled(rescaled)
            map_id.metric = True
        if map_id.metric and belief.heard is not None:
            heard = belief.heard
            self._graph.measure_scale(node, heard.metres_per_unit, heard.relative_std)
        return belief, rescaled

    def _poses(self, nodes: Sequence[int]) -> dict[int, Sim3 | None]:
        """Poses of the windows that these nodes carry."""
        return {n: self._graph.pose(n) for n in self._graph.members(nodes)}

    def _moved(self, before: dict[int, Sim3 | None], newest: int) -> tuple[tuple[int, Sim3], ...]:
        """Earlier windows whose pose differs from before (None: differs anyway)."""
        moved = []
        for node, old in before.items():
            if node <= 0 or node == newest:
                continue
            new = self._graph.pose(node)
            if old is None or np.abs((new @ old.inverse()).log()).max() > MOVED:
                moved.append((node, new))
        return tuple(moved)

    def _covariance(
        self, node: int, result: Reconstruction, map_id: _Map, belief: ScaleEstimate
    ) -> np.ndarray:
        """float64 (N, 6, 6), see Placement: chain of joints, view noise, and scale if metric."""
        pose = self._graph.pose(node)
        move = pose.adjoint()
        own = move @ self._graph.covariance(node) @ move.T
        scale_std = belief.relative_std if map_id.metric else 0.0
        return view_covariances(pose, own, result, map_id.scale.view_noise, scale_std)

    def _fold(self) -> None:
        self.forgotten |= set(self._graph.fold())
        self._map_of = {n: self._map_of[n] for n in self._graph.nodes}


def _key(frame: Frame) -> tuple[str, int]:
    return frame.camera, frame.stamp_ns
