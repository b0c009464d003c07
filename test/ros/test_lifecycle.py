# SPDX-License-Identifier: Apache-2.0
"""Transitions are all or nothing, whenever they come and whatever goes on meanwhile."""

import gc
import random
import threading
import time
from pathlib import Path

import pytest
from g2vlm_tests.harness import SMALL, TIMEOUT_S, Bench, bench, image
from g2vlm_tests.transitions import random_transitions, state

rclpy = pytest.importorskip("rclpy")

START_S = 100.0


def change_state(made, transition_id):
    """The answer of ~/change_state."""
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState

    request = ChangeState.Request(transition=Transition(id=transition_id))
    return made.call(ChangeState, "/perception/change_state", request).success


def test_a_transition_out_of_turn_is_answered_false_and_changes_nothing():
    from lifecycle_msgs.msg import Transition

    made = Bench()
    try:
        assert not change_state(made, Transition.TRANSITION_ACTIVATE)
        assert not change_state(made, 200)
        assert state(made) == "unconfigured"
        assert change_state(made, Transition.TRANSITION_CONFIGURE)
        assert change_state(made, Transition.TRANSITION_ACTIVATE)
        assert not change_state(made, Transition.TRANSITION_ACTIVATE)
        assert not change_state(made, Transition.TRANSITION_CONFIGURE)
        assert state(made) == "active" and not made.escaped
        made.send("/camera/image_raw", image(START_S))
    finally:
        made.close()


def test_shutting_down_twice_is_refused_the_second_time():
    from rclpy.lifecycle import TransitionCallbackReturn

    made = Bench()
    try:
        assert made.node.trigger_shutdown() == TransitionCallbackReturn.SUCCESS
        assert made.node.trigger_shutdown() == TransitionCallbackReturn.FAILURE
    finally:
        made.close()


@pytest.mark.parametrize("name", ["front-left", "1st", "a//b", "a b", "cam/", "ca\nm"])
def test_a_camera_that_is_no_ros_name_is_refused_when_it_is_set(name):
    from rclpy.parameter import Parameter

    made = Bench()
    try:
        result = made.node.set_parameters([Parameter("cameras", value=["cam", name])])[0]
        assert not result.successful
        assert "cameras" in result.reason and repr(name) in result.reason
        good = [Parameter("cameras", value=["/robot/front_left"])]
        assert made.node.set_parameters(good)[0].successful
    finally:
        made.close()


@pytest.mark.parametrize("broken", ["last_subscription", "timer", "odometry"])
def test_an_activation_that_fails_leaves_nothing_behind(monkeypatch, broken):
    from rclpy.lifecycle import TransitionCallbackReturn

    from g2vlm_ros.ros.inputs import cameras

    settings = {"odometry_topic": "/odom"} if broken == "odometry" else {}
    made = Bench(**settings)
    try:
        assert made.node.trigger_configure() == TransitionCallbackReturn.SUCCESS

        def fail(*_, **__):
            raise RuntimeError("out of resources")

        if broken == "timer":
            monkeypatch.setattr(made.node, "create_timer", fail)
        elif broken == "odometry":
            monkeypatch.setattr(cameras, "OdometryPoses", fail)
        else:
            create = made.node.create_subscription

            def refuse_camera_info(kind, topic, *arguments, **named):
                if topic.endswith("camera_info"):
                    fail()
                return create(kind, topic, *arguments, **named)

            monkeypatch.setattr(made.node, "create_subscription", refuse_camera_info)
        assert made.node.trigger_activate() == TransitionCallbackReturn.FAILURE
        assert state(made) == "inactive" and not made.node.windows.is_active()
        made.until(lambda: made.peer.count_subscribers("/camera/image_raw") == 0, "no listener")
        monkeypatch.undo()
        assert made.node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        made.send("/camera/image_raw", image(START_S))
        assert made.node.counts().received == 1 and not made.escaped
    finally:
        made.close()


def test_a_configuration_that_fails_half_way_leaves_no_topic(monkeypatch):
    from rclpy.lifecycle import TransitionCallbackReturn

    from g2vlm_ros.ros import perception_node

    made = Bench()
    try:
        before = len(list(made.node.publishers)), len(list(made.node.services))

        def fail(*_, **__):
            raise OSError("no more topics")

        monkeypatch.setattr(perception_node, "PointService", fail)
        assert made.node.trigger_configure() == TransitionCallbackReturn.FAILURE
        assert state(made) == "unconfigured"
        assert (len(list(made.node.publishers)), len(list(made.node.services))) == before
        monkeypatch.undo()
        made.start()
    finally:
        made.close()


def test_a_language_that_cannot_run_is_found_at_configure_and_not_at_the_first_question(
    monkeypatch,
):
    from rclpy.lifecycle import TransitionCallbackReturn

    from g2vlm_ros.perception import Perception

    def fail(*_, **__):
        raise ValueError("language.onnx is missing")

    monkeypatch.setattr(Perception, "speaks", property(lambda _: True))
    monkeypatch.setattr(Perception, "ask", fail)
    made = Bench()
    try:
        assert made.node.trigger_configure() == TransitionCallbackReturn.FAILURE
        assert state(made) == "unconfigured" and not made.escaped
    finally:
        made.close()


