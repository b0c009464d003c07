# SPDX-License-Identifier: Apache-2.0
"""SpatialQuery: a request decoded to a `Query`, an answer or refusal encoded into a response.

A goal of AnswerSpatialQuery has the fields of a request, its result those of a response.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, Vector3

from g2vlm_ros.msg import ImageRegion, SpatialObject
from g2vlm_ros.query import question_parser, request_forms
from g2vlm_ros.query.context import ViewSelection
from g2vlm_ros.query.map_object import MapObject
from g2vlm_ros.query.object_measurement import Object3D, landmark, map_covariance
from g2vlm_ros.query.point_map import Region
from g2vlm_ros.query.prompts import Mark, Reference
from g2vlm_ros.query.question_plan import AnswerType, Plan
from g2vlm_ros.query.request_forms import REQUEST_FORMS
from g2vlm_ros.query.types import Detection, Query, ReferenceFrame, Result
from g2vlm_ros.ros.conversions import geometry
from g2vlm_ros.ros.question import Question
from g2vlm_ros.ros.service_errors import Codes, RequestError, invalid, refuse

MAX_CHARACTERS = 512
MAX_OBJECTS = 8
MAX_EXAMPLES, MAX_REGIONS, MAX_TARGETS = 4, 8, 3
MARK_COLOURS = ("blue", "green", "yellow", "red")
"""Of what is asked about, in order; the last is kept for a known place while it is free."""


def check(request: Any, cameras: Sequence[str], now_ns: int) -> None:
    """Raise RequestError for what can be refused without a look at a window."""
    if request.question_type:
        _check_targets(request)
    elif len(request.targets):
        raise invalid("targets are given without question_type; name it, or leave them out")
    if request.question or not request.question_type:
        check_text("question", request.question)
    for index, example in enumerate(request.examples):
        check_text(f"examples[{index}].question", example.question)
        check_text(f"examples[{index}].answer", example.answer)
    if len(request.dialogue) > MAX_CHARACTERS:
        raise invalid(
            f"dialogue has {len(request.dialogue)} characters; at most {MAX_CHARACTERS} are taken"
        )
    for field, kind in (("answer_kind", AnswerType), ("reference", ReferenceFrame)):
        value = getattr(request, field)
        if value not in {item.value for item in kind}:
            names = ", ".join(f"{item.value} ({item.name})" for item in kind)
            raise invalid(f"{field} is {value}; it must be one of {names}")
    for field in ("max_age_s", "max_wait_s"):
        if not getattr(request, field) > 0:
            raise invalid(f"{field} is {getattr(request, field):g}; it must be above 0")
    if not 0 <= request.min_confidence <= 1:
        raise invalid(f"min_confidence is {request.min_confidence:g}; it must lie in 0 to 1")
    stamp_ns = geometry.stamp_ns(request.stamp)
    if stamp_ns < 0 or stamp_ns > now_ns:
        raise invalid(
            f"stamp is {(stamp_ns - now_ns) * 1e-9:.1f} s in the future; ask about a moment that "
            "has been, or 0 for the newest window"
        )
    names = [*request.camera_ids, *(region.camera for region in request.regions)]
    names += [example.camera for example in request.examples]
    for camera in names:
        if camera not in cameras:
            raise invalid(f"camera '{camera}' is not there; the node has {', '.join(cameras)}")
    if len(request.regions) > MAX_REGIONS or len(request.examples) > MAX_EXAMPLES:
        raise invalid(
            f"{len(request.regions)} regions and {len(request.examples)} examples; at most "
            f"{MAX_REGIONS} and {MAX_EXAMPLES} are taken"
        )
    for region in request.regions:
        _check_region(region)


def _check_targets(request: Any) -> None:
    if len(request.targets) > MAX_TARGETS:
        raise invalid(f"targets has {len(request.targets)} names; at most {MAX_TARGETS} are taken")
    for index, target in enumerate(request.targets):
        check_text(f"targets[{index}]", target)
    form = REQUEST_FORMS.get(request.question_type)
    if form is None or request.targets:
        _plan_of(request)


def _plan_of(request: Any) -> Plan:
    """The plan that a request names; INVALID_REQUEST where it fits no question."""
    try:
        return request_forms.plan_of(request.question_type, request.targets)
    except ValueError as error:
        raise invalid(str(error)) from error


def check_text(field: str, text: str) -> None:
    """INVALID_REQUEST for text that is empty, too long, not UTF-8 or holds control characters."""
    if not text.strip() or len(text) > MAX_CHARACTERS:
        raise invalid(f"{field} has {len(text)} characters; it must have 1 to {MAX_CHARACTERS}")
    if "\ufffd" in text:
        raise invalid(f"{field} is not UTF-8; encode it before sending")
    for character in text:
        control = unicodedata.category(character) in ("Cc", "Cs")
        if control and character not in "\n\t\r":
            raise invalid(
                f"{field} holds the control character U+{ord(character):04X}; send plain text"
            )


def _check_region(region: ImageRegion) -> None:
    values = [region.u_px, region.v_px]
    if region.kind == ImageRegion.BOX:
        values += [region.width_px, region.height_px]
        if not (region.width_px > 0 and region.height_px > 0):
            raise invalid(
                f"regions: the box is {region.width_px:g}x{region.height_px:g} pixels; both must "
                "be above 0"
            )
    elif region.kind != ImageRegion.PIXEL:
        raise invalid(f"regions: kind is {region.kind}; it must be PIXEL (0) or BOX (1)")
    if not np.isfinite(values).all():
        raise invalid(f"regions: {values} must be finite")


def decode(
    request: Any,
    selection: ViewSelection,
    detections: Sequence[Detection],
    memory: Sequence[MapObject],
    target_from_map: np.ndarray,
    robot_width_m: float,
    now_ns: int,
) -> Query:
    """What a request asks of some views; RequestError where they do not show its regions."""
    regions = tuple(_region_in(region, selection) for region in request.regions)
    plan, question = None, request.question
    if request.question_type:
        targets = list(request.targets) or _targets_in(request)
        try:
            plan = request_forms.plan_of(request.question_type, targets)
        except ValueError as error:
            raise invalid(str(error)) from error
        question = question or request_forms.wording(request.question_type, targets)
    return Query(
        question,
        AnswerType(request.answer_kind),
        ReferenceFrame(request.reference),
        regions,
        tuple(detections),
        _marks_of(regions, selection),
        _landmarks_of(regions, selection),
        target_from_map,
        robot_width_m,
        request.min_confidence,
        plan,
        tuple(memory) if request.use_memory else (),
        now_ns,
    )


def _targets_in(request: Any) -> list[str]:
    """The targets of a request that names its type and leaves them to its words."""
    things = question_parser.parse(request.question).things
    return list(things) or ["this"] * len(request.regions)


def _region_in(region: ImageRegion, selection: ViewSelection) -> Region:
    """A region of a request at model size; RequestError where its view is not there."""
    stamp_ns = geometry.stamp_ns(region.stamp)
    views = []
    for index, frame in enumerate(selection.frames):
        if frame.camera == region.camera and stamp_ns in (0, frame.stamp_ns):
            views.append(index)
    if not views:
        raise RequestError(
            Codes.NO_GEOMETRY,
            f"the window has no view of camera '{region.camera}' with the region's stamp; use 0 "
            "for its newest view",
        )
    view = max(views, key=lambda i: selection.frames[i].stamp_ns)
    width, height = selection.pixel_map(view).image_size_px
    half_u = half_v = 0.0
    if region.kind == ImageRegion.BOX:
        half_u, half_v = region.width_px / 2, region.height_px / 2
    u, v = region.u_px, region.v_px
    if not (-0.5 < u < width - 0.5 and -0.5 < v < height - 0.5):
        raise invalid(f"regions: ({u:g}, {v:g}) is outside the {width}x{height} image")
    return selection.region(view, (u - half_u, v - half_v, u + half_u, v + half_v))


def _marks_of(regions: Sequence[Region], selection: ViewSelection) -> tuple[Mark, ...]:
    """The regions as marks on the camera images, the first in blue."""
    marks = []
    for region, colour in zip(regions, MARK_COLOURS, strict=False):
        u0, v0, u1, v1 = selection.corners(region)
        marks.append(Mark(region.view, (u0, v0), (u1, v1), colour))
    return tuple(marks)


def _landmarks_of(regions: Sequence[Region], selection: ViewSelection) -> tuple[Reference, ...]:
    """A red point of known distance beside the marks of regions, where lengths are metres."""
    if not selection.points.metric or not 0 < len(regions) < len(MARK_COLOURS):
        return ()
    place = landmark(selection.points, regions[0])
    if place is None:
        return ()
    region, distance_m = place
    u, v, *_ = selection.corners(region)
    return (Reference(Mark(region.view, (u, v), (u, v), MARK_COLOURS[-1]), distance_m),)


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
        pose = result.pose
        if result.kind == AnswerType.POINT:
            # A point has no orientation: the identity in the target frame.
            pose = pose.copy()
            pose[:3, :3] = target.from_map[:3, :3].T
        response.pose = target.pose(selection.stamp_ns, pose)
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
