# SPDX-License-Identifier: Apache-2.0
"""What every backend refuses, with the same words."""

from __future__ import annotations

import numpy as np

from g2vlm_ros.checkpoint.prompt_layout import Segment


def check_images(name: str, images: np.ndarray, ndim: int, multiple: int) -> None:
    """uint8 RGB with `ndim` dimensions and sides that are multiples of `multiple` pixels."""
    if images.dtype != np.uint8 or images.ndim != ndim or images.shape[-1] != 3 or not images.size:
        raise ValueError(
            f"{name} are {images.dtype} {images.shape}; they must be uint8 with {ndim} "
            "dimensions, the last of 3 colours; use g2vlm_ros.images.preprocessing"
        )
    height, width = images.shape[-3:-1]
    if height % multiple or width % multiple:
        raise ValueError(
            f"{name} of {width}x{height} pixels; both sides must be multiples of {multiple}; "
            "use g2vlm_ros.images.preprocessing"
        )


def check_boundaries(segment: Segment, kind: str, views: int, image_tokens: int) -> None:
    """The trunk relies on each view being [start, image tokens, end]."""
    step = image_tokens + 2
    starts = step * np.arange(views)
    slots = np.stack((starts, starts + step - 1), axis=1).ravel()
    if segment.kind != kind or not np.array_equal(segment.slots, slots):
        raise ValueError(
            f"a {segment.kind} segment of {segment.length} tokens does not belong to {views} "
            f"views of {image_tokens} tokens in a {kind} stage; build it for these images"
        )


def text_feeds(
    segment: Segment, image_tokens: int | None, vocabulary: int
) -> dict[str, np.ndarray]:
    """What the language stage takes beside features and cache; ValueError where it does not fit.

    image_tokens: how many features there are, None for none. `reach` is the last token of the
    segment that each may look at: a token of text sees up to itself, one of an image all of it.
    """
    check_ids(segment.token_ids, vocabulary)
    if segment.kind == "text":
        reach = np.arange(segment.length)
    else:
        if image_tokens is None:
            raise ValueError("a semantic segment needs the features of its image; pass them")
        check_boundaries(segment, "semantic", 1, image_tokens)
        reach = np.full(segment.length, segment.length - 1)
    return {"ids": segment.token_ids, "reach": reach, "positions": segment.positions}


def check_ids(ids: np.ndarray, vocabulary: int) -> None:
    """Token ids that the embedding has."""
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise ValueError(
            f"token id {ids.max()} is outside the model's vocabulary of {vocabulary}; tokenizer "
            "and weights must be of one checkpoint"
        )


def check_grid(patches: int, grid_hw: tuple[int, int]) -> None:
    """The hidden states of a view are one per patch of its grid."""
    if patches != grid_hw[0] * grid_hw[1]:
        raise ValueError(
            f"grid {grid_hw} has {grid_hw[0] * grid_hw[1]} patches, the hidden states have "
            f"{patches}; pass the grid of the images that were encoded"
        )
