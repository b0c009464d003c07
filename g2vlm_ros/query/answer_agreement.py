# SPDX-License-Identifier: Apache-2.0
"""Whether the model's words say what was measured: one function per question type.

Where they do not say the same, the model is given the measure and asked again; both of its answers
are steps, and a contradiction in either counts once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from g2vlm_ros.query import answer_parser, prompts
from g2vlm_ros.query.answer_measures import Nearest, Objects, Passage, Word
from g2vlm_ros.query.grounding import OutOfTimeError
from g2vlm_ros.query.question_plan import Plan
from g2vlm_ros.query.relations import Claim, Measure
from g2vlm_ros.query.types import Query, Result

AskModel = Callable[[str, Sequence[prompts.Mark]], str]
Agrees = Callable[[str], bool | None]
"""Whether words say the same as a measure; None where they say nothing of it."""
DISAGREEMENT = 0.75
"""Factor on the confidence where the model's words and the measurement contradict, with which it
comes true on homes of the validation split."""
ALIKE = 0.25
"""Two lengths say the same when they differ by less than this fraction."""
ALIKE_RAD = math.radians(15)
"""Two angles say the same when they differ by less."""


class Agreement:
    """Compares answers by geometry with the model's words; `steps` takes a sentence per step."""

    def __init__(self, query: Query, ask_model: AskModel, steps: list[str]):
        self._query, self._ask_model, self._steps = query, ask_model, steps

    def compare(self, result: Result, statement: str, agrees: Agrees, model_answer: str) -> Result:
        """The answer, less sure where the model's words disagree with it.

        model_answer: the model's words before it knew the statement; empty where there are none.
        """
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
            doubted = [replace(each, trust=each.trust * DISAGREEMENT) for each in result.things]
            result.things = tuple(doubted)
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
