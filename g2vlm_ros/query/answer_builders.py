# SPDX-License-Identifier: Apache-2.0
"""From measured objects to an answer: one row per question type (measure, text, agrees).

`BUILDERS` says for each question type what is measured of its objects, in which sentence it is
said, and when the model's words say the same. `AnswerBuilder` does the rest, which all have in
common: the confidence (the chance that the statement is true, of a length to within CLOSE, times
how sure it is that the objects are the ones meant), and the comparison with the model's own words.
Where they do not say the same, the model is given the measure and asked again; both of its answers
are steps, and a contradiction in either counts once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from g2vlm_ros.query import answer_parser, prompts, relations
from g2vlm_ros.query.grounding import OutOfTimeError, certainty
from g2vlm_ros.query.object_measurement import Object3D
from g2vlm_ros.query.point_map import PointMap
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
CLOSE_RAD = math.radians(10)
"""The same of an angle."""
ALIKE_RAD = math.radians(15)
"""Two angles say the same when they differ by less."""
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
DETECTOR, POINT_MAP = "Seen by the detector", "Measured in the point map"


class Word(NamedTuple):
    """An answer in one word, with the probability that it is the right one."""

    word: str
    probability: float


class Nearest(NamedTuple):
    """Which object of several is the nearest, and how probable that is."""

    thing: Object3D
    probability: float
    farther: Object3D | None = None
    """The other one, where two were compared."""


class Passage(NamedTuple):
    """Whether something passes, the free width, and the width that is needed in metres."""

    claim: Claim
    free: Measure
    width_m: float


Objects = Sequence[Object3D]
Value = Measure | Claim | Word | Nearest | Passage


@dataclass(frozen=True)
class MeasureContext:
    """What a measure may look at: the point map, the question, and the model for a front."""

    points: PointMap
    query: Query
    ask_model: Callable[[str, Sequence[prompts.Mark]], str]
    steps: list[str]


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
        ask_model: Callable[[str, Sequence[prompts.Mark]], str],
        steps: list[str],
    ):
        self._points, self._query, self._ask_model = points, query, ask_model
        self._steps = steps
        self._context = MeasureContext(points, query, ask_model, steps)

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
            if plan.word in ("width", "length"):
                ragged = self._ragged_width(plan, things, model_answer)
                if ragged is not None:
                    return ragged
        builder = BUILDERS[plan.question_type]
        value = builder.measure(self._context, plan, things)
        statement = builder.text(plan, things, value)
        result = _result(value, statement, things)
        candidates = things
        if plan.question_type is QuestionType.NEAREST:
            candidates = [value.thing]
        elif plan.question_type is QuestionType.EXISTS:
            candidates = things[:1]
        result.confidence = _probability(value) * builder.trust * certainty(candidates)
        self._steps.append(f"{builder.source}: {statement}")

        def agrees(words: str) -> bool | None:
            return builder.agrees(words, plan, things, value)

        return self._compared(result, statement, agrees, model_answer)

    def _compared(
        self,
        result: Result,
        statement: str,
        agrees: Callable[[str], bool | None],
        model_answer: str,
    ) -> Result:
        """The answer, less sure where the model's words disagree with it."""
        if not model_answer:
            return result
        same = agrees(model_answer)
        if same:
            self._steps.append("The model's words agree with it.")
            return result
        conclusion = self._conclusion(statement)
        if same is None and conclusion and agrees(conclusion) is False:
            same, model_answer = False, conclusion
        if same is False:
            result.confidence *= DISAGREEMENT
            words = " ".join(model_answer.split())
            result.text += f" The model's own words disagree: {words!r}."
            self._steps.append("The measurement and the model's words disagree.")
        return result

    def _conclusion(self, statement: str) -> str:
        """What the model says once it is given the measure; empty where there is no time."""
        try:
            text = self._ask_model(*self._query.prompt([statement])).strip()
        except OutOfTimeError as error:
            self._steps.append(f"{error.reason} to conclude from it.")
            return ""
        self._steps.append(f"Told this, the model concludes: {text!r}.")
        return text

    def _all_sizes(self, thing: Object3D) -> Result:
        """Width, depth and height; the number is the largest."""
        sizes = [relations.extent(self._points, thing, d) for d in ("width", "depth", "height")]
        text = (
            f"The {thing.label} is {_m(sizes[0])} wide, {_m(sizes[1])} deep and "
            f"{_m(sizes[2])} high."
        )
        self._steps.append(f"{POINT_MAP}: {text}")
        largest = max(sizes, key=lambda size: size.value)
        result = _result(largest, text, (thing,))
        result.confidence = min(size.within(CLOSE) for size in sizes) * certainty([thing])
        return result

    def _ragged_width(self, plan: Plan, things: Objects, model_answer: str) -> Result | None:
        """The model's width where it contradicts the measure but not what the images show.

        Smears along the line of sight lengthen what is measured, never shorten it; and a thing
        wider than deep cannot look wider than sqrt(2) of its width. None where the words are as
        long as the measure, or impossible.
        """
        (thing,) = things
        measure = relations.extent(self._points, thing, plan.word)
        size = answer_parser.length(model_answer, default_unit="m") if model_answer else None
        if size is None or not self._points.metric:
            return None
        least = _least_width(thing)
        if not (1 - CLOSE) * least <= size.value < (1 - ALIKE) * measure.value:
            return None
        text = (
            f"The {plan.word} of the {thing.label} is {size.value:.2f} m by the model's words; "
            f"its points reach over {_m(measure)}, along the line of sight too."
        )
        self._steps.append(f"{POINT_MAP}: at least {least:.2f} m, at most {_m(measure)}.")
        number = Measure(size.value, math.nan, "m")
        confidence = MODEL_SIZE_CONFIDENCE * certainty(things)
        return Result(
            AnswerType.NUMBER, text, number=number, things=tuple(things), confidence=confidence
        )

    def _cut_size(self, plan: Plan, things: Objects, model_answer: str) -> Result:
        """A size of which the measure is a lower bound: the model's words, where they fit it."""
        (thing,) = things
        measure = relations.extent(self._points, thing, plan.word)
        bound = (
            f"The {plan.word} of the {thing.label} is at least {_m(measure)}: some of it is "
            "outside the image."
        )
        self._steps.append(f"{POINT_MAP}: {bound}")
        size = answer_parser.length(model_answer, default_unit="m") if model_answer else None
        least = measure.value if plan.word == "height" else _least_width(thing)
        if size is None or size.value < (1 - ALIKE) * least:
            result = _result(measure, bound, things)
            result.confidence = measure.within(CLOSE) * CUT * certainty(things)

            def agrees(words: str) -> bool | None:
                return same_length(words, plan, things, measure)

            return self._compared(result, bound, agrees, model_answer)
        self._steps.append("The model's words fit it, and the image does not show the rest.")
        text = (
            f"The {plan.word} of the {thing.label} is {size.value:.2f} m by the model's "
            f"words; measured up to where the image cuts it: {_m(measure)}."
        )
        number = Measure(size.value, math.nan, "m")
        confidence = MODEL_SIZE_CONFIDENCE * certainty(things)
        return Result(
            AnswerType.NUMBER, text, number=number, things=tuple(things), confidence=confidence
        )


