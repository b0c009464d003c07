# SPDX-License-Identifier: Apache-2.0
"""From measured things to an answer: one conclusion per kind of question.

Each says what was measured in a sentence, compares it with the model's own words, and states a
confidence: the chance that the statement is true (a length: to within CLOSE), times how sure it is
that the things are the ones meant. Where the model's words do not say the same, it is told the
measure and asked again; both of its words are steps, and a contradiction in either counts once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from g2vlm_ros.query import answer_parser, prompts, relations
from g2vlm_ros.query.grounding import OutOfTimeError, certainty
from g2vlm_ros.query.point_map import Object3D, PointMap
from g2vlm_ros.query.question_parser import VIEWER, AnswerType, Plan, QuestionType
from g2vlm_ros.query.relations import Claim, Measure
from g2vlm_ros.query.types import Abstention, Query, Reason, ReferenceFrame, Result

DISAGREEMENT = 0.75
"""Factor on the confidence where the model's words and the measurement contradict, with which it
comes true on homes of the validation split."""
ALIKE = 0.25
"""Two lengths say the same when they differ by less than this fraction."""
CLOSE = 0.2
"""The confidence of a length is the chance that it is right to within this fraction."""
CUT = 0.4
"""Factor on the confidence of a size where the image cuts the thing."""
WHOLE, PASSAGE = 0.7, 0.9
"""The same where it does not, and for what passes a gap: how often the right thing is measured.

