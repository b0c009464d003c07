# SPDX-License-Identifier: Apache-2.0
"""The image encoders: DINOv2 with registers for geometry, Qwen2-VL's vision tower for semantics.

Both take uint8 RGB images whose sides are multiples of the patch and normalise inside, each with
the constants it was trained with.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from g2vlm_ros.checkpoint.config import PATCH_PX, DinoConfig, VisionConfig
from g2vlm_ros.model.layers import (
    Block,
    LayerNorm,
    Mlp,
    attend,
    constant,
    heads_first,
    quick_gelu,
    wide,
)
from g2vlm_ros.model.rope import rotate, vision_angles

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 (..., 3) to float32, zero mean and unit deviation per channel."""
    mean_, std_ = (constant(c, torch.float32, images.device) for c in (mean, std))
    return (images.float() / 255.0 - mean_) / std_


class PatchProjection(nn.Module):
    """The patch convolution, written as the matrix product that it is (stride = kernel size)."""

    def __init__(self, width: int, kernel: tuple[int, ...], bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, *kernel))
        self.bias = nn.Parameter(torch.empty(width)) if bias else None

    def forward(self, patches: Tensor) -> Tensor:
        """patches (..., *kernel) flattened to (..., K); result (..., width)."""
        return F.linear(patches.to(self.weight.dtype), self.weight.flatten(1), self.bias)


# --- geometry: DINOv2 with registers -------------------------------------------------------------


class DinoAttention(nn.Module):
    """Self-attention within windows of the flattened tokens of all views.

    The original cuts its windows at multiples of the number of PATCHES P, although
    a view has P + 1 + registers tokens. Window i so covers flattened tokens [i*P, (i+1)*P): it
    mixes neighbouring views, a view's result depends on its place among the others, and the last
    rows belong to no window. The original leaves those rows uninitialised, which may be what turns
    answers into "!!!!!"; with `released` they are zero, always. `aligned` gives each view its own
    window, as the architecture intends; weights trained the one way need the same way at
    inference.
    """

    def __init__(self, config: DinoConfig):
        super().__init__()
        size = config.hidden_size
        names = ("query", "key", "value")
        self.attention = nn.ModuleDict({name: nn.Linear(size, size) for name in names})
        self.output = nn.ModuleDict({"dense": nn.Linear(size, size)})
        self.heads = config.heads
        self.windows = config.windows
        self.extra_tokens = 1 + config.registers

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.attention[name](x) for name in ("query", "key", "value"))
        if self.windows == "aligned":
            out = self._attend(q, k, v)
        else:
            views, tokens, size = x.shape
            patches = tokens - self.extra_tokens
            covered = [
                y.flatten(0, 1)[: views * patches].reshape(-1, patches, size) for y in (q, k, v)
            ]
            out = self._attend(*covered).flatten(0, 1)
            uncovered = out.new_zeros(views * self.extra_tokens, size)
            out = torch.cat((out, uncovered)).reshape(-1, tokens, size)
        return self.output["dense"](out)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(*(heads_first(x, self.heads) for x in (q, k, v)))


class DinoLayerScale(nn.Module):
    """A learned factor per channel on a residual branch."""

    def __init__(self, size: int):
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.lambda1


class DinoBlock(nn.Module):
    """A pre-norm block with LayerScale, on x (N, T, C)."""

    def __init__(self, config: DinoConfig):
        super().__init__()
        self.norm1 = LayerNorm(config.hidden_size, eps=config.eps)
        self.attention = DinoAttention(config)
        self.layer_scale1 = DinoLayerScale(config.hidden_size)
        self.norm2 = LayerNorm(config.hidden_size, eps=config.eps)
        self.mlp = Mlp(config.hidden_size, config.mlp_size)
        self.layer_scale2 = DinoLayerScale(config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale1(self.attention(self.norm1(x)))
        return x + self.layer_scale2(self.mlp(self.norm2(x)))


class DinoEmbeddings(nn.Module):
    """Patches to tokens, with class and register tokens in front."""

    def __init__(self, config: DinoConfig):
        super().__init__()
        size = config.hidden_size
        self.cls_token = nn.Parameter(torch.empty(1, 1, size))
        self.register_tokens = nn.Parameter(torch.empty(1, config.registers, size))
        self.position_embeddings = nn.Parameter(torch.empty(1, 1 + config.table_side**2, size))
        kernel = (3, PATCH_PX, PATCH_PX)
        self.patch_embeddings = nn.ModuleDict({"projection": PatchProjection(size, kernel, True)})
        self.table_side = config.table_side

    def patch_positions(self, grid_hw: tuple[int, int]) -> Tensor:
        """The learned square table resampled to another grid, float32 (h*w, C).

        Antialiased bicubic, as trained; the native grid takes the table as it is.
        """
        table = wide(self.position_embeddings[0, 1:])
        side = self.table_side
        if grid_hw == (side, side):
            return table
        square = table.T.reshape(1, -1, side, side)
        square = F.interpolate(square, grid_hw, mode="bicubic", antialias=True)
        return square[0].flatten(1).T

    def forward(self, images: Tensor, patch_positions: Tensor) -> Tensor:
        views, height, width, _ = images.shape
        pixels = normalise(images, IMAGENET_MEAN, IMAGENET_STD)
        patches = pixels.reshape(
            views, height // PATCH_PX, PATCH_PX, width // PATCH_PX, PATCH_PX, 3
        )
        patches = patches.permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2)
        tokens = self.patch_embeddings["projection"](patches) + patch_positions
        cls_token = wide(self.cls_token) + wide(self.position_embeddings[:, :1])
        extra = torch.cat((cls_token, wide(self.register_tokens)), dim=1)
        return torch.cat((extra.expand(views, -1, -1), tokens), dim=1)


