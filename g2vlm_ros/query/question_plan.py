# SPDX-License-Identifier: Apache-2.0
"""What a question needs: its type, the things to find, and what to answer with."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum, IntEnum


class AnswerType(IntEnum):
    """What to answer with; values of SpatialQuery."""

    AUTO = 0
    TEXT = 1
    YES_NO = 2
    NUMBER = 3
    POINT = 4
    POSE = 5
    OBJECTS = 6


class QuestionType(Enum):
    """What a question is about."""

    DISTANCE = "distance"
    SIZE = "size"
    HEADING = "heading"
    WHERE = "where"
    RELATION = "relation"
    SIDE = "side"
    CLOSER = "closer"
    NEAREST = "nearest"
    BETWEEN = "between"
    GAP = "gap"
    FITS = "fits"
    COUNT = "count"
    EXISTS = "exists"
    LOCATE = "locate"
    APPROACH = "approach"
    MOTION = "motion"
    LAST_SEEN = "last_seen"
    """When a thing was seen last, by the object memory."""
    CONTENTS = "contents"
    """What is in a room of the map, by the object memory."""
    ROOM = "room"
    """Which room a thing is in, by the object memory."""
    TALK = "talk"


NEEDS_METRES = frozenset(
    (
        QuestionType.DISTANCE,
        QuestionType.SIZE,
        QuestionType.GAP,
        QuestionType.FITS,
        QuestionType.LOCATE,
        QuestionType.APPROACH,
        QuestionType.MOTION,
    )
)
NATURAL = {
    QuestionType.DISTANCE: AnswerType.NUMBER,
    QuestionType.SIZE: AnswerType.NUMBER,
    QuestionType.HEADING: AnswerType.NUMBER,
    QuestionType.GAP: AnswerType.NUMBER,
    QuestionType.COUNT: AnswerType.NUMBER,
    QuestionType.RELATION: AnswerType.YES_NO,
    QuestionType.BETWEEN: AnswerType.YES_NO,
    QuestionType.FITS: AnswerType.YES_NO,
    QuestionType.EXISTS: AnswerType.YES_NO,
    QuestionType.LOCATE: AnswerType.POINT,
    QuestionType.APPROACH: AnswerType.POSE,
    QuestionType.MOTION: AnswerType.POSE,
}
"""The kind that AUTO takes; TEXT for the others."""
VIEWER = "viewer"
"""The name of the newest camera, the robot, "you" and "me" among the things of a plan."""
THIS = re.compile(
    r"^(?:this|that|it|these|those|here|there|this one|that one|this thing|"
    r"that thing|this object|that object)$"
)


@dataclass(frozen=True)
class Plan:
    """What a question needs."""

    question_type: QuestionType
    things: tuple[str, ...] = ()
    """Names as asked for, without article; VIEWER for the camera."""
    word: str = ""
    """RELATION: one of left, right, front, behind, above, below. SIZE: height, width, length,
    depth or size. CLOSER: "yes_no" where that is asked for. COUNT: "seen" for all that was seen so
    far. EXISTS: "in_view" where the views alone are meant. APPROACH: "nearest" where the nearest
    of a kind is asked for. The rest: empty."""
    width_m: float | None = None
    """FITS: what should pass; None where only "the robot" is named."""
    forward_m: float = 0.0
    left_m: float = 0.0
    turn_rad: float = 0.0
    """MOTION: turned first, positive to the left."""
    room: str = ""
    """COUNT, EXISTS: the room that is asked about, as asked for; empty = none."""

    @property
    def kind(self) -> AnswerType:
        """What the question asks for by itself."""
        return NATURAL.get(self.question_type, AnswerType.TEXT)


def measurable(plan: Plan) -> Plan | None:
    """A plan whose things can be measured: only some relations may be to the viewer itself."""
    has_things = bool(plan.things) or plan.question_type is QuestionType.MOTION
    if VIEWER not in plan.things and has_things:
        return plan
    to_viewer = (QuestionType.RELATION, QuestionType.NEAREST, QuestionType.WHERE)
    if plan.question_type in to_viewer and plan.things[0] != VIEWER:
        return plan
    if plan.question_type is QuestionType.SIDE and plan.things[1] == VIEWER:
        return replace(plan, question_type=QuestionType.WHERE, things=plan.things[:1])
    return None
