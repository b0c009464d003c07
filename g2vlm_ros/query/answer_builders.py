# SPDX-License-Identifier: Apache-2.0
"""From measured objects to an answer: one row per question type (measure, text, agrees).

`BUILDERS` says for each question type what is measured of its objects (`answer_measures`), in
which sentence it is said (`answer_texts`), and when the model's words say the same
(`answer_agreement`). `AnswerBuilder` does the rest, which all have in common: the confidence, the
chance that the statement is true (of a length to within CLOSE) times how sure it is that the
objects are the ones meant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from g2vlm_ros.query import answer_agreement as agreement
from g2vlm_ros.query import answer_measures as measures
from g2vlm_ros.query import answer_parser, relations
from g2vlm_ros.query import answer_texts as texts
from g2vlm_ros.query.answer_agreement import Agreement, AskModel
from g2vlm_ros.query.answer_measures import (
    CLOSE,
    MeasureContext,
    Nearest,
    Objects,
    Passage,
    Value,
    probability,
)
from g2vlm_ros.query.answer_texts import metres
from g2vlm_ros.query.grounding import certainty
from g2vlm_ros.query.object_measurement import Object3D
from g2vlm_ros.query.point_map import PointMap
from g2vlm_ros.query.question_plan import AnswerType, Plan, QuestionType
from g2vlm_ros.query.relations import Claim, Measure
from g2vlm_ros.query.types import Query, Result

CUT = 0.4
"""Factor on the confidence of a size where the image cuts the object."""
UNCUT = 0.7
"""The same where it does not: how often the right object is measured. Objects hide parts of
others, and of their own. Seen on homes of the validation split."""
PASSAGE = 0.9
"""The same for what passes a gap, from the same homes."""
MODEL_SIZE_CONFIDENCE = 0.75
"""The confidence of a size by the model's words, where the image cuts the object: how often they
are right there on homes of the validation split."""
MIN_OF_MEASURE = 0.6
"""What is measured of a size that the image cuts, or how wide a thing looks, is at most so much
too long: smaller sizes by the words are taken for errors. These three are chosen on homes of the
validation split, where they make 87 % of 565 sizes right instead of 82."""
SHORTER, LONGER = 0.85, 1.3
"""Widths by words below SHORTER of the measure are taken in its place, since smears along the line
of sight lengthen it; heights beyond LONGER of it, since other things hide parts."""
DETECTOR, POINT_MAP = "Seen by the detector", "Measured in the point map"


@dataclass(frozen=True)
class Builder:
    """How one type of question is answered from its objects."""

    measure: Callable[[MeasureContext, Plan, Objects], Value]
    text: Callable[[Plan, Objects, Value], str]
    """The statement, without "Yes" or "No"."""
    agrees: Callable[[str, Plan, Objects, Value], bool | None]
    """Whether words say the same; None where they say nothing of it."""
    trust: float = 1.0
    """How often the right object is measured."""
    source: str = POINT_MAP


class AnswerBuilder:
    """Builds answers about one window to one question; `steps` takes one sentence per step."""

    def __init__(
        self,
        points: PointMap,
        query: Query,
        ask_model: AskModel,
        steps: list[str],
    ):
        self._points, self._steps = points, steps
        self._context = MeasureContext(points, query, ask_model, steps)
        self._agreement = Agreement(query, ask_model, steps)

    def build(self, plan: Plan, things: Objects, model_answer: str) -> Result:
        """The answer; model_answer: the model's own words, empty where it was not asked.

        Raises ScaleError where metres are needed and not known, ValueError for an extent of a
        pixel, Abstention where the request lacks what is needed.
        """
        if plan.question_type is QuestionType.SIZE:
            if plan.word == "size":
                return self._all_sizes(things[0])
            cut = things[0].cut_upright if plan.word == "height" else things[0].cut_across
            if cut:
                return self._cut_size(plan, things, model_answer)
            by_words = self._size_by_words(plan, things, model_answer)
            if by_words is not None:
                return by_words
        builder = BUILDERS[plan.question_type]
        value = builder.measure(self._context, plan, things)
        statement = builder.text(plan, things, value)
        result = _result(value, statement, things)
        candidates = things
        if plan.question_type is QuestionType.NEAREST:
            candidates = [value.thing]
        elif plan.question_type is QuestionType.EXISTS:
            candidates = things[:1]
        result.confidence = probability(value) * builder.trust * certainty(candidates)
        self._steps.append(f"{builder.source}: {statement}")

        def agrees(words: str) -> bool | None:
            return builder.agrees(words, plan, things, value)

        return self._agreement.compare(result, statement, agrees, model_answer)

    def _all_sizes(self, thing: Object3D) -> Result:
        """Width, depth and height; the number is the largest."""
        sizes = [relations.extent(self._points, thing, d) for d in ("width", "depth", "height")]
        text = (
            f"The {thing.label} is {metres(sizes[0])} wide, {metres(sizes[1])} deep and "
            f"{metres(sizes[2])} high."
        )
        self._steps.append(f"{POINT_MAP}: {text}")
        largest = max(sizes, key=lambda size: size.value)
        result = _result(largest, text, (thing,))
        result.confidence = min(size.within(CLOSE) for size in sizes) * certainty([thing])
        return result

    def _size_by_words(self, plan: Plan, things: Objects, model_answer: str) -> Result | None:
        """The model's width or height where it contradicts the measure but not what is seen.

        Smears along the line of sight lengthen a width, never shorten it; and a thing wider than
        deep cannot look wider than sqrt(2) of its width. A height is shortened by what stands in
        front. None where the words fit the measure, or are impossible.
        """
        (thing,) = things
        size = answer_parser.length(model_answer, default_unit="m") if model_answer else None
        if size is None or not self._points.metric:
            return None
        measure = relations.extent(self._points, thing, plan.word)
        if plan.word == "height":
            if size.value <= LONGER * measure.value:
                return None
            why = f"{metres(measure)} of it can be seen"
        elif plan.word in ("width", "length"):
            least = MIN_OF_MEASURE * _least_width(thing)
            if not least <= size.value < SHORTER * measure.value:
                return None
            why = f"its points reach over {metres(measure)}, along the line of sight too"
        else:
            return None
        self._steps.append(f"{POINT_MAP}: {why}.")
        return _spoken_size(plan, things, size.value, f"; {why}.")

    def _cut_size(self, plan: Plan, things: Objects, model_answer: str) -> Result:
        """A size of which the measure is a lower bound: the model's words, where they fit it."""
        (thing,) = things
        measure = relations.extent(self._points, thing, plan.word)
        bound = (
            f"The {plan.word} of the {thing.label} is at least {metres(measure)}: some of it is "
            "outside the image."
        )
        self._steps.append(f"{POINT_MAP}: {bound}")
        size = answer_parser.length(model_answer, default_unit="m") if model_answer else None
        least = measure.value if plan.word == "height" else _least_width(thing)
        if size is None or size.value < MIN_OF_MEASURE * least:
            result = _result(measure, bound, things)
            result.confidence = measure.within(CLOSE) * CUT * certainty(things)

            def agrees(words: str) -> bool | None:
                return agreement.same_length(words, plan, things, measure)

            return self._agreement.compare(result, bound, agrees, model_answer)
        self._steps.append("The model's words fit it, and the image does not show the rest.")
        why = f"; measured up to where the image cuts it: {metres(measure)}."
        return _spoken_size(plan, things, size.value, why)


