# SPDX-License-Identifier: Apache-2.0
"""Answers a question in steps: find the objects, measure them, build the answer; each is a step.

Numbers come from the point map where it has them. The model is asked as well: where both answer
and disagree, the answer says so and its confidence falls. Where the answer is not known it is not
guessed: `Abstention`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from g2vlm_ros.query import (
    answer_parser,
    map_object,
    memory_answers,
    prompts,
    recall,
    relations,
)
from g2vlm_ros.query.answer_builders import AnswerBuilder
from g2vlm_ros.query.grounding import Finder, NotVisibleError, OutOfTimeError, certainty
from g2vlm_ros.query.object_measurement import Object3D, map_covariance
from g2vlm_ros.query.point_map import PointMap, Region
from g2vlm_ros.query.point_parser import Pointed
from g2vlm_ros.query.question_parser import measures_help
from g2vlm_ros.query.question_plan import NEEDS_METRES, VIEWER, AnswerType, QuestionType
from g2vlm_ros.query.relations import Measure, ScaleError
from g2vlm_ros.query.types import Abstention, Query, Reason, Result

PLACES = (AnswerType.POINT, AnswerType.POSE, AnswerType.OBJECTS)
AMONG_SEVERAL = (QuestionType.COUNT, QuestionType.EXISTS, QuestionType.NEAREST)
"""Questions about all objects of a kind, as a detector shows them."""
STAND_OFF_M = 0.7
"""Where to stand before an object: so far from its surface."""
NEAR_SIDE = 0.05
"""Share of an object's points that may lie nearer than its surface: they are noise."""


