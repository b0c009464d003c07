# SPDX-License-Identifier: Apache-2.0
"""Least squares over the similarities of a pose graph: Levenberg-Marquardt, cost, covariances.

The tangent of a similarity is (rotation 3 in rad, translation 3, log scale 1). Unknown are the
right tangents of the free nodes (their own frames); all others stand still.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.kernels.pose_graph import GraphArrays, graph_cost, graph_equations, move_poses

MAX_STEPS = 15
"""Steps of Levenberg-Marquardt; a loop over 128 nodes converges in about 5."""
MIN_GAIN = 1e-3
"""Relative gain of a step below which optimisation ends."""
MIN_DAMPING = 1e-9
MAX_DAMPING = 1e6
"""Damping above which no step helps any more: the cost is at its floor."""


@dataclass(frozen=True, eq=False)
class Edge:
    """A measured target_from_source; covariance of its left tangent (target's frame)."""

    target: int
    source: int
    measured: Sim3
    covariance: np.ndarray
    """By which the graph weighs it."""
    errors: np.ndarray | None = None
    """As the covariance, for what is published of nodes; None for the same."""

    @property
    def published(self) -> Edge:
        """The edge with its errors as covariance."""
        return self if self.errors is None else replace(self, covariance=self.errors)

    @cached_property
    def information(self) -> np.ndarray:
        """(7, 7): the inverse of the covariance."""
        return np.linalg.inv(self.covariance)

    def other(self, node: int) -> int:
        """The node at the other end."""
        return self.source if node == self.target else self.target

    def seen_from(self, node: int) -> tuple[Sim3, np.ndarray]:
        """(node_from_other, its covariance)."""
        if node == self.target:
            return self.measured, self.covariance
        inverse = self.measured.inverse()
        move = inverse.adjoint()
        return inverse, move @ self.covariance @ move.T

    def merged(self, measured: Sim3, covariance: np.ndarray) -> Edge:
        """This edge and a second target_from_source in one, weighted by information."""
        second = np.linalg.inv(covariance)
        merged = np.linalg.inv(self.information + second)
        shift = merged @ second @ (measured @ self.measured.inverse()).log()
        return Edge(self.target, self.source, Sim3.exp(shift) @ self.measured, merged)


class Factors:
    """Everything that holds the free nodes of a graph: edges, and priors on scale and up."""

    def __init__(
        self,
        poses: Mapping[int, Sim3],
        edges: Sequence[Edge],
        scales: Mapping[int, tuple[float, float]],
        ups: Mapping[int, np.ndarray],
        free: Sequence[int],
    ):
        """poses: map_from_node. edges: those that touch a free node. scales: logarithm of map
        units per unit of the node, and its deviation. ups: (3, 3) information (1/rad²) of up in
        the node's frame, zero along it."""
        ends = {n for edge in edges for n in (edge.target, edge.source)}
        nodes = [*free, *sorted(ends - set(free))]
        place = {node: i for i, node in enumerate(nodes)}
        self._free = free
        self._poses = _rows(poses[n] for n in nodes)
        rows = np.full(len(nodes), -1, np.int64)
        rows[: len(free)] = np.arange(len(free))
        zero = np.zeros((3, 3))
        self._graph = GraphArrays(
            rows,
            np.array([(place[e.target], place[e.source]) for e in edges], np.int64).reshape(-1, 2),
            _rows(e.measured for e in edges),
            np.array([e.information for e in edges]).reshape(-1, 7, 7),
            np.array([scales.get(n, (0.0, 0.0)) for n in nodes]).reshape(-1, 2),
            np.array([ups.get(n, zero) for n in nodes]).reshape(-1, 3, 3),
        )

    def cost(self) -> float:
        """Sum of squared normalised errors (chi square)."""
        return graph_cost(self._graph, self._poses)

    def optimise(self) -> dict[int, Sim3]:
        """Move the free nodes to the least cost near where they are; their new poses."""
        if not self._free:
            return {}
        damping = MIN_DAMPING
        for _ in range(MAX_STEPS):
            hessian, gradient, cost = graph_equations(self._graph, self._poses)
            diagonal = np.diag(np.diag(hessian)) * damping
            step = np.linalg.solve(hessian + diagonal, -gradient).reshape(-1, 7)
            before = self._poses
            moved = move_poses(before[: len(step)], step)
            self._poses = np.concatenate([moved, before[len(step) :]])
            after = self.cost()
            if not after <= cost * (1 + 1e-9):  # a step to where the cost is not finite as well
                self._poses = before
                damping = max(damping, 1e-6) * 100
                if damping > MAX_DAMPING:
                    break
            else:
                damping /= 10
                if cost - after <= MIN_GAIN * cost + 1e-9:
                    break
        return {node: _sim3(self._poses[i]) for i, node in enumerate(self._free)}

    def covariances(self) -> dict[int, np.ndarray]:
        """(7, 7) of each free node's right tangent, given the nodes that stand still."""
        if not self._free:
            return {}
        inverse = np.linalg.inv(graph_equations(self._graph, self._poses)[0])
        blocks = {node: slice(7 * i, 7 * i + 7) for i, node in enumerate(self._free)}
        return {node: inverse[block, block] for node, block in blocks.items()}


def _rows(similarities: Iterable[Sim3]) -> np.ndarray:
    """float64 (n, 13), as the kernel has them."""
    rows = [(s.scale, *s.rotation.ravel(), *s.translation) for s in similarities]
    return np.array(rows, np.float64).reshape(-1, 13)


def _sim3(row: np.ndarray) -> Sim3:
    return Sim3(float(row[0]), row[1:10].reshape(3, 3).copy(), row[10:].copy())