Things hide parts of others, and of their own. Seen on homes of the validation split.
"""
TOLD = 0.75
"""The confidence of a size by the model's words, where the image cuts the thing: how often they
are right there on homes of the validation split."""


class AnswerBuilders:
    """Draws conclusions about one window for one question; `steps` takes one sentence per step."""

    def __init__(
        self,
        points: PointMap,
        query: Query,
        ask_model: Callable[[str, Sequence[prompts.Mark]], str],
        steps: list[str],
    ):
        self._points, self._query, self._say, self._steps = points, query, ask_model, steps
        self._reference = query.reference
        self._target_from_map = query.target_from_map
        self._robot_width_m = query.robot_width_m

    def _length(self, measure: Measure, text: str, model_answer: str) -> Result:
        """A length, with what the model says about it."""

        def agrees(words: str) -> bool | None:
            said = answer_parser.length(words, default_unit="m")
            if said is None:
                return None
            off = abs(said.value - measure.value)
            return off <= max(ALIKE * measure.value, 2 * measure.std + said.spread)

        made = Result(AnswerType.NUMBER, text, number=measure)
        return self.joined(made, measure.within(CLOSE), agrees, model_answer)

    def _claimed(self, claim: Claim, text: str, model_answer: str) -> Result:
        """A yes or no, with what the model says about it."""

        def agrees(words: str) -> bool | None:
            said = answer_parser.yes_no(words)
            return None if said is None else said.value == claim.value

        full = f"{'Yes' if claim.value else 'No'}. {text}"
        made = Result(AnswerType.YES_NO, full, yes_no=claim.value)
        return self.joined(made, claim.probability, agrees, model_answer, measured=text)

    def joined(
        self,
        made: Result,
        sure: float,
        agrees: Callable[[str], bool | None],
        model_answer: str,
        measured: str = "",
        source: str = "Measured in the point map",
    ) -> Result:
        """The answer with its confidence, lowered and told where the model disagrees.

        agrees(words): whether words say the same; None where they say nothing of it. opinion: the
        model's own words, empty where it was not heard. measured: the answer's text if empty.
        """
        made.confidence = sure
        measured = measured or made.text
        self._steps.append(f"{source}: {measured}")
        same = agrees(model_answer) if model_answer else None
        if same:
            self._steps.append("The model's words agree with it.")
        elif model_answer:
            concluded = self._conclusion(measured)
            if same is None and concluded and agrees(concluded) is False:
                same, model_answer = False, concluded
        if same is False:
            made.confidence *= DISAGREEMENT
            said = " ".join(model_answer.split())
            made.text += f" The model's own words disagree: {said!r}."
            self._steps.append("The measurement and the model's words disagree.")
        return made

    def _conclusion(self, measured: str) -> str:
        """What the model says once it is told the measure; empty where there is no time."""
        try:
            text = self._say(*self._query.prompt([measured])).strip()
        except OutOfTimeError as error:
            self._steps.append(f"{error.reason} to conclude from it.")
            return ""
        self._steps.append(f"Told this, the model concludes: {text!r}.")
        return text

    def distance(self, plan: Plan, things: list[Object3D], model_answer: str) -> Result:
        if len(things) > 1:
            measure = relations.distance(self._points, things[0], things[1])
            text = f"The {things[0].label} and the {things[1].label} are {_m(measure)} apart."
        else:
            measure = relations.distance(self._points, things[0])
            text = f"The {things[0].label} is {_m(measure)} away."
        made = self._length(measure, text, model_answer)
        made.confidence *= certainty(things)
        return made

    def size(self, plan: Plan, things: list[Object3D], model_answer: str) -> Result:
        (thing,) = things
        if plan.word == "size":
            sizes = [
                relations.extent(self._points, thing, d) for d in ("width", "depth", "height")
            ]
            text = (
                f"The {thing.label} is {_m(sizes[0])} wide, {_m(sizes[1])} deep and "
                f"{_m(sizes[2])} high."
            )
            self._steps.append(f"Measured in the point map: {text}")
            sure = min(size.within(CLOSE) for size in sizes) * certainty(things)
            return Result(
                AnswerType.NUMBER, text, number=max(sizes, key=lambda s: s.value), confidence=sure
            )
        measure = relations.extent(self._points, thing, plan.word)
        if thing.cut_upright if plan.word == "height" else thing.cut_across:
            made = self._cut_size(plan.word, thing, measure, model_answer)
        else:
            text = f"The {plan.word} of the {thing.label} is {_m(measure)}."
            made = self._length(measure, text, model_answer)
            made.confidence *= WHOLE
        made.confidence *= certainty(things)
        return made

    def _cut_size(
        self, dimension: str, thing: Object3D, measure: Measure, model_answer: str
    ) -> Result:
        """A size of which the measure is a lower bound: the model's words, where they fit it."""
        bound = (
            f"The {dimension} of the {thing.label} is at least {_m(measure)}: some of it is "
            "outside the image."
        )
        said = answer_parser.length(model_answer, default_unit="m") if model_answer else None
        if said is None or said.value < (1 - ALIKE) * measure.value:
            made = self._length(measure, bound, model_answer)
            made.confidence *= CUT
            return made
        self._steps.append(f"Measured in the point map: {bound}")
        self._steps.append("The model's words fit it, and the image does not show the rest.")
        text = (
            f"The {dimension} of the {thing.label} is {said.value:.2f} m by the model's "
            f"words; measured up to where the image cuts it: {_m(measure)}."
        )
        number = Measure(said.value, math.nan, "m")
        return Result(AnswerType.NUMBER, text, number=number, confidence=TOLD)

    def heading(self, plan: Plan, things: list[Object3D], model_answer: str) -> Result:
        measure = relations.heading(self._points, things[0])
        side = "left" if measure.value > 0 else "right"
        degrees = abs(math.degrees(measure.value))
        text = f"Turn {degrees:.0f}° to the {side} to face the {things[0].label}."

        def agrees(words: str) -> bool | None:
            said = answer_parser.angle(words)
            if said is None:
                return None
            return abs(said.value - abs(measure.value)) < max(math.radians(15), 2 * measure.std)

        made = Result(AnswerType.NUMBER, text, number=measure)
        sure = 2 * relations.chance(math.radians(10), measure.std) - 1
        return self.joined(made, sure * certainty(things), agrees, model_answer)

    def where(self, plan: Plan, things: list[Object3D], model_answer: str) -> Result:
        word, sure = relations.whereabouts(self._points, things[0])
        place = {"front": "in front of you", "behind": "behind you"}.get(word, f"to your {word}")
        text = f"The {things[0].label} is {place}."

        def agrees(words: str) -> bool | None:
            said = answer_parser.directions(words)
            return None if said is None else word in said.words

        return self.joined(
            Result(AnswerType.TEXT, text), sure * certainty(things), agrees, model_answer
        )

    def relation(self, plan: Plan, things: list[Object3D], model_answer: str) -> Result:
        verb = {"left": "left of", "right": "right of", "front": "in front of"}.get(
            plan.word, plan.word
        )
        if plan.things[1] == VIEWER:
            word, sure = relations.whereabouts(self._points, things[0])
            bearing = relations.heading(self._points, things[0])
            if plan.word in ("left", "right"):
                margin = bearing.value if plan.word == "left" else -bearing.value
                chance = relations.chance(margin, bearing.std)
                claim = Claim(chance > 0.5, max(chance, 1 - chance))
            else:
                claim = Claim(word == plan.word, sure)
            text = f"The {things[0].label} is {'' if claim.value else 'not '}{verb} you."
        else:
            axes = self._axes(plan.word, things[1])
            claim = relations.lies(self._points, things[0], plan.word, things[1], axes)
            text = (
                f"The {things[0].label} is {'' if claim.value else 'not '}{verb} the "
                f"{things[1].label}."
            )
        made = self._claimed(claim, text, model_answer)
        made.confidence *= certainty(things)
        return made

    def side(self, plan: Plan, things: list[Object3D], model_answer: str) -> Result:
        axes = self._axes("left", things[1])
        claim = relations.lies(self._points, things[0], "left", things[1], axes)
        word = "left" if claim.value else "right"
        text = f"The {things[0].label} is {word} of the {things[1].label}."

        def agrees(words: str) -> bool | None:
            said = answer_parser.directions(words)
            either = said is not None and {"left", "right"} & set(said.words)
            return word in said.words if either else None

        made = Result(AnswerType.TEXT, text)
        return self.joined(made, claim.probability * certainty(things), agrees, model_answer)

    def _axes(self, word: str, other: Object3D) -> relations.Axes | None:
        """Whose left and front are meant; None = the viewer's."""
        if word in ("above", "below") or self._reference == ReferenceFrame.VIEWER:
            return None
        if self._reference == ReferenceFrame.WORLD:
            return relations.world_axes(self._target_from_map)
        try:
            text = self._say(prompts.which_way_faces(other.label), ())
        except OutOfTimeError:
            text = ""
        facing = _facing(text, relations.viewer_axes(self._points))
        if facing is None:
            raise Abstention(
                Reason.AMBIGUOUS,
                f"it is not known which way the {other.label} faces; ask with reference VIEWER or "
                "WORLD",
            )
        self._steps.append(f"The model says which way the {other.label} faces: {text.strip()!r}.")
        return relations.object_axes(other, facing)

    def closer(self, plan: Plan, things: list[Object3D], model_answer: str) -> Result:
        claim = relations.closer(self._points, things[0], things[1])
        near, far = things if claim.value else things[::-1]
        text = f"The {near.label} is closer than the {far.label}."
        if plan.word == "yes_no":
            made = self._claimed(claim, text, model_answer)
        else:

            def agrees(words: str) -> bool | None:
                named = [thing.label.lower() in words.lower() for thing in (near, far)]
                return named[0] if named[0] != named[1] else None

            made = Result(AnswerType.TEXT, text, things=(near, far))
            made = self.joined(made, claim.probability, agrees, model_answer)
        made.confidence *= certainty(things)
        return made

    def between(self, plan: Plan, things: list[Object3D], model_answer: str) -> Result:
        claim = relations.between(self._points, *things)
        text = (
            f"The {things[0].label} is {'' if claim.value else 'not '}between the "
            f"{things[1].label} and the {things[2].label}."
        )
        made = self._claimed(claim, text, model_answer)
        made.confidence *= certainty(things)
        return made

    def gap(self, plan: Plan, things: list[Object3D], model_answer: str) -> Result:
        measure = relations.gap(self._points, things[0], things[1])
        text = f"The gap between the {things[0].label} and the {things[1].label} is {_m(measure)}."
        made = self._length(measure, text, model_answer)
        made.confidence *= certainty(things)
        return made

    def fits(self, plan: Plan, things: list[Object3D], model_answer: str) -> Result:
        width = plan.width_m or self._robot_width_m
        if not width:
            raise Abstention(
                Reason.INVALID_REQUEST,
                "the question names no width and query.robot_width_m is 0; say how wide it is",
            )
        claim, free = relations.fits(self._points, width, things[0], things[1])
        text = (
            f"The gap between the {things[0].label} and the {things[1].label} is {_m(free)}, "
            f"{width:.2f} m is needed."
        )
        made = self._claimed(claim, text, model_answer)
        made.number = free
        made.confidence *= certainty(things) * PASSAGE
        return made


