# SPDX-License-Identifier: Apache-2.0
"""What a question costs: the first and the second on a window, against the plain order of work.

In the plain order every question starts from the images, as upstream's code does; `Perception.ask`
computes the window's part once. Counted in tokens and timed, in one run, on held-out homes; with
engines/demo where it is there, else with the golden checkpoint, whose words mean nothing.
Where ROS 2 is at hand also how long a goal of the action takes to be acknowledged over DDS, by a
client in a process of its own, while the node's device rests and while it works.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.query import DEMO, opened, windows
from benchmarks.record import record
from benchmarks.running_node import running_node
from g2vlm_ros.perception import Perception

GOLDEN = Path(__file__).parents[1] / "test" / "data" / "golden" / "A"
MIN_SAVING = 5.0
"""How many times fewer tokens the second question must compute, or the benchmark fails."""


GOALS = 100
ACKNOWLEDGED_MS = 20.0
"""In which a goal should be acknowledged: what a behaviour tree of Nav2 waits for it."""


def cost(perception: Perception, count: int) -> dict[str, Any]:
    """Medians over windows of the tokens computed and the time before the first word."""
    booked: dict[str, list[tuple[int, float, int, float]]] = defaultdict(list)
    for window in windows("heldout", count, 2):
        first, second = (qa.question for qa in window.questions[:2])
        shared = perception.scene(list(window.images))
        for name, scene, question in (
            ("first", shared, first),
            ("second", shared, second),
            ("second_plain", perception.scene(list(window.images)), second),
        ):
            answer = perception.ask(scene, question)
            decode = answer.stage_times_s["decode"]
            before = sum(answer.stage_times_s.values()) - decode
            booked[name].append((answer.prefill_tokens, before, len(answer.token_ids) + 1, decode))
    costs: dict[str, Any] = {"backend": perception.backend, "windows": count}
    for name, rows in booked.items():
        tokens, before, words, decode = np.array(rows, float).T
        costs[name] = {
            "prefill_tokens": float(np.median(tokens)),
            "ms_to_first_token": round(1000 * float(np.median(before)), 2),
            "tokens_per_s": round(float(words.sum() / decode.sum()), 1),
        }
    plain, second = costs["second_plain"], costs["second"]
    for key in ("prefill_tokens", "ms_to_first_token"):
        costs[f"saved_{key}"] = round(plain[key] / second[key], 1)
    return costs


def acknowledgement(checkpoint: Path, width_px: int) -> dict[str, Any]:
    """Milliseconds from sending a goal to its acceptance, while the device rests and works."""
    settings = {"model.checkpoint": str(checkpoint), "model.image_width_px": width_px}
    grey = [np.full((480, 640, 3), 128, np.uint8)] * 4
    stop = threading.Event()
    with running_node(settings) as node:

        def work() -> None:
            node.perception.reconstruct(grey)
            if not stop.is_set():
                node.scheduler.submit(work)

        times = {"resting": acknowledged_by_client()}
        node.scheduler.submit(work)
        times["working"] = acknowledged_by_client()
        stop.set()
    return times


def acknowledged_by_client() -> dict[str, float]:
    """What `send_goals` finds in a process of its own."""
    client = subprocess.run(
        [sys.executable, "-m", "benchmarks.question_cost", "--goals"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    p50, p95, most = np.percentile(json.loads(client.stdout.splitlines()[-1]), [50, 95, 100])
    times = {"p50_ms": p50, "p95_ms": p95, "max_ms": most}
    return {name: round(float(value), 2) for name, value in times.items()}


def send_goals() -> None:
    """Send goals one after another; prints the milliseconds until each was accepted."""
    import rclpy
    from g2vlm_ros.action import AnswerSpatialQuery
    from rclpy.action import ActionClient

    rclpy.init(args=[])
    node = rclpy.create_node("planner")
    action = ActionClient(node, AnswerSpatialQuery, "/perception/answer")
    if not action.wait_for_server(10):
        raise SystemExit("the node does not offer ~/answer")
    spent_ms = []
    for _ in range(GOALS):
        goal = AnswerSpatialQuery.Goal(question="What is there?", max_age_s=1e9)
        start = time.perf_counter()
        sent = action.send_goal_async(goal)
        rclpy.spin_until_future_complete(node, sent)
        spent_ms.append(1000 * (time.perf_counter() - start))
        rclpy.spin_until_future_complete(node, sent.result().get_result_async())
    print(json.dumps(spent_ms))
    rclpy.try_shutdown()


def main(arguments: list[str] | None = None) -> int:
    """Run, record, print; exit code 1 where the second question saves too little."""
    parser = argparse.ArgumentParser(prog="question_cost", description=__doc__.split("\n")[0])
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--checkpoint", type=Path, default=DEMO if DEMO.exists() else GOLDEN)
    parser.add_argument("--width", type=int, default=0, help="of its views, px; 0: as trained")
    parser.add_argument(
        "--semantic", type=int, default=0, help="of its squares, px; 0: as trained"
    )
    parser.add_argument("--goals", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.goals:
        send_goals()
        return 0
    perception = opened(options.checkpoint, options.width, options.semantic)
    result = {"checkpoint": options.checkpoint.name, **cost(perception, options.windows)}
    if importlib.util.find_spec("rclpy"):
        os.environ.setdefault("ROS_DOMAIN_ID", str(64 + os.getpid() % 30))
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        result["goal_acknowledged"] = acknowledgement(options.checkpoint, options.width)
        slowest = max(row["p95_ms"] for row in result["goal_acknowledged"].values())
        result["goal_acknowledged_in_time"] = bool(slowest < ACKNOWLEDGED_MS)
    print(record("question_cost", result))
    for name, row in result.items():
        print(f"{name:25s} {row}")
    return int(result["saved_prefill_tokens"] < MIN_SAVING)


if __name__ == "__main__":
    raise SystemExit(main())
