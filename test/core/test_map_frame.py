"""Windows of a known scene, each in a unit and frame of its own, must come out in one map."""

import numpy as np
import pytest

from g2vlm_ros.core.datatypes import Frame, RawGeometry, Reconstruction, ScaleState, Window
from g2vlm_ros.core.geometry import ZUP_FROM_OPTICAL, Similarity
from g2vlm_ros.core.map_frame import MapAligner
from g2vlm_ros.core.settings import MapSettings
from test.core.test_geometry import random_similarity


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def make_view(rng, world_from_camera, height=24, width=32):
    """A point map of a rough wall, in the camera's frame and in the world."""
    rows, columns = np.mgrid[0:height, 0:width]
    depth = rng.uniform(2, 4, size=rows.shape)
    rays = np.stack([(columns - 15.5) / 30, (rows - 11.5) / 30, np.ones_like(depth)], -1)
    return rays * depth[..., None]


def make_result(views, poses, unit: Similarity) -> Reconstruction:
    """The views as the network would give them: a frame and a unit of its own."""
    local = np.stack([unit.scale * v for v in views]).astype(np.float32)
    moved = np.stack([unit.apply_pose(p) for p in poses]).astype(np.float32)
    raw = RawGeometry(local, moved, moved[:, :3, :3].reshape(-1, 9).copy())
    shape = local.shape[:3]
    return Reconstruction(
        raw, np.zeros((*shape, 3), np.uint8), np.full(shape, np.nan, np.float32),
        (None,) * len(views), {},
    )  # fmt: skip


def make_window(number, stamps):
    frames = (Frame(s, "front", "optical", lambda: np.zeros((1, 1, 3), np.uint8)) for s in stamps)
    return Window(number, tuple(frames))


def level_pose(x, yaw):
    pose = np.eye(4)
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    pose[:3, :3] = turn @ ZUP_FROM_OPTICAL
    pose[:3, 3] = [x, 0.2 * x, 0]
    return pose


def test_windows_of_random_unit_and_frame_join_into_one_map(rng):
    poses = [level_pose(0.3 * i, 0.1 * i) for i in range(9)]
    views = [make_view(rng, pose) for pose in poses]
    aligner = MapAligner(MapSettings())
    map_poses = {}
    for number, first in enumerate(range(0, 7, 2)):
        ids = range(first, first + 3)
        unit = random_similarity(rng)
        result = make_result([views[i] for i in ids], [poses[i] for i in ids], unit)
        placement = aligner.place(make_window(number, ids), result)
        for i, pose in zip(ids, placement.camera_poses(result.window_from_camera), strict=True):
            map_poses[i] = pose
        assert placement.sub_map == 0 and placement.scale_state is ScaleState.RELATIVE
        if number == 0:
            unit_of_map = placement.map_from_window.scale * unit.scale
    for i, pose in map_poses.items():
        expected = np.linalg.inv(poses[0]) @ poses[i]
        found = np.linalg.inv(map_poses[0]) @ pose
        np.testing.assert_allclose(found[:3, :3], expected[:3, :3], atol=1e-4)
        np.testing.assert_allclose(found[:3, 3], expected[:3, 3] * unit_of_map, atol=1e-3)
    np.testing.assert_allclose(map_poses[0][:3, :3], ZUP_FROM_OPTICAL, atol=1e-6)


def test_a_joint_that_does_not_agree_starts_a_new_sub_map(rng):
    poses = [level_pose(0.3 * i, 0) for i in range(4)]
    aligner = MapAligner(MapSettings())
    first = make_result([make_view(rng, p) for p in poses[:2]], poses[:2], Similarity.identity())
    aligner.place(make_window(1, [0, 1]), first)
    other = make_result([make_view(rng, p) for p in poses[:2]], poses[:2], Similarity.identity())
    scrambled = make_result(
        [rng.normal(size=(24, 32, 3)) * 50 + [0, 0, 200] for _ in range(2)],
        poses[:2],
        Similarity.identity(),
    )
    placement = aligner.place(make_window(2, [1, 2]), scrambled)
    assert placement.sub_map == 1 and placement.joint is None
    placement = aligner.place(make_window(3, [7, 8]), other)
    assert placement.sub_map == 2, "no shared view: nothing to join by"


def test_known_scale_makes_the_map_metric(rng):
    poses = [level_pose(0.5 * i, 0) for i in range(2)]
    result = make_result([make_view(rng, p) for p in poses], poses, Similarity.identity())
    placement = MapAligner(MapSettings(metres_per_unit=2.0)).place(make_window(1, [0, 1]), result)
    found = placement.camera_poses(result.window_from_camera)
    assert placement.scale_state is ScaleState.METRIC
    distance = np.linalg.norm(found[1, :3, 3] - found[0, :3, 3])
    expected = 2 * np.linalg.norm(poses[1][:3, 3] - poses[0][:3, 3])
    assert distance == pytest.approx(expected, rel=1e-5)
