# SPDX-License-Identifier: Apache-2.0
"""A question -> what has to be found and measured.

The lexicon reads signs and names out of the words; a frame says which signs make which type of
question, and what part the names play in it. What no frame fits is TALK: the model answers alone.
A frame never decides what is true, only which measurement the question is about.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from g2vlm_ros.query import answer_parser, lexicon
from g2vlm_ros.query.number_parser import plain
from g2vlm_ros.query.question_plan import VIEWER, Plan, QuestionType, measurable
from g2vlm_ros.query.question_reading import Name, Reading, read

_SPATIAL = re.compile(
    r"\b(?:far|near|close|reach|bigg?|larg|small|tall|high|low|wid|narrow|long|short|deep|size|height"
    r"|width|distance|fit|pass|stand|put|place|between|behind|beside|above|under)(?:e?r?|e?st|e?s)\b"
    r"|\b(?:room|space) for\b"
)
MAX_NAME_WORDS = 6
"""A longer name is no name but words that the lexicon does not know."""
_MOTION = re.compile(r"\b(?:if|when|after)\b(?: i)? ?(?P<how>.+?)(?:,? where .*)?[ .?!]*$")


def parse(question: str) -> Plan:
    """The plan for a question; TALK where no frame fits."""
    plan = _plan_of(read(question))
    if plan.question_type is QuestionType.TALK:
        plan = _plan_of(read(question, lexicon.VIEWER_NAMES_BUT_ROBOT))
    return plan


def _plan_of(reading: Reading) -> Plan:
    """The first frame's that makes one."""
    if not reading.asks or any(len(name.text.split()) > MAX_NAME_WORDS for name in reading.names):
        return Plan(QuestionType.TALK)
    for frame in _FRAMES:
        if not frame.fits(reading):
            continue
        plan = frame.build(reading)
        if plan is not None and plan.question_type is not QuestionType.TALK:
            plan = measurable(plan)
        if plan is not None:
            return plan
    return Plan(QuestionType.TALK)


def measures_help(question: str) -> bool:
    """Whether a question that no frame fits is about space, so that measures help to answer it."""
    return _SPATIAL.search(plain(question)) is not None


@dataclass(frozen=True)
class _Frame:
    """Which signs make a type of question: any of `needs`, any of `also`, none of `without`."""

    build: Callable[[Reading], Plan | None]
    needs: str
    also: str = ""
    without: str = ""

    def fits(self, reading: Reading) -> bool:
        """Whether the signs of a question are those of this frame."""
        return (
            reading.has(*self.needs.split())
            and (not self.also or reading.has(*self.also.split()))
            and not reading.has(*self.without.split())
        )


def _plan(
    question_type: QuestionType, names: Iterable[Name], count: int, word: str = ""
) -> Plan | None:
    """A plan of exactly `count` things, or None."""
    things = tuple(name.text for name in names)
    return Plan(question_type, things, word) if len(things) == count else None


def _about_one(
    question_type: QuestionType, without_roles: str = "in on for", word: str = ""
) -> Callable[[Reading], Plan | None]:
    """A plan about the first thing that is named."""

    def build(reading: Reading) -> Plan | None:
        roles = without_roles.split()
        things = [name for name in reading.things if name.role not in roles] or reading.things
        things = [name for name in things if name.definite] or things
        return _plan(question_type, things[:1], 1, word)

    return build


def _motion(reading: Reading) -> Plan | None:
    """Steps and turns, by their words."""
    plan = Plan(QuestionType.MOTION)
    how = _MOTION.search(reading.text)
    if how is None:
        return None
    for part in re.split(r",| and (?:then )?| then ", how["how"]):
        way = answer_parser.directions(part)
        sign = {"left": 1, "right": -1, "front": 1, "behind": -1}
        if re.search(r"\bturn", part):
            angle = answer_parser.angle(part) or answer_parser.Quantity(math.pi / 2, "rad", "")
            if "around" in part:
                plan = replace(plan, turn_rad=math.pi)
            elif way is None or way.words[0] not in ("left", "right"):
                return None
            else:
                plan = replace(plan, turn_rad=sign[way.words[0]] * angle.value)
            continue
        far = answer_parser.length(part)
        if far is None or (way is not None and way.words[0] not in sign):
            return None
        back = re.search(r"\bback\b", part)
        word = "behind" if back else way.words[0] if way else "front"
        step = sign[word] * far.value
        if word in ("left", "right"):
            plan = replace(plan, left_m=plan.left_m + step)
        else:
            plan = replace(plan, forward_m=plan.forward_m + step)
    return plan


