# SPDX-License-Identifier: Apache-2.0
"""Places seen again: which are tried, what closes, and what must not bend the map."""

from dataclasses import replace

import numpy as np
import pytest

from g2vlm_ros.demo.sim.analytic_hall import (
    LAP_M,
    DrivePerception,
    Noise,
    drive,
    lap_poses,
    make,
    run,
    trajectory_error,
)
from g2vlm_ros.mapping import localisation, loop_closure, pose_graph
from g2vlm_ros.mapping.relocalisation import SearchResult
from g2vlm_ros.mapping.revisits import RevisitSearch
from g2vlm_ros.mapping.window_pose import SearchOutcome
from g2vlm_ros.records import NonFiniteError, ScaleState


@pytest.fixture
def no_features(monkeypatch):
    """Windows are not recognised by their features: the network's bridge alone joins maps."""
    nothing = SearchResult(SearchOutcome.NOT_FOUND)
    monkeypatch.setattr(localisation, "search", lambda *arguments: nothing)
    monkeypatch.setattr(RevisitSearch, "find", lambda *arguments: None)


def after_a_minute(number, frame):
    """A frame that no window of before can hold together with its own."""
    return replace(frame, stamp_ns=frame.stamp_ns + 60 * 10**9)


def test_a_loop_takes_out_most_of_the_drift():
    perception = DrivePerception(lap_poses(92, 0.4, 0), Noise(0.05, 0.1, 0.005, 0.005), seed=2)
    errors, tracks = [], []
    for closure in (False, True):
        perception.rng = np.random.default_rng(2)
        tracks.append(drive(perception, map__loop_closure=closure))
        numbers, found = tracks[-1].positions()
        errors.append(trajectory_error(found, perception.poses[numbers, :3, 3]))
    assert tracks[1].counts.loops["closed"] >= 1 and not tracks[0].counts.loops
    assert errors[1] < 0.85 * errors[0] and errors[0] < 0.015


def test_a_loop_closes_where_the_map_expects_it_though_everything_looks_alike():
    """Descriptors that choose the wrong place, and are tried there, do not keep the right one."""
    poses = lap_poses(round(LAP_M / 0.4) + 5, 0.4, weave=0.0)
    perception, live = make(poses, Noise(0.05, 0.1, 0.005, 0.005), map__loop_gap_windows=20)
    honest = perception.reconstruct

    def alike(numbers):
        return replace(honest(numbers), descriptors=np.ones((len(numbers), 2), np.float32))

    perception.reconstruct = alike
    updates = run(perception, live, range(len(poses)))
    assert any(u.placement.loop_closed for u in updates)
    assert set(live.counts().loops) == {"closed", "no_overlap"}


def test_loop_closure_says_what_it_moved():
    poses = lap_poses(round(LAP_M / 0.4) + 5, 0.4, weave=0.0)
    perception, live = make(poses, Noise(0.05, 0.1, 0.005, 0.005), map__loop_gap_windows=20)
    updates = run(perception, live, range(len(poses)))
    (closed,) = [u for u in updates if u.placement.loop_closed]
    moved = dict(closed.placement.corrections)
    assert len(moved) > 0.7 * closed.window.id and closed.window.id not in moved
    assert 1 not in moved, "the first window holds the map in place"
    before = [np.trace(u.placement.covariance[-1, :3, :3]) for u in updates if u is not closed]
    assert np.trace(closed.placement.covariance[-1, :3, :3]) < 0.5 * max(before)
    assert live.counts().loops == {"closed": 1}


@pytest.mark.parametrize("guards", ["all", "only the map"])
def test_a_network_that_hallucinates_a_bridge_cannot_bend_the_map(
    monkeypatch, no_features, guards
):
    """The place is the same, but the bridge puts the new views three metres aside. (Features would
    show where it is.)"""
    if guards == "only the map":
        monkeypatch.setattr(loop_closure, "MIN_ALIKE", -2.0)
        monkeypatch.setattr(loop_closure, "MIN_OVERLAP", 0.0)
    poses = lap_poses(round(LAP_M / 0.4) + 5, 0.4, weave=0.0)
    perception, live = make(poses, map__loop_gap_windows=20)
    honest = perception.reconstruct

    def dream(numbers):
        result = honest(numbers)
        if max(numbers) - min(numbers) < 60:
            return result
        dreamt = result.window_from_camera.copy()
        new = np.array(numbers) > 60
        dreamt[new, :3, 3] += 3 * perception.window_from_world.scale * dreamt[new, :3, 0]
        geometry = replace(result.geometry, window_from_camera=dreamt)
        return replace(result, geometry=geometry)

    perception.reconstruct = dream
    updates = run(perception, live, range(len(poses)))
    refused = {"contradicts_map"}
    if guards == "all":
        refused |= {"no_overlap", "looks_different"}
    counts = live.counts().loops
    assert counts and set(counts) <= refused
    assert not any(u.placement.loop_closed for u in updates)
    for update in updates[1:]:
        moved = [window for window, _ in update.placement.corrections]
        assert all(update.window.id - window <= pose_graph.RECENT for window in moved)


