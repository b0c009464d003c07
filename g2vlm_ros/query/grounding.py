# SPDX-License-Identifier: Apache-2.0
"""Finds the things of a question in the images, and measures them in the point map.

The first source that gives an answer counts: a region of the request, the detections of a
detector node, the model's own words (boxes, points, pixels).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from g2vlm_ros.query import answer_parser, prompts
from g2vlm_ros.query.point_map import Object3D, PointMap, Region, group, locate
from g2vlm_ros.query.point_parser import Pointed, pointed
from g2vlm_ros.query.question_parser import THIS, singular

MODEL_TRUST = 0.6
"""How sure a place in the model's own words is taken to be."""
UNCHECKED_TRUST = 0.7
"""Factor for a detection whose label says less than was asked for: "chair" for "red chair"."""
FULL_COLOUR = (
    "red green blue yellow white black brown grey gray orange purple pink beige wooden "
    "dark light big small large tall"
).split()


@dataclass(frozen=True)
class Detection:
    """A labelled box of a detector, in pixels at model size."""

    region: Region
    label: str
    score: float
    """0..1."""


class NotVisibleError(Exception):  # noqa: N818 - no error, an answer
    """The thing is in no view."""


class OutOfTimeError(Exception):
    """The model was not asked, or not to the end: there is no time left, or nobody waits."""

    reason = "There was no time to ask the model"


class NoLanguageError(OutOfTimeError):
    """The checkpoint cannot answer in words, however long one waits."""

    reason = "The language of this checkpoint is not trained, so the model was not asked"


class Finder:
    """Finds things for one question.

    say(prompt, marks): asks the model, may raise OutOfTimeError. to_model(place): a Region of what
    the model pointed at, or None where it lies outside; itself None where the model never learned
    to point. note: takes one sentence per step.
    """

    def __init__(
        self,
        points: PointMap,
        regions: Sequence[Region],
        detections: Sequence[Detection],
        ask_model: Callable[[str], str],
        to_model: Callable[[Pointed], Region | None] | None,
        note: Callable[[str], None],
    ):
        self._points = points
        self._regions = list(regions)
        self._detections = detections
        self._say = ask_model
        self._to_model = to_model
        self._note = note

    def given(self, count: int) -> bool:
        """Whether the request or a detector shows where so many things are, without the model."""
        return len(self._regions) >= count or bool(self._detections)

    def things(self, phrase: str) -> list[Object3D]:
        """The different things that a phrase may mean, best first; empty where no source tells.

        Raises Unseen where the model says that there is none.
        """
        if self._regions:
            return self._from_request(phrase)
        if THIS.match(phrase):
            return []
        return self._from_detections(phrase) or self._from_model(phrase)

    def detected(self, phrase: str) -> list[Object3D]:
        """Every thing of a kind that the detector sees; "thing" means any."""
        return self._from_detections(phrase)

    def named(self, question: str) -> list[Object3D]:
        """The things that a question calls by a detection's label, where the label fits one."""
        asked = question.lower()
        labels = dict.fromkeys(d.label.lower().replace("_", " ") for d in self._detections)
        found = [
            self._from_detections(x) for x in labels if re.search(rf"\b{re.escape(x)}\b", asked)
        ]
        return [things[0] for things in found if len(things) == 1]

    def _from_request(self, phrase: str) -> list[Object3D]:
        region = self._regions.pop(0)
        label = "marked place" if THIS.match(phrase) else phrase
        thing = locate(self._points, region, label, "request")
        if thing is None:
            raise NotVisibleError(
                f"the region given for the {label} holds no point; give another one"
            )
        self._note(f"The {label} is the {_words(region)} of the request.")
        return [thing]

    def _from_detections(self, phrase: str) -> list[Object3D]:
        sightings, partly = [], False
        for detection in self._detections:
            fit = _fit(phrase, detection.label)
            if not fit:
                continue
            partly |= fit < 1
            thing = locate(
                self._points, detection.region, detection.label, "detection", fit * detection.score
            )
            if thing is not None:
                sightings.append(thing)
        found = group(sightings)
        if found:
            also = f"; that it is the {phrase} was not checked" if partly else ""
            plural = "" if len(found) == 1 else "s"
            self._note(f"The detector shows {len(found)} {phrase}{plural}{also}.")
        return found

    def _from_model(self, phrase: str) -> list[Object3D]:
        if self._to_model is None:
            return []
        try:
            text = self._say(prompts.where_is(phrase, len(self._points.points)))
        except OutOfTimeError as error:
            self._note(f"{error.reason} where the {phrase} is.")
            return []
        if answer_parser.says_absent(text):
            self._note(f"The model says that it does not see the {phrase}.")
            raise NotVisibleError(f"the model sees no {phrase} in the newest views")
        sightings = []
        for place in pointed(text):
            region = self._to_model(place)
            thing = region and locate(self._points, region, phrase, "model", MODEL_TRUST)
            if thing:
                sightings.append(thing)
        if not sightings:
            self._note(f"The model gave no place for the {phrase}.")
            return []
        self._note(f"The model points at the {phrase}: {_quoted(text)}.")
        return group(sightings)


def _fit(phrase: str, label: str) -> float:
    """1 where a label is the phrase, UNCHECKED_TRUST where it only names its kind, else 0."""
    asked = [singular(word) for word in phrase.lower().split()]
    shown = [singular(word) for word in label.lower().replace("_", " ").split()]
    if phrase == "thing" or asked == shown:
        return 1.0
    if not asked or not shown:
        return 0.0
    if asked[-1:] == shown[-1:] and set(asked) <= set(shown):
        return 1.0
    attributes = [word for word in asked if word in FULL_COLOUR]
    kind = [word for word in asked if word not in FULL_COLOUR]
    different = [word for word in shown if word in FULL_COLOUR and word not in attributes]
    plain_shown = [word for word in shown if word not in FULL_COLOUR]
    if kind == plain_shown and not (attributes and different):
        return UNCHECKED_TRUST
    return 0.0


def _words(region: Region) -> str:
    u, v = region.low_px
    if region.is_pixel:
        return f"pixel at ({u:.0f}, {v:.0f}) of view {region.view + 1}"
    return f"box from ({u:.0f}, {v:.0f}) in view {region.view + 1}"


def _quoted(text: str, most: int = 80) -> str:
    text = " ".join(text.split())
    return f"'{text if len(text) <= most else text[: most - 1] + '…'}'"


def certainty(things: Sequence[Object3D]) -> float:
    """How sure it is that things are the ones asked for and wholly seen, 0..1.

    How well they were measured is not part of it: their covariance says that.
    """
    sure = 1.0
    for thing in things:
        known = 0.9 if math.isnan(thing.confidence) else 1.0
        sure *= thing.trust * known * (0.9 if thing.cut_across or thing.cut_upright else 1.0)
    return sure
