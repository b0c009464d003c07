# SPDX-License-Identifier: Apache-2.0
"""The loop: learns a toy set, resumes exactly, survives bad steps, exports what it learned."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from g2vlm_tests.tiny_training import TINY

from g2vlm_ros.demo.train.batched_model import stage_of
from g2vlm_ros.demo.train.config import STAGES
from g2vlm_ros.demo.train.export_checkpoint import TOKENIZER_FILES, export
from g2vlm_ros.demo.train.gradient_worker import Exchange
from g2vlm_ros.demo.train.loop import Budget, Training
from g2vlm_ros.demo.train.optimizer import orthogonal
from g2vlm_ros.demo.train.train_state import STATE, load_state


def training(tmp_path, tokenizer_folder, cache, config=TINY, name="run"):
    folder = tmp_path / name
    if not folder.exists():
        folder.mkdir()
        for file in TOKENIZER_FILES:
            shutil.copyfile(tokenizer_folder / file, folder / file)
    return Training(config, folder, "cpu", cache)


def test_a_toy_set_is_learned_to_near_zero(tmp_path, tokenizer_folder, shard_cache, monkeypatch):
    """One window again and again: points, poses and answers must become nearly right."""
    made = training(tmp_path, tokenizer_folder, shard_cache)
    made.objectives.ring.advance(0, words=True)
    torch.manual_seed(0)
    batch = made.objectives.ring.batch(2, np.random.default_rng(0), True)
    shown = batch._replace(questions=None)
    monkeypatch.setattr(
        made.objectives.ring, "batch", lambda views, rng, asking: batch if asking else shown
    )
    views = batch._replace(
        images=batch.images.flatten(0, 1)[:, None],
        cells=batch.cells.flatten(0, 1)[:, None],
        classes=batch.classes.repeat_interleave(batch.images.shape[1], 0),
    )
    monkeypatch.setattr(made.objectives.ring, "single_views", lambda count, rng: views)
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for made.progress.stage in STAGES:
        for count in range(140):
            terms = made.step(max(0.0, (count - 70) / 70))
            first, last = terms | first, last | terms
    made.read()
    assert made.progress.skipped == 0
    assert last["points"] < 0.05 and last["points"] < 0.1 * first["points"]
    assert last["rotation"] < 0.05 and last["translation"] < 0.1
    assert last["language"] < 0.08 * first["language"]
    assert last["naming"] < 0.1 * first["naming"]
    assert last["looking"] < 0.6 * first["looking"]
    assert last["whereabouts"] < 0.3 * first["whereabouts"]


@pytest.mark.parametrize(
    ("stage", "parts"),
    [("geometry", {"geometry"}), ("naming", {"naming"}), ("language", {"language", "naming"})],
)
def test_a_stage_leaves_what_others_learned(tmp_path, tokenizer_folder, shard_cache, stage, parts):
    made = training(tmp_path, tokenizer_folder, shard_cache)
    before = {name: value.clone() for name, value in made.all.state_dict().items()}
    made.objectives.ring.advance(0)
    made.progress.stage = stage
    made.step(0.0)
    after = made.all.state_dict()
    assert {
        stage_of(n) for n, value in before.items() if not torch.equal(after[n], value)
    } == parts


def test_resuming_equals_not_stopping(tmp_path, tokenizer_folder, shard_cache):
    whole = training(tmp_path, tokenizer_folder, shard_cache, name="whole")
    whole.run("geometry", Budget(windows=24), show=False)
    half = training(tmp_path, tokenizer_folder, shard_cache, name="half")
    half.progress.stage = "geometry"
    while half.progress.windows < 12:
        half.step(Budget(windows=24).done(half.progress))
    half.save()
    rest = training(tmp_path, tokenizer_folder, shard_cache, name="half")
    assert rest.progress.windows == half.progress.windows
    rest.run("geometry", Budget(windows=24), show=False)
    for name, value in whole.all.state_dict().items():
        torch.testing.assert_close(rest.all.state_dict()[name], value, rtol=0, atol=0)


def test_a_gradient_worker_adds_its_windows(tmp_path, tokenizer_folder, shard_cache):
    """A second process's gradients count; parts that the stage does not train stay."""
    alone = training(tmp_path, tokenizer_folder, shard_cache)
    made = Training(TINY, alone.folder, "cpu", shard_cache, gradient_worker=True)
    before = {name: value.clone() for name, value in made.all.state_dict().items()}
    made.progress.stage = "geometry"
    made.objectives.ring.advance(0)
    try:
        until = time.monotonic() + 90
        while made.progress.windows == 4 * made.progress.steps and time.monotonic() < until:
            made.step(0.0)
    finally:
        made.gradient_worker.close()
    assert made.progress.windows == 4 * made.progress.steps + 4 and made.progress.skipped == 0
    with pytest.raises(RuntimeError, match="ended with status"):
        made.gradient_worker.collect(4)
    for name, value in made.all.state_dict().items():
        changed = not torch.equal(value, before[name])
        assert changed <= (stage_of(name) == "geometry"), name


