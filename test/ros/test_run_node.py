# SPDX-License-Identifier: Apache-2.0
"""A node's process ends in order, in bounded time, however often it is told to."""

import gc
import signal
import sys
import threading
import time

import pytest
from g2vlm_tests.harness import SMALL
from g2vlm_tests.node_process import PERCEPTION, ROOT, NodeProcess, change_state

pytest.importorskip("rclpy")

STEADY = """
import sys, threading, time
from rclpy.node import Node
from std_srvs.srv import Trigger
from g2vlm_ros.ros.run_node import run

class Steady(Node):
    def __init__(self):
        super().__init__("steady")
        self.create_timer(0.05, self.tick)
        self.ticks = 0

    def tick(self):
        self.ticks += 1
        if self.ticks == 2:
            raise KeyError("a bug in a callback")
        if self.ticks == 4:
            print("alive", flush=True)
        {tick}

    def destroy_node(self):
        {destroy}
        super().destroy_node()

sys.exit(run("steady", Steady, []))
"""
LATE = """
import os, time

class Late:
    '''Goes when the interpreter takes its modules down.'''

    def __del__(self, write=os.write, sleep=time.sleep):
        write(1, b"the interpreter ends\\n")
        sleep(1.0)

late = Late()
"""
STARTER = """
import os, subprocess, sys
os.environ["G2VLM_ROS_END_WITH_PARENT"] = "1"
subprocess.run([sys.executable, "-c", sys.stdin.read()])
"""


SLOW_MODEL = """
import sys, time
from g2vlm_ros.ros import perception_node

def load(settings):
    print("loading", flush=True)
    time.sleep(60)

perception_node.open_and_warm_up = load
arguments = ["--ros-args", "-p", "autostart:=true", "-p", "model.checkpoint:=/"]
sys.exit(perception_node.main([*sys.argv[:1], *arguments]))
"""


def steady(tick="pass", destroy="pass"):
    return NodeProcess(sys.executable, "-c", STEADY.format(tick=tick, destroy=destroy))


def test_a_callback_that_raises_is_logged_and_the_node_goes_on():
    process = steady()
    before = process.wait_for("alive")
    assert "a callback failed" in before and "a bug in a callback" in before
    process.signal(signal.SIGTERM)
    code, output = process.end()
    assert code == 0 and "Traceback" not in output


@pytest.mark.parametrize(
    "signals", [[signal.SIGINT] * 3, [signal.SIGTERM] * 2, [signal.SIGHUP, signal.SIGINT]]
)
def test_signals_that_come_again_interrupt_no_clean_up(signals):
    process = steady(destroy="time.sleep(0.5); print('cleaned up', flush=True)")
    process.wait_for("alive")
    process.signal(*signals)
    code, output = process.end()
    assert code == 0 and "cleaned up" in output and "Traceback" not in output


def test_a_signal_while_the_interpreter_ends_does_not_kill_the_process():
    """Python has put its own handlers away by then: a second Ctrl-C ended it with -2."""
    code = LATE + STEADY.format(tick="pass", destroy="pass")
    process = NodeProcess(sys.executable, "-c", code)
    process.wait_for("alive")
    process.signal(signal.SIGINT)
    process.wait_for("the interpreter ends")
    process.signal(signal.SIGINT)
    assert process.end() == (0, "")


def test_a_node_ends_in_order_with_the_launch_that_was_killed():
    """`ros2 launch` dies of SIGTERM without telling its nodes."""
    process = NodeProcess(sys.executable, "-c", STARTER, stdin=-1)
    code = STEADY.format(tick="pass", destroy="print('cleaned up', flush=True)")
    process.popen.stdin.write(code)
    process.popen.stdin.close()
    process.wait_for("alive")
    process.popen.kill()
    assert "cleaned up" in process.popen.stdout.read(), "its output ends when it does"


def test_an_executable_that_still_imports_ends_without_a_traceback(tmp_path):
    script = tmp_path / "lib" / "g2vlm_ros" / "replay"
    script.parent.mkdir(parents=True)
    script.write_text("import time, g2vlm_ros.ros\nprint('importing', flush=True)\ntime.sleep(60)")
    process = NodeProcess(sys.executable, str(script), cwd=ROOT)
    process.wait_for("importing")
    process.signal(signal.SIGINT)
    assert process.end() == (0, "")


