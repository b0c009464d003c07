# SPDX-License-Identifier: Apache-2.0
"""SpatialQuery requests checked, and answers put into its fields.

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
from g2vlm_ros.query.context import ViewSelection
from g2vlm_ros.query.point_map import Object3D, Region, landmark, map_covariance
from g2vlm_ros.query.prompts import Mark, Reference
from g2vlm_ros.query.question_parser import AnswerType
from g2vlm_ros.query.types import ReferenceFrame, Result
from g2vlm_ros.ros.conversions import messages
from g2vlm_ros.ros.point_service import RequestError, invalid
from g2vlm_ros.srv import SpatialQuery

Codes = SpatialQuery.Response
MAX_CHARACTERS = 512
MAX_WAIT_S = 3600.0
MAX_OBJECTS = 8
MAX_EXAMPLES, MAX_REGIONS = 4, 8
MARK_COLOURS = ("blue", "green", "yellow", "red")
"""Of what is asked about, in order; the last is kept for a known place while it is free."""


def check(request: Any, cameras: Sequence[str], now_ns: int) -> None:
    """Raise RequestError for what can be refused without a look at a window."""
    _check_text("question", request.question)
    for index, example in enumerate(request.examples):
        _check_text(f"examples[{index}].question", example.question)
        _check_text(f"examples[{index}].answer", example.answer)
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
    stamp_ns = messages.stamp_ns(request.stamp)
    if stamp_ns < 0 or stamp_ns > now_ns:
        raise invalid(
            f"stamp is {(stamp_ns - now_ns) * 1e-9:.1f} s in the future; ask about a moment that "
            "has been, or 0 for the newest window"
        )
    named = [*request.camera_ids, *(region.camera for region in request.regions)]
    named += [example.camera for example in request.examples]
    for camera in named:
        if camera not in cameras:
            raise invalid(f"camera '{camera}' is not there; the node has {', '.join(cameras)}")
    if len(request.regions) > MAX_REGIONS or len(request.examples) > MAX_EXAMPLES:
        raise invalid(
            f"{len(request.regions)} regions and {len(request.examples)} examples; at most "
            f"{MAX_REGIONS} and {MAX_EXAMPLES} are taken"
        )
    for region in request.regions:
        _check_region(region)


def _check_text(field: str, text: str) -> None:
    if not text.strip() or len(text) > MAX_CHARACTERS:
        raise invalid(f"{field} has {len(text)} characters; it must have 1 to {MAX_CHARACTERS}")
    if "\ufffd" in text:
        raise invalid(f"{field} is not UTF-8; encode it before sending")
    bad = next(
        (c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t\r"), ""
    )
    if bad:
        raise invalid(f"{field} holds the control character U+{ord(bad):04X}; send plain text")


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


def region_in(region: ImageRegion, look: ViewSelection) -> Region:
    """A region of a request at model size; RequestError where its view is not there."""
    stamp_ns = messages.stamp_ns(region.stamp)
    views = [
        i
        for i, frame in enumerate(look.frames)
        if frame.camera == region.camera and stamp_ns in (0, frame.stamp_ns)
    ]
    if not views:
        raise RequestError(
            Codes.NO_GEOMETRY,
            f"the window has no view of camera '{region.camera}' with the region's stamp; use 0 "
            "for its newest view",
        )
    view = max(views, key=lambda i: look.frames[i].stamp_ns)
    width, height = look.pixel_map(view).image_size_px
    half_u, half_v = (
        (region.width_px / 2, region.height_px / 2) if region.kind == ImageRegion.BOX else (0, 0)
    )
    u, v = region.u_px, region.v_px
    if not (-0.5 < u < width - 0.5 and -0.5 < v < height - 0.5):
        raise invalid(f"regions: ({u:g}, {v:g}) is outside the {width}x{height} image")
    return look.region(view, (u - half_u, v - half_v, u + half_u, v + half_v))


def marks_of(regions: Sequence[Region], look: ViewSelection) -> tuple[Mark, ...]:
    """The regions as marks on the camera images, the first in blue."""
    marks = []
    for region, colour in zip(regions, MARK_COLOURS, strict=False):
        u0, v0, u1, v1 = look.corners(region)
        marks.append(Mark(region.view, (u0, v0), (u1, v1), colour))
    return tuple(marks)


def known_of(regions: Sequence[Region], look: ViewSelection) -> tuple[Reference, ...]:
    """A red point of known distance beside the marks of regions, where lengths are metres."""
    if not look.points.metric or not 0 < len(regions) < len(MARK_COLOURS):
        return ()
    found = landmark(look.points, regions[0])
    if found is None:
        return ()
    u, v, *_ = look.corners(found[0])
    return (Reference(Mark(found[0].view, (u, v), (u, v), MARK_COLOURS[-1]), found[1]),)


@dataclass
class Target:
    """The frame that positions are given in."""

    frame_id: str
    from_map: np.ndarray
    """float64 (4, 4)."""

    def pose(self, stamp_ns: int, pose: np.ndarray) -> PoseStamped:
        """A pose of the map in this frame, stamped."""
        return messages.pose_stamped(
            messages.header(stamp_ns, self.frame_id), self.from_map @ pose
        )

    def covariance(self, covariance: np.ndarray) -> np.ndarray:
        """(9,), row by row."""
        turn = self.from_map[:3, :3]
        return (turn @ covariance @ turn.T).ravel()


def clear(response: Any, kind: int) -> None:
    """What the fields of a response hold while there is no answer."""
    response.answer_kind = kind if kind != AnswerType.AUTO else int(AnswerType.TEXT)
    response.number = response.scale_relative_std = math.nan
    response.confidence = -1.0


def describe_window(response: Any, look: ViewSelection, now_ns: int) -> None:
    """Which window the answer is about, and what its lengths mean."""
    placement = look.update.placement
    response.scale_state = int(placement.scale_state)
    response.scale_relative_std = float(placement.scale_std)
    response.stamp = messages.stamp(look.stamp_ns)
    response.age_s = (now_ns - look.stamp_ns) * 1e-9
    response.window_id = look.update.window.id


def fill(response: Any, result: Result, look: ViewSelection, target: Target) -> None:
    """The answer's own fields; positions and objects only where lengths are metres."""
    response.answer, response.answer_kind = result.text, int(result.kind)
    response.yes_no = bool(result.yes_no)
    if result.number is not None:
        response.number, response.unit = float(result.number.value), result.number.unit
    if result.pose is not None:
        pose = result.pose
        if result.kind == AnswerType.POINT:
            response.pose = target.pose(look.stamp_ns, pose)
            response.pose.pose.orientation.x = response.pose.pose.orientation.y = 0.0
            response.pose.pose.orientation.z, response.pose.pose.orientation.w = 0.0, 1.0
        else:
            response.pose = target.pose(look.stamp_ns, pose)
        response.position_covariance = target.covariance(result.covariance)
    response.confidence = float(result.confidence)
    if look.points.metric:
        response.objects = [_object(thing, look, target) for thing in result.things[:MAX_OBJECTS]]
    response.evidence = [
        evidence(region, look) for thing in result.things for region in thing.regions
    ]


