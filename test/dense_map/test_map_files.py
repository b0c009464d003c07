# SPDX-License-Identifier: Apache-2.0
"""Maps written and read back, by our reader and by independent ones, and damaged files refused."""

from __future__ import annotations

import io
import json
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from g2vlm_tests.point_files import read_pcd, read_ply
from numpy.lib.recfunctions import repack_fields

from g2vlm_ros.dense_map.map_files import (
    COLUMNS,
    MapFileError,
    MapInfo,
    load_map,
    save_map,
)
from g2vlm_ros.dense_map.voxel_map import VoxelMap
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.records import ScaleState

INFO = MapInfo("map", ScaleState.METRIC, 1.0)
MEMORY = 8 << 20


def some_map(seed: int = 0) -> VoxelMap:
    voxel_map = VoxelMap(0.1, MEMORY)
    add(voxel_map, seed)
    return voxel_map


def add(voxel_map: VoxelMap, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(5000, 3)).astype(np.float32)
    colours = rng.integers(0, 256, points.shape, dtype=np.uint8)
    stamp = 1_700_000_000_123_456_789 + seed
    voxel_map.integrate(points, colours, rng.random(5000, np.float32), np.zeros(3), stamp, seed)


def content(voxel_map: VoxelMap) -> tuple[np.ndarray, np.ndarray]:
    ids, voxels = voxel_map.voxels()
    keys = voxel_map.keys(ids)
    order = np.argsort(keys)
    return keys[order], repack_fields(voxels[list(COLUMNS)])[order]


def assert_same(a: VoxelMap, b: VoxelMap) -> None:
    (keys, voxels), (other_keys, other) = content(a), content(b)
    np.testing.assert_array_equal(keys, other_keys)
    assert voxels.tobytes() == other.tobytes()


def test_npz_round_trip_is_exact_and_continues(tmp_path):
    saved = some_map()
    assert save_map(tmp_path / "a.npz", saved, INFO) == len(saved)
    loaded = some_map(7)
    assert load_map(tmp_path / "a.npz", loaded) == INFO
    assert_same(saved, loaded)
    add(saved, 1)
    add(loaded, 1)
    assert_same(saved, loaded)
    assert not list(tmp_path.glob("*.part"))


def test_relative_maps_and_empty_ones(tmp_path):
    info = MapInfo("robot/map", ScaleState.RELATIVE, float("nan"))
    save_map(tmp_path / "a.npz", VoxelMap(0.1, MEMORY), info)
    loaded = some_map()
    actual = load_map(tmp_path / "a.npz", loaded)
    assert actual.frame == "robot/map" and actual.scale_state is ScaleState.RELATIVE
    assert np.isnan(actual.metres_per_unit) and len(loaded) == 0


def test_receivers_of_changes_start_over_after_loading(tmp_path):
    save_map(tmp_path / "a.npz", some_map(), INFO)
    loaded = some_map(7)
    before = loaded.revision
    load_map(tmp_path / "a.npz", loaded)
    change = loaded.changes(before)
    assert change.start_over and len(change.ids) == len(loaded)
    assert not loaded.changes(change.revision).start_over


def test_waiting_corrections_are_saved_applied(tmp_path):
    moved = some_map()
    moved.correct({0: Sim3(1.0, np.eye(3), np.array([100.0, 0.0, 0.0]))})
    save_map(tmp_path / "a.npz", moved, INFO)
    loaded = VoxelMap(0.1, MEMORY)
    load_map(tmp_path / "a.npz", loaded)
    assert loaded.voxels()[1]["position"][:, 0].min() > 90


def parsed_pcd(data: bytes) -> tuple[dict[str, list[str]], list[tuple]]:
    """Header and points, by the PCD 0.7 specification alone."""
    header, at = {}, 0
    while "DATA" not in header:
        line, at = data[at : data.index(b"\n", at)].decode(), data.index(b"\n", at) + 1
        if not line.startswith("#"):
            name, *values = line.split()
            header[name] = values
    kinds = {"F4": "f", "U4": "I"}
    pairs = zip(header["TYPE"], header["SIZE"], strict=True)
    row = struct.Struct("<" + "".join(kinds[kind + size] for kind, size in pairs))
    points = int(header["POINTS"][0])
    return header, [row.unpack_from(data, at + i * row.size) for i in range(points)]


def test_pcd_is_what_its_specification_says(tmp_path):
    voxel_map = some_map()
    save_map(tmp_path / "a.pcd", voxel_map, INFO)
    data = (tmp_path / "a.pcd").read_bytes()
    header, rows = parsed_pcd(data)
    assert header["FIELDS"] == ["x", "y", "z", "rgb", "confidence"]
    assert int(header["WIDTH"][0]) * int(header["HEIGHT"][0]) == len(voxel_map) == len(rows)
    _, voxels = voxel_map.voxels()
    actual = np.array(rows)
    np.testing.assert_array_equal(actual[:, :3], voxels["position"])
    np.testing.assert_array_equal(actual[:, 4].astype(np.float32), voxels["confidence"])
    rgb = actual[:, 3].astype(np.uint32)
    red = np.rint(voxels["colour"][:, 0] / 256)
    assert np.abs((rgb >> 16).astype(int) - red).max() <= 1 and (rgb >> 24 == 0).all()
    points, colours, confidence = read_pcd(tmp_path / "a.pcd")
    np.testing.assert_array_equal(points, voxels["position"])
    np.testing.assert_array_equal(colours[:, 0], rgb >> 16)
    np.testing.assert_array_equal(confidence, voxels["confidence"])


