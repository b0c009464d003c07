# SPDX-License-Identifier: Apache-2.0
"""Faults: the node as a real process, and what breaks on robots done to it.

`make faults` prints a table: what was done, what is expected, what was seen. The demo checkpoint
runs on ONNX Runtime; a camera in this process sends moving views.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

import rclpy
from g2vlm_ros.msg import ReconstructionStatus
from g2vlm_ros.srv import SaveMap
from g2vlm_tests.harness import image
from geometry_msgs.msg import TransformStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from tf2_msgs.msg import TFMessage

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "engines" / "demo"
PARAMETERS = {"window.views": "2", "window.overlap": "1", "window.min_gap_s": "0.1"}
PARAMETERS |= {"odometry_topic": "''", "map.loop_closure": "false", "status_period_s": "0.2"}
ANSWER_S = 30.0
TRANSITIONS = {
    "configure": Transition.TRANSITION_CONFIGURE,
    "activate": Transition.TRANSITION_ACTIVATE,
}
TRANSITIONS |= {
    "deactivate": Transition.TRANSITION_DEACTIVATE,
    "cleanup": Transition.TRANSITION_CLEANUP,
}
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Robot:
    """The node's process, a camera, a listener, and an operator who changes states."""

    def __init__(self, checkpoint: Path = CHECKPOINT):
        self.checkpoint = checkpoint
        self.context = rclpy.Context()
        rclpy.init(args=[], context=self.context)
        self.node = rclpy.create_node("operator", context=self.context)
        self.status: ReconstructionStatus | None = None
        self.node.create_subscription(
            ReconstructionStatus, "/perception/status", self._on_status, LATCHED
        )
        self.node.create_subscription(PointCloud2, "/perception/points", lambda _: None, 2)
        self.camera = self.node.create_publisher(Image, "/camera/image_raw", 10)
        self.tf = self.node.create_publisher(TFMessage, "/tf_static", LATCHED)
        self.offset_s, self.spoil = 0.0, None
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.over = threading.Event()
        self.threads = [threading.Thread(target=run) for run in (self._spin, self._drive)]
        for thread in self.threads:
            thread.start()
        self.log = tempfile.TemporaryFile("w+")
        self.start()

    def _on_status(self, message: ReconstructionStatus) -> None:
        self.status = message

    def _spin(self) -> None:
        while not self.over.is_set():
            self.executor.spin_once(timeout_sec=0.1)

    def _drive(self) -> None:
        count = 0
        while not self.over.wait(0.1):
            message = image(time.time() + self.offset_s, number=count // 4)
            if self.spoil:
                self.spoil(message)
            self.camera.publish(message)
            count += 1

    def start(self) -> None:
        words = [f"-p {name}:={value}" for name, value in PARAMETERS.items()]
        command = [sys.executable, "-m", "g2vlm_ros.ros.perception_node", "--ros-args"]
        command += ["--params-file", str(ROOT / "config" / "demo.yaml")]
        command += f"-p model.checkpoint:={self.checkpoint} {' '.join(words)}".split()
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, cwd=ROOT)
        self.status = None

    def call(self, kind: type, name: str, request: object, timeout_s: float = ANSWER_S) -> object:
        """A response of the node; None where it does not come."""
        client = self.node.create_client(kind, f"/perception/{name}")
        try:
            if not client.wait_for_service(timeout_s):
                return None
            future = client.call_async(request)
            self.until(future.done, timeout_s)
            return future.result() if future.done() else None
        finally:
            self.node.destroy_client(client)

    def change(self, name: str) -> bool:
        request = ChangeState.Request(transition=Transition(id=TRANSITIONS[name]))
        response = self.call(ChangeState, "change_state", request)
        return bool(response and response.success)

    def answers(self) -> bool:
        """Whether the node says its state: after a kill the old one is still announced a while."""
        state = GetState.Request()
        return any(self.call(GetState, "get_state", state, 3.0) for _ in range(8))

    def bring_up(self) -> bool:
        return self.answers() and self.change("configure") and self.change("activate")

    def until(self, condition: Callable[[], object], timeout_s: float = ANSWER_S) -> bool:
        deadline = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.05)
        return bool(condition())

    def works(self, windows: int = 2, timeout_s: float = ANSWER_S) -> bool:
        """Whether the process lives and makes new windows."""
        first = self.status.window_id if self.status else 0
        counted = self.until(
            lambda: self.status and abs(self.status.window_id - first) >= windows, timeout_s
        )
        return counted and self.process.poll() is None

    def said(self) -> str:
        self.log.flush()
        self.log.seek(0)
        return self.log.read()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.over.set()
        for thread in self.threads:
            thread.join()
        self.node.destroy_node()
        rclpy.try_shutdown(context=self.context)


