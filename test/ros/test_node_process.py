# SPDX-License-Identifier: Apache-2.0
"""The perception node as a process that a planner asks while an operator changes its states."""

import signal
import sys
import threading
import time

import pytest
from g2vlm_tests.harness import SMALL, TIMEOUT_S, image
from g2vlm_tests.node_process import NodeProcess

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy")

NAME = "/lived/perception"
ROUNDS = 4
GOAL_PERIOD_S = 0.02
"""A planner that polls: at 0.1 s the process lived, at 0.01 to 0.02 s it died in 2 of 5 runs."""


@pytest.fixture(scope="module")
def fault(tmp_path_factory):
    """The file that says how the network fails, see `g2vlm_tests.faults.saboteur`."""
    return tmp_path_factory.mktemp("faults") / "fault"


@pytest.fixture(scope="module")
def process(fault):
    """Unconfigured."""
    settings = {**SMALL, "cameras": "[camera]"}
    arguments = [part for k, v in settings.items() for part in ("-p", f"{k}:={v}")]
    module = [sys.executable, "-m", "g2vlm_tests.faults.saboteur", "--ros-args"]
    environment = {"G2VLM_FAULTS": str(fault)}
    process = NodeProcess(*module, "-r", "__ns:=/lived", *arguments, environment=environment)
    yield process
    process.popen.kill()
    process.popen.wait()


@pytest.fixture(scope="module")
def operator():
    """A node beside the process, spun by a thread of its own."""
    import rclpy
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState

    from g2vlm_ros.ros.rclpy_workarounds import SafeEntities

    class Operator(SafeEntities, rclpy.node.Node):
        """Its clients are made while it is spun."""

    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    node = Operator("operator", context=context)
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(node)
    over = threading.Event()

    def spin():
        while not over.is_set():
            executor.spin_once(timeout_sec=0.1)

    thread = threading.Thread(target=spin)
    thread.start()
    clients = {}

    def change(transition_id):
        """Whether the transition was made."""
        if not clients:
            clients[0] = node.create_client(ChangeState, f"{NAME}/change_state")
            assert clients[0].wait_for_service(TIMEOUT_S)
        request = ChangeState.Request(transition=Transition(id=transition_id))
        future = clients[0].call_async(request)
        wait_until(future.done, f"transition {transition_id}")
        return future.result().success

    node.change = change
    yield node
    over.set()
    thread.join()
    node.destroy_node()
    rclpy.shutdown(context=context)


def test_a_process_outlives_goals_that_arrive_while_it_is_cleaned_up(process, operator):
    from g2vlm_ros.action import AnswerSpatialQuery
    from lifecycle_msgs.msg import Transition

    from g2vlm_ros.ros.rclpy_workarounds import SafeActionClient

    client = SafeActionClient(operator, AnswerSpatialQuery, f"{NAME}/answer")
    over, sent = threading.Event(), []

    def poll():
        while not over.wait(GOAL_PERIOD_S):
            if client.server_is_ready():
                goal = AnswerSpatialQuery.Goal(question=f"What is there? {len(sent)}")
                sent.append(client.send_goal_async(goal))

    planner = threading.Thread(target=poll)
    planner.start()
    try:
        for _ in range(ROUNDS):
            before = len(sent)
            assert operator.change(Transition.TRANSITION_CONFIGURE)
            assert operator.change(Transition.TRANSITION_ACTIVATE)
            wait_until(lambda goals=before: len(sent) > goals + 5, "goals")
            assert operator.change(Transition.TRANSITION_DEACTIVATE)
            assert operator.change(Transition.TRANSITION_CLEANUP)
            assert process.popen.poll() is None
    finally:
        over.set()
        planner.join()
        client.destroy()
    assert operator.change(Transition.TRANSITION_CONFIGURE)
    assert operator.change(Transition.TRANSITION_CLEANUP)


def test_sigterm_ends_a_process_whose_device_hangs_in_the_stated_time(process, operator, fault):
    """And its status said so before."""
    from g2vlm_ros.msg import ReconstructionStatus
    from lifecycle_msgs.msg import Transition
    from sensor_msgs.msg import Image, PointCloud2

    from g2vlm_ros.ros.run_node import END_S

    fault.write_text("")
    assert operator.change(Transition.TRANSITION_CONFIGURE)
    assert operator.change(Transition.TRANSITION_ACTIVATE)
    job_s = []
    operator.create_subscription(
        ReconstructionStatus, f"{NAME}/status", lambda status: job_s.append(status.job_s), 10
    )
    operator.create_subscription(PointCloud2, f"{NAME}/points", lambda _: None, 2)
    camera = operator.create_publisher(Image, "/lived/camera/image_raw", 10)
    fault.write_text("hang")
    stamps = (100.0 + 0.1 * k for k in range(10**6))

    def hangs():
        camera.publish(image(next(stamps)))
        return job_s and job_s[-1] > 1.0

    wait_until(hangs, "the device to hang")
    start = time.monotonic()
    process.signal(signal.SIGTERM)
    code, output = process.end()
    assert time.monotonic() - start < END_S + 3.0, "3 s for a machine that does much else"
    assert code in (0, 1) and "Traceback" not in output, output


def wait_until(condition, what):
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {TIMEOUT_S} s for {what}"
        time.sleep(0.02)
