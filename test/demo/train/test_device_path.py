# SPDX-License-Identifier: Apache-2.0
"""What makes a step fast on a GPU against the plain way of saying it, window by window."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from g2vlm_tests.tiny_training import TINY
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from g2vlm_ros.checkpoint.tokenizer import Tokenizer
from g2vlm_ros.demo.sim import renderer, shading
from g2vlm_ros.demo.sim.array_backend import Arrays
from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.sim.scenes import make_clips, make_scene
from g2vlm_ros.demo.train import __main__ as command_line
from g2vlm_ros.demo.train import data as windows
from g2vlm_ros.demo.train.batched_model import BatchedModel, build
from g2vlm_ros.demo.train.config import STAGES, Config
from g2vlm_ros.demo.train.data import CLASSES, ITEMS, Ring
from g2vlm_ros.demo.train.home_worker import VARIANTS
from g2vlm_ros.demo.train.losses import HIDDEN, Matches, masked_mean, matching_term
from g2vlm_ros.demo.train.mentions import Mentions, padded_mentions
from g2vlm_ros.demo.train.objectives import Objectives
from g2vlm_ros.demo.train.optimizer import Optimizer, orthogonal
from g2vlm_ros.demo.train.shards import SHARD, Shards
from g2vlm_ros.demo.train.train_tokenizer import mention_at


@pytest.fixture
def objectives(tokenizer_folder, shard_cache):
    return Objectives(TINY, tokenizer_folder, "cpu", shard_cache)


class Waits(TorchDispatchMode):
    """Operations for which the host must wait for a GPU; numbers drawn on the host are none."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        name = operation.overloadpacket.__name__
        if name in ("nonzero", "masked_select", "unique", "bincount"):
            self.seen.append(name)
        if name == "_local_scalar_dense" and arguments[0].dtype != torch.int64:
            self.seen.append(f"number of {arguments[0].dtype}")
        if name in ("index", "index_put", "index_put_"):
            masks = [i for i in arguments[1] if i is not None and i.dtype == torch.bool]
            self.seen += ["boolean index"] * len(masks)
        return operation(*arguments, **(keywords or {}))


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_waits_for_nothing(objectives, stage):
    optimizer = Optimizer(objectives.all, 0.01)
    objectives.backward(stage, 0, np.random.default_rng(0))  # the shard, and constants
    with Waits() as waits:
        _, loss, _ = objectives.backward(stage, 0, np.random.default_rng(1))
        optimizer.step(stage, loss, 1e-3, 1e-3, 1.0)
    assert waits.seen == []
    with Waits() as waits:
        bool(torch.isfinite(loss))
        torch.zeros(3)[torch.ones(3) > 0]
    assert len(waits.seen) >= 2, "the test would notice a wait"


def test_samples_are_shaded_alike_in_any_number(monkeypatch):
    scenes = [make_scene(seed) for seed in (1, 2)]
    whole = make_clips(scenes, 2, lens(64, 48), Arrays("cpu"))
    monkeypatch.setattr(shading, "CPU_CHUNK", 1000)
    monkeypatch.setattr(renderer, "CPU_CHUNK", 7)
    parts = make_clips(scenes, 2, lens(64, 48), Arrays("cpu"))
    assert torch.equal(whole.images, parts.images) and torch.equal(whole.items, parts.items)
    assert torch.equal(whole.depth_m, parts.depth_m)


@pytest.mark.parametrize("arrays", [Arrays(), Arrays("cpu")])
def test_pairs_of_a_tile_and_a_solid_are_grouped_by_rank_and_shape(arrays):
    rank, kind = (arrays.asarray(np.array(x)) for x in ([0, 2, 0, 0, 2], [1, 0, 2, 1, 0]))
    groups = [
        (shape, pairs.tolist())
        for shape, pairs in renderer.pairs_by_rank_and_shape(arrays, rank, kind)
    ]
    assert groups == [(1, [0, 3]), (2, [2]), (0, [1, 4])]


