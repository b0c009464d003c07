# SPDX-License-Identifier: Apache-2.0
"""The trunk: attention, the order of tokens, and caches."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from g2vlm_ros.inference.torch_cache import TorchCache
from g2vlm_ros.model.decoder import Tokens, causal_mask
from g2vlm_ros.model.layers import attend

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "A"
UNIT = load_file(GOLDEN / "unit.safetensors")


def test_attention_full_and_causal_behind_a_cache() -> None:
    q, k, v = (UNIT[f"attn.{name}"].transpose(0, 1)[None] for name in "qkv")
    mask = causal_mask(3, 4, q.device)
    for name, chosen in (("full", None), ("causal", mask)):
        actual = attend(q, k, v, chosen)[0].unflatten(-1, (6, 16))
        torch.testing.assert_close(actual, UNIT[f"attn.out_{name}"], atol=1e-5, rtol=1e-4)


def test_tokens_of_a_geometry_stage_keep_the_order_of_the_sequence() -> None:
    order = torch.arange(3 * 6.0).reshape(1, 18, 1)
    views = order.reshape(3, 6, 1)
    tokens = Tokens(torch.cat((views[:, :1], views[:, -1:]), 1), views[:, 1:-1])
    assert torch.equal(tokens.in_order(), order)
    again = tokens.like(order)
    assert torch.equal(again.semantic, tokens.semantic)
    assert torch.equal(again.geometric, tokens.geometric)


def piece(tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(1, 2, tokens, 4, generator=torch.Generator().manual_seed(seed))


def test_forks_share_a_prefix_and_never_see_each_other() -> None:
    first = TorchCache(layers=1)
    first.extend(0, piece(5, 0), piece(5, 1))
    second, third = first.fork(), first.fork()
    shared = first.layer(0)[0].data_ptr()
    keys = {}
    for index, cache in enumerate((second, first, third)):
        keys[index], _ = cache.extend(0, piece(3, 10 + index), piece(3, 20 + index))
    assert second.layer(0)[0].data_ptr() == shared
    for index, cache in enumerate((second, first, third)):
        assert cache.length == 8
        assert torch.equal(cache.layer(0)[0], torch.cat((piece(5, 0), piece(3, 10 + index)), 2))
        assert torch.equal(cache.layer(0)[1], torch.cat((piece(5, 1), piece(3, 20 + index)), 2))
        assert torch.equal(keys[index], cache.layer(0)[0])


def test_cache_grows_beyond_its_first_buffer() -> None:
    cache = TorchCache(layers=1)
    for step in range(600):
        cache.extend(0, piece(1, step), piece(1, -step - 1))
    assert cache.length == 600
    assert torch.equal(cache.layer(0)[0], torch.cat([piece(1, i) for i in range(600)], 2))
