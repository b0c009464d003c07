# SPDX-License-Identifier: Apache-2.0
"""Requests that name question type and things, so that a planner needs no English."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from g2vlm_ros.query.question_plan import VIEWER, Plan, QuestionType, measurable
from g2vlm_ros.query.question_reading import bare_name


@dataclass(frozen=True)
class RequestForm:
    """What a request that names its question type means, and how it is put to the model."""

    question_type: QuestionType
    word: str
    things: int
    """How many targets it takes; of distances and the nearest, at most."""
    wording: str
    """English, {0} {1} {2} for the targets."""


_SIZES = ("height", "width", "length", "depth", "size")
_RELATIONS = {
    "left_of": ("left", "to the left of"),
    "right_of": ("right", "to the right of"),
    "in_front_of": ("front", "in front of"),
    "behind": ("behind", "behind"),
    "above": ("above", "above"),
    "below": ("below", "below"),
}
REQUEST_FORMS: dict[str, RequestForm] = {
    "distance": RequestForm(QuestionType.DISTANCE, "", 2, "How far is the {0}?"),
    **{
        word: RequestForm(QuestionType.SIZE, word, 1, f"What is the {word} of the {{0}}?")
        for word in _SIZES
    },
    "heading": RequestForm(QuestionType.HEADING, "", 1, "Turn how many degrees to face the {0}?"),
    "where": RequestForm(QuestionType.WHERE, "", 1, "In which direction is the {0}?"),
    **{
        form: RequestForm(QuestionType.RELATION, word, 2, f"Is the {{0}} {place} the {{1}}?")
        for form, (word, place) in _RELATIONS.items()
    },
    "side": RequestForm(QuestionType.SIDE, "", 2, "Is the {0} left or right of the {1}?"),
    "closer": RequestForm(QuestionType.CLOSER, "", 2, "Which is closer, the {0} or the {1}?"),
    "nearest": RequestForm(QuestionType.NEAREST, "", 2, "Which {0} is nearest to the {1}?"),
    "between": RequestForm(QuestionType.BETWEEN, "", 3, "Is the {0} between the {1} and the {2}?"),
    "gap": RequestForm(
        QuestionType.GAP, "", 2, "How wide is the gap between the {0} and the {1}?"
    ),
    "fits": RequestForm(
        QuestionType.FITS, "", 2, "Can the robot pass between the {0} and the {1}?"
    ),
    "count": RequestForm(QuestionType.COUNT, "", 1, "How many {0} are there?"),
    "exists": RequestForm(QuestionType.EXISTS, "", 1, "Is there a {0}?"),
    "locate": RequestForm(QuestionType.LOCATE, "", 1, "Where is the {0}?"),
    "approach": RequestForm(QuestionType.APPROACH, "", 1, "Go to the {0}."),
}
"""By the names of `question_type` in SpatialQuery."""
_PAIR_DISTANCE = "How far apart are the {0} and the {1}?"


def plan_of(question_type: str, targets: Sequence[str]) -> Plan:
    """The plan of a request that names what it asks; ValueError says which field is wrong."""
    form = REQUEST_FORMS.get(question_type)
    if form is None:
        raise ValueError(
            f"question_type is '{question_type}'; it must be one of {', '.join(REQUEST_FORMS)}"
        )
    things = [VIEWER if target == VIEWER else bare_name(target.lower()) for target in targets]
    if not all(things):
        raise ValueError("targets holds an empty name; name every thing")
    if form.question_type is QuestionType.NEAREST:
        things = (things or ["thing"]) + ([VIEWER] if len(things) < 2 else [])
    if form.question_type is QuestionType.DISTANCE:
        things = [thing for thing in things if thing != VIEWER]
        fits = len(things) in (1, 2)
    else:
        fits = len(things) == form.things
    if not fits:
        raise ValueError(
            f"targets has {len(targets)} names; '{question_type}' takes {form.things}"
        )
    plan = measurable(Plan(form.question_type, tuple(things), form.word))
    if plan is None:
        raise ValueError(f"targets: '{question_type}' cannot be measured of the viewer itself")
    return plan


def wording(question_type: str, targets: Sequence[str]) -> str:
    """The English question of such a request, for the model and for people."""
    form = REQUEST_FORMS[question_type]
    names = ["robot" if target == VIEWER else target for target in targets]
    if form.question_type is QuestionType.DISTANCE and len(names) == 2:
        return _PAIR_DISTANCE.format(*names)
    if form.question_type is QuestionType.NEAREST:
        kind, anchor = (*names, "thing")[0], (*names[1:], "robot")[0]
        names = [kind, anchor]
    return form.wording.format(*names)