def _least_width(thing: Object3D) -> float:
    """The longer horizontal side that a thing has at least, by how wide it looks."""
    return thing.across / math.sqrt(2) if math.isfinite(thing.across) else float(thing.size[0])


# What is measured ----------------------------------------------------------------------------


def _distance(context: MeasureContext, plan: Plan, things: Objects) -> Measure:
    other = things[1] if len(things) > 1 else None
    return relations.distance(context.points, things[0], other)


def _extent(context: MeasureContext, plan: Plan, things: Objects) -> Measure:
    return relations.extent(context.points, things[0], plan.word)


def _heading(context: MeasureContext, plan: Plan, things: Objects) -> Measure:
    return relations.heading(context.points, things[0])


def _direction(context: MeasureContext, plan: Plan, things: Objects) -> Word:
    return Word(*relations.whereabouts(context.points, things[0]))


def _relation(context: MeasureContext, plan: Plan, things: Objects) -> Claim:
    if plan.things[1] != VIEWER:
        axes = _axes(context, plan.word, things[1])
        return relations.lies(context.points, things[0], plan.word, things[1], axes)
    if plan.word in ("left", "right"):
        bearing = relations.heading(context.points, things[0])
        margin = bearing.value if plan.word == "left" else -bearing.value
        chance = relations.chance(margin, bearing.std)
        return Claim(chance > 0.5, max(chance, 1 - chance))
    word, probability = relations.whereabouts(context.points, things[0])
    return Claim(word == plan.word, probability)


def _side(context: MeasureContext, plan: Plan, things: Objects) -> Word:
    axes = _axes(context, "left", things[1])
    claim = relations.lies(context.points, things[0], "left", things[1], axes)
    return Word("left" if claim.value else "right", claim.probability)


def _closer(context: MeasureContext, plan: Plan, things: Objects) -> Claim | Nearest:
    claim = relations.closer(context.points, things[0], things[1])
    if plan.word == "yes_no":
        return claim
    near, far = things if claim.value else things[::-1]
    return Nearest(near, claim.probability, far)


def _between(context: MeasureContext, plan: Plan, things: Objects) -> Claim:
    return relations.between(context.points, *things)