@contextmanager
def robot(**arguments):
    made = Robot(**arguments)
    try:
        yield made
    finally:
        made.close()


# Cases: each returns what was seen and whether that is what is expected. ---------------------


def killed(it: Robot) -> tuple[str, bool]:
    it.process.kill()
    it.process.wait()
    it.start()
    return "windows again after a start", it.bring_up() and it.works()


def stopped(it: Robot) -> tuple[str, bool]:
    it.process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    it.process.send_signal(signal.SIGCONT)
    return "went on", it.works()


def device_file(it: Robot) -> tuple[str, bool]:
    response = it.call(SaveMap, "save_map", SaveMap.Request(path="/dev/full", format="ply"))
    sentence = response.error_msg if response else "no response"
    return f"“{sentence[:60]}”", bool(response) and not response.success and it.works()


def no_folder(it: Robot) -> tuple[str, bool]:
    path = "/proc/no/such/map.npz"
    response = it.call(SaveMap, "save_map", SaveMap.Request(path=path))
    sentence = response.error_msg if response else "no response"
    return f"“{sentence[:60]}”", bool(response) and not response.success and it.works()


def clock_jump(it: Robot) -> tuple[str, bool]:
    before = it.status.map_id
    it.offset_s = 3600.0
    time.sleep(0.15)
    it.offset_s = 0.0
    going = it.works(4)
    return f"map {before} before, {it.status.map_id} after", going


def clock_back(it: Robot) -> tuple[str, bool]:
    it.offset_s = -20.0
    going = it.works(2)
    it.offset_s = 0.0
    return "went on in the past and again now", going and it.works(2)


def other_type(it: Robot) -> tuple[str, bool]:
    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    node = rclpy.create_node("other_driver", context=context)
    publisher = node.create_publisher(CompressedImage, "/camera/image_raw", 10)
    for _ in range(20):
        publisher.publish(CompressedImage(format="jpeg", data=b"no picture"))
        time.sleep(0.05)
    node.destroy_node()
    rclpy.try_shutdown(context=context)
    return "went on", it.works()


def broken_tf(it: Robot) -> tuple[str, bool]:
    bad = TransformStamped(child_frame_id="optical")
    bad.header.frame_id = "base_link"
    bad.transform.translation.x = float("nan")
    loop = TransformStamped(child_frame_id="base_link")
    loop.header.frame_id = "optical"
    it.tf.publish(TFMessage(transforms=[bad, loop, loop]))
    return "went on", it.works()


def spoilt_images(it: Robot) -> tuple[str, bool]:
    def spoil(message: Image) -> None:
        kind = random.randrange(4)
        if kind == 0:
            message.encoding = "no encoding"
        elif kind == 1:
            message.step = 1
        elif kind == 2:
            message.data = b""
        else:
            message.height = 2**31

    it.spoil = spoil
    time.sleep(2)
    it.spoil = None
    going = it.works()
    reasons = ", ".join(it.status.drop_reasons)
    return f"dropped: {reasons}"[:90], going and it.status.frames_dropped > 0


def flapping(it: Robot) -> tuple[str, bool]:
    for _ in range(40):
        subscription = it.node.create_subscription(
            PointCloud2, "/perception/map", lambda _: None, 1
        )
        time.sleep(0.05)
        it.node.destroy_subscription(subscription)
    return "went on", it.works()


def twin(it: Robot) -> tuple[str, bool]:
    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    node = rclpy.create_node("perception", context=context, start_parameter_services=False)
    time.sleep(1.0)
    node.destroy_node()
    rclpy.try_shutdown(context=context)
    return "went on", it.works()


