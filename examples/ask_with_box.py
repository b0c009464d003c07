# SPDX-License-Identifier: Apache-2.0
"""Ask about a box of pixels, as a detector gives them: its distance and its size are measured.

python3 examples/ask_with_box.py CAMERA U V WIDTH HEIGHT      (centre and size in pixels)
"""

from __future__ import annotations

import sys

from g2vlm_ros.msg import ImageRegion

from g2vlm_ros.ros.client.client import SpatialClient

QUESTIONS = ("How far is it?", "How wide is it?", "How high is it?")


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 where the node answered at least one of the questions."""
    camera, *numbers = sys.argv[1:] if arguments is None else arguments
    u, v, width, height = map(float, numbers)
    box = ImageRegion(
        kind=ImageRegion.BOX, camera=camera, u_px=u, v_px=v, width_px=width, height_px=height
    )
    answers = 0
    with SpatialClient("/perception") as robot:
        for question in QUESTIONS:
            answer = robot.ask(question, regions=[box], max_wait_s=10.0)
            print(f"{question:<18} {answer.answer if answer.success else answer.error_msg}")
            answers += answer.success
    return 0 if answers else 1


if __name__ == "__main__":
    raise SystemExit(main())
