# SPDX-License-Identifier: Apache-2.0
"""The image encoders: position table, attention windows, patch order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from g2vlm_ros.checkpoint.config import DinoConfig, ModelConfig
from g2vlm_ros.model.encoders import DinoAttention, DinoEmbeddings
from g2vlm_ros.model.weights import load

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "A"
UNIT = load_file(GOLDEN / "unit.safetensors")


@pytest.mark.parametrize("grid_hw", [(6, 10), (11, 8), (28, 37), (37, 37), (51, 37)])
def test_position_table_is_resampled_as_trained(grid_hw: tuple[int, int]) -> None:
    config = DinoConfig(6, 1, 1, 12, 4, table_side=37, eps=1e-6, windows="released")
    embeddings = DinoEmbeddings(config)
    embeddings.position_embeddings.data = UNIT["posemb.table"]
    want = UNIT["posemb.{}x{}".format(*grid_hw)][0, 1:]
    actual = embeddings.patch_positions(grid_hw).detach()
    torch.testing.assert_close(actual, want, atol=1e-5, rtol=1e-5)
    if grid_hw == (37, 37):
        assert torch.equal(actual, want)


def attention(windows: str) -> DinoAttention:
    torch.manual_seed(3)
    config = ModelConfig.read(GOLDEN).dino
    return DinoAttention(replace(config, windows=windows)).requires_grad_(False)


def test_aligned_windows_treat_every_view_alone() -> None:
    layer, x = attention("aligned"), torch.randn(3, 12 + 5, 32)
    alone = torch.cat([layer(view[None]) for view in x])
    torch.testing.assert_close(layer(x), alone, atol=1e-5, rtol=1e-5)


def test_released_windows_slide_and_leave_the_last_rows_without_attention() -> None:
    layer, x = attention("released"), torch.randn(3, 12 + 5, 32)
    flat = layer(x).flatten(0, 1)
    bias = layer.output["dense"].bias
    assert torch.equal(flat[3 * 12 :], bias.expand(15, -1))
    changed = x.clone()
    changed[1, 0] += 1.0  # flattened token 17 lies in window 1, tokens 12 to 23
    moved = (layer(changed).flatten(0, 1) != flat).any(-1)
    assert moved[12:24].all() and moved.sum() == 12


def test_semantic_rows_come_in_merged_squares_with_two_equal_frames() -> None:
    tower = load(GOLDEN).vit_model
    image = torch.zeros(56, 56, 3, dtype=torch.uint8)
    image[14:28, 0:14] = 255  # patch row 1, column 0 is third in its square
    rows = tower.rows(image).reshape(16, 3, 2, 14 * 14)
    bright = (rows[:, 0, 0] > 0).all(-1)
    assert bright.nonzero().flatten().tolist() == [2]
    assert torch.equal(rows[:, :, 0], rows[:, :, 1])
