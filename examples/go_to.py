# SPDX-License-Identifier: Apache-2.0
"""Asks where to stand before a thing, and sends Nav2 there: ``examples/go_to.py red chair``.

The answer's pose is a goal as it is: on the floor, x towards the thing, in `--frame`. Nav2 plans
in its global frame, so name that one where it is not the node's map. Needs nav2_msgs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import rclpy
from action_msgs.msg import GoalStatus
from g2vlm_ros.srv import SpatialQuery
from geometry_msgs.msg import PoseStamped
from rclpy.action import ActionClient

from g2vlm_ros.ros.client.client import SpatialClient, UnreachableError

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


def main(arguments: list[str] | None = None, **fields: Any) -> int:
    """Exit code 0 where the robot arrived, 1 where it did not, 2 where somebody is not there."""
    parser = argparse.ArgumentParser(prog="go_to", description=__doc__.split("\n")[0])
    parser.add_argument("thing", nargs="+")
    parser.add_argument("--frame", default="map", help="Nav2's global frame")
    parser.add_argument(
        "--tree", default=str(TREE), help="behaviour tree, a path on Nav2's machine"
    )
    parser.add_argument(
        "--wait-s", type=float, default=10.0, help="give up looking for the thing after this long"
    )
    options = parser.parse_args(arguments)
    fields = {"max_wait_s": options.wait_s, **fields}
    try:
        answer = stand_before(" ".join(options.thing), options.frame, **fields)
        print(answer.answer if answer.success else answer.error_msg)
        if not answer.success:
            return 1
        rclpy.init(args=[])
        try:
            node = rclpy.create_node("go_to")
            return int(drive(node, answer.pose, options.tree) != GoalStatus.STATUS_SUCCEEDED)
        finally:
            rclpy.try_shutdown()
    except (UnreachableError, ConnectionError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