def _distance(reading: Reading) -> Plan | None:
    """From the viewer to one thing, or between two."""
    things = [name for name in reading.things if name.role != "in"] or reading.things
    return _plan(QuestionType.DISTANCE, things, min(max(len(things), 1), 2))


def _size(reading: Reading) -> Plan | None:
    """Of one thing, in the dimension that is named first."""
    word = next(sign for sign in reading.signs if sign in lexicon.DIMENSIONS)
    things = [name for name in reading.things if name.role not in ("in", "for", "on")]
    things = things or reading.things
    return _plan(QuestionType.SIZE, things, 1, word)


def _gap(reading: Reading) -> Plan | None:
    """Between two things."""
    return _plan(QuestionType.GAP, _between_names(reading), 2)


def _fits(reading: Reading) -> Plan | None:
    """Whether something of a width passes between two things."""
    plan = _plan(QuestionType.FITS, _between_names(reading), 2)
    width = answer_parser.length(re.sub(r"\b(?:than|least|for)\b", "", reading.text))
    return None if plan is None else replace(plan, width_m=None if width is None else width.value)


def _between_names(reading: Reading) -> list[Name]:
    """The names after "between", those joined to them included."""
    at = next((i for i, name in enumerate(reading.names) if name.role == "between"), None)
    if at is None:
        return []
    return [name for name in reading.names[at : at + 2] if name.role == "between"]


def _between(reading: Reading) -> Plan | None:
    """Whether one thing is between two."""
    ends = _between_names(reading)
    subjects = [name for name in reading.things if name not in ends]
    return _plan(QuestionType.BETWEEN, [*subjects[:1], *ends], 3)


def _closer(reading: Reading) -> Plan | None:
    """Which of two things is nearer to the viewer, or whether one is nearer than the other."""
    things = reading.things
    to_others = [name for name in things if name.role in ("to", "from")]
    if len(things) != 2 or len(to_others) == 1:
        return None
    if things[1].role == "than":
        # X is farther than Y where Y is nearer than X.
        things = things[::-1] if reading.has("farther") else things
        return _plan(QuestionType.CLOSER, things, 2, "yes_no")
    if reading.has("farther") or not things[1].joined:
        return None
    return _plan(QuestionType.CLOSER, things, 2)


def _nearest(reading: Reading) -> Plan | None:
    """The kind of thing asked for ("thing" for any), and what it should be near to."""
    anchors = reading.with_role("to", "from")
    kinds = [name for name in reading.things if name not in anchors and name.role != "in"]
    kind = kinds[0].text if kinds else ""
    kind = "thing" if kind in lexicon.ANYTHING else kind
    anchor = anchors[0].text if anchors else VIEWER
    return Plan(QuestionType.NEAREST, (kind, anchor))


def _side(reading: Reading) -> Plan | None:
    """On which side of a thing, or of the viewer, another one is."""
    references = reading.with_role("relative", "of", "face", "on", "from", *lexicon.RELATIONS)
    things = [name for name in references if name.text != VIEWER] or reading.things[1:2]
    reference = next(iter(things or references), None)
    subjects = [name for name in reading.things if name != reference]
    if not subjects:
        return None
    if reference is None:
        return _plan(QuestionType.WHERE, subjects[:1], 1)
    return _plan(QuestionType.SIDE, [subjects[0], reference], 2)