def test_views_of_windows_that_the_map_forgot_are_not_looked_for(monkeypatch):
    monkeypatch.setattr(pose_graph, "FOLDED_PER_NODE", 0.25)
    poses = lap_poses(60, 0.2)
    perception, live = make(poses, map__loop_gap_windows=2, map__graph_windows=16)
    updates = run(perception, live, range(len(poses)))
    assert len(updates) == (len(poses) - 1) // 2
    forgotten = {window for u in updates for window in u.placement.forgotten}
    assert len(forgotten) >= 5, "or nothing is tested"
    assert 0 < live.sizes().keyframes <= len(updates) - len(forgotten)


def test_a_bridge_that_the_network_cannot_compute_is_counted(no_features):
    poses = lap_poses(round(LAP_M / 0.4) + 5, 0.4, weave=0.0)
    perception, live = make(poses, map__loop_gap_windows=20)
    honest = perception.reconstruct

    def fail(numbers):
        if max(numbers) - min(numbers) > 60:
            raise NonFiniteError("heads")
        return honest(numbers)

    perception.reconstruct = fail
    assert len(run(perception, live, range(len(poses)))) == (len(poses) - 1) // 2
    assert set(live.counts().loops) == {"non_finite"}


def test_a_robot_that_was_carried_finds_its_way_back_into_the_old_map(no_features):
    """Back and forth over known ground after a gap: the new map joins the first one."""
    poses = np.concatenate([lap_poses(31, 0.3, 0), lap_poses(31, 0.3, 0)])
    perception, live = make(poses, map__loop_gap_windows=5)
    updates = run(perception, live, range(31))
    updates += run(perception, live, range(31, 62), after_a_minute)
    starts = [u.placement.new_map for u in updates if u.placement.new_map]
    assert starts == ["first", "no_shared_view"]
    (joined,) = [u for u in updates if u.placement.merged_map_id is not None]
    assert joined.placement.merged_map_id == 1 and joined.placement.map_id == 0
    assert updates[-1].placement.map_id == 0
    moved = dict(joined.placement.corrections)
    assert {u.window.id for u in updates if u.placement.map_id == 1} <= set(moved)
    found = [u.map_from_camera[0][:3, 3] for u in (updates[10], updates[-8])]
    numbers = [u.scene[0] for u in (updates[10], updates[-8])]
    unit = np.linalg.norm(updates[10].map_from_camera[2][:3, 3] - found[0]) / 0.6
    truth = np.diff(poses[numbers, :3, 3], axis=0)[0]
    assert np.linalg.norm(found[1] - found[0]) == pytest.approx(
        unit * np.linalg.norm(truth), rel=0.02
    )


def test_views_that_the_newest_one_does_not_overlap_are_no_part_of_its_bridge():
    """Carried within a window: its older views show the place before."""
    poses = np.concatenate([lap_poses(48, 0.3, 0), lap_poses(11, 0.3, 0)[3:]])
    perception, live = make(
        poses, map__loop_gap_windows=5, map__loop_similarity=0.98, window__views=4
    )
    honest, runs = perception.reconstruct, []

    def noted(numbers):
        runs.append(numbers)
        return honest(numbers)

    perception.reconstruct = noted
    updates = run(perception, live, range(len(poses)))
    (carried,) = [u for u in updates if u.placement.new_map == "no_overlap"]
    assert carried.scene == [45, 46, 47, 48] and carried.trusted_views == (3,)
    bridge = runs[runs.index(carried.scene) + 1]
    assert max(bridge[:-1]) < 10 and bridge[-1] == 48
    assert carried.placement.loop_closed


def test_a_bridge_cannot_bring_a_carried_robot_back_in_other_metres(no_features, monkeypatch):
    """Both maps are in metres; the bridge makes all of the new views three times too large."""
    monkeypatch.setattr(loop_closure, "MIN_ALIKE", -2.0)
    monkeypatch.setattr(loop_closure, "MIN_OVERLAP", 0.0)
    poses = np.concatenate([lap_poses(31, 0.3, 0), lap_poses(31, 0.3, 0)])
    for factor in (1.0, 3.0):
        perception, live = make(poses, map__loop_gap_windows=5)
        honest = perception.reconstruct

        def swollen(numbers, honest=honest, factor=factor):
            result = honest(numbers)
            new = np.array(numbers) > 30
            if new.all() or not new.any():
                return result
            points, pose = result.local_points_u.copy(), result.window_from_camera.copy()
            points[new] *= factor
            first = pose[new][0, :3, 3]
            pose[new, :3, 3] = first + factor * (pose[new, :3, 3] - first)
            geometry = replace(result.geometry, local_points_u=points, window_from_camera=pose)
            return replace(result, geometry=geometry)

        perception.reconstruct = swollen
        tell = lambda number, frame: replace(frame, position_m=poses[number, :3, 3])  # noqa: E731
        updates = run(perception, live, range(31), tell)
        updates += run(
            perception, live, range(31, 62), lambda n, f, t=tell: after_a_minute(n, t(n, f))
        )
        assert updates[-1].placement.scale.state is ScaleState.METRIC
        joined = any(u.placement.merged_map_id is not None for u in updates)
        assert joined == (factor == 1.0)
        assert ("contradicts_map" in live.counts().loops) == (factor != 1.0)
