# SPDX-License-Identifier: Apache-2.0
"""Losses: zero at the truth, blind to scale where they must be, and finite gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from g2vlm_tests.tiny_training import TINY

from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.train.batched_model import RawHeads
from g2vlm_ros.demo.train.config import Loss
from g2vlm_ros.demo.train.data import Ring
from g2vlm_ros.demo.train.losses import (
    geometry_terms,
    grid_points,
    looking_term,
    matches,
    matching_term,
    overlap,
    places_term,
    same_place,
    true_rays,
    whereabouts_term,
)
from g2vlm_ros.demo.train.shards import Shards

GRID = 3, 4
RAYS = true_rays(lens(56, 42), torch.device("cpu"))


@pytest.fixture(scope="module")
def target(shard_cache):
    ring = Ring(Shards(TINY.data, "train", "cpu", shard_cache))
    ring.advance(0)
    return ring.batch(8, np.random.default_rng(1), False).target


def perfect(target, scale=1.0):
    log_z = (target.depth_m * scale).log()[..., None]
    rays = RAYS.expand(*target.depth_m.shape, 2)
    rotation = target.poses[..., :3, :3].flatten(-2)
    place = target.poses[..., :3, 3] * scale
    return RawHeads(torch.cat((rays, log_z), -1), place, rotation, *[torch.zeros(())] * 3)


def test_the_truth_costs_nothing(target):
    terms = geometry_terms(perfect(target), target, RAYS, Loss())
    for name, term in terms.items():
        assert float(term) == pytest.approx(0.0, abs=5e-3), name


def test_scale_costs_only_the_metric_terms(target):
    terms = geometry_terms(perfect(target, 1.5), target, RAYS, Loss())
    assert float(terms["points"]) < 1e-3 and float(terms["normals"]) < 1e-3
    assert float(terms["metric"]) > 0.4 and float(terms["translation"]) > 0.01


def test_every_error_costs_its_own_term(target):
    truth = perfect(target)
    noise = torch.randn_like(truth.points[..., 2]) * 0.1
    points = truth.points.clone()
    points[..., 2] += noise
    terms = geometry_terms(truth._replace(points=points), target, RAYS, Loss())
    assert float(terms["points"]) > 0.05 and float(terms["normals"]) > 0.2
    turned = truth._replace(rotation9=truth.rotation9.roll(3, -1))
    assert float(geometry_terms(turned, target, RAYS, Loss())["rotation"]) > 1.0
    moved = truth._replace(translation=truth.translation + 0.5)
    assert float(geometry_terms(moved, target, RAYS, Loss())["translation"]) > 1.0


@pytest.mark.parametrize("rotation9", [torch.eye(3).flatten(), torch.zeros(9), torch.ones(9)])
def test_gradients_are_finite_even_for_degenerate_rotations(target, rotation9):
    truth = perfect(target)
    rotation = rotation9.expand_as(truth.rotation9).clone().requires_grad_()
    points = truth.points.clone().requires_grad_()
    raw = RawHeads(points, truth.translation, rotation, *truth[3:])
    terms = geometry_terms(raw, target, RAYS, Loss())
    sum(terms.values()).backward()
    assert bool(torch.isfinite(rotation.grad).all()) and bool(torch.isfinite(points.grad).all())


def test_patch_points_lie_on_what_the_next_view_sees(target):
    """Points of view 0, put into view 1, are where its depth says, or hidden behind it."""
    world = grid_points(target, RAYS, GRID)
    pose, focal = target.poses[:, 1], 1.0 / (RAYS[0, 1, 0] - RAYS[0, 0, 0])
    seen = (world[:, 0] - pose[:, None, :3, 3]) @ pose[:, :3, :3]
    u = ((seen[..., 0] / seen[..., 2] - RAYS[0, 0, 0]) * focal).round().long()
    v = ((seen[..., 1] / seen[..., 2] - RAYS[0, 0, 1]) * focal).round().long()
    height, width = target.depth_m.shape[-2:]
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height) & (seen[..., 2] > 0.1)
    depth = target.depth_m[:, 1].flatten(1).gather(1, (v * width + u).clamp(0, height * width - 1))
    ratio = (seen[..., 2] / depth)[inside]
    assert len(ratio) > 10
    assert float(((ratio - 1).abs() < 0.05).float().mean()) > 0.5
    assert float((ratio > 0.9).float().mean()) > 0.95


def test_places_are_relative_to_the_size_of_the_window(target):
    world = grid_points(target, RAYS, GRID)
    assert float(places_term(world, world)) == 0.0
    off = places_term(1.1 * world, world)
    torch.testing.assert_close(places_term(11.0 * world, 10.0 * world), off)
    assert 0.02 < float(off) < 0.1


def test_matching_rewards_features_of_the_place(target):
    """Features that encode where a patch lies in the world match between views."""
    world = grid_points(target, RAYS, GRID)
    frequencies = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)) * 1.5
    phases = world @ frequencies
    good = torch.nn.functional.normalize(torch.cat((phases.sin(), phases.cos()), -1), dim=-1)
    random = torch.nn.functional.normalize(torch.randn_like(good), dim=-1)
    pairs = matches(target, RAYS, world, torch.arange(world.shape[1]).roll(-1))
    terms = [matching_term(features / 0.07, features, pairs) for features in (good, random)]
    assert terms[0] < 0.5 * terms[1]


def test_whereabouts_are_a_direction_and_a_distance():
    points = torch.tensor([[3.0, 0.0, 4.0]])
    truth = torch.tensor([[0.6, 0.0, 0.8, np.log(5.0)]])
    assert float(whereabouts_term(truth, points)) == pytest.approx(0.0, abs=1e-6)
    farther = whereabouts_term(truth, 2.0 * points)
    assert float(farther) == pytest.approx(np.log(2.0), abs=1e-6)


def test_cells_and_patches_cover_the_same_picture():
    """A cell looks at the patches that lie on it, of its own view alone, by their share."""
    assert torch.equal(overlap(2, 4), torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]))
    queries, keys = torch.zeros(1, 2, 4, 3), torch.zeros(1, 2, 12, 3)
    logits, expected = same_place(queries, keys, (3, 4))
    assert logits.shape == (1, 2, 4, 24) and expected.shape == (2, 4, 24)
    torch.testing.assert_close(expected.sum(-1), torch.ones(2, 4))
    assert not expected[0, :, 12:].any() and not expected[1, :, :12].any()
    shares = torch.tensor([[1 / 3, 1 / 3, 0, 0], [1 / 6, 1 / 6, 0, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(expected[0, 0, :12], shares.flatten())
    perfect = (expected + 1e-9).log()
    assert float(looking_term(perfect, expected)) < float(looking_term(logits, expected))
