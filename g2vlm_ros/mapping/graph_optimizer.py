# SPDX-License-Identifier: Apache-2.0
"""Least squares over the similarities of a pose graph: Levenberg-Marquardt, cost, covariances.

The tangent of a similarity is (rotation 3 in rad, translation 3, log scale 1). Unknown are the
right tangents of the free nodes (their own frames); all others stand still.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from g2vlm_ros.geometry.sim3 import Sim3, cross_matrix

MAX_STEPS = 15
"""Steps of Levenberg-Marquardt; a loop over 128 nodes converges in about 5."""
MIN_GAIN = 1e-3
"""Relative gain of a step below which optimisation ends."""
MIN_DAMPING = 1e-9
MAX_DAMPING = 1e6
"""Damping above which no step helps any more: the cost is at its floor."""


@dataclass
class Edge:
    """A measured target_from_source; covariance of its left tangent (target's frame)."""

    target: int
    source: int
    measured: Sim3
    covariance: np.ndarray

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

    def merge(self, measured: Sim3, covariance: np.ndarray) -> None:
        """Fuse a second target_from_source into this one, weighted by information."""
        first, second = np.linalg.inv(self.covariance), np.linalg.inv(covariance)
        merged = np.linalg.inv(first + second)
        shift = merged @ second @ (measured @ self.measured.inverse()).log()
        self.measured = Sim3.exp(shift) @ self.measured
        self.covariance = merged


@dataclass
class Factors:
    """Everything that holds the free nodes: edges, and priors on scale and up by node."""

    poses: dict[int, Sim3]
    """map_from_node; `optimise` replaces those of the free nodes."""
    edges: Sequence[Edge]
    """Those that touch a free node."""
    scales: dict[int, tuple[float, float]]
    """Logarithm of map units per unit of the node, and its deviation."""
    ups: dict[int, np.ndarray]
    """(3, 3) information (1/rad²) of up in the node's frame, zero along it."""
    free: Sequence[int]

    def cost(self) -> float:
        """Sum of squared normalised errors (chi square)."""
        edges = sum(self._edge_error(edge)[0] for edge in self.edges)
        scales = sum(self._scale_error(n) ** 2 for n in self.free if n in self.scales)
        return edges + scales + sum(self._tilt(n) for n in self.free if n in self.ups)

    def optimise(self) -> None:
        """Move the free nodes to the least cost near where they are."""
        if not self.free:
            return
        damping, cost = MIN_DAMPING, np.inf
        for _ in range(MAX_STEPS):
            hessian, gradient, cost = self._normal_equations()
            diagonal = np.diag(np.diag(hessian)) * damping
            step = np.linalg.solve(hessian + diagonal, -gradient).reshape(-1, 7)
            before = {n: self.poses[n] for n in self.free}
            for node, tangent in zip(self.free, step, strict=True):
                self.poses[node] = self.poses[node] @ Sim3.exp(tangent)
            after = self.cost()
            if after > cost * (1 + 1e-9):
                self.poses.update(before)
                damping = max(damping, 1e-6) * 100
                if damping > MAX_DAMPING:
                    return
            else:
                damping /= 10
                if cost - after <= MIN_GAIN * cost + 1e-9:
                    return

    def covariances(self) -> dict[int, np.ndarray]:
        """(7, 7) of each free node's right tangent, given the nodes that stand still."""
        if not self.free:
            return {}
        inverse = np.linalg.inv(self._normal_equations()[0])
        blocks = {node: slice(7 * i, 7 * i + 7) for i, node in enumerate(self.free)}
        return {node: inverse[block, block] for node, block in blocks.items()}

    def _edge_error(self, edge: Edge) -> tuple[float, np.ndarray, np.ndarray, Sim3]:
        """Squared normalised error, residual (7,), information, and the leftover similarity."""
        target, source = self.poses[edge.target], self.poses[edge.source]
        leftover = target.inverse() @ source @ edge.measured.inverse()
        residual = leftover.log()
        information = np.linalg.inv(edge.covariance)
        return float(residual @ information @ residual), residual, information, leftover

    def _tilt(self, node: int) -> float:
        """Squared normalised angle between the map's z and what was measured as up."""
        z = self.poses[node].rotation[2]
        return float(z @ self.ups[node] @ z)

    def _scale_error(self, node: int) -> float:
        log_scale, std = self.scales[node]
        return (float(np.log(self.poses[node].scale)) - log_scale) / std

    def _normal_equations(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Hessian (7k, 7k), gradient (7k,) and cost."""
        size = 7 * len(self.free)
        rows = {node: slice(7 * i, 7 * i + 7) for i, node in enumerate(self.free)}
        hessian, gradient = np.zeros((size, size)), np.zeros(size)
        cost = 0.0
        for edge in self.edges:
            squared, residual, information, leftover = self._edge_error(edge)
            cost += squared
            jacobians = {
                edge.target: -np.eye(7),
                edge.source: (leftover @ edge.measured).adjoint(),
            }
            ends = [(rows[n], jacobian) for n, jacobian in jacobians.items() if n in rows]
            for here, jacobian in ends:
                gradient[here] += jacobian.T @ information @ residual
                for there, other in ends:
                    hessian[here, there] += jacobian.T @ information @ other
        for node in self.free:
            if node in self.scales:
                cost += self._add_scale(node, rows[node].start + 6, hessian, gradient)
            if node in self.ups:
                cost += self._add_up(node, rows[node].start, hessian, gradient)
        return hessian, gradient, cost

    def _add_scale(self, node: int, row: int, hessian: np.ndarray, gradient: np.ndarray) -> float:
        std = self.scales[node][1]
        error = self._scale_error(node)
        hessian[row, row] += 1 / std**2
        gradient[row] += error / std
        return error**2

    def _add_up(self, node: int, row: int, hessian: np.ndarray, gradient: np.ndarray) -> float:
        z, information = self.poses[node].rotation[2], self.ups[node]
        turn = cross_matrix(z)
        rows = slice(row, row + 3)
        hessian[rows, rows] += turn.T @ information @ turn
        gradient[rows] += turn.T @ information @ z
        return self._tilt(node)
