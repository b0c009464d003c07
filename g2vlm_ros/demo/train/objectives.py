# SPDX-License-Identifier: Apache-2.0
"""What one step learns from: windows of the training homes, and the gradients they give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from g2vlm_ros.checkpoint.config import PATCH_PX
from g2vlm_ros.checkpoint.tokenizer import Tokenizer
from g2vlm_ros.demo.sim.questions import QuestionAnswer
from g2vlm_ros.demo.train.attention import PlainAttention
from g2vlm_ros.demo.train.augmentation import on_device
from g2vlm_ros.demo.train.batched_model import (
    Answered,
    BatchedModel,
    RawHeads,
    build,
    encode_questions,
    encode_squares,
    trains,
)
from g2vlm_ros.demo.train.config import Config
from g2vlm_ros.demo.train.data import CLASSES, Batch, Ring, squares
from g2vlm_ros.demo.train.losses import (
    GeometryTarget,
    geometry_terms,
    grid_points,
    looking_term,
    masked_mean,
    matches,
    matching_term,
    naming_term,
    places_term,
    same_place,
    true_rays,
    whereabouts_term,
)
from g2vlm_ros.demo.train.mentions import Mentions, padded_mentions
from g2vlm_ros.demo.train.shards import Shards

MATCH_WIDTH, TEMPERATURE = 64, 0.07
MATCHING_HEADS = (0, -1)
"""Heads of the trunk's middle layer that are taught to look where the same thing is seen."""


