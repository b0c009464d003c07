# SPDX-License-Identifier: Apache-2.0
"""The renderer against closed forms and against itself from another place."""

from __future__ import annotations

import numpy as np
import pytest

from g2vlm_ros.demo.sim.array_backend import Arrays
from g2vlm_ros.demo.sim.camera import lens, world_from_camera
from g2vlm_ros.demo.sim.furniture import BOX, CYLINDER, ELLIPSOID
from g2vlm_ros.demo.sim.home import Home, Item, Room, Solid
from g2vlm_ros.demo.sim.home_builder import build_home
from g2vlm_ros.demo.sim.materials import plain
from g2vlm_ros.demo.sim.renderer import FAR_M, render
from g2vlm_ros.demo.sim.scene_arrays import intersect
from g2vlm_ros.demo.sim.scenes import make_clips, make_scene
from g2vlm_ros.geometry.camera import project, unproject

CAMERA = lens(64, 48)


def single(shape, centre, half, yaw=0.0):
    """A world with one solid in it."""
    material = plain(np.random.default_rng(0), "grey")
    zero = np.zeros(3)
    item = Item(1, "box", "grey", 0, np.array(centre), 2 * np.array(half), yaw, zero)
    solid = Solid(shape, np.array(centre), np.array(half), yaw, material, 1)
    room = Room((-5.0, -5.0, 5.0, 5.0), 3.0, np.array([0.0, 0.0, 2.5]), 1.0)
    return Home(0, (room,), (), (item,), (solid,))


def look(home, pose, samples=1):
    return render([home], np.zeros(1, int), pose[None], np.zeros(1), CAMERA, samples=samples)


def pixel_rays():
    v, u = np.mgrid[0 : CAMERA.height_px, 0 : CAMERA.width_px]
    return unproject(np.stack([u, v], -1).astype(float), np.ones(u.shape), CAMERA)


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("yaw,pitch", [(0.0, 0.0), (0.4, 0.1), (-0.6, 0.2)])
def test_depth_of_a_plane(yaw, pitch, samples):
    """The face x = 2 of a huge box: depth is 2 / (forward component of the ray)."""
    home = single(BOX, (52.0, 0.0, 0.0), (50.0, 500.0, 500.0))
    pose = world_from_camera(np.array([0.0, 0.0, 1.2]), yaw, pitch)
    views = look(home, pose, samples)
    along = (pixel_rays() @ pose[:3, :3].T)[..., 0]
    expected = np.where(2.0 / along < FAR_M, 2.0 / along, FAR_M)
    hit = along > 2.0 / FAR_M
    np.testing.assert_allclose(views.depth_m[0][hit], expected[hit], rtol=2e-5)
    assert (views.items[0][hit] == 1).all()


def test_depth_of_a_ball():
    centre, radius = np.array([3.0, 0.3, 1.1]), 0.8
    pose = world_from_camera(np.array([0.0, 0.0, 1.3]), 0.1, 0.05)
    depth = look(single(ELLIPSOID, centre, (radius,) * 3), pose).depth_m[0]
    rays = pixel_rays() @ pose[:3, :3].T
    offset = pose[:3, 3] - centre
    a, b, c = (rays**2).sum(-1), rays @ offset, offset @ offset - radius**2
    inside = b * b - a * c
    hit = inside > 1e-3
    expected = (-b - np.sqrt(np.maximum(inside, 0))) / a
    np.testing.assert_allclose(depth[hit], expected[hit], rtol=1e-4)
    assert (depth[inside < -1e-3] == FAR_M).all()


def test_depth_of_a_cylinder_from_above_is_its_cap():
    pose = world_from_camera(np.array([0.0, 0.0, 2.0]), 0.0, np.pi / 2)
    depth = look(single(CYLINDER, (0, 0, 0.5), (0.3, 0.3, 0.5)), pose).depth_m[0]
    rays = pixel_rays()
    inside = np.hypot(rays[..., 0], rays[..., 1]) < 0.29
    outside = np.hypot(rays[..., 0], rays[..., 1]) > 0.31
    np.testing.assert_allclose(depth[inside], 1.0, rtol=1e-5)
    assert (depth[outside] == FAR_M).all()


def test_a_turned_box_is_nearer_at_its_edge():
    pose = world_from_camera(np.array([0.0, 0.0, 1.0]), 0.0, 0.0)
    straight = look(single(BOX, (3, 0, 1), (0.5, 0.5, 0.5)), pose).depth_m[0]
    turned = look(single(BOX, (3, 0, 1), (0.5, 0.5, 0.5), np.pi / 4), pose).depth_m[0]
    assert straight.min() == pytest.approx(2.5, abs=1e-5)
    assert turned.min() == pytest.approx(3 - 0.5 * np.sqrt(2), abs=0.05)