class Answerer:
    """Answers one question about one window.

    ask_model(prompt, marks): what the model answers; raises OutOfTimeError. to_model: a Region of
    what the model pointed at; itself None for a model that never learned to point. points: None
    only while the window has no geometry. steps: gets one sentence for each step that is done.
    """

    def __init__(
        self,
        points: PointMap,
        query: Query,
        ask_model: Callable[[str, Sequence[prompts.Mark]], str],
        to_model: Callable[[Pointed], Region | None] | None,
        steps: list[str] | None = None,
    ):
        self._points, self._query, self._ask_model = points, query, ask_model
        self._plan = query.plan
        self._steps = [] if steps is None else steps
        self._silence = OutOfTimeError
        self._builder = AnswerBuilder(points, query, ask_model, self._steps)
        self._finder = Finder(
            points, query, lambda prompt: ask_model(prompt, ()), to_model, self._steps.append
        )

    def answer(self) -> Result:
        """The answer; raises Abstention, and OutOfTimeError where the model alone could tell."""
        kind = self._kind()
        question_type = self._plan.question_type
        needs_metres = question_type in NEEDS_METRES and not self._points.metric
        if needs_metres and kind != AnswerType.TEXT:
            raise Abstention(Reason.NO_GEOMETRY, str(ScaleError("a length or place")))
        if question_type is QuestionType.TALK or needs_metres:
            return self._checked(self._talk(kind))
        if question_type is QuestionType.MOTION:
            return self._checked(self._motion())
        from_memory = memory_answers.answer(self._query, kind, self._steps)
        if from_memory is not None:
            return self._checked(from_memory)
        if question_type is QuestionType.CONTENTS:
            return self._checked(self._talk(kind))
        model_answer = self._model_answer()
        self._finder.in_words = self._presence(kind, model_answer)
        try:
            result = self._measured(kind, model_answer)
        except NotVisibleError as error:
            result = self._absent(error)
        if result is None:
            result = self._in_words(kind, model_answer)
        return self._checked(result)

    # Steps -----------------------------------------------------------------------------------

    def _kind(self) -> AnswerType:
        """What to answer with; INVALID_REQUEST where the question asks for something else."""
        kind, plan = self._query.kind, self._plan
        if kind == AnswerType.AUTO:
            return plan.kind
        if kind in (plan.kind, AnswerType.TEXT):
            return kind
        if plan.question_type is QuestionType.TALK and kind not in PLACES:
            return kind
        has_a_place = bool(plan.things) or plan.question_type is QuestionType.MOTION
        if kind in PLACES and has_a_place:
            return kind
        if kind == AnswerType.OBJECTS and (self._query.detections or self._query.regions):
            return kind
        raise Abstention(
            Reason.INVALID_REQUEST,
            f"answer_kind {kind.name} does not fit a question for {plan.question_type.value} "
            f"({plan.kind.name}); ask for AUTO, TEXT or {plan.kind.name}",
        )

    def _model_answer(self) -> str:
        """What the model says by itself; empty where it was out of time."""
        try:
            text = self._ask_model(*self._query.prompt())
        except OutOfTimeError as error:
            if not self._finder.shows(self._plan.things):
                raise
            self._silence = type(error)
            self._steps.append(f"{error.reason}.")
            return ""
        self._steps.append(f"The model alone says: {text.strip()!r}.")
        may_be_absent = self._plan.question_type in (QuestionType.EXISTS, QuestionType.COUNT)
        if may_be_absent or self._finder.shows(self._plan.things[:1]):
            return text
        if answer_parser.says_absent(text):
            raise Abstention(
                Reason.NOT_VISIBLE, f"the model says: {text.strip()} Look around or ask again"
            )
        return text

    def _presence(self, kind: AnswerType, text: str) -> bool | None:
        """Whether the model's words answer as of a thing that the views show.

        False where they say that there is none; None where they tell neither, where a place is
        asked for, or a confidence, which words do not have.
        """
        plan = self._plan
        if not text:
            return None
        if answer_parser.says_absent(text):
            return False if len(plan.things) == 1 else None
        if kind in PLACES or self._query.min_confidence > 0:
            return None
        if plan.question_type in (QuestionType.WHERE, QuestionType.SIDE):
            return answer_parser.directions(text) is not None or None
        try:
            result = self._parsed(Result(kind, text), kind, text)
        except Abstention:
            return None
        return result.yes_no if plan.question_type is QuestionType.EXISTS else True

    def _absent(self, error: NotVisibleError) -> Result:
        """The answer where what is asked about is in no view."""
        if self._plan.question_type is QuestionType.EXISTS:
            return Result(AnswerType.YES_NO, "No.", yes_no=False)
        if self._plan.question_type is QuestionType.COUNT:
            return Result(AnswerType.NUMBER, "None.", number=Measure(0.0, 0.0, ""))
        raise Abstention(Reason.NOT_VISIBLE, f"{error}; look around or ask again") from None

    def _one(self, phrase: str) -> list[Object3D]:
        """The one object that a phrase means, or none; AMBIGUOUS where there are several."""
        candidates = self._finder.things(phrase)
        if self._plan.question_type is QuestionType.APPROACH and self._plan.word == "nearest":
            candidates = sorted(candidates, key=self._distance_m)[:1]
        if len(candidates) > 1:
            ids = {each.memory_id for each in candidates}
            remembered = [each for each in self._query.memory if each.id in ids]
            if remembered:
                places = recall.whereabouts(remembered, self._query.now_ns)
                raise Abstention(
                    Reason.AMBIGUOUS,
                    f"{len(remembered)} things that are remembered fit '{phrase}': {places}; say "
                    "which by its name, or ask with a region",
                )
            raise Abstention(
                Reason.AMBIGUOUS,
                f"{len(candidates)} things fit '{phrase}'; say which by its colour or place, or "
                "give a region",
            )
        return candidates

    def _distance_m(self, thing: Object3D) -> float:
        """From the newest camera to the middle of a thing."""
        return float(np.linalg.norm(thing.centre - self._points.viewer_pose[:3, 3]))

    def _measured(self, kind: AnswerType, model_answer: str) -> Result | None:
        """The answer by geometry, or None where an object was not found."""
        several = self._plan.question_type in AMONG_SEVERAL and kind not in PLACES
        things = self._all_of_a_kind() if several else self._named(kind)
        if not things:
            return None
        if kind in PLACES:
            approach = self._plan.question_type is QuestionType.APPROACH
            return self._place(things, kind, approach)
        try:
            return self._builder.build(self._plan, things, model_answer)
        except ScaleError as error:
            raise Abstention(Reason.NO_GEOMETRY, str(error)) from None
        except ValueError as error:
            raise Abstention(Reason.INVALID_REQUEST, str(error)) from None

    def _named(self, kind: AnswerType) -> list[Object3D]:
        """The objects that the question names, in order; empty where one was not found."""
        things: list[Object3D] = []
        for phrase in self._plan.things:
            if phrase == VIEWER:
                continue
            several = kind == AnswerType.OBJECTS
            named = self._finder.things(phrase) if several else self._one(phrase)
            if not named:
                return []
            things += named
        return things

    def _all_of_a_kind(self) -> list[Object3D]:
        """The objects that a detector sees of the kind asked for; empty where it sees none.

        For the nearest to an object, that object comes last.
        """
        phrase = self._plan.things[0]
        claim = self._plan.question_type in (QuestionType.EXISTS, QuestionType.COUNT)
        objects = self._finder.detected(phrase, certain=claim)
        if self._plan.question_type is QuestionType.EXISTS:
            if self._plan.word == "in_view":
                return objects
            return objects or self._finder.remembered(phrase)
        if self._plan.question_type is QuestionType.COUNT:
            return objects
        if self._plan.things[1] == VIEWER:
            return [each for each in objects if self._in_newest(each)] or objects
        anchors = self._one(self._plan.things[1])
        if not anchors:
            return []
        others = [each for each in objects if each.label != anchors[0].label]
        return [*others, anchors[0]] if others else []

    def _in_newest(self, thing: Object3D) -> bool:
        return any(region.view == self._points.viewer for region in thing.regions)

    # Places ----------------------------------------------------------------------------------

    def _place(
        self, things: Sequence[Object3D], kind: AnswerType, approach: bool = False
    ) -> Result:
        thing = things[0]
        pose = np.eye(4)
        pose[:3, 3] = thing.centre
        if kind == AnswerType.POSE:
            pose = self._stand(thing) if approach else thing.pose
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
            measured=True,
        )

    def _stand(self, thing: Object3D) -> np.ndarray:
        """A pose on the floor before a thing, x towards it, on the side of the newest camera."""
        here = self._points.viewer_pose[:3, 3]
        away = (thing.centre - here)[:2]
        front = away / max(float(np.linalg.norm(away)), 1e-6)
        surface = float(np.quantile((thing.points - here)[:, :2] @ front, NEAR_SIDE))
        floor = self._points.floor_z
        pose = np.eye(4)
        pose[:2, 0], pose[:2, 1] = front, (-front[1], front[0])
        pose[:2, 3] = here[:2] + max(0.0, surface - STAND_OFF_M) * front
        pose[2, 3] = floor if math.isfinite(floor) else here[2]
        return pose

    def _motion(self) -> Result:
        plan = self._plan
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
        return Result(
            AnswerType.POSE, text, pose=pose, covariance=covariance, confidence=1.0, measured=True
        )

    # The model alone -------------------------------------------------------------------------

    def _talk(self, kind: AnswerType) -> Result:
        """The model's words, after the measures of what is marked or detected."""
        things: list[Object3D] = []
        if self._query.regions:
            try:
                for _ in self._query.regions:
                    things += self._finder.things("it")
            except NotVisibleError as error:
                things = []
                self._steps.append(f"Not measured: {error}.")
        elif measures_help(self._query.question):
            things = self._finder.named(self._query.question)
        measures = []
        if self._points.metric:
            names = [mark.name for mark in self._query.marks]
            for thing, mark in itertools.zip_longest(things, names[: len(things)], fillvalue=""):
                measures.append(_measure_sentence(self._points, thing, mark))
        self._steps += measures
        text = self._ask_model(*self._query.prompt(measures)).strip()
        self._steps.append(f"The model says: {text!r}.")
        if not self._points.metric and answer_parser.length(text) is not None:
            self._steps.append("Lengths in the model's words are not measured: no scale is known.")
        result = Result(AnswerType.TEXT, text, things=tuple(things))
        if kind == AnswerType.TEXT:
            return result
        if kind == AnswerType.OBJECTS:
            result.kind = kind
            result.things = tuple(things or self._finder.detected("thing"))
            return result
        return self._parsed(result, kind, text)

    def _in_words(self, kind: AnswerType, model_answer: str) -> Result:
        """The model's own answer where nothing could be measured."""
        if kind in PLACES:
            names = " and ".join(self._plan.things)
            raise Abstention(
                Reason.NOT_VISIBLE,
                f"no source shows where the {names} is; give a region, run a detector, or ask "
                "again from nearer",
            )
        if not model_answer:
            raise self._silence
        self._steps.append("Nothing was measured; these are the model's words alone.")
        result = Result(kind, model_answer.strip())
        return result if kind == AnswerType.TEXT else self._parsed(result, kind, model_answer)

    def _parsed(self, result: Result, kind: AnswerType, text: str) -> Result:
        """The model's words as the value that was asked for; AMBIGUOUS where they hold none."""
        result.kind = kind
        if kind == AnswerType.YES_NO:
            answer = answer_parser.yes_no(text)
            result.yes_no = None if answer is None else answer.value
        elif kind == AnswerType.NUMBER:
            quantity = self._quantity(text)
            if quantity is not None and quantity.unit == "m" and not self._points.metric:
                raise Abstention(Reason.NO_GEOMETRY, str(ScaleError("a length")))
            if quantity is not None:
                result.number = Measure(quantity.value, math.nan, quantity.unit)
        if result.yes_no is None and result.number is None:
            if answer_parser.says_absent(text):
                raise Abstention(Reason.NOT_VISIBLE, f"the model says: {text.strip()}")
            raise Abstention(
                Reason.AMBIGUOUS,
                f"the model's words hold no {kind.name.lower().replace('_', ' or ')}: "
                f"{' '.join(text.split())[:120]!r}; ask for TEXT, or more simply",
            )
        return result

    def _quantity(self, text: str) -> answer_parser.Quantity | None:
        question_type = self._plan.question_type
        if question_type is QuestionType.COUNT:
            return answer_parser.count(text)
        if question_type is QuestionType.HEADING:
            return answer_parser.angle(text)
        if question_type in (QuestionType.DISTANCE, QuestionType.SIZE, QuestionType.GAP):
            return answer_parser.length(text, default_unit="m")
        return answer_parser.length(text) or answer_parser.angle(text) or answer_parser.count(text)

    def _checked(self, result: Result) -> Result:
        """The answer with what it rests on; AMBIGUOUS where it is less sure than was asked for."""
        least = self._query.min_confidence
        if least > 0 and result.confidence < least:
            sure = "not calibrated" if result.confidence < 0 else f"{result.confidence:.2f}"
            raise Abstention(
                Reason.AMBIGUOUS,
                f"the confidence is {sure}, min_confidence is {least:g}; "
                "give a region or ask again from nearer",
            )
        result.steps = tuple(self._steps)
        ids = {thing.memory_id for thing in result.things} - {0}
        objects = [each for each in self._query.memory if each.id in ids]
        if objects:
            result.remembered = min(objects, key=lambda each: each.last_seen_ns)
            age = map_object.age_in_words(result.remembered, self._query.now_ns)
            here = recall.in_view(self._points, result.remembered)
            where = "From memory, its place is in view" if here else "In no view now"
            result.text += f" {where}; the {result.remembered.label} was seen {age} ago."
        return result


def _measure_sentence(points: PointMap, thing: Object3D, mark: str) -> str:
    """What was measured of an object, as the model is given it."""
    name = f"The {thing.label} ({mark})" if mark else f"The {thing.label}"
    text = f"{name} is at {relations.distance(points, thing).value:.2f} meters"
    if np.isnan(thing.size).any():
        return f"{text}."
    return f"{text}, {thing.size[0]:.2f} meters wide and {thing.size[2]:.2f} high."