CONCLUDE: dict[QuestionType, Callable[[AnswerBuilders, Plan, list[Object3D], str], Result]] = {
    QuestionType.DISTANCE: AnswerBuilders.distance,
    QuestionType.SIZE: AnswerBuilders.size,
    QuestionType.HEADING: AnswerBuilders.heading,
    QuestionType.WHERE: AnswerBuilders.where,
    QuestionType.RELATION: AnswerBuilders.relation,
    QuestionType.SIDE: AnswerBuilders.side,
    QuestionType.CLOSER: AnswerBuilders.closer,
    QuestionType.BETWEEN: AnswerBuilders.between,
    QuestionType.GAP: AnswerBuilders.gap,
    QuestionType.FITS: AnswerBuilders.fits,
}


def _m(measure: Measure) -> str:
    return f"{measure.value:.2f} m (±{measure.std:.2f} m)"


def _facing(text: str, viewer: relations.Axes) -> np.ndarray | None:
    """The direction (2,) on the floor that a front looks to, by the model's words."""
    simple = text.lower()
    towards = any(word in simple for word in ("toward", "at the camera", "to the camera"))
    away = "away" in simple
    said = answer_parser.directions(text)
    if towards != away:
        return -viewer.front if towards else viewer.front
    if said is not None and not towards:
        if "left" in said.words:
            return viewer.left
        if "right" in said.words:
            return -viewer.left
    return None
