# SPDX-License-Identifier: Apache-2.0
"""What the training sees: finite, of its split, repeatable, true after augmentation."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import torch
from g2vlm_tests.tiny_training import TINY

from g2vlm_ros.checkpoint.prompt_layout import after_images, question_ids
from g2vlm_ros.checkpoint.tokenizer import Tokenizer
from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.sim.question_metrics import LENGTH_KINDS, correct, right_lengths
from g2vlm_ros.demo.sim.questions import KINDS, QuestionAnswer
from g2vlm_ros.demo.sim.splits import home_seed
from g2vlm_ros.demo.train.config import Data
from g2vlm_ros.demo.train.data import (
    CELL_PX,
    Ring,
    cell_shares,
    squares,
    with_any_right_length,
)
from g2vlm_ros.demo.train.home_worker import pick_views
from g2vlm_ros.demo.train.losses import true_rays
from g2vlm_ros.demo.train.shards import SHARD, Shards
from g2vlm_ros.demo.train.train_tokenizer import mention_at


def ring(cache):
    made = Ring(Shards(TINY.data, "train", "cpu", cache))
    made.advance(0, words=True)
    return made


def test_shards_hold_only_homes_of_their_split():
    for split in ("train", "validation", "heldout"):
        shards = Shards(TINY.data, split, "cpu")
        seeds = [seed for number in range(3) for seed in shards.seeds(number)]
        assert len(set(seeds)) == 3 * SHARD
        assert set(seeds) <= {home_seed(split, index) for index in range(max(seeds))}


def test_a_cached_shard_is_the_rendered_one(shard_cache):
    shards = Shards(TINY.data, "train", "cpu", shard_cache)
    first, again = shards.get(0), Shards(TINY.data, "train", "cpu", shard_cache).get(0)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_training_begins_behind_the_homes_of_another(shard_cache, monkeypatch):
    data = replace(TINY.data, first_shard=40, shards_first=2, shards_kept=2, windows_per_scene=1)
    shards, numbers = Shards(data, "train", "cpu"), []
    arrays = Shards(TINY.data, "train", "cpu", shard_cache).get(0)
    monkeypatch.setattr(shards, "get", lambda number: numbers.append(number) or arrays)
    fresh = Ring(shards)
    fresh.advance(0)
    fresh.advance(SHARD - 1)
    assert numbers == [40, 41]
    fresh.advance(SHARD)
    assert numbers == [40, 41, 42]


def test_batches_are_finite_and_repeatable(shard_cache):
    for asking in (False, True):
        torch.manual_seed(0)
        one = ring(shard_cache).batch(8, np.random.default_rng(3), asking)
        torch.manual_seed(0)
        two = ring(shard_cache).batch(8, np.random.default_rng(3), asking)
        assert torch.equal(one.images, two.images) and one.questions == two.questions
        assert one.images.shape == (4, 2, 42, 56, 3)
        for part in (one.target.depth_m, one.target.poses):
            assert bool(torch.isfinite(part).all())
        assert bool((one.target.depth_m > 0).all())
        assert (one.questions is not None) == asking
        torch.testing.assert_close(one.target.poses[:, 0], torch.eye(4).expand(4, 4, 4))


def test_points_still_agree_between_views_after_mirroring(shard_cache):
    """Pose and depth of mirrored windows must fit: points of view 1 land on surfaces of view 0."""
    rays = true_rays(lens(56, 42), torch.device("cpu"))
    ray = torch.cat((rays, torch.ones_like(rays[..., :1])), -1)
    agreed = []
    for seed in range(12):
        target = ring(shard_cache).batch(8, np.random.default_rng(seed), False).target
        points = target.depth_m[..., None] * ray
        pose = target.poses
        world = points[:, 1].flatten(1, 2) @ pose[:, 1, :3, :3].transpose(1, 2)
        world = world + pose[:, 1, None, :3, 3]
        focal = 1 / (rays[0, 1, 0] - rays[0, 0, 0])
        z = world[..., 2]
        u = (world[..., 0] / z - rays[0, 0, 0]) * focal
        v = (world[..., 1] / z - rays[0, 0, 1]) * focal
        inside = (z > 0.2) & (u > 0) & (u < 55) & (v > 0) & (v < 41)
        window = torch.arange(len(z))[:, None].expand_as(z)[inside]
        seen = target.depth_m[window, 0, v[inside].round().long(), u[inside].round().long()]
        agreed.append(float(((seen / z[inside] - 1).abs() < 0.05).float().mean()))
    assert np.median(agreed) > 0.6


def test_windows_are_taken_in_or_against_time():
    rng = np.random.default_rng(0)
    forward = pick_views(rng, 8, 4, 400, any_order=False)
    assert (np.diff(forward) > 0).all() and forward.min() == 0 and forward.max() == 7
    assert set(np.diff(forward).ravel()) == {1, 2}
    turned = np.diff(pick_views(rng, 8, 4, 400, any_order=True))
    backwards = (turned < 0).all(1)
    assert ((turned > 0).all(1) | backwards).all() and 0.3 < backwards.mean() < 0.5


def test_cells_tell_what_fills_them():
    items = torch.zeros((1, 4, 8), dtype=torch.uint8)
    items[0, :2, :2], items[0, 2:, 4:] = 7, 9
    found = cell_shares(items, 2)
    assert found.shape == (1, 4, 256) and bool((found.sum(-1) == 1).all())
    assert found[0, :, 7].tolist() == [0.5, 0, 0, 0] and found[0, :, 9].tolist() == [0, 0, 0, 1]


def test_a_mention_ends_where_its_phrase_does(shard_cache, tokenizer_folder):
    tokenizer = Tokenizer.open(tokenizer_folder)
    seen = 0
    for window in ring(shard_cache).batch(32, np.random.default_rng(0), True).questions:
        for qa in window:
            ids = question_ids(tokenizer, after_images(qa.question))
            for mention in qa.mentions:
                at = mention_at(tokenizer, qa.question, mention.phrase)
                told = tokenizer.decode(ids[: at + 1])
                assert told.endswith(mention.phrase) and (mention.phrase or at == len(ids))
                seen += 1
    assert seen > 20


def test_what_is_answered_badly_is_asked_more_often(shard_cache):
    rng, kinds = np.random.default_rng(0), Counter()
    held = ring(shard_cache)
    for _ in range(12):
        for window in held.batch(32, rng, True).questions:
            kinds.update(qa.kind for qa in window)
            assert len({qa.question for qa in window}) == len(window)
    easier = [kind for kind in KINDS if kind not in Data().harder]
    often = [kinds[kind] for kind in ("count", "distance", "size", "colour", "absent", "nearest")]
    assert min(often) > max(kinds[kind] for kind in easier), kinds
    assert np.mean(often) > 2 * np.mean([kinds[kind] for kind in easier]), kinds


def test_single_views_come_with_what_their_cells_show(shard_cache):
    batch = ring(shard_cache).single_views(6, np.random.default_rng(0))
    assert batch.images.shape == (6, 1, 42, 56, 3) and batch.target is None
    assert batch.cells.shape[:3] == (6, 1, (TINY.data.semantic_px // CELL_PX) ** 2)
    torch.testing.assert_close(batch.cells.sum(-1), torch.ones(batch.cells.shape[:3]))
    named = (batch.cells.sum((1, 2)) > 0) & (batch.classes.sum(-1) > 0)
    assert bool(named.any()) and set(batch.classes.sum(-1).unique().tolist()) == {0.0, 2.0}


def test_squares_show_the_same_picture():
    pixels = torch.randint(0, 256, (1, 2, 42, 56, 3), dtype=torch.uint8)
    made = squares(pixels, 56)
    assert made.shape == (1, 2, 56, 56, 3)
    torch.testing.assert_close(
        made.float().mean((2, 3)), pixels.float().mean((2, 3)), atol=2.0, rtol=0.0
    )


def test_of_a_length_every_right_answer_is_taught_and_no_other():
    rng, true = np.random.default_rng(0), QuestionAnswer("size", "How tall is it?", "1.4 metres.")
    counts = Counter(with_any_right_length(true, rng).answer for _ in range(900))
    assert sorted(counts) == right_lengths("1.4 metres.")
    assert min(counts.values()) > 0.5 * max(counts.values())
    count = QuestionAnswer("count", "How many chairs are there?", "2.")
    assert with_any_right_length(count, rng) == count


def test_lengths_are_taught_as_asked_for(shard_cache):
    """Both ways on the same windows: only lengths differ, and each of them counts as right."""
    exact_data = replace(TINY.data, tolerant_lengths=False)
    exact, loose = (
        Ring(Shards(data, "train", "cpu", shard_cache)) for data in (exact_data, TINY.data)
    )
    lengths = 0
    for one in (exact, loose):
        one.advance(0, words=True)
    for scene in range(6):
        key = (2, 0)
        pairs = zip(
            *(one.questions(0, scene, key, 1, np.random.default_rng(5)) for one in (exact, loose)),
            strict=True,
        )
        for true, taught in pairs:
            assert (true.kind, true.question) == (taught.kind, taught.question)
            assert correct(true.kind, taught.answer, true.answer)
            assert true.answer == taught.answer or true.kind in LENGTH_KINDS
            lengths += true.answer != taught.answer
    assert lengths > 0
