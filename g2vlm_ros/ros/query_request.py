# SPDX-License-Identifier: Apache-2.0
"""A request of SpatialQuery checked, and decoded to a `Query`.

A goal of AnswerSpatialQuery has the same fields.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from g2vlm_ros.msg import ImageRegion
from g2vlm_ros.query import question_parser, request_forms
from g2vlm_ros.query.context import ViewSelection
from g2vlm_ros.query.map_object import MapObject
from g2vlm_ros.query.object_measurement import landmark
from g2vlm_ros.query.point_map import Region
from g2vlm_ros.query.prompts import Mark, Reference
from g2vlm_ros.query.question_plan import AnswerType, Plan
from g2vlm_ros.query.request_forms import REQUEST_FORMS
from g2vlm_ros.query.types import Detection, Query, ReferenceFrame
from g2vlm_ros.ros.conversions import geometry
from g2vlm_ros.ros.service_errors import Codes, RequestError, invalid

MAX_CHARACTERS = 512
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
    if stamp_ns < 0:
        raise invalid(
            f"stamp is {stamp_ns * 1e-9:.1f} s; it must be 0 for the newest window, or above"
        )
    if stamp_ns > now_ns:
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
        _plan_of(request.question_type, request.targets)


def _plan_of(question_type: str, targets: Sequence[str]) -> Plan:
    """The plan of a question by name; INVALID_REQUEST where it does not fit its targets."""
    try:
        return request_forms.plan_of(question_type, targets)
    except ValueError as error:
        raise invalid(str(error)) from error


def check_text(field: str, text: str) -> None:
    """INVALID_REQUEST for text that is empty, too long, not UTF-8 or holds control characters."""
    if text and not text.strip():
        raise invalid(f"{field} is blank; it must have 1 to {MAX_CHARACTERS} characters that show")
    if not text or len(text) > MAX_CHARACTERS:
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
        plan = _plan_of(request.question_type, targets)
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
