# SPDX-License-Identifier: Apache-2.0
"""A picture of an answer for people: the camera image, what the answer rests on, and its words."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from g2vlm_ros.query import prompts
from g2vlm_ros.query.object_measurement import Object3D
from g2vlm_ros.query.point_map import Region
from g2vlm_ros.query.prompts import COLOURS, Mark
from g2vlm_ros.query.types import Result

WIDTH_PX = 640
"""Of every picture, so that its words can be read and its message stays small."""
_FONT, _SIZE, _LINE_PX, _CHARACTERS = cv2.FONT_HERSHEY_SIMPLEX, 0.5, 20, 70
_LEGIBLE = str.maketrans({"±": "+-", "°": " deg", "²": "2", "’": "'", "…": "..."})
"""OpenCV's letters are those of ASCII; others become question marks."""


def views_of(result: Result, newest: int) -> list[int]:
    """As few views as show every thing of an answer, the telling ones first; else `newest`."""
    missing = [{region.view for region in thing.regions} for thing in result.things]
    selection = []
    while any(missing):
        shown_in = Counter(view for views in missing for view in views)
        best = max(shown_in, key=lambda view: (shown_in[view], view))
        selection.append(best)
        missing = [views for views in missing if best not in views]
    return selection or [newest]


def marks_of(
    result: Result, view: int, corners: Callable[[Region], tuple[float, float, float, float]]
) -> list[tuple[Mark, str]]:
    """Where a view shows the things of an answer, each with its label.

    corners(region): (u0, v0, u1, v1) in pixels of the camera image.
    """
    marks = []
    for thing, colour in zip(result.things, _colours(len(result.things)), strict=True):
        for region in (region for region in thing.regions if region.view == view):
            u0, v0, u1, v1 = corners(region)
            marks.append((Mark(view, (u0, v0), (u1, v1), colour), thing.label))
    return marks


def lines_of(question: str, result: Result, metric: bool) -> list[str]:
    """The question, the answer, the places in the map and the confidence, a line each."""
    lines = [f"Q: {question}", f"A: {result.text}"]
    if metric:
        lines += [_place(thing) for thing in result.things]
    sure = "not calibrated" if result.confidence < 0 else f"{result.confidence:.2f}"
    return [*lines, f"confidence {sure}"]


def draw(
    panels: Sequence[tuple[np.ndarray, Sequence[tuple[Mark, str]]]], lines: Sequence[str]
) -> np.ndarray:
    """uint8 (h, WIDTH_PX, 3) RGB: images uint8 (H, W, 3) with labelled marks, lines below."""
    wrapped = [part for line in lines for part in textwrap.wrap(line, _CHARACTERS)]
    band = np.full((_LINE_PX * len(wrapped) + 8, WIDTH_PX, 3), 24, np.uint8)
    for row, line in enumerate(wrapped):
        _write(band, line, 8, _LINE_PX * (row + 1) - 4, (240, 240, 240))
    return np.concatenate([*(_panel(image, marks) for image, marks in panels), band])


def _panel(image: np.ndarray, marks: Sequence[tuple[Mark, str]]) -> np.ndarray:
    scale = WIDTH_PX / image.shape[1]
    height = max(1, round(image.shape[0] * scale))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    panel = cv2.resize(image, (WIDTH_PX, height), interpolation=way)
    larger = [(_scaled(mark, scale), label) for mark, label in marks]
    panel = prompts.draw(panel, [mark for mark, _ in larger])
    for mark, label in larger:
        _tag(panel, label, mark)
    return panel


def _tag(image: np.ndarray, label: str, mark: Mark) -> None:
    """The label over its mark, in a plate of the mark's colour that stays inside the image."""
    wide, colour = _width_px(label) + 8, COLOURS[mark.colour]
    left = int(np.clip(mark.low_px[0] - 4, 0, max(0, image.shape[1] - wide)))
    bottom = int(np.clip(mark.low_px[1] - 10, _LINE_PX, image.shape[0] - 1))
    cv2.rectangle(image, (left, bottom - _LINE_PX), (left + wide, bottom), colour, -1)
    dark = np.dot(colour, (0.3, 0.6, 0.1)) < 128
    _write(image, label, left + 4, bottom - 5, (255, 255, 255) if dark else (0, 0, 0))


def _colours(count: int) -> list[str]:
    names = list(COLOURS)
    return [names[i % len(names)] for i in range(count)]


def _place(thing: Object3D) -> str:
    x, y, z = thing.centre
    return f"{thing.label} at ({x:.2f}, {y:.2f}, {z:.2f}) m in the map"


def _scaled(mark: Mark, scale: float) -> Mark:
    """The mark after resizing the image; pixel centres lie at integers."""
    low, high = (
        tuple((value + 0.5) * scale - 0.5 for value in corner)
        for corner in (mark.low_px, mark.high_px)
    )
    return Mark(mark.view, low, high, mark.colour)


def _plain(text: str) -> str:
    return text.translate(_LEGIBLE).encode("ascii", "replace").decode()


def _width_px(text: str) -> int:
    return cv2.getTextSize(_plain(text), _FONT, _SIZE, 1)[0][0]


def _write(image: np.ndarray, text: str, u: int, v: int, colour: tuple[int, int, int]) -> None:
    cv2.putText(image, _plain(text), (u, v), _FONT, _SIZE, colour, 1, cv2.LINE_AA)