def test_workers_prepare_what_the_training_would(shard_cache):
    """Spawned: views, ids and dialogues are those that are made here."""
    own = Shards(TINY.data, "train", "cpu", shard_cache)
    theirs = Shards(TINY.data, "train", "cpu", workers=2)
    theirs.words = True
    one, other = own.get(0), theirs.get(0)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    ring = Ring(own)
    ring.advance(0, words=True)
    rng = np.random.default_rng(0)
    for scene in (0, SHARD - 1):
        dialogues = theirs.dialogues(0, scene)
        assert len(dialogues) == VARIANTS * len(TINY.data.views)
        for key, dialogue in dialogues.items():
            ring.questions(0, scene, key, 0, rng)
            assert own.dialogues(0, scene)[key] == dialogue


def test_a_batch_is_its_windows_one_by_one(shard_cache, monkeypatch):
    for name in ("exposed", "recoloured"):
        monkeypatch.setattr(windows, name, lambda pixels, rng: pixels)
    monkeypatch.setattr(windows, "mirrored", lambda pixels, target: (pixels, target))
    indices = []
    index = Ring.rows_and_views
    monkeypatch.setattr(
        Ring,
        "rows_and_views",
        lambda self, *where: indices.append(where) or index(self, *where),
    )
    ring = Ring(Shards(TINY.data, "train", "cpu", shard_cache))
    ring.advance(0, words=True)
    shard = ring.shards.get(0)
    for asking in (False, True):
        batch = ring.batch(8, np.random.default_rng(5), asking)
        _, scenes, steps = indices[-1]
        for b, (scene, at) in enumerate(zip(scenes, steps, strict=True)):
            assert torch.equal(batch.images[b], shard["images"][scene, at])
            assert torch.equal(batch.target.depth_m[b], shard["depth"][scene, at].float())
            items = shard["items"][scene, at].numpy()
            things = items > int(shard["structure"][scene])
            np.testing.assert_array_equal(batch.target.important[b].numpy(), things)
            poses = shard["poses"][scene, at].numpy()
            relative = np.linalg.inv(poses[0]) @ poses
            np.testing.assert_allclose(batch.target.poses[b].numpy(), relative, atol=1e-6)
            if asking:
                side = round(batch.cells.shape[2] ** 0.5)
                for view, shown in zip(items, batch.cells[b].numpy(), strict=True):
                    height, width = view.shape
                    row = np.arange(height) * side // height
                    column = np.arange(width) * side // width
                    cell = (row[:, None] * side + column).ravel() * ITEMS + view.ravel()
                    count = np.bincount(cell, minlength=side**2 * ITEMS).reshape(-1, ITEMS)
                    np.testing.assert_allclose(shown, count / count.sum(-1, keepdims=True))


