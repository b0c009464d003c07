# SPDX-License-Identifier: Apache-2.0
"""The trunk: a mixture of two transformers that share their attention.

Every layer has two sets of weights. The semantic one serves text, boundary tokens and the tokens
of the vision tower; the geometric one (suffix `_moe_geo`) serves the tokens of DINOv2. A geometry
stage is the views one after the other, each [start, P patches, end]; because that pattern is
fixed, the two kinds of tokens live in two tensors and meet only in attention, so no gather or
scatter by a token type is needed and the graph exports with a free number of views.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from g2vlm_ros.checkpoint.config import TextConfig
from g2vlm_ros.model.layers import RMSNorm, heads_first, wide
from g2vlm_ros.model.rope import rotate, trunk_angles

SEMANTIC, GEOMETRIC = "", "_moe_geo"


class Tokens(NamedTuple):
    """The residual stream of one stage.

    A text or semantic stage has `semantic` (1, T, C) only; a geometry stage of N views has its
    boundary tokens (N, 2, C) there and the patches in `geometric` (N, P, C).
    """

    semantic: Tensor
    geometric: Tensor | None = None

    def in_order(self) -> Tensor:
        """All tokens in the order of the sequence, (1, T, C)."""
        if self.geometric is None:
            return self.semantic
        start, end = self.semantic.split(1, dim=1)
        return torch.cat((start, self.geometric, end), dim=1).flatten(0, 1)[None]

    def like(self, ordered: Tensor) -> Tokens:
        """The inverse of `in_order`: ordered (1, T, C') cut as this stage is."""
        if self.geometric is None:
            return Tokens(ordered)
        views = ordered[0].reshape(-1, self.geometric.shape[1] + 2, ordered.shape[-1])
        return Tokens(torch.cat((views[:, :1], views[:, -1:]), dim=1), views[:, 1:-1])


class KeyValues(Protocol):
    """What a layer needs of a cache."""

    def attend(
        self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Appends keys and values (1, kv_heads, T, D) of a layer; attention of q over all of them.

        q (1, heads, T, D), result (1, T, heads * D). Layers come in order, each once per stage.
        """


class Attention(nn.Module):
    """Grouped-query attention; every projection and norm exists once per expert."""

    def __init__(self, config: TextConfig):
        super().__init__()
        size, kv_size = config.hidden_size, config.kv_heads * config.head_dim
        for expert in (SEMANTIC, GEOMETRIC):
            self.add_module("q_proj" + expert, nn.Linear(size, size))
            self.add_module("k_proj" + expert, nn.Linear(size, kv_size))
            self.add_module("v_proj" + expert, nn.Linear(size, kv_size))
            self.add_module("o_proj" + expert, nn.Linear(size, size, bias=False))
            self.add_module("q_norm" + expert, RMSNorm(config.head_dim, config.rms_eps))
            self.add_module("k_norm" + expert, RMSNorm(config.head_dim, config.rms_eps))
        self.head_dim = config.head_dim

    def project(self, x: Tensor, expert: str) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (..., T, heads * D); q and k normalised per head."""
        q, k, v = (getattr(self, f"{name}_proj{expert}")(x) for name in "qkv")
        return self._norm("q_norm" + expert, q), self._norm("k_norm" + expert, k), v

    def _norm(self, name: str, x: Tensor) -> Tensor:
        heads = x.unflatten(-1, (-1, self.head_dim))
        return getattr(self, name)(heads).flatten(-2)

    def output(self, x: Tensor, expert: str) -> Tensor:
        return getattr(self, "o_proj" + expert)(x)


def silu_gate(gate: Tensor, x: Tensor) -> Tensor:
    return F.silu(gate) * x


class GatedMlp(nn.Module):
    """SiLU-gated MLP."""

    compute = staticmethod(silu_gate)

    def __init__(self, config: TextConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.mlp_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.mlp_size, bias=False)
        self.down_proj = nn.Linear(config.mlp_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.compute(self.gate_proj(x), self.up_proj(x)))


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch."""

    def __init__(self, size: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Layer(nn.Module):
    """One layer of both experts. LayerScale applies to geometric tokens only."""

    rotation = staticmethod(rotate)

    def __init__(self, config: TextConfig):
        super().__init__()
        for expert in (SEMANTIC, GEOMETRIC):
            self.add_module("input_layernorm" + expert, self._norm(config))
            self.add_module("post_attention_layernorm" + expert, self._norm(config))
            self.add_module("mlp" + expert, GatedMlp(config))
        self.self_attn = Attention(config)
        self.ls1 = LayerScale(config.hidden_size)
        self.ls2 = LayerScale(config.hidden_size)
        self.config = config

    @staticmethod
    def _norm(config: TextConfig) -> RMSNorm:
        return RMSNorm(config.hidden_size, config.rms_eps)

    def forward(
        self, x: Tokens, angles: Tensor, cache: KeyValues, layer: int, mask: Tensor | None
    ) -> Tokens:
        attended = x.like(self._attend(x, angles, cache, layer, mask))
        semantic = x.semantic + self.self_attn.output(attended.semantic, SEMANTIC)
        semantic = semantic + self.mlp(self.post_attention_layernorm(semantic))
        if x.geometric is None:
            return Tokens(semantic)
        y = self.self_attn.output(attended.geometric, GEOMETRIC)
        geometric = x.geometric + self.ls1(y)
        y = self.mlp_moe_geo(self.post_attention_layernorm_moe_geo(geometric))
        return Tokens(semantic, geometric + self.ls2(y))

    def _attend(
        self, x: Tokens, angles: Tensor, cache: KeyValues, layer: int, mask: Tensor | None
    ) -> Tensor:
        parts = self.self_attn.project(self.input_layernorm(x.semantic), SEMANTIC)
        if x.geometric is not None:
            normed = self.input_layernorm_moe_geo(x.geometric)
            geometric = self.self_attn.project(normed, GEOMETRIC)
            pairs = zip(parts, geometric, strict=True)
            parts = (Tokens(semantic, patches).in_order() for semantic, patches in pairs)
        kv_heads = self.config.kv_heads
        q, k, v = (
            heads_first(y, heads)
            for y, heads in zip(parts, (self.config.heads, kv_heads, kv_heads), strict=True)
        )
        q, k = self.rotation(q, angles), self.rotation(k, angles)
        return cache.attend(layer, q, k, v, mask)


class Trunk(nn.Module):
    """Embedding, layers and the final norm of each expert."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_eps)
        self.norm_moe_geo = RMSNorm(config.hidden_size, config.rms_eps)
        self.config = config

    def forward(
        self, x: Tokens, positions: Tensor, cache: KeyValues, mask: Tensor | None = None
    ) -> Tokens:
        """Appends one stage to the cache; the result is normalised.

        positions int64 (3, T) in the order of the sequence; mask (T, cached + T), True where a
        token may look, or None to look everywhere.
        """
        angles = trunk_angles(positions, self.config.mrope_section, self.config.rope_theta)
        x = Tokens(wide(x.semantic), None if x.geometric is None else wide(x.geometric))
        for index, layer in enumerate(self.layers):
            x = layer(x, angles, cache, index, mask)
        geometric = None if x.geometric is None else self.norm_moe_geo(x.geometric)
        return Tokens(self.norm(x.semantic), geometric)


class LanguageModel(nn.Module):
    """The trunk and the output matrix, which is never tied to the embedding."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.model = Trunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


def causal_mask(tokens: int, cached: int, device: torch.device) -> Tensor:
    """bool (tokens, cached + tokens): token i sees the cache and the tokens up to itself."""
    return torch.ones(tokens, cached + tokens, dtype=torch.bool, device=device).tril(cached)
