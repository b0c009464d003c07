# SPDX-License-Identifier: Apache-2.0
"""The network in the original's structure, written plainly: the peer of `benchmarks/model.py`.

It computes a reconstruction as the released inference code is organised, with nothing saved that
structure does not save: random modules filled from a state dict read whole, one packed list of
tokens with an index per token type, both experts gathered and scattered in every sub-layer, key
and value heads repeated for every query head, softmax over materialised scores, a cache that
concatenates, the global head always computed, an SVD for the rotations. Parameters are plain
tensors in the checkpoint's dictionary. Not for use: the network is `g2vlm_ros.model`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from g2vlm_ros.checkpoint.config import PATCH_PX, ModelConfig
from g2vlm_ros.model.encoders import IMAGENET_MEAN, IMAGENET_STD
from g2vlm_ros.model.weights import empty_network


class EagerReference:
    """A reconstruction in float32 with the original's structure."""

    def __init__(self, folder: str | Path):
        self.config = ModelConfig.read(folder)
        network = empty_network(self.config, ["global_point_head"]).to_empty(device="cpu")
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        network.load_state_dict(load_file(Path(folder) / "model.safetensors"), strict=False)
        self.weights = {name: p.detach() for name, p in network.named_parameters()}

    @torch.no_grad()
    def reconstruct(self, images: Tensor, prompt: Tensor, positions: Tensor) -> dict[str, Tensor]:
        """images uint8 (N, H, W, 3), prompt ids (T,), positions (3, T + N * (P + 2))."""
        views, height, width, _ = images.shape
        grid = (height // PATCH_PX, width // PATCH_PX)
        cache: list[tuple[Tensor, Tensor] | None] = [None] * self.config.text.layers
        x = self.weights["language_model.model.embed_tokens.weight"][prompt]
        kinds = torch.zeros(len(prompt), dtype=torch.int64)
        self._trunk(x, kinds, positions[:, : len(prompt)], cache, causal=True)
        tokens, kinds = self._views(self._linear("dino2llm", self._dino(images)))
        hidden = self._trunk(tokens, kinds, positions[:, len(prompt) :], cache, causal=False)
        hidden = hidden[kinds == 1].reshape(views, grid[0] * grid[1], -1)
        return self._heads(hidden, grid)

    # --- encoder ---------------------------------------------------------------------------------

    def _dino(self, images: Tensor) -> Tensor:
        config = self.config.dino
        mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
        pixels = (images.permute(0, 3, 1, 2).float() / 255 - mean) / std
        prefix = "dino_model.embeddings."
        projection = prefix + "patch_embeddings.projection"
        patches = F.conv2d(
            pixels,
            self.weights[projection + ".weight"],
            self.weights[projection + ".bias"],
            stride=PATCH_PX,
        )
        views, size, rows, cols = patches.shape
        table, side = self.weights[prefix + "position_embeddings"], config.table_side
        square = table[0, 1:].T.reshape(1, size, side, side)
        square = F.interpolate(square, (rows, cols), mode="bicubic", antialias=True)
        x = patches.flatten(2).transpose(1, 2) + square.flatten(2).transpose(1, 2)
        first = self.weights[prefix + "cls_token"] + table[:, :1]
        extra = torch.cat((first, self.weights[prefix + "register_tokens"]), 1)
        x = torch.cat((extra.expand(views, -1, -1), x), 1)
        per_view = x.shape[1]
        flat, window = x.flatten(0, 1), rows * cols
        for index in range(config.layers):
            flat = self._dino_block(flat, f"dino_model.encoder.layer.{index}.", views, window)
        x = self._layer_norm("dino_model.layernorm", flat.reshape(views, per_view, -1), config.eps)
        return x[:, 1 + config.registers :]

    def _dino_block(self, x: Tensor, prefix: str, views: int, window: int) -> Tensor:
        heads, eps = self.config.dino.heads, self.config.dino.eps
        y = self._layer_norm(prefix + "norm1", x, eps)
        q, k, v = (
            self._linear(f"{prefix}attention.attention.{name}", y).unflatten(-1, (heads, -1))
            for name in ("query", "key", "value")
        )
        out = torch.zeros_like(q)
        for view in range(views):
            part = slice(view * window, (view + 1) * window)
            out[part] = _attention(q[part], k[part], v[part])
        out = self._linear(prefix + "attention.output.dense", out.flatten(1))
        x = x + out * self.weights[prefix + "layer_scale1.lambda1"]
        y = self._mlp(prefix + "mlp", self._layer_norm(prefix + "norm2", x, eps))
        return x + y * self.weights[prefix + "layer_scale2.lambda1"]

    # --- trunk -----------------------------------------------------------------------------------

    def _views(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The packed sequence and the kind of each token: 0 boundary, 1 patch."""
        boundary = self.weights["language_model.model.embed_tokens.weight"][:2]
        tokens, kinds = [], []
        for view in features:
            tokens += [boundary[:1], view, boundary[1:]]
            kinds += [0] + [1] * len(view) + [0]
        return torch.cat(tokens), torch.tensor(kinds)

    def _trunk(
        self, x: Tensor, kinds: Tensor, positions: Tensor, cache: list, causal: bool
    ) -> Tensor:
        config = self.config.text
        steps = torch.arange(0, config.head_dim, 2) / config.head_dim
        angles = positions[:, :, None] / config.rope_theta**steps
        axes = torch.cat([torch.full((n,), i) for i, n in enumerate(config.mrope_section)])
        angles = angles.gather(0, axes.expand(1, len(x), -1))[0]
        cos, sin = (f(torch.cat((angles, angles), -1))[:, None] for f in (torch.cos, torch.sin))
        kinds = [(kinds == 0).nonzero()[:, 0], (kinds == 1).nonzero()[:, 0]]
        for index in range(config.layers):
            prefix = f"language_model.model.layers.{index}."
            x, cache[index] = self._layer(x, kinds, cos, sin, cache[index], causal, prefix)
        return self._by_kind(x, kinds, lambda y, e: self._rms(f"language_model.model.norm{e}", y))

    def _layer(
        self,
        x: Tensor,
        kinds: list[Tensor],
        cos: Tensor,
        sin: Tensor,
        past: tuple[Tensor, Tensor] | None,
        causal: bool,
        prefix: str,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        config, attn = self.config.text, prefix + "self_attn."

        def project(name: str, heads: int, y: Tensor) -> Tensor:
            z = self._by_kind(
                y, kinds, lambda part, e: self._linear(f"{attn}{name}_proj{e}", part)
            )
            z = z.unflatten(-1, (heads, -1))
            if name == "v":
                return z
            z = self._by_kind(z, kinds, lambda part, e: self._rms(f"{attn}{name}_norm{e}", part))
            first, second = z.chunk(2, -1)
            return z * cos + torch.cat((-second, first), -1) * sin

        y = self._by_kind(x, kinds, lambda z, e: self._rms(f"{prefix}input_layernorm{e}", z))
        q = project("q", config.heads, y)
        k, v = project("k", config.kv_heads, y), project("v", config.kv_heads, y)
        if past is not None:
            k, v = torch.cat((past[0], k)), torch.cat((past[1], v))
        out = _attention(q, k, v, causal).flatten(1)
        out = self._by_kind(out, kinds, lambda z, e: self._linear(f"{attn}o_proj{e}", z))
        x = x + self._scaled(out, kinds, prefix + "ls1.gamma")
        norm = prefix + "post_attention_layernorm"
        y = self._by_kind(x, kinds, lambda z, e: self._rms(norm + e, z))
        y = self._by_kind(y, kinds, lambda z, e: self._gated(f"{prefix}mlp{e}.", z))
        return x + self._scaled(y, kinds, prefix + "ls2.gamma"), (k, v)

    def _by_kind(
        self, x: Tensor, kinds: list[Tensor], part: Callable[[Tensor, str], Tensor]
    ) -> Tensor:
        """Gathers the tokens of each kind, runs their expert, scatters the results."""
        out = None
        for index, expert in zip(kinds, ("", "_moe_geo"), strict=True):
            if len(index):
                y = part(x[index], expert)
                out = y.new_zeros(len(x), *y.shape[1:]) if out is None else out
                out[index] = y
        return out

    def _scaled(self, y: Tensor, kinds: list[Tensor], gamma: str) -> Tensor:
        y = y.clone()
        y[kinds[1]] = y[kinds[1]] * self.weights[gamma]
        return y

    def _gated(self, prefix: str, x: Tensor) -> Tensor:
        gate = F.silu(self._linear(prefix + "gate_proj", x))
        return self._linear(prefix + "down_proj", gate * self._linear(prefix + "up_proj", x))

    # --- heads -----------------------------------------------------------------------------------

    def _heads(self, hidden: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:
        points = self._pixels("point_head", self._decoder("point_decoder", hidden, grid), grid)
        world = self._decoder("global_points_decoder", hidden, grid, context=hidden[:1])
        world = self._pixels("global_point_head", world, grid)
        z = points[..., 2:].exp()
        local = torch.cat((points[..., :2] * z, z), -1)
        camera = self._decoder("camera_decoder", hidden, grid)
        for index in range(2):
            y = camera
            for step in (1, 2, 3):
                name = f"camera_head.res_conv.{index}.res_conv{step}"
                y = F.relu(self._linear(name, y))
            camera = camera + y
        camera = camera.mean(1)
        for index in (0, 2):
            camera = F.relu(self._linear(f"camera_head.more_mlps.{index}", camera))
        m = F.normalize(self._linear("camera_head.fc_rot", camera).reshape(-1, 3, 3), dim=-1)
        u, _, vt = torch.linalg.svd(m)
        u[:, :, 2] *= torch.det(u @ vt)[:, None]
        pose = torch.eye(4).repeat(len(hidden), 1, 1)
        pose[:, :3, :3], pose[:, :3, 3] = u @ vt, self._linear("camera_head.fc_t", camera)
        world_from_local = torch.einsum("nij,nhwj->nhwi", pose[:, :3, :3], local)
        world_from_local = world_from_local + pose[:, None, None, :3, 3]
        return {
            "local_points": local,
            "poses": pose,
            "points": world_from_local,
            "global_points": world,
        }

    def _decoder(
        self, name: str, x: Tensor, grid: tuple[int, int], context: Tensor | None = None
    ) -> Tensor:
        heads = self.config.decoder.heads
        quarter = x.shape[-1] // heads // 4
        axes = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
        frequencies = 1 / 100.0 ** (torch.arange(quarter) / quarter)
        angles = [axis.reshape(-1, 1, 1) * frequencies for axis in axes]
        for index in range(self.config.decoder.blocks):
            prefix = f"{name}.blocks.{index}."
            qkv = self._linear(prefix + "attn.qkv", self._layer_norm(prefix + "norm1", x))
            q, k, v = (y.unflatten(-1, (heads, -1)) for y in qkv.chunk(3, -1))
            y = _attention(_turned(q, angles), _turned(k, angles), v)
            x = x + self._linear(prefix + "attn.proj", y.flatten(2))
            if context is not None:
                normed = self._layer_norm(prefix + "norm_y", context.expand(len(x), -1, -1))
                q, k, v = (
                    self._linear(f"{prefix}cross_attn.{part}_proj", y).unflatten(-1, (heads, -1))
                    for part, y in (
                        ("q", self._layer_norm(prefix + "norm2", x)),
                        ("k", normed),
                        ("v", normed),
                    )
                )
                y = _attention(_turned(q, angles), _turned(k, angles), v)
                x = x + self._linear(prefix + "cross_attn.proj", y.flatten(2))
            norm = "norm2" if context is None else "norm3"
            x = x + self._mlp(prefix + "mlp", self._layer_norm(prefix + norm, x))
        return self._linear(name + ".linear_out", x)

    def _pixels(self, name: str, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = self._linear(name + ".proj", x).transpose(1, 2).unflatten(2, grid)
        return F.pixel_shuffle(x, PATCH_PX).permute(0, 2, 3, 1)

    # --- parts -----------------------------------------------------------------------------------

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[name + ".weight"], self.weights.get(name + ".bias"))

    def _layer_norm(self, name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
        weight, bias = self.weights[name + ".weight"], self.weights[name + ".bias"]
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    def _rms(self, name: str, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config.text.rms_eps)
        return self.weights[name + ".weight"] * (x * scale)

    def _mlp(self, name: str, x: Tensor) -> Tensor:
        return self._linear(name + ".fc2", F.gelu(self._linear(name + ".fc1", x)))


def _attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """Exact softmax attention over (..., T, heads, D), scores materialised."""
    repeats = q.shape[-2] // k.shape[-2]
    k, v = (y.repeat_interleave(repeats, -2).transpose(-3, -2) for y in (k, v))
    scores = q.transpose(-3, -2) @ k.mT / q.shape[-1] ** 0.5
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1 + k.shape[-2] - len(q))
        scores = scores.masked_fill(hidden, float("-inf"))
    return (torch.softmax(scores, -1) @ v).transpose(-3, -2)


def _turned(x: Tensor, angles: list[Tensor]) -> Tensor:
    """Two-axis rotary positions on (..., P, heads, D)."""
    halves = []
    for half, angle in zip(x.chunk(2, -1), angles, strict=True):
        first, second = half.chunk(2, -1)
        cos, sin = (f(torch.cat((angle, angle), -1)) for f in (torch.cos, torch.sin))
        halves.append(half * cos + torch.cat((-second, first), -1) * sin)
    return torch.cat(halves, -1)
