"""Windows into one map frame that stays put: joints, sub-maps, loop closure, metres and level.

The first camera of a sub-map is the origin, taken as level (x forward, y left, z up) until gravity
or, without an IMU, the floors and walls in view say better (`Level`). Map units are the first
window's until the scale is known, metres from then on; whatever moves earlier windows is listed in
the placement that moved them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from g2vlm_ros.core.alignment import Joint, ViewSample, join_views, sample_view
from g2vlm_ros.core.datatypes import Frame, Reconstruction, ScaleState, Window
from g2vlm_ros.core.geometry import ZUP_FROM_OPTICAL, Similarity
from g2vlm_ros.core.mapping.dead_reckoning import Reckoned, reckon
from g2vlm_ros.core.mapping.keyframes import Overlap, loop_refusal, view_overlap
from g2vlm_ros.core.mapping.level import Floor, Level
from g2vlm_ros.core.mapping.placement import Placement, view_covariances
from g2vlm_ros.core.mapping.pose_graph import PoseGraph
from g2vlm_ros.core.mapping.scale import ScaleEvidence, evidence, rig_baselines_m
from g2vlm_ros.core.mapping.scale_filter import ScaleBelief, ScaleFilter
from g2vlm_ros.core.settings import MapSettings
from g2vlm_ros.core.tangent import adjoint, logarithm

REMEMBERED_WINDOWS = 4
"""Earlier windows that a new one may be joined to by shared views."""
MOST_STRAIN = 2.0
"""Standard deviations, mean of the seven unknowns, by which a loop may contradict the map."""
UNIT_STD = 0.3
"""Of the logarithm of a window's unit over that of the window before, where nothing tells."""
MOST_SCALE_OFF = 2.0
"""Standard deviations by which a map may miss its metres before it is rescaled."""
UNIT_WINDOWS = 8
"""Windows over which the units of single views are compared."""
MOVED = 1e-4
"""Change (rad, map units, log scale) from which a window counts as corrected."""


@dataclass
class _SubMap:
    """What is known about the frame of one sub-map."""

    id: int
    scale: ScaleFilter = field(default_factory=ScaleFilter)
    metric: bool = False
    level: Level = field(default_factory=Level)


