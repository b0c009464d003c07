# SPDX-License-Identifier: Apache-2.0
"""The network on a batch of windows, differentiable: the layers of `model`, other bookkeeping.

`model` serves one window with a growing cache. Training wants many windows of equal size at once,
so here the keys and values of earlier stages are plain tensors, and several questions about one
window are answered side by side under a mask that keeps them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from g2vlm_ros.checkpoint.config import PATCH_PX, ModelConfig
from g2vlm_ros.checkpoint.prompt_layout import (
    Segment,
    TokenCursor,
    after_images,
    answer_ids,
    chat_prefix,
    question_ids,
    reconstruction_prefix,
)
from g2vlm_ros.checkpoint.tokenizer import Tokenizer
from g2vlm_ros.demo.train.attention import attend_apart, rolled_rotation
from g2vlm_ros.demo.train.train_tokenizer import pad
from g2vlm_ros.model.decoder import GEOMETRIC, SEMANTIC, Layer, causal_mask
from g2vlm_ros.model.layers import attend, heads_first, wide
from g2vlm_ros.model.network import G2VLM
from g2vlm_ros.model.rope import rotate, trunk_angles, vision_angles

IGNORED = -100
"""Label of tokens that are not to be predicted."""
CAMERA_GRADIENT = 0.4
"""Factor on what the camera head asks of the trunk: a pose per view is louder than its points."""
Past = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, (B or 1, kv_heads, T, D), so far."""


class RawHeads(NamedTuple):
    """What the heads give before anything is made of it."""

    points: Tensor
    """float32 (B, N, H, W, 3): x/z, y/z, log z."""
    translation: Tensor
    """float32 (B, N, 3)."""
    rotation9: Tensor
    """float32 (B, N, 9)."""
    hidden: Tensor
    """(B, N, P, C): the patches' hidden states."""
    queries: Tensor
    keys: Tensor
    """(B, heads, N, P, D) of the patches in the middle layer; their products are its logits."""


class Answered(NamedTuple):
    """How Q questions about B windows were answered, and where was looked for it.

    Products of queries and keys are logits; states are what a layer hands on.
    """

    loss: Tensor
    """Mean cross-entropy of the answers' tokens."""
    features: Tensor
    """(B, N, S, C) of the semantic encoder."""
    image_queries: Tensor
    patch_keys: Tensor
    """(B, N, S, D) and (B, N, P, D): one head of the layer before the middle one."""
    question_queries: Tensor
    image_keys: Tensor
    """(B, Q, L, D) and (B, N, S, D): one head of the middle layer."""
    image_states: Tensor
    """(B, N, S, C) of the layer before the middle one."""
    question_states: Tensor
    """(B, Q, L, C) of the middle layer."""


class AttentionProbe(NamedTuple):
    """What one layer did with the tokens of a stage."""

    queries: Tensor
    """(B, heads, T, D)."""
    keys: Tensor
    """(B, kv_heads, T, D)."""
    states: Tensor
    """(B, T, C) of the semantic tokens, after the layer."""


class Questions(NamedTuple):
    """Q questions about each of B windows, with their answers."""

    ids: Tensor
    """int64 (B, Q, L), padded."""
    labels: Tensor
    """int64 (B, Q, L): the next token where it belongs to the answer, else IGNORED."""
    answered: Tensor
    """int64 (A,): where labels are not IGNORED, in the flattened labels."""


def stage_of(name: str) -> str:
    """Which stage trains a parameter, by its name."""
    if "vit_" in name or name.startswith("names."):
        return "naming"
    if name.startswith(("where.", "what.")):
        return "language"
    if "language_model" not in name:
        return "geometry"
    geometric_expert = "_moe_geo" in name or ".ls" in name
    return "geometry" if geometric_expert else "language"


def stages_trained(stage: str) -> tuple[str, ...]:
    """Whose parameters a stage trains; that of answers trains the semantic encoder on."""
    return ("language", "naming") if stage == "language" else (stage,)


def trains(stage: str, name: str) -> bool:
    """Whether a stage trains a parameter."""
    return stage_of(name) in stages_trained(stage)


def build(config: ModelConfig, seed: int) -> G2VLM:
    """A fresh network without the global head, initialised for training from scratch."""
    torch.manual_seed(seed)
    network = G2VLM(config, global_points=False)
    closing = ("o_proj", "fc2", "dense", "down_proj", "attn.proj")
    for name, weight in network.named_parameters():
        if name.endswith(("_token", "register_tokens", "position_embeddings")):
            nn.init.normal_(weight, std=0.2)
        elif "embed_tokens" in name:
            nn.init.normal_(weight, std=1.0)
        elif weight.ndim > 1:
            fan_in = weight[0].numel()
            ends_branch = any(part in name for part in closing)
            nn.init.normal_(weight, std=fan_in**-0.5 * (0.3 if ends_branch else 1.0))
        elif name.endswith("bias"):
            nn.init.zeros_(weight)
    _start_heads(network)
    return network


