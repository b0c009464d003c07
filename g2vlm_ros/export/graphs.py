"""The stages as functions of plain tensors: what is traced for ONNX files and engines.

One vocabulary for the Protocol, the files and the engines. N views of h x w patches (P = h*w,
H = 14*h pixels), T new tokens behind S cached ones, C the width of the trunk, L layers with K
key/value heads of D channels. The cache is token-major, so that a prefix of it is contiguous and
new tokens can be written in place behind it.

| stage            | inputs                                                        | outputs |
|------------------|---------------------------------------------------------------|---------|
| encode_geometry  | images uint8 (N, H, W, 3)                                     | features (N, P, C) |
| geometry         | features (N, P, C), boundary_ids int64 (N, 2), positions int64 (3, N*(P+2)), past_keys, past_values (S, L, K, D) | hidden (N, P, C), keys, values (N*(P+2), L, K, D) |
| heads            | hidden (N, h, w, C)                                           | local_points (N, H, W, 3), poses (N, 4, 4), rotation9 (N, 9), confidence (N, H, W) and global_points (N, H, W, 3) where present |
| encode_semantics | image uint8 (H, W, 3)                                         | features (P/4, C) |
| language         | ids int64 (I), features (F, C), reach int64 (T), positions int64 (3, T), past_keys, past_values | logits (vocabulary), keys, values (T, L, K, D) |

`language` runs the tokens [first id, features, other ids], T = I + F: text has no features, a
semantic image has two ids around them. reach is the last place in the cache, new tokens included,
that each token may look at.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from g2vlm_ros.core.config import PATCH_PX, ModelConfig
from g2vlm_ros.model.decoder import Tokens
from g2vlm_ros.model.layers import wide
from g2vlm_ros.model.network import G2VLM


@dataclass(frozen=True)
class Graph:
    """What one stage is traced with."""

    run: Callable[..., tuple[Tensor, ...]]
    """Takes the network and the inputs in order."""
    inputs: dict[str, Tensor]
    """An example of each input."""
    outputs: tuple[str, ...]
    free: dict[str, dict[int, str]]
    """Per input the dimensions that stay free, with their names."""


class TokenMajorCache:
    """Past keys and values (S, L, K, D) of the graph, and those of the new tokens."""

    def __init__(self, keys: Tensor, values: Tensor):
        self._past = (keys, values)
        self._new: list[tuple[Tensor, Tensor]] = []

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Called once per layer, in order, with (1, K, T, D)."""
        self._new.append((keys[0].transpose(0, 1), values[0].transpose(0, 1)))
        past_keys, past_values = (past[:, layer].transpose(0, 1)[None] for past in self._past)
        return torch.cat((past_keys, keys), dim=2), torch.cat((past_values, values), dim=2)

    def new(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the new tokens, (T, L, K, D)."""
        keys, values = zip(*self._new, strict=True)
        return torch.stack(keys, dim=1), torch.stack(values, dim=1)


# --- the stages ----------------------------------------------------------------------------------


def encode_geometry(network: G2VLM, images: Tensor) -> tuple[Tensor]:
    grid_hw = (images.shape[1] // PATCH_PX, images.shape[2] // PATCH_PX)
    positions = patch_positions(network.dino_model.embeddings.position_embeddings, grid_hw)
    return (network.dino2llm(network.dino_model(images, positions)),)


def geometry(
    network: G2VLM,
    features: Tensor,
    boundary_ids: Tensor,
    positions: Tensor,
    past_keys: Tensor,
    past_values: Tensor,
) -> tuple[Tensor, ...]:
    cache = TokenMajorCache(past_keys, past_values)
    return network.geometry(features, boundary_ids, positions, cache), *cache.new()


def heads(network: G2VLM, hidden: Tensor, global_points: bool) -> tuple[Tensor, ...]:
    grid_hw = (hidden.shape[1], hidden.shape[2])
    found = network.heads(hidden.flatten(1, 2), grid_hw, global_points)
    return tuple(x for x in found if x is not None)


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
) -> tuple[Tensor, ...]:
    trunk, cache = network.language_model.model, TokenMajorCache(past_keys, past_values)
    embedded = wide(trunk.embed_tokens(ids))
    tokens = torch.cat((embedded[:1], wide(features), embedded[1:]))[None]
    places = torch.arange(past_keys.shape[0] + positions.shape[1])
    mask = places[None, :] <= reach[:, None]
    hidden = trunk(Tokens(tokens), positions, cache, mask).semantic
    return network.language_model.lm_head(hidden[0, -1]).float(), *cache.new()


# --- the position table --------------------------------------------------------------------------


def patch_positions(table: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """DINOv2's square table (1, 1 + side^2, C) on another grid, float32 (h*w, C).

    The same antialiased bicubic as `DinoEmbeddings.patch_positions`, as two matrix products, so
    that it exports and the size of the images stays free.
    """
    square = wide(table[0, 1:])
    side = round(square.shape[0] ** 0.5)
    rows, cols = (_resampling(size, side) for size in grid_hw)
    down = rows @ square.reshape(side, -1)
    across = cols @ down.reshape(-1, side, square.shape[-1])
    return across.flatten(0, 1)


def _resampling(size: int, side: int) -> Tensor:
    """Weights (size, side) with which `side` samples make `size` ones."""
    places = torch.arange(size, dtype=torch.float32)
    scale = side / (places[-1] + 1)
    centres = (places[:, None] + 0.5) * scale
    distance = (torch.arange(side, dtype=torch.float32) + 0.5 - centres).abs()
    x = distance / scale.clamp(min=1.0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    return weights / weights.sum(dim=1, keepdim=True)
