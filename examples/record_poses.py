# SPDX-License-Identifier: Apache-2.0
"""Record camera poses as a TUM trajectory (stamp x y z qx qy qz qw), which evo and others read.

python3 examples/record_poses.py poses.txt [COUNT]
"""

from __future__ import annotations

import sys
from pathlib import Path

import rclpy
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.executors import ExternalShutdownException


def line_of(message: PoseWithCovarianceStamped) -> str:
    """One line of a TUM trajectory."""
    stamp, pose = message.header.stamp, message.pose.pose
    p, q = pose.position, pose.orientation
    numbers = (p.x, p.y, p.z, q.x, q.y, q.z, q.w)
    return f"{stamp.sec}.{stamp.nanosec:09d} " + " ".join(f"{number:.6f}" for number in numbers)


def main(arguments: list[str] | None = None) -> int:
    """Records COUNT poses, or until it is interrupted."""
    path, *rest = sys.argv[1:] if arguments is None else arguments
    count = int(rest[0]) if rest else 0
    rclpy.init(args=[])
    node = rclpy.create_node("record_poses")
    lines: list[str] = []
    node.create_subscription(
        PoseWithCovarianceStamped, "/perception/pose", lambda m: lines.append(line_of(m)), 50
    )
    try:
        while not count or len(lines) < count:
            rclpy.spin_once(node, timeout_sec=0.5)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    Path(path).write_text("\n".join(lines) + "\n")
    print(f"{len(lines)} poses in {path}")
    node.destroy_node()
    rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
