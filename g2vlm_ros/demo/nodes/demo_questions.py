# SPDX-License-Identifier: Apache-2.0
"""Asks the perception node about a simulated home while the robot walks, and knows the answers.

Questions go to ~/query as any planner's would. For questions that geometry answers, a box around
each thing that is asked about stands in for the detector of a real robot; the number in the answer
is the node's own measurement. What only words can answer is asked without boxes, for as long as
the checkpoint speaks.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from g2vlm_ros.msg import ImageRegion
from g2vlm_ros.srv import SpatialQuery
from sensor_msgs.msg import Image

from g2vlm_ros.demo.nodes.sim_camera_node import Moment
from g2vlm_ros.demo.sim.home import Home
from g2vlm_ros.demo.sim.question_metrics import (
    LENGTH_KINDS,
    Baselines,
    bound_holds,
    calibration_error,
    calibration_table,
    correct,
    training_questions,
)
from g2vlm_ros.demo.sim.questions import QuestionAnswer, Seen, VisibleFacts, ask, shares, truth
from g2vlm_ros.ros.client.client import AnswerImages, SpatialClient, UnreachableError
from g2vlm_ros.ros.conversions import geometry

MEASURED = ("distance", "size", "closer", "beside")
"""What geometry answers about things that somebody points at."""
WORDS = ("list", "colour", "count", "nearest", "direction", "exists", "absent")
"""What the model answers by itself; "absent" takes a thing for granted that is not there."""
MIN_SHARE = 0.01
"""Of the view's pixels; smaller things are not asked about."""
PAUSE_S = 1.0
PATIENCE_S = 5.0
TRAINING_HOMES = 48
"""From which the baseline learns that answers without looking."""


@dataclass(frozen=True)
class Asked:
    """One question with its answers."""

    kind: str
    question: str
    truth: str
    answer: str
    """Of the node, or its error in words."""
    verdict: str
    """right, wrong, or bound: "at least 0.8 m", said of a thing that the image cuts, and true."""
    confidence: float
    """0..1; -1 = not calibrated."""
    latency_s: float


