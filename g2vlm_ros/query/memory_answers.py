# SPDX-License-Identifier: Apache-2.0
"""Answers about the object memory alone: when, how many, in which room, what is in a room.

An object of which an attribute or the room that is asked for is not known satisfies no question
for it; the answer says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from g2vlm_ros.query import map_object, recall
from g2vlm_ros.query.map_object import MapObject
from g2vlm_ros.query.question_plan import AnswerType, QuestionType
from g2vlm_ros.query.relations import Measure
from g2vlm_ros.query.types import Abstention, Query, Reason, Result


def answer(query: Query, kind: AnswerType, steps: list[str]) -> Result | None:
    """The answer; None for a question about the views, or a room where nothing is remembered.

    steps: gets one sentence. Raises Abstention where nothing that is remembered tells.
    """
    plan = query.plan
    result = None
    if plan.question_type is QuestionType.LAST_SEEN:
        result = _last_seen(query)
    elif plan.question_type is QuestionType.COUNT and plan.word == "seen":
        result = _count(query)
    elif plan.question_type is QuestionType.ROOM:
        result = _room_of(query)
    elif plan.question_type is QuestionType.CONTENTS or plan.room:
        result = _about_room(query, kind)
    if result is not None:
        result.measured = True
        steps.append(f"Remembered: {result.text}")
    return result


def _last_seen(query: Query) -> Result:
    """When a thing was seen last."""
    phrase = query.plan.things[0]
    objects = map_object.matching(query.memory, phrase)
    recall.check_known(phrase, query.memory, query.now_ns)
    if not objects:
        raise Abstention(
            Reason.NOT_VISIBLE, f"no {phrase} is remembered; look around or ask again"
        )
    latest = max(objects, key=lambda each: each.last_seen_ns)
    age = map_object.age_in_words(latest, query.now_ns)
    text = f"The {latest.label} was last seen {age} ago, at {latest.place_in_words()}."
    return Result(AnswerType.TEXT, text, confidence=latest.belief, remembered=latest)


def _count(query: Query) -> Result:
    """How many things of a kind are remembered and, as far as is known, there."""
    phrase = query.plan.things[0]
    there = [each for each in query.memory if each.there]
    objects = map_object.matching(there, phrase)
    text = f"{len(objects)} {phrase} seen so far."
    text += _perhaps_more(phrase, there, query.now_ns)
    number = Measure(float(len(objects)), 0.0, "")
    sure = math.prod(each.belief for each in objects)
    return Result(AnswerType.NUMBER, text, number=number, confidence=sure)


def _perhaps_more(phrase: str, objects: Sequence[MapObject], now_ns: int) -> str:
    """A sentence about those that may be meant as well; empty where there are none."""
    doubtful = map_object.undetermined(objects, phrase)
    if not doubtful:
        return ""
    return f" There may be more: {recall.unknown_in_words(phrase, doubtful, now_ns)}."


def _room_of(query: Query) -> Result:
    """Which room a thing is in; NOT_VISIBLE where it is in none that is known."""
    phrase = query.plan.things[0]
    remembered = map_object.matching(query.memory, phrase)
    recall.check_known(phrase, query.memory, query.now_ns)
    placed = [each for each in remembered if each.there and each.room]
    if not placed:
        raise Abstention(
            Reason.NOT_VISIBLE,
            f"no {phrase} is remembered in a room of the map; look around or ask again",
        )
    thing = placed[0]
    text = f"The {thing.label} is in {thing.room_title}."
    return Result(AnswerType.TEXT, text, confidence=thing.belief, remembered=thing)


def _about_room(query: Query, kind: AnswerType) -> Result | None:
    """What is remembered in a room; None where no thing is remembered in a room called so."""
    plan = query.plan
    room = plan.room or plan.things[0]
    inside = [each for each in query.memory if map_object.in_room(each, room)]
    if not inside:
        return None
    title = inside[0].room_title
    there = [each for each in inside if each.there]
    if plan.question_type is QuestionType.CONTENTS:
        text = f"In {title}: {map_object.listing(there) or 'nothing that I remember'}."
        things = [each.as_object3d() for each in there] if kind == AnswerType.OBJECTS else []
        result = Result(kind, text, things=tuple(things))
    else:
        result = _count_in_room(query, there, title)
    result.confidence = min((each.belief for each in inside), default=1.0)
    result.remembered = min(inside, key=lambda each: each.last_seen_ns)
    return result


def _count_in_room(query: Query, there: Sequence[MapObject], title: str) -> Result:
    """How many of a kind are in a room, or whether one is.

    AMBIGUOUS where none is known to be, but one may be: of another colour, or in no known room.
    """
    plan, phrase = query.plan, query.plan.things[0]
    count = len(map_object.matching(there, phrase))
    text = f"{count} {phrase} in {title}."
    if plan.question_type is not QuestionType.EXISTS:
        text += _perhaps_more(phrase, there, query.now_ns)
        return Result(AnswerType.NUMBER, text, number=Measure(float(count), 0.0, ""))
    if not count:
        recall.check_known(phrase, there, query.now_ns)
        _check_rooms_known(query, title)
    text = f"{'Yes' if count else 'No'}, {text}"
    return Result(AnswerType.YES_NO, text, yes_no=bool(count))


def _check_rooms_known(query: Query, title: str) -> None:
    """Abstention where one of the kind is remembered in no room that is known."""
    phrase = query.plan.things[0]
    roomless = [each for each in query.memory if each.there and not each.room]
    objects = map_object.matching(roomless, phrase)
    if objects:
        places = recall.whereabouts(objects, query.now_ns)
        raise Abstention(
            Reason.AMBIGUOUS,
            f"no {phrase} is known to be in {title}, but the room of what is remembered is not "
            f"known: {places}; look around",
        )
