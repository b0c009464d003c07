# SPDX-License-Identifier: Apache-2.0
"""What is measured of the objects of a question: one function per question type.

Each takes where it may look (`MeasureContext`), the plan and the objects in the plan's order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from g2vlm_ros.query import answer_parser, prompts, relations
from g2vlm_ros.query.grounding import OutOfTimeError
from g2vlm_ros.query.object_measurement import Object3D
from g2vlm_ros.query.point_map import PointMap
from g2vlm_ros.query.question_plan import VIEWER, Plan
from g2vlm_ros.query.relations import Claim, Measure
from g2vlm_ros.query.types import Abstention, Query, Reason, ReferenceFrame

CLOSE = 0.2
"""The confidence of a length is the chance that it is right to within this fraction."""
CLOSE_RAD = math.radians(10)
"""The same of an angle."""


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


def distance(context: MeasureContext, plan: Plan, things: Objects) -> Measure:
    """Between two objects, or from the viewer to one."""
    other = things[1] if len(things) > 1 else None
    return relations.distance(context.points, things[0], other)


def extent(context: MeasureContext, plan: Plan, things: Objects) -> Measure:
    """Width, depth, height or length of an object."""
    return relations.extent(context.points, things[0], plan.word)


def heading(context: MeasureContext, plan: Plan, things: Objects) -> Measure:
    """The angle by which to turn to face an object; left is positive."""
    return relations.heading(context.points, things[0])


def direction(context: MeasureContext, plan: Plan, things: Objects) -> Word:
    """Left, right, in front or behind, as the viewer sees it."""
    return Word(*relations.whereabouts(context.points, things[0]))


def relation(context: MeasureContext, plan: Plan, things: Objects) -> Claim:
    """Whether one object lies left of, above ... another, or the viewer."""
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


def side(context: MeasureContext, plan: Plan, things: Objects) -> Word:
    """On which side of another an object lies."""
    axes = _axes(context, "left", things[1])
    claim = relations.lies(context.points, things[0], "left", things[1], axes)
    return Word("left" if claim.value else "right", claim.probability)


def closer(context: MeasureContext, plan: Plan, things: Objects) -> Claim | Nearest:
    """Which of two objects is nearer, or whether the first is."""
    claim = relations.closer(context.points, things[0], things[1])
    if plan.word == "yes_no":
        return claim
    near, far = things if claim.value else things[::-1]
    return Nearest(near, claim.probability, far)


def between(context: MeasureContext, plan: Plan, things: Objects) -> Claim:
    """Whether the first object lies between the two others."""
    return relations.between(context.points, *things)


def gap(context: MeasureContext, plan: Plan, things: Objects) -> Measure:
    """The free width between two objects."""
    return relations.gap(context.points, things[0], things[1])


def passage(context: MeasureContext, plan: Plan, things: Objects) -> Passage:
    """Whether something of a width passes between two objects."""
    width_m = plan.width_m or context.query.robot_width_m
    if not width_m:
        raise Abstention(
            Reason.INVALID_REQUEST,
            "the question names no width and query.robot_width_m is 0; say how wide it is",
        )
    claim, free = relations.fits(context.points, width_m, things[0], things[1])
    return Passage(claim, free, width_m)


def count(context: MeasureContext, plan: Plan, things: Objects) -> Measure:
    """How many objects there are."""
    return Measure(float(len(things)), 0.0, "")


def presence(context: MeasureContext, plan: Plan, things: Objects) -> Claim:
    """That there is one: the detector shows it."""
    return Claim(True, 1.0)


def nearest(context: MeasureContext, plan: Plan, things: Objects) -> Nearest:
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


def probability(value: Value) -> float:
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