class DemoQuestions(threading.Thread):
    """Asks until told to stop; `asked` grows."""

    def __init__(
        self,
        home: Home,
        moments: dict[int, Moment],
        views_ns: Callable[[], Sequence[int]],
        camera: str = "camera",
    ):
        """views_ns: stamps of the views of the newest window, oldest first."""
        super().__init__(name="demo_questions", daemon=True)
        self.asked: list[Asked] = []
        self.picture: Image | None = None
        """What the surest right answer rests on."""
        self.speaks = True
        """Whether the checkpoint answers in words, as far as is known."""
        self._home, self._moments, self._views_ns = home, moments, views_ns
        self._camera = camera
        self._rng = np.random.default_rng(home.seed)
        self._best = (0, 0.0)
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Finish the running question and end."""
        self._stopping.set()
        self.join()

    def run(self) -> None:
        """Ask about the newest window, again and again: one measure, then one thing in words."""
        with SpatialClient() as robot, contextlib.closing(robot.pictures()) as pictures:
            before: Sequence[int] = ()
            while not self._stopping.wait(PAUSE_S):
                views = self._views_ns()
                if not views or views == before or any(v not in self._moments for v in views):
                    continue
                before = views
                facts = self._facts(views)
                for kinds in (MEASURED, WORDS) if self.speaks else (MEASURED,):
                    qa = self._question(facts, kinds)
                    if qa is not None:
                        self._ask(robot, pictures, qa, facts, views[-1])

    def _ask(
        self,
        robot: SpatialClient,
        pictures: AnswerImages,
        qa: QuestionAnswer,
        facts: VisibleFacts,
        stamp_ns: int,
    ) -> None:
        things = named(facts, qa.question) if qa.kind in MEASURED else []
        regions = [self._region(thing, stamp_ns) for thing in things]
        try:
            response = robot.ask(
                qa.question, regions=regions, stamp=geometry.stamp(stamp_ns), max_wait_s=PATIENCE_S
            )
        except UnreachableError:
            return
        if response.error_code == SpatialQuery.Response.NO_MODEL and qa.kind in WORDS:
            self.speaks = False
            return
        answer = response.answer if response.success else response.error_msg
        judged = verdict(qa, response)
        latency_s = float(sum(response.stage_times_s))
        self.asked.append(
            Asked(qa.kind, qa.question, qa.answer, answer, judged, response.confidence, latency_s)
        )
        rank = len(things), response.confidence
        if judged == "right" and rank > self._best:
            with contextlib.suppress(UnreachableError):
                self.picture, self._best = pictures.of(response), rank

    def _facts(self, views: Sequence[int]) -> VisibleFacts:
        moments = [self._moments[stamp_ns] for stamp_ns in views]
        return truth(
            self._home,
            shares(np.stack([m.items for m in moments])),
            np.stack([m.world_from_camera for m in moments]),
            np.array([m.time_s for m in moments]),
        )

    def _question(self, facts: VisibleFacts, kinds: Sequence[str]) -> QuestionAnswer | None:
        """A question not asked before, of the kind asked least; measured things are well seen."""
        former = {each.question for each in self.asked}
        counts = Counter(each.kind for each in self.asked)
        for qa in sorted(ask(facts, self._rng, 36), key=lambda qa: counts[qa.kind]):
            if qa.kind not in kinds or qa.question in former:
                continue
            things = named(facts, qa.question)
            if qa.kind in WORDS or (things and _well_seen(things)):
                return qa
        return None

    def _region(self, thing: Seen, stamp_ns: int) -> ImageRegion:
        rows, columns = np.nonzero(self._moments[stamp_ns].items == thing.item.id)
        (top, bottom), (left, right) = ((x.min(), x.max()) for x in (rows, columns))
        return ImageRegion(
            kind=ImageRegion.BOX,
            camera=self._camera,
            stamp=geometry.stamp(stamp_ns),
            u_px=(left + right) / 2,
            v_px=(top + bottom) / 2,
            width_px=float(right - left + 1),
            height_px=float(bottom - top + 1),
        )


def named(facts: VisibleFacts, question: str) -> list[Seen]:
    """The things that a question names, in its order."""
    names = []
    for thing in facts.askable():
        at = re.search(rf"\b{re.escape(thing.phrase)}\b", question)
        if at:
            names.append((at.start(), thing))
    return [thing for _, thing in sorted(names, key=lambda pair: pair[0])]


def _well_seen(things: Sequence[Seen]) -> bool:
    """Whether the newest view shows enough of each to measure it."""
    return all(thing.share[-1] >= MIN_SHARE for thing in things)


def verdict(qa: QuestionAnswer, response: SpatialQuery.Response) -> str:
    """right, wrong, or bound where the node only says "at least" and that is true.

    The truth is that of the newest views. A thing that is not there is answered rightly by
    NOT_VISIBLE, by saying so, or from memory where that says that it is in no view.
    """
    if response.success and _in_no_view(response) and qa.kind == "absent":
        return "right"
    if not response.success:
        unseen = response.error_code == SpatialQuery.Response.NOT_VISIBLE
        return "right" if qa.kind == "absent" and unseen else "wrong"
    value = _said(qa, response)
    if qa.kind in LENGTH_KINDS and " at least " in response.answer:
        return "bound" if bound_holds(value, qa.answer) else "wrong"
    return "right" if correct(qa.kind, value, qa.answer) else "wrong"


def _in_no_view(response: SpatialQuery.Response) -> bool:
    """Whether the answer says that the thing is remembered from elsewhere."""
    return response.remembered and "In no view now" in response.answer


def _said(qa: QuestionAnswer, response: SpatialQuery.Response) -> str:
    """The node's answer in the words of the simulation."""
    if qa.kind in LENGTH_KINDS:
        return f"{response.number:.2f} metres"
    if qa.kind == "closer":
        return response.answer.split(" is closer than ")[0] + "."
    if qa.kind == "beside":
        return "Left." if " is left of " in response.answer else "Right."
    if qa.kind == "direction":
        way = re.search(
            r"\b(?:to your (?:left|right)|(?:in front of|behind) you)\b", response.answer
        )
        return f"It is {way[0]}." if way else response.answer
    if qa.kind == "count":
        return f"{response.number:.0f}."
    if qa.kind == "exists":
        return "Yes." if response.yes_no and not _in_no_view(response) else "No."
    return response.answer


def summary(
    records: Sequence[Asked], homes: int = TRAINING_HOMES, views: int = 2
) -> dict[str, Any]:
    """Accuracy by kind beside the best answer that never looks, and how far confidence is right.

    A bound is neither right nor wrong: it is counted by itself. The blind answers are learnt from
    that many homes of the training split. Calibration is over the answers with a confidence.
    """
    blind = Baselines(training_questions(homes, views))
    kinds = {}
    for kind in [k for k in (*MEASURED, *WORDS) if any(a.kind == k for a in records)]:
        rows = [a for a in records if a.kind == kind]
        guesses = [correct(kind, blind.blind(kind, a.question), a.truth) for a in rows]
        kinds[kind] = {
            "asked": len(rows),
            "right": sum(a.verdict == "right" for a in rows),
            "bounds": sum(a.verdict == "bound" for a in rows),
            "blind": sum(guesses),
        }
    sure = [
        (a.confidence, a.verdict == "right")
        for a in records
        if a.confidence >= 0 and a.verdict != "bound"
    ]
    scores: dict[str, Any] = {"by_kind": kinds}
    if sure:
        scores |= {
            "calibration_error": round(calibration_error(sure), 3),
            "calibration": calibration_table(sure),
        }
    return scores