class MapAligner:
    """Places successive windows in one map frame. Not thread-safe."""

    def __init__(self, settings: MapSettings):
        self._settings = settings
        self._evidence = partial(
            evidence,
            rig_m=rig_baselines_m(settings.rig_baselines),
            camera_height_m=settings.camera_height_m,
            metres_per_unit=settings.metres_per_unit,
        )
        self._sub_maps = 0
        self.reset()

    def reset(self) -> None:
        """Forget the map; the next window starts a new sub-map."""
        self._graph = PoseGraph(self._settings.graph_windows)
        self._sub_map_of: dict[int, _SubMap] = {}
        self._recent: deque[tuple[int, dict[tuple[str, int], ViewSample]]] = deque(
            maxlen=REMEMBERED_WINDOWS
        )
        self._reckoned: tuple[int, Reckoned | None] | None = None
        self._spread = 1.0
        self._unit_variance, self._windows = 0.0, 0
        self.forgotten: set[int] = set()

    def place(self, window: Window, result: Reconstruction) -> Placement:
        """Join a window to the map by the views it shares with the ones before.

        A joint below `min_joint_inliers` or `min_joint_quality` is refused, and so are views that
        no overlap connects with the shared ones. Then odometry carries a map in metres on, if it
        knows the way; else a new sub-map starts, so that a wrong pose is never published as a
        continuation.
        """
        samples = {_key(f): sample_view(result, i) for i, f in enumerate(window.frames)}
        joints, trusted, reason = self._joints(window.frames, samples, result)
        node, by_odometry = window.id, ""
        reckoned = Reckoned.of(window.frames, result, trusted)
        if not joints and (joints := self._joint_by_odometry(window, result, reckoned)):
            by_odometry, reason = reason, ""
        if joints:
            self._continue(node, joints)
        else:
            self._start(node, result)
        sub_map = self._sub_map_of[node]
        turned, floor = sub_map.level.hear(self._graph, node, window.frames, result)
        belief, rescaled = self._measure(window, result, sub_map, joints, floor)
        before = self._poses(self._graph.recent(node))
        if len(joints) > 1 or sub_map.metric or sub_map.level.source:
            self._graph.optimise_recent(node)
        if turned or rescaled != 1.0:
            before = dict.fromkeys(self._graph.members(self._graph.component(node)))
        self._recent.append((node, samples))
        self._reckoned = node, reckoned
        best = max(joints.values(), key=lambda j: j.quality, default=None)
        placement = Placement(
            map_from_window=self._graph.pose(node),
            sub_map=sub_map.id,
            scale_state=ScaleState.METRIC if sub_map.metric else ScaleState.RELATIVE,
            metres_per_unit=1.0 if sub_map.metric else float("nan"),
            joint=None if by_odometry else best,
            new_sub_map=reason,
            by_odometry=by_odometry,
            covariance=self._covariance(node, result, sub_map, belief),
            trusted=trusted,
            scale_std=belief.relative_std,
            scale_source=belief.source,
            scale_jump=belief.jump,
            scale_refused=belief.refused,
            scale_clash=belief.clash,
            rescaled=rescaled,
            floor_z=sub_map.level.floor_z(self._graph),
            corrections=self._moved(before, node),
        )
        self._fold()
        return placement

    def between(self, node: int, other: int) -> Similarity | None:
        """A placed window from another one by their ids, or None in different sub-maps."""
        if self._sub_map_of[node] is not self._sub_map_of[self._graph.keeper(other)]:
            return None
        return self._graph.pose(node).inverse() @ self._graph.pose(other)

    def close_loop(
        self,
        placement: Placement,
        window: Window,
        result: Reconstruction,
        old: Sequence[tuple[int, ViewSample]],
        views: Sequence[int],
        bridge: Reconstruction,
    ) -> tuple[Placement, str]:
        """Join the window just placed to windows of long ago, and move what lies between.

        bridge: the network's answer to the old views and then `views` of the window, together.
        old: (window id, sample in that window) of each old view. Returns the new placement and
        "closed", or the old one and why not: "no_overlap", "looks_different" (brightness),
        "poor_joint" or "contradicts_map".
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
        joints = {n: j for n, p in pairs.items() if (j := self._accepted(p)) is not None}
        if len(joints) < 2 or node not in joints:
            return placement, "poor_joint"
        saved, labels = self._graph.snapshot(), dict(self._sub_map_of)
        before = self._poses(self._graph.nodes)
        self._sub_map_of[name] = self._sub_map_of[node]
        self._continue(name, {node: joints.pop(node)})
        kept = [self._graph.keeper(n) for n in (node, *joints)]
        parts = {frozenset(self._graph.component(n)) for n in kept}
        cost = sum(self._graph.cost(next(iter(part))) for part in parts)
        contradicts, ended = self._merge(name, joints)
        if not contradicts:
            for other, joint in joints.items():
                self._graph.connect(other, name, joint.target_from_source, joint.covariance)
            contradicts = (self._graph.optimise(node) - cost) / 7 > MOST_STRAIN**2
        if contradicts:
            self._graph.restore(saved)
            self._sub_map_of = labels
            return placement, "contradicts_map"
        return self._closed(placement, window, result, before, ended), "closed"

    def _closed(
        self,
        placement: Placement,
        window: Window,
        result: Reconstruction,
        before: dict[int, Similarity | None],
        ended: int | None,
    ) -> Placement:
        """The placement after a loop closure."""
        node, sub_map = window.id, self._sub_map_of[window.id]
        moved = dict(placement.corrections) | dict(self._moved(before, node))
        closed = replace(
            placement,
            map_from_window=self._graph.pose(node),
            sub_map=sub_map.id,
            scale_state=ScaleState.METRIC if sub_map.metric else ScaleState.RELATIVE,
            metres_per_unit=1.0 if sub_map.metric else float("nan"),
            covariance=self._covariance(node, result, sub_map, sub_map.scale.belief()),
            scale_std=sub_map.scale.belief().relative_std,
            scale_source=sub_map.scale.belief().source,
            floor_z=sub_map.level.floor_z(self._graph),
            loop_closed=True,
            joined_sub_map=ended,
            corrections=tuple(moved.items()),
        )
        self._fold()
        return closed

    def _joints(
        self,
        frames: Sequence[Frame],
        samples: dict[tuple[str, int], ViewSample],
        result: Reconstruction,
    ) -> tuple[dict[int, Joint], tuple[bool, ...], str]:
        """Accepted joints by earlier window, trust of each view, and why there is no joint."""
        known = {key for _, views in self._recent for key in views}
        shared = [i for i, f in enumerate(frames) if _key(f) in known]
        # A camera that is back, or new, may look elsewhere than those that carry the map on.
        cameras = {frames[i].camera for i in shared or range(len(frames))}
        carrying = (i for i, frame in enumerate(frames) if frame.camera in cameras)
        newest = max(carrying, key=lambda i: frames[i].stamp_ns)
        overlap = view_overlap(result)
        self._learn_units(overlap)
        least = self._settings.min_view_overlap
        reached = overlap.reachable(shared, least)
        alone = tuple(overlap.reachable([newest], least).tolist())
        if not shared:
            return {}, alone, "no_shared_view" if known else "first"
        if not reached[newest]:
            return {}, alone, "no_overlap"
        joints = {}
        for node, views in self._recent:
            joint = self._accepted([(samples[k], views[k]) for k in samples if k in views])
            if joint is not None:
                joints[node] = joint
        return joints, tuple(reached.tolist()) if joints else alone, "" if joints else "poor_joint"

    def _learn_units(self, overlap: Overlap) -> None:
        """How far the units of single views lie apart in their window, over the last windows."""
        apart = overlap.stretch[np.isfinite(overlap.stretch)]
        if len(apart):
            self._windows = min(self._windows + 1, UNIT_WINDOWS)
            found = float(np.mean(apart**2)) / 2
            self._unit_variance += (found - self._unit_variance) / self._windows

    def _accepted(self, pairs: list[tuple[ViewSample, ViewSample]]) -> Joint | None:
        """The joint over pairs of views, or None where there is none that can be trusted."""
        try:
            joint = join_views(pairs, self._spread, float(np.sqrt(self._unit_variance)))
        except ValueError:
            return None
        if len(pairs) > 1:
            self._spread = joint.spread
        limits = self._settings
        good = joint.inliers >= limits.min_joint_inliers
        return joint if good and joint.quality >= limits.min_joint_quality else None

    def _joint_by_odometry(
        self, window: Window, result: Reconstruction, now: Reckoned | None
    ) -> dict[int, Joint]:
        """The joint of a window with the one before by odometry; {} where that cannot tell.

        The window's unit is what its own evidence says, or else that of the window before.
        """
        node, before = self._reckoned or (0, None)
        if now is None or before is None or not self._sub_map_of[node].metric:
            return {}
        unit_m = self._graph.pose(node).scale
        noise = self._sub_map_of[node].scale.view_noise
        found = self._evidence(window, result, None, view_noise=noise)
        now_unit = next(iter(found), ScaleEvidence(unit_m, UNIT_STD, "before"))
        joint = reckon(before, now, unit_m, now_unit, self._settings.odometry_reach_m)
        return {} if joint is None else {node: joint}

    def _continue(self, node: int, joints: dict[int, Joint]) -> None:
        """Place a node by its best joint; the others become further edges."""
        best = max(joints, key=lambda n: joints[n].quality)
        joint = joints[best]
        self._graph.attach(node, best, joint.target_from_source, joint.covariance)
        self._sub_map_of[node] = self._sub_map_of[best]
        for other in joints.keys() - {best}:
            joint = joints[other]
            self._graph.connect(other, node, joint.target_from_source, joint.covariance)

    def _start(self, node: int, result: Reconstruction) -> None:
        """A new sub-map: the first view at the origin, level."""
        pose = result.window_from_camera[0].astype(np.float64)
        rotation = ZUP_FROM_OPTICAL @ pose[:3, :3].T
        self._graph.add(node, Similarity(1.0, rotation, -(rotation @ pose[:3, 3])))
        self._recent.clear()
        self._sub_map_of[node] = _SubMap(self._sub_maps)
        self._sub_maps += 1

    def _merge(self, bridge: int, joints: dict[int, Joint]) -> tuple[bool, int | None]:
        """Move the bridge's sub-map to an older one that a joint leads to.

        Returns whether the joint contradicts what both know of metres, and the id that ended.
        Where both are in metres their measured scales stay, so that less of it strains the graph.
        """
        for other, joint in joints.items():
            goal, own = self._sub_map_of[self._graph.keeper(other)], self._sub_map_of[bridge]
            if goal is own:
                continue
            pose = self._graph.pose(other) @ joint.target_from_source
            by = pose @ self._graph.pose(bridge).inverse()
            if goal.scale.contradicts(own.scale, by.scale):
                return True, None
            members = self._graph.component(bridge)
            self._graph.move(members, by, measured=not (own.metric and goal.metric))
            self._sub_map_of.update(dict.fromkeys(members, goal))
            return False, own.id
        return False, None

    def _measure(
        self,
        window: Window,
        result: Reconstruction,
        sub_map: _SubMap,
        joints: dict[int, Joint],
        floor: Floor | None,
    ) -> tuple[ScaleBelief, float]:
        """Hear the window's evidence of scale; once it is good, map units become metres."""
        node, pose = window.id, self._graph.pose(window.id)
        expected = sub_map.scale.belief().metres_per_unit * pose.scale
        noise = sub_map.scale.view_noise
        found = self._evidence(window, result, floor, expected=expected, view_noise=noise)
        variances = [joint.covariance[6, 6] for joint in joints.values()]
        belief = sub_map.scale.update(found, pose.scale, float(np.sqrt(min(variances, default=0))))
        rescaled = 1.0
        known = belief.confirmed and belief.relative_std <= self._settings.max_scale_std
        off = abs(np.log(belief.metres_per_unit)) > MOST_SCALE_OFF * belief.relative_std
        if (known and not sub_map.metric) or (sub_map.metric and (belief.jump != 1.0 or off)):
            rescaled = belief.metres_per_unit
            by = Similarity(rescaled, np.eye(3), np.zeros(3))
            self._graph.move(self._graph.component(node), by, measured=belief.jump != 1.0)
            sub_map.scale.rescaled(rescaled)
            sub_map.metric = True
        if sub_map.metric and belief.heard is not None:
            heard = belief.heard
            self._graph.measure_scale(node, heard.metres_per_unit, heard.relative_std)
        return belief, rescaled

    def _poses(self, nodes: Sequence[int]) -> dict[int, Similarity | None]:
        """Poses of the windows that these nodes carry."""
        return {n: self._graph.pose(n) for n in self._graph.members(nodes)}

    def _moved(
        self, before: dict[int, Similarity | None], newest: int
    ) -> tuple[tuple[int, Similarity], ...]:
        """Earlier windows whose pose differs from before (None: differs anyway)."""
        moved = []
        for node, old in before.items():
            if node <= 0 or node == newest:
                continue
            new = self._graph.pose(node)
            if old is None or np.abs(logarithm(new @ old.inverse())).max() > MOVED:
                moved.append((node, new))
        return tuple(moved)

    def _covariance(
        self, node: int, result: Reconstruction, sub_map: _SubMap, belief: ScaleBelief
    ) -> np.ndarray:
        """float64 (N, 6, 6), see Placement: chain of joints, view noise, and scale if metric."""
        pose = self._graph.pose(node)
        move = adjoint(pose)
        own = move @ self._graph.covariance(node) @ move.T
        scale_std = belief.relative_std if sub_map.metric else 0.0
        return view_covariances(pose, own, result, sub_map.scale.view_noise, scale_std)

    def _fold(self) -> None:
        self.forgotten |= set(self._graph.fold())
        self._sub_map_of = {n: self._sub_map_of[n] for n in self._graph.nodes}


def _key(frame: Frame) -> tuple[str, int]:
    return frame.camera, frame.stamp_ns