def _relation(reading: Reading) -> Plan | None:
    """Whether a thing is left of, on, behind ... another one or the viewer."""
    roles = [*lexicon.RELATIONS, "on"]
    at = next((i for i, name in enumerate(reading.names) if name.role in roles), None)
    end = len(reading.names) if at is None else at
    subjects = [name for name in reading.names[:end] if name.text != VIEWER]
    sign = next(sign for sign in reading.signs if sign in roles)
    if not subjects or (at is None and sign == "on"):
        return None
    reference = VIEWER if at is None else reading.names[at].text
    word = "above" if sign == "on" else sign
    return Plan(QuestionType.RELATION, (subjects[0].text, reference), word)


def _count(reading: Reading) -> Plan | None:
    """How many of a kind: in view, of all that was seen so far, or in a room."""
    kinds = reading.with_role("count") or reading.things
    plan = _plan(QuestionType.COUNT, kinds[:1], 1)
    if plan is None:
        return None
    room = _room_name(reading)
    if room and room != plan.things[0]:
        return replace(plan, room=room)
    return replace(plan, word="seen") if reading.has("saw") else plan


def _exists(reading: Reading) -> Plan | None:
    """Whether there is one: in these views, in a room, or anywhere."""
    room = _room_name(reading)
    things = [name for name in reading.things if name.text != room]
    if room and not things:
        return None
    plan = _plan(QuestionType.EXISTS, things, 1)
    if plan is None and reading.has("contain") and len(things) == 2:
        plan, room = _plan(QuestionType.EXISTS, things[1:], 1), things[0].text
    if plan is None:
        return None
    word = "in_view" if re.search(lexicon.OF_VIEWS, reading.text) else ""
    return replace(plan, room=room, word=word)


def _contents(reading: Reading) -> Plan | None:
    """What is in a room."""
    rooms = reading.with_role("in")
    rest = [name for name in reading.things if name not in rooms]
    if reading.has("contain") and not rooms:
        return _plan(QuestionType.CONTENTS, rest, 1)
    if any(name.text not in lexicon.ANYTHING for name in rest):
        return None
    return _plan(QuestionType.CONTENTS, rooms, 1)


def _room_name(reading: Reading) -> str:
    """The room in which something is asked for; empty = none."""
    return next((name.text for name in reading.with_role("in")), "")


def _approach(reading: Reading) -> Plan | None:
    """Where to go; only as an order, not as a question about going."""
    deeds = [sign for sign in reading.signs if sign not in ("be", "to", "stop", "viewer")]
    if deeds[0] != "go":
        return None
    things = [name for name in reading.things if name.role not in ("in", "of")]
    word = "nearest" if reading.has("nearest") else ""
    return _plan(QuestionType.APPROACH, things[:1], 1, word)


_FRAMES = (
    _Frame(_motion, "end_up"),
    _Frame(lambda reading: Plan(QuestionType.TALK), "open if"),
    _Frame(_about_one(QuestionType.LAST_SEEN), "when"),
    _Frame(_about_one(QuestionType.ROOM), "room"),
    _Frame(_fits, "fit go enough", also="between", without="far where"),
    _Frame(_gap, "space width amount", also="between", without="far where"),
    _Frame(_about_one(QuestionType.HEADING), "degrees", without="count"),
    _Frame(_about_one(QuestionType.HEADING), "far amount", also="turn"),
    _Frame(_size, " ".join(lexicon.DIMENSIONS), without="between enough"),
    _Frame(_closer, "closer farther"),
    _Frame(_closer, "nearest", also="or and"),
    _Frame(_distance, "far", without="space"),
    _Frame(_count, "count"),
    _Frame(_approach, "go"),
    _Frame(_nearest, "nearest"),
    _Frame(_side, "sides which_side"),
    _Frame(_side, "where", also="relative"),
    _Frame(_about_one(QuestionType.WHERE), "direction"),
    _Frame(_between, "between", without="what where amount space"),
    _Frame(
        _relation, " ".join((*lexicon.RELATIONS, "on")), without="what where amount count modal"
    ),
    _Frame(_about_one(QuestionType.LOCATE), "where"),
    _Frame(_contents, "what", also="in contain", without="on between"),
    _Frame(
        _exists,
        "there see saw visible contain in",
        also="be there saw contain",
        without="what space",
    ),
)
"""The first that fits counts."""
