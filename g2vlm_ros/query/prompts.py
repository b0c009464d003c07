# SPDX-License-Identifier: Apache-2.0
"""What the model is told besides the question: marks drawn on an image, and what was measured.

Marked points with a known distance ("the red point is at 2.60 meters") are how the released
weights were trained to reason about distances; a pixel is asked about in that way.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

COLOURS = {
    "blue": (30, 60, 255),
    "red": (255, 40, 30),
    "green": (20, 200, 60),
    "yellow": (255, 220, 20),
}
"""RGB of marks by name: blue is what is asked about, red the reference."""
_POINTING = re.compile(r"\b(?:this|that|these|those|it)\b", re.IGNORECASE)
RADIUS = 0.012
"""Of a drawn point, as a fraction of the image's longer side."""


@dataclass(frozen=True)
class Mark:
    """A point or a box drawn on a view; corners (u, v) in pixels of the camera image."""

    view: int
    low_px: tuple[float, float]
    high_px: tuple[float, float]
    colour: str

    def __post_init__(self) -> None:
        if self.colour not in COLOURS:
            raise ValueError(f"mark colour '{self.colour}' must be one of {', '.join(COLOURS)}")

    @property
    def name(self) -> str:
        """How the prompt calls it: "blue point", "red box"."""
        return f"{self.colour} {'point' if self.low_px == self.high_px else 'box'}"


@dataclass(frozen=True)
class Reference:
    """A marked place whose distance from its camera is known."""

    mark: Mark
    distance_m: float
    label: str = ""


def draw(image: np.ndarray, marks: Sequence[Mark]) -> np.ndarray:
    """A copy of an image uint8 (h, w, 3) RGB with the marks on it; `view` is not looked at."""
    canvas = np.ascontiguousarray(image).copy()
    radius = max(2, round(RADIUS * max(image.shape[:2])))
    for mark in marks:
        colour = COLOURS[mark.colour]
        (left, top), (right, bottom) = (
            (round(u), round(v)) for u, v in (mark.low_px, mark.high_px)
        )
        if mark.low_px == mark.high_px:
            cv2.circle(canvas, (left, top), radius + 1, (255, 255, 255), -1)
            cv2.circle(canvas, (left, top), radius, colour, -1)
        else:
            cv2.rectangle(canvas, (left, top), (right, bottom), colour, max(1, radius // 2))
    return canvas


def needs_marks(question: str, marks: Sequence[Mark]) -> bool:
    """Whether only the marks tell what a question is about."""
    pixel = any(mark.low_px == mark.high_px for mark in marks)
    return bool(marks) and (pixel or _POINTING.search(question) is not None)


def about_marks(question: str, marks: Sequence[Mark], references: Sequence[Reference] = ()) -> str:
    """The question with what the marks mean, and known distances where there are any.

    "this" and the like are replaced by the name of the mark they mean, in order.
    """
    sentences = [_known(reference) for reference in references]
    text = question
    for mark in marks:
        pointed = f"the object at the {mark.name}"
        text, count = re.subn(
            r"\b(?:this|that)(?: (?:one|thing|object|place))?\b(?! (?:room|view|image|frame))",
            pointed,
            text,
            count=1,
            flags=re.IGNORECASE,
        )
        if not count:
            sentences.append(f"The question is about {pointed}.")
    return " ".join([*sentences, text])


def with_measures(question: str, measures: Sequence[str]) -> str:
    """The question after what was measured, for the model to conclude."""
    if not measures:
        return question
    return f"Measured: {' '.join(measures)} {question}"


def where_is(thing: str, views: int) -> str:
    """Asks the model to point at a thing in the images."""
    frames = "the image" if views == 1 else f"frames 1 to {views}"
    return (
        f"Where in {frames} is the {thing}? Answer with the frame number and the pixel, like: "
        "frame 1, pixel (120, 80). If it is not in the images, say that it is not visible."
    )


def which_way_faces(thing: str) -> str:
    """Asks which way a thing's front looks in the newest image."""
    return (
        f"Which way does the front of the {thing} face in the last image: left, right, towards "
        "the camera or away from the camera?"
    )


def _known(reference: Reference) -> str:
    what = f"{reference.label} ({reference.mark.name})" if reference.label else reference.mark.name
    return f"The {what} is at {reference.distance_m:.2f} meters."