def test_waiting_gradients_are_averaged_by_windows():
    module = torch.nn.Linear(2, 1)
    parameters, exchange = list(module.parameters()), Exchange(3)
    module.weight.grad = torch.tensor([[1.0, 2.0]])
    assert exchange.collect(parameters, 2) == 0
    exchange.offer([torch.tensor([[4.0, 8.0]]), torch.zeros(1)], 1)
    assert exchange.collect(parameters, 2) == 1
    torch.testing.assert_close(module.weight.grad, torch.tensor([[2.0, 4.0]]))
    assert module.bias.grad is None and exchange.collect(parameters, 2) == 0


def test_a_bad_step_is_skipped_and_counted(tmp_path, tokenizer_folder, shard_cache, monkeypatch):
    made = training(tmp_path, tokenizer_folder, shard_cache)
    made.progress.stage = "geometry"
    made.objectives.ring.advance(0)
    before = {name: value.clone() for name, value in made.all.state_dict().items()}
    batch = made.objectives.ring.batch(4, np.random.default_rng(0), False)
    broken = batch.target._replace(depth_m=batch.target.depth_m * torch.nan)
    broken = batch._replace(target=broken)
    monkeypatch.setattr(made.objectives.ring, "batch", lambda views, rng, asking: broken)
    made.step(0.0)
    made.read()
    assert made.progress.skipped == 1
    for name, value in made.all.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_kill_while_saving_keeps_the_last_state(
    tmp_path, tokenizer_folder, shard_cache, monkeypatch
):
    made = training(tmp_path, tokenizer_folder, shard_cache)
    made.save()
    good = (made.folder / STATE).read_bytes()

    def dies(tensors, path, meta):
        path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr("g2vlm_ros.demo.train.train_state.save_file", dies)
    with pytest.raises(KeyboardInterrupt):
        made.save()
    assert (made.folder / STATE).read_bytes() == good
    assert load_state(made.folder, "cpu") is not None


def test_another_configuration_is_refused(tmp_path, tokenizer_folder, shard_cache):
    training(tmp_path, tokenizer_folder, shard_cache).save()
    other = replace(TINY, sizes=replace(TINY.sizes, layers=1))
    with pytest.raises(ValueError, match="other tensors"):
        training(tmp_path, tokenizer_folder, shard_cache, other)


def test_unknown_stages_are_refused(tmp_path, tokenizer_folder, shard_cache):
    made = training(tmp_path, tokenizer_folder, shard_cache)
    with pytest.raises(ValueError, match="'joint'"):
        made.run("joint", Budget(windows=1))


def test_export_writes_the_released_format(tmp_path, tokenizer_folder, shard_cache):
    made = training(tmp_path, tokenizer_folder, shard_cache)
    made.save()
    export(made.folder, tmp_path / "demo", TINY)
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert {
        "model.safetensors",
        "text_config.json",
        "vit_config.json",
        "dino_config.json",
        "README.md",
        *TOKENIZER_FILES,
    } <= names
    dino = json.loads((tmp_path / "demo" / "dino_config.json").read_text())
    assert dino["attention_windows"] == "aligned"
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "demo" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    trained = made.trainee.network.state_dict()
    assert weights.keys() == trained.keys()
    assert (
        json.loads((tmp_path / "demo" / "text_config.json").read_text())["language_trained"]
        is False
    )
    with pytest.raises(ValueError, match="holds no training"):
        export(tmp_path, tmp_path / "nothing", TINY)


def test_what_speaks_goes_on_speaking(tmp_path, tokenizer_folder, shard_cache):
    """A geometry stage after the language, even from an exported checkpoint, keeps the words."""
    made = training(tmp_path, tokenizer_folder, shard_cache)
    made.run("language", Budget(windows=1), show=False)
    export(made.folder, tmp_path / "demo", TINY)
    again = Training(
        TINY,
        training(tmp_path, tokenizer_folder, shard_cache, name="again").folder,
        "cpu",
        shard_cache,
        start=tmp_path / "demo",
    )
    again.run("geometry", Budget(windows=1), show=False)
    assert again.progress.speaks and load_state(again.folder, "cpu")[-1].speaks


def test_muon_makes_matrices_nearly_orthogonal():
    torch.manual_seed(0)
    for shape in ((3, 16, 40), (3, 40, 16)):
        made = orthogonal(torch.randn(shape)).float()
        values = torch.linalg.svdvals(made)
        assert float(values.min()) > 0.5 and float(values.max()) < 1.4
