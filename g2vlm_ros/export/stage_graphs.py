# SPDX-License-Identifier: Apache-2.0
"""The stages as functions of plain tensors: what is traced for ONNX files and engines.

Names, shapes and meaning of every input and output are tabulated in engines/README.md. Keys and
values are head-major, (layers, kv_heads, tokens, channels), as the products of attention read
them; how they are read and written is in `kv_graphs`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from g2vlm_ros.checkpoint.config import PATCH_PX, ModelConfig, TextConfig
from g2vlm_ros.checkpoint.onnx_manifest import SCATTER_OPSET
from g2vlm_ros.export.kv_graphs import (
    HIDDEN_FROM_SIGHT,
    CompactCache,
    ScatteredCache,
    TwoPartCache,
)
from g2vlm_ros.inference.decoding_state import RECENT_TOKENS, layer_names
from g2vlm_ros.model.decoder import Tokens
from g2vlm_ros.model.layers import wide
from g2vlm_ros.model.network import G2VLM

MIN_OPSET = 20
"""The lowest opset that is written."""

Shape = tuple["int | str", ...]
"""Sizes; a name is a dimension that stays free."""


@dataclass(frozen=True)
class Graph:
    """What one stage is traced with."""

    run: Callable[..., tuple[Tensor, ...]]
    """Takes the network and the inputs in order."""
    inputs: dict[str, tuple[torch.dtype, Shape]]
    outputs: dict[str, Shape]


class GraphModule(nn.Module):
    """A stage as a module, so that it can be called with other weights than the network's."""

    def __init__(self, network: G2VLM, graph: Graph):
        super().__init__()
        self.network = network
        self.run = graph.run

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.run(self.network, *inputs)


def stage_graphs(
    config: ModelConfig, dtype: torch.dtype, confidence: bool, opset: int = MIN_OPSET
) -> dict[str, Graph]:
    """Every stage by name; dtype is that of features and cache, opset that of the ONNX files."""
    one_node = opset >= SCATTER_OPSET
    text = config.text
    width, ids, byte = text.hidden_size, torch.int64, torch.uint8
    past = {name: (dtype, _compact(text, "cached")) for name in ("past_keys", "past_values")}
    new = {name: _compact(text, "tokens") for name in ("keys", "values")}
    place = (1, text.kv_heads, "places", text.head_dim)
    buffers = {f"past_{name}": (dtype, place) for name in layer_names(text.layers)}
    written = {name: place for name in layer_names(text.layers)} if one_node else new
    decoding = {
        "positions": (ids, (3, 1)),
        "stored": (ids, (1,)),
        "recent": (ids, (RECENT_TOKENS,)),
    }
    features, hidden = ("views", "patches", width), ("views", "rows", "columns", width)
    maps = ("views", "height", "width")
    results = {
        "local_points": (*maps, 3),
        "poses": ("views", 4, 4),
        "rotation9": ("views", 9),
        **({"confidence": maps} if confidence else {}),
    }
    return {
        "encode_geometry": Graph(
            encode_geometry,
            {"images": (byte, (*maps, 3))},
            {"features": features, "descriptor": ("views", width)},
        ),
        "geometry": Graph(
            partial(geometry, one_node=one_node),
            {
                "features": (dtype, features),
                "boundary_ids": (ids, ("views", 2)),
                "positions": (ids, (3, "tokens")),
                **past,
            },
            {"hidden": features, **new},
        ),
        "heads": Graph(heads, {"hidden": (dtype, hidden)}, results),
        "heads_global": Graph(
            heads_global, {"hidden": (dtype, hidden)}, {**results, "global_points": (*maps, 3)}
        ),
        "encode_semantics": Graph(
            encode_semantics,
            {"image": (byte, ("height", "width", 3))},
            {"features": ("image_tokens", width)},
        ),
        "language": Graph(
            partial(language, one_node=one_node),
            {
                "ids": (ids, ("ids",)),
                "features": (dtype, ("image_tokens", width)),
                "reach": (ids, ("tokens",)),
                "positions": (ids, (3, "tokens")),
                "stored": (ids, (1,)),
                **buffers,
            },
            {"hidden": (1, width), **written},
        ),
        "next_token": Graph(
            next_token,
            {"hidden": (dtype, (1, width)), **decoding},
            {
                "logits": (text.vocab_size,),
                "next_ids": (1,),
                **{f"next_{name}": shape for name, (_, shape) in decoding.items()},
            },
        ),
    }


def _compact(text: TextConfig, tokens: str) -> Shape:
    """Keys or values of some tokens in all layers."""
    return (text.layers, text.kv_heads, tokens, text.head_dim)


# --- the stages ----------------------------------------------------------------------------------


