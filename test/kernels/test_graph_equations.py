# SPDX-License-Identifier: Apache-2.0
"""The equations of a pose graph are those of their numpy oracle."""

from __future__ import annotations

import numpy as np
import pytest
from g2vlm_tests import kernel_oracles as oracles
from g2vlm_tests.random_geometry import random_sim3

from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.kernels.pose_graph import GraphArrays, graph_cost, graph_equations, move_poses

NODES, FREE, EDGES = 9, 6, 20


def row(sim3):
    return [sim3.scale, *sim3.rotation.ravel(), *sim3.translation]


def spread(rng, size):
    root = rng.normal(size=(size, size))
    return root @ root.T


@pytest.fixture
def drawn():
    """(poses, graph): edges among free and still nodes, some of them measured by others."""
    rng = np.random.default_rng(5)
    poses = [random_sim3(rng) for _ in range(NODES)]
    ends = np.array([rng.choice(NODES, 2, replace=False) for _ in range(EDGES)])
    measured = [
        Sim3.exp(rng.normal(0, 0.3, 7)) @ poses[target].inverse() @ poses[source]
        for target, source in ends
    ]
    rows = np.where(np.arange(NODES) < FREE, np.arange(NODES), -1)
    scales = np.array([[rng.normal(), 0.1 if n % 2 else 0.0] for n in range(NODES)])
    ups = np.stack([spread(rng, 3) if n % 3 else np.zeros((3, 3)) for n in range(NODES)])
    information = np.stack([spread(rng, 7) for _ in range(EDGES)])
    graph = GraphArrays(rows, ends, np.array([row(m) for m in measured]), information, scales, ups)
    return poses, graph


def test_equations_are_those_of_the_oracle(drawn):
    poses, graph = drawn
    rows = np.array([row(pose) for pose in poses])
    actual, expected = graph_equations(graph, rows), oracles.graph_equations(graph, poses)
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9 * np.abs(theirs).max())
    assert graph_cost(graph, rows) == pytest.approx(actual[2], rel=1e-12)


def test_the_gradient_is_the_slope_of_the_cost(drawn):
    poses, graph = drawn
    rows = np.array([row(pose) for pose in poses])
    # Where the residuals are small, as Gauss-Newton assumes.
    small = graph._replace(
        measured=np.array(
            [
                row(Sim3.exp(np.full(7, 1e-4)) @ poses[t].inverse() @ poses[s])
                for t, s in graph.ends
            ]
        )
    )
    step, gradient = 1e-6, graph_equations(small, rows)[1]
    for unknown in range(7 * FREE):
        costs = []
        for sign in (1, -1):
            tangents = np.zeros((NODES, 7))
            tangents[unknown // 7, unknown % 7] = sign * step
            costs.append(graph_cost(small, move_poses(rows, tangents)))
        slope = (costs[0] - costs[1]) / (4 * step)
        assert slope == pytest.approx(gradient[unknown], rel=0.02, abs=0.02)


@pytest.mark.parametrize("angle", [0.0, 1e-7, 0.5, 3.0, np.pi - 1e-5, np.pi - 1e-9])
def test_residuals_of_any_turn(angle):
    """One edge from a still node: its cost is the squared tangent, up to half a turn."""
    axis = np.array([0.6, -0.48, 0.64])
    turned = Sim3.exp(np.array([*(angle * axis), 0, 0, 0, 0]))
    graph = GraphArrays(
        np.array([0, -1]), np.array([[1, 0]]), np.array([row(Sim3.identity())]), np.eye(7)[None],
        np.zeros((2, 2)), np.zeros((2, 3, 3)),
    )  # fmt: skip
    rows = np.array([row(turned), row(Sim3.identity())])
    assert graph_cost(graph, rows) == pytest.approx(angle**2, rel=1e-6, abs=1e-15)


def test_moved_poses_and_what_does_not_fit(drawn):
    poses, graph = drawn
    rows, tangents = np.array([row(p) for p in poses]), np.linspace(-1, 1, 7 * NODES)
    tangents = tangents.reshape(NODES, 7)
    expected = [row(p @ Sim3.exp(t)) for p, t in zip(poses, tangents, strict=True)]
    np.testing.assert_allclose(move_poses(rows, tangents), expected, atol=1e-12)
    with pytest.raises(ValueError, match="ends are 0 to 9"):
        graph_cost(graph._replace(ends=np.array([[0, NODES]] * EDGES)), rows)
    with pytest.raises(ValueError, match="poses"):
        graph_cost(graph, rows[1:])