def _gap(context: MeasureContext, plan: Plan, things: Objects) -> Measure:
    return relations.gap(context.points, things[0], things[1])


def _passage(context: MeasureContext, plan: Plan, things: Objects) -> Passage:
    width_m = plan.width_m or context.query.robot_width_m
    if not width_m:
        raise Abstention(
            Reason.INVALID_REQUEST,
            "the question names no width and query.robot_width_m is 0; say how wide it is",
        )
    claim, free = relations.fits(context.points, width_m, things[0], things[1])
    return Passage(claim, free, width_m)


def _count(context: MeasureContext, plan: Plan, things: Objects) -> Measure:
    return Measure(float(len(things)), 0.0, "")


def _presence(context: MeasureContext, plan: Plan, things: Objects) -> Claim:
    return Claim(True, 1.0)


def _nearest(context: MeasureContext, plan: Plan, things: Objects) -> Nearest:
    """Of all but the last object, the one nearest to it; of all, where it is the viewer's."""
    if plan.things[1] == VIEWER:
        return Nearest(*relations.nearest(context.points, things, None))
    return Nearest(*relations.nearest(context.points, things[:-1], things[-1]))


def _axes(context: MeasureContext, word: str, other: Object3D) -> relations.Axes | None:
    """Whose left and front are meant; None = the viewer's."""
    reference = context.query.reference
    if word in ("above", "below") or reference == ReferenceFrame.VIEWER:
        return None
    if reference == ReferenceFrame.WORLD:
        return relations.world_axes(context.query.target_from_map)
    try:
        text = context.ask_model(prompts.which_way_faces(other.label), ())
    except OutOfTimeError:
        text = ""
    front = _front(text, relations.viewer_axes(context.points))
    if front is None:
        raise Abstention(
            Reason.AMBIGUOUS,
            f"it is not known which way the {other.label} faces; ask with reference VIEWER or "
            "WORLD",
        )
    context.steps.append(f"The model says which way the {other.label} faces: {text.strip()!r}.")
    return relations.object_axes(other, front)


def _front(text: str, viewer: relations.Axes) -> np.ndarray | None:
    """The direction (2,) on the floor that a front looks to, by the model's words."""
    simple = text.lower()
    towards = any(word in simple for word in ("toward", "at the camera", "to the camera"))
    away = "away" in simple
    if towards != away:
        return -viewer.front if towards else viewer.front
    directions = answer_parser.directions(text)
    if directions is None or towards:
        return None
    if "left" in directions.words:
        return viewer.left
    if "right" in directions.words:
        return -viewer.left
    return None


# How it is said ------------------------------------------------------------------------------


def _distance_text(plan: Plan, things: Objects, value: Measure) -> str:
    if len(things) > 1:
        return f"The {things[0].label} and the {things[1].label} are {_m(value)} apart."
    return f"The {things[0].label} is {_m(value)} away."


def _extent_text(plan: Plan, things: Objects, value: Measure) -> str:
    return f"The {plan.word} of the {things[0].label} is {_m(value)}."


def _heading_text(plan: Plan, things: Objects, value: Measure) -> str:
    side = "left" if value.value > 0 else "right"
    degrees = abs(math.degrees(value.value))
    return f"Turn {degrees:.0f}° to the {side} to face the {things[0].label}."


def _direction_text(plan: Plan, things: Objects, value: Word) -> str:
    place = {"front": "in front of you", "behind": "behind you"}.get(
        value.word, f"to your {value.word}"
    )
    return f"The {things[0].label} is {place}."


def _relation_text(plan: Plan, things: Objects, value: Claim) -> str:
    place = {"left": "left of", "right": "right of", "front": "in front of"}.get(
        plan.word, plan.word
    )
    other = "you" if plan.things[1] == VIEWER else f"the {things[1].label}"
    return f"The {things[0].label} is {'' if value.value else 'not '}{place} {other}."


def _side_text(plan: Plan, things: Objects, value: Word) -> str:
    return f"The {things[0].label} is {value.word} of the {things[1].label}."


def _closer_text(plan: Plan, things: Objects, value: Claim | Nearest) -> str:
    first_is_nearer = value.value if isinstance(value, Claim) else value.thing is things[0]
    near, far = things if first_is_nearer else things[::-1]
    return f"The {near.label} is closer than the {far.label}."


def _between_text(plan: Plan, things: Objects, value: Claim) -> str:
    return (
        f"The {things[0].label} is {'' if value.value else 'not '}between the "
        f"{things[1].label} and the {things[2].label}."
    )


def _gap_text(plan: Plan, things: Objects, value: Measure) -> str:
    return f"The gap between the {things[0].label} and the {things[1].label} is {_m(value)}."


