# SPDX-License-Identifier: Apache-2.0
"""Laws of the voxel map: means, change sets, bounds, free space, corrections."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from g2vlm_tests.point_mirror import PointMirror

from g2vlm_ros.dense_map.free_space import DepthView
from g2vlm_ros.dense_map.map_changes import POINT, ChangeSet, points_of
from g2vlm_ros.dense_map.voxel_grid import BLOCK_EDGE
from g2vlm_ros.dense_map.voxel_map import VoxelMap
from g2vlm_ros.geometry.sim3 import ZUP_FROM_OPTICAL, Sim3
from g2vlm_ros.kernels.records import MAX_COUNT
from g2vlm_ros.records import Intrinsics

SIZE = 0.1
MEMORY = 4 << 20
SECOND = 1_000_000_000


def cloud(rng: np.random.Generator, size: int, spread: float = 2.0) -> tuple[np.ndarray, ...]:
    points = (rng.random((size, 3)) * spread - spread / 2).astype(np.float32)
    colours = rng.integers(0, 256, (size, 3), dtype=np.uint8)
    return points, colours, rng.uniform(0.2, 1.0, size).astype(np.float32)


def filled(*windows: tuple[np.ndarray, ...], **options) -> VoxelMap:
    voxel_map = VoxelMap(SIZE, MEMORY, **options)
    for i, window in enumerate(windows):
        voxel_map.integrate(*window, np.zeros(3), i * SECOND, i)
    return voxel_map


def content(voxel_map: VoxelMap) -> tuple[np.ndarray, np.ndarray]:
    """Keys ascending, and voxels in that order."""
    ids, voxels = voxel_map.voxels()
    keys = voxel_map.keys(ids)
    order = np.argsort(keys)
    return keys[order], voxels[order]


def straightforward(points, colours, confidence) -> dict[tuple, tuple]:
    """Cell -> (count, mean confidence, mean position, mean colour), point by point."""
    cells: dict[tuple, list] = {}
    for point, colour, weight in zip(points.astype(float), colours, confidence, strict=True):
        cell = tuple(np.floor(point / SIZE).astype(int))
        cells.setdefault(cell, []).append((weight, point, colour))
    means = {}
    for cell, rows in cells.items():
        weights = np.array([row[0] for row in rows])
        position = np.average([row[1] for row in rows], axis=0, weights=weights)
        colour = np.average([row[2] for row in rows], axis=0, weights=weights)
        means[cell] = (len(rows), weights.mean(), position, colour)
    return means


def test_voxels_are_the_weighted_means_of_their_points():
    rng = np.random.default_rng(0)
    first, second = cloud(rng, 3000), cloud(rng, 2000)
    want = straightforward(*(np.concatenate(pair) for pair in zip(first, second, strict=True)))
    voxel_map = filled(first, second)
    _, voxels = voxel_map.voxels()
    assert len(voxels) == len(voxel_map) == len(want)
    for voxel in voxels:
        count, confidence, position, colour = want[tuple(np.floor(voxel["position"] / SIZE))]
        assert voxel["count"] == count
        assert voxel["confidence"] == pytest.approx(confidence, rel=1e-5)
        np.testing.assert_allclose(voxel["position"], position, atol=1e-6)
        np.testing.assert_allclose(voxel["colour"] / 256, colour, atol=0.02)


def test_the_same_points_again_change_counts_but_not_places():
    window = cloud(np.random.default_rng(1), 4000)
    once, twice = content(filled(window)), content(filled(window, window))
    np.testing.assert_array_equal(once[0], twice[0])
    np.testing.assert_allclose(once[1]["position"], twice[1]["position"], atol=1e-6)
    np.testing.assert_allclose(once[1]["colour"], twice[1]["colour"], atol=1)
    np.testing.assert_array_equal(2 * once[1]["count"], twice[1]["count"])
    assert set(twice[1]["window"]) == {1} and set(twice[1]["stamp_ns"]) == {SECOND}


def test_the_order_of_windows_does_not_matter():
    rng = np.random.default_rng(2)
    windows = [cloud(rng, 1500, 1.0) for _ in range(5)]
    (keys, voxels), (other_keys, other) = (
        content(filled(*windows)),
        content(filled(*windows[::-1])),
    )
    np.testing.assert_array_equal(keys, other_keys)
    np.testing.assert_allclose(voxels["position"], other["position"], atol=1e-6)
    np.testing.assert_allclose(voxels["confidence"], other["confidence"], atol=1e-6)
    np.testing.assert_allclose(voxels["colour"].astype(int), other["colour"].astype(int), atol=4)


def test_counts_end_and_then_the_mean_follows():
    size = 5 * MAX_COUNT
    left = np.full((size, 3), 0.01, np.float32)
    right = np.full((size, 3), 0.09, np.float32)
    rest = (np.zeros((size, 3), np.uint8), np.ones(size, np.float32))
    voxel_map = filled((left, *rest), (right, *rest))
    (voxel,) = voxel_map.voxels()[1]
    assert voxel["count"] == MAX_COUNT
    # 5000 points at the right against the 1000 that are still believed at the left.
    np.testing.assert_allclose(voxel["position"], 0.01 + 0.08 * 5 / 6, atol=1e-6)


def test_bad_points_are_counted_and_unknown_confidence_gives_way():
    points = np.array([[0, 0, 0], [np.nan, 0, 0], [0, np.inf, 0], [1e9, 0, 0]], np.float32)
    voxel_map = filled((points, np.zeros((4, 3), np.uint8), np.full(4, np.nan, np.float32)))
    assert len(voxel_map) == 1
    assert voxel_map.counts.out_of_range == 3 and voxel_map.counts.integrated == 1
    near = (np.full((1, 3), 0.08, np.float32), np.zeros((1, 3), np.uint8), np.ones(1, np.float32))
    voxel_map.integrate(*near, np.zeros(3), SECOND, 1)
    assert voxel_map.voxels()[1]["position"][0, 0] > 0.07


def test_inputs_that_do_not_belong_together_are_refused():
    points, colours, confidence = cloud(np.random.default_rng(0), 10)
    voxel_map = VoxelMap(SIZE, MEMORY)
    with pytest.raises(ValueError, match="9 confidences"):
        voxel_map.integrate(points, colours, confidence[:9], np.zeros(3), 0, 0)
    with pytest.raises(ValueError, match="voxel size is 0"):
        VoxelMap(0.0, MEMORY)
    with pytest.raises(ValueError, match="voxel memory is 1000 bytes"):
        VoxelMap(SIZE, 1000)


# --- change sets


def replayed(mirror: dict[int, np.void], change: ChangeSet) -> None:
    """Apply a change set to a plain dictionary, as a receiver would."""
    if change.start_over:
        mirror.clear()
    for voxel in change.removed.tolist():
        mirror.pop(voxel, None)
    mirror.update(zip(change.ids.tolist(), change.voxels, strict=True))


def assert_same(mirror: dict[int, np.void], voxel_map: VoxelMap) -> None:
    ids, voxels = voxel_map.voxels()
    assert mirror.keys() == set(ids.tolist())
    for voxel, record in zip(ids.tolist(), voxels, strict=True):
        assert mirror[voxel] == record


def test_change_sets_replayed_from_revision_0_are_the_map():
    """Through integration, removal, eviction, reset and corrections, at uneven intervals."""
    rng = np.random.default_rng(3)
    voxel_map = VoxelMap(SIZE, MEMORY // 10, replaced_per_update=300)
    mirrors = {every: ({}, PointMirror()) for every in (1, 3, 7)}
    revisions = dict.fromkeys(mirrors, 0)
    for step in range(42):
        points, colours, confidence = cloud(rng, 800)
        points[:, 0] += step * 0.3
        voxel_map.integrate(points, colours, confidence, points.mean(0), step * SECOND, step)
        if step % 5 == 2:
            voxel_map.remove(rng.choice(voxel_map.voxels()[0], 200, replace=False))
        if step in (11, 15):
            turn = Sim3(1.0, np.eye(3), np.array([0.0, 0.4, 0.1]))
            voxel_map.correct({window: turn for window in range(step - 6, step)})
        if step == 30:
            voxel_map.reset()
        for every, (mirror, points_mirror) in mirrors.items():
            if step % every == 0 or step == 41:
                change = voxel_map.changes(revisions[every])
                revisions[every] = change.revision
                replayed(mirror, change)
                points_mirror.apply(change)
    assert voxel_map.counts.evicted > 0 and voxel_map.counts.replaced > 0
    for mirror, points_mirror in mirrors.values():
        assert_same(mirror, voxel_map)
        ids, voxels = voxel_map.voxels()
        want = np.sort(points_of(voxels), order=("x", "y", "z"))
        np.testing.assert_array_equal(np.sort(points_mirror.dense(), order=("x", "y", "z")), want)
    whole: dict[int, np.void] = {}
    replayed(whole, voxel_map.changes(0))
    assert_same(whole, voxel_map)


def test_a_change_set_holds_only_what_changed():
    rng = np.random.default_rng(4)
    far, near = cloud(rng, 500), cloud(rng, 300)
    far[0][:, 0] += 50
    voxel_map = filled(far)
    before = voxel_map.revision
    assert voxel_map.changes(before).nbytes == 0
    voxel_map.integrate(*near, np.zeros(3), SECOND, 1)
    change = voxel_map.changes(before)
    assert change.added.all() and (change.voxels["position"][:, 0] < 25).all()
    before = voxel_map.revision
    voxel_map.integrate(*near, np.zeros(3), SECOND, 1)
    again = voxel_map.changes(before)
    assert len(again.ids) == len(change.ids) and not again.added.any() and not len(again.removed)


def test_a_mirror_refuses_a_gap():
    voxel_map = filled(*(cloud(np.random.default_rng(0), 10) for _ in range(3)))
    with pytest.raises(ValueError, match="ask for changes since 0"):
        PointMirror().apply(voxel_map.changes(2))


def test_mirror_points_match_the_packed_layout():
    voxel_map = filled((np.float32([[1, 2, 3]]), np.uint8([[10, 20, 30]]), np.float32([0.5])))
    mirror = PointMirror()
    mirror.apply(voxel_map.changes(0))
    assert POINT.itemsize == 20
    assert mirror.points()[0].tolist() == (1.0, 2.0, 3.0, 10 << 16 | 20 << 8 | 30, 0.5)


# --- memory


def test_memory_is_bounded_and_far_and_old_blocks_go_first():
    voxel_map = VoxelMap(SIZE, MEMORY)
    rng = np.random.default_rng(5)
    for step in range(60):
        points, colours, confidence = cloud(rng, 2000)
        points[:, 0] += step * 2.0
        origin = np.array([step * 2.0, 0, 0])
        voxel_map.integrate(points, colours, confidence, origin, step * SECOND, step)
        assert voxel_map.nbytes <= MEMORY and len(voxel_map) <= voxel_map.max_voxels
    counts = voxel_map.counts
    assert counts.evicted > 0 and counts.refused == 0
    _, voxels = voxel_map.voxels()
    assert counts.evicted < counts.integrated - len(voxel_map) + 1
    # The camera went along x: what is left is one stretch that ends where it is now.
    left = np.unique(np.floor(voxels["position"][:, 0] / (BLOCK_EDGE * SIZE)))
    assert (np.diff(left) == 1).all() and left[-1] == np.floor(119 / (BLOCK_EDGE * SIZE))
    assert set(voxels["window"]) == set(range(min(voxels["window"]), 60))


def test_old_goes_before_new_at_equal_distance():
    voxel_map = VoxelMap(SIZE, MEMORY)
    rng = np.random.default_rng(6)
    came = []
    while voxel_map.counts.evicted < 4000:
        points, colours, confidence = cloud(rng, 2000)
        angle = len(came) * 0.1
        points[:, :2] += 60 * np.array([np.cos(angle), np.sin(angle)], np.float32)
        step = len(came)
        voxel_map.integrate(points, colours, confidence, np.zeros(3), step * SECOND, step)
        came.append(len(np.unique(np.floor(points.astype(float) / SIZE), axis=0)))
    left = np.bincount(voxel_map.voxels()[1]["window"], minlength=len(came))
    assert left[0] == 0 and left[1] < came[1]
    np.testing.assert_array_equal(left[6:], came[6:])


def test_far_goes_before_near_at_equal_age():
    voxel_map = VoxelMap(SIZE, MEMORY)
    rng = np.random.default_rng(6)
    came = []
    while voxel_map.counts.evicted < 4000:
        points, colours, confidence = cloud(rng, 2000)
        points[:, 0] += 100 - 3 * len(came)
        voxel_map.integrate(points, colours, confidence, np.zeros(3), 0, len(came))
        came.append(len(np.unique(np.floor(points.astype(float) / SIZE), axis=0)))
    left = np.bincount(voxel_map.voxels()[1]["window"], minlength=len(came))
    assert left[0] == 0 and left[1] < came[1]
    np.testing.assert_array_equal(left[6:], came[6:])


def test_a_window_larger_than_the_map_is_cut_and_counted():
    voxel_map = VoxelMap(SIZE, MEMORY)
    voxel_map.integrate(*cloud(np.random.default_rng(7), 80_000, 8.0), np.zeros(3), 0, 0)
    assert voxel_map.nbytes <= MEMORY and len(voxel_map) > 0
    assert voxel_map.counts.refused > 0


# --- free space

CAMERA = Intrinsics(60.0, 60.0, 39.5, 29.5, 80, 60)


def seen_wall(distance: float, object_at: float | None, stamp_ns: int) -> tuple:
    """A wall across x = distance, and a panel 1 wide before it: (points, DepthView)."""
    v, u = np.mgrid[0:60, 0:80]
    rays = np.stack([(u - 39.5) / 60, (v - 29.5) / 60, np.ones(u.shape)], axis=-1)
    depth = np.full(u.shape, distance)
    if object_at is not None:
        depth[(np.abs(rays[..., :2]) * object_at < 0.5).all(-1)] = object_at
    pose = np.eye(4)
    pose[:3, :3] = ZUP_FROM_OPTICAL
    points = (rays * depth[..., None]) @ ZUP_FROM_OPTICAL.T
    confidence = np.ones(u.shape, np.float32)
    view = DepthView(depth.astype(np.float32), confidence, pose, CAMERA, stamp_ns)
    return points.astype(np.float32), view


def show(voxel_map: VoxelMap, object_at: float | None, step: int) -> None:
    points, view = seen_wall(4.0, object_at, step * SECOND)
    grey = np.full(points.shape, 128, np.uint8)
    voxel_map.integrate(points, grey, view.confidence, view.origin, view.stamp_ns, step)
    voxel_map.carve(view)


def test_what_moved_disappears_and_what_stayed_stays():
    voxel_map = VoxelMap(SIZE, MEMORY)
    for step in range(5):
        show(voxel_map, 2.0, step)
    assert ((voxel_map.voxels()[1]["position"][:, 0]) < 3).sum() > 80
    for step in range(5, 15):
        show(voxel_map, None, step)
    _, voxels = voxel_map.voxels()
    assert (voxels["position"][:, 0] > 3.9).all()
    assert voxel_map.counts.carved > 80
    wall = np.unique(np.floor(voxels["position"][:, 1:] / SIZE), axis=0)
    assert len(wall) > 0.95 * (4.0 * 80 / 60 / SIZE) * (4.0 * 60 / 60 / SIZE)


def test_one_view_halves_a_count():
    voxel_map = VoxelMap(SIZE, MEMORY)
    point = (np.float32([[2, 0.01, 0.01]] * 12), np.zeros((12, 3), np.uint8))
    voxel_map.integrate(*point, np.ones(12, np.float32), np.zeros(3), 0, 0)
    counts = []
    for step in range(1, 5):
        voxel_map.carve(seen_wall(4.0, None, step * SECOND)[1])
        counts.append(voxel_map.voxels()[1]["count"].tolist())
    assert counts == [[6], [3], [1], []]


@pytest.mark.parametrize(
    "why", ["older", "unsure", "unknown", "edge", "behind", "outside", "close"]
)
def test_free_space_needs_proof(why):
    voxel_map = VoxelMap(SIZE, MEMORY)
    place = {"behind": [5, 0, 0], "outside": [2, 3, 0], "close": [3.75, 0, 0]}.get(why, [2, 0, 0])
    one = (np.float32([place]), np.zeros((1, 3), np.uint8), np.ones(1, np.float32))
    voxel_map.integrate(*one, np.zeros(3), SECOND, 0)
    _, view = seen_wall(4.0, None, SECOND if why == "older" else 2 * SECOND)
    depth, confidence = view.depth.copy(), view.confidence.copy()
    if why == "unsure":
        confidence[:] = 0.2
    if why == "unknown":
        depth[30, 40] = np.nan
    if why == "edge":
        depth[31, 41] = 1.9
    voxel_map.carve(DepthView(depth, confidence, view.map_from_camera, CAMERA, view.stamp_ns))
    assert voxel_map.counts.carved == 0 and len(voxel_map) == 1


def test_a_close_voxel_goes_though_the_middle_of_its_block_is_hidden():
    voxel_map = VoxelMap(SIZE, MEMORY)
    one = (np.float32([[1, -0.05, -0.05]]), np.zeros((1, 3), np.uint8), np.ones(1, np.float32))
    voxel_map.integrate(*one, np.zeros(3), 0, 0)
    _, view = seen_wall(4.0, None, SECOND)
    depth = view.depth.copy()
    depth[:, 47:] = 0.5
    voxel_map.carve(DepthView(depth, view.confidence, view.map_from_camera, CAMERA, SECOND))
    assert len(voxel_map) == 0


# --- corrections


def test_corrected_windows_move_and_others_stay():
    rng = np.random.default_rng(8)
    first, second = cloud(rng, 2000), cloud(rng, 2000)
    first[0][:, 0] += 10
    angle = 0.3
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    motion = Sim3(1.1, turn, np.array([1.0, -2.0, 0.5]))
    voxel_map = filled(first, second)
    _, before = voxel_map.voxels()
    voxel_map.correct({0: motion})
    assert not voxel_map.settled
    voxel_map.settle()
    assert voxel_map.settled
    _, after = voxel_map.voxels()
    want = motion.apply(before["position"][before["window"] == 0].astype(np.float64))
    actual = after["position"][after["window"] == 0]
    assert after["count"].sum() == before["count"].sum() == 4000
    # Where no two fell into one cell they are exactly where the motion puts them.
    cells = np.floor(want / SIZE)
    _, index, sizes = np.unique(cells, axis=0, return_index=True, return_counts=True)
    alone = want[index[sizes == 1]]
    distance = np.abs(alone[:, None] - actual[None]).max(-1).min(1)
    assert (distance < 1e-5).mean() > 0.99 and len(alone) > 500
    stayed = np.sort(before[before["window"] == 1], order="cell")["position"]
    np.testing.assert_array_equal(
        np.sort(after[after["window"] == 1], order="cell")["position"], stayed
    )


def test_corrections_with_every_window_do_not_pile_up():
    """Each window moves the ones before and writes into their cells, more than the budget."""
    rng = np.random.default_rng(3)
    windows = [cloud(rng, 1500, 1.0) for _ in range(60)]
    voxel_map = VoxelMap(SIZE, MEMORY, replaced_per_update=300)
    waiting = []
    for i, window in enumerate(windows):
        voxel_map.integrate(*window, np.zeros(3), i * SECOND, i)
        nudge = Sim3(1.0, np.eye(3), rng.normal(0, 0.1 * SIZE, 3))
        voxel_map.correct({i - k: nudge for k in range(4)})
        waiting.append(voxel_map.pending_corrections)
    assert max(waiting[30:]) <= max(waiting[:30]) + 3
    voxel_map.settle()
    assert voxel_map.settled and voxel_map.voxels()[1]["count"].sum() > 0


def test_corrections_are_applied_little_by_little_and_add_up():
    rng = np.random.default_rng(9)
    windows = [cloud(rng, 1500) for _ in range(4)]
    for i, (points, _, _) in enumerate(windows):
        points[:, 0] += 6 * i
    step = Sim3(1.0, np.eye(3), np.array([0.0, 3 * SIZE, 0.0]))
    at_once, bit_by_bit = filled(*windows), filled(*windows, replaced_per_update=200)
    empty = (np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8), np.empty(0, np.float32))
    moves = [{0: step, 1: step}, {0: step, 2: step}]
    for move in moves:
        at_once.correct(move)
        at_once.settle()
    bit_by_bit.correct(moves[0])
    bit_by_bit.integrate(*empty, np.zeros(3), 9 * SECOND, 9)
    assert not bit_by_bit.settled
    bit_by_bit.correct(moves[1])
    for _ in range(200):
        bit_by_bit.integrate(*empty, np.zeros(3), 9 * SECOND, 9)
    assert bit_by_bit.settled
    (keys, want), (other_keys, actual) = content(at_once), content(bit_by_bit)
    np.testing.assert_array_equal(keys, other_keys)
    np.testing.assert_allclose(want["position"], actual["position"], atol=1e-5)
    np.testing.assert_array_equal(want["count"], actual["count"])
    middle = actual["position"][:, 1]
    for window, shift in enumerate((0.6, 0.3, 0.3, 0.0)):
        assert middle[actual["window"] == window].min() == pytest.approx(-1 + shift, abs=0.02)


def test_a_reader_beside_the_writer_sees_whole_maps():
    voxel_map = VoxelMap(SIZE, MEMORY)
    mirror, problems, done = PointMirror(), [], threading.Event()

    def read() -> None:
        while not done.is_set():
            change = voxel_map.changes(mirror.revision)
            mirror.apply(change)
            if (change.voxels["count"] == 0).any() or len(set(change.ids)) < len(change.ids):
                problems.append(change.revision)

    reader = threading.Thread(target=read)
    reader.start()
    rng = np.random.default_rng(10)
    for step in range(30):
        points, colours, confidence = cloud(rng, 1000)
        points[:, 0] += step
        voxel_map.integrate(points, colours, confidence, points.mean(0), step * SECOND, step)
    done.set()
    reader.join()
    mirror.apply(voxel_map.changes(mirror.revision))
    assert not problems and len(mirror.dense()) == len(voxel_map)
