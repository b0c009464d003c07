# SPDX-License-Identifier: Apache-2.0
"""Language steps that leave the geometry as it was."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from g2vlm_tests.tiny_training import TINY

from g2vlm_ros.demo.train.export_checkpoint import TOKENIZER_FILES
from g2vlm_ros.demo.train.geometry_hold import free_directions
from g2vlm_ros.demo.train.loop import Training

STEPS = 4


@pytest.fixture
def training(tmp_path, tokenizer_folder, shard_cache):
    """A tiny training of the language, by whether it keeps the geometry."""

    def begin(keep_geometry: bool) -> Training:
        folder = tmp_path / f"keep_{keep_geometry}"
        folder.mkdir()
        for file in TOKENIZER_FILES:
            shutil.copyfile(tokenizer_folder / file, folder / file)
        steps = replace(TINY.steps, keep_geometry=keep_geometry, warmup=1)
        begun = Training(replace(TINY, steps=steps), folder, "cpu", shard_cache)
        begun.objectives.ring.advance(0, words=True)
        begun.progress.stage = "language"
        return begun

    return begin


def other_views(training: Training) -> torch.Tensor:
    """Images of two windows, which no step draws."""
    return training.objectives.ring.batch(4, np.random.default_rng(9), False).images


@torch.no_grad()
def geometry(training: Training, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Points, poses and the states that answers read."""
    raw = training.trainee.geometry(images)
    chat = training.trainee.patches("chat", images)
    return {"points": raw.points, "translation": raw.translation, "chat": chat}


def weights(training: Training) -> dict[str, torch.Tensor]:
    state = training.trainee.network.language_model.state_dict()
    return {name: value.clone() for name, value in state.items()}


def moved(training: Training) -> tuple[dict[str, float], dict[str, float]]:
    """Root mean square change of the geometry, and of each weight, over some steps."""
    images = other_views(training)
    before, old = geometry(training, images), weights(training)
    for _ in range(STEPS):
        training.step(0.0)
    after, new = geometry(training, images), weights(training)

    def changes(first: dict, then: dict) -> dict[str, float]:
        return {name: float((then[name] - first[name]).square().mean().sqrt()) for name in first}

    return changes(before, after), changes(old, new)


def test_the_language_learns_and_the_geometry_stays(training):
    free, free_weights = moved(training(keep_geometry=False))
    held, held_weights = moved(training(keep_geometry=True))
    for name, change in held.items():
        assert change < 0.1 * free[name], name
    language = [name for name in held_weights if "_moe_geo" not in name and ".ls" not in name]
    matrices = [name for name in language if name.endswith("proj.weight")]
    for name in matrices:
        assert held_weights[name] > 0.1 * free_weights[name], name


def test_gradients_keep_to_what_is_free(training):
    begun = training(keep_geometry=True)
    begun.step(0.0)
    network = begun.trainee.network.language_model.model
    query = network.layers[0].self_attn.q_proj
    states = []
    hook = query.register_forward_pre_hook(lambda module, inputs: states.append(inputs[0]))
    geometry(begun, other_views(begun))
    hook.remove()
    rows = torch.cat([part.flatten(0, -2) for part in states]).detach()
    query.weight.grad = torch.randn(query.weight.shape, generator=torch.Generator().manual_seed(0))
    before = (rows @ query.weight.grad.T).norm()
    begun.hold.project_gradients()
    assert (rows @ query.weight.grad.T).norm() < 0.06 * before
    assert float(query.weight.grad.norm()) > 1.0


def test_free_directions_are_those_of_least_energy():
    random = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(random.double())[0]
    covariance = turn @ torch.diag(torch.tensor([5.0, 1e-4, 3.0, 0.0]).double()) @ turn.T
    free, least = free_directions(covariance, 1e-3).double(), turn[:, [1, 3]]
    torch.testing.assert_close(free @ free.T, least @ least.T, atol=1e-6, rtol=0)
