# SPDX-License-Identifier: Apache-2.0
"""The stages as functions of plain tensors: what is traced for ONNX files and engines.

Names, shapes and meaning of every input and output are tabulated in engines/README.md. The cache
is token-major, (tokens, layers, kv_heads, channels): a prefix of it is contiguous, and a runtime
writes new tokens in place behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from g2vlm_ros.checkpoint.config import PATCH_PX, ModelConfig
from g2vlm_ros.model.decoder import Tokens
from g2vlm_ros.model.layers import attend, wide
from g2vlm_ros.model.network import G2VLM

MIN_OPSET, ATTENTION_OPSET = 20, 23
"""The lowest opset that is written, and the first that has attention as one node."""
HIDDEN_FROM_SIGHT = -3e4
"""Added to the score of a key that a token may not look at; finite, for half precision."""

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
    one_node = opset >= ATTENTION_OPSET
    text = config.text
    width, ids, byte = text.hidden_size, torch.int64, torch.uint8
    entry = (text.layers, text.kv_heads, text.head_dim)
    past = {name: (dtype, ("cached", *entry)) for name in ("past_keys", "past_values")}
    new = {name: ("tokens", *entry) for name in ("keys", "values")}
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
                **past,
            },
            {"logits": (text.vocab_size,), **new},
        ),
    }


# --- the stages ----------------------------------------------------------------------------------


class TokenMajorCache:
    """Past keys and values as inputs of a graph, and those of the new tokens."""

    def __init__(self, keys: Tensor, values: Tensor):
        self._past = (keys, values)
        self._new: list[tuple[Tensor, Tensor]] = []

    def attend(
        self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        """As `model.decoder.KeyValues`: one Attention node over past and new tokens."""
        past_keys, past_values = self.append(layer, keys, values)
        all_keys = torch.cat((past_keys, keys), dim=2)
        return attend(q, all_keys, torch.cat((past_values, values), dim=2), mask)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps the new tokens (1, kv_heads, T, D) of a layer; gives its past ones, alike."""
        self._new.append((keys[0].transpose(0, 1), values[0].transpose(0, 1)))
        past_keys, past_values = (past[:, layer].transpose(0, 1)[None] for past in self._past)
        return past_keys, past_values

    def new(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the new tokens, (T, layers, kv_heads, D)."""
        keys, values = zip(*self._new, strict=True)
        return torch.stack(keys, dim=1), torch.stack(values, dim=1)


class GroupedCache(TokenMajorCache):
    """Without the Attention node: query heads that share keys are rows of one matrix.

    So keys and values are never repeated for each query head, which is what the exporter would
    write for grouped queries. For stages without a mask.
    """

    def attend(
        self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        past_keys, past_values = self.append(layer, keys, values)
        all_keys = torch.cat((past_keys, keys), dim=2)
        all_values = torch.cat((past_values, values), dim=2)
        out = F.scaled_dot_product_attention(grouped(q, keys), all_keys, all_values)
        return ungrouped(out, q)


class TwoPartCache(TokenMajorCache):
    """Without the Attention node: past and new tokens apart, so that no cache is put together.

    A step reads the past keys and values where they lie; softmax is over the scores of both. Every
    token sees all of the past, so the mask (T, T), which is added, is of the new tokens alone.
    """

    def attend(
        self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        past_keys, past_values = self.append(layer, keys, values)
        rows = grouped(q, keys) * q.shape[-1] ** -0.5
        new = (rows @ keys.transpose(-1, -2)).unflatten(2, (-1, q.shape[2])) + mask
        scores = torch.cat((rows @ past_keys.transpose(-1, -2), new.flatten(2, 3)), dim=-1)
        weights = scores.softmax(dim=-1)
        past = past_keys.shape[2]
        out = weights[..., :past] @ past_values + weights[..., past:] @ values
        return ungrouped(out, q)


def grouped(q: Tensor, keys: Tensor) -> Tensor:
    """Queries (1, heads, T, D) as rows of their key heads, (1, kv_heads, group * T, D)."""
    return q.unflatten(1, (keys.shape[1], -1)).flatten(2, 3)


def ungrouped(out: Tensor, q: Tensor) -> Tensor:
    """The inverse, with the heads of a token side by side: (1, T, heads * D)."""
    heads = out.unflatten(2, (-1, q.shape[2])).flatten(1, 2)
    return heads.transpose(1, 2).flatten(2)


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
    cache = (TokenMajorCache if one_node else GroupedCache)(past_keys, past_values)
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
    past_keys: Tensor,
    past_values: Tensor,
    one_node: bool = False,
) -> tuple[Tensor, ...]:
    """Runs the tokens [first id, features, other ids]: text without features, or an image."""
    trunk = network.language_model.model
    embedded = trunk.embed_tokens(ids)
    tokens = torch.cat((embedded[:1], features, embedded[1:]))[None]
    cached, new = past_keys.shape[0], positions.shape[1]
    if one_node:
        cache = TokenMajorCache(past_keys, past_values)
        mask = torch.arange(cached + new)[None, :] <= reach[:, None]
    else:
        cache = TwoPartCache(past_keys, past_values)
        visible = cached + torch.arange(new)[None, :] <= reach[:, None]
        mask = torch.where(visible, 0.0, HIDDEN_FROM_SIGHT).to(features.dtype)
    hidden = trunk(Tokens(tokens), positions, cache, mask).semantic
    return network.language_model.lm_head(hidden[0, -1]).float(), *cache.new()


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