def _passage_text(plan: Plan, things: Objects, value: Passage) -> str:
    return (
        f"The gap between the {things[0].label} and the {things[1].label} is {_m(value.free)}, "
        f"{value.width_m:.2f} m is needed."
    )


def _count_text(plan: Plan, things: Objects, value: Measure) -> str:
    return f"{value.value:.0f} {plan.things[0]}."


def _presence_text(plan: Plan, things: Objects, value: Claim) -> str:
    return f"There is a {things[0].label}."


def _nearest_text(plan: Plan, things: Objects, value: Nearest) -> str:
    return f"The {value.thing.label} is the nearest."


def _m(measure: Measure) -> str:
    return f"{measure.value:.2f} m (±{measure.std:.2f} m)"


# When the model's words say the same ---------------------------------------------------------


def same_length(words: str, plan: Plan, things: Objects, value: Measure) -> bool | None:
    """A length within ALIKE, or within two deviations."""
    length = answer_parser.length(words, default_unit="m")
    if length is None:
        return None
    difference = abs(length.value - value.value)
    return difference <= max(ALIKE * value.value, 2 * value.std + length.spread)


def same_angle(words: str, plan: Plan, things: Objects, value: Measure) -> bool | None:
    """An angle within ALIKE_RAD, or within two deviations; the side is not compared."""
    angle = answer_parser.angle(words)
    if angle is None:
        return None
    return abs(angle.value - abs(value.value)) < max(ALIKE_RAD, 2 * value.std)


def same_count(words: str, plan: Plan, things: Objects, value: Measure) -> bool | None:
    """The same number."""
    count = answer_parser.count(words)
    return None if count is None else count.value == value.value


def same_claim(words: str, plan: Plan, things: Objects, value: Claim | Passage) -> bool | None:
    """The same yes or no."""
    claim = value.claim if isinstance(value, Passage) else value
    answer = answer_parser.yes_no(words)
    return None if answer is None else answer.value == claim.value


def same_direction(words: str, plan: Plan, things: Objects, value: Word) -> bool | None:
    """The direction is among those that the words name."""
    directions = answer_parser.directions(words)
    return None if directions is None else value.word in directions.words


def same_side(words: str, plan: Plan, things: Objects, value: Word) -> bool | None:
    """Left or right, where the words name one."""
    directions = answer_parser.directions(words)
    if directions is None or not {"left", "right"} & set(directions.words):
        return None
    return value.word in directions.words


def same_closer(words: str, plan: Plan, things: Objects, value: Claim | Nearest) -> bool | None:
    """The nearer one alone is named; or the same yes or no."""
    if isinstance(value, Claim):
        return same_claim(words, plan, things, value)
    near, far = things if value.thing is things[0] else things[::-1]
    names_near, names_far = (thing.label.lower() in words.lower() for thing in (near, far))
    return names_near if names_near != names_far else None


def names_nearest(words: str, plan: Plan, things: Objects, value: Nearest) -> bool | None:
    """The words name it."""
    return value.thing.label.lower() in words.lower()


BUILDERS: dict[QuestionType, Builder] = {
    QuestionType.DISTANCE: Builder(_distance, _distance_text, same_length),
    QuestionType.SIZE: Builder(_extent, _extent_text, same_length, trust=UNCUT),
    QuestionType.HEADING: Builder(_heading, _heading_text, same_angle),
    QuestionType.WHERE: Builder(_direction, _direction_text, same_direction),
    QuestionType.RELATION: Builder(_relation, _relation_text, same_claim),
    QuestionType.SIDE: Builder(_side, _side_text, same_side),
    QuestionType.CLOSER: Builder(_closer, _closer_text, same_closer),
    QuestionType.NEAREST: Builder(_nearest, _nearest_text, names_nearest),
    QuestionType.BETWEEN: Builder(_between, _between_text, same_claim),
    QuestionType.GAP: Builder(_gap, _gap_text, same_length),
    QuestionType.FITS: Builder(_passage, _passage_text, same_claim, trust=PASSAGE),
    QuestionType.COUNT: Builder(_count, _count_text, same_count, source="Counted by the detector"),
    QuestionType.EXISTS: Builder(_presence, _presence_text, same_claim, source=DETECTOR),
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


def _probability(value: Value) -> float:
    """The chance that the statement is true; of a length or an angle, nearly."""
    if isinstance(value, Passage):
        return value.claim.probability
    if isinstance(value, Claim | Word | Nearest):
        return value.probability
    if value.unit == "m":
        return value.within(CLOSE)
    if value.unit == "rad":
        return 2 * relations.chance(CLOSE_RAD, value.std) - 1
    return 1.0