def evidence(region: Region, look: ViewSelection) -> ImageRegion:
    """Where something was seen, in pixels of the camera image."""
    frame = look.frames[region.view]
    u0, v0, u1, v1 = look.corners(region)
    return ImageRegion(
        kind=ImageRegion.PIXEL if region.is_pixel else ImageRegion.BOX,
        camera=frame.camera,
        stamp=messages.stamp(frame.stamp_ns),
        u_px=(u0 + u1) / 2,
        v_px=(v0 + v1) / 2,
        width_px=u1 - u0,
        height_px=v1 - v0,
    )


def _object(thing: Object3D, look: ViewSelection, target: Target) -> SpatialObject:
    pose = np.eye(4)
    c, s = math.cos(thing.yaw_rad), math.sin(thing.yaw_rad)
    pose[:2, :2], pose[:3, 3] = [[c, -s], [s, c]], thing.centre
    x, y, z = (0.0 if math.isnan(side) else float(side) for side in thing.size)
    return SpatialObject(
        label=thing.label,
        pose=target.pose(look.stamp_ns, pose),
        size=Vector3(x=x, y=y, z=z),
        position_covariance=target.covariance(map_covariance(look.points, thing)),
        confidence=float(thing.trust),
        evidence=[evidence(r, look) for r in thing.regions],
    )
