# SPDX-License-Identifier: Apache-2.0
"""Packed clouds read back by an independent parser, files read back, masks on known scenes."""

from __future__ import annotations

import csv
import os
import struct
import threading

import numpy as np
import pytest
from g2vlm_tests.point_files import read_ply

from g2vlm_ros.geometry import point_cloud
from g2vlm_ros.geometry.sim3 import rotation_from_xyzw

N, H, W = 2, 3, 5


@pytest.fixture
def maps() -> tuple[np.ndarray, ...]:
    """Points, colours, confidence and a validity with holes in the second view."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(N, H, W, 3)).astype(np.float32)
    colours = rng.integers(0, 256, (N, H, W, 3), dtype=np.uint8)
    confidence = rng.random((N, H, W), dtype=np.float32)
    valid = np.ones((N, H, W), bool)
    valid[1, 0, 2] = valid[1, 2, 4] = False
    return points, colours, confidence, valid


def parsed(data) -> list[tuple]:
    """(x, y, z, r, g, b, top byte, confidence) of each 20-byte point, by struct alone."""
    points = []
    for x, y, z, rgb, confidence in struct.iter_unpack("<fffIf", bytes(data)):
        points.append((x, y, z, rgb >> 16 & 255, rgb >> 8 & 255, rgb & 255, rgb >> 24, confidence))
    return points


def expected(points, colours, confidence) -> list[tuple]:
    rows = zip(points.reshape(-1, 3), colours.reshape(-1, 3), confidence.ravel(), strict=True)
    return [(*map(float, p), *map(int, c), 0, float(k)) for p, c, k in rows]


def test_dense_holds_the_valid_points_in_order(maps):
    points, colours, confidence, valid = maps
    data = point_cloud.pack(*maps)
    assert data.typecode == "B"
    assert parsed(data) == expected(points[valid], colours[valid], confidence[valid])


def test_organised_keeps_every_point_and_marks_invalid_ones_nan(maps):
    points, colours, confidence, valid = maps
    actual = np.array(parsed(point_cloud.pack(*maps, organised=True)))
    want = np.array(expected(points, colours, confidence))
    want[~valid.ravel(), :3] = np.nan
    np.testing.assert_array_equal(actual, want)


def test_fields_describe_the_packed_bytes():
    one = np.ones((1, 1), np.float32)
    data = bytes(
        point_cloud.pack(
            np.float32([[[1, 2, 3]]]), np.uint8([[[4, 5, 6]]]), one * 0.5, one.astype(bool)
        )
    )
    offsets = dict(point_cloud.POINT_FIELDS)
    assert len(data) == point_cloud.POINT_BYTES == 20
    assert [struct.unpack_from("<f", data, offsets[n])[0] for n in "xyz"] == [1, 2, 3]
    assert data[offsets["rgb"] :][:4] == bytes([6, 5, 4, 0])
    assert struct.unpack_from("<f", data, offsets["confidence"])[0] == 0.5


def test_every_colour_bit_survives_although_it_travels_as_a_float():
    levels = np.arange(256, dtype=np.uint8)
    colours = np.stack([levels, levels[::-1], np.roll(levels, 7)], axis=-1)[None]
    data = point_cloud.pack(
        np.zeros((1, 256, 3), np.float32),
        colours,
        np.full((1, 256), np.nan, np.float32),
        np.ones((1, 256), bool),
    )
    actual = np.array([row[3:7] for row in parsed(data)])
    np.testing.assert_array_equal(actual[:, :3], colours[0])
    assert not actual[:, 3].any()
    assert all(np.isnan(row[-1]) for row in parsed(data))


@pytest.mark.parametrize("organised", [False, True])
def test_poses_and_scale_move_the_points_of_their_own_view(maps, organised):
    points, colours, confidence, valid = maps
    poses = np.tile(np.eye(4), (N, 1, 1))
    for pose, quaternion in zip(poses, np.random.default_rng(1).normal(size=(N, 4)), strict=True):
        pose[:3, :3], pose[:3, 3] = rotation_from_xyzw(quaternion), quaternion[:3]
    data = point_cloud.pack(*maps, poses=poses, scale=2.5, organised=organised)
    rotated = np.einsum("nij,nhwj->nhwi", poses[:, :3, :3], 2.5 * points.astype(np.float64))
    moved = rotated + poses[:, None, None, :3, 3]
    want = np.where(valid[..., None], moved, np.nan).reshape(-1, 3)
    actual = np.array(parsed(data))[:, :3]
    np.testing.assert_allclose(actual, want if organised else moved[valid], rtol=1e-5, atol=1e-5)


def test_a_reused_buffer_holds_exactly_the_new_cloud(maps):
    buffer = point_cloud.pack(*maps, organised=True)
    size = len(buffer)
    assert point_cloud.pack(*maps, out=buffer) is buffer
    assert len(buffer) == size - 2 * point_cloud.POINT_BYTES
    assert buffer == point_cloud.pack(*maps)
    assert point_cloud.pack(*maps, organised=True, out=buffer).tobytes() == bytes(
        point_cloud.pack(*maps, organised=True)
    )


def test_nothing_valid_gives_an_empty_cloud_and_views_may_be_strided(maps):
    points, colours, confidence, valid = maps
    assert len(point_cloud.pack(points, colours, confidence, np.zeros_like(valid))) == 0
    keep = valid[:, ::2, ::2]
    want = expected(
        points[:, ::2, ::2][keep], colours[:, ::2, ::2][keep], confidence[:, ::2, ::2][keep]
    )
    assert parsed(point_cloud.pack(*maps, stride_px=2)) == want


@pytest.mark.parametrize(
    ("index", "change", "words"),
    [
        (0, lambda a: a.astype(np.float64), "points is float64"),
        (1, lambda a: a[..., 0], "colours is uint8"),
        (2, lambda a: a[:1], "confidence is float32"),
        (3, lambda a: a.astype(np.uint8), "valid is uint8"),
    ],
)
def test_maps_that_do_not_fit_are_named(maps, index, change, words):
    wrong = list(maps)
    wrong[index] = change(wrong[index])
    with pytest.raises(ValueError, match=words):
        point_cloud.pack(*wrong)


def test_poses_of_another_number_of_views_are_refused(maps):
    with pytest.raises(ValueError, match=r"\(2, 4, 4\)"):
        point_cloud.pack(*maps, poses=np.eye(4)[None])


def test_a_stride_below_one_is_refused(maps):
    with pytest.raises(ValueError, match="at least 1"):
        point_cloud.pack(*maps, stride_px=0)


def test_views_are_chosen_and_the_unsure_left_out(maps):
    points, colours, confidence, valid = maps
    chosen = [view[1:] for view in maps]
    least = float(np.nanmedian(confidence))
    keep = chosen[3] & (chosen[2] >= least)
    assert 0 < keep.sum() < chosen[3].sum()
    want = expected(chosen[0][keep], chosen[1][keep], chosen[2][keep])
    assert parsed(point_cloud.pack(*maps, views=range(1, N), min_confidence=least)) == want


@pytest.fixture
def wall() -> tuple[np.ndarray, np.ndarray]:
    """A wall at depth 2 whose right half stands at 4, with one confidence per column."""
    depth = np.full((6, 8), 2.0, np.float32)
    depth[:, 4:] = 4.0
    points = np.stack([np.zeros_like(depth), np.zeros_like(depth), depth], axis=-1)
    confidence = np.tile(np.linspace(0, 0.7, 8, dtype=np.float32), (6, 1))
    return points, confidence


def test_valid_points_drops_each_kind_of_bad_point(wall):
    points, confidence = wall
    points[0, 0, 0], points[1, 0, 1], points[2, 0, 2] = np.nan, np.inf, np.nan
    points[3, 0, 2], points[4, 0, 2] = 0.0, -1.0
    keep = point_cloud.valid_points(points, confidence)
    assert not keep[:5, 0].any()
    assert keep[5, 0] and keep[:, 1:].all()


def test_valid_points_thresholds(wall):
    points, confidence = wall
    by_confidence = point_cloud.valid_points(points, confidence, min_confidence=0.35)
    np.testing.assert_array_equal(by_confidence[0], confidence[0] >= 0.35)
    edges = point_cloud.valid_points(points, confidence, edge_step=0.1)
    np.testing.assert_array_equal(edges[3], [1, 1, 1, 0, 0, 1, 1, 1])


def test_unknown_confidence_passes_only_without_a_threshold(wall):
    points, confidence = wall
    unknown = np.full_like(confidence, np.nan)
    assert point_cloud.valid_points(points, unknown, min_confidence=0.0).all()
    assert not point_cloud.valid_points(points, unknown, min_confidence=1e-6).any()


@pytest.mark.parametrize("with_confidence", [True, False])
def test_ply_comes_back_over_several_chunks(tmp_path, monkeypatch, maps, with_confidence):
    monkeypatch.setattr(point_cloud, "PLY_CHUNK", 7)
    points, colours, confidence, _ = maps
    path = tmp_path / "cloud.ply"
    point_cloud.write_ply(path, points, colours, confidence if with_confidence else None)
    actual = read_ply(path)
    np.testing.assert_array_equal(actual[0], points.reshape(-1, 3))
    np.testing.assert_array_equal(actual[1], colours.reshape(-1, 3))
    if with_confidence:
        np.testing.assert_array_equal(actual[2], confidence.ravel())
    else:
        assert actual[2] is None
    assert [each.name for each in tmp_path.iterdir()] == ["cloud.ply"]


def test_ply_header_is_what_viewers_expect(tmp_path):
    path = tmp_path / "one.ply"
    point_cloud.write_ply(path, np.float32([[1, 2, 3]]), np.uint8([[4, 5, 6]]))
    header, _, body = path.read_bytes().partition(b"end_header\n")
    assert header.decode().splitlines() == [
        "ply",
        "format binary_little_endian 1.0",
        "element vertex 1",
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property uchar {name}" for name in ("red", "green", "blue")),
    ]
    assert body == struct.pack("<fffBBB", 1, 2, 3, 4, 5, 6)


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, maps):
    path = tmp_path / "poses.csv"
    path.write_text("old")

    def broken():
        yield 1, "front", "map", np.eye(4)
        raise RuntimeError("sensor gone")

    with pytest.raises(RuntimeError, match="sensor gone"):
        point_cloud.write_poses_csv(path, broken())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="entries"):
        point_cloud.write_ply(tmp_path / "cloud.ply", maps[0], maps[1][:1])
    assert list(tmp_path.iterdir()) == [path]


def test_poses_csv_has_whole_nanoseconds_and_ros_quaternions(tmp_path):
    path = tmp_path / "poses.csv"
    pose = np.eye(4)
    pose[:3, :3] = rotation_from_xyzw(np.array([0.0, 0.0, 1.0, 1.0]))
    pose[:3, 3] = [1.5, -2.0, 0.25]
    point_cloud.write_poses_csv(path, [(1_700_000_000_123_456_789, "front,left", "map", pose)])
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["stamp_s"], row["stamp_nanosec"]) == ("1700000000", "123456789")
    assert (row["camera"], row["frame"]) == ("front,left", "map")
    assert [float(row[n]) for n in ("x", "y", "z")] == [1.5, -2.0, 0.25]
    actual = [float(row[n]) for n in ("qx", "qy", "qz", "qw")]
    np.testing.assert_allclose(actual, [0, 0, 0.5**0.5, 0.5**0.5], atol=1e-8)


def test_a_link_beside_the_target_is_not_followed_and_no_name_can_be_guessed(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "cloud.ply"
    victim.write_text("precious")
    for name in ("cloud.ply.part", ".cloud.ply.part"):
        (tmp_path / name).symlink_to(victim)
    names = set()
    for _ in range(2):
        with point_cloud.replaced(path) as file:
            file.write(b"new")
            names |= {each.name for each in tmp_path.iterdir()}
    assert victim.read_text() == "precious" and path.read_bytes() == b"new"
    assert len(names - {"victim", "cloud.ply", "cloud.ply.part", ".cloud.ply.part"}) == 2


def test_saves_to_one_path_at_once_all_succeed(tmp_path):
    path, errors = tmp_path / "cloud.ply", []

    def save(number):
        try:
            for _ in range(20):
                with point_cloud.replaced(path) as file:
                    file.write(bytes([number]) * 1000)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=save, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(set(path.read_bytes())) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["cloud.ply"]


def test_a_file_keeps_its_rights_and_what_the_killed_left_goes(tmp_path):
    path = tmp_path / "cloud.ply"
    path.write_text("old")
    path.chmod(0o640)
    stale = tmp_path / f".cloud.ply.{'0' * 16}.part"
    fresh = tmp_path / f".cloud.ply.{'1' * 16}.part"
    for left in (stale, fresh):
        left.write_text("half")
    os.utime(stale, (0, 0))
    with point_cloud.replaced(path) as file:
        file.write(b"new")
    assert path.stat().st_mode & 0o777 == 0o640 and path.read_bytes() == b"new"
    assert not stale.exists() and fresh.exists()
