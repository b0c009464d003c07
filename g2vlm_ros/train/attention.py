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
    dtype = torch.get_autocast_dtype(q.device.type) if torch.is_autocast_enabled(q.device.type) else q.dtype
    q, k, v = (x.to(dtype) for x in (q * q.shape[-1] ** -0.5, k, v))
    # Autocast would run the softmax in float32 and copy the scores there and back.
    with torch.autocast(q.device.type, enabled=False):
        scores = q @ k.transpose(-1, -2)
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        return scores.softmax(-1) @ v
