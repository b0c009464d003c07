# SPDX-License-Identifier: Apache-2.0
"""Laws of the tangent, and of a graph that is optimised, folded and put back."""

import numpy as np
import pytest
from g2vlm_tests.random_geometry import random_sim3

from g2vlm_ros.geometry.sim3 import Sim3, cross_matrix
from g2vlm_ros.mapping.pose_graph import PoseGraph

SMALL = np.diag([0.002] * 3 + [0.01] * 3 + [0.01]) ** 2


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def near(a: Sim3, b: Sim3) -> float:
    return float(np.abs((a @ b.inverse()).log()).max())


def test_logarithm_undoes_the_exponential(rng):
    for tangent in rng.normal(size=(20, 7)) * 0.8:
        np.testing.assert_allclose(Sim3.exp(tangent).log(), tangent, atol=1e-9)
    np.testing.assert_allclose(Sim3.identity().log(), 0)


def test_adjoint_carries_a_small_motion_across(rng):
    for _ in range(20):
        across, small = random_sim3(rng), 1e-5 * rng.normal(size=7)
        left = across @ Sim3.exp(small)
        right = Sim3.exp(across.adjoint() @ small) @ across
        assert near(left, right) < 1e-8


def test_adjoint_of_a_product_is_the_product_of_adjoints(rng):
    a, b = random_sim3(rng), random_sim3(rng)
    np.testing.assert_allclose((a @ b).adjoint(), a.adjoint() @ b.adjoint(), atol=1e-9)
    np.testing.assert_allclose(cross_matrix([1, 2, 3]) @ [4, 5, 6], np.cross([1, 2, 3], [4, 5, 6]))


def test_poses_stay_rotations_however_often_they_are_corrected():
    """What rounding adds is doubled by each product with an inverse, if nothing takes it out."""
    pose = Sim3.exp(np.array([0.3, -0.5, 0.2, 1.0, 2.0, 3.0, 0.1]))
    first = pose
    for _ in range(100):
        pose = pose @ (pose.inverse() @ pose)
    np.testing.assert_allclose(pose.rotation @ pose.rotation.T, np.eye(3), atol=1e-14)
    np.testing.assert_allclose(pose.rotation, first.rotation, atol=1e-12)


def ring(rng, count, noise, max_nodes=128, close=True):
    """A graph of a chain around a circle, each node in a unit of its own, and the truth."""
    truth = {}
    for k in range(1, count + 1):
        angle = 2 * np.pi * k / count
        turn = Sim3.exp(np.array([0, 0, angle, 0, 0, 0, 0])).rotation
        place = 5 * np.array([np.cos(angle), np.sin(angle), 0])
        truth[k] = Sim3(float(rng.uniform(0.5, 2)), turn, place)
    graph = PoseGraph(max_nodes)
    graph.add(1, truth[1])

    def measured(a, b):
        miss = noise * rng.normal(size=7) * np.sqrt(np.diag(SMALL))
        unit = truth[a].scale ** np.array([0, 0, 0, -1, -1, -1, 0])
        z = Sim3.exp(miss * unit) @ truth[a].inverse() @ truth[b]
        return z, np.diag(np.diag(SMALL) * unit**2)

    for k in range(2, count + 1):
        graph.attach(k, k - 1, *measured(k - 1, k))
        graph.fold()
    if close:
        graph.connect(1, count, *measured(1, count))
    return graph, truth


def error(graph, truth):
    gaps = [graph.pose(k).translation - truth[k].translation for k in truth if k in graph]
    return float(np.sqrt((np.stack(gaps) ** 2).sum(1).mean()))


def test_loop_closure_takes_out_most_of_the_drift(rng):
    before, after = [], []
    for _ in range(5):
        graph, truth = ring(rng, 60, 1.0)
        before.append(error(graph, truth))
        graph.optimise(60)
        after.append(error(graph, truth))
    assert np.mean(after) < 0.5 * np.mean(before)


def test_chi_square_is_what_the_covariances_promise(rng):
    """With a loop there are 7 more measurements than unknowns."""
    costs = []
    for _ in range(10):
        graph, _ = ring(rng, 20, 1.0)
        costs.append(graph.optimise(20))
    assert 4 < np.mean(costs) < 11


def test_covariance_of_the_chain_grows_and_a_loop_shrinks_it(rng):
    graph, truth = ring(rng, 30, 1.0, close=False)
    sizes = [np.trace(graph.covariance(k)[:3, :3]) for k in truth]
    assert sizes[0] == 0 and (np.diff(sizes) > 0).all()
    graph.connect(1, 30, truth[1].inverse() @ truth[30], SMALL)
    graph.optimise(30)
    assert np.trace(graph.covariance(30)[:3, :3]) < 0.2 * sizes[-1]


def test_chain_covariance_is_that_of_the_errors_that_are_made(rng):
    normalised = []
    for _ in range(60):
        graph, truth = ring(rng, 12, 1.0, close=False)
        miss = (graph.pose(12).inverse() @ truth[12]).log()
        normalised.append(miss @ np.linalg.solve(graph.covariance(12), miss) / 7)
    assert 0.7 < np.mean(normalised) < 1.4


