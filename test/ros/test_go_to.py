# SPDX-License-Identifier: Apache-2.0
"""The Nav2 example drives to where the answer says, against an action server that records."""

import importlib.util
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace as N

import numpy as np
import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("torch", reason="the golden checkpoint runs on the torch backend here")

from g2vlm_tests.asking import SMALL_QUERY, feed  # noqa: E402
from g2vlm_tests.harness import bench  # noqa: E402

EXAMPLES = Path(__file__).parents[2] / "examples"
NAV2_NODES = {
    "RecoveryNode",
    "PipelineSequence",
    "RateController",
    "GoalUpdater",
    "ComputePathToPose",
    "FollowPath",
    "ClearEntireCostmap",
    "Wait",
}
OLD = {"max_age_s": 1e12, "max_wait_s": 20.0}


def chair():
    """A detector's message in the layout of vision_msgs, which need not be installed."""
    from builtin_interfaces.msg import Time
    from std_msgs.msg import Header

    centre = N(position=N(x=32.0, y=24.0), theta=0.0)
    result = N(hypothesis=N(class_id="red chair", score=0.9))
    box = N(bbox=N(center=centre, size_x=12.0, size_y=20.0), results=[result])
    stamp = Time(sec=1000, nanosec=100_000_000)
    return N(header=Header(frame_id="optical", stamp=stamp), detections=[box])


@pytest.fixture(scope="module")
def made():
    with bench(**SMALL_QUERY, **{"map.metres_per_unit": 1.0}) as made:
        feed(made)
        yield made


@pytest.fixture
def goals(made):
    """Goals that the stand-in for Nav2 received; it aborts those with an empty tree."""
    action = pytest.importorskip("nav2_msgs.action", reason="needs nav2_msgs or its stand-in")
    from rclpy.action import ActionServer

    received = []

    def execute(goal):
        received.append(goal.request)
        goal.succeed() if goal.request.behavior_tree else goal.abort()
        return action.NavigateToPose.Result()

    server = ActionServer(made.peer, action.NavigateToPose, "navigate_to_pose", execute)
    yield received
    server.destroy()


def go_to(*arguments, **fields):
    spec = importlib.util.spec_from_file_location("go_to", EXAMPLES / "go_to.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example.main(list(arguments), **{**OLD, **fields})


def test_the_goal_is_the_pose_of_the_answer(made, goals, capsys):
    from g2vlm_ros.ros.client.client import SpatialClient

    made.queries.worker.detections.receive(chair())
    assert go_to("red", "chair") == 0
    assert "Stand at" in capsys.readouterr().out
    (goal,) = goals
    assert goal.behavior_tree == str(EXAMPLES / "go_to.xml")
    with SpatialClient() as robot:
        thing = robot.locate("red chair", **OLD).pose.pose.position
    pose, q = goal.pose.pose, goal.pose.pose.orientation
    assert goal.pose.header.frame_id == "map" and goal.pose.header.stamp.sec == 1000
    assert (q.x, q.y) == pytest.approx((0, 0), abs=1e-6), "upright, as Nav2 drives"
    assert math.hypot(q.z, q.w) == pytest.approx(1)
    yaw = 2 * math.atan2(q.z, q.w)
    towards = np.subtract((thing.x, thing.y), (pose.position.x, pose.position.y))
    assert towards @ (math.cos(yaw), math.sin(yaw)) > 0, "looks at the chair"


def test_no_goal_is_sent_without_a_place(made, goals, capsys):
    made.queries.worker.detections.clear()
    assert go_to("red", "chair", "--frame", "nowhere") == 1
    assert not goals and "nowhere" in capsys.readouterr().out


def test_a_goal_that_nav2_aborts_is_a_failure(made, goals):
    made.queries.worker.detections.receive(chair())
    assert go_to("red", "chair", "--tree", "") == 1 and len(goals) == 1


@pytest.fixture
def cup(made):
    """A cup that was seen long ago, from (2, -1)."""
    from g2vlm_ros.query.map_object import MapObject

    thing = MapObject(
        id=4,
        label="blue cup",
        centre=np.array([2.0, 1.0, 0.1]),
        size=np.array([0.1, 0.1, 0.12]),
        yaw_rad=0.0,
        covariance=np.eye(3) * 0.01,
        map_id=0,
        window_id=0,
        first_seen_ns=10**9,
        last_seen_ns=2 * 10**9,
        sightings=3,
        evidence=4.0,
        seen_from=np.array([2.0, -1.0, 0.8]),
    )
    made.queries.worker.detections.clear()
    made.node.objects.replace_all([thing])
    yield thing
    made.node.objects.clear()


def test_a_thing_that_is_in_no_view_is_driven_to_from_memory(cup, goals, capsys):
    assert go_to("blue", "cup") == 0
    assert "the blue cup was seen" in capsys.readouterr().out
    (goal,) = goals
    away = np.subtract(cup.centre[:2], (goal.pose.pose.position.x, goal.pose.pose.position.y))
    assert 0.5 < np.hypot(*away) < 0.9, "stands before it"


def test_the_robot_looks_again_from_where_it_saw_the_thing_last(made, cup, goals, capsys):
    assert go_to("blue", "cup", "--look-again", max_wait_s=2.0) == 1, "no view shows it"
    (goal,) = goals
    place = goal.pose.pose.position
    assert (place.x, place.y, place.z) == pytest.approx((2.0, -1.0, 0.0))
    assert goal.pose.pose.orientation.z == pytest.approx(0.5**0.5), "towards it"
    assert "Go back to where the blue cup" in capsys.readouterr().out
    made.node.objects.clear()
    assert go_to("blue", "cup", "--look-again") == 1 and len(goals) == 1


def test_the_tree_uses_nodes_of_nav2_and_one_goal():
    tree = ElementTree.parse(EXAMPLES / "go_to.xml").getroot()
    name = tree.get("main_tree_to_execute")
    (behaviour,) = [each for each in tree.findall("BehaviorTree") if each.get("ID") == name]
    used = {element.tag for element in behaviour.iter()} - {"BehaviorTree", "Sequence"}
    assert used == NAV2_NODES
    updater = behaviour.find(".//GoalUpdater")
    (planner,) = updater
    assert updater.get("input_goal") == "{goal}", "the name under which Nav2 hands its goal over"
    assert planner.get("goal") == updater.get("output_goal")
    assert planner.get("path") == behaviour.find(".//FollowPath").get("path")
