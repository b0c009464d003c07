# SPDX-License-Identifier: Apache-2.0
"""Rotary positions: three axes in the trunk, two in the decoders and in the vision tower.

A rotary embedding turns pairs of channels by an angle that grows with the position. Everywhere
here a pair is channel i and channel i + D/2 ("half rotation"); the three embeddings differ only in
their angles. Angles and rotations are computed in float32 whatever the dtype of the features.
"""

from __future__ import annotations

import torch
from torch import Tensor

DECODER_BASE = 100.0
VISION_BASE = 10000.0


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turns each pair of channels by its angle.

    x (..., D) and angles (..., D/2), broadcast over the leading dimensions; result like x.
    """
    first, second = x.to(torch.promote_types(x.dtype, angles.dtype)).chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


def trunk_angles(positions: Tensor, sections: tuple[int, int, int], theta: float) -> Tensor:
    """Angles (T, sum(sections)) of the trunk from positions (3, T): temporal, height, width.

    The sections say how many of the angles, slowest last, follow each axis.
    """
    frequencies = _frequencies(sum(sections), theta, positions.device)
    per_axis = (positions.float()[:, :, None] * frequencies).split(list(sections), dim=-1)
    return torch.cat([part[axis] for axis, part in enumerate(per_axis)], dim=-1)


def decoder_angles(grid_hw: tuple[int, int], head_dim: int, device: torch.device) -> Tensor:
    """Angles (P, 2, head_dim/4) of the decoders: first half of a head by row, second by column."""
    return _grid(grid_hw, device)[..., None] * _frequencies(head_dim // 4, DECODER_BASE, device)


def rotate_decoder(x: Tensor, angles: Tensor) -> Tensor:
    """Turns x (..., P, D), each half of the channels by its own axis."""
    return rotate(x.unflatten(-1, (2, -1)), angles).flatten(-2)


def vision_angles(
    grid_hw: tuple[int, int], head_dim: int, merge: int, device: torch.device
) -> Tensor:
    """Angles (h*w, head_dim/2) of the vision tower, tokens in the order of merged squares."""
    rows, cols = grid_hw
    grid = _grid(grid_hw, device).view(rows // merge, merge, cols // merge, merge, 2)
    grid = grid.transpose(1, 2).reshape(-1, 2, 1)
    return (grid * _frequencies(head_dim // 4, VISION_BASE, device)).flatten(1)


def _frequencies(count: int, base: float, device: torch.device) -> Tensor:
    exponents = torch.arange(count, dtype=torch.float32, device=device) / count
    return 1.0 / base**exponents


def _grid(grid_hw: tuple[int, int], device: torch.device) -> Tensor:
    rows = torch.arange(grid_hw[0], dtype=torch.float32, device=device)
    cols = torch.arange(grid_hw[1], dtype=torch.float32, device=device)
    return torch.stack(torch.meshgrid(rows, cols, indexing="ij"), dim=-1).flatten(0, 1)
