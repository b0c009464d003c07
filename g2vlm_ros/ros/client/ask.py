# SPDX-License-Identifier: Apache-2.0
"""``ros2 run g2vlm_ros ask "How far is the red box?"``: one question, an answer to read."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import PIL.Image
from sensor_msgs.msg import Image

from g2vlm_ros.query.question_plan import AnswerType
from g2vlm_ros.ros.client.client import SpatialClient, UnreachableError
from g2vlm_ros.ros.start_errors import StartError
from g2vlm_ros.srv import SpatialQuery


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line. The question is data: it is passed on as it is."""
    parser = argparse.ArgumentParser(prog="ask", description=__doc__)
    parser.add_argument("question", nargs="+", help="in words; quote it, or not")
    parser.add_argument(
        "--kind", choices=[kind.name.lower() for kind in AnswerType], default="auto"
    )
    parser.add_argument("--frame", default="", help="frame of positions; the map by default")
    parser.add_argument("--camera", action="append", default=[], help="only this camera; again")
    parser.add_argument("--dialogue", default="", help="name of a conversation to go on with")
    parser.add_argument("--wait-s", type=float, default=10.0, help="give up after this long")
    parser.add_argument("--max-age-s", type=float, default=5.0, help="of the geometry")
    parser.add_argument("--picture", type=Path, help="write what the answer rests on (.png, .jpg)")
    parser.add_argument("--node", default="/perception")
    return parser.parse_args(arguments)


def report(answer: SpatialQuery.Response) -> str:
    """An answer in a few lines."""
    if not answer.success:
        return f"{code_name(answer.error_code)}: {answer.error_msg}"
    lines = [answer.answer]
    p, kind = answer.pose.pose.position, answer.answer_kind
    if kind == AnswerType.NUMBER:
        lines.append(f"  {answer.number:.3g} {answer.unit}".rstrip())
    if kind in (AnswerType.POINT, AnswerType.POSE):
        frame = answer.pose.header.frame_id
        lines.append(f"  at ({p.x:.2f}, {p.y:.2f}, {p.z:.2f}) m in '{frame}'")
    for thing in answer.objects:
        q = thing.pose.pose.position
        lines.append(f"  {thing.label} at ({q.x:.2f}, {q.y:.2f}, {q.z:.2f}) m")
    for region in answer.evidence:
        size = f", {region.width_px:.0f}x{region.height_px:.0f} px" if region.width_px else ""
        lines.append(
            f"  seen by {region.camera} at pixel ({region.u_px:.0f}, {region.v_px:.0f}){size}"
        )
    lines += [f"  - {step}" for step in answer.reasoning]
    if kind in (AnswerType.NUMBER, AnswerType.YES_NO) and not answer.measured:
        lines.append("  by the model's words alone: not measured")
    sure = "not calibrated" if answer.confidence < 0 else f"{answer.confidence:.2f}"
    total_s = sum(answer.stage_times_s)
    window = f"window {answer.window_id}, {answer.age_s:.1f} s old"
    lines.append(f"  confidence {sure}; {window}; answered in {total_s:.2f} s")
    return "\n".join(lines)


def save(picture: Image, path: Path) -> None:
    """Write an rgb8 image; ValueError for an unknown file ending, OSError where it cannot."""
    rgb = np.frombuffer(picture.data, np.uint8).reshape(picture.height, picture.width, 3)
    PIL.Image.fromarray(rgb).save(path)


def code_name(code: int) -> str:
    """The name of an error code."""
    names = (
        "NONE UNKNOWN TIMEOUT TF_ERROR NO_MODEL NO_GEOMETRY NOT_VISIBLE AMBIGUOUS BUSY "
        "INACTIVE INVALID_REQUEST"
    ).split()
    return next((n for n in names if getattr(SpatialQuery.Response, n) == code), str(code))


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 for an answer, 1 for none, 2 where the node is not there."""
    options = parse(arguments)
    fields = dict(
        answer_kind=int(AnswerType[options.kind.upper()]),
        target_frame=options.frame,
        camera_ids=options.camera,
        dialogue=options.dialogue,
        max_wait_s=options.wait_s,
        max_age_s=options.max_age_s,
    )
    try:
        with SpatialClient(options.node) as robot:
            question, picture = " ".join(options.question), None
            if options.picture:
                answer, picture = robot.ask_and_see(question, **fields)
            else:
                answer = robot.ask(question, **fields)
            if picture is not None:
                save(picture, options.picture)
    except (StartError, UnreachableError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(report(answer))
    return 0 if answer.success else 1


if __name__ == "__main__":
    raise SystemExit(main())
