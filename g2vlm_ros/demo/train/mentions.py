# SPDX-License-Identifier: Apache-2.0
"""Where questions speak of things, as arrays: the same number of places for every window."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from g2vlm_ros.checkpoint.tokenizer import Tokenizer
from g2vlm_ros.demo.sim.questions import QuestionAnswer
from g2vlm_ros.demo.train.data import ITEMS
from g2vlm_ros.demo.train.train_tokenizer import mention_at

_place = lru_cache(maxsize=200_000)(mention_at)


class Mentions(NamedTuple):
    """M mentions of things in the questions about each of B windows, padded."""

    question: Tensor
    """int64 (B, M)."""
    token: Tensor
    """int64 (B, M): with the end of the words for the thing."""
    there: Tensor
    """bool (B, M): no padding."""
    items: Tensor
    """float32 (B, M, ITEMS): 1 at the items that are meant."""
    placed: Tensor
    """bool (B, M): a single thing is meant, whose place is known."""
    viewer_m: Tensor
    """float32 (B, M, 3): that place in the frame of the newest view."""

    def of(self, values: Tensor) -> Tensor:
        """Values (B, Q, L, C) of the questions' tokens at the mentions, (B, M, C)."""
        window = torch.arange(len(values), device=values.device)[:, None]
        return values[window, self.question, self.token]


def padded_mentions(
    tokenizer: Tokenizer, windows: Sequence[Sequence[QuestionAnswer]], length: int
) -> tuple[np.ndarray, ...]:
    """The arrays of `Mentions`: every mention within the first `length` tokens of its question."""
    rows = []
    for window in windows:
        placed = [
            (q, _place(tokenizer, qa.question, mention.phrase), mention)
            for q, qa in enumerate(window)
            for mention in qa.mentions
        ]
        rows.append([row for row in placed if row[1] < length])
    most = max(1, *(len(row) for row in rows))
    shape = len(rows), most
    question, token = np.zeros((2, *shape), np.int64)
    there, placed = np.zeros((2, *shape), np.bool_)
    items = np.zeros((*shape, ITEMS), np.float32)
    viewer_m = np.zeros((*shape, 3), np.float32)
    for b, row in enumerate(rows):
        for m, (q, at, mention) in enumerate(row):
            question[b, m], token[b, m], there[b, m] = q, at, True
            np.add.at(items[b, m], list(mention.items), 1.0)
            if mention.viewer_m is not None:
                placed[b, m], viewer_m[b, m] = True, mention.viewer_m
    return question, token, there, items, placed, viewer_m