def encode_geometry(network: G2VLM, images: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens of each view, and their mean in float32, by which a place is recognised."""
    grid_hw = (images.shape[1] // PATCH_PX, images.shape[2] // PATCH_PX)
    positions = patch_positions(network.dino_model.embeddings.position_embeddings, grid_hw)
    features = network.dino2llm(network.dino_model(images, positions))
    return features, features.float().mean(dim=1)


def geometry(
    network: G2VLM,
    features: Tensor,
    boundary_ids: Tensor,
    positions: Tensor,
    past_keys: Tensor,
    past_values: Tensor,
    one_node: bool = False,
) -> tuple[Tensor, ...]:
    """one_node: with an Attention node per attention, which opset 23 began to have."""
    cache = CompactCache(past_keys, past_values, one_node)
    return network.geometry(features, boundary_ids, positions, cache), *cache.new()


def heads(network: G2VLM, hidden: Tensor, global_points: bool = False) -> tuple[Tensor, ...]:
    """The grid is in the shape of hidden, (N, rows, columns, C)."""
    grid_hw = (hidden.shape[1], hidden.shape[2])
    results = network.heads(hidden.flatten(1, 2), grid_hw, global_points)
    return tuple(x for x in results if x is not None)


def heads_global(network: G2VLM, hidden: Tensor) -> tuple[Tensor, ...]:
    return heads(network, hidden, global_points=True)


def encode_semantics(network: G2VLM, image: Tensor) -> tuple[Tensor]:
    return (network.encode_semantics(image),)


def language(
    network: G2VLM,
    ids: Tensor,
    features: Tensor,
    reach: Tensor,
    positions: Tensor,
    stored: Tensor,
    *buffers: Tensor,
    one_node: bool = False,
) -> tuple[Tensor, ...]:
    """Runs the tokens [first id, features, other ids]: text without features, or an image.

    reach: which of the new tokens is the last that each may look at. stored: how many places of
    the buffers (keys and values of each layer in turn) are taken. The hidden state of the last
    token is what `next_token` goes on with.
    """
    trunk = network.language_model.model
    embedded = trunk.embed_tokens(ids)
    tokens = torch.cat((embedded[:1], features, embedded[1:]))[None]
    places = torch.arange(buffers[0].shape[2])
    if one_node:
        cache = ScatteredCache(buffers, stored)
        mask = places[None, :] <= (stored + reach)[:, None]
    else:
        cache = TwoPartCache(buffers, _added(places < stored, features.dtype))
        visible = torch.arange(positions.shape[1])[None, :] <= reach[:, None]
        mask = _added(visible, features.dtype)
    hidden = trunk(Tokens(tokens), positions, cache, mask).semantic
    return hidden[:, -1], *cache.written()


def _added(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores of keys so that only the visible ones count."""
    return torch.where(visible, 0.0, HIDDEN_FROM_SIGHT).to(dtype)


def next_token(
    network: G2VLM,
    hidden: Tensor,
    positions: Tensor,
    stored: Tensor,
    recent: Tensor,
) -> tuple[Tensor, ...]:
    """The likeliest token behind a hidden state, and all that its own step needs.

    So steps can follow each other on a device without a host, which reads the `recent` ids once in
    a while. Where logits are not finite, the id there is -1, and 0 is what goes on.
    """
    row = network.logits(hidden)[None]  # TensorRT chooses from tables only
    wrong = (torch.isnan(row) | torch.isinf(row)).float().amax(dim=-1) > 0
    token = row.argmax(dim=-1)
    newest = torch.where(wrong, -1, token)
    recent = torch.cat((recent[1:], newest))
    return row[0], torch.where(wrong, 0, token), positions + 1, stored + 1, recent


# --- the position table --------------------------------------------------------------------------


def patch_positions(table: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """DINOv2's square table (1, 1 + side^2, C) on another grid, float32 (h*w, C).

    The same antialiased bicubic as `DinoEmbeddings.patch_positions`, as two matrix products: an
    antialiased resize does not export, and this leaves the size of the images free.
    """
    square = wide(table[0, 1:])
    side = round(square.shape[0] ** 0.5)
    rows, columns = (_resampling(size, side) for size in grid_hw)
    down = rows @ square.reshape(side, -1)
    across = columns @ down.reshape(-1, side, square.shape[-1])
    return across.flatten(0, 1)


def _resampling(size: int, side: int) -> Tensor:
    """Weights (size, side) with which `side` samples make `size` ones (Keys' cubic, a = -0.5)."""
    places = torch.arange(size, dtype=torch.float32)
    scale = side / (places[-1] + 1)
    centres = (places[:, None] + 0.5) * scale
    distance = (torch.arange(side, dtype=torch.float32) + 0.5 - centres).abs()
    x = distance / scale.clamp(min=1.0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    return weights / weights.sum(dim=1, keepdim=True)