def test_chain_covariance_counts_what_holds_nodes_upright(rng):
    """Node by node as the whole graph has it at once, where edges fit exactly."""
    graph, truth = PoseGraph(), {1: Sim3.identity()}
    graph.add(1, truth[1])
    for node in range(2, 7):
        step = Sim3.exp(0.3 * rng.normal(size=7))
        truth[node] = truth[node - 1] @ step
        graph.attach(node, node - 1, step, SMALL)
        up = truth[node].rotation[2]
        graph.measure_up(node, (np.eye(3) - np.outer(up, up)) / 0.001**2)
    by_node = graph.covariance(6)
    graph.optimise(6)
    np.testing.assert_allclose(graph.covariance(6), by_node, rtol=1e-5, atol=1e-12)
    yaw = truth[6].rotation[2]
    turn = by_node[:3, :3]
    assert yaw @ turn @ yaw > 3 * (np.trace(turn) - yaw @ turn @ yaw)


def test_optimising_recent_nodes_leaves_the_others_alone(rng):
    graph, truth = ring(rng, 30, 3.0)
    before = {k: graph.pose(k) for k in truth}
    graph.optimise_recent(30)
    moved = [k for k in truth if near(graph.pose(k), before[k]) > 1e-9]
    assert moved and min(moved) == 23


def test_measured_scales_pull_a_drifting_chain_back():
    """Each joint loses 2 % of scale; odometry knows each window's unit to 1 %."""
    graph = PoseGraph()
    graph.add(1, Sim3.identity())
    shrinking = Sim3(0.98, np.eye(3), np.array([1.0, 0, 0]))
    scales = []
    for k in range(2, 41):
        graph.attach(k, k - 1, shrinking, SMALL)
        graph.measure_scale(k, 1.0, 0.01)
        graph.optimise_recent(k)
        scales.append(graph.pose(k).scale)
    assert 0.98**39 < 0.46 and min(scales) > 0.96


def test_measured_ups_hold_a_leaning_chain_upright():
    """Each joint leans by half a degree, which it is known to; windows know up to two."""
    graph = PoseGraph()
    graph.add(1, Sim3.identity())
    lean = Sim3.exp(np.radians([0.5, 0, 0, 0, 0, 0, 0]))
    loose = np.diag([0.01] * 7) ** 2
    known = np.diag([1.0, 1.0, 0.0]) / np.radians(2.0) ** 2
    for k in range(2, 41):
        graph.attach(k, k - 1, lean, loose)
        graph.measure_up(k, known)
        graph.optimise_recent(k)
    lean_deg = [np.degrees(np.arccos(graph.pose(k).rotation[2, 2])) for k in range(1, 41)]
    assert max(lean_deg) < 3.0, "19.5 degrees by joints alone"


def test_up_of_a_map_is_what_its_windows_say_together(rng):
    """Walls tell one axis each; two windows that see different walls tell up."""
    up = np.array([0.1, -0.2, 1.0]) / np.linalg.norm([0.1, -0.2, 1.0])
    wall, other = (np.cross(up, axis) for axis in ([1.0, 0, 0], [0, 1.0, 0]))
    graph = PoseGraph(16)
    for k, normal in ((1, wall), (2, other)):
        pose = random_sim3(rng)
        graph.add(k, pose)
        in_node = pose.rotation.T @ normal / np.linalg.norm(normal)
        graph.measure_up(k, np.outer(in_node, in_node) / 0.02**2)
        if k == 1:
            assert graph.up([1])[1] > 0.4, "about the wall's normal anything goes"
    direction, std_rad = graph.up([1, 2])
    np.testing.assert_allclose(direction, up, atol=2e-3)
    assert 0.01 < std_rad < 0.04
    assert graph.up([]) is None


def test_folded_nodes_leave_their_ups_behind(rng):
    graph = PoseGraph(16)
    graph.add(1, Sim3.identity())
    for k in range(2, 40):
        graph.attach(k, k - 1, random_sim3(rng), SMALL)
        z = graph.pose(k).rotation[2]
        graph.measure_up(k, (np.eye(3) - np.outer(z, z)) / 0.1**2)
        graph.fold()
    assert len(graph) == 16
    direction, std_rad = graph.up(graph.nodes)
    np.testing.assert_allclose(direction, [0, 0, 1], atol=1e-9)
    assert std_rad == pytest.approx(0.1 / np.sqrt(38), rel=1e-2)


def test_folding_bounds_the_nodes_and_forgets_no_window(rng):
    graph, truth = ring(rng, 200, 0.0, max_nodes=32)
    assert len(graph) == 32 and all(k in graph for k in truth)
    assert max(near(graph.pose(k), truth[k]) for k in truth) < 1e-6
    assert graph.cost(200) < 1e-6
    members = graph.members(graph.nodes)
    assert sorted(members) == sorted(truth)