@pytest.mark.parametrize("kind", [BOX, CYLINDER, ELLIPSOID])
def test_rays_parallel_to_a_side_are_finite(kind):
    zero, one = np.zeros((1, 1)), np.ones((1, 1))
    origin = (np.float32(-3) * one, zero + 1.0, zero)
    for direction in ((one, zero, zero), (zero, one, zero), (zero, zero, zero)):
        distance = intersect(Arrays(), kind, origin, direction, 9.0)
        assert np.isfinite(distance).all() and (distance <= 9.0).all()


@pytest.mark.parametrize("seed", range(4))
def test_points_reproject_between_views(seed):
    """A point seen in view 0 has in view 1 the depth that view 1 saw there, unless hidden."""
    scene = make_scene(seed)
    camera = lens(112, 84)
    start = len(scene.walk.time_s) // 2
    steps = [start, start + 4]
    pose = scene.walk.world_from_camera[steps]
    views = render([scene.home], np.zeros(2, int), pose, np.zeros(2), camera, samples=1)
    v, u = np.mgrid[0:84, 0:112]
    local = unproject(np.stack([u, v], -1).astype(float), views.depth_m[0], camera)
    world = local @ pose[0, :3, :3].T + pose[0, :3, 3]
    second = (world - pose[1, :3, 3]) @ pose[1, :3, :3]
    pixel = project(second, camera)
    inside = ((np.nan_to_num(pixel, nan=-9) > 0) & (pixel < (111, 83))).all(-1)
    at = np.round(pixel[inside]).astype(int)
    seen = views.depth_m[1][at[:, 1], at[:, 0]]
    same = views.items[1][at[:, 1], at[:, 0]] == views.items[0][inside]
    error = np.abs(seen - second[..., 2][inside])[same] / seen[same]
    assert inside.mean() > 0.3
    assert same.mean() > 0.85
    assert np.median(error) < 0.01


def test_torch_gives_the_same_pictures():
    torch = pytest.importorskip("torch")
    assert torch.get_num_threads() >= 1
    scenes = [make_scene(seed) for seed in (1, 2)]
    one = make_clips(scenes, 2, lens(64, 48))
    two = make_clips(scenes, 2, lens(64, 48), Arrays("cpu"))
    np.testing.assert_array_equal(one.steps, two.steps)
    assert (one.items == two.items.numpy()).mean() > 0.999
    np.testing.assert_allclose(
        np.median(np.abs(one.depth_m - two.depth_m.numpy())), 0.0, atol=1e-5
    )
    assert np.abs(one.images.astype(int) - two.images.numpy()).mean() < 0.1


def test_rendering_is_deterministic_and_does_not_depend_on_the_batch():
    scenes = [make_scene(seed) for seed in (4, 5)]
    both = make_clips(scenes, 3, lens(64, 48))
    alone = make_clips(scenes[1:], 3, lens(64, 48))
    np.testing.assert_array_equal(both.images[1:], alone.images)
    np.testing.assert_array_equal(both.depth_m[1:], alone.depth_m)


@pytest.mark.parametrize("seed", range(0, 24, 3))
def test_homes_are_closed_and_views_show_more_than_a_wall(seed):
    scene = make_scene(seed)
    clips = make_clips([scene], 4, lens(112, 84), samples=1)
    assert np.isfinite(clips.depth_m).all()
    assert (clips.depth_m > 0.05).all() and (clips.depth_m < 25).all()
    assert (clips.items > 0).all()
    walls = [item.id for item in scene.home.items if item.name == "wall"]
    assert np.isin(clips.items, walls).mean((2, 3)).min() < 0.95


def test_neighbouring_views_are_near_enough_to_share_something():
    scenes = [make_scene(seed) for seed in range(0, 60, 3)]
    clips = make_clips(scenes, 8, lens(16, 12), samples=1)
    poses = clips.world_from_camera()
    relative = np.linalg.inv(poses[:, :-1]) @ poses[:, 1:]
    cosine = (np.trace(relative[..., :3, :3], axis1=-2, axis2=-1) - 1) / 2
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 70, "the width of a view"
    assert np.linalg.norm(relative[..., :3, 3], axis=-1).max() < 1.0


def test_what_moves_is_seen_elsewhere_later():
    seeds = (s for s in range(200) if any(i.travel_m.any() for i in build_home(s).items))
    home = build_home(next(seeds))
    item = next(i for i in home.items if i.travel_m.any())
    assert not np.allclose(item.offset_m(item.period_s / 4), item.offset_m(0.0))
    above = item.centre_m + (0.0, 0.0, 1.0)
    pose = world_from_camera(above, 0.0, np.pi / 2)
    times = np.array([0.0, item.period_s / 4])
    views = render([home], np.zeros(2, int), np.stack([pose] * 2), times, CAMERA, samples=1)
    first, later = (view == item.id for view in views.items)
    assert first[20:28, 28:36].all()
    assert not np.array_equal(first, later)