def _start_heads(network: G2VLM) -> None:
    """The heads begin near a wall 2.5 m ahead, at the identity pose."""
    head, camera = network.point_head.proj, network.camera_head
    with torch.no_grad():
        for layer in (head, camera.fc_t, camera.fc_rot, network.language_model.lm_head):
            layer.weight.mul_(0.1)
        head.bias[2 * PATCH_PX**2 :] = float(np.log(2.5))
        camera.fc_rot.bias.copy_(torch.eye(3).flatten())


class BatchedModel(nn.Module):
    """A network with the constants of its prompts."""

    def __init__(self, network: G2VLM, tokenizer: Tokenizer):
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        for decoder in (network.point_decoder, network.camera_decoder):
            for block in decoder.blocks:
                block.attn.rotation = rolled_rotation
        self.prefixes = {
            "geometry": reconstruction_prefix(tokenizer),
            "chat": chat_prefix(tokenizer),
        }
        self._constants: dict[tuple, Tensor] = {}
        """What a step needs again and again: a copy from the host would wait for the device."""
        self._pasts: dict[str, Past] | None = None

    def freeze_language(self, frozen: bool) -> None:
        """Whether the semantic expert stays as it is from now on, so that what the trunk makes of
        a prompt is computed once. To be called again whenever its weights have changed."""
        self._pasts = {} if frozen else None

    def geometry(self, images: Tensor) -> RawHeads:
        """uint8 (B, N, H, W, 3) to raw head outputs, as a reconstruction is prompted."""
        grid = images.shape[2] // PATCH_PX, images.shape[3] // PATCH_PX
        looks: list[AttentionProbe] = []
        _, _, hidden, _ = self._geometry("geometry", images, looks)
        queries, keys = (
            part.unflatten(2, (images.shape[1], -1))[:, :, :, 1:-1]
            for part in looks[len(looks) // 2][:2]
        )
        flat = hidden.flatten(0, 1)
        net = self.network
        calm = flat.detach() + CAMERA_GRADIENT * (flat - flat.detach())
        decoded = net.point_decoder(flat, grid), net.camera_decoder(calm, grid)
        # Autocast would round the heads' linear parts to bfloat16, and depth to 0.4 %.
        with torch.autocast(images.device.type, enabled=False):
            # Pixels as the points head gives them, before the exponential.
            points = net.point_head(decoded[0], grid)
            translation, rotation9 = net.camera_head(decoded[1])
        fold = images.shape[:2]
        return RawHeads(
            points.float().unflatten(0, fold),
            translation.float().unflatten(0, fold),
            rotation9.float().unflatten(0, fold),
            hidden,
            queries * queries.shape[-1] ** -0.5,
            keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1),
        )

    def patches(self, prompt: str, images: Tensor) -> Tensor:
        """(B, N, P, C): what heads and answers read of views uint8 (B, N, H, W, 3), prompted for
        `geometry` or `chat`."""
        return self._geometry(prompt, images)[2]

    def answers(self, images: Tensor, squares: Tensor, questions: Questions) -> Answered:
        """What the chat path makes of questions; the geometry is read, not changed by it.

        squares: uint8 (B, N, side, side, 3), the same views for the semantic encoder.
        """
        with torch.no_grad():
            walk, past, _, device = self._geometry("chat", images)
        batch, views = images.shape[:2]
        merge = self.network.config.vision.merge * PATCH_PX
        grid = squares.shape[2] // merge, squares.shape[3] // merge
        features = encode_squares(self.network, squares.flatten(0, 1)).unflatten(0, (batch, views))
        segments = [walk.semantic(grid) for _ in range(views)]
        embed = self.network.language_model.model.embed_tokens
        key = "squares", views, grid, images.shape[2:4]
        ids = self._constant((*key, "ids"), lambda: segments[0].token_ids, device)
        ends = embed(ids).expand(batch, views, -1, -1)
        image_tokens = torch.cat((ends[:, :, :1], features.to(ends.dtype), ends[:, :, 1:]), 2)
        at = self._constant(
            (*key, "at"),
            lambda: np.concatenate([segment.positions for segment in segments], 1),
            device,
        )
        middle = len(past) // 2
        prefix = len(self.prefixes["chat"])
        patch_keys = past[middle - 1][0][:, 0, prefix:].unflatten(1, (views, -1))[:, :, 1:-1]
        image_looks: list[AttentionProbe] = []
        question_looks: list[AttentionProbe] = []
        lengths = [segment.length for segment in segments]
        mask = self._constant(
            (*key, "mask"), lambda: image_mask(past[0][0].shape[2], lengths).numpy(), device
        )
        _, past = self._run(image_tokens.flatten(1, 2), None, at, past, mask, image_looks)
        count, length = questions.ids.shape[1:]
        at = self._constant(
            (*key, "asked", count, length),
            lambda: walk.position + np.tile(np.arange(length), (3, count)),
            device,
        )
        hidden, _ = self._run(
            embed(questions.ids).flatten(1, 2),
            None,
            at,
            past,
            None,
            question_looks,
            count,
        )
        spoken = hidden.flatten(0, 1)[questions.answered]
        logits = self.network.language_model.lm_head(spoken).float()
        image_queries, image_keys, image_states = (
            part.unflatten(1, (views, -1))[:, :, 1:-1]
            for part in (
                image_looks[middle - 1].queries[:, 0],
                image_looks[middle].keys[:, 0],
                image_looks[middle - 1].states,
            )
        )
        question_look = question_looks[middle]
        scale = image_keys.shape[-1] ** -0.5
        return Answered(
            F.cross_entropy(logits, questions.labels.flatten()[questions.answered]),
            features,
            image_queries * scale,
            patch_keys,
            question_look.queries[:, 0].unflatten(1, (count, length)) * scale,
            image_keys,
            image_states,
            question_look.states.unflatten(1, (count, length)),
        )

    def _geometry(
        self, prefix: str, images: Tensor, looks: list[AttentionProbe] | None = None
    ) -> tuple[TokenCursor, Past, Tensor, torch.device]:
        """The text prefix and the views of all windows; hidden states (B, N, P, C).

        looks: takes what every layer does with the views.
        """
        batch, views, height, width, _ = images.shape
        device, net = images.device, self.network
        walk = TokenCursor(self.tokenizer.special)
        text = walk.text(self.prefixes[prefix])
        past = self._prompt(prefix, text, device)
        grid = height // PATCH_PX, width // PATCH_PX
        segment = walk.geometry(views, grid)
        embed = net.language_model.model.embed_tokens
        features = net.encode_geometry(images.flatten(0, 1)).unflatten(0, (batch, views))
        key = prefix, views, grid
        ids = self._constant((*key, "ids"), lambda: segment.token_ids, device).view(views, 2)
        ends = embed(ids).expand(batch, -1, -1, -1)
        at = self._constant((*key, "at"), lambda: segment.positions, device)
        hidden, past = self._run(ends, features, at, past, None, looks)
        return walk, past, hidden, device

    def _prompt(self, prefix: str, text: Segment, device: torch.device) -> Past:
        """Keys and values of a text prefix; computed once while the language is frozen."""
        if self._pasts is not None and prefix in self._pasts:
            return self._pasts[prefix]
        ids = self._constant((prefix, "ids"), lambda: text.token_ids, device)
        at = self._constant((prefix, "at"), lambda: text.positions, device)
        embedded = self.network.language_model.model.embed_tokens(ids)[None]
        _, past = self._run(embedded, None, at, None, causal_mask(len(ids), 0, device))
        if self._pasts is not None:
            self._pasts[prefix] = past = [(k.detach(), v.detach()) for k, v in past]
        return past

    def _constant(
        self, key: tuple, values: Callable[[], np.ndarray], device: torch.device
    ) -> Tensor:
        """An array of the host on the device, copied once."""
        key = *key, device
        if key not in self._constants:
            self._constants[key] = torch.tensor(values(), device=device)
        return self._constants[key]

    def _run(
        self,
        semantic: Tensor,
        geometric: Tensor | None,
        positions: Tensor,
        past: Past | None,
        mask: Tensor | None = None,
        looks: list[AttentionProbe] | None = None,
        apart: int = 0,
    ) -> tuple[Tensor, Past]:
        """All layers over one stage; the normalised geometric tokens if there are any.

        semantic (B, T, C), or the boundary tokens (B, N, 2, C) beside geometric (B, N, P, C).
        apart: the stage is so many texts of equal length side by side, which see the past but
        not each other.
        """
        trunk = self.network.language_model.model
        config = trunk.config
        angles = trunk_angles(positions, config.mrope_section, config.rope_theta)
        semantic = wide(semantic)
        geometric = None if geometric is None else wide(geometric)
        grown = []
        for index, layer in enumerate(trunk.layers):
            before = None if past is None else past[index]
            semantic, geometric, pair, look = _layer(
                layer, semantic, geometric, angles, before, mask, apart
            )
            grown.append(pair)
            if looks is not None:
                looks.append(look)
        if geometric is None:
            return trunk.norm(semantic), grown
        return trunk.norm_moe_geo(geometric), grown


