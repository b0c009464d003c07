# SPDX-License-Identifier: Apache-2.0
"""The node as a real process, with a camera, a listener and an operator around it.

The demo checkpoint runs on ONNX Runtime; the camera sends views of noise that move.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from g2vlm_ros.msg import ReconstructionStatus
from g2vlm_tests.harness import image
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from nav_msgs.msg import Odometry
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from tf2_msgs.msg import TFMessage

from g2vlm_ros.ros.rclpy_workarounds import SafeEntities

ROOT = Path(__file__).resolve().parents[3]
CHECKPOINT = ROOT / "engines" / "demo"
PARAMETERS = {"window.views": "2", "window.overlap": "1", "window.min_gap_s": "0.1"}
PARAMETERS |= {"odometry_topic": "/odom", "map.loop_closure": "false", "status_period_s": "0.2"}
ANSWER_S = 120.0
"""How long a state is waited for. It comes within seconds on an idle machine; on one with a load
of ten on each core it takes a minute, and that is no fault of the node."""
LINES = 40
"""Of the log, where a case fails."""
TRANSITIONS = {
    "configure": Transition.TRANSITION_CONFIGURE,
    "activate": Transition.TRANSITION_ACTIVATE,
}
TRANSITIONS |= {
    "deactivate": Transition.TRANSITION_DEACTIVATE,
    "cleanup": Transition.TRANSITION_CLEANUP,
}
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Seen(NamedTuple):
    """What a case came to."""

    seen: str
    fine: bool


class Case(NamedTuple):
    """One thing done to the node. run: does it and looks."""

    done: str
    expected: str
    run: Callable[..., Seen]


class Operator(SafeEntities, Node):
    """Its clients and subscriptions come and go while a thread spins it."""


class Robot:
    """The node's process, a camera, a listener, and an operator who changes states.

    module: what is run instead of the node itself. parameters: beside PARAMETERS.
    """

    def __init__(
        self,
        checkpoint: Path = CHECKPOINT,
        module: str = "g2vlm_ros.ros.perception_node",
        parameters: dict[str, str] | None = None,
    ):
        self.checkpoint, self.module = checkpoint, module
        self.parameters = PARAMETERS | (parameters or {})
        self.folder = Path(tempfile.mkdtemp(prefix="g2vlm_faults_"))
        """For maps, and for what tells the process to fail."""
        self.context = rclpy.Context()
        rclpy.init(args=[], context=self.context)
        self.node = Operator("operator", context=self.context)
        self.status: ReconstructionStatus | None = None
        self.diagnostics = ""
        node = self.node
        node.create_subscription(
            ReconstructionStatus, "/perception/status", self._on_status, LATCHED
        )
        node.create_subscription(DiagnosticArray, "/diagnostics", self.on_diagnostics, 10)
        node.create_subscription(PointCloud2, "/perception/points", lambda _: None, 2)
        self.camera = node.create_publisher(Image, "/camera/image_raw", 10)
        self.camera_info = node.create_publisher(CameraInfo, "/camera/camera_info", 10)
        self.odometry = node.create_publisher(Odometry, "/odom", 10)
        self.clock = node.create_publisher(Clock, "/clock", 10)
        self.tf = node.create_publisher(TFMessage, "/tf_static", LATCHED)
        self.offset_s = 0.0
        """Added to the stamps of the camera."""
        self.spoil: Callable[[Image], None] | None = None
        self.silent = False
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

    def on_diagnostics(self, message: DiagnosticArray) -> None:
        """What the node says of itself."""
        self.diagnostics = " ".join(f"{each.name}: {each.message}" for each in message.status)

    def _spin(self) -> None:
        while not self.over.is_set():
            self.executor.spin_once(timeout_sec=0.1)

    def _drive(self) -> None:
        count = 0
        while not self.over.wait(0.1):
            if not self.silent:
                self.send_view(count)
                count += 1

    def send_view(self, count: int) -> None:
        """The camera's frame number `count`."""
        message = image(time.time() + self.offset_s, number=count // 4)
        if self.spoil:
            self.spoil(message)
        self.camera.publish(message)

    def start(self) -> None:
        """The process, unconfigured."""
        command = [sys.executable, "-m", self.module, "--ros-args"]
        command += ["--params-file", str(ROOT / "config" / "demo.yaml")]
        command += ["-p", f"model.checkpoint:={self.checkpoint}"]
        for name, value in self.parameters.items():
            command += ["-p", f"{name}:={value}"]
        environment = {**os.environ, "G2VLM_FAULTS": str(self.folder / "fault")}
        self.process = subprocess.Popen(
            command,
            stdout=self.log,
            stderr=self.log,
            cwd=ROOT,
            env=environment,
        )
        self.status = None

    def fail(self, fault: str) -> None:
        """Tell the process of `saboteur` how its next windows fail; empty: no longer."""
        (self.folder / "fault").write_text(fault)

    def call(self, kind: type, name: str, request: Any, timeout_s: float = ANSWER_S) -> Any:
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

    def change(self, name: str | int) -> bool:
        """Whether a transition, by name or number, was made."""
        number = name if isinstance(name, int) else TRANSITIONS[name]
        request = ChangeState.Request(transition=Transition(id=number))
        response = self.call(ChangeState, "change_state", request)
        return bool(response and response.success)

    def answers(self) -> bool:
        """Whether the node says its state: after a kill the old one is still announced a while."""
        state = GetState.Request()
        return any(self.call(GetState, "get_state", state, 3.0) for _ in range(int(ANSWER_S / 3)))

    def bring_up(self) -> bool:
        """Whether it could be configured and activated."""
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

    def works_again(self, what: str) -> Seen:
        """That it goes on, after `what` was seen."""
        return Seen(what, self.works())

    def rests(self, quiet_s: float = 1.0) -> bool:
        """Whether windows come to an end, for so long at least, when the camera is silent."""
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            newest = self.status.window_id if self.status else 0
            time.sleep(quiet_s)
            if self.status and self.status.window_id == newest:
                return True
        return False

    def hangs(self) -> bool:
        """Whether a job of the device has been running for a while."""
        return self.until(lambda: self.status and self.status.job_s > 3.0)

    def ends(self, timeout_s: float = ANSWER_S) -> int | None:
        """The exit code of the process; None where it does not end in time."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def said(self) -> str:
        """All of its log so far."""
        self.log.flush()
        self.log.seek(0)
        return self.log.read()

    def account(self) -> str:
        """What the node says of itself: /diagnostics, ~/status, the end of its log."""
        return "\n".join([self.diagnostics, str(self.status), *self.said().splitlines()[-LINES:]])

    def close(self) -> None:
        """End everything."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.over.set()
        for thread in self.threads:
            thread.join()
        self.node.destroy_node()
        rclpy.try_shutdown(context=self.context)


@contextmanager
def robot(**arguments: Any) -> Iterator[Robot]:
    """A Robot for a while."""
    it = Robot(**arguments)
    try:
        yield it
    finally:
        it.close()
        shutil.rmtree(it.folder, ignore_errors=True)
