# SPDX-License-Identifier: Apache-2.0
"""One page of windows: images, true depth, predicted depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

_GAP, _LABEL = 4, 16


class Exhibit(NamedTuple):
    """Views to be shown."""

    name: str
    error: float
    """By which best, median and worst are found."""
    images: np.ndarray
    """uint8 (N, H, W, 3)."""
    true_depth: np.ndarray
    """(N, H, W) metres."""
    depth: np.ndarray
    """(N, H, W), shown after scaling by the median ratio."""


def page(exhibits: Sequence[Exhibit]) -> Image.Image:
    """Best, median and worst window, three rows each."""
    if not exhibits:
        raise ValueError("no windows to show; evaluate at least one scene")
    ranked = sorted(exhibits, key=lambda exhibit: exhibit.error)
    examples = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    blocks = [sheet(exhibit, name) for name, exhibit in examples.items()]
    width = max(block.width for block in blocks)
    image = Image.new("RGB", (width, sum(block.height for block in blocks)), "white")
    top = 0
    for block in blocks:
        image.paste(block, (0, top))
        top += block.height
    return image


def sheet(exhibit: Exhibit, label: str) -> Image.Image:
    """Views, true depth and estimated depth below each other."""
    scale = np.median(exhibit.true_depth / exhibit.depth)
    low, high = np.quantile(exhibit.true_depth, [0.01, 0.99])
    rows = [
        exhibit.images,
        shaded(exhibit.true_depth, low, high),
        shaded(exhibit.depth * scale, low, high),
    ]
    count, height, width, _ = exhibit.images.shape
    zoom = max(1, 224 // width)
    size = (width * zoom + _GAP, height * zoom + _GAP)
    image = Image.new("RGB", (count * size[0], 3 * size[1] + _LABEL), "white")
    text = f"{label}: {exhibit.name}, AbsRel {exhibit.error:.3f}; views, truth, estimate"
    ImageDraw.Draw(image).text((2, 2), text, fill="black")
    for r, row in enumerate(rows):
        for c, view in enumerate(row):
            tile = Image.fromarray(view).resize((width * zoom, height * zoom), Image.NEAREST)
            image.paste(tile, (c * size[0], _LABEL + r * size[1]))
    return image


def shaded(depth: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8 (..., 3): near is warm and bright, far is dark blue."""
    nearness = 1.0 - np.clip((depth - low) / max(high - low, 1e-6), 0.0, 1.0)[..., None]
    stops = np.array(
        [[20, 20, 80], [60, 60, 190], [60, 180, 160], [250, 200, 60], [255, 245, 200]]
    )
    place = nearness * (len(stops) - 1)
    first = np.minimum(place.astype(int), len(stops) - 2)[..., 0]
    return (stops[first] + (place - first[..., None]) * (stops[first + 1] - stops[first])).astype(
        np.uint8
    )
