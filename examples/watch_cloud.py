# SPDX-License-Identifier: Apache-2.0
"""Subscribe to the cloud of the newest window and say what is in it.

python3 examples/watch_cloud.py [NODE] [COUNT]
"""

from __future__ import annotations

import sys

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from sensor_msgs.msg import PointCloud2


def describe(cloud: PointCloud2) -> str:
    """Count, extent and confidence of a cloud with the fields x, y, z, rgb, confidence."""
    offsets = {field.name: field.offset for field in cloud.fields}
    rows = np.frombuffer(cloud.data, np.uint8).reshape(-1, cloud.point_step)
    columns = {
        name: rows[:, at : at + 4].copy().view(np.float32)[:, 0] for name, at in offsets.items()
    }
    xyz = np.stack([columns[axis] for axis in "xyz"], axis=1)
    if not len(xyz):
        return "an empty cloud"
    extent = np.nanmax(xyz, axis=0) - np.nanmin(xyz, axis=0)
    confidence = columns["confidence"][np.isfinite(columns["confidence"])]
    sure = f"mean confidence {confidence.mean():.2f}" if len(confidence) else "no confidence"
    size = " x ".join(f"{length:.2f}" for length in extent)
    return f"{len(xyz)} points in '{cloud.header.frame_id}', {size}, {sure}"


def main(arguments: list[str] | None = None) -> int:
    """Prints COUNT clouds, or until it is interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    name, count = (words + ["/perception", "0"][len(words) :])[:2]
    rclpy.init(args=[])
    node = rclpy.create_node("watch_cloud")
    clouds = []
    node.create_subscription(
        PointCloud2, f"{name}/points", lambda m: (clouds.append(m), print(describe(m))), 5
    )
    try:
        while not int(count) or len(clouds) < int(count):
            rclpy.spin_once(node, timeout_sec=0.5)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    node.destroy_node()
    rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
