# SPDX-License-Identifier: Apache-2.0
"""Normal equations of a pose graph (pose_graph.cpp).

Similarities are rows float64 (13,): scale, rotation (3, 3), translation (3,).
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np

from g2vlm_ros.kernels.checks import (
    call,
    check_in_place,
    check_indices,
    i64,
    input_array,
    shape_of,
)

SIM3, TANGENT = 13, 7


class GraphArrays(NamedTuple):
    """A pose graph of n nodes, f of them free, and m edges."""

    rows: np.ndarray
    """int64 (n,): which of the free nodes each is, -1 where it stands still."""
    ends: np.ndarray
    """int64 (m, 2): target and source of each edge."""
    measured: np.ndarray
    """float64 (m, 13): target_from_source."""
    information: np.ndarray
    """float64 (m, 7, 7) of its left tangent (the target's frame)."""
    scales: np.ndarray
    """float64 (n, 2): measured logarithm of map units per unit, and its deviation; 0 for none."""
    ups: np.ndarray
    """float64 (n, 3, 3): information (1/rad²) of up in the node's frame; zero for none."""


def graph_cost(graph: GraphArrays, poses: np.ndarray) -> float:
    """Sum of squared normalised errors at poses (n, 13); scales and ups count of free nodes."""
    return _run(graph, poses, 0, np.empty((0, 0)), np.empty(0))


def graph_equations(graph: GraphArrays, poses: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Hessian (7 f, 7 f), gradient (7 f,) and `graph_cost`, by right tangents of free nodes."""
    free = int(graph.rows.max(initial=-1)) + 1
    hessian, gradient = np.zeros((TANGENT * free,) * 2), np.zeros(TANGENT * free)
    return hessian, gradient, _run(graph, poses, free, hessian, gradient)


def move_poses(poses: np.ndarray, tangents: np.ndarray) -> np.ndarray:
    """float64 (n, 13): poses (n, 13), each times the similarity of its tangent (n, 7)."""
    (count, _) = shape_of(tangents, "tangents", (None, TANGENT))
    poses = input_array(poses, "poses", np.float64, (count, SIM3))
    tangents = input_array(tangents, "tangents", np.float64, (count, TANGENT))
    out = np.empty_like(poses)
    call("move_poses", None, poses, tangents, i64(count), out)
    return out


def _run(
    graph: GraphArrays, poses: np.ndarray, free: int, hessian: np.ndarray, gradient: np.ndarray
) -> float:
    nodes, edges = len(graph.rows), len(graph.ends)
    poses = input_array(poses, "poses", np.float64, (nodes, SIM3))
    rows = input_array(graph.rows, "rows", np.int64, (nodes,))
    check_indices(rows + 1, nodes + 1, "rows + 1")
    ends = input_array(graph.ends, "ends", np.int64, (edges, 2))
    check_indices(ends, nodes, "ends")
    check_in_place(hessian, "hessian", np.float64, (TANGENT * free,) * 2)
    check_in_place(gradient, "gradient", np.float64, (TANGENT * free,))
    return call(
        "graph_equations",
        ctypes.c_double,
        poses,
        rows,
        i64(nodes),
        ends,
        input_array(graph.measured, "measured", np.float64, (edges, SIM3)),
        input_array(graph.information, "information", np.float64, (edges, TANGENT, TANGENT)),
        i64(edges),
        input_array(graph.scales, "scales", np.float64, (nodes, 2)),
        input_array(graph.ups, "ups", np.float64, (nodes, 3, 3)),
        i64(free),
        hessian,
        gradient,
    )