def test_ply_holds_the_same_points(tmp_path):
    voxel_map = some_map()
    save_map(tmp_path / "a.ply", voxel_map, INFO)
    points, _, confidence = read_ply(tmp_path / "a.ply")
    np.testing.assert_array_equal(points, voxel_map.voxels()[1]["position"])
    np.testing.assert_array_equal(confidence, voxel_map.voxels()[1]["confidence"])


def rewritten(path, **changes) -> None:
    """The file with some arrays changed, or entries of its metadata."""
    with np.load(path) as file:
        arrays = dict(file)
    meta = json.loads(str(arrays["meta"]))
    for name, value in changes.items():
        if name in arrays:
            arrays[name] = value(arrays[name])
        else:
            meta[name] = value
    arrays["meta"] = np.array(json.dumps(meta))
    np.savez(path, **arrays)


def flip(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def first_to(value):
    def change(array: np.ndarray) -> np.ndarray:
        array[0] = value
        return array

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "there is no map file"),
        (lambda path: path.write_bytes(b"no map"), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-500]), "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (flip, "damaged"),
        (lambda path: np.savez(path, a=np.zeros(3)), "damaged"),
        (lambda path: np.savez(path, meta=np.array(3)), "damaged"),
        (lambda path: np.savez(path, meta=np.array("[" * 100_000)), "damaged"),
        (lambda path: rewritten(path, format="other"), "holds no voxel map"),
        (lambda path: rewritten(path, version=2), "version 2"),
        (lambda path: rewritten(path, voxel_size=0.2), "voxels of 0.2, this map of 0.1"),
        (lambda path: rewritten(path, scale_state=9), "damaged"),
        (lambda path: rewritten(path, voxels="many"), "'voxels' is 'many'"),
        (lambda path: rewritten(path, voxels=True), "'voxels' is True"),
        (lambda path: rewritten(path, voxels=-1), "does not fit"),
        (lambda path: rewritten(path, voxel_size=None), "'voxel_size' is None"),
        (lambda path: rewritten(path, voxel_size=float("nan")), "'voxel_size' is nan"),
        (lambda path: rewritten(path, frame=3), "'frame' is 3"),
        (lambda path: rewritten(path, metres_per_unit="1"), "'metres_per_unit' is '1'"),
        (lambda path: rewritten(path, keys=lambda a: a[:-1]), "'keys' is int64"),
        (lambda path: rewritten(path, keys=first_to(5)), "contradict"),
        (lambda path: rewritten(path, position=first_to(np.nan)), "contradict"),
        (lambda path: rewritten(path, count=first_to(0)), "contradict"),
        (lambda path: rewritten(path, confidence=first_to(np.nan)), "contradict"),
        (lambda path: rewritten(path, window=lambda a: a.astype("i8")), "'window' is int64"),
    ],
)
def test_damaged_and_foreign_files_are_refused_and_change_nothing(tmp_path, damage, message):
    path = tmp_path / "a.npz"
    save_map(path, some_map(), INFO)
    damage(path)
    kept, untouched = some_map(3), some_map(3)
    with pytest.raises(MapFileError, match=message) as refusal:
        load_map(path, kept)
    assert "\n" not in str(refusal.value)
    assert_same(kept, untouched)


def test_a_map_beyond_the_bound_is_refused_and_changes_nothing(tmp_path):
    save_map(tmp_path / "a.npz", some_map(), INFO)
    small = VoxelMap(0.1, 310_000)
    one = np.zeros((1, 3), np.float32)
    small.integrate(one, one.astype(np.uint8), np.ones(1, np.float32), np.zeros(3), 0, 0)
    with pytest.raises(MapFileError, match="raise its memory bound"):
        load_map(tmp_path / "a.npz", small)
    assert len(small) == 1


def test_a_bomb_of_zeros_is_refused_before_it_is_read(tmp_path):
    save_map(tmp_path / "a.npz", some_map(), INFO)
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        meta = archive.read("meta.npy")
    header = io.BytesIO()
    size = 40_000_000
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<i8", "fortran_order": False, "shape": (size,)}
    )
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta.npy", meta)
        with archive.open("keys.npy", "w", force_zip64=True) as member:
            member.write(header.getvalue())
            for _ in range(8):
                member.write(bytes(size))
        archive.writestr("position.npy", header.getvalue())
    target = VoxelMap(0.1, MEMORY)
    tracemalloc.start()
    with pytest.raises(MapFileError, match="damaged"):
        load_map(tmp_path / "bomb.npz", target)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_only_regular_files_are_opened(tmp_path, kind):
    path = tmp_path / "a.npz"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path = "/dev/ptmx"
    with pytest.raises(MapFileError, match="no regular file|cannot be read|there is no map file"):
        load_map(path, some_map())


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(MapFileError, match="ends in '.obj'"):
        save_map(tmp_path / "a.obj", some_map(), INFO)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    save_map(path, some_map(), INFO)
    before = path.read_bytes()

    def fail(*args, **columns):
        args[0].write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        save_map(path, some_map(1), INFO)
    assert path.read_bytes() == before and not list(tmp_path.glob("*.part"))
