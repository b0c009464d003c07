# SPDX-License-Identifier: Apache-2.0
"""Pose graph of windows: nodes map_from_window, measured relative poses between them.

Poses are similarities, since each window has a unit of its own; a node's scale and its up can be
measured from outside. The graph never holds more than `max_nodes` nodes: beyond that, old ones are
folded into their neighbours and move with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from g2vlm_ros.geometry.sim3 import Sim3, cross_matrix
from g2vlm_ros.mapping.graph_optimizer import Edge, Factors

RECENT = 8
"""Nodes that every window may move; the whole graph moves at loop closures only."""
Z_STD_RAD = 0.5
"""Deviation of a map's z from up, as far as no measurement tells."""
FOLDED_PER_NODE = 32
"""Folded windows that still follow their neighbours, for each node that the graph may have; older
ones are forgotten. They are what a map remembers of each window, so this bounds its memory."""


def max_folded(max_nodes: int) -> int:
    """Most folded windows of a graph of so many nodes."""
    return int(FOLDED_PER_NODE * max_nodes)


class PoseGraph:
    """Nodes and edges by integer id; ids grow with time (bridges may be negative)."""

    def __init__(self, max_nodes: int = 128):
        if max_nodes < 2 * RECENT:
            raise ValueError(f"max_nodes is {max_nodes}; it must be at least {2 * RECENT}")
        self._max_nodes, self._max_folded = max_nodes, max_folded(max_nodes)
        self._poses: dict[int, Sim3] = {}
        self._covariances: dict[int, np.ndarray] = {}
        self._edges: dict[int, tuple[Edge, ...]] = {}
        self._scales: dict[int, tuple[float, float]] = {}
        self._ups: dict[int, np.ndarray] = {}
        self._spans: dict[int, int] = {}
        self._folded: dict[int, tuple[int, Sim3]] = {}

    def copy(self) -> PoseGraph:
        """A graph that can be changed without this one: what a table holds is never changed."""
        graph = PoseGraph(self._max_nodes)
        for name, table in vars(self).items():
            if isinstance(table, dict):
                setattr(graph, name, dict(table))
        return graph

    def __len__(self) -> int:
        return len(self._poses)

    @property
    def windows(self) -> int:
        """Windows whose place is known: nodes, and what was folded into them."""
        return len(self._poses) + len(self._folded)

    @property
    def max_windows(self) -> int:
        """Most of `windows`."""
        return self._max_nodes + self._max_folded

    def __contains__(self, node: int) -> bool:
        return node in self._poses or node in self._folded

    def pose(self, node: int) -> Sim3:
        """map_from_node, of a node or of one that was folded into another."""
        if node in self._poses:
            return self._poses[node]
        neighbour, relative = self._folded[node]
        return self._poses[neighbour] @ relative

    @property
    def nodes(self) -> list[int]:
        """Ids of the nodes, oldest first; folded ones are not among them."""
        return sorted(self._poses, key=abs)

    def keeper(self, node: int) -> int:
        """The node itself, or the one that it was folded into."""
        return self._folded[node][0] if node in self._folded else node

    def members(self, nodes: Iterable[int]) -> list[int]:
        """These nodes and all that was folded into them."""
        keepers = set(nodes)
        folded = [n for n, (keeper, _) in self._folded.items() if keeper in keepers]
        return folded + sorted(keepers)

    def recent(self, node: int) -> list[int]:
        """The last RECENT nodes of the node's component, its first one left out."""
        return sorted(self.component(node), key=abs)[1:][-RECENT:]

    def covariance(self, node: int) -> np.ndarray:
        """(7, 7) of the node's right tangent (its own frame), relative to the first node."""
        return self._covariances[node]

    def add(self, node: int, map_from_node: Sim3) -> None:
        """A new node that nothing holds yet."""
        self._poses[node] = map_from_node
        self._covariances[node] = np.zeros((7, 7))
        self._edges[node] = ()
        self._spans[node] = 1

    def attach(
        self,
        node: int,
        target: int,
        target_from_node: Sim3,
        covariance: np.ndarray,
        errors: np.ndarray | None = None,
    ) -> None:
        """A new node where its relative pose to an existing one puts it.

        errors: as the covariance, and what the node's own is made of instead of that.
        """
        self.add(node, self.pose(target) @ target_from_node)
        edge = self.connect(target, node, target_from_node, covariance, errors)
        back = edge.measured.inverse().adjoint()
        chain = self._covariances[edge.target] + edge.published.covariance
        self._covariances[node] = back @ chain @ back.T

    def connect(
        self,
        target: int,
        source: int,
        measured: Sim3,
        covariance: np.ndarray,
        errors: np.ndarray | None = None,
    ) -> Edge:
        """A relative pose between two nodes; a second one between them is merged with it.

        A folded target or source stands for the node that it was folded into. errors: see
        `Edge`; merged and folded edges are published as they weigh.
        """
        if target in self._folded:
            errors = None
            target, relative = self._folded[target]
            move = relative.adjoint()
            measured, covariance = relative @ measured, move @ covariance @ move.T
        if source in self._folded:
            source, relative = self._folded[source]
            measured = measured @ relative.inverse()
        for edge in self._edges[target]:
            if edge.other(target) == source:
                second = Edge(target, source, measured, covariance).seen_from(edge.target)
                return self._replace(edge, edge.merged(*second))
        return self._replace(None, Edge(target, source, measured, covariance, errors))

    def _replace(self, before: Edge | None, edge: Edge) -> Edge:
        """An edge in place of another one between the same nodes, or as a further one."""
        for node in (edge.target, edge.source):
            others = tuple(e for e in self._edges[node] if e is not before)
            self._edges[node] = (*others, edge)
        return edge

    def measure_scale(self, node: int, scale: float, relative_std: float) -> None:
        """An outside measurement (odometry, ...) of map units per unit of the node."""
        self._scales[node] = (float(np.log(scale)), relative_std)

    def measure_up(self, node: int, information: np.ndarray) -> None:
        """An outside measurement of up: (3, 3) in the node's frame, zero along it, 1/rad² else.

        The node's covariance counts it, and so do those of nodes that are attached to it later.
        """
        self._ups[node] = information
        z_by_turn = cross_matrix(self._poses[node].rotation[2])
        measured = np.zeros((7, 7))
        measured[:3, :3] = z_by_turn.T @ information @ z_by_turn
        # (C^-1 + H)^-1 without the inverse of C, which is zero at a map's first node.
        before = self._covariances[node]
        after = np.linalg.solve(np.eye(7) + before @ measured, before)
        self._covariances[node] = (after + after.T) / 2

    def forget_ups(self, nodes: Iterable[int]) -> None:
        """These nodes are no longer held upright."""
        for node in nodes:
            self._ups.pop(node, None)

    def up(self, nodes: Iterable[int]) -> tuple[np.ndarray, float] | None:
        """Up in the map by z as it is and all measurements at these nodes; its deviation (rad)
        about the axis that is known worst. None where there is no measurement."""
        rotations = ((self._poses[n].rotation, self._ups[n]) for n in nodes if n in self._ups)
        parts = [rotation @ information @ rotation.T for rotation, information in rotations]
        if not parts:
            return None
        prior = np.diag([1.0, 1.0, 0.0]) / Z_STD_RAD**2
        strength, axes = np.linalg.eigh(np.sum(parts, axis=0) + prior)
        direction = axes[:, 0] * (1.0 if axes[2, 0] >= 0 else -1.0)
        return direction, float(max(strength[1], 1e-9) ** -0.5)

    def move(self, nodes: Iterable[int], by: Sim3, measured: bool = True) -> None:
        """by @ map_from_node for these nodes; measured scales follow unless they are to stay."""
        for node in nodes:
            if node in self._poses:
                self._poses[node] = by @ self._poses[node]
            if measured and node in self._scales:
                log_scale, std = self._scales[node]
                self._scales[node] = (log_scale + float(np.log(by.scale)), std)

    def component(self, node: int) -> set[int]:
        """Nodes that edges connect with this one, itself included."""
        members, queue = {node}, [node]
        while queue:
            here = queue.pop()
            neighbours = {edge.other(here) for edge in self._edges[here]} - members
            members |= neighbours
            queue += neighbours
        return members

    def remove(self, node: int) -> None:
        """Forget a node, its edges and what was folded into it."""
        for edge in self._edges.pop(node):
            other = edge.other(node)
            self._edges[other] = tuple(e for e in self._edges[other] if e is not edge)
        for table in (self._poses, self._covariances, self._spans, self._scales, self._ups):
            table.pop(node, None)
        self._folded = {n: f for n, f in self._folded.items() if f[0] != node}

    def optimise_recent(self, node: int) -> None:
        """Move the last RECENT nodes of the node's component; the others stand still."""
        self._poses.update(self._factors(self.recent(node)).optimise())

    def optimise(self, node: int) -> float:
        """Move the whole component, its first node held, and return `cost`.

        Covariances of all its nodes are computed anew.
        """
        first, *free = sorted(self.component(node), key=abs)
        factors = self._factors(free)
        self._poses.update(factors.optimise())
        self._covariances[first] = np.zeros((7, 7))
        self._covariances.update(self._factors(free, published=True).covariances())
        return factors.cost()

    def cost(self, node: int) -> float:
        """Sum of squared normalised errors of the node's component (chi square)."""
        return self._factors(sorted(self.component(node), key=abs)[1:]).cost()

    def _factors(self, free: Sequence[int], published: bool = False) -> Factors:
        edges = list({id(e): e for n in free for e in self._edges[n]}.values())
        if published:
            edges = [edge.published for edge in edges]
        return Factors(self._poses, edges, self._scales, self._ups, free)

    def fold(self, max_nodes: int | None = None) -> list[int]:
        """Keep at most so many nodes: fold old ones into neighbours; returns forgotten nodes.

        The node that stands for the fewest windows goes, the oldest first, never one of the last
        RECENT nor the first of its component, which holds the map's frame.
        """
        forgotten = []
        while len(self._poses) > (max_nodes or self._max_nodes):
            order = sorted(self._poses, key=abs)
            node = min(order[1:-RECENT], key=lambda n: self._spans[n])
            if self._edges[node]:
                self._fold(node)
            else:
                forgotten += self.members([node])
                self.remove(node)
        while len(self._folded) > self._max_folded:
            oldest = next(iter(self._folded))
            del self._folded[oldest]
            forgotten.append(oldest)
        return forgotten

    def _fold(self, node: int) -> None:
        """Replace a node by edges between its neighbours, composed through it."""
        edges = self._edges[node]
        nearest = min(edges, key=lambda e: np.trace(e.seen_from(node)[1][:3, :3]))
        keeper = nearest.other(node)
        keeper_from_node, near_covariance = nearest.seen_from(keeper)
        move = keeper_from_node.adjoint()
        composed = [
            (e.other(node), keeper_from_node @ measured, near_covariance + move @ cov @ move.T)
            for e in edges
            if e is not nearest
            for measured, cov in [e.seen_from(node)]
        ]
        relative = self._poses[keeper].inverse() @ self._poses[node]
        children = {n: f[1] for n, f in self._folded.items() if f[0] == node}
        span, up = self._spans[node], self._ups.get(node)
        self.remove(node)
        if up is not None:
            in_keeper = relative.rotation @ up @ relative.rotation.T
            self._ups[keeper] = self._ups.get(keeper, 0.0) + in_keeper
        self._spans[keeper] += span
        if node > 0:
            self._folded[node] = (keeper, relative)
        for child, child_relative in children.items():
            self._folded[child] = (keeper, relative @ child_relative)
        for other, measured, covariance in composed:
            self.connect(keeper, other, measured, covariance)