def _layer(
    layer: Layer,
    semantic: Tensor,
    geometric: Tensor | None,
    angles: Tensor,
    past: tuple[Tensor, Tensor] | None,
    mask: Tensor | None,
    apart: int = 0,
) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor], AttentionProbe]:
    """`model.decoder.Layer` for batched windows."""
    attention = layer.self_attn
    parts = attention.project(layer.input_layernorm(semantic), SEMANTIC)
    if geometric is not None:
        inner = attention.project(layer.input_layernorm_moe_geo(geometric), GEOMETRIC)
        parts = tuple(_in_order(s, g) for s, g in zip(parts, inner, strict=True))
    counts = (layer.config.heads, layer.config.kv_heads, layer.config.kv_heads)
    q, k, v = (heads_first(part, count) for part, count in zip(parts, counts, strict=True))
    # Under autocast the norms give float32, and attention would round it a moment later.
    q, k = rotate(q.to(v.dtype), angles), rotate(k.to(v.dtype), angles)
    queries, keys = q, k
    if past is not None:
        past = tuple(part.expand(k.shape[0], -1, -1, -1) for part in past)
    if apart:
        attended = attend_apart(q, k, v, past, apart)
    else:
        if past is not None:
            k, v = (torch.cat(pair, dim=2) for pair in zip(past, (k, v), strict=True))
        attended = attend(q, k, v, mask)
    if geometric is None:
        semantic = semantic + attention.output(attended, SEMANTIC)
    else:
        cut = attended.unflatten(1, (geometric.shape[1], -1))
        ends = torch.cat((cut[:, :, :1], cut[:, :, -1:]), 2)
        semantic = semantic + attention.output(ends, SEMANTIC)
        geometric = geometric + layer.ls1(attention.output(cut[:, :, 1:-1], GEOMETRIC))
        normed = layer.post_attention_layernorm_moe_geo(geometric)
        geometric = geometric + layer.ls2(layer.mlp_moe_geo(normed))
    semantic = semantic + layer.mlp(layer.post_attention_layernorm(semantic))
    return semantic, geometric, (k, v), AttentionProbe(queries, keys, semantic)


