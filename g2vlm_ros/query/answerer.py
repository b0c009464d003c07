# SPDX-License-Identifier: Apache-2.0
"""Answers a question in steps: find the things, measure them, conclude; every step is told.

Numbers come from the point map where it has them. The model's own words are heard as well: where
both speak and disagree, the answer says so and its confidence falls. Where the answer is not known
it is not guessed: `Abstention`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from g2vlm_ros.query import answer_parser, prompts, relations
from g2vlm_ros.query.answer_builders import CONCLUDE, AnswerBuilders
from g2vlm_ros.query.grounding import Finder, NotVisibleError, OutOfTimeError, certainty
from g2vlm_ros.query.point_map import Object3D, PointMap, Region, map_covariance
from g2vlm_ros.query.point_parser import Pointed
from g2vlm_ros.query.question_parser import (
    NEEDS_METRES,
    VIEWER,
    AnswerType,
    Plan,
    QuestionType,
    measures_help,
    parse,
)
from g2vlm_ros.query.relations import Measure, ScaleError
from g2vlm_ros.query.types import Abstention, Query, Reason, Result

PLACES = (AnswerType.POINT, AnswerType.POSE, AnswerType.OBJECTS)
STAND_OFF_M = 0.7
"""Where to stand before a thing: so far from its surface."""


class Answerer:
    """Composes the answer to one question about one window.

    say(prompt, marks): what the model answers; raises OutOfTimeError. to_model: a Region of what
    the model pointed at; itself None for a model that never learned to point. points: None only
    while the window has no geometry.
    """

    def __init__(
        self,
        points: PointMap,
        query: Query,
        ask_model: Callable[[str, Sequence[prompts.Mark]], str],
        to_model: Callable[[Pointed], Region | None] | None,
    ):
        self._points, self._query, self._say = points, query, ask_model
        self._steps: list[str] = []
        self._unheard = OutOfTimeError
        self._judge = AnswerBuilders(points, query, ask_model, self._steps)
        self._finder = Finder(
            points,
            query.regions,
            query.detections,
            lambda prompt: ask_model(prompt, ()),
            to_model,
            self._steps.append,
        )

    @property
    def steps(self) -> list[str]:
        """What was done so far, one sentence each."""
        return self._steps

    def answer(self) -> Result:
        """The answer; raises Abstention, and OutOfTimeError where the model alone could tell."""
        plan = parse(self._query.question)
        kind = self._kind(plan)
        if plan.ask in NEEDS_METRES and not self._points.metric and kind != AnswerType.TEXT:
            raise Abstention(Reason.NO_GEOMETRY, str(ScaleError("a length or place")))
        if (
            plan.ask is QuestionType.TALK
            or kind == AnswerType.TEXT
            and plan.ask in NEEDS_METRES
            and (not self._points.metric)
        ):
            return self._checked(self._talk(kind))
        if plan.ask is QuestionType.MOTION:
            return self._checked(self._motion(plan))
        model_answer = self._opinion(plan)
        try:
            made = self._measured(plan, kind, model_answer)
        except NotVisibleError as unseen:
            if plan.ask is QuestionType.EXISTS:
                made = Result(AnswerType.YES_NO, "No.", yes_no=False)
            elif plan.ask is QuestionType.COUNT:
                made = Result(AnswerType.NUMBER, "None.", number=Measure(0.0, 0.0, ""))
            else:
                raise Abstention(
                    Reason.NOT_VISIBLE, f"{unseen}; look around or ask again"
                ) from None
        if made is None:
            made = self._in_words(plan, kind, model_answer)
        return self._checked(made)

    # Steps -----------------------------------------------------------------------------------

    def _kind(self, plan: Plan) -> AnswerType:
        """What to answer with; INVALID_REQUEST where the question asks for something else."""
        asked = self._query.kind
        if asked == AnswerType.AUTO:
            return plan.kind
        fits = (
            asked in (plan.kind, AnswerType.TEXT)
            or plan.ask is QuestionType.TALK
            and asked not in PLACES
            or asked in PLACES
            and bool(plan.things or plan.ask is QuestionType.MOTION)
            or asked == AnswerType.OBJECTS
            and bool(self._query.detections or self._query.regions)
        )
        if not fits:
            raise Abstention(
                Reason.INVALID_REQUEST,
                f"answer_kind {asked.name} does not fit a question for {plan.ask.value} "
                f"({plan.kind.name}); ask for AUTO, TEXT or {plan.kind.name}",
            )
        return asked

    def _opinion(self, plan: Plan) -> str:
        """What the model says by itself; empty where it was out of time."""
        try:
            text = self._say(*self._query.prompt())
        except OutOfTimeError as error:
            if not self._finder.given(len(plan.things)):
                raise
            self._unheard = type(error)
            self._steps.append(f"{error.reason}.")
            return ""
        self._steps.append(f"The model alone says: {text.strip()!r}.")
        if answer_parser.says_absent(text) and not self._finder.given(1):
            if plan.ask not in (QuestionType.EXISTS, QuestionType.COUNT):
                raise Abstention(
                    Reason.NOT_VISIBLE, f"the model says: {text.strip()} Look around or ask again"
                )
        return text

    def _one(self, phrase: str) -> list[Object3D]:
        """The one thing that a phrase means, or none; AMBIGUOUS where there are several."""
        found = self._finder.things(phrase)
        if len(found) > 1:
            raise Abstention(
                Reason.AMBIGUOUS,
                f"{len(found)} things fit '{phrase}'; say which by its colour or place, or give a "
                "region",
            )
        return found

    def _measured(self, plan: Plan, kind: AnswerType, model_answer: str) -> Result | None:
        """The answer by geometry, or None where a thing was not found."""
        if (
            plan.ask in (QuestionType.COUNT, QuestionType.EXISTS, QuestionType.NEAREST)
            and kind not in PLACES
        ):
            return self._among(plan, model_answer)
        things: list[Object3D] = []
        for phrase in plan.things:
            if phrase == VIEWER:
                continue
            found = (
                self._finder.things(phrase) if kind == AnswerType.OBJECTS else self._one(phrase)
            )
            if not found:
                return None
            things += found
        if kind in PLACES:
            return self._place(things, kind, approach=plan.ask is QuestionType.APPROACH)
        try:
            made = CONCLUDE[plan.ask](self._judge, plan, things, model_answer)
        except ScaleError as error:
            raise Abstention(Reason.NO_GEOMETRY, str(error)) from None
        except ValueError as error:
            raise Abstention(Reason.INVALID_REQUEST, str(error)) from None
        made.things = made.things or tuple(things)
        return made

    def _among(self, plan: Plan, model_answer: str) -> Result | None:
        """Counts, existence and the nearest, of what a detector sees."""
        found = self._finder.detected(plan.things[0])
        if plan.ask is QuestionType.COUNT:
            if not found:
                return None
            number = Measure(float(len(found)), 0.0, "")
            text = f"{len(found)} {plan.things[0]}."

            def agrees(words: str) -> bool | None:
                said = answer_parser.count(words)
                return None if said is None else said.value == number.value

            made = Result(AnswerType.NUMBER, text, number=number, things=tuple(found))
            return self._judge.joined(
                made, certainty(found), agrees, model_answer, source="Counted by the detector"
            )
        if plan.ask is QuestionType.EXISTS:
            if not found:
                return None

            def agrees(words: str) -> bool | None:
                said = answer_parser.yes_no(words)
                return None if said is None else said.value

            made = Result(AnswerType.YES_NO, "Yes.", yes_no=True, things=tuple(found))
            return self._judge.joined(
                made,
                certainty(found[:1]),
                agrees,
                model_answer,
                f"There is a {found[0].label}.",
                "Seen by the detector",
            )
        anchor = [] if plan.things[1] == VIEWER else self._one(plan.things[1])
        to = anchor[0] if anchor else None
        others = [thing for thing in found if to is None or thing.label != to.label]
        shown = [thing for thing in others if self._in_newest(thing)]
        if to is None and shown:
            others = shown
        if not others or (to is None and plan.things[1] != VIEWER):
            return None
        best, sure = relations.nearest(self._points, others, to)
        made = Result(AnswerType.TEXT, f"The {best.label}.", things=(best,))
        return self._judge.joined(
            made,
            sure * certainty([best]),
            lambda words: best.label.lower() in words.lower(),
            model_answer,
            f"The {best.label} is the nearest.",
        )

    def _in_newest(self, thing: Object3D) -> bool:
        return any(region.view == self._points.viewer for region in thing.regions)

    def _place(
        self, things: Sequence[Object3D], kind: AnswerType, approach: bool = False
    ) -> Result:
        thing = things[0]
        pose = np.eye(4)
        pose[:3, 3] = thing.centre
        if kind == AnswerType.POSE:
            pose = self._stand(thing) if approach else _turned(thing)
        x, y, z = pose[:3, 3]
        text = (
            f"The {thing.label} is at ({thing.centre[0]:.2f}, {thing.centre[1]:.2f}, "
            f"{thing.centre[2]:.2f}) in the map."
        )
        if approach:
            text = f"Stand at ({x:.2f}, {y:.2f}) in the map to be before the {thing.label}."
        self._steps.append(f"Measured in the point map: {text}")
        return Result(
            kind,
            text,
            pose=pose,
            covariance=map_covariance(self._points, thing),
            things=tuple(things),
            confidence=certainty(things),
        )

    def _stand(self, thing: Object3D) -> np.ndarray:
        """A pose on the floor before a thing, x towards it, on the side of the newest camera."""
        here = self._points.viewer_pose[:3, 3]
        away = (thing.centre - here)[:2]
        reach = max(float(np.linalg.norm(away)), 1e-6)
        front = away / reach
        surface = float(np.quantile((thing.points - here)[:, :2] @ front, 0.05))
        floor = self._points.floor_z
        pose = np.eye(4)
        pose[:2, 0], pose[:2, 1] = front, (-front[1], front[0])
        pose[:2, 3] = here[:2] + max(0.0, surface - STAND_OFF_M) * front
        pose[2, 3] = floor if math.isfinite(floor) else here[2]
        return pose

    def _motion(self, plan: Plan) -> Result:
        pose = relations.moved(self._points, plan.forward_m, plan.left_m, plan.turn_rad)
        x, y, _ = pose[:3, 3]
        text = f"You would be at ({x:.2f}, {y:.2f}) in the map."
        way = math.hypot(plan.forward_m, plan.left_m)
        covariance = np.eye(3) * (self._points.scale_std * way) ** 2
        if self._points.pose_covariance is not None:
            covariance = covariance + self._points.pose_covariance[self._points.viewer]
        self._steps.append(
            f"Went {plan.forward_m:.2f} m ahead and {plan.left_m:.2f} m left from the newest "
            f"camera after turning {math.degrees(plan.turn_rad):.0f}°."
        )
        return Result(AnswerType.POSE, text, pose=pose, covariance=covariance, confidence=1.0)

    # The model alone -------------------------------------------------------------------------

    def _talk(self, kind: AnswerType) -> Result:
        """The model's words, what is marked or detected measured and told to it before."""
        things: list[Object3D] = []
        if self._query.regions:
            try:
                things = [
                    thing for _ in self._query.regions for thing in self._finder.things("it")
                ]
            except NotVisibleError as unseen:
                self._steps.append(f"Not measured: {unseen}.")
        elif measures_help(self._query.question):
            things = self._finder.named(self._query.question)
        marks = self._query.marks
        measures = [
            _told(self._points, thing, marks[i].name if i < len(marks) else "")
            for i, thing in enumerate(things if self._points.metric else ())
        ]
        self._steps += measures
        text = self._say(*self._query.prompt(measures)).strip()
        self._steps.append(f"The model says: {text!r}.")
        if not self._points.metric and answer_parser.length(text) is not None:
            self._steps.append("Lengths in the model's words are not measured: no scale is known.")
        made = Result(AnswerType.TEXT, text, things=tuple(things))
        if kind == AnswerType.OBJECTS:
            made.kind, made.things = kind, tuple(things or self._finder.detected("thing"))
        return (
            made
            if kind in (AnswerType.TEXT, AnswerType.OBJECTS)
            else self._parsed(made, kind, text)
        )

    def _in_words(self, plan: Plan, kind: AnswerType, model_answer: str) -> Result:
        """The model's own answer where nothing could be measured."""
        if kind in PLACES:
            names = " and ".join(plan.things)
            raise Abstention(
                Reason.NOT_VISIBLE,
                f"no source shows where the {names} is; give a region, run a detector, or ask "
                "again from nearer",
            )
        if not model_answer:
            raise self._unheard
        self._steps.append("Nothing was measured; these are the model's words alone.")
        made = Result(kind, model_answer.strip())
        return made if kind == AnswerType.TEXT else self._parsed(made, kind, model_answer)

    def _parsed(self, made: Result, kind: AnswerType, text: str) -> Result:
        """The model's words as the value that was asked for; AMBIGUOUS where they hold none."""
        made.kind = kind
        if kind == AnswerType.YES_NO:
            said = answer_parser.yes_no(text)
            made.yes_no = None if said is None else said.value
        elif kind == AnswerType.NUMBER:
            said = self._quantity(text)
            made.number = said and Measure(said.value, float("nan"), said.unit)
            if said and said.unit == "m" and not self._points.metric:
                raise Abstention(Reason.NO_GEOMETRY, str(ScaleError("a length")))
        if made.yes_no is None and made.number is None:
            if answer_parser.says_absent(text):
                raise Abstention(Reason.NOT_VISIBLE, f"the model says: {text.strip()}")
            raise Abstention(
                Reason.AMBIGUOUS,
                f"the model's words hold no {kind.name.lower().replace('_', ' or ')}: "
                f"{' '.join(text.split())[:120]!r}; ask for TEXT, or more simply",
            )
        return made

    def _quantity(self, text: str) -> answer_parser.Quantity | None:
        plan = parse(self._query.question)
        if plan.ask is QuestionType.COUNT:
            return answer_parser.count(text)
        if plan.ask is QuestionType.HEADING:
            return answer_parser.angle(text)
        if plan.ask in (QuestionType.DISTANCE, QuestionType.SIZE, QuestionType.GAP):
            return answer_parser.length(text, default_unit="m")
        return answer_parser.length(text) or answer_parser.angle(text) or answer_parser.count(text)

    def _checked(self, made: Result) -> Result:
        """The answer, unless it is less sure than was asked for."""
        made.steps = self._steps
        if self._query.min_confidence > 0 and made.confidence < self._query.min_confidence:
            known = "not calibrated" if made.confidence < 0 else f"{made.confidence:.2f}"
            raise Abstention(
                Reason.AMBIGUOUS,
                f"the confidence is {known}, min_confidence is {self._query.min_confidence:g}; "
                "give a region or ask again from nearer",
            )
        return made


def _told(points: PointMap, thing: Object3D, mark: str) -> str:
    """What was measured of a thing as the model is told it."""
    named = f"The {thing.label} ({mark})" if mark else f"The {thing.label}"
    text = f"{named} is at {relations.distance(points, thing).value:.2f} meters"
    if np.isnan(thing.size).any():
        return f"{text}."
    return f"{text}, {thing.size[0]:.2f} meters wide and {thing.size[2]:.2f} high."


def _turned(thing: Object3D) -> np.ndarray:
    """The pose of a thing: its middle, x along its longer side."""
    c, s = math.cos(thing.yaw_rad), math.sin(thing.yaw_rad)
    pose = np.eye(4)
    pose[:2, :2] = [[c, -s], [s, c]]
    pose[:3, 3] = thing.centre
    return pose
