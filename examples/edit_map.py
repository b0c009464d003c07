# SPDX-License-Identifier: Apache-2.0
"""Remove what is inside a cube of the map, say how much that was, and take it back.

python3 examples/edit_map.py X Y Z SIDE      (centre and side in metres, in the map frame)
"""

from __future__ import annotations

import sys

import rclpy
from g2vlm_ros.srv import EditMap
from geometry_msgs.msg import Vector3


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 where something was removed and brought back."""
    x, y, z, side = map(float, sys.argv[1:] if arguments is None else arguments)
    rclpy.init(args=[])
    node = rclpy.create_node("edit_map")
    client = node.create_client(EditMap, "/perception/edit_map")
    remove = EditMap.Request(action=EditMap.Request.REMOVE)
    remove.box_pose.header.frame_id = "map"
    at = remove.box_pose.pose.position
    at.x, at.y, at.z = x, y, z
    remove.box_size = Vector3(x=side, y=side, z=side)
    replies = []
    if not client.wait_for_service(15.0):
        print("/perception/edit_map is not offered; is the node configured?")
    else:
        for request in (remove, EditMap.Request(action=EditMap.Request.UNDO)):
            future = client.call_async(request)
            rclpy.spin_until_future_complete(node, future, timeout_sec=60.0)
            if not future.done():
                print("/perception/edit_map does not respond")
                break
            replies.append(future.result())
            print(
                f"{replies[-1].changed} voxels" if replies[-1].success else replies[-1].error_msg
            )
            if not replies[-1].success:
                break
    node.destroy_node()
    rclpy.try_shutdown()
    return 0 if len(replies) == 2 and replies[-1].success else 1


if __name__ == "__main__":
    raise SystemExit(main())