def _in_order(ends: Tensor, patches: Tensor) -> Tensor:
    """(B, N, 2, C) around (B, N, P, C) to the order of the sequence, (B, N * (P + 2), C)."""
    start, end = ends.split(1, dim=2)
    return torch.cat((start, patches, end), dim=2).flatten(1, 2)


def encode_squares(network: G2VLM, squares: Tensor) -> Tensor:
    """`model.encoders.VisionTower` for a batch: uint8 (B, S, S, 3) to (B, T, C)."""
    tower = network.vit_model
    grid = squares.shape[1] // PATCH_PX, squares.shape[2] // PATCH_PX
    head_dim = tower.config.embed_dim // tower.config.heads
    angles = vision_angles(grid, head_dim, tower.config.merge, squares.device)
    x = wide(tower.patch_embed["proj"](torch.vmap(tower.rows)(squares)))
    for block in tower.blocks:
        x = block(x, angles)
    merged = tower.merger(x.flatten(0, 1))
    return merged.unflatten(0, (len(squares), -1))


def image_mask(cached: int, images: list[int]) -> Tensor:
    """bool (T, cached + T): images of these lengths see the cache and what is not later."""
    number = torch.arange(len(images)).repeat_interleave(torch.tensor(images))
    past = torch.ones(len(number), cached, dtype=torch.bool)
    return torch.cat((past, number[None, :] <= number[:, None]), 1)


def encode_questions(
    tokenizer: Tokenizer, windows: list[list[tuple[str, str]]], longest: int
) -> Questions:
    """Q (question, answer) pairs per window as ids and labels; too long ones are cut off."""
    ids: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for pairs in windows:
        for question, answer in pairs:
            question_ids, question_labels = _encoded(tokenizer, question, answer, longest)
            ids.append(question_ids)
            labels.append(question_labels)
    length = max(map(len, ids))
    shape = (len(windows), -1, length)
    padded_ids = pad(ids, length, tokenizer.special.im_end)
    padded_labels = pad(labels, length, IGNORED)
    return Questions(
        torch.from_numpy(padded_ids).view(shape),
        torch.from_numpy(padded_labels).view(shape),
        torch.from_numpy(np.flatnonzero(padded_labels != IGNORED)),
    )


@lru_cache(maxsize=200_000)
def _encoded(
    tokenizer: Tokenizer, question: str, answer: str, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and labels of one question with its answer, at most `length` of each."""
    question_row = question_ids(tokenizer, after_images(question))
    answer_row = answer_ids(tokenizer, answer)[: len(tokenizer.encode_user(answer)) + 2]
    row = np.concatenate([question_row, answer_row])[: length + 1]
    labels = np.full(len(row) - 1, IGNORED, np.int64)
    labels[len(question_row) :] = row[len(question_row) + 1 :]
    return row[:-1], labels
