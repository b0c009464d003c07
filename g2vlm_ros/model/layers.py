# SPDX-License-Identifier: Apache-2.0
"""The parts that encoders, trunk and decoders share.

Precision, everywhere in `model`: matrices run in the dtype of their weights; norms, rotations and
the residual stream stay in float32 (or float64), as in the released inference. The sum
of a float32 stream and a bfloat16 branch is float32 by torch's own promotion, so blocks need no
casts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def wide(x: Tensor) -> Tensor:
    """x in float32, or unchanged when it is already as precise."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A small tensor; beyond the host it is copied there once and kept.

    A copy from the host in every call waits for it, and forbids to capture the call in a graph.
    """
    create = torch.tensor if device.type == "cpu" else _kept
    return create(values, dtype=dtype, device=device)


@functools.cache
def _kept(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid approximation of GELU that Qwen2-VL's vision tower was trained with."""
    return x * torch.sigmoid(1.702 * x)


def heads_first(x: Tensor, heads: int) -> Tensor:
    """(..., T, C) to (..., heads, T, C/heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention, (B, heads, T, D) with k and v of as many or fewer heads, to (B, T, C).

    Consecutive query heads share a key/value head. mask is True where a query may look.
    """
    shared = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=shared)
    return out.transpose(1, 2).flatten(2)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm of the last axis with float32 statistics; the result has the weights' dtype."""
    y = F.layer_norm(wide(x), weight.shape, wide(weight), wide(bias), eps)
    return y.to(weight.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm of the last axis with float32 statistics, in the weight's dtype."""
    x = wide(x)
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return (x * wide(weight)).to(weight.dtype)


class LayerNorm(nn.LayerNorm):
    """`layer_norm` with its weights."""

    compute = staticmethod(layer_norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """`rms_norm` with its weight."""

    compute = staticmethod(rms_norm)

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x, self.weight, self.eps)


class Mlp(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, width: int, hidden: int, activation: Callable[[Tensor], Tensor] = F.gelu):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class SelfAttention(nn.Module):
    """Attention over all tokens of x (B, T, C) with rotary positions."""

    def __init__(self, width: int, heads: int, rotation: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.heads = heads
        self.rotation = rotation

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        q, k, v = (heads_first(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        return self.proj(attend(self.rotation(q, angles), self.rotation(k, angles), v))


class Block(nn.Module):
    """A pre-norm transformer block with rotary self-attention, on x (B, T, C)."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        rotation: Callable[[Tensor, Tensor], Tensor],
        activation: Callable[[Tensor], Tensor] = F.gelu,
    ):
        super().__init__()
        self.norm1 = LayerNorm(width, eps=1e-6)
        self.attn = SelfAttention(width, heads, rotation)
        self.norm2 = LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, hidden, activation)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), angles)
        return x + self.mlp(self.norm2(x))
