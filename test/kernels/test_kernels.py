# SPDX-License-Identifier: Apache-2.0
"""Every kernel gives what its numpy oracle gives, and refuses arrays that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
from g2vlm_tests import kernel_oracles as oracles
from g2vlm_tests.accounts import store_bytes
from g2vlm_tests.noisy_room import window
from PIL import Image

from g2vlm_ros.kernels.agreement import (
    covisibility,
    fusion_factors,
    multi_view_confidence,
    pick_points,
    scale_points,
)
from g2vlm_ros.kernels.cells import FIRST_CELLS, CellSums, cells_of_voxels, keys_of_points
from g2vlm_ros.kernels.free_space import FreeSpace
from g2vlm_ros.kernels.packing import count_points, pack_points, valid_points
from g2vlm_ros.kernels.pinholes import pinholes_of_points
from g2vlm_ros.kernels.records import CELL, VOXEL
from g2vlm_ros.kernels.registration import fit_view
from g2vlm_ros.kernels.resize import resize_lanczos
from g2vlm_ros.kernels.surfaces import structure_up, surfaces
from g2vlm_ros.kernels.voxels import (
    close_voxels,
    correct_voxels,
    find_cells,
    fold_cells,
    open_voxels,
    pack_voxels,
    slots_in_blocks,
)

SIZE = 0.05
AFFINE_SHIFT = np.array([0.3, -0.2, 0.1])


def affines(view):
    """float32 (N, 3, 4): poses with a scale and a shift."""
    affine = view.poses[:, :3].astype(np.float64).copy()
    affine[..., :3] *= 1.3
    affine[..., 3] += AFFINE_SHIFT
    return affine.astype(np.float32)


def spoiled(points):
    """Point maps with what networks give at worst."""
    points = points.copy()
    points[0, 3, 5] = np.nan
    points[1, 10, 20, 2] = -1.0
    points[2, 0, 0] = np.inf
    points[3, -1, -1, 2] = 0.0
    return points


@pytest.mark.parametrize("edge_step", [0.0, 0.05])
def test_valid_points(edge_step):
    points = spoiled(window().points)
    with np.errstate(invalid="ignore"):
        expected = oracles.valid_points(points, edge_step)
    valid = valid_points(points, edge_step)
    assert 0.5 < expected.mean() < 1.0
    np.testing.assert_array_equal(valid, expected)


@pytest.mark.parametrize("organised", [False, True])
@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("least", [0.0, 0.4])
def test_pack_points(organised, stride, least):
    view, chosen = window(), [2, 0]
    maps = (view.points, view.colours, view.confidence, valid_points(view.points, 0.05))
    expected = oracles.pack_points(*maps, chosen, affines(view)[chosen], stride, least, organised)
    out = np.zeros(20 * len(expected) + 40, np.uint8)
    size = pack_points(
        *maps, chosen, affines(view)[chosen], out,
        stride=stride, min_confidence=least, organised=organised,
    )  # fmt: skip
    assert size == len(expected)
    if not organised:
        assert count_points(view.confidence, maps[3], chosen, stride, least) == size
    packed = out[: 20 * size].view(np.float32).reshape(-1, 5)
    np.testing.assert_allclose(packed[:, :3], expected[:, :3], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(packed[:, 3:].view(np.uint32), expected[:, 3:].view(np.uint32))
    assert not out[20 * size :].any()


def test_packing_stops_where_its_buffer_ends():
    view = window()
    valid = np.ones(view.points.shape[:3], bool)
    out = np.full(20 * 7 + 13, 170, np.uint8)
    maps = (view.points, view.colours, view.confidence, valid)
    assert pack_points(*maps, [0], affines(view)[:1], out) == 7
    assert (out[20 * 7 :] == 170).all()


def summed(cells):
    """{key: the sums of a CELL} as the oracle has them."""
    rows = np.column_stack([cells["weight"], cells["position"], cells["colour"], cells["count"]])
    return dict(zip(cells["key"].tolist(), rows, strict=True))


def same_sums(actual, expected, atol):
    assert actual.keys() == expected.keys()
    rows = (np.array([sums[key] for key in expected]) for sums in (actual, expected))
    np.testing.assert_allclose(*rows, rtol=1e-6, atol=atol)


def test_cells_of_every_pixel():
    view = window()
    valid = valid_points(view.points, 0.05)
    cells, added, outside = CellSums().of_views(
        view.points, view.colours, view.confidence, valid, [0, 3], affines(view)[[0, 3]],
        np.zeros(2), voxel_size=SIZE, stamp_ns=7, window=3,
    )  # fmt: skip
    assert (cells["stamp_ns"] == 7).all() and (cells["window"] == 3).all() and outside == 0
    places, colours, weights = [], [], []
    for i in (0, 3):
        # Sums in the same float32 arithmetic, so that no point changes its cell.
        a, p = affines(view)[i], view.points[i][valid[i]]
        columns = [row[0] * p[:, 0] + row[1] * p[:, 1] + row[2] * p[:, 2] + row[3] for row in a]
        places.append(np.stack(columns, 1).astype(np.float64))
        colours.append(256.0 * view.colours[i][valid[i]])
        weights.append(np.clip(np.nan_to_num(view.confidence[i][valid[i]], nan=0.1), 1e-3, 1.0))
    places, colours, weights = map(np.concatenate, (places, colours, weights))
    expected = oracles.cell_sums(
        oracles.keys_of_points(places, SIZE), weights.astype(np.float64), places, colours
    )
    assert added == len(places) and len(expected) > 1000
    same_sums(summed(cells), expected, 1e-4)


def test_cells_take_about_one_pixel_per_voxel_and_lose_few_cells():
    view = window(448, 336, noise=0.0)
    arrays = view.points, view.colours, view.confidence, np.ones(view.points.shape[:3], bool)
    every, dense, _ = CellSums().of_views(
        *arrays, [0], affines(view)[:1], np.zeros(1), voxel_size=SIZE, stamp_ns=1, window=1
    )
    every = every.copy()
    per_depth = np.array([SIZE * view.pinholes[0, 0] / 1.3], np.float64)
    thinned, sparse, _ = CellSums().of_views(
        *arrays, [0], affines(view)[:1], per_depth, voxel_size=SIZE, stamp_ns=1, window=1
    )
    assert sparse < dense / 4
    well_seen = every["key"][every["count"] >= np.median(every["count"])]
    assert np.isin(well_seen, thinned["key"]).mean() > 0.65
    thinned, _, _ = CellSums().of_views(
        *arrays, [0], affines(view)[:1], per_depth / 2, voxel_size=SIZE, stamp_ns=1, window=1
    )
    assert np.isin(well_seen, thinned["key"]).mean() > 0.9


def test_cells_leave_out_points_beyond_the_range_and_of_low_confidence():
    points = np.ones((1, 1, 4, 3), np.float32)
    points[0, 0, 1] = 1e9
    points[0, 0, 2] = np.nan
    confidence = np.array([[[0.9, 0.9, 0.9, 0.2]]], np.float32)
    cells, added, outside = CellSums().of_views(
        points, np.zeros(points.shape, np.uint8), confidence, np.ones((1, 1, 4), bool), [0],
        np.eye(3, 4, dtype=np.float32)[None], np.zeros(1), voxel_size=SIZE, stamp_ns=1, window=1,
        min_confidence=0.5,
    )  # fmt: skip
    assert (added, outside, len(cells)) == (1, 2, 1)


def test_cell_memory_goes_with_the_window():
    sums, rng = CellSums(), np.random.default_rng(0)
    points = rng.uniform(-50, 50, (1, 1, 200_000, 3)).astype(np.float32)
    ones = np.ones(points.shape[:3], np.float32)

    def cells_of(voxel_size):
        cells, _, _ = sums.of_views(
            points, np.zeros(points.shape, np.uint8), ones, ones > 0, [0],
            np.eye(3, 4, dtype=np.float32)[None], np.zeros(1), voxel_size=voxel_size, stamp_ns=1,
            window=1,
        )  # fmt: skip
        keys = oracles.keys_of_points(points[0, 0].astype(np.float64), voxel_size)
        np.testing.assert_array_equal(np.sort(cells["key"]), np.unique(keys))
        return len(cells)

    def held():
        return store_bytes({"sums": sums})["sums._room"]

    assert cells_of(10.0) < FIRST_CELLS < cells_of(SIZE)
    large = held()
    for _ in range(2):  # the second one knows what the first one needed
        cells_of(10.0)
    assert held() < large / 4


def test_keys_at_the_border_of_the_map():
    edge = SIZE * 2.0**20
    axis = np.array([-edge, np.nextafter(-edge + SIZE, -np.inf), -edge + SIZE, -1e-12, 0.0,
                     edge - SIZE, np.nextafter(edge, 0), edge, np.nan, np.inf])  # fmt: skip
    points = np.stack([axis, np.zeros_like(axis), np.zeros_like(axis)], 1)
    for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0)):
        turned = points[:, order]
        with np.errstate(invalid="ignore"):
            expected = oracles.keys_of_points(turned, SIZE)
        np.testing.assert_array_equal(keys_of_points(turned, SIZE), expected)
        assert (expected < 0).sum() == 5


def voxels_of(rng, count):
    voxels = np.zeros(count, VOXEL)
    voxels["position"] = rng.uniform(-1, 1, (count, 3))
    voxels["confidence"] = rng.uniform(0.1, 1, count)
    voxels["stamp_ns"], voxels["window"] = rng.integers(1, 99, (2, count))
    voxels["colour"] = rng.integers(0, 65281, (count, 3))
    voxels["count"] = rng.integers(1, 1001, count)
    return voxels


def test_cells_of_voxels_that_moved():
    voxels, rng = voxels_of(np.random.default_rng(1), 5000), np.random.default_rng(2)
    places = voxels["position"].astype(np.float64) + 0.013
    places[:3] = [[np.nan, 0, 0], [1e9, 0, 0], [0, 0, -1e9]]
    cells, kept = cells_of_voxels(places, voxels, 0.2)
    assert kept.sum() == 4997 and not kept[:3].any()
    weights = voxels["count"] * voxels["confidence"].astype(np.float64)
    keys = oracles.keys_of_points(places[kept], 0.2)
    expected = oracles.cell_sums(keys, weights[kept], places[kept], voxels["colour"][kept] * 1.0)
    counts = np.bincount(np.unique(keys, return_inverse=True)[1], voxels["count"][kept])
    for row, count in zip(expected.values(), counts, strict=True):
        row[-1] = count
    same_sums(summed(cells), expected, 1e-6)
    some = rng.choice(len(cells), 50, replace=False)
    for cell in cells[some]:
        there = voxels[kept][keys == cell["key"]]
        newest = there["stamp_ns"] == there["stamp_ns"].max()
        assert cell["stamp_ns"] == there["stamp_ns"].max()
        assert cell["window"] in there["window"][newest]


def blocks_of(rows):
    return {
        "stamp_ns": np.zeros(rows, np.int64),
        "first_window": np.full(rows, 1 << 30, np.int32),
        "last_window": np.zeros(rows, np.int32),
        "revision": np.zeros(rows, np.int32),
    }


def test_find_and_fold():
    rng = np.random.default_rng(3)
    block_keys = np.unique(rng.integers(0, 1 << 40, 300))
    order = rng.permutation(len(block_keys)).astype(np.int32)
    index = np.zeros((len(order), 512), np.int32)
    voxels = voxels_of(rng, 4000)
    voxels["count"][::7] = 0
    places = rng.choice(index.size, 4000, replace=False)
    index.reshape(-1)[places] = 1 + np.arange(4000)
    voxels["cell"] = places
    key_of_row = np.empty(len(order), np.int64)
    key_of_row[order] = block_keys
    known = key_of_row[places >> 9] << 9 | (places & 511)
    cells = np.zeros(3000, CELL)
    cells["key"][:2000] = known[rng.choice(4000, 2000, replace=False)]
    cells["key"][2000:] = rng.integers(1 << 50, 1 << 60, 1000)
    cells["weight"] = rng.uniform(0.1, 30, 3000)
    cells["position"] = rng.uniform(-1, 1, (3000, 3)) * cells["weight"][:, None]
    cells["colour"] = rng.uniform(0, 65000, (3000, 3)) * cells["weight"][:, None]
    cells["count"], cells["window"] = rng.integers(1, 900, 3000), rng.integers(1, 99, 3000)
    cells["stamp_ns"] = rng.integers(1, 99, 3000)
    cells["key"][2990:] = cells["key"][2980:2990] ^ 1  # neighbours: two cells of one block
    slots, rows, new_blocks, absent = find_cells(cells, block_keys, order, index)
    assert absent == 1000 and (slots[2000:] == -1).all() and (rows[2000:] < 0).all()
    np.testing.assert_array_equal(new_blocks[-1 - rows[2000:]], cells["key"][2000:] >> 9)
    assert len(set(new_blocks)) == len(new_blocks) == len(set(cells["key"][2000:] >> 9))
    np.testing.assert_array_equal(known[slots[:2000]], cells["key"][:2000])
    blocks, cells, slots = blocks_of(len(order)), cells[:2000], slots[:2000]
    expected = oracles.fold(voxels, slots, cells, 42)
    fold_cells(cells, slots, 42, voxels, blocks)
    for name in ("stamp_ns", "window", "revision", "born", "cell", "count"):
        np.testing.assert_array_equal(voxels[name], expected[name])
    for name in ("position", "confidence"):
        np.testing.assert_allclose(voxels[name], expected[name], rtol=1e-5, atol=1e-6)
    assert np.abs(voxels["colour"].astype(int) - expected["colour"].astype(int)).max() <= 1
    touched = rows[:2000]
    assert (blocks["revision"][touched] == 42).all()
    newest = np.zeros(len(order), np.int64)
    np.maximum.at(newest, touched, expected["stamp_ns"][slots])
    np.testing.assert_array_equal(blocks["stamp_ns"], newest)


def test_voxels_open_and_close():
    rng = np.random.default_rng(10)
    index, voxels = np.zeros((20, 512), np.int32), np.zeros(900, VOXEL)
    counts = np.zeros(20, np.int32)
    voxels["count"] = 9
    places = rng.choice(19 * 512, 600, replace=False)
    rows, keys = places >> 9, (1 << 40) | places & 511
    slots = rng.permutation(900)[:600].astype(np.int32)
    open_voxels(keys, rows, slots, index, voxels, counts)
    np.testing.assert_array_equal(index.reshape(-1)[places], slots + 1)
    np.testing.assert_array_equal(counts, np.bincount(rows, minlength=20))
    assert (voxels["cell"][slots] == places).all() and not voxels["count"][slots].any()
    voxels["revision"][slots] = np.arange(600)
    newer = slots_in_blocks(np.arange(5), index, voxels, 600, since=300)
    assert set(newer) == set(slots[(rows < 5) & (np.arange(600) > 300)].tolist())
    in_three = np.flatnonzero(rows <= 2)
    emptied = close_voxels(slots[in_three].astype(np.int64), index, voxels, counts)
    assert sorted(emptied) == [0, 1, 2] and not index[:3].any()
    assert len(slots_in_blocks(np.arange(20), index, voxels, 600)) == 600 - len(in_three)
    with pytest.raises(ValueError, match="rows"):
        open_voxels(keys[:1], np.array([20]), slots[:1], index, voxels, counts)


def test_corrections_move_older_voxels_of_their_windows():
    rng = np.random.default_rng(11)
    voxels = voxels_of(rng, 2000)
    voxels["window"], voxels["revision"] = rng.integers(0, 30, (2, 2000))
    voxels["count"][::9] = 0
    windows = np.unique(rng.integers(0, 30, 12)).astype(np.int32)
    linear, offset = rng.normal(size=(len(windows), 3, 3)), rng.normal(size=(len(windows), 3))
    positions = voxels["position"].astype(np.float64)
    expected = positions.copy()
    due = np.isin(voxels["window"], windows) & (voxels["revision"] < 17) & (voxels["count"] > 0)
    for i in np.flatnonzero(due):
        which = np.searchsorted(windows, voxels["window"][i])
        expected[i] = linear[which] @ expected[i] + offset[which]
    moved = np.zeros(2000, bool)
    correct_voxels(voxels, windows, linear, offset, 17, positions, moved)
    np.testing.assert_array_equal(moved, due)
    np.testing.assert_allclose(positions, expected, atol=1e-12)


@pytest.mark.parametrize("with_ids", [False, True])
def test_packed_voxels(with_ids):
    voxels = voxels_of(np.random.default_rng(12), 500)
    voxels["count"][::3] = 0
    fields = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<u4"), ("confidence", "<f4")]
    out = np.zeros(500, fields + [("id", "<i4")] * with_ids)
    ids = np.arange(1000, 1500, dtype=np.int32)
    size = pack_voxels(voxels, ids if with_ids else None, out)
    kept = voxels[voxels["count"] > 0]
    assert size == len(kept)
    for axis, name in enumerate("xyz"):
        np.testing.assert_array_equal(out[name][:size], kept["position"][:, axis])
    red, green, blue = (kept["colour"].astype(np.uint32).T + 128) >> 8
    np.testing.assert_array_equal(out["rgb"][:size], red << 16 | green << 8 | blue)
    np.testing.assert_array_equal(out["confidence"][:size], kept["confidence"])
    if with_ids:
        np.testing.assert_array_equal(out["id"][:size], ids[voxels["count"] > 0])
    with pytest.raises(ValueError, match="out"):
        pack_voxels(voxels, None, np.zeros(499, fields))


def test_free_space_finds_what_rays_passed():
    view, rng = window(), np.random.default_rng(4)
    pose, pinhole = view.poses[1].astype(np.float64), view.pinholes[1]
    space = FreeSpace(
        view.points[1, ..., 2], view.confidence[1], pose, pinhole,
        scale=1.3, min_confidence=0.05, tile=3,
    )  # fmt: skip
    depth = view.points[1, ..., 2] * np.float32(1.3)
    nearest = oracles.nearest_depth(depth, view.confidence[1], 0.05)
    assert space.reach == pytest.approx(depth[view.confidence[1] >= 0.05].max())
    voxels = voxels_of(rng, 9000)
    voxels["position"] = rng.uniform((-4, -3, -1), (4, 6, 3), (9000, 3))
    voxels["stamp_ns"] = rng.integers(0, 20, 9000)
    index = np.zeros((40, 512), np.int32)
    index.reshape(-1)[rng.choice(index.size, 9000, replace=False)] = 1 + np.arange(9000)
    actual = space.seen_through(np.arange(0, 40, 2), index, voxels, 9000, 0.1, 10)
    passed = oracles.seen_through(voxels["position"], nearest, pose, pinhole, 0.1)
    passed &= voxels["stamp_ns"] < 10
    expected = index[::2][index[::2] > 0] - 1
    expected = expected[passed[expected]]
    assert len(expected) > 50
    assert len(np.setxor1d(actual, expected)) <= 0.002 * len(expected)
    few = space.seen_through(np.arange(0, 40, 2), index, voxels, 5, 0.1, 10)
    np.testing.assert_array_equal(few, actual[:5])


def test_the_sieve_keeps_every_block_that_holds_something_seen_through():
    view, rng = window(), np.random.default_rng(6)
    pose, pinhole = view.poses[0].astype(np.float64), view.pinholes[0]
    sure = np.ones(view.points.shape[1:3], np.float32)
    space = FreeSpace(
        view.points[0, ..., 2], sure, pose, pinhole, scale=1.0, min_confidence=0.3, tile=3
    )
    nearest = oracles.nearest_depth(view.points[0, ..., 2], sure, 0.3)
    centres = rng.uniform((-5, -4, -2), (5, 7, 4), (3000, 3)).astype(np.float32)
    radius = 0.35
    blocks = {"centre": centres, "voxels": np.ones(3000, np.int32)}
    blocks["stale"] = np.zeros(3000, np.int32)
    blocks["voxels"][::10] = 0
    blocks["stale"][1::10] = 5
    rows = space.blocks(blocks, 3000, radius)
    assert not (rows % 10 <= 1).any() and 0 < len(rows) < 1500
    for _ in range(30):
        inside = rng.normal(size=(3000, 3))
        inside *= radius * rng.random((3000, 1)) / np.linalg.norm(inside, axis=1, keepdims=True)
        points = (centres + inside).astype(np.float32)
        passed = np.flatnonzero(oracles.seen_through(points, nearest, pose, pinhole, 0.1))
        passed = passed[passed % 10 > 1]
        assert np.isin(passed, rows).all()
    assert len(space.blocks(blocks, 1000, radius)) < len(rows)


def test_the_ground_under_rays_ends_at_walls():
    view = window()
    pose, sure = view.poses[0].astype(np.float64), np.ones(view.points.shape[1:3], np.float32)
    space = FreeSpace(
        view.points[0, ..., 2], sure, pose, view.pinholes[0], scale=1.0, min_confidence=0.3, tile=3
    )
    edges = space.ground((0.0, 0.0, 1.0, 0.0), 0.15, 1.5, 0.05, 64, 1)
    near, far = edges[..., :2]
    assert edges.shape == (2, 64, 3) and not edges[..., 2].any()
    reach = np.linalg.norm(far - pose[:2, 3], axis=1)
    assert (np.linalg.norm(near - pose[:2, 3], axis=1) <= reach + 1e-9).all()
    # No ray goes through the walls at x = -3, x = 3 and y = 4, nor through the box before them.
    assert (far[:, 0] > -3).all() and (far[:, 0] < 3).all() and (far[:, 1] < 4).all()
    box = (far[:, 0] > -0.4) & (far[:, 0] < 0.3)
    assert box.any() and (far[box, 1] < 1.05).all()
    assert space.ground((0.0, 0.0, 1.0, 50.0), 0.15, 1.5, 0.05, 64, 1) is None


def test_confidence():
    view = window()
    pinholes = view.pinholes.copy()
    pinholes[3] = 0
    arguments = view.points, view.j_from_i, pinholes, 4, 0.05, 0.1
    expected = oracles.multi_view_confidence(*arguments)
    actual = multi_view_confidence(*arguments)
    assert 0.2 < np.isfinite(expected).mean() < 1
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    off = np.abs(np.nan_to_num(actual - expected))
    # At the border between two pixels the rounding may choose the other one.
    assert np.median(off) < 1e-5 and (off > 1e-3).mean() < 2e-3


def test_fusion_factors():
    view = window()
    pinholes = view.pinholes.copy()
    pinholes[2] = 0
    arguments = view.points, view.j_from_i, pinholes, 0.1, 0.2
    expected, actual = oracles.fusion_factors(*arguments), fusion_factors(*arguments)
    off = np.abs(actual / expected - 1)
    assert expected.std() > 1e-3
    # OpenCV's remap reads at 32nds of a pixel.
    assert np.median(off) < 1e-4 and np.quantile(off, 0.99) < 2e-3 and off.max() < 0.03


def test_scaled_points_lie_on_their_rays():
    import cv2

    view, rng = window(448, 336), np.random.default_rng(7)
    factor = rng.uniform(0.8, 1.2, (4, 84, 112)).astype(np.float32)
    scaled = scale_points(view.points, factor)
    for i in range(4):
        large = cv2.resize(factor[i], (448, 336), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(scaled[i], view.points[i] * large[..., None], rtol=2e-5)


@pytest.mark.parametrize(
    "size, new_size",
    [((640, 480), (518, 392)), ((224, 168), (112, 84)), ((97, 131), (112, 154)),
     ((300, 900), (112, 112)), ((33, 1), (14, 14)), ((640, 360), (640, 364)), ((50, 60), (50, 60)),
     ((1920, 1080), (518, 294))],
)  # fmt: skip
def test_resize_is_pillows_byte_for_byte(size, new_size):
    rng = np.random.default_rng(8)
    image = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
    image[: size[1] // 2, : size[0] // 2] = rng.choice([0, 255])
    rows_lost, columns_lost = size[1] - new_size[1], size[0] - new_size[0]
    rows_first = rows_lost > max(0, 2 * columns_lost)
    between = (size[0], new_size[1]) if rows_first else (new_size[0], size[1])
    pillow = Image.fromarray(image).resize(between, Image.LANCZOS).resize(new_size, Image.LANCZOS)
    out = np.empty((new_size[1], new_size[0], 3), np.uint8)
    resize_lanczos(image, *new_size, out)
    np.testing.assert_array_equal(out, np.asarray(pillow))


def shared_view(outliers):
    """The points of one view in two windows that a known similarity joins."""
    view, rng = window(), np.random.default_rng(9)
    target = view.points[0, ::2, ::2].reshape(-1, 3).astype(np.float64)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    target = target @ turn.T + 0.5
    centre = np.full(3, 0.5)
    noisy = centre + (target - centre) * (1 + 0.01 * rng.standard_normal((len(target), 1)))
    noisy += 0.005 * rng.standard_normal(noisy.shape)
    noisy[: int(outliers * len(noisy))] *= 1.7
    other = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    other *= np.sign(np.linalg.det(other))
    source = (noisy - 0.2) @ other / 1.7
    ray = target - centre
    ranges = np.linalg.norm(ray, axis=1)
    weights = rng.uniform(0.1, 1, len(source))
    return source, target, weights, ranges, ray / ranges[:, None], centre


@pytest.mark.parametrize("outliers", [0.0, 0.2])
def test_fit_of_a_view(outliers):
    source, target, weights, ranges, directions, centre = shared_view(outliers)
    blocks = np.arange(len(source)) * 64 // len(source)
    fit, hessian, curvature, pulls = fit_view(
        source, target, weights, ranges, directions, blocks, centre,
        robust_steps=4, polish_steps=40,
    )  # fmt: skip
    expected, w_hessian, w_curvature, gradient = oracles.fit_view(
        source, target, weights, ranges, directions, centre, 4, 60
    )
    assert fit[0] == pytest.approx(expected[0], rel=1e-5) and abs(fit[0] - 1.7) < 0.01
    np.testing.assert_allclose(fit[1:10].reshape(3, 3), expected[1], atol=1e-5)
    np.testing.assert_allclose(fit[10:], expected[2], atol=1e-5)
    np.testing.assert_allclose(hessian, w_hessian, rtol=1e-3, atol=1e-4 * np.abs(w_hessian).max())
    np.testing.assert_allclose(
        curvature, w_curvature, rtol=1e-3, atol=1e-4 * np.abs(w_curvature).max()
    )
    w_pulls = np.zeros((64, 7))
    np.add.at(w_pulls, blocks, gradient)
    np.testing.assert_allclose(pulls, w_pulls, atol=1e-3 * np.abs(w_pulls).max())


def test_points_on_a_line_fix_no_similarity():
    along = np.linspace(1, 2, 100)[:, None] * np.array([1.0, 2.0, 3.0])
    ranges = np.linalg.norm(along, axis=1)
    arguments = along, along, np.ones(100), ranges, along / ranges[:, None]
    options = {"robust_steps": 4, "polish_steps": 8}
    blocks, centre = np.zeros(100, np.int64), np.zeros(3)
    assert fit_view(*arguments, blocks, centre, **options) is None


def test_covisibility():
    view = window()
    pinholes = view.pinholes.copy()
    pinholes[1] = 0
    options = {"step": 4, "agreement": 0.1, "nearness": 0.4, "min_points": 30}
    # Colours that views share, so that brightness correlates.
    colours = np.clip(60 * view.points + 90, 0, 255).astype(np.uint8)
    actual = covisibility(view.points, colours, view.poses, pinholes, **options)
    expected = oracles.covisibility(view.points, colours, view.poses, pinholes, *options.values())
    for one, other, bound in zip(actual, expected, (0.005, 0.02, 1e-3), strict=True):
        np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
        assert np.nanmax(np.abs(one - other)) < bound
    assert 0.3 < np.nanmin(actual[0]) < 1


def test_surfaces_and_up():
    view = window(noise=0.0005)
    options = {"reach": 2, "step": 3, "max_bend": 0.02}
    places, normals, blocks = surfaces(view.points, view.poses, **options, side=8)
    w_places, w_normals = oracles.surfaces(view.points, view.poses, *options.values())
    assert len(places) == len(w_places) > 1000
    np.testing.assert_allclose(places, w_places, atol=1e-5)
    np.testing.assert_allclose(normals, w_normals, atol=1e-5)
    assert blocks.min() >= 0 and blocks.max() < 4 * 64
    start = np.array([0.2, -0.1, 1.0])
    start /= np.linalg.norm(start)
    gates = np.deg2rad([45.0, 30.0, 20.0, 15.0, 15.0])
    up, off, walls, level = structure_up(normals, start, gates, np.deg2rad(5), 0.01)
    w_up, w_off, w_walls = oracles.structure_up(normals, start, gates, np.deg2rad(5), 0.01)
    np.testing.assert_allclose(up, w_up, atol=1e-9)
    np.testing.assert_allclose(off, w_off, atol=1e-9)
    np.testing.assert_allclose(walls, w_walls, atol=1e-6)
    assert up[2] > np.cos(np.deg2rad(1.0)) and level > 0


def test_pinholes():
    view = window(noise=0.0)
    actual = pinholes_of_points(view.points, 3)
    for row, points in zip(actual, view.points, strict=True):
        np.testing.assert_allclose(row, oracles.pinhole_of_points(points, 3), rtol=1e-6)
    flat = np.zeros((1, 8, 8, 3), np.float32)
    flat[..., 2] = 1
    assert not np.isfinite(pinholes_of_points(flat, 1)).all()


def test_arrays_that_do_not_fit_are_refused_by_name():
    view = window()
    valid = np.ones(view.points.shape[:3], bool)
    out = np.empty(400, np.uint8)
    good = [view.points, view.colours, view.confidence, valid, [0], affines(view)[:1], out]
    for place, bad, name in (
        (0, view.points.astype(np.float64), "points"),
        (1, view.colours[:, :-1], "colours"),
        (2, view.confidence[0], "confidence"),
        (3, valid.astype(np.uint8), "valid"),
        (4, [4], "views"),
        (4, [-1], "views"),
        (5, affines(view), "affines"),
        (6, out.view(np.int8), "out"),
        (6, np.empty((20, 20), np.uint8)[:, ::2].reshape(-1)[::2], "out"),
    ):
        arguments = [*good]
        arguments[place] = bad
        with pytest.raises(ValueError, match=name):
            pack_points(*arguments)
    with pytest.raises(ValueError, match="stride"):
        pack_points(*good, stride=0)
    with pytest.raises(ValueError, match="slots"):
        cells, voxels = np.zeros(1, CELL), np.zeros(4, VOXEL)
        fold_cells(cells, np.array([4]), 1, voxels, blocks_of(1))
    with pytest.raises(ValueError, match="voxel size"):
        keys_of_points(np.zeros((1, 3)), 0.0)


def test_another_memory_order_gives_the_same():
    view = window()
    turned = np.asfortranarray(view.points)
    assert not turned.flags.c_contiguous
    np.testing.assert_array_equal(valid_points(turned, 0.05), valid_points(view.points, 0.05))


@pytest.mark.parametrize("size", [(5, 7), (10, 14), (3, 14), (21, 30), (1, 1)])
def test_points_of_another_size_are_the_nearest_pixels(size):
    points = np.random.default_rng(3).normal(size=(2, 10, 14, 3)).astype(np.float32)
    rows, columns = (
        ((np.arange(n) + 0.5) * length / n).astype(int)
        for n, length in zip(size, (10, 14), strict=True)
    )
    expected = points[:, rows[:, None], columns]
    np.testing.assert_array_equal(pick_points(points, *size), expected)
    with pytest.raises(ValueError, match="size is 0"):
        pick_points(points, 0, 3)
