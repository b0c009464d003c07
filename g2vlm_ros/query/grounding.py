# SPDX-License-Identifier: Apache-2.0
"""Finds the objects of a question in the images, and measures them in the point map.

The first source that gives an answer counts: a region of the request, the detections of a
detector node. Then what the model's own words point at (boxes, points, pixels) is weighed against
the object memory (`recall`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from g2vlm_ros.query import answer_parser, map_object, prompts, recall
from g2vlm_ros.query.labels import label_fit
from g2vlm_ros.query.object_measurement import Object3D, group, locate
from g2vlm_ros.query.point_map import PointMap, Region
from g2vlm_ros.query.point_parser import Pointed, pointed
from g2vlm_ros.query.question_plan import THIS, VIEWER
from g2vlm_ros.query.types import Detection, Query

MODEL_TRUST = 0.6
"""How sure a place in the model's own words is taken to be, by one view of it."""
UNRATED_TRUST = 0.9
"""Factor for an object whose points have no confidence."""
CUT_TRUST = 0.9
"""Factor for an object that the image cuts: what is outside may make it another one."""
MARKED_PLACE = "marked place"
"""Label of what a request marks without naming it."""
QUOTED_CHARACTERS = 80
"""Of the model's words in a step."""


class NotVisibleError(Exception):  # noqa: N818 - no error, an answer
    """The thing is in no view."""


class OutOfTimeError(Exception):
    """The model was not asked, or not to the end: there is no time left, or nobody waits."""

    reason = "There was no time to ask the model"


class NoLanguageError(OutOfTimeError):
    """The checkpoint cannot answer in words, however long one waits."""

    reason = "The language of this checkpoint is not trained, so the model was not asked"


class Finder:
    """Finds the objects of one question: where they are in the images, and measured in the map.

    ask_model(prompt): the model's answer, may raise OutOfTimeError. to_model(place): a Region of
    what the model pointed at, or None where it lies outside; itself None where the model never
    learned to point. note: takes one sentence per step.
    """

    def __init__(
        self,
        points: PointMap,
        query: Query,
        ask_model: Callable[[str], str],
        to_model: Callable[[Pointed], Region | None] | None,
        note: Callable[[str], None],
    ):
        self._points = points
        self._regions = list(query.regions)
        self._detections = query.detections
        self._memory = query.memory
        self._now_ns = query.now_ns
        self._ask_model = ask_model
        self._to_model = to_model
        self._note = note
        self.in_words: bool | None = None
        """Whether the model's words answer as of a thing that the views show; False where they
        say that there is none, None where they tell neither."""

    def shows(self, phrases: Sequence[str]) -> bool:
        """Whether a region, a detector or the memory shows these, without asking the model."""
        if len(self._regions) >= len(phrases) or self._detections:
            return True
        return all(phrase == VIEWER or self._may_remember(phrase) for phrase in phrases)

    def _may_remember(self, phrase: str) -> bool:
        """Whether something is remembered that a phrase means, or may mean."""
        memory = self._memory
        return bool(map_object.matching(memory, phrase) or map_object.undetermined(memory, phrase))

    def things(self, phrase: str) -> list[Object3D]:
        """The different objects that a phrase may mean, best first; empty where no source tells.

        Raises NotVisibleError where the model says that there is none and none is remembered, or
        where it is known to be gone; Abstention where only such are remembered of which an
        attribute that is asked for is not known.
        """
        if self._regions:
            return self._from_request(phrase)
        if THIS.match(phrase):
            return []
        detected = self.detected(phrase)
        if detected:
            return detected
        try:
            pointed = self._from_model(phrase)
        except NotVisibleError:
            elsewhere = self._recalled(phrase)
            if not elsewhere:
                raise
            return elsewhere
        return self._weighed(phrase, pointed) or self.remembered(phrase)

    def _weighed(self, phrase: str, pointed: list[Object3D]) -> list[Object3D]:
        """What the model points at, as far as the memory does not speak against it."""
        if not pointed:
            return []
        memory = [each for each in map_object.matching(self._memory, phrase) if each.there]
        # What may be meant supports a place that is pointed at, but is no rival elsewhere.
        memory += [
            each
            for each in map_object.undetermined(self._memory, phrase)
            if each.there
            and any(recall.same_place(self._points, thing, each) for thing in pointed)
        ]
        weighed = recall.weigh(self._points, pointed, memory)
        if not weighed:
            self._note(f"What is remembered of the {phrase} in these views is surer than that.")
        return weighed

    def detected(self, phrase: str, certain: bool = False) -> list[Object3D]:
        """Every object of a kind that the detector sees; "thing" means any.

        certain: only those whose labels tell all that the phrase asks for.
        """
        fits = [label_fit(phrase, detection.label) for detection in self._detections]
        if certain:
            fits = [float(fit == 1.0) for fit in fits]
        objects = measure_detections(self._points, self._detections, fits)
        if objects:
            unchecked = any(0 < fit < 1 for fit in fits)
            also = f"; that it is the {phrase} was not checked" if unchecked else ""
            plural = "" if len(objects) == 1 else "s"
            self._note(f"The detector shows {len(objects)} {phrase}{plural}{also}.")
        return objects

    def remembered(self, phrase: str) -> list[Object3D]:
        """What the object memory holds, where the model's words do not answer as of another one.

        Empty where they answer as of a thing that the views show, and none is remembered there.
        NotVisibleError where what is remembered is known to be gone, Abstention where it is of
        the kind but an attribute that is asked for is not known.
        """
        if self.in_words:
            objects = map_object.matching(self._memory, phrase)
            if not any(each.there and recall.in_view(self._points, each) for each in objects):
                return []
        return self._recalled(phrase)

    def _recalled(self, phrase: str) -> list[Object3D]:
        """The likeliest of what is remembered; several where they are as likely."""
        objects = map_object.matching(self._memory, phrase)
        there = [each for each in objects if each.there]
        if not objects:
            recall.check_known(phrase, self._memory, self._now_ns)
        if objects and not there:
            latest = max(objects, key=lambda each: each.last_seen_ns)
            age = map_object.age_in_words(latest, self._now_ns)
            raise NotVisibleError(
                f"the {latest.label} was at {latest.place_in_words()} {age} ago and is gone "
                "from there"
            )
        likeliest = recall.surest(self._points, there)
        for each in likeliest:
            age = map_object.age_in_words(each, self._now_ns)
            self._note(f"Remembered: the {each.label} was at {each.place_in_words()} {age} ago.")
        return [each.as_object3d() for each in likeliest]

    def named(self, question: str) -> list[Object3D]:
        """The objects that a question calls by a detection's label, where the label fits one."""
        text = question.lower()
        labels = dict.fromkeys(d.label.lower().replace("_", " ") for d in self._detections)
        named = []
        for label in labels:
            if re.search(rf"\b{re.escape(label)}\b", text):
                objects = self.detected(label)
                if len(objects) == 1:
                    named.append(objects[0])
        return named

    def _from_request(self, phrase: str) -> list[Object3D]:
        region = self._regions.pop(0)
        label = MARKED_PLACE if THIS.match(phrase) else phrase
        thing = locate(self._points, region, label, "request")
        if thing is None:
            raise NotVisibleError(
                f"the region given for the {label} holds no point; give another one"
            )
        self._note(f"The {label} is the {_words(region)} of the request.")
        return [thing]

    def _from_model(self, phrase: str) -> list[Object3D]:
        if self.in_words is False:
            raise NotVisibleError(f"the model sees no {phrase} in the newest views")
        if self._to_model is None:
            return []
        try:
            text = self._ask_model(prompts.where_is(phrase, len(self._points.points)))
        except OutOfTimeError as error:
            self._note(f"{error.reason} where the {phrase} is.")
            return []
        if answer_parser.says_absent(text):
            self._note(f"The model says that it does not see the {phrase}.")
            raise NotVisibleError(f"the model sees no {phrase} in the newest views")
        sightings = []
        for place in pointed(text):
            region = self._to_model(place)
            if region is None:
                continue
            sighting = locate(self._points, region, phrase, "model", MODEL_TRUST)
            if sighting is not None:
                sightings.append(sighting)
        if not sightings:
            self._note(f"The model gave no place for the {phrase}.")
            return []
        self._note(f"The model points at the {phrase}: {_quoted(text)}.")
        return [_agreed(thing) for thing in group(sightings)]