def test_a_node_that_should_start_by_itself_and_cannot_ends_with_code_1():
    wrong = ["-p", "autostart:=true", "-p", "model.checkpoint:=/nowhere"]
    code, output = NodeProcess(*PERCEPTION, *wrong).end(60)
    assert code == 1 and "Traceback" not in output, output
    assert "/nowhere is not a folder" in output


def test_sigint_while_a_model_loads_ends_the_node_in_time():
    slow = NodeProcess(sys.executable, "-c", SLOW_MODEL)
    slow.wait_for("loading")
    start = time.monotonic()
    slow.signal(signal.SIGINT, signal.SIGINT)
    code, output = slow.end()
    assert code == 0 and "Traceback" not in output, output
    assert time.monotonic() - start < 4.5 and "a transition is running" in output


@pytest.mark.parametrize("what", ["tick", "destroy"])
def test_what_hangs_is_cut_off_in_the_stated_time(what):
    from g2vlm_ros.ros.run_node import END_S

    hang = "self.ticks > 4 and time.sleep(60)" if what == "tick" else "time.sleep(60)"
    process = steady(**{what: hang})
    process.wait_for("alive")
    time.sleep(0.3)
    start = time.monotonic()
    process.signal(signal.SIGTERM)
    code, output = process.end()
    assert time.monotonic() - start < END_S + 3
    assert code == (1 if what == "destroy" else 0)
    assert ("cut off" in output) == (what == "destroy")


@pytest.mark.parametrize("apart_s", [0.05, 0.6])
def test_an_active_perception_node_ends_without_a_traceback_at_a_second_sigint(apart_s):
    """At once, as a terminal and `ros2 launch` send it, and as an impatient user does."""
    from lifecycle_msgs.msg import Transition

    settings = {**SMALL, "cameras": "[camera]"}
    arguments = [part for k, v in settings.items() for part in ("-p", f"{k}:={v}")]
    process = NodeProcess(*PERCEPTION, "-r", "__ns:=/ends", *arguments)
    try:
        change_state("/ends/perception", Transition.TRANSITION_CONFIGURE)
        change_state("/ends/perception", Transition.TRANSITION_ACTIVATE)
        assert not change_state("/ends/perception", Transition.TRANSITION_ACTIVATE)
        process.signal(signal.SIGINT, signal.SIGINT, signal.SIGINT, apart_s=apart_s)
        code, output = process.end()
        assert code == 0 and "Traceback" not in output, output
    finally:
        process.popen.kill()


@pytest.mark.parametrize(
    "parameter", ["cameras:=[]", "cameras:=[cam, front-left]", "window.views:=77"]
)
def test_a_wrong_parameter_is_one_sentence_and_exit_code_2(parameter):
    code, output = NodeProcess(*PERCEPTION, "-p", parameter).end(60)
    assert code == 2 and "Traceback" not in output, output
    assert parameter.split(":=")[0] in output


def test_a_pytest_that_is_told_to_end_is_not_kept_by_rclpy(ros):
    """Its handler would take SIGTERM, and shut contexts down instead."""
    options = ros.signals.get_current_signal_handlers_options()
    handlers = ros.signals.SignalHandlerOptions
    assert options in (handlers.NO, handlers.SIGINT), "another test may have left that of SIGINT"


def test_a_callback_that_ends_after_its_executor_leaves_no_line_of_rclpy(ros, capfd):
    """The executor's guard condition, which each callback triggers at its end, is gone by then."""
    from rclpy.executors import MultiThreadedExecutor
    from std_msgs.msg import Empty

    from g2vlm_ros.ros.run_node import Spinner

    node, executor = ros.create_node("slow"), MultiThreadedExecutor(2)
    began = threading.Event()

    def take(_message):
        began.set()
        time.sleep(0.3)

    node.create_subscription(Empty, "slow", take, 10)
    topic = node.create_publisher(Empty, "slow", 10)
    executor.add_node(node)
    failures = []
    spinner = Spinner(executor, failures.append).start()
    while not began.is_set():
        topic.publish(Empty())
        time.sleep(0.02)
    topic.publish(Empty())
    assert spinner.stop(5.0) and not failures
    del executor, spinner.executor
    node.destroy_node()
    gc.collect()
    assert "never retrieved" not in capfd.readouterr().err