def _spoken_size(plan: Plan, things: Objects, size_m: float, why: str) -> Result:
    """A size by the model's words, with what was measured beside it."""
    (thing,) = things
    return Result(
        AnswerType.NUMBER,
        f"The {plan.word} of the {thing.label} is {size_m:.2f} m by the model's words{why}",
        number=Measure(size_m, math.nan, "m"),
        things=tuple(things),
        confidence=MODEL_SIZE_CONFIDENCE * certainty(things),
    )


def _least_width(thing: Object3D) -> float:
    """The longer horizontal side that a thing has at least, by how wide it looks."""
    return thing.across / math.sqrt(2) if math.isfinite(thing.across) else float(thing.size[0])


BUILDERS: dict[QuestionType, Builder] = {
    QuestionType.DISTANCE: Builder(measures.distance, texts.distance, agreement.same_length),
    QuestionType.SIZE: Builder(measures.extent, texts.extent, agreement.same_length, trust=UNCUT),
    QuestionType.HEADING: Builder(measures.heading, texts.heading, agreement.same_angle),
    QuestionType.WHERE: Builder(measures.direction, texts.direction, agreement.same_direction),
    QuestionType.RELATION: Builder(measures.relation, texts.relation, agreement.same_claim),
    QuestionType.SIDE: Builder(measures.side, texts.side, agreement.same_side),
    QuestionType.CLOSER: Builder(measures.closer, texts.closer, agreement.same_closer),
    QuestionType.NEAREST: Builder(measures.nearest, texts.nearest, agreement.names_nearest),
    QuestionType.BETWEEN: Builder(measures.between, texts.between, agreement.same_claim),
    QuestionType.GAP: Builder(measures.gap, texts.gap, agreement.same_length),
    QuestionType.FITS: Builder(
        measures.passage, texts.passage, agreement.same_claim, trust=PASSAGE
    ),
    QuestionType.COUNT: Builder(
        measures.count, texts.count, agreement.same_count, source="Counted by the detector"
    ),
    QuestionType.EXISTS: Builder(
        measures.presence, texts.presence, agreement.same_claim, source=DETECTOR
    ),
}
"""What is measured, how it is said, and when the model's words say the same."""


def _result(value: Value, statement: str, things: Objects) -> Result:
    """The value as an answer of its kind."""
    evidence = tuple(things)
    if isinstance(value, Passage):
        result = _result(value.claim, statement, things)
        result.number = value.free
    elif isinstance(value, Measure):
        result = Result(AnswerType.NUMBER, statement, number=value, things=evidence)
    elif isinstance(value, Claim):
        text = f"{'Yes' if value.value else 'No'}. {statement}"
        result = Result(AnswerType.YES_NO, text, yes_no=value.value, things=evidence)
    elif isinstance(value, Nearest) and value.farther is None:
        result = Result(AnswerType.TEXT, f"The {value.thing.label}.", things=(value.thing,))
    elif isinstance(value, Nearest):
        result = Result(AnswerType.TEXT, statement, things=(value.thing, value.farther))
    else:
        result = Result(AnswerType.TEXT, statement, things=evidence)
    result.measured = True
    return result
