# SPDX-License-Identifier: Apache-2.0
"""How soon the first word of an answer comes while windows run; results/first_token.json.

The node with the demo checkpoint gets the frames of a walk through a held-out home at 5 Hz, as a
camera would give them, and makes windows of them: 0.8 a second, as in `make demo`. A client in
a process of its own listens to the poses and sends goals of the action, one after another:
milliseconds from sending a goal until its first words arrive over DDS. A goal waits for the window
that runs, and the first on a new window for its images, which the prompt holds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np

from benchmarks.query import DEMO
from benchmarks.record import record
from benchmarks.running_node import running_node
from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.sim.renderer import render
from g2vlm_ros.demo.sim.scenes import make_scene
from g2vlm_ros.demo.sim.splits import home_seed
from g2vlm_ros.records import Frame

GOAL_MS = 500.0
HOME, RATE_HZ, FRAMES = 8, 5.0, 80
PAUSE_S = 0.4
"""Between an answer and the next question: a new window has come by then."""
WARM_UP_S = 5.0
QUESTION = "What do you see?"
"""The model answers it in its own words, without a measurement before them."""
SETTINGS = {
    "model.checkpoint": str(DEMO),
    "model.device": "cpu",
    "map.metres_per_unit": 1.0,
    "map.loop_similarity": 0.97,
    "window.views": 4,
    "window.overlap": 2,
    "window.min_gap_s": 0.55,
    "window.max_age_s": 8.0,
}
"""Those of config/demo.yaml, without the odometry."""


def pictures() -> np.ndarray:
    """uint8 (FRAMES, 168, 224, 3): the start of a walk through a held-out home."""
    scene = make_scene(home_seed("heldout", HOME))
    walk = scene.walk
    step = max(1, round(1.0 / (RATE_HZ * float(np.diff(walk.time_s[:2])[0]))))
    steps = np.arange(len(walk.time_s))[::step][:FRAMES]
    index = np.zeros(len(steps), np.int64)
    poses, times = walk.world_from_camera[steps], walk.time_s[steps]
    return render([scene.home], index, poses, times, lens(224, 168)).images


def beside_windows(questions: int) -> dict[str, Any]:
    """Runs the node, its camera and the client; what the client waited, and the node's windows."""
    stop = threading.Event()
    with running_node(SETTINGS) as node:
        camera = threading.Thread(target=_film, args=(node, pictures(), stop), daemon=True)
        camera.start()
        begin = time.perf_counter()
        try:
            waited_ms = _client(questions)
        finally:
            spent_s = time.perf_counter() - begin
            windows, backend = node.pipeline.counts().windows, node.perception.backend
            stop.set()
            camera.join()
    p50, p95, most = (round(float(ms), 1) for ms in np.percentile(waited_ms, [50, 95, 100]))
    return {
        "backend": backend,
        "questions": len(waited_ms),
        "windows_per_s": round(windows / spent_s, 2),
        "p50_ms": p50,
        "p95_ms": p95,
        "max_ms": most,
        "goal_ms": GOAL_MS,
        "in_time": sum(ms <= GOAL_MS for ms in waited_ms),
    }


def _film(node: Any, images: np.ndarray, stop: threading.Event) -> None:
    """Offers frames at RATE_HZ, the walk forwards and backwards, until told to stop."""
    there_and_back = itertools.cycle([*range(len(images)), *range(len(images) - 2, 0, -1)])
    for number in there_and_back:
        if stop.wait(1.0 / RATE_HZ):
            return
        image, stamp_ns = images[number], node.get_clock().now().nanoseconds
        node.windows.offer(Frame(stamp_ns, "camera", "camera_optical", lambda image=image: image))


def _client(questions: int) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.first_token", "--client", str(questions)]
    client = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(client.stdout.splitlines()[-1])


def send_questions(count: int) -> None:
    """Sends goals one after another; prints the milliseconds until the first words of each."""
    import rclpy
    from g2vlm_ros.action import AnswerSpatialQuery
    from geometry_msgs.msg import PoseArray
    from rclpy.action import ActionClient

    rclpy.init(args=[])
    node = rclpy.create_node("asker")
    node.create_subscription(PoseArray, "/perception/window_poses", lambda message: None, 2)
    action = ActionClient(node, AnswerSpatialQuery, "/perception/answer")
    if not action.wait_for_server(10):
        raise SystemExit("the node does not offer ~/answer")
    _spin(node, WARM_UP_S)
    goal = AnswerSpatialQuery.Goal(question=QUESTION, max_age_s=30.0, max_wait_s=20.0)
    waited_ms = []
    for _ in range(count):
        words_s: list[float] = []

        def on_feedback(message: Any, words_s: list[float] = words_s) -> None:
            if message.feedback.partial_answer:
                words_s.append(time.perf_counter())

        start = time.perf_counter()
        acceptance = action.send_goal_async(goal, feedback_callback=on_feedback)
        rclpy.spin_until_future_complete(node, acceptance)
        result = acceptance.result().get_result_async()
        rclpy.spin_until_future_complete(node, result)
        answer = result.result().result
        if not answer.success or not words_s:
            raise SystemExit(f"no words came: {answer.error_msg}")
        waited_ms.append(1000 * (words_s[0] - start))
        _spin(node, PAUSE_S)
    print(json.dumps(waited_ms))
    rclpy.try_shutdown()


def _spin(node: Any, duration_s: float) -> None:
    import rclpy

    end = time.perf_counter() + duration_s
    while (left_s := end - time.perf_counter()) > 0:
        rclpy.spin_once(node, timeout_sec=left_s)


def main(arguments: list[str] | None = None) -> int:
    """Run, record, print; exit code 1 where the median misses the goal."""
    parser = argparse.ArgumentParser(prog="first_token", description=__doc__.split("\n")[0])
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--client", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.client:
        send_questions(options.client)
        return 0
    os.environ.setdefault("ROS_DOMAIN_ID", str(64 + os.getpid() % 30))
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    result = beside_windows(options.questions)
    print(record("first_token", result))
    for name, value in result.items():
        print(f"{name:15s} {value}")
    return int(result["p50_ms"] > GOAL_MS)


if __name__ == "__main__":
    raise SystemExit(main())
