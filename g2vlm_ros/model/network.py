# SPDX-License-Identifier: Apache-2.0
"""The whole network. Parameter names are those of the released checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from g2vlm_ros.checkpoint.config import PATCH_PX, ModelConfig
from g2vlm_ros.model.decoder import KeyValues, LanguageModel, Tokens, causal_mask
from g2vlm_ros.model.encoders import DinoEncoder, VisionTower
from g2vlm_ros.model.heads import (
    CameraHead,
    Decoder,
    Geometry,
    GlobalDecoder,
    PixelHead,
    local_points,
    poses,
)

FLOAT32_PARTS = ("point_head", "camera_head", "global_point_head", "conf_head")
"""Small last parts whose weights stay in float32 when the rest is loaded in half precision."""


class G2VLM(nn.Module):
    """Encoders, trunk and heads; each method is one stage with tensors in and out.

    N views of H x W pixels have P = h*w patches each; C is the width of the trunk. The confidence
    head (as in Pi3) exists only in checkpoints that were trained with one, and the global points,
    which only training needs, only where they were kept.
    """

    def __init__(self, config: ModelConfig, confidence: bool = False, global_points: bool = True):
        super().__init__()
        width, decoder = config.text.hidden_size, config.decoder
        points, camera = decoder.point_channels, decoder.camera_channels
        self.config = config
        self.language_model = LanguageModel(config.text)
        self.dino_model = DinoEncoder(config.dino)
        self.dino2llm = nn.Linear(config.dino.hidden_size, width)
        self.vit_model = VisionTower(config.vision, width)
        self.point_decoder = Decoder(width, points, decoder)
        self.point_head = PixelHead(points, channels=3)
        self.camera_decoder = Decoder(width, camera, decoder)
        self.camera_head = CameraHead(camera)
        if global_points:
            self.global_points_decoder = GlobalDecoder(width, points, decoder)
            self.global_point_head = PixelHead(points, channels=3)
        if confidence:
            self.conf_decoder = Decoder(width, points, decoder)
            self.conf_head = PixelHead(points, channels=1)
        self.confidence, self.global_points = confidence, global_points

    def encode_geometry(self, images: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) to the geometric tokens (N, P, C)."""
        grid_hw = (images.shape[1] // PATCH_PX, images.shape[2] // PATCH_PX)
        positions = self.dino_model.embeddings.patch_positions(grid_hw)
        return self.dino2llm(self.dino_model(images, positions))

    def encode_semantics(self, image: Tensor) -> Tensor:
        """uint8 (H, W, 3) to the semantic tokens (P / merge^2, C)."""
        return self.vit_model(image)

    def geometry(
        self, features: Tensor, boundary_ids: Tensor, positions: Tensor, cache: KeyValues
    ) -> Tensor:
        """Appends all views, each [start, patches, end]; hidden states (N, P, C) of the patches.

        boundary_ids int64 (N, 2): start and end tokens; positions int64 (3, N * (P + 2)). Every
        token sees the cache and all views.
        """
        trunk = self.language_model.model
        tokens = Tokens(trunk.embed_tokens(boundary_ids), features)
        return trunk(tokens, positions, cache).geometric

    def heads(
        self, hidden: Tensor, grid_hw: tuple[int, int], global_points: bool = False
    ) -> Geometry:
        """Hidden states (N, P, C) of the patches to points and poses.

        ValueError when global points are asked for and the checkpoint has no head for them.
        """
        if global_points and not self.global_points:
            raise ValueError(
                "this checkpoint has no global points head (global_points_decoder, "
                "global_point_head); do not ask for global points"
            )
        points = self.point_head(self.point_decoder(hidden, grid_hw), grid_hw)
        translation, rotation9 = self.camera_head(self.camera_decoder(hidden, grid_hw))
        confidence = world = None
        if self.confidence:
            logits = self.conf_head(self.conf_decoder(hidden, grid_hw), grid_hw)
            confidence = logits[..., 0].sigmoid()
        if global_points:
            world = self.global_point_head(self.global_points_decoder(hidden, grid_hw), grid_hw)
        return Geometry(
            local_points(points), poses(translation, rotation9), rotation9, confidence, world
        )

    def text(self, ids: Tensor, positions: Tensor, cache: KeyValues, cached: int) -> Tensor:
        """Appends text, int64 (T,), behind `cached` tokens; hidden state (1, C) of the last."""
        tokens = self.language_model.model.embed_tokens(ids)[None]
        mask = None if ids.shape[0] == 1 else causal_mask(ids.shape[0], cached, ids.device)
        return self._last_hidden(tokens, positions, cache, mask)

    def semantic(
        self, features: Tensor, boundary_ids: Tensor, positions: Tensor, cache: KeyValues
    ) -> Tensor:
        """Appends one image, [start, features, end]; hidden state (1, C) of the end token.

        Its tokens see the cache and the whole image.
        """
        start, end = self.language_model.model.embed_tokens(boundary_ids).split(1)
        tokens = torch.cat((start, features.to(start.dtype), end))[None]
        return self._last_hidden(tokens, positions, cache, None)

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 (vocab,) from the hidden state (1, C) of a token: what may follow it."""
        return self.language_model.lm_head(hidden)[0].float()

    def _last_hidden(
        self, tokens: Tensor, positions: Tensor, cache: KeyValues, mask: Tensor | None
    ) -> Tensor:
        hidden = self.language_model.model(Tokens(tokens), positions, cache, mask).semantic
        return hidden[:, -1]
