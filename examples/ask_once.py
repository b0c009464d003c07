# SPDX-License-Identifier: Apache-2.0
"""Ask one question and look at what the answer rests on.

python3 examples/ask_once.py How far is the chair?
"""

from __future__ import annotations

import sys

from g2vlm_ros.srv import SpatialQuery

from g2vlm_ros.ros.client.client import SpatialClient


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 for an answer, 1 for none."""
    question = " ".join(sys.argv[1:] if arguments is None else arguments)
    with SpatialClient("/perception") as robot:
        answer = robot.ask(question, max_wait_s=10.0)
    if not answer.success:
        print(f"no answer ({answer.error_code}): {answer.error_msg}")
        return 1
    source = "measured in the points" if answer.measured else "the model's words alone"
    print(f"{answer.answer}  [{source}, geometry {answer.age_s:.1f} s old]")
    if answer.answer_kind == SpatialQuery.Request.NUMBER:
        print(f"  {answer.number:.3g} {answer.unit}")
    for thing in answer.objects:
        at = thing.pose.pose.position
        error = max(thing.position_covariance[i] for i in (0, 4, 8)) ** 0.5
        print(f"  {thing.label}: ({at.x:.2f}, {at.y:.2f}, {at.z:.2f}) +- {error:.2f} m")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
