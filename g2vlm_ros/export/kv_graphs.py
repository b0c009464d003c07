# SPDX-License-Identifier: Apache-2.0
"""How the traced stages read keys and values, and hand over those of new tokens.

`geometry` reads the few tokens before the views as one compact array. `language` reads a buffer
per layer with a fixed number of places, of which the first are taken; a mask says how many, so
that shapes and addresses of a decoding step never change. Two forms of it: for opset 20 past and
new tokens are attended to apart, for opset 24 new tokens are put into the buffer in place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from g2vlm_ros.checkpoint.onnx_manifest import SCATTER_OPSET
from g2vlm_ros.model.layers import attend

HIDDEN_FROM_SIGHT = -3e4
"""Added to the score of a key that a token may not look at; finite, for half precision."""


class CompactCache:
    """Past keys and values (layers, kv_heads, S, D) without free places, for stages without mask.

    one_node: an Attention node per attention. Else query heads that share keys are rows of one
    matrix, so that keys and values are not repeated for each query head, as the exporter would.
    """

    def __init__(self, keys: Tensor, values: Tensor, one_node: bool):
        self._past, self._one_node = (keys, values), one_node
        self._new: list[tuple[Tensor, Tensor]] = []

    def attend(
        self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        """As `model.decoder.KeyValues`."""
        self._new.append((keys, values))
        all_keys, all_values = (
            torch.cat((past[layer, None], new), dim=2)
            for past, new in zip(self._past, (keys, values), strict=True)
        )
        if self._one_node:
            return attend(q, all_keys, all_values, mask)
        out = F.scaled_dot_product_attention(grouped(q, keys), all_keys, all_values)
        return ungrouped(out, q)

    def new(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the new tokens, (layers, kv_heads, T, D)."""
        keys, values = zip(*self._new, strict=True)
        return torch.cat(keys), torch.cat(values)


class TwoPartCache:
    """Buffers are only read: softmax is over the scores of past and new tokens side by side.

    So no cache is put together, and none is copied. Masks are added to the scores: that of the
    past is for all new tokens alike, (places,), that of the new ones is (T, T).
    """

    def __init__(self, buffers: Sequence[Tensor], past_mask: Tensor):
        """buffers: keys and values (1, kv_heads, places, D) of each layer in turn."""
        self._buffers, self._past_mask = buffers, past_mask
        self._new: list[tuple[Tensor, Tensor]] = []

    def attend(
        self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        """As `model.decoder.KeyValues`."""
        self._new.append((keys, values))
        past_keys, past_values = self._buffers[2 * layer : 2 * layer + 2]
        rows = grouped(q, keys) * q.shape[-1] ** -0.5
        past = rows @ past_keys.transpose(-1, -2) + self._past_mask
        new = (rows @ keys.transpose(-1, -2)).unflatten(2, (-1, q.shape[2])) + mask
        weights = torch.cat((past, new.flatten(2, 3)), dim=-1).softmax(dim=-1)
        places = past_keys.shape[2]
        out = weights[..., :places] @ past_values + weights[..., places:] @ values
        return ungrouped(out, q)

    def written(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the new tokens, (layers, kv_heads, T, D); to be put into buffers."""
        keys, values = zip(*self._new, strict=True)
        return torch.cat(keys), torch.cat(values)


class ScatteredCache:
    """New tokens are put into the buffers behind the `stored` ones; one Attention node reads all.

    The mask is boolean, (T, places). A runtime binds the buffers that come out to the memory of
    those that went in.
    """

    def __init__(self, buffers: Sequence[Tensor], stored: Tensor):
        self._buffers, self._stored = buffers, stored
        self._written: list[Tensor] = []

    def attend(
        self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        """As `model.decoder.KeyValues`."""
        past = self._buffers[2 * layer : 2 * layer + 2]
        all_keys, all_values = (
            scatter_tokens(buffer, new, self._stored)
            for buffer, new in zip(past, (keys, values), strict=True)
        )
        self._written += [all_keys, all_values]
        return attend(q, all_keys, all_values, mask)

    def written(self) -> list[Tensor]:
        """The buffers with the new tokens, keys and values of each layer in turn."""
        return self._written


def grouped(q: Tensor, keys: Tensor) -> Tensor:
    """Queries (1, heads, T, D) as rows of their key heads, (1, kv_heads, group * T, D)."""
    return q.unflatten(1, (keys.shape[1], -1)).flatten(2, 3)


def ungrouped(out: Tensor, q: Tensor) -> Tensor:
    """The inverse, with the heads of a token side by side: (1, T, heads * D)."""
    heads = out.unflatten(2, (-1, q.shape[2])).flatten(1, 2)
    return heads.transpose(1, 2).flatten(2)


@torch.library.custom_op("g2vlm_ros::scatter_tokens", mutates_args=())
def scatter_tokens(buffer: Tensor, tokens: Tensor, stored: Tensor) -> Tensor:
    """The buffer (1, heads, places, D) with tokens (1, heads, T, D) from place `stored` (1,) on.

    An operator of its own, because ONNX has one that torch has not: TensorScatter.
    """
    result = buffer.clone()
    result[:, :, int(stored) : int(stored) + tokens.shape[2]] = tokens
    return result


@scatter_tokens.register_fake
def _(buffer: Tensor, tokens: Tensor, stored: Tensor) -> Tensor:
    return torch.empty_like(buffer)


def scatter_node(buffer: object, tokens: object, stored: object) -> object:
    """`scatter_tokens` as the exporter writes it."""
    from onnxscript.values import Opset

    return Opset("", SCATTER_OPSET).TensorScatter(buffer, tokens, stored, axis=-2)


TRANSLATIONS = {torch.ops.g2vlm_ros.scatter_tokens.default: scatter_node}
"""For the exporter: operators of this project -> what it writes for them."""
