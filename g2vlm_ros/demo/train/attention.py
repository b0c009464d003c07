# SPDX-License-Identifier: Apache-2.0
"""Attention for small heads on a CPU.

torch's fused kernel is several times slower backwards than the plain formula when heads have a
dozen channels and a view has fifty tokens; its own plain fallback spends as long on masks that
have no empty row here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class PlainAttention(TorchFunctionMode):
    """Within this context scaled_dot_product_attention is the formula of the textbook."""

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            return plain_attention(*args, **kwargs)
        return function(*args, **kwargs)


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, enable_gqa: bool = False
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for (B, heads, T, D); attn_mask is True where to look."""
    if enable_gqa:
        times = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    dtype = (
        torch.get_autocast_dtype(q.device.type)
        if torch.is_autocast_enabled(q.device.type)
        else q.dtype
    )
    q, k, v = (x.to(dtype) for x in (q * q.shape[-1] ** -0.5, k, v))
    # Autocast would run the softmax in float32 and copy the scores there and back.
    with torch.autocast(q.device.type, enabled=False):
        scores = q @ k.transpose(-1, -2)
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        return scores.softmax(-1) @ v


def attend_apart(
    q: Tensor, k: Tensor, v: Tensor, past: tuple[Tensor, Tensor], count: int
) -> Tensor:
    """Attention of `count` texts of equal length in one row, (B, heads, T, D) to (B, T, C).

    Each sees all of the past keys and values (B, kv_heads, P, D) and, causally, itself; the other
    texts are never multiplied, where a mask would do so first and hide them then.
    """
    batch, heads, total, width = q.shape
    shared, length = heads // k.shape[1], total // count
    q = (q * width**-0.5).unflatten(1, (-1, shared))
    before, before_v = (part.to(q.dtype) for part in past)
    past_scores = q.flatten(2, 3) @ before.transpose(-1, -2)
    new_keys, new_values = (part.unflatten(2, (count, length))[:, :, None] for part in (k, v))
    new_scores = q.unflatten(3, (count, length)) @ new_keys.transpose(-1, -2)
    later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    new_scores = new_scores.masked_fill(later, -torch.inf).flatten(3, 4)
    scores = torch.cat((past_scores.view(*new_scores.shape[:-1], -1), new_scores), -1)
    there, here = scores.softmax(-1).to(v.dtype).split([past_scores.shape[-1], length], -1)
    out = (there.flatten(2, 3) @ before_v.to(v.dtype)).view(*q.shape[:-1], width)
    out = out + (here.unflatten(3, (count, length)) @ new_values).flatten(3, 4)
    return out.flatten(1, 2).transpose(1, 2).flatten(2)


def rolled_rotation(x: Tensor, angles: Tensor) -> Tensor:
    """`model.rope.rotate_decoder` on long rows: x (B, heads, P, D), angles (P, 2, D/4).

    There a head is cut into runs of D/4 channels, three in a small network, which no vector unit
    likes. Here partners meet by rolling whole rows of all heads, with sines that are zero where a
    channel has its partner on the other side.
    """
    heads, quarter = x.shape[1], angles.shape[-1]
    rows = x.transpose(1, 2).flatten(2)
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    turns = (
        torch.cat(parts, -1).flatten(1).repeat(1, heads).to(x.dtype)
        for parts in ((cos, cos), (-sin, zero), (zero, sin))
    )
    same, after, before = turns
    turned = rows * same + rows.roll(-quarter, -1) * after + rows.roll(quarter, -1) * before
    return turned.unflatten(2, (heads, -1)).transpose(1, 2)