def test_folded_windows_move_with_their_neighbours(rng):
    graph, truth = ring(rng, 120, 1.0, max_nodes=32)
    before = error(graph, truth)
    graph.optimise(120)
    assert error(graph, truth) < 0.6 * before
    gaps = [
        np.linalg.norm(graph.pose(k).translation - graph.pose(k + 1).translation)
        for k in range(1, 120)
    ]
    assert max(gaps) < 1.5 * 2 * np.pi * 5 / 120


def test_folding_a_crossing_keeps_what_its_joints_say(rng):
    """Nodes with three joints fold too: the loop survives as a joint between neighbours."""
    graph, truth = ring(rng, 40, 0.0, max_nodes=64)
    for a, b in ((3, 20), (4, 25), (5, 30), (20, 35)):
        graph.connect(a, b, truth[a].inverse() @ truth[b], SMALL)
    graph.fold(18)
    assert len(graph) == 18
    assert max(near(graph.pose(k), truth[k]) for k in truth) < 1e-6 and graph.cost(40) < 1e-6


def test_joints_with_folded_windows_reach_their_keepers(rng):
    graph, truth = ring(rng, 100, 0.0, max_nodes=32)
    folded = next(k for k in truth if graph.keeper(k) != k)
    graph.add(101, truth[100])
    graph.connect(folded, 101, truth[folded].inverse() @ truth[100], SMALL)
    assert graph.cost(101) < 1e-6 and 101 in graph.component(1)


def test_two_joints_between_the_same_nodes_are_averaged():
    graph = PoseGraph()
    graph.add(1, Sim3.identity())
    steps = [Sim3(1.0, np.eye(3), np.array([x, 0, 0])) for x in (1.0, 1.02)]
    graph.attach(2, 1, steps[0], SMALL)
    graph.connect(1, 2, steps[1], SMALL)
    graph.optimise(2)
    assert graph.pose(2).translation[0] == pytest.approx(1.01, abs=1e-3)
    move = (graph.pose(2).inverse()).adjoint()
    np.testing.assert_allclose(graph.covariance(2), move @ SMALL @ move.T / 2, rtol=1e-6)


def test_a_joint_said_backwards_is_the_same_joint(rng):
    step, results = random_sim3(rng), []
    for backwards in (False, True):
        graph = PoseGraph()
        graph.add(1, Sim3.identity())
        graph.attach(2, 1, Sim3.identity(), SMALL)
        if backwards:
            move = step.inverse().adjoint()
            graph.connect(2, 1, step.inverse(), move @ SMALL @ move.T)
        else:
            graph.connect(1, 2, step, SMALL)
        graph.optimise(2)
        results.append(graph.pose(2))
    assert near(*results) < 1e-9


def test_what_a_copy_goes_through_leaves_the_graph_as_it_was(rng):
    graph, truth = ring(rng, 20, 1.0)
    graph.measure_scale(7, 1.5, 0.01)
    graph.measure_up(7, np.diag([100.0, 100.0, 0.0]))
    before, cost = {k: graph.pose(k) for k in truth}, graph.cost(20)
    covariance = graph.covariance(20).copy()
    other = graph.copy()
    other.attach(-20, 20, Sim3.identity(), SMALL)
    other.connect(5, 20, random_sim3(rng), SMALL)
    other.connect(19, 20, random_sim3(rng), SMALL)
    other.measure_scale(3, 2.0, 0.01)
    other.optimise(20)
    other.fold(16)
    other.move(other.nodes, Sim3(2.0, np.eye(3), np.zeros(3)))
    assert -20 not in graph and graph.nodes == sorted(truth)
    assert graph.cost(20) == cost and np.array_equal(graph.covariance(20), covariance)
    assert all(graph.pose(k) is before[k] for k in truth)


def test_components_are_apart_until_a_joint_connects_them():
    graph = PoseGraph()
    for node in (1, 2, 3):
        graph.add(node, Sim3.identity())
    graph.connect(1, 2, Sim3.identity(), SMALL)
    assert graph.component(1) == {1, 2} and graph.component(3) == {3}
    graph.move([3], Sim3(2.0, np.eye(3), np.zeros(3)))
    assert graph.pose(3).scale == 2 and graph.pose(1).scale == 1


def test_too_small_a_graph_is_refused():
    with pytest.raises(ValueError, match="max_nodes is 3"):
        PoseGraph(3)


def test_a_map_that_goes_takes_the_windows_folded_into_it_along():
    """Nothing may ask for them afterwards: not keyframes, not voxels that are put aside."""
    graph = PoseGraph(16)
    step = Sim3(1.0, np.eye(3), np.array([1.0, 0.0, 0.0]))
    graph.add(1, Sim3.identity())
    for node in range(2, 101):
        if node == 41:  # a map of three windows
            graph.add(node, Sim3.identity())
        else:
            graph.attach(node, 40 if node == 44 else node - 1, step, SMALL)
    forgotten = graph.fold()
    assert {41, 42, 43} <= set(forgotten)
    assert all((node in graph) != (node in forgotten) for node in range(1, 101))
