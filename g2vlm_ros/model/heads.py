# SPDX-License-Identifier: Apache-2.0
"""The geometric heads: hidden states of the patches to point maps, poses and confidence.

Every head is a small transformer over the tokens of one view ("decoder") and a last linear part.
The linear parts always run in float32: bfloat16 outputs would quantise depth to 0.4 %.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from g2vlm_ros.checkpoint.config import PATCH_PX, DecoderConfig
from g2vlm_ros.model.layers import (
    Block,
    LayerNorm,
    Mlp,
    SelfAttention,
    attend,
    constant,
    heads_first,
    wide,
)
from g2vlm_ros.model.rope import decoder_angles, rotate_decoder

MLP_RATIO = 4


class WideLinear(nn.Linear):
    """A linear layer that runs in float32 (or wider) whatever the dtype of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(wide(x), wide(self.weight), wide(self.bias))


class Decoder(nn.Module):
    """Blocks over the tokens of each view alone: (N, P, C) to (N, P, out)."""

    def __init__(self, width: int, out: int, config: DecoderConfig):
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(width, config.heads, MLP_RATIO * width, rotate_decoder)
            for _ in range(config.blocks)
        )
        self.linear_out = nn.Linear(width, out)
        self.head_dim = width // config.heads

    def forward(self, hidden: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        angles = decoder_angles(grid_hw, self.head_dim, hidden.device)
        x = wide(hidden)
        for block in self.blocks:
            x = block(x, angles)
        return self.linear_out(x.to(self.linear_out.weight.dtype))


class CrossAttention(nn.Module):
    """Attention of x (N, P, C) to a context (1 or N, P, C), same rotary positions on both."""

    rotation = staticmethod(rotate_decoder)

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Tensor, context: Tensor, angles: Tensor) -> Tensor:
        q = self.rotation(heads_first(self.q_proj(x), self.heads), angles)
        k = self.rotation(heads_first(self.k_proj(context), self.heads), angles)
        v = heads_first(self.v_proj(context), self.heads)
        views = x.shape[0]
        return self.proj(attend(q, k.expand(views, -1, -1, -1), v.expand(views, -1, -1, -1)))


