# SPDX-License-Identifier: Apache-2.0
"""What is asked and what comes out: the records of answering, and why there may be no answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum

import numpy as np

from g2vlm_ros.query import prompts
from g2vlm_ros.query.map_object import MapObject
from g2vlm_ros.query.object_measurement import Object3D
from g2vlm_ros.query.point_map import Region
from g2vlm_ros.query.question_parser import parse
from g2vlm_ros.query.question_plan import AnswerType, Plan
from g2vlm_ros.query.relations import Measure

UNCALIBRATED = -1.0


class ReferenceFrame(IntEnum):
    """What "left of" refers to; values of SpatialQuery."""

    VIEWER = 0
    OBJECT = 1
    WORLD = 2


class Reason(Enum):
    """Why there is no answer; the names are error codes of SpatialQuery."""

    NO_GEOMETRY = "NO_GEOMETRY"
    NOT_VISIBLE = "NOT_VISIBLE"
    AMBIGUOUS = "AMBIGUOUS"
    INVALID_REQUEST = "INVALID_REQUEST"
    TIMEOUT = "TIMEOUT"


class Abstention(Exception):  # noqa: N818 - it is no error to know one's bounds
    """No answer, and one sentence with the remedy."""

    def __init__(self, reason: Reason, sentence: str):
        super().__init__(sentence)
        self.reason = reason


@dataclass(frozen=True)
class Detection:
    """A labelled box of a detector, in pixels at model size."""

    region: Region
    label: str
    score: float
    """0..1."""


@dataclass(frozen=True)
class Query:
    """One question, decoded: what is asked, and what the request shows with it."""

    question: str
    kind: AnswerType = AnswerType.AUTO
    reference: ReferenceFrame = ReferenceFrame.VIEWER
    regions: tuple[Region, ...] = ()
    detections: tuple[Detection, ...] = ()
    marks: tuple[prompts.Mark, ...] = ()
    """The regions as they are drawn for the model."""
    landmarks: tuple[prompts.Reference, ...] = ()
    """Places of known distance that are drawn beside the marks."""
    target_from_map: np.ndarray | None = None
    """For WORLD; None = the map's own axes."""
    robot_width_m: float = 0.0
    """0 = unknown."""
    min_confidence: float = 0.0
    plan: Plan | None = None
    """What has to be found and measured; None = parsed from the words."""
    memory: tuple[MapObject, ...] = ()
    """What is remembered and may stand in for an object that is in no view."""
    now_ns: int = 0
    """When it is asked, to say how long ago something was seen."""

    def __post_init__(self) -> None:
        if self.plan is None:
            object.__setattr__(self, "plan", parse(self.question))

    def prompt(self, measures: Sequence[str] = ()) -> tuple[str, tuple[prompts.Mark, ...]]:
        """The question for the model after what was measured, and the marks to draw.

        Marks are drawn, with a place of known distance, where nothing else says what is meant: of
        a pixel, and of "this". A box around a thing that the question names needs none.
        """
        text, marks = self.question, ()
        if prompts.needs_marks(text, self.marks):
            text = prompts.about_marks(text, self.marks, self.landmarks)
            marks = (*self.marks, *(reference.mark for reference in self.landmarks))
        return prompts.with_measures(text, measures), marks


@dataclass
class Result:
    """An answer with where it comes from."""

    kind: AnswerType
    text: str
    yes_no: bool | None = None
    number: Measure | None = None
    """A count has the unit ""."""
    pose: np.ndarray | None = None
    """float64 (4, 4) in the map."""
    covariance: np.ndarray | None = None
    """float64 (3, 3) of its position."""
    things: tuple[Object3D, ...] = ()
    confidence: float = UNCALIBRATED
    """0..1; UNCALIBRATED where only the model's words stand behind it."""
    measured: bool = False
    """Whether the number, place, yes or no rests on geometry."""
    steps: tuple[str, ...] = ()
    """What was done, one sentence each."""
    remembered: MapObject | None = None
    """The thing of the object memory that the answer rests on, in no view now."""