def test_mentions_cost_what_they_cost_one_by_one(objectives, tokenizer_folder):
    """The loops over mentions that the padded arrays stand for."""
    objectives.ring.advance(0, words=True)
    batch = objectives.ring.batch(12, np.random.default_rng(2), True)
    tokenizer, length = Tokenizer.open(tokenizer_folder), 24
    mentions = Mentions(
        *map(torch.from_numpy, padded_mentions(tokenizer, batch.questions, length))
    )
    rows = [
        (b, q, at, mention)
        for b, window in enumerate(batch.questions)
        for q, qa in enumerate(window)
        for mention in qa.mentions
        if (at := mention_at(tokenizer, qa.question, mention.phrase)) < length
    ]
    assert int(mentions.there.sum()) == len(rows) > 10
    torch.manual_seed(0)
    most = max(len(window) for window in batch.questions)
    states = torch.randn(len(batch.images), most, length, 8)
    keys = torch.randn(len(batch.images), batch.cells[0].shape[:2].numel(), 8)
    looks, names, places = [], [], []
    what, where = nn.Linear(8, len(CLASSES)), nn.Linear(8, 3)
    for b, q, at, mention in rows:
        shown = batch.cells[b][:, :, list(mention.items)].sum(-1).flatten()
        if shown.sum() > 0:
            logits = keys[b] @ states[b, q, at]
            looks.append(-(shown / shown.sum() * logits.log_softmax(0)).sum())
        true = batch.classes[b, list(mention.items)].sum(0).clamp(max=1.0)
        wrong = F.binary_cross_entropy_with_logits(what(states[b, q, at]), true, reduction="sum")
        names.append(wrong)
        if mention.viewer_m is not None:
            off = where(states[b, q, at]) - torch.tensor(mention.viewer_m, dtype=torch.float32)
            places.append(off.abs().sum())
    chosen = mentions.of(states)
    shown = mentions.items @ batch.cells.flatten(1, 2).transpose(1, 2)
    total = shown.sum(-1, keepdim=True)
    logits = chosen @ keys.transpose(1, 2)
    look = -(shown / total.clamp(min=1e-9) * logits.log_softmax(-1)).sum(-1)
    look = masked_mean(look, mentions.there & (total[..., 0] > 0))
    true = (mentions.items @ batch.classes).clamp(max=1.0)
    name = F.binary_cross_entropy_with_logits(what(chosen), true, reduction="none").sum(-1)
    place = (where(chosen) - mentions.viewer_m).abs().sum(-1)
    for parts, padded in (
        (looks, look),
        (names, masked_mean(name, mentions.there)),
        (places, masked_mean(place, mentions.placed)),
    ):
        torch.testing.assert_close(padded, torch.stack(parts).mean(), rtol=1e-5, atol=1e-6)


def test_new_heads_ask_nothing_of_the_trunk_at_first(objectives):
    """With no lead, the gradients of the network are those without the term of the places."""
    gradients = []
    for weight, lead in ((1.0, 0.0), (0.0, 0.0), (1.0, 1.0)):
        objectives.config = replace(TINY, loss=replace(TINY.loss, places=weight))
        objectives.all.zero_grad()
        objectives.backward("geometry", 0, np.random.default_rng(0), lead)
        assert (float(objectives.place.weight.grad.abs().sum()) > 0) == (weight > 0)
        head = objectives.trainee.network.dino2llm.weight
        gradients.append(head.grad.clone())
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.allclose(gradients[0], gradients[2])


def test_options_make_the_configuration():
    options = command_line.parse_options(
        "--out x --device cuda --rate .5 --batch-views 512 --windows-per-home 40 "
        "--shards-first 120 --workers 3 --pairs-first 0".split()
    )
    config, plain = command_line.configured(options), Config()
    assert config.steps.muon_rate == pytest.approx(plain.steps.muon_rate)
    assert (config.steps.batch_views, config.steps.asking_views) == (512, 128)
    assert (config.data.windows_per_scene, config.data.pairs_first) == (40, 0)
    assert config.data.shards_kept == config.data.shards_first == 120 and options.workers == 3
    on_cpu = command_line.parse_options(["--out", "x"])
    assert on_cpu.workers == 0
    assert command_line.configured(on_cpu) == plain


