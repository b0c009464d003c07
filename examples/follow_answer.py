# SPDX-License-Identifier: Apache-2.0
"""Follow an answer while it is made: a fresh window first, words as they come, an end in time.

python3 examples/follow_answer.py Where is the door?
"""

from __future__ import annotations

import asyncio
import sys

from g2vlm_ros.action import AnswerSpatialQuery

from g2vlm_ros.ros.client.client import AsyncSpatialClient

PHASES = {
    AnswerSpatialQuery.Feedback.QUEUED: "waits",
    AnswerSpatialQuery.Feedback.RECONSTRUCTING: "looks",
    AnswerSpatialQuery.Feedback.ANSWERING: "answers",
}
PATIENCE_S = 30.0


def show(feedback: AnswerSpatialQuery.Feedback) -> None:
    phase = PHASES.get(feedback.phase, "?")
    print(f"  {feedback.elapsed_s:5.2f} s {phase}: {feedback.partial_answer}")


async def follow(question: str) -> int:
    """Cancelling this task cancels the goal: asyncio.wait_for does that after PATIENCE_S."""
    async with AsyncSpatialClient("/perception") as robot:
        goal = robot.answer(question, fresh_window=True, max_wait_s=PATIENCE_S, on_feedback=show)
        try:
            answer = await asyncio.wait_for(goal, PATIENCE_S)
        except asyncio.TimeoutError:
            print(f"cancelled after {PATIENCE_S:.0f} s")
            return 1
    print(answer.answer if answer.success else answer.error_msg)
    return 0 if answer.success else 1


def main(arguments: list[str] | None = None) -> int:
    return asyncio.run(follow(" ".join(sys.argv[1:] if arguments is None else arguments)))


if __name__ == "__main__":
    raise SystemExit(main())
