# SPDX-License-Identifier: Apache-2.0
"""What every backend is held to on the golden checkpoint: the same steps, the same refusals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from g2vlm_ros.checkpoint.prompt_layout import SpecialTokens, TokenCursor
from g2vlm_ros.inference.backend import Backend
from g2vlm_ros.records import RawGeometry

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "A"
SPECIAL = SpecialTokens(401, 402, 409, 410, 198)
GRID = (6, 10)
"""Patches of a view: rows, columns."""
PROMPT = np.arange(20, 31)


def random_views() -> np.ndarray:
    """uint8 (4, 84, 140, 3), the same each time."""
    return np.random.default_rng(5).integers(0, 256, (4, 84, 140, 3), dtype=np.uint8)


def reconstruct(stages: Backend, views: np.ndarray, global_points: bool = False) -> RawGeometry:
    """The geometry of views behind a prompt."""
    cache, cursor = stages.new_cache(), TokenCursor(SPECIAL)
    stages.language(cursor.text(PROMPT), cache)
    features = stages.encode_geometry(views)
    hidden = stages.geometry(features, cursor.geometry(len(views), GRID), cache)
    return stages.heads(hidden, GRID, global_points)


def answer(stages: Backend, views: np.ndarray, pieces: Sequence[int]) -> np.ndarray:
    """Logits after prompt, views, one semantic image and a question fed in pieces."""
    cache, cursor = stages.new_cache(), TokenCursor(SPECIAL)
    for part in np.split(PROMPT, [n for n in pieces if n < len(PROMPT)]):
        stages.language(cursor.text(part), cache)
    features = stages.encode_geometry(views[:2])
    stages.geometry(features, cursor.geometry(2, GRID), cache)
    semantic = stages.encode_semantics(views[0, :84, :84])
    stages.language(cursor.semantic((3, 3)), cache, semantic)
    for part in np.split(np.arange(100, 112), pieces):
        logits = stages.logits(stages.language(cursor.text(part), cache))
    assert cache.length == 11 + 2 * 62 + 11 + 12
    return logits


def check_pieces(stages: Backend, views: np.ndarray) -> None:
    """Text in one piece, in pieces and token by token gives the same."""
    at_once = answer(stages, views, [])
    for pieces in ([3, 5], range(1, 12)):
        np.testing.assert_allclose(answer(stages, views, pieces), at_once, atol=1e-4, rtol=1e-4)


def check_bad_images(stages: Backend, views: np.ndarray) -> None:
    """Images of another type, shape or size are refused."""
    for bad in (views.astype(np.float32), views[..., :2], views[0], views[:0]):
        with pytest.raises(ValueError, match="must be uint8"):
            stages.encode_geometry(bad)
    with pytest.raises(ValueError, match="multiples of 14"):
        stages.encode_geometry(views[:, :80])
    with pytest.raises(ValueError, match="multiples of 28"):
        stages.encode_semantics(views[0, :70, :70])


def check_bad_segments(stages: Backend, views: np.ndarray) -> None:
    """Segments that do not belong to the images are refused."""
    features, cache = stages.encode_geometry(views), stages.new_cache()
    for segment in (TokenCursor(SPECIAL).geometry(3, GRID), TokenCursor(SPECIAL).text(PROMPT)):
        with pytest.raises(ValueError, match="does not belong to 4 views of 60 tokens"):
            stages.geometry(features, segment, cache)
    with pytest.raises(ValueError, match="needs the features"):
        stages.language(TokenCursor(SPECIAL).semantic((3, 3)), cache)
    with pytest.raises(ValueError, match="token id 512 is outside"):
        stages.language(TokenCursor(SPECIAL).text([3, 512]), cache)
    hidden = stages.geometry(features, TokenCursor(SPECIAL).geometry(4, GRID), cache)
    with pytest.raises(ValueError, match="63 patches"):
        stages.heads(hidden, (7, 9))
