# SPDX-License-Identifier: Apache-2.0
"""Small parts of the network as one kernel each, where they compile and compute the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from g2vlm_ros.checkpoint.config import PATCH_PX
from g2vlm_ros.inference.device_errors import says_lost
from g2vlm_ros.inference.torch_cache import PastTokens
from g2vlm_ros.inference.torch_graphs import MAX_DEVIATION, deviation
from g2vlm_ros.model.fusion import with_fused_parts
from g2vlm_ros.model.network import G2VLM

GRID_HW = (4, 6)
"""Patches of the views of the trial: rows, columns, multiples of what the vision tower merges."""
log = logging.getLogger(__name__)


def fused_or_plain(network: G2VLM, compiler: Any = "inductor") -> G2VLM:
    """The network with fused parts, or itself where a trial of every stage fails or differs.

    The trial compiles what windows and answers need: some seconds, at the first start ever up to
    a minute. Raises only what means that the device is lost.
    """
    try:
        fused = with_fused_parts(network, compiler)
        with torch.inference_mode():
            errors = map(deviation, _trial(fused), _trial(network))
            worst = max(errors)
    except Exception as error:  # a compiler, its cache and its libraries fail in many ways
        if says_lost(str(error)):
            raise
        # The first line of torch's compiler names the backend, the second what went wrong.
        reason = " ".join(str(error).strip().splitlines()[:2]) or type(error).__name__
        log.warning("norms, rotations and gates are not fused: %s", reason)
        return network
    bound = MAX_DEVIATION[network.dino2llm.weight.dtype]
    if not worst <= bound:
        log.warning(
            "norms, rotations and gates are not fused: results are off by %.2g of their size, "
            "above %g",
            worst,
            bound,
        )
        return network
    return fused


def _trial(network: G2VLM) -> Iterator[Tensor]:
    """What every stage gives for small inputs: one view and two, texts, an image, one token."""
    weight, text = network.dino2llm.weight, network.config.text
    device = weight.device
    rows, columns = GRID_HW
    generator = torch.Generator().manual_seed(0)
    shape = (2, rows * PATCH_PX, columns * PATCH_PX, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
    past = weight.new_zeros((2, text.layers, text.kv_heads, 3, text.head_dim))
    for views in (1, 2):
        features = network.encode_geometry(images[:views])
        ids = torch.zeros((views, 2), dtype=torch.int64, device=device)
        positions = _positions(views * (rows * columns + 2), device)
        hidden = network.geometry(features, ids, positions, PastTokens(past))
        geometry = network.heads(hidden, GRID_HW)
        yield from (hidden, geometry.local_points, geometry.rotation9)
    semantic = network.encode_semantics(images[0])
    positions = _positions(semantic.shape[0] + 2, device)
    yield network.semantic(semantic, ids[0], positions, PastTokens(past))
    for tokens in (5, 1):
        ids = torch.arange(tokens, device=device)
        hidden = network.text(ids, _positions(tokens, device), PastTokens(past), past.shape[3])
        yield network.logits(hidden)


def _positions(tokens: int, device: torch.device) -> Tensor:
    return torch.arange(tokens, device=device).expand(3, tokens)