class Objectives:
    """A network with the data that it learns from; the folder holds the tokenizer."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        device: str = "cpu",
        cache: Path | None = None,
        workers: int = 0,
    ):
        self.config, self.device = config, device
        # First of all: the workers begin while the network is built.
        self.ring = Ring(Shards(config.data, "train", device, cache, workers))
        network = build(config.sizes.model(), config.steps.seed)
        self.trainee = BatchedModel(network, Tokenizer.open(folder)).to(device)
        self.match = nn.Linear(config.sizes.hidden, MATCH_WIDTH, bias=False).to(device)
        self.place = nn.Linear(config.sizes.hidden, 3).to(device)
        self.names = nn.Linear(config.sizes.hidden, len(CLASSES)).to(device)
        self.where = nn.Linear(config.sizes.hidden, 4).to(device)
        self.what = nn.Linear(config.sizes.hidden, len(CLASSES)).to(device)
        self.all = nn.ModuleDict(
            {
                "network": self.trainee.network,
                "match": self.match,
                "place": self.place,
                "names": self.names,
                "where": self.where,
                "what": self.what,
            }
        )
        self._stage = ""
        self.rays = true_rays(self.ring.shards.camera, torch.device(device))

    def backward(
        self, stage: str, windows: int, rng: np.random.Generator, lead: float = 1.0
    ) -> tuple[int, Tensor, dict[str, Tensor]]:
        """Adds the gradients of new windows; their number, the loss, its terms unweighted.

        Each stage trains its own part. Questions read the geometry as it is: what a word wants
        does not change what a point is.
        windows: how many were drawn before, which decides the homes in memory. lead: 0..1, how
        much the heads that only the training has ask of the trunk.
        """
        torch.manual_seed(int(rng.integers(2**62)))
        self.ring.advance(windows, words=stage != "geometry")
        if stage != self._stage:
            self._begin(stage)
        steps = self.config.steps
        if stage == "naming":
            batch = self.ring.single_views(steps.batch_views, rng)
        elif stage == "language":
            batch = self.ring.batch(steps.asking_views, rng, True)
        else:
            batch = self.ring.batch(steps.batch_views, rng, False)
        terms = self._terms(stage, batch, lead)
        loss = sum(getattr(self.config.loss, name) * term for name, term in terms.items())
        loss.backward()
        # A single view wears its home out less than a window does.
        share = 1 if stage != "naming" else 1 / self.config.data.views_per_scene
        return max(1, round(share * len(batch.images))), loss.detach(), terms

    def _begin(self, stage: str) -> None:
        self._stage = stage
        for name, parameter in self.all.named_parameters():
            parameter.requires_grad_(trains(stage, name))
        self.trainee.freeze_language(stage == "geometry")

    def _terms(self, stage: str, batch: Batch, lead: float) -> dict[str, Tensor]:
        place = torch.device(self.device).type
        # Most CPUs multiply bfloat16 a hundred times slower than float32.
        with PlainAttention() if place == "cpu" else torch.autocast(place, torch.bfloat16):
            if stage == "language":
                return self._language(batch)
            if stage == "naming":
                return self._naming(batch)
            raw = self.trainee.geometry(batch.images)
            hidden = raw.hidden.detach() + lead * (raw.hidden - raw.hidden.detach())
            features = F.normalize(self.match(hidden).float(), dim=-1)
            places = self.place(hidden).float()
        target = batch.target
        terms = geometry_terms(raw, target, self.rays, self.config.loss)
        grid = batch.images.shape[2] // PATCH_PX, batch.images.shape[3] // PATCH_PX
        world = grid_points(target, self.rays, grid)
        terms["matching"] = self._matching(raw, features, target, world)
        terms["places"] = places_term(places, world)
        return terms

    def _matching(
        self, raw: RawHeads, features: Tensor, target: GeometryTarget, world: Tensor
    ) -> Tensor:
        """Of the features with the next view; in the trunk one head does so, one with view 0."""
        views = torch.arange(world.shape[1], device=world.device)
        following, first = (
            matches(target, self.rays, world, other) for other in (views.roll(-1), 0 * views)
        )
        sharp = features / TEMPERATURE
        total = matching_term(sharp, features, following)
        for head, pair in zip(MATCHING_HEADS, (following, first), strict=True):
            total = total + matching_term(raw.queries[:, head], raw.keys[:, head], pair)
        return total

    def _naming(self, batch: Batch) -> dict[str, Tensor]:
        """The semantic encoder alone: what each cell shows."""
        pixels = squares(batch.images, self.config.data.semantic_px)
        features = encode_squares(self.trainee.network, pixels.flatten(0, 1))
        names = self.names(features)[:, None]
        return {"naming": naming_term(names, batch.cells, batch.classes)}

    def _language(self, batch: Batch) -> dict[str, Tensor]:
        data, tokenizer = self.config.data, self.trainee.tokenizer
        filled = []
        for window in batch.questions:
            # Where a window allows fewer questions, some are asked twice; weight, not truth.
            questions = window or [QuestionAnswer("list", "What is there?", "Nothing.")]
            filled.append([questions[i % len(questions)] for i in range(data.questions)])
        pairs = [[(qa.question, qa.answer) for qa in window] for window in filled]
        encoded = encode_questions(tokenizer, pairs, data.tokens)
        encoded = type(encoded)(*(part.to(self.device) for part in encoded))
        pixels = squares(batch.images, data.semantic_px)
        answered = self.trainee.answers(batch.images, pixels, encoded)
        grid = batch.images.shape[2] // PATCH_PX, batch.images.shape[3] // PATCH_PX
        looking = looking_term(*same_place(answered.image_queries, answered.patch_keys, grid))
        mentions = padded_mentions(self.trainee.tokenizer, filled, encoded.ids.shape[2])
        mentions = Mentions(*(on_device(part, self.device) for part in mentions))
        return {
            "language": answered.loss,
            "looking": looking + self._sought(answered, mentions, batch.cells),
            "naming": self._named(answered, mentions, batch),
            "whereabouts": self._whereabouts(answered, mentions, batch.target),
        }

    def _sought(self, answered: Answered, mentions: Mentions, cells: Tensor) -> Tensor:
        """Of the words for things, that look for them among the views."""
        shares = mentions.items @ cells.flatten(1, 2).transpose(1, 2)
        total = shares.sum(-1, keepdim=True)
        queries = mentions.of(answered.question_queries)
        logits = queries @ answered.image_keys.flatten(1, 2).transpose(1, 2).to(queries.dtype)
        visible = mentions.there & (total[..., 0] > 0)
        return looking_term(logits, shares / total.clamp(min=1e-9), visible)

    def _named(self, answered: Answered, mentions: Mentions, batch: Batch) -> Tensor:
        """Of cells, twice, and of words for things: names and colours, none of what is absent."""
        term = naming_term(self.what(answered.image_states), batch.cells, batch.classes)
        term = term + naming_term(self.names(answered.features), batch.cells, batch.classes)
        true = (mentions.items @ batch.classes).clamp(max=1.0)
        guess = self.what(mentions.of(answered.question_states)).float()
        wrong = F.binary_cross_entropy_with_logits(guess, true, reduction="none")
        return term + masked_mean(wrong.sum(-1), mentions.there)

    def _whereabouts(
        self, answered: Answered, mentions: Mentions, target: GeometryTarget
    ) -> Tensor:
        """Of cells and of words for single things, in the frame of the newest view."""
        side = round(answered.image_states.shape[2] ** 0.5)
        world = grid_points(target, self.rays, (side, side))
        newest = target.poses[:, -1]
        in_view = (world - newest[:, None, None, :3, 3]) @ newest[:, None, :3, :3]
        term = whereabouts_term(self.where(answered.image_states), in_view)
        guess = self.where(mentions.of(answered.question_states))
        return term + whereabouts_term(guess, mentions.viewer_m, mentions.placed)