def test_workers_need_not_load_torch():
    """Processes that prepare homes import the command's file and `home_worker`, no more."""
    code = (
        "import sys; import g2vlm_ros.demo.train.__main__, g2vlm_ros.demo.train.home_worker; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_hidden_patches_do_not_count():
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    mask = torch.rand(2, 3, 5) > 0.5
    other = torch.tensor([1, 2, 0])
    matches = Matches(other, torch.randint(5, (2, 3, 5)), mask)
    logits = queries @ keys[:, other].transpose(-1, -2)
    plain = F.cross_entropy(logits[mask], matches.label[mask])
    torch.testing.assert_close(matching_term(queries, keys, matches), plain)
    assert HIDDEN < 0
    nothing = matches._replace(visible=torch.zeros_like(mask))
    assert float(matching_term(queries, keys, nothing)) == 0.0


@torch.no_grad()
def test_a_prompt_is_computed_once_while_the_language_stays(tokenizer_folder):
    trainee = BatchedModel(build(TINY.sizes.model(), 0), Tokenizer.open(tokenizer_folder))
    images = torch.randint(0, 256, (2, 2, 42, 56, 3), dtype=torch.uint8)
    plain = trainee.geometry(images).points
    trainee.freeze_language(True)
    for _ in range(2):
        assert torch.equal(trainee.geometry(images).points, plain)
    trainee.network.language_model.model.embed_tokens.weight.mul_(2.0)
    trainee.network.language_model.model.layers[0].self_attn.k_proj.weight.mul_(3.0)
    trainee.freeze_language(True)
    other = trainee.geometry(images).points
    trainee.freeze_language(False)
    assert torch.equal(trainee.geometry(images).points, other)
    assert not torch.equal(other, plain)


@torch.no_grad()
def test_autocast_leaves_the_heads_precise(tokenizer_folder):
    """bfloat16 has 8 bits: depth would come in steps of 0.4 %, which no float32 result shows."""
    trainee = BatchedModel(build(TINY.sizes.model(), 0), Tokenizer.open(tokenizer_folder))
    images = torch.randint(0, 256, (1, 2, 42, 56, 3), dtype=torch.uint8)
    plain = trainee.geometry(images)
    with torch.autocast("cpu", torch.bfloat16):
        rough = trainee.geometry(images)
    for name in ("points", "translation", "rotation9"):
        value = getattr(rough, name)
        rounded = value.bfloat16().float() == value
        assert value.dtype == torch.float32 and float(rounded.float().mean()) < 0.1, name
        assert float((value - getattr(plain, name)).abs().mean()) < 0.05, name


def test_a_step_of_all_is_a_step_of_each(objectives):
    """Muon and AdamW written per parameter, against the buffers."""
    network = objectives.all
    named = dict(network.named_parameters())
    weights = {name: p.detach().clone() for name, p in named.items()}
    optimizer = Optimizer(network, 0.01, semantic_factor=2.0)
    state = {name: value.clone() for name, value in optimizer.state.items()}
    torch.manual_seed(1)
    for count in (1, 2, 3):
        gradients = {name: torch.randn_like(p) for name, p in named.items()}
        for name, p in named.items():
            p.grad = gradients[name].clone()
        optimizer.step("language", torch.zeros(()), 0.02, 0.003, clip=5.0)
        trained = [n for n in named if f"momentum.{n}" in state or f"first.{n}" in state]
        assert set(trained) == set(named)
        own = [
            n for n in named if "language_model" in n and "_moe_geo" not in n and ".ls" not in n
        ]
        own += [n for n in named if "vit_" in n or n.startswith(("names.", "where.", "what."))]
        norm = torch.stack([gradients[n].square().sum() for n in own]).sum().sqrt()
        for name in own:
            gradient = gradients[name] * min(1.0, 5.0 / float(norm))
            if (momentum := state.get(f"momentum.{name}")) is not None:
                momentum.lerp_(gradient, 0.05)
                change = orthogonal(gradient.lerp(momentum, 0.95))
                rate = 2.0 * 0.02
                grow = 0.2 * max(gradient.shape) ** 0.5
                weights[name].mul_(1 - rate * 0.01).sub_(rate * grow * change)
                continue
            first, second = state[f"first.{name}"], state[f"second.{name}"]
            first.lerp_(gradient, 0.1)
            second.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
            size = (second / (1 - 0.99**count)).sqrt() + 1e-8
            weights[name].mul_(1 - 0.003 * 0.01)
            weights[name].sub_(2.0 * 0.003 / (1 - 0.9**count) * first / size)
    for name, p in named.items():
        torch.testing.assert_close(p.detach(), weights[name], rtol=1e-4, atol=1e-5)
    assert (optimizer.count, optimizer.skipped) == (3, 0)
    for p in named.values():
        p.grad = torch.full_like(p, torch.inf)
    before = {name: p.detach().clone() for name, p in named.items()}
    optimizer.step("language", torch.zeros(()), 0.02, 0.003, clip=5.0)
    assert (optimizer.count, optimizer.skipped) == (3, 1)
    assert all(torch.equal(p, before[name]) for name, p in named.items())
