# SPDX-License-Identifier: Apache-2.0
"""Edits of the map: what they change, that they hold, that undo restores exactly."""

from __future__ import annotations

import numpy as np
import pytest
from g2vlm_tests.point_mirror import PointMirror
from numpy.lib.recfunctions import repack_fields

from g2vlm_ros.dense_map.free_space import DepthView
from g2vlm_ros.dense_map.map_editor import MAX_RULES, MapEditError, MapEditor, OrientedBox
from g2vlm_ros.dense_map.voxel_map import VoxelMap
from g2vlm_ros.geometry.sim3 import ZUP_FROM_OPTICAL, Sim3
from g2vlm_ros.records import Intrinsics

SIZE = 0.1
COLUMNS = ["position", "colour", "count", "confidence", "stamp_ns", "window"]
ANGLE = 0.4
TURNED = np.array(
    [[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1]]
)
BOX = OrientedBox(np.array([0.5, 0.2, 0.0]), np.array([0.6, 0.3, 0.5]), TURNED)
SIDEWAYS = Sim3(1.0, np.eye(3), np.array([0.0, 3.0, 0.0]))


def scan(seed: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    points = rng.uniform(-2, 2, (6000, 3)).astype(np.float32)
    colours = rng.integers(0, 256, points.shape, dtype=np.uint8)
    return points, colours, rng.uniform(0.3, 1, len(points)).astype(np.float32)


def add(voxel_map: VoxelMap, seed: int) -> None:
    voxel_map.integrate(*scan(seed), np.zeros(3), seed, seed)


@pytest.fixture
def scene() -> tuple[VoxelMap, MapEditor]:
    voxel_map = VoxelMap(SIZE, 8 << 20)
    editor = MapEditor(voxel_map)
    add(voxel_map, 0)
    add(voxel_map, 1)
    return voxel_map, editor


def content(voxel_map: VoxelMap) -> dict[int, bytes]:
    ids, voxels = voxel_map.voxels()
    keys = voxel_map.keys(ids).tolist()
    return {
        key: row.tobytes() for key, row in zip(keys, repack_fields(voxels[COLUMNS]), strict=True)
    }


def positions(voxel_map: VoxelMap) -> np.ndarray:
    return voxel_map.voxels()[1]["position"]


def inside_by_hand(points: np.ndarray) -> np.ndarray:
    x, y, z = (points.astype(float) - [0.5, 0.2, 0.0]).T
    c, s = np.cos(ANGLE), np.sin(ANGLE)
    return (abs(c * x + s * y) <= 0.6) & (abs(c * y - s * x) <= 0.3) & (abs(z) <= 0.5)


def test_remove_takes_what_is_inside_and_it_stays_away(scene):
    voxel_map, editor = scene
    inside = inside_by_hand(positions(voxel_map))
    before = len(voxel_map)
    edit = editor.remove(BOX)
    assert edit.changed == inside.sum() > 50 and len(voxel_map) == before - edit.changed
    add(voxel_map, 2)
    assert not BOX.contains(positions(voxel_map)).any()
    assert voxel_map.counts.screened == inside_by_hand(scan(2)[0]).sum()
    editor.release()
    add(voxel_map, 2)
    assert BOX.contains(positions(voxel_map)).sum() > 50


def test_keep_takes_what_is_outside(scene):
    voxel_map, editor = scene
    inside = inside_by_hand(positions(voxel_map)).sum()
    editor.keep(BOX)
    assert len(voxel_map) == inside and BOX.contains(positions(voxel_map)).all()
    add(voxel_map, 2)
    assert BOX.contains(positions(voxel_map)).all() and len(voxel_map) >= inside


def test_move_brings_it_there_and_the_old_place_stays_empty(scene):
    voxel_map, editor = scene
    moving = positions(voxel_map)[BOX.contains(positions(voxel_map))]
    editor.move(BOX, SIDEWAYS)
    now = positions(voxel_map)
    there = now[BOX.moved(SIDEWAYS).contains(now)]
    alone = moving[moving[:, 1] > -0.9]  # those that met no voxel at the target
    want = alone[alone[:, 1] + 3 > 2.05] + np.float32([0, 3, 0])
    distance = np.abs(want[:, None] - there[None]).max(-1).min(1)
    assert (distance < 1e-5).all() and len(want) > 20
    add(voxel_map, 2)
    assert not BOX.contains(positions(voxel_map)).any()


def test_free_space_does_not_remove_what_was_moved():
    voxel_map = VoxelMap(SIZE, 8 << 20)
    editor = MapEditor(voxel_map)
    spots = np.float32([[2, 0, 0], [2, 0.5, 0]])
    voxel_map.integrate(spots, spots.astype(np.uint8), np.ones(2, np.float32), np.zeros(3), 0, 0)
    pose = np.eye(4)
    pose[:3, :3] = ZUP_FROM_OPTICAL
    near = OrientedBox(np.array([2.0, 0.5, 0.0]), np.full(3, 0.2), np.eye(3))
    editor.move(near, Sim3(1.0, np.eye(3), np.array([0.0, -1.0, 0.0])))
    far = np.full((60, 80), 4.0, np.float32)
    camera = Intrinsics(60.0, 60.0, 39.5, 29.5, 80, 60)
    for stamp in range(1, 4):
        voxel_map.carve(DepthView(far, np.ones_like(far), pose, camera, stamp))
    np.testing.assert_allclose(positions(voxel_map), [[2, -0.5, 0]], atol=1e-6)


def test_recolour_paints_now_and_later(scene):
    voxel_map, editor = scene
    editor.recolour(BOX, (255, 0, 10))
    add(voxel_map, 2)
    _, voxels = voxel_map.voxels()
    # A mean of points in the box and beside it may mix at the border: look well inside.
    core = OrientedBox(BOX.centre, BOX.half_size - 2 * SIZE, BOX.rotation).contains(
        voxels["position"]
    )
    assert core.sum() > 5 and set(map(tuple, voxels["colour"][core] // 256)) == {(255, 0, 10)}
    assert (voxels["colour"][:, 0] < 255 * 256).any()


@pytest.mark.parametrize("action", ["remove", "keep", "move", "recolour"])
def test_undo_restores_the_map_exactly(scene, action):
    voxel_map, editor = scene
    before = content(voxel_map)
    rest = {"move": (SIDEWAYS,), "recolour": ((1, 2, 3),)}.get(action, ())
    getattr(editor, action)(BOX, *rest)
    assert content(voxel_map) != before
    assert editor.undo().action == action
    assert content(voxel_map) == before
    add(voxel_map, 2)
    assert inside_by_hand(positions(voxel_map)).sum() > 50, "the rule ended with the edit"


def test_a_move_onto_itself_can_be_undone(scene):
    """Source and target overlap: some cells are both left and written."""
    voxel_map, editor = scene
    before = content(voxel_map)
    editor.move(BOX, Sim3(1.0, np.eye(3), np.array([0.25, 0.0, 0.0])))
    editor.undo()
    assert content(voxel_map) == before


def test_undo_goes_back_step_by_step_to_the_bound(scene):
    voxel_map, _ = scene
    editor = MapEditor(voxel_map, history=3)
    states = []
    for i in range(5):
        states.append(content(voxel_map))
        editor.remove(OrientedBox(np.array([i - 2.0, 0, 0]), np.full(3, 0.4), np.eye(3)))
    for want in states[:1:-1]:
        editor.undo()
        assert content(voxel_map) == want
    with pytest.raises(ValueError, match=r"the last one \(remove\) is final"):
        editor.undo()
    assert len(editor.edits) == 2, "their rules still hold"


def test_an_edit_too_large_for_the_history_is_done_and_says_so(scene):
    voxel_map, _ = scene
    editor = MapEditor(voxel_map, history_bytes=10_000)
    edit = editor.keep(BOX)
    assert not edit.undoable and edit.before is None and edit.changed > 1000
    assert len(voxel_map) < 1000
    small = editor.remove(OrientedBox(BOX.centre, np.full(3, 0.15), np.eye(3)))
    assert small.undoable
    editor.undo()
    with pytest.raises(ValueError, match="no edit to undo"):
        editor.undo()


def test_changes_tell_of_edits(scene):
    voxel_map, editor = scene
    mirror = PointMirror()
    mirror.apply(voxel_map.changes(0))
    for step in (lambda: editor.remove(BOX), lambda: editor.move(BOX.moved(SIDEWAYS), SIDEWAYS)):
        step()
        mirror.apply(voxel_map.changes(mirror.revision))
        assert len(mirror.dense()) == len(voxel_map)
    editor.undo()
    editor.undo()
    mirror.apply(voxel_map.changes(mirror.revision))
    actual = np.sort(mirror.dense()["x"])
    np.testing.assert_array_equal(actual, np.sort(positions(voxel_map)[:, 0]))


def test_a_rule_follows_its_window_and_the_edit_is_final(scene):
    voxel_map, editor = scene
    editor.remove(BOX)
    voxel_map.correct({0: SIDEWAYS, 1: SIDEWAYS})
    voxel_map.settle()
    target = BOX.moved(SIDEWAYS)
    assert not target.contains(positions(voxel_map)).any()
    points, colours, confidence = scan(2)
    moved = points + np.float32([0, 3, 0])
    voxel_map.integrate(moved, colours, confidence, np.zeros(3), 2, 2)
    assert not target.contains(positions(voxel_map)).any()
    with pytest.raises(ValueError, match="final"):
        editor.undo()


def test_a_reset_ends_all_edits(scene):
    voxel_map, editor = scene
    editor.remove(BOX)
    voxel_map.reset()
    assert not editor.edits and len(voxel_map) == 0
    add(voxel_map, 2)
    assert BOX.contains(positions(voxel_map)).any()


def test_bad_boxes_and_colours_are_refused(scene):
    _, editor = scene
    with pytest.raises(ValueError, match="half_size"):
        OrientedBox(np.zeros(3), np.array([1.0, 0.0, 1.0]), np.eye(3))
    with pytest.raises(ValueError, match="centre"):
        OrientedBox(np.array([np.nan, 0, 0]), np.ones(3), np.eye(3))
    with pytest.raises(ValueError, match="no rotation"):
        OrientedBox(np.zeros(3), np.ones(3), np.eye(3) * 2)
    with pytest.raises(ValueError, match="colour is"):
        editor.recolour(BOX, (1, 2, 300))


def test_a_move_beyond_the_range_of_the_map_is_refused_and_changes_nothing(scene):
    voxel_map, editor = scene
    before, revision = voxel_map.packed(), voxel_map.revision
    for far in (SIZE * 2.0**20, 1e300):
        away = Sim3(1.0, np.eye(3), np.array([far, 0.0, 0.0]))
        with pytest.raises(MapEditError, match="nearer target"):
            editor.move(BOX, away)
    np.testing.assert_array_equal(voxel_map.packed(), before)
    assert voxel_map.revision == revision and not editor.edits


def test_edits_that_hold_are_bounded(scene):
    _, editor = scene
    for _ in range(MAX_RULES):
        editor.recolour(BOX, (1, 2, 3))
    actions = (
        lambda: editor.remove(BOX),
        lambda: editor.keep(BOX),
        lambda: editor.move(BOX, SIDEWAYS),
        lambda: editor.recolour(BOX, (1, 2, 3)),
    )
    for action in actions:
        with pytest.raises(MapEditError, match="RELEASE"):
            action()
    assert len(editor.edits) == MAX_RULES
    editor.undo()
    editor.remove(BOX)
    with pytest.raises(MapEditError, match="RELEASE"):
        editor.remove(BOX)
    editor.release()
    editor.recolour(BOX, (1, 2, 3))


def test_a_box_contains_what_its_planes_enclose():
    points = np.random.default_rng(3).uniform(-2, 2, (5000, 3)).astype(np.float32)
    local = (points.astype(np.float64) - BOX.centre) @ BOX.rotation
    expected = (np.abs(local) <= BOX.half_size).all(1)
    assert 20 < expected.sum() < 1000
    np.testing.assert_array_equal(BOX.contains(points), expected)