class DinoEncoder(nn.Module):
    """Images to patch features."""

    def __init__(self, config: DinoConfig):
        super().__init__()
        self.embeddings = DinoEmbeddings(config)
        blocks = nn.ModuleList(DinoBlock(config) for _ in range(config.layers))
        self.encoder = nn.ModuleDict({"layer": blocks})
        self.layernorm = LayerNorm(config.hidden_size, eps=config.eps)
        self.extra_tokens = 1 + config.registers

    def forward(self, images: Tensor, patch_positions: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) and `embeddings.patch_positions` of its grid, to (N, P, C).

        The position table is an input because its resampling does not export: bake it instead.
        """
        x = self.embeddings(images, patch_positions)
        for block in self.encoder["layer"]:
            x = block(x)
        return self.layernorm(x[:, self.extra_tokens :])


# --- semantics: the vision tower of Qwen2-VL -----------------------------------------------------


class PatchMerger(nn.Module):
    """Each square of patches becomes one token of the trunk."""

    def __init__(self, config: VisionConfig, hidden_size: int):
        super().__init__()
        self.ln_q = LayerNorm(config.embed_dim, eps=1e-6)
        size = config.embed_dim * config.merge**2
        self.mlp = nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.Linear(size, hidden_size))
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.ln_q(x).reshape(-1, self.size))


class VisionTower(nn.Module):
    """One image to merged semantic tokens."""

    def __init__(self, config: VisionConfig, hidden_size: int):
        super().__init__()
        kernel = (3, config.frames, PATCH_PX, PATCH_PX)
        projection = PatchProjection(config.embed_dim, kernel, bias=False)
        self.patch_embed = nn.ModuleDict({"proj": projection})
        self.blocks = nn.ModuleList(
            Block(config.embed_dim, config.heads, config.mlp_size, rotate, quick_gelu)
            for _ in range(config.depth)
        )
        self.merger = PatchMerger(config, hidden_size)
        self.config = config

    def rows(self, image: Tensor) -> Tensor:
        """uint8 (H, W, 3) to the normalised pixels of each patch, float32 (h*w, 3*frames*14*14).

        Patches come in the order of merged squares; a still image is repeated in time.
        """
        height, width, _ = image.shape
        merge = self.config.merge
        pixels = normalise(image, CLIP_MEAN, CLIP_STD)
        squares = pixels.reshape(
            height // PATCH_PX // merge,
            merge,
            PATCH_PX,
            width // PATCH_PX // merge,
            merge,
            PATCH_PX,
            3,
        )
        squares = squares.permute(0, 3, 1, 4, 6, 2, 5).flatten(0, 3)
        return squares[:, :, None].expand(-1, -1, self.config.frames, -1, -1).flatten(1)

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (H, W, 3), sides multiples of 14 * merge, to (h*w/merge^2, hidden_size)."""
        grid_hw = (image.shape[0] // PATCH_PX, image.shape[1] // PATCH_PX)
        head_dim = self.config.embed_dim // self.config.heads
        angles = vision_angles(grid_hw, head_dim, self.config.merge, image.device)
        x = wide(self.patch_embed["proj"](self.rows(image)))[None]
        for block in self.blocks:
            x = block(x, angles)
        return self.merger(x[0])