def test_the_executor_survives_a_callback_that_raises_and_counts_it():
    with bench() as made:

        def fail(_message):
            raise KeyError("a bug")

        from std_msgs.msg import Empty

        made.peer.create_subscription(Empty, "/trouble", fail, 10)
        made.publish("/trouble", Empty())
        made.until(lambda: made.escaped, "the failure")
        made.send("/camera/image_raw", image(START_S))
        assert made.spinner.failures == 1 and made.spinner.alive
        assert isinstance(made.escaped[0], KeyError)


def test_shutting_down_in_the_middle_of_a_report(monkeypatch):
    """A sensor was subscribed to again in it, while the process ended: AttributeError of None."""
    with bench() as made:
        inside, over = threading.Event(), threading.Event()

        def renew_silent():
            inside.set()
            over.wait(TIMEOUT_S)

        monkeypatch.setattr(made.node.cameras, "renew_silent", renew_silent)
        assert inside.wait(TIMEOUT_S)
        end = threading.Thread(target=made.node.trigger_shutdown)
        end.start()
        made.until(lambda: made.node.cameras is None, "the shutdown")
        time.sleep(0.2)
        over.set()
        end.join(TIMEOUT_S)
        assert state(made) == "finalized" and not end.is_alive()
        time.sleep(0.2)
        assert not made.escaped, made.escaped[0]


def test_cleaning_up_while_goals_arrive_leaves_a_node_that_can_be_configured(monkeypatch):
    from g2vlm_ros.action import AnswerSpatialQuery
    from g2vlm_ros.srv import SpatialQuery
    from rclpy.lifecycle import TransitionCallbackReturn

    from g2vlm_ros.ros import perception_node
    from g2vlm_ros.ros.rclpy_workarounds import SafeActionClient

    with bench() as made:
        # Loaded once: what is tried here is what goes and comes around the model.
        monkeypatch.setattr(perception_node, "open_and_warm_up", lambda _, it=made.perception: it)
        client = SafeActionClient(made.peer, AnswerSpatialQuery, "/perception/answer")
        service = made.peer.create_client(SpatialQuery, "/perception/query")
        for _ in range(20):
            made.until(client.server_is_ready, "the action")
            for k in range(6):
                goal = AnswerSpatialQuery.Goal(question=f"What is there? {k}", max_wait_s=1.0)
                client.send_goal_async(goal)
                service.call_async(SpatialQuery.Request(question="What?", max_wait_s=1.0))
            time.sleep(random.uniform(0.0, 0.03))
            assert made.node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
            assert made.node.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
            assert made.spinner.alive
            made.start()
        assert not made.escaped, made.escaped[0]


def dds_threads():
    """How many threads of DDS this process has: those of its participants."""
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return sum(name.startswith("dds") for name in names)


def test_a_destroyed_node_leaves_the_graph_at_once_and_not_with_the_garbage():
    from rclpy.parameter import Parameter

    from g2vlm_ros.ros.perception_node import PerceptionNode

    gc.collect()
    gc.disable()
    try:
        before, context = dds_threads(), rclpy.Context()
        rclpy.init(args=[], context=context)
        overrides = [Parameter(k, value=v) for k, v in SMALL.items()]
        node = PerceptionNode(context=context, parameter_overrides=overrides)
        node.trigger_configure()
        assert dds_threads() > before + 3
        node.trigger_shutdown()
        node.destroy_node()
        assert dds_threads() <= before + 1, "one serves all participants of a process"
        rclpy.shutdown(context=context)
    finally:
        gc.enable()


def test_random_transitions_under_load_keep_node_and_executor_alive():
    """A slice of the long run, `g2vlm_tests.transitions`."""
    made = Bench()
    try:
        random_transitions(made, 60, seed=1)
        assert not made.escaped, made.escaped[0]
    finally:
        made.close()


def test_deactivating_does_not_wait_for_a_device_that_hangs(monkeypatch):
    from rclpy.lifecycle import TransitionCallbackReturn
    from sensor_msgs.msg import PointCloud2

    from g2vlm_ros.perception import Perception
    from g2vlm_ros.ros import perception_node

    monkeypatch.setattr(perception_node, "DEVICE_WAIT_S", 0.2)
    released = threading.Event()
    with bench() as made:
        reconstruct = Perception.reconstruct

        def hang(self, scene):
            released.wait(20)
            return reconstruct(self, scene)

        monkeypatch.setattr(Perception, "reconstruct", hang)
        made.listen(PointCloud2, "/perception/points")
        for k in range(2):
            made.publish("/camera/image_raw", image(START_S + k))
        made.until(lambda: made.node.scheduler.running_for_s() > 0, "the job that hangs")
        start = time.monotonic()
        assert made.node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
        assert time.monotonic() - start < 5.0
        assert made.node.trigger_cleanup() == TransitionCallbackReturn.FAILURE
        assert state(made) == "inactive"
        released.set()
        made.until(lambda: made.node.scheduler.running_for_s() == 0, "the end of the job")
        assert made.node.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
