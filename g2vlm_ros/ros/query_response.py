# SPDX-License-Identifier: Apache-2.0
"""An answer, or a refusal, encoded into a response of SpatialQuery.

A result of AnswerSpatialQuery has the same fields.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, Vector3

from g2vlm_ros.msg import ImageRegion, SpatialObject
from g2vlm_ros.query.context import ViewSelection
from g2vlm_ros.query.object_measurement import Object3D, map_covariance
from g2vlm_ros.query.point_map import Region
from g2vlm_ros.query.question_plan import AnswerType
from g2vlm_ros.query.types import Result
from g2vlm_ros.ros.conversions import geometry
from g2vlm_ros.ros.question import Question
from g2vlm_ros.ros.service_errors import refuse

MAX_OBJECTS = 8
"""Of an answer; the others are left out."""


@dataclass
class Target:
    """The frame that positions are given in."""

    frame_id: str
    from_map: np.ndarray
    """float64 (4, 4)."""

    def pose(self, stamp_ns: int, pose: np.ndarray) -> PoseStamped:
        """A pose of the map in this frame, stamped."""
        return geometry.pose_stamped(
            geometry.header(stamp_ns, self.frame_id), self.from_map @ pose
        )

    def covariance(self, covariance: np.ndarray) -> np.ndarray:
        """(9,), row by row."""
        turn = self.from_map[:3, :3]
        return (turn @ covariance @ turn.T).ravel()


@dataclass(frozen=True)
class Answer:
    """A result, the views that it is of, the frame of its places, and when it was given."""

    result: Result
    selection: ViewSelection
    target: Target
    stamp_ns: int

    def pose(self) -> PoseStamped:
        """The result's place in the target frame; a point has the identity for orientation."""
        pose = self.result.pose
        if self.result.kind == AnswerType.POINT:
            pose = pose.copy()
            pose[:3, :3] = self.target.from_map[:3, :3].T
        return self.target.pose(self.selection.stamp_ns, pose)


@dataclass(frozen=True)
class Refusal:
    """Why there is no answer: an error code, a sentence with the remedy, and when it was said."""

    code: int
    sentence: str
    stamp_ns: int


def encode(question: Question, outcome: Answer | Refusal, model_version: str) -> Any:
    """The response to a question: its answer or refusal, its window, and how it came about."""
    response, progress = question.response_type(), question.progress
    kind = question.request.answer_kind
    response.answer_kind = kind if kind != AnswerType.AUTO else int(AnswerType.TEXT)
    response.number = response.scale_relative_std = math.nan
    response.confidence = -1.0
    if progress.selection is not None:
        _encode_window(progress.selection, outcome.stamp_ns, response)
    if isinstance(outcome, Answer):
        _encode_result(outcome, response)
        response.success = True
    else:
        refuse(response, outcome.code, outcome.sentence)
    response.reasoning = list(progress.steps)
    times_s = dict(progress.stage_times_s)  # the device's thread may still be adding to it
    response.stage_names, response.stage_times_s = list(times_s), list(times_s.values())
    response.model_version = model_version
    return response


def _encode_result(answer: Answer, response: Any) -> None:
    """Positions and objects only where lengths are metres."""
    result, selection, target = answer.result, answer.selection, answer.target
    response.answer, response.answer_kind = result.text, int(result.kind)
    response.yes_no = bool(result.yes_no)
    if result.number is not None:
        response.number, response.unit = float(result.number.value), result.number.unit
    if result.pose is not None:
        response.pose = answer.pose()
        response.position_covariance = target.covariance(result.covariance)
    response.confidence = float(result.confidence)
    response.measured = result.measured
    if selection.points.metric:
        things = result.things[:MAX_OBJECTS]
        response.objects = [_object(thing, selection, target) for thing in things]
    for thing in result.things:
        response.evidence += [_evidence(region, selection) for region in thing.regions]
    if result.remembered is not None:
        response.remembered = True
        response.stamp = geometry.stamp(result.remembered.last_seen_ns)
        response.age_s = (answer.stamp_ns - result.remembered.last_seen_ns) * 1e-9


def _encode_window(selection: ViewSelection, stamp_ns: int, response: Any) -> None:
    """Which window an answer or a refusal is about, and what its lengths mean."""
    placement = selection.update.placement
    response.scale_state = int(placement.scale.state)
    response.scale_relative_std = float(placement.scale.relative_std)
    response.stamp = geometry.stamp(selection.stamp_ns)
    response.age_s = (stamp_ns - selection.stamp_ns) * 1e-9
    response.window_id = selection.update.window.id


def _evidence(region: Region, selection: ViewSelection) -> ImageRegion:
    """Where something was seen, in pixels of the camera image."""
    frame = selection.frames[region.view]
    u0, v0, u1, v1 = selection.corners(region)
    return ImageRegion(
        kind=ImageRegion.PIXEL if region.is_pixel else ImageRegion.BOX,
        camera=frame.camera,
        stamp=geometry.stamp(frame.stamp_ns),
        u_px=(u0 + u1) / 2,
        v_px=(v0 + v1) / 2,
        width_px=u1 - u0,
        height_px=v1 - v0,
    )


def _object(thing: Object3D, selection: ViewSelection, target: Target) -> SpatialObject:
    x, y, z = (0.0 if math.isnan(side) else float(side) for side in thing.size)
    return SpatialObject(
        label=thing.label,
        pose=target.pose(selection.stamp_ns, thing.pose),
        size=Vector3(x=x, y=y, z=z),
        position_covariance=target.covariance(map_covariance(selection.points, thing)),
        confidence=float(thing.trust),
        evidence=[_evidence(region, selection) for region in thing.regions],
    )
