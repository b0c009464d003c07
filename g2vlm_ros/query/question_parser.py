# SPDX-License-Identifier: Apache-2.0
"""A question -> what has to be found and measured: small rules over its words.

What no rule fits is TALK: the model answers alone. A rule never decides what is true, only which
measurement the question is about.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, IntEnum

from g2vlm_ros.query import answer_parser
from g2vlm_ros.query.number_parser import plain


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

_SELF = re.compile(
    r"^(?:you|me|the viewer|viewer|camera|robot|here|us|yourself|newest view|"
    r"observer)$"
)
_PLACES = {
    r"(?:to |on |at )?(?:the )?left(?: side)?(?: of)?": "left",
    r"(?:to |on |at )?(?:the )?right(?: side)?(?: of)?": "right",
    r"in front of|before": "front",
    r"behind|at the back of": "behind",
    r"above|over|on top of|on": "above",
    r"below|under|underneath|beneath": "below",
}
_PLACE = "|".join(_PLACES)
_TO_US = (
    r"(?:,? ?(?:from|to|of) (?:you|me|here|us|the (?:camera|robot|viewer|observer|newest view)))?"
)
_OPENING = (
    r"^(?:(?:please|robot|(?:(?:can|could|would|will) you )?(?:please )?tell me|give me|say"
    r"|(?:can|could|would|will) you(?: please)?(?= (?:go|drive|move|walk|come|bring|take|lead"
    r"|guide|head|find|locate|measure|count|show|estimate)\b)|do you know|i (?:want|need) to know"
    r"|(?:seen )?from (?:here|your (?:place|point of view)))[, ]+)+"
)
_LENGTHS = r"(?:met(?:er|re)s?|centimet(?:er|re)s?|cm|feet|inches|steps)"
_HOW = r"how (?:far(?: away)?|tall|high|wide|long|deep|big|large)"
_INDIRECT = rf"^({_HOW}) (?!(?:is|are|away)\b)(.+?) (is|are)(?=(?: from\b.*)?[.?!]*$)"
"""As in "tell me how far the chair is"; the verb is put before the thing."""
_INDIRECT_PLACE = (
    r"^(?:show me |find out )?where (?!(?:is|are|can|could|did|do)\b)(.+?) (is|are)[.?!]*$"
)
"""As in "show me where the chair is"."""
_FILLERS = (
    (r"\bwhat['’]s\b", "what is"),
    (r"\bwhere['’]s\b", "where is"),
    (r"\b(?:exactly|roughly|approximately|about how)\b ?", ""),
    (
        r" (?:over there|anywhere|around here|around|in here|in view|in sight|somewhere)"
        r"(?=[.?!]*$)",
        "",
    ),
    (r"\b(is|are) (.+?) (?:standing|hanging|sitting|lying|placed|located)\b", r"\1 \2"),
    (
        r"^does (.+?) (?:stand|hang|sit|lie) "
        r"(?=to |on |in |left|right|behind|above|below|under|between)",
        r"is \1 ",
    ),
    (
        r"\b(how (?:tall|high|wide|long|deep|big|large|far)) would you say (.+?) (is|are)\b",
        r"\1 \3 \2",
    ),
)
"""What is said otherwise, in the words of the rules."""
_SPATIAL = re.compile(
    r"\b(?:far|near|close|reach|bigg?|larg|small|tall|high|low|wid|narrow|long|short|deep|size|height"
    r"|width|distance|fit|pass|stand|put|place|between|behind|beside|above|under)(?:e?r?|e?st|e?s)\b"
    r"|\b(?:room|space) for\b"
)
_DIMENSION = {
    "tall": "height",
    "high": "height",
    "height": "height",
    "wide": "width",
    "width": "width",
    "long": "length",
    "length": "length",
    "deep": "depth",
    "depth": "depth",
    "big": "size",
    "large": "size",
    "size": "size",
}


@dataclass(frozen=True)
class Plan:
    """What a question needs."""

    question_type: QuestionType
    things: tuple[str, ...] = ()
    """Names as asked for, without article; VIEWER for the camera."""
    word: str = ""
    """RELATION: one of left, right, front, behind, above, below. SIZE: height, width, length,
    depth or size. CLOSER: "yes_no" where that is asked for. COUNT: "seen" for all that was seen so
    far. The rest: empty."""
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


def parse(question: str) -> Plan:
    """The plan for a question; TALK where no rule fits."""
    text = _bare(question)
    for pattern, build in _RULES:
        match = re.search(pattern, text)
        if match:
            plan = build(match, text)
            plan = None if plan is None else _about_us(plan)
            if plan is not None and all(plan.things):
                return plan
    return Plan(QuestionType.TALK)


def _about_us(plan: Plan) -> Plan | None:
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
    things = [VIEWER if target == VIEWER else name(target.lower()) for target in targets]
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
    plan = _about_us(Plan(form.question_type, tuple(things), form.word))
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


def measures_help(question: str) -> bool:
    """Whether a question that no rule fits is about space, so that measures help to answer it."""
    return _SPATIAL.search(plain(question)) is not None


def name(phrase: str | None, subject: bool = False) -> str:
    """A thing's name without article and filling words; VIEWER for the camera itself.

    subject: the question is about it, so "the robot" is another robot.
    """
    text = re.sub(r"^(?:the|an?|my|your|any|some|of)\s+", "", (phrase or "").strip(" ,.:;?!"))
    text = re.sub(r"\s+(?:now|here|away|apart|there|right now)$", "", text)
    return VIEWER if _SELF.match(text) and not (subject and text == "robot") else text


def _bare(question: str) -> str:
    text = re.sub(r"\s+", " ", plain(question)).strip()
    text = re.sub(r"[.,!?]+ ?(?:please )?(?:answer|give|reply)\b[^.!?]*[.!?]*$", "", text)
    text = re.sub(_OPENING, "", text)
    for pattern, instead in _FILLERS:
        text = re.sub(pattern, instead, text)
    text = re.sub(_OPENING, "", text)
    text = re.sub(_INDIRECT, r"\1 \3 \2", text)
    text = re.sub(_INDIRECT_PLACE, r"where \2 \1", text)
    text = re.sub(r"^in (?:the newest|these|this|the) views?(?:'s frame)?, ", "", text)
    text = re.sub(
        r"(?: in| from)? (?:the newest|these|this) views?(?:'s frame)?(?=[.?!]|$)", "", text
    )
    text = re.sub(r",? (?:in (?:met(?:er|re)s?|cm|degrees))(?=[.?!]|$)", "", text)
    return text.strip(" .?!")


def _of(
    question_type: QuestionType, *groups: str, word: str = ""
) -> Callable[[re.Match, str], Plan]:
    return lambda match, text: Plan(
        question_type, tuple(name(match[group], subject=group == "x") for group in groups), word
    )


def _distance(match: re.Match, text: str) -> Plan:
    parts = [name(match["x"], subject=True)] + (
        [name(match["y"])] if match.groupdict().get("y") else []
    )
    others = [part for part in parts if part != VIEWER]
    return Plan(QuestionType.DISTANCE, tuple(others))


def _size(match: re.Match, text: str) -> Plan:
    return Plan(QuestionType.SIZE, (name(match["x"], subject=True),), _DIMENSION[match["how"]])


def _relation(match: re.Match, text: str) -> Plan:
    word = next(w for pattern, w in _PLACES.items() if re.fullmatch(pattern, match["place"]))
    other = match.groupdict().get("y") or ""
    return Plan(QuestionType.RELATION, (name(match["x"]), name(other) if other else VIEWER), word)


def _fits(match: re.Match, text: str) -> Plan:
    width = answer_parser.length(re.sub(r"\b(?:than|least)\b", "", text))
    return Plan(
        QuestionType.FITS,
        (name(match["x"]), name(match["y"])),
        width_m=None if width is None else width.value,
    )


def _motion(match: re.Match, text: str) -> Plan | None:
    plan = Plan(QuestionType.MOTION)
    for part in re.split(r",| and (?:then )?| then ", match["how"]):
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


def _nearest(match: re.Match, text: str) -> Plan:
    """The kind of thing asked for ("thing" for any), and what it should be near to."""
    kind = name(match.groupdict().get("x") or "") or "thing"
    kind = "thing" if kind in ("one", "thing", "object", "item", "what") else kind
    return Plan(QuestionType.NEAREST, (kind, name(match.groupdict().get("y") or "you")))


def _in_room(question_type: QuestionType) -> Callable[[re.Match, str], Plan]:
    return lambda match, text: Plan(question_type, (name(match["x"]),), room=name(match["place"]))


_X, _Y, _Z = (rf"(?P<{letter}>[^,?:]+?)" for letter in "xyz")
_SEEN = r"(?:see|seen|spot|spotted|notice|noticed|come across|observe|observed)"
_A_ROOM = (
    r"in (?!(?:the |this |your )?"
    r"(?:front|room(?! \d)|views?|images?|pictures?|photos?|sight|here)\b)"
    r"(?P<place>[\w' ]+?)"
)
"""A part of the home, not of what the cameras show now."""
_RULES: list[tuple[str, Callable[[re.Match, str], Plan | None]]] = [
    (
        r"^what (?:is|are|(?:things|objects) are|else is|have you seen|did you see|can i find"
        rf"|do you know of) (?:there )?{_A_ROOM}$",
        _of(QuestionType.CONTENTS, "place"),
    ),
    (
        rf"^(?:in )?(?:which|what) room (?:is|are|did you (?:last )?see) {_X}(?: in)?$",
        _of(QuestionType.ROOM, "x"),
    ),
    (
        rf"\bhow many {_X} (?:are|stand|have you {_SEEN}|did you {_SEEN}|do you know of)"
        rf" (?:there )?{_A_ROOM}$",
        _in_room(QuestionType.COUNT),
    ),
    (rf"^(?:is|are) there {_X} {_A_ROOM}$", _in_room(QuestionType.EXISTS)),
    (
        rf"^(?:when|how long ago) (?:did|have) you (?:last |ever )?{_SEEN} {_X}(?: last)?$",
        _of(QuestionType.LAST_SEEN, "x"),
    ),
    (
        rf"^(?:when|how long ago) (?:was|were) {_X} (?:last )?{_SEEN}(?: last)?$",
        _of(QuestionType.LAST_SEEN, "x"),
    ),
    (
        rf"\bhow many {_X} (?:have|did) you {_SEEN}(?: so far| yet| (?:here|today|altogether))?$",
        _of(QuestionType.COUNT, "x", word="seen"),
    ),
    (
        rf"^where (?:did|have) you (?:last |ever )?{_SEEN} {_X}(?: last)?$",
        _of(QuestionType.LOCATE, "x"),
    ),
    (
        r"\bwhere (?:would|will|do|am|should) i "
        r"(?:be|end up|stand|land|arrive) (?:if|when|after)\b"
        r"(?: i)? ?(?P<how>.+)$",
        _motion,
    ),
    (rf"\b(?:fit|pass|go|drive|get|squeeze|move|come)s?\b.*?\bbetween {_X} and {_Y}$", _fits),
    (rf"\b(?:room|space|gap) for\b.*? between {_X} and {_Y}$", _fits),
    (
        rf"\bis (?:the |there a )?(?:gap|space|passage|opening) between {_X} and {_Y} "
        r"(?:wider|larger|more|at least|big enough|wide enough)",
        _fits,
    ),
    (
        rf"\b(?:gap|space|passage|opening|room) (?:is )?(?:there )?between {_X} and {_Y}$",
        _of(QuestionType.GAP, "x", "y"),
    ),
    (
        r"\b(?:degrees|how (?:far|much)|turn|rotate)\b.*?\b(?:face|look at|see|towards?|point at) "
        rf"{_X}$",
        _of(QuestionType.HEADING, "x"),
    ),
    (
        rf"^when was the last time (?:that )?(?:you|we) (?:saw|noticed|spotted) {_X}$",
        _of(QuestionType.LAST_SEEN, "x"),
    ),
    (
        rf"^(?:in )?(?:which|what) (?:direction|way) (?:does|do) {_X} (?:lie|stand)$",
        _of(QuestionType.WHERE, "x"),
    ),
    (
        rf"\bhow much (?:does|do) {_X} measure in (?P<how>height|width|length|depth)$",
        _size,
    ),
    (
        rf"\bdimensions of {_X}$",
        lambda match, text: Plan(QuestionType.SIZE, (name(match["x"]),), "size"),
    ),
    (rf"\bhow many {_LENGTHS} (?:are there |is it )?between {_X} and {_Y}$", _distance),
    (rf"\bhow many {_LENGTHS} (?:apart )?are {_X} and {_Y}(?: apart)?$", _distance),
    (rf"\bhow (?:far|many {_LENGTHS}) is it to {_X}$", _distance),
    (rf"\bhow many {_LENGTHS} (?:away|off) (?:is|are) {_X}$", _distance),
    (rf"\bhow many {_LENGTHS} (?P<how>tall|high|wide|long|deep) (?:is|are) {_X}$", _size),
    (rf"\bat what distance (?:is|are|do you see|can you see) {_X}$", _distance),
    (rf"\bdistance (?:is )?between {_X} and {_Y}$", _distance),
    (rf"\b(?:distance|how far is it) from {_X} to {_Y}$", _distance),
    (rf"\bdistance (?:to|of) {_X}$", _distance),
    (
        rf"\bhow (?:far|close|near)(?: off| away)? (?:are|is) (?:we|you|it) (?:to|from) {_X}$",
        _distance,
    ),
    (rf"\bhow far off (?:is|are) {_X}$", _distance),
    (rf"\bhow far (?:apart |away )?are {_X} and {_Y}(?: apart)?$", _distance),
    (rf"\bhow far (?:away )?(?:is|are) {_X}(?: away)? from {_Y}$", _distance),
    (rf"\bhow (?:far|close|near)(?: away)? (?:is|are|to) {_X}$", _distance),
    (rf"\bhow (?P<how>tall|high|wide|long|deep|big|large) (?:is|are) {_X}$", _size),
    (rf"^what is {_X}'s (?P<how>height|width|length|depth|size)$", _size),
    (rf"\b(?P<how>height|width|length|depth|size) (?:of|has|does|is) {_X}(?: have)?$", _size),
    (
        r"\b(?:which|what)(?: one| thing)?(?: of (?:the two|them))? is (?:closer|nearer)"
        rf"{_TO_US}[,:]? {_X} or {_Y}$",
        _of(QuestionType.CLOSER, "x", "y"),
    ),
    (
        rf"^between {_X} and {_Y}, (?:which|what)(?: one)? is (?:closer|nearer){_TO_US}$",
        _of(QuestionType.CLOSER, "x", "y"),
    ),
    (rf"^is {_X} or {_Y} (?:closer|nearer){_TO_US}$", _of(QuestionType.CLOSER, "x", "y")),
    (
        rf"^of {_X} and {_Y}, (?:which|what)(?: one)? is (?:closer|nearer){_TO_US}$",
        _of(QuestionType.CLOSER, "x", "y"),
    ),
    (
        rf"^is {_X} (?:closer|nearer){_TO_US} than {_Y}$",
        _of(QuestionType.CLOSER, "x", "y", word="yes_no"),
    ),
    (
        r"\b(?:which|what)(?P<x> [\w ]+?)? (?:is|stands|lies|sits) (?:the )?"
        r"(?:nearest|closest)(?: one)?(?: (?:thing|object))?(?: to (?P<y>[^,?:]+?))?$",
        _nearest,
    ),
    (r"\b(?:nearest|closest) (?P<x>[\w ]+?)(?: to (?P<y>[^,?:]+?))?$", _nearest),
    (rf"^(?:is|are) {_X} between {_Y} and {_Z}$", _of(QuestionType.BETWEEN, "x", "y", "z")),
    (
        rf"^(?:is|are) {_X} (?:to |on )?(?:the )?(?:left or (?:to |on )?(?:the )?right|"
        rf"right or (?:to |on )?(?:the )?left) of {_Y}$",
        _of(QuestionType.SIDE, "x", "y"),
    ),
    (
        rf"\bwhere (?:is|are) {_X} (?:relative to|with respect to|compared (?:to|with)|seen from) "
        rf"{_Y}$",
        _of(QuestionType.SIDE, "x", "y"),
    ),
    (rf"\bon (?:which|what) side of {_Y} (?:is|are) {_X}$", _of(QuestionType.SIDE, "x", "y")),
    (
        r"\b(?:which|what) (?:direction|side|way) (?:should|do|must|would) (?:i|you) "
        rf"(?:look|turn|go) (?:for|to (?:see|find|reach)) {_X}$",
        _of(QuestionType.WHERE, "x"),
    ),
    (rf"\bwhere (?:is|are) {_X}(?: now)?: ", _of(QuestionType.WHERE, "x")),
    (rf"^(?:is|are) {_X} left, right", _of(QuestionType.WHERE, "x")),
    (
        rf"\b(?:which|what) (?:direction|side|way) (?:is|are) {_X}(?: from {_Y})?(?: on| in)?$",
        _of(QuestionType.WHERE, "x"),
    ),
    (rf"^(?:is|are) {_X} (?P<place>(?:to|on) the (?:left|right)|behind|above|below)$", _relation),
    (rf"^(?:is|are) {_X} (?P<place>{_PLACE}) (?P<y>[^,?:]+)$", _relation),
    (
        rf"\b(?:how many|what number of)(?! {_LENGTHS}\b) {_X}(?: (?:are|do|can|is|stand)\b.*)?$",
        _of(QuestionType.COUNT, "x"),
    ),
    (
        r"^(?:count(?: all| up)?(?: the)?|(?:what is )?the number of) "
        rf"{_X}(?: (?:in|on) (?:the |this )?(?:room|floor|view|table))?$",
        _of(QuestionType.COUNT, "x"),
    ),
    (
        rf"^(?:is|are) there {_X}(?: in (?:view|sight|the room|here))?$",
        _of(QuestionType.EXISTS, "x"),
    ),
    (
        rf"^does (?:the|this) (?:room|place|view|image) (?:have|contain|show) {_X}$",
        _of(QuestionType.EXISTS, "x"),
    ),
    (rf"^(?:do|can) you (?:see|spot|find) {_X}$", _of(QuestionType.EXISTS, "x")),
    (rf"^(?:have you got|do you have) {_X}(?: in view)?$", _of(QuestionType.EXISTS, "x")),
    (rf"^(?:is|are) {_X} (?:visible|there|in (?:view|sight))$", _of(QuestionType.EXISTS, "x")),
    (r"^(?:is|are) (?P<x>an? [\w ]+|any [\w ]+)$", _of(QuestionType.EXISTS, "x")),
    (
        r"^(?:go|drive|navigate|move|walk|head|come|get|(?:bring|take|lead|guide|drive) me)"
        rf"(?: (?!to\b)\w+)? to {_X}$",
        _of(QuestionType.APPROACH, "x"),
    ),
    (
        r"\b(?:where (?:is|are)|where (?:can|could|do|would) (?:i|we|you) (?:find|see)|looking for"
        r"|where (?:did|have) (?:i|we) (?:left?|leave|put)|locate|find|point (?:at|to)|show me"
        rf"|position of|place of|location of) {_X}$",
        _of(QuestionType.LOCATE, "x"),
    ),
]
