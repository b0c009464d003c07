"""Asks the perception node about a simulated home while the robot walks, and knows the answers.

Questions go to ~/query as any planner's would. A box around each thing that is asked about stands
in for the detector of a real robot; the number in the answer is the node's own measurement.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from g2vlm_ros.msg import ImageRegion
from g2vlm_ros.ros import convert
from g2vlm_ros.ros.client import SpatialClient, UnreachableError
from g2vlm_ros.ros.sim_camera import Moment
from g2vlm_ros.sim.home import Home
from g2vlm_ros.sim.questions import QuestionAnswer, Seen, Truth, ask, shares, truth
from g2vlm_ros.sim.scoring import LENGTH_KINDS, correct
from g2vlm_ros.srv import SpatialQuery

KINDS = ("distance", "size", "closer", "beside")
"""What geometry answers about things that somebody points at."""
LEAST_SHARE = 0.01
"""Of the view's pixels; smaller things are not asked about."""
PAUSE_S = 1.0
PATIENCE_S = 5.0


@dataclass(frozen=True)
class Asked:
    """One question with its answers."""

    kind: str
    question: str
    truth: str
    answer: str
    """Of the node, or its error in words."""
    right: bool
    confidence: float
    latency_s: float


class Interview(threading.Thread):
    """Asks until told to stop; `asked` grows."""

    def __init__(
        self, home: Home, moments: dict[int, Moment], newest_ns: Callable[[], int | None],
        camera: str = "camera",
    ):  # fmt: skip
        """newest_ns: stamp of the newest view that a window was made of."""
        super().__init__(name="interview", daemon=True)
        self.asked: list[Asked] = []
        self._home, self._moments, self._newest_ns = home, moments, newest_ns
        self._camera = camera
        self._rng = np.random.default_rng(home.seed)
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Finish the running question and end."""
        self._stopping.set()
        self.join()

    def run(self) -> None:
        """Ask about the newest view, again and again."""
        with SpatialClient() as robot:
            before_ns = None
            while not self._stopping.wait(PAUSE_S):
                stamp_ns = self._newest_ns()
                if stamp_ns == before_ns or stamp_ns not in self._moments:
                    continue
                before_ns = stamp_ns
                self._ask(robot, stamp_ns, self._moments[stamp_ns])

    def _ask(self, robot: SpatialClient, stamp_ns: int, moment: Moment) -> None:
        chosen = self._question(moment)
        if chosen is None:
            return
        qa, things = chosen
        regions = [self._region(thing, stamp_ns, moment) for thing in things]
        try:
            response = robot.ask(
                qa.question, regions=regions, stamp=convert.stamp(stamp_ns), max_wait_s=PATIENCE_S
            )
        except UnreachableError:
            return
        answer = response.answer if response.success else response.error_msg
        right = response.success and _right(qa, response)
        latency_s = float(sum(response.stage_times_s))
        self.asked.append(
            Asked(qa.kind, qa.question, qa.answer, answer, right, response.confidence, latency_s)
        )

    def _question(self, moment: Moment) -> tuple[QuestionAnswer, list[Seen]] | None:
        """A question not asked before about things that the view shows well."""
        facts = truth(
            self._home, shares(moment.items[None]), moment.world_from_camera[None],
            np.array([moment.time_s]),
        )  # fmt: skip
        done = {asked.question for asked in self.asked}
        counts = {kind: sum(a.kind == kind for a in self.asked) for kind in KINDS}
        for qa in sorted(ask(facts, self._rng, 36), key=lambda qa: counts.get(qa.kind, 0)):
            things = named(facts, qa.question)
            shown = all(thing.share[-1] >= LEAST_SHARE for thing in things)
            if qa.kind in KINDS and qa.question not in done and things and shown:
                return qa, things
        return None

    def _region(self, thing: Seen, stamp_ns: int, moment: Moment) -> ImageRegion:
        rows, columns = np.nonzero(moment.items == thing.item.id)
        (top, bottom), (left, right) = ((x.min(), x.max()) for x in (rows, columns))
        return ImageRegion(
            kind=ImageRegion.BOX, camera=self._camera, stamp=convert.stamp(stamp_ns),
            u_px=(left + right) / 2, v_px=(top + bottom) / 2,
            width_px=float(right - left + 1), height_px=float(bottom - top + 1),
        )  # fmt: skip


def named(facts: Truth, question: str) -> list[Seen]:
    """The things that a question names, in its order."""
    found = []
    for thing in facts.askable():
        at = re.search(rf"\b{re.escape(thing.phrase)}\b", question)
        if at:
            found.append((at.start(), thing))
    return [thing for _, thing in sorted(found, key=lambda pair: pair[0])]


def _right(qa: QuestionAnswer, response: SpatialQuery.Response) -> bool:
    """Whether the node's answer, in the words of the simulation, is the true one."""
    if qa.kind in LENGTH_KINDS:
        said = f"{response.number:.2f} metres"
    elif qa.kind == "closer":
        said = response.answer.split(" is closer than ")[0] + "."
    else:
        said = "Left." if " is left of " in response.answer else "Right."
    return correct(qa.kind, said, qa.answer)