def random_lifecycle(it: Robot) -> tuple[str, bool]:
    choice, count, deadline = random.Random(0), 0, time.monotonic() + 20
    while time.monotonic() < deadline and it.process.poll() is None:
        it.change(choice.choice(list(TRANSITIONS)))
        count += 1
    for name in ("deactivate", "cleanup"):
        it.change(name)
    return f"{count} transitions, then windows", it.bring_up() and it.works()


def terminated(it: Robot) -> tuple[str, bool]:
    start = time.monotonic()
    it.process.terminate()
    with suppress(subprocess.TimeoutExpired):
        it.process.wait(15)
    code = it.process.poll()
    return f"exit code {code} after {time.monotonic() - start:.1f} s", code == 0


RUNNING = (
    ("SIGSTOP for 3 s, SIGCONT", "goes on", stopped),
    ("~/save_map onto a device file", "an error with a sentence; goes on", device_file),
    ("~/save_map into a folder that is not there", "an error; goes on", no_folder),
    ("stamps of 0.15 s one hour ahead", "goes on", clock_jump),
    ("stamps jump 20 s back, and forth again", "goes on", clock_back),
    ("a publisher of another type on the camera's topic", "goes on", other_type),
    ("/tf_static with NaN and a loop", "goes on", broken_tf),
    ("2 s of damaged images", "dropped with reasons; goes on", spoilt_images),
    ("40 subscribers of ~/map come and go in 2 s", "goes on", flapping),
    ("a second node called perception comes and goes", "goes on", twin),
    (
        "random lifecycle transitions for 20 s",
        "windows at the end",
        random_lifecycle,
    ),
    ("kill -9, started again", "windows come again", killed),
    ("SIGTERM", "ends with 0 within 15 s", terminated),
)


def damaged_checkpoints() -> list[tuple[str, str, str, bool]]:
    """Checkpoint folders that cannot be loaded: refused at configure, the process stays."""
    rows = []
    for done, spoil in (
        ("checkpoint folder is missing", lambda folder: shutil.rmtree(folder)),
        (
            "weights cut off in the middle",
            lambda folder: os.truncate(folder / "model.safetensors", 5_000_000),
        ),
        ("an ONNX file cut off", lambda folder: os.truncate(folder / "heads.onnx", 100)),
        ("text_config.json is empty", lambda folder: os.truncate(folder / "text_config.json", 0)),
    ):
        with tempfile.TemporaryDirectory() as base:
            folder = shutil.copytree(CHECKPOINT, Path(base) / "checkpoint")
            spoil(folder)
            with robot(checkpoint=folder) as it:
                refused = not it.change("configure")
                lives = it.process.poll() is None
                lines = [line for line in it.said().splitlines() if "on_configure" in line]
                seen = lines[-1].split("on_configure: ")[-1][:90] if lines else "no sentence"
                rows.append(
                    (
                        done,
                        "configure fails with a sentence",
                        f"“{seen}”",
                        refused and lives and bool(lines),
                    )
                )
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 where something else than expected was seen."""
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ.setdefault("ROS_DOMAIN_ID", str(60 + os.getpid() % 40))
    random.seed(0)
    rows = []
    with robot() as it:
        if not (it.bring_up() and it.works()):
            print("the node does not come up:\n" + it.said())
            return 1
        for done, expected, case in RUNNING:
            seen, fine = case(it)
            rows.append((done, expected, seen, fine))
            print(f"| {done} | {expected} | {seen} | {'yes' if fine else '**no**'} |", flush=True)
            if not fine and it.process.poll() is not None:
                print("the process ended:\n" + it.said()[-2000:])
                it.start()
                it.bring_up()
    for row in damaged_checkpoints():
        rows.append(row)
        print(f"| {row[0]} | {row[1]} | {row[2]} | {'yes' if row[3] else '**no**'} |", flush=True)
    failed = sum(not row[-1] for row in rows)
    print(f"\n{len(rows) - failed} of {len(rows)} as expected")
    if arguments:
        Path(arguments[0]).write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