def _agreed(thing: Object3D) -> Object3D:
    """A thing that the model points at, surer by each view whose place agrees."""
    views = len({region.view for region in thing.regions})
    return replace(thing, trust=recall.probability(views * recall.log_odds(MODEL_TRUST)))


def measure_detections(
    points: PointMap, detections: Sequence[Detection], fits: Sequence[float] | None = None
) -> list[Object3D]:
    """The objects in a detector's boxes, those of several views fused.

    fits: how well each label is what is looked for, 0..1; those of 0 are left out.
    """
    sightings: dict[str, list[Object3D]] = {}
    for index, detection in enumerate(detections):
        fit = 1.0 if fits is None else fits[index]
        if not fit:
            continue
        sighting = locate(
            points, detection.region, detection.label, "detection", fit * detection.score
        )
        if sighting is not None:
            kind = detection.label if fits is None else ""
            sightings.setdefault(kind, []).append(sighting)
    objects = []
    for of_one_kind in sightings.values():
        objects += group(of_one_kind)
    return objects


def _words(region: Region) -> str:
    u, v = region.low_px
    if region.is_pixel:
        return f"pixel at ({u:.0f}, {v:.0f}) of view {region.view + 1}"
    return f"box from ({u:.0f}, {v:.0f}) in view {region.view + 1}"


def _quoted(text: str, most: int = QUOTED_CHARACTERS) -> str:
    text = " ".join(text.split())
    return f"'{text if len(text) <= most else text[: most - 1] + '…'}'"


def certainty(things: Sequence[Object3D]) -> float:
    """How sure it is that things are the ones asked for and wholly seen, 0..1.

    How well they were measured is not part of it: their covariance says that.
    """
    sure = 1.0
    for thing in things:
        sure *= thing.trust
        if math.isnan(thing.confidence):
            sure *= UNRATED_TRUST
        if thing.cut_across or thing.cut_upright:
            sure *= CUT_TRUST
    return sure