class CrossBlock(nn.Module):
    """Self-attention, cross-attention to the context, MLP."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = LayerNorm(width, eps=1e-6)
        self.attn = SelfAttention(width, heads, rotate_decoder)
        self.norm2 = LayerNorm(width, eps=1e-6)
        self.norm_y = LayerNorm(width, eps=1e-6)
        self.cross_attn = CrossAttention(width, heads)
        self.norm3 = LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, MLP_RATIO * width)

    def forward(self, x: Tensor, context: Tensor, angles: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), angles)
        x = x + self.cross_attn(self.norm2(x), self.norm_y(context), angles)
        return x + self.mlp(self.norm3(x))


class GlobalDecoder(nn.Module):
    """The decoder of the global points; every view, view 0 included, also looks at view 0.

    It steadied the training (paper, section 3) and is not needed for points or poses.
    """

    def __init__(self, width: int, out: int, config: DecoderConfig):
        super().__init__()
        self.blocks = nn.ModuleList(CrossBlock(width, config.heads) for _ in range(config.blocks))
        self.linear_out = nn.Linear(width, out)
        self.head_dim = width // config.heads

    def forward(self, hidden: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        angles = decoder_angles(grid_hw, self.head_dim, hidden.device)
        x = wide(hidden)
        context = x[:1]
        for block in self.blocks:
            x = block(x, context, angles)
        return self.linear_out(x.to(self.linear_out.weight.dtype))


class PixelHead(nn.Module):
    """A linear map from each patch to all of its pixels: (N, P, C) to (N, H, W, channels)."""

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.proj = WideLinear(width, channels * PATCH_PX**2)
        self.channels = channels

    def forward(self, x: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        rows, cols = grid_hw
        x = self.proj(x)
        x = x.reshape(-1, rows, cols, self.channels, PATCH_PX, PATCH_PX).permute(0, 1, 4, 2, 5, 3)
        return x.reshape(-1, rows * PATCH_PX, cols * PATCH_PX, self.channels)


class ResidualLinears(nn.Module):
    """Three linear layers with ReLU on a residual branch."""

    def __init__(self, width: int):
        super().__init__()
        self.res_conv1 = WideLinear(width, width)
        self.res_conv2 = WideLinear(width, width)
        self.res_conv3 = WideLinear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.res_conv1(x))
        y = F.relu(self.res_conv2(y))
        return x + F.relu(self.res_conv3(y))


class CameraHead(nn.Module):
    """Camera tokens of each view to its pose: translations (N, 3) and raw rotations (N, 9)."""

    def __init__(self, width: int):
        super().__init__()
        self.res_conv = nn.ModuleList(ResidualLinears(width) for _ in range(2))
        self.more_mlps = nn.Sequential(
            WideLinear(width, width), nn.ReLU(), WideLinear(width, width), nn.ReLU()
        )
        self.fc_t = WideLinear(width, 3)
        self.fc_rot = WideLinear(width, 9)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = wide(x)
        for block in self.res_conv:
            x = block(x)
        x = self.more_mlps(x.mean(dim=1))
        return self.fc_t(x), self.fc_rot(x)


class Geometry(NamedTuple):
    """What the heads give for N views of H x W pixels; lengths in model units."""

    local_points: Tensor
    """(N, H, W, 3) in the optical frame of each view, z > 0."""
    poses: Tensor
    """(N, 4, 4) camera to window."""
    rotation9: Tensor
    """(N, 9) raw rotation outputs, from which `poses` was made."""
    confidence: Tensor | None
    """(N, H, W) in 0..1, None when the checkpoint has no confidence head."""
    global_points: Tensor | None
    """(N, H, W, 3) as the global head gives them, None when not asked for."""


def local_points(raw: Tensor) -> Tensor:
    """Head output (..., 3) to points: z = exp(third), x and y in units of depth."""
    z = raw[..., 2:].exp()
    return torch.cat((raw[..., :2] * z, z), dim=-1)


def poses(translation: Tensor, rotation9: Tensor) -> Tensor:
    """(N, 3) and (N, 9) to rigid transforms (N, 4, 4)."""
    top = torch.cat((nearest_rotation(rotation9), translation[..., None]), dim=-1)
    bottom = constant((0.0, 0.0, 0.0, 1.0), top.dtype, top.device).expand(*top.shape[:-2], 1, 4)
    return torch.cat((top, bottom), dim=-2)


def nearest_rotation(rotation9: Tensor) -> Tensor:
    """Raw row-major 3x3 matrices (N, 9), rows normalised, to the nearest rotations (N, 3, 3).

    The rotation that maximises trace(R^T M) has the top eigenvector of Davenport's symmetric 4x4
    matrix as its quaternion, so it equals the result of an SVD with determinant fix. Twenty
    squarings are 2^20 steps of power iteration. Written without MatMul (no TF32 rounding) and
    without SVD (does not export); finite for any finite input, zero and rank one included.
    """
    m = F.normalize(rotation9.unflatten(-1, (3, 3)), dim=-1)
    # Diagonals are taken with a constant identity: TensorRT has no EyeLike of a free shape.
    eye = torch.eye(4, dtype=m.dtype, device=m.device)
    power = (_davenport(m) + 3.0 * eye) / 6.0
    for _ in range(20):
        power = (power[..., :, :, None] * power[..., None, :, :]).sum(dim=-2)
        power = power / (power * eye).sum(dim=(-2, -1), keepdim=True)
    # Columns of a rank-one power are multiples of the quaternion; the longest is the most exact.
    longest = (power * eye).sum(dim=-1).argmax(-1)[..., None, None]
    column = power.gather(-1, longest.expand(*power.shape[:-1], 1))[..., 0]
    return _from_quaternion(F.normalize(column, dim=-1))


def _davenport(m: Tensor) -> Tensor:
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in m.unbind(-2))
    rows = (
        (a + e + i, h - f, c - g, d - b),
        (h - f, a - e - i, b + d, c + g),
        (c - g, b + d, e - a - i, f + h),
        (d - b, c + g, f + h, i - a - e),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _from_quaternion(q: Tensor) -> Tensor:
    """Unit quaternions (..., 4), w first, to matrices (..., 3, 3)."""
    w, x, y, z = q.unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
