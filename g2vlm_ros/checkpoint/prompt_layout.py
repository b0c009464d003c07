# SPDX-License-Identifier: Apache-2.0
"""Prompts and image grids -> token ids, 3-axis positions and slots, as the released model has it.

A sequence is a list of segments; each is appended to the KV cache by one call of a stage. A
reconstruction is text, then one geometry segment with all views. A dialogue is the chat prefix,
one geometry segment with all images, one semantic segment per image, and the question; decoding
then feeds the start token (a line break) and the generated tokens one by one.

Positions are (temporal, height, width); a text token has three equal ones and takes one position,
an image takes 2 + max(rows, columns). Source: G2VLM (arXiv 2511.21688), Qwen2-VL's mRoPE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from g2vlm_ros.checkpoint.tokenizer import SpecialTokens, Tokenizer
from g2vlm_ros.records import frozen

RECONSTRUCTION = "<|im_start|>Reconstruct the 3D scene."
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
USER = "<|im_start|>user\n"
END_OF_TURN = "<|im_end|>\n"
ASSISTANT = "<|im_start|>assistant"


@dataclass(frozen=True)
class Segment:
    """One stage of the token sequence: T tokens, of which K are vocabulary ids."""

    kind: str
    """Which experts run it: "text", "geometry" or "semantic"."""
    token_ids: np.ndarray
    """int64 (K,): text, or the boundary tokens of images, in order."""
    slots: np.ndarray
    """int64 (K,): where in the segment each id stands."""
    positions: np.ndarray
    """int64 (3, T): temporal, height, width."""
    causal: bool
    """True for text; tokens of an image segment all see each other. All see the whole cache."""
    next_position: int
    """First free position after the segment."""

    def __post_init__(self) -> None:
        ids = frozen(self.token_ids, "token_ids", (None,), np.int64)
        object.__setattr__(self, "token_ids", ids)
        object.__setattr__(self, "slots", frozen(self.slots, "slots", ids.shape, np.int64))
        positions = frozen(self.positions, "positions", (3, None), np.int64)
        object.__setattr__(self, "positions", positions)

    @property
    def length(self) -> int:
        """T, the tokens that the segment adds to the cache."""
        return self.positions.shape[1]

    @property
    def image_slots(self) -> np.ndarray:
        """int64 (T-K,): where in the segment the image tokens stand, in order."""
        return np.setdiff1d(np.arange(self.length), self.slots)


@dataclass(frozen=True)
class Turn:
    """One question of a dialogue, its own images if it brings any, and its answer if known."""

    question: str
    answer: str | Sequence[int] | None = None
    """Text, or the ids that the model generated; None only for the last turn."""
    views: int = 0
    """How many images come with this turn; 0 asks on about the earlier ones."""
    grid_hw: tuple[int, int] = (0, 0)
    """Patches of each view of the geometry segment (rows, columns)."""
    merged_grid_hw: tuple[int, int] = (0, 0)
    """Merged 2x2 patches of each semantic image (rows, columns)."""


class TokenCursor:
    """Builds segments one after the other and knows where the sequence stands.

    length: tokens in the KV cache so far. position: first free position. A decoding step is
    ``walk.text([token])``.
    """

    def __init__(self, special: SpecialTokens, length: int = 0, position: int = 0):
        self.special, self.length, self.position = special, length, position

    def text(self, ids: Sequence[int] | np.ndarray) -> Segment:
        """The next segment is text."""
        return self._append(text_segment(ids, self.position))

    def geometry(self, views: int, grid_hw: tuple[int, int]) -> Segment:
        """The next segment is the geometry of all views of a window."""
        return self._append(geometry_segment(views, grid_hw, self.position, self.special))

    def semantic(self, merged_grid_hw: tuple[int, int]) -> Segment:
        """The next segment is one image for the semantic expert."""
        return self._append(semantic_segment(merged_grid_hw, self.position, self.special))

    def _append(self, segment: Segment) -> Segment:
        self.length += segment.length
        self.position = segment.next_position
        return segment


def text_segment(ids: Sequence[int] | np.ndarray, position: int) -> Segment:
    """Text tokens from the first free position on."""
    ids = np.array(ids, dtype=np.int64)
    if ids.size == 0:
        raise ValueError("a text segment needs at least one token; it has none")
    steps = np.arange(ids.size)
    positions = np.tile(position + steps, (3, 1))
    return Segment("text", ids, steps, positions, True, position + ids.size)


def geometry_segment(
    views: int, grid_hw: tuple[int, int], position: int, special: SpecialTokens
) -> Segment:
    """All views of a window as one segment: per view start token, patches row by row, end token.

    grid_hw: rows and columns of 14-pixel patches, the same for all views.
    """
    return _image_segment("geometry", views, grid_hw, position, special)


def semantic_segment(
    merged_grid_hw: tuple[int, int], position: int, special: SpecialTokens
) -> Segment:
    """One image for the semantic expert; merged_grid_hw counts the 2x2-merged patches."""
    return _image_segment("semantic", 1, merged_grid_hw, position, special)


def reconstruction_prefix(tokenizer: Tokenizer) -> np.ndarray:
    """int64 ids that stand before the geometry of a pure reconstruction."""
    return tokenizer.encode(RECONSTRUCTION)


def chat_prefix(tokenizer: Tokenizer) -> np.ndarray:
    """int64 ids that stand before the images of a dialogue."""
    return tokenizer.encode(SYSTEM + USER)


def after_images(question: str) -> str:
    """The question as it must follow images: the released prompts put it on a new line."""
    return question if question.startswith("\n") else "\n" + question


def question_ids(tokenizer: Tokenizer, question: str) -> np.ndarray:
    """int64 ids of a question, verbatim, up to the point where decoding starts.

    Directly after images pass ``after_images(question)``. Decoding then feeds special.newline.
    """
    ending = tokenizer.encode(END_OF_TURN + ASSISTANT)
    return np.concatenate([tokenizer.encode_user(question), ending])


def answer_ids(tokenizer: Tokenizer, answer: str | Sequence[int]) -> np.ndarray:
    """int64 ids of an answer, from the start token to the opening of the next user turn.

    They follow a question segment, so append them to the cache as it stood before decoding.
    """
    if isinstance(answer, str):
        answer = tokenizer.encode_user(answer)
    body = np.array(answer, dtype=np.int64)
    ending = tokenizer.encode(END_OF_TURN + USER)
    return np.concatenate([[tokenizer.special.newline], body, ending])


def reconstruction_segments(
    tokenizer: Tokenizer, views: int, grid_hw: tuple[int, int]
) -> list[Segment]:
    """The two segments of a reconstruction."""
    walk = TokenCursor(tokenizer.special)
    return [walk.text(reconstruction_prefix(tokenizer)), walk.geometry(views, grid_hw)]


def dialogue_segments(tokenizer: Tokenizer, turns: Sequence[Turn]) -> list[Segment]:
    """The segments of a dialogue whose last turn is to be answered.

    Turns with images of their own before the last one are in-context examples: images, question
    and answer, then the next. Text between images forms one segment. The first position of the
    start token is ``segments[-1].next_position``.
    """
    if not turns:
        raise ValueError("a dialogue needs at least one turn; none was given")
    walk, segments, text = TokenCursor(tokenizer.special), [], [chat_prefix(tokenizer)]
    for index, turn in enumerate(turns):
        question = turn.question
        if turn.views:
            segments.append(walk.text(np.concatenate(text)))
            segments.append(walk.geometry(turn.views, turn.grid_hw))
            segments += [walk.semantic(turn.merged_grid_hw) for _ in range(turn.views)]
            text, question = [], after_images(question)
        text.append(question_ids(tokenizer, question))
        if (turn.answer is None) != (index == len(turns) - 1):
            raise ValueError(
                f"turn {index + 1} of {len(turns)} has answer {turn.answer!r}; every turn but the "
                "last needs one, and the last must not have one"
            )
        if turn.answer is not None:
            text.append(answer_ids(tokenizer, turn.answer))
    segments.append(walk.text(np.concatenate(text)))
    return segments


def _image_segment(
    kind: str, views: int, grid_hw: tuple[int, int], position: int, special: SpecialTokens
) -> Segment:
    rows, columns = grid_hw
    if min(views, rows, columns) < 1:
        raise ValueError(
            f"{kind} segment of {views} views with grid {rows}x{columns}; all must be at least 1"
        )
    tokens, step = rows * columns + 2, max(rows, columns) + 2
    view = np.zeros((3, tokens), np.int64)
    view[:, 1:-1] += 1
    view[1:, 1:-1] += np.indices((rows, columns)).reshape(2, -1)
    view[:, -1] = step - 1
    starts = position + step * np.arange(views)
    positions = (view[:, None, :] + starts[:, None]).reshape(3, -1)
    slots = (tokens * np.arange(views)[:, None] + [0, tokens - 1]).reshape(-1)
    ids = np.tile(np.array([special.vision_start, special.vision_end], np.int64), views)
    return Segment(kind, ids, slots, positions, False, position + step * views)
