# SPDX-License-Identifier: Apache-2.0
"""Asks where to stand before a thing, and sends Nav2 there: ``examples/go_to.py red chair``.

The answer's pose is a goal as it is: on the floor, x towards the thing, in `--frame`. Nav2 plans
in its global frame, so name that one where it is not the node's map. Needs nav2_msgs.

A thing that is in no view is driven to where it was seen last. With ``--look-again`` the robot
goes to the place from which it saw the thing last, looks, and says whether it is still there.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

import rclpy
from action_msgs.msg import GoalStatus
from g2vlm_ros.action import AnswerSpatialQuery
from g2vlm_ros.srv import SpatialQuery
from geometry_msgs.msg import PoseStamped
from rclpy.action import ActionClient

from g2vlm_ros.ros.client.client import AsyncSpatialClient, SpatialClient, UnreachableError

try:
    from nav2_msgs.action import NavigateToPose
except ImportError:
    NavigateToPose = None

TREE = Path(__file__).resolve().with_name("go_to.xml")
DISCOVERY_S = 5.0


def stand_before(thing: str, frame: str, **fields: Any) -> SpatialQuery.Response:
    """The pose to drive to, or why there is none."""
    with SpatialClient() as robot:
        kind = SpatialQuery.Request.POSE
        return robot.ask(f"Go to the {thing}", answer_kind=kind, target_frame=frame, **fields)


def look_from(thing: str) -> tuple[PoseStamped | None, str]:
    """Where the robot saw a remembered thing last, x towards it; or None, and why."""
    with SpatialClient() as robot:
        memory = robot.find(thing)
        if not memory.success:
            return None, memory.error_msg
        robot.look_again(memory.objects[0].id)
    pose = PoseStamped(header=memory.header, pose=memory.objects[0].seen_from)
    pose.pose.position.z = 0.0
    return pose, f"Go back to where the {memory.objects[0].label} was seen last."


def look(thing: str, **fields: Any) -> AnswerSpatialQuery.Result:
    """Where a thing is in a window that is taken now, memory left aside."""
    kind = SpatialQuery.Request.POINT

    async def ask() -> AnswerSpatialQuery.Result:
        async with AsyncSpatialClient() as robot:
            return await robot.answer(
                f"Where is the {thing}?",
                answer_kind=kind,
                use_memory=False,
                fresh_window=True,
                **fields,
            )

    return asyncio.run(ask())


def drive(node: Any, pose: PoseStamped, tree: str) -> int:
    """Send the goal and wait for its end; returns a GoalStatus. ConnectionError without Nav2."""
    if NavigateToPose is None:
        raise ConnectionError(
            "nav2_msgs is not installed; install Nav2 (ros-$ROS_DISTRO-nav2-msgs)"
        )
    action = ActionClient(node, NavigateToPose, "navigate_to_pose")
    if not action.wait_for_server(DISCOVERY_S):
        raise ConnectionError("navigate_to_pose is not offered; start Nav2 first")
    sent = action.send_goal_async(NavigateToPose.Goal(pose=pose, behavior_tree=tree))
    rclpy.spin_until_future_complete(node, sent)
    if not sent.result().accepted:
        return GoalStatus.STATUS_ABORTED
    ended = sent.result().get_result_async()
    rclpy.spin_until_future_complete(node, ended)
    return ended.result().status


def arrives(pose: PoseStamped, tree: str) -> bool:
    """Whether Nav2 brings the robot there."""
    rclpy.init(args=[])
    try:
        return drive(rclpy.create_node("go_to"), pose, tree) == GoalStatus.STATUS_SUCCEEDED
    finally:
        rclpy.try_shutdown()


def main(arguments: list[str] | None = None, **fields: Any) -> int:
    """Exit code 0 where the robot arrived, and saw the thing again; 1 where it did not; 2 where
    somebody is not there."""
    parser = argparse.ArgumentParser(prog="go_to", description=__doc__.split("\n")[0])
    parser.add_argument("thing", nargs="+")
    parser.add_argument("--frame", default="map", help="Nav2's global frame")
    parser.add_argument(
        "--tree", default=str(TREE), help="behaviour tree, a path on Nav2's machine"
    )
    parser.add_argument(
        "--look-again", action="store_true", help="only look whether the thing is still there"
    )
    parser.add_argument(
        "--wait-s", type=float, default=10.0, help="give up looking for the thing after this long"
    )
    options = parser.parse_args(arguments)
    fields = {"max_wait_s": options.wait_s, **fields}
    try:
        thing = " ".join(options.thing)
        if options.look_again:
            pose, text = look_from(thing)
        else:
            answer = stand_before(thing, options.frame, **fields)
            pose = answer.pose if answer.success else None
            text = answer.answer if answer.success else answer.error_msg
        print(text)
        if pose is None or not arrives(pose, options.tree):
            return 1
        if options.look_again:
            answer = look(thing, **fields)
            print(answer.answer if answer.success else answer.error_msg)
            return int(not answer.success)
        return 0
    except (UnreachableError, ConnectionError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
