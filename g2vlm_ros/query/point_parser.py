# SPDX-License-Identifier: Apache-2.0
"""Places in images, read from the model's text: boxes, points, "frame 2, pixel (120, 80)".

Frames are counted from 1 as people do; views from 0. Coordinates in Qwen's marked form are
thousandths of the image; in prose they are pixels of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from g2vlm_ros.query.number_parser import plain

THOUSAND = 1000.0
_NUMBER = r"(-?\d+(?:\.\d+)?)"
_PAIR = rf"\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)"
_QWEN = re.compile(
    r"(?:<\|object_ref_start\|>(?P<label>.*?)<\|object_ref_end\|>\s*)?"
    rf"<\|(?P<kind>box|point)_start\|>\s*{_PAIR}(?:\s*,?\s*{_PAIR})?\s*<\|(?P=kind)_end\|>"
)
_FRAME = r"(?:frame|image|view|picture|photo)\s*(?:number\s*|no\.?\s*|#\s*)?(\d+)"
_BOX = re.compile(
    rf"\bbox\w*\b[^\d(\[]{{0,20}}[(\[]\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)?,?\s*\(?\s*"
    rf"{_NUMBER}\s*,\s*{_NUMBER}\s*[)\]]"
)
_PIXEL = re.compile(
    rf"\b(?:pixel|point|position|coordinates?|at|u ?v)\b[^\d(]{{0,20}}\(?\s*{_NUMBER}"
    rf"(?:\s*,\s*|\s+){_NUMBER}\s*\)?(?!\s*(?:m|cm|met(?:er|re)s?|feet|foot|degrees?)\b)"
)


@dataclass(frozen=True)
class Pointed:
    """A place in an image, as a text gave it; a point has both corners equal."""

    view: int | None
    """Counted from 0; None where the text names no frame."""
    low: tuple[float, float]
    """(u, v) of the upper left corner, in thousandths of the image or in its pixels."""
    high: tuple[float, float]
    thousandths: bool
    label: str
    text: str

    def pixels(self, width_px: int, height_px: int) -> tuple[float, float, float, float] | None:
        """(u0, v0, u1, v1) in an image of that size, or None where it lies outside."""
        u0, v0, u1, v1 = (*self.low, *self.high)
        if self.thousandths:
            across, down = width_px / THOUSAND, height_px / THOUSAND
            u0, v0, u1, v1 = (
                min(side - 1.0, max(0.0, value * step - 0.5))
                for value, step, side in (
                    (u0, across, width_px),
                    (v0, down, height_px),
                    (u1, across, width_px),
                    (v1, down, height_px),
                )
            )
        inside = 0 <= u0 <= u1 <= width_px - 0.5 and 0 <= v0 <= v1 <= height_px - 0.5
        return (u0, v0, u1, v1) if inside else None


def pointed(text: str) -> tuple[Pointed, ...]:
    """Every box, point and pixel that a text gives, in order; malformed ones are left out."""
    places = _places(_QWEN, text, _from_qwen)
    if places or "<|box_start|>" in text or "<|point_start|>" in text:
        return places
    simple = plain(text)
    pattern = _BOX if _BOX.search(simple) else _PIXEL
    return _places(pattern, simple, _from_prose)


def _places(
    pattern: re.Pattern, text: str, read: Callable[[str, re.Match], Pointed | None]
) -> tuple[Pointed, ...]:
    """What `read` makes of every match in a text, without what is malformed."""
    places = (read(text, match) for match in pattern.finditer(text))
    return tuple(place for place in places if place is not None)


def _from_qwen(text: str, match: re.Match) -> Pointed | None:
    values = [float(value) for value in match.groups()[2:] if value is not None]
    if len(values) != (4 if match["kind"] == "box" else 2):
        return None
    low, high = (values[0], values[1]), (values[-2], values[-1])
    if min(values) < 0 or max(values) > THOUSAND or low[0] > high[0] or low[1] > high[1]:
        return None
    view = _frame_near(plain(text[: match.start()]))
    return Pointed(view, low, high, True, (match["label"] or "").strip(), match.group())


def _from_prose(text: str, match: re.Match) -> Pointed | None:
    values = [float(value) for value in match.groups()]
    low, high = (values[0], values[1]), (values[-2], values[-1])
    if min(values) < 0 or low[0] > high[0] or low[1] > high[1]:
        return None
    view = _frame_near(text[: match.start()])
    if view is None:
        after = re.match(rf"\W*(?:of|in|on)?\W*(?:the )?{_FRAME}", text[match.end() :])
        view = int(after.group(1)) - 1 if after else None
    if view is not None and view < 0:
        return None
    return Pointed(view, low, high, False, "", match.group())


def _frame_near(before: str) -> int | None:
    """The frame named last before a place, counted from 0."""
    names = re.findall(_FRAME, before)
    return int(names[-1]) - 1 if names else None
