"""What one step learns from: windows of the training homes, and the gradients they give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from g2vlm_ros.core.tokenizer import Tokenizer
from g2vlm_ros.train.attention import PlainAttention
from g2vlm_ros.train.config import Config
from g2vlm_ros.train.data import Batch, Ring, Shards, squares
from g2vlm_ros.train.forward import RawHeads, Trainee, build, encode_questions
from g2vlm_ros.train.losses import (
    Target,
    geometry_terms,
    matches,
    matching_term,
    patch_points,
    places_term,
    true_rays,
)

MATCH_WIDTH, TEMPERATURE = 64, 0.07
MATCHING_HEADS = (0, -1)
"""Heads of the trunk's middle layer that are taught to look where the same thing is seen."""
JOINT_SHARE = 0.75
"""Share of the steps of the joint stage that also ask questions."""


def is_geometric(name: str) -> bool:
    """Whether a parameter belongs to the geometric expert, its encoder, or the heads."""
    return "_moe_geo" in name or ".ls" in name or not ("language_model" in name or "vit_" in name)


class Lesson:
    """A network with the data that it learns from; the folder holds the tokenizer."""

    def __init__(
        self, config: Config, folder: Path, device: str = "cpu", cache: Path | None = None,
        workers: int = 0,
    ):  # fmt: skip
        self.config, self.device = config, device
        network = build(config.sizes.model(), config.steps.seed)
        self.trainee = Trainee(network, Tokenizer.open(folder)).to(device)
        self.match = nn.Linear(config.sizes.hidden, MATCH_WIDTH, bias=False).to(device)
        self.place = nn.Linear(config.sizes.hidden, 3).to(device)
        self.all = nn.ModuleDict({
            "network": self.trainee.network, "match": self.match, "place": self.place
        })  # fmt: skip
        self.ring = Ring(Shards(config.data, "train", device, cache, workers))
        self.rays = true_rays(self.ring.shards.camera, torch.device(device))

    def backward(
        self, stage: str, windows: int, rng: np.random.Generator
    ) -> tuple[int, Tensor, dict[str, Tensor]]:
        """Adds the gradients of new windows; their number, the loss, its terms unweighted.

        Only the joint stage trains the semantic expert, its encoder and its words.
        windows: how many were drawn before, which decides the homes in memory.
        """
        for name, parameter in self.all.named_parameters():
            parameter.requires_grad_(stage == "joint" or is_geometric(name))
        torch.manual_seed(int(rng.integers(2**62)))
        self.ring.advance(windows)
        joint = stage == "joint" and bool(rng.random() < JOINT_SHARE)
        batch = self.ring.batch(self.config.steps.batch_views, rng, joint)
        terms = self._terms(batch)
        loss = sum(getattr(self.config.loss, name) * term for name, term in terms.items())
        loss.backward()
        return len(batch.images), loss.detach(), terms

    def _terms(self, batch: Batch) -> dict[str, Tensor]:
        kind = torch.device(self.device).type
        # Most CPUs multiply bfloat16 a hundred times slower than float32.
        with PlainAttention() if kind == "cpu" else torch.autocast(kind, torch.bfloat16):
            raw = self.trainee.geometry(batch.images)
            language = None if batch.questions is None else self._language(batch)
            features = F.normalize(self.match(raw.hidden).float(), dim=-1)
            places = self.place(raw.hidden).float()
        terms = geometry_terms(raw, batch.target, self.rays, self.config.loss)
        world = patch_points(batch.target, self.rays)
        terms["matching"] = self._matching(raw, features, batch.target, world)
        terms["places"] = places_term(places, world)
        return terms if language is None else terms | {"language": language}

    def _matching(self, raw: RawHeads, features: Tensor, target: Target, world: Tensor) -> Tensor:
        """Of the features with the next view; in the trunk one head does so, one with view 0."""
        views = torch.arange(world.shape[1], device=world.device)
        following, first = (
            matches(target, self.rays, world, other) for other in (views.roll(-1), 0 * views)
        )
        sharp = features / TEMPERATURE
        total = matching_term(sharp, features, following)
        for head, found in zip(MATCHING_HEADS, (following, first), strict=True):
            total = total + matching_term(raw.queries[:, head], raw.keys[:, head], found)
        return total

    def _language(self, batch: Batch) -> Tensor:
        data = self.config.data
        filled = []
        for window in batch.questions:
            # Where a window allows fewer questions, some are asked twice; weight, not truth.
            pairs = [(qa.question, qa.answer) for qa in window] or [("What is there?", "Nothing.")]
            filled.append([pairs[i % len(pairs)] for i in range(data.questions)])
        encoded = encode_questions(self.trainee.tokenizer, filled, data.tokens)
        encoded = type(encoded)(*(part.to(self.device) for part in encoded))
        return self.trainee.answers(batch.images, squares(batch.images, data.semantic_px), encoded)
