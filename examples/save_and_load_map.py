# SPDX-License-Identifier: Apache-2.0
"""Save the map, and load it again to be continued. Only maps in metres can be loaded.

python3 examples/save_and_load_map.py /tmp/map.npz
"""

from __future__ import annotations

import sys
from pathlib import Path

import rclpy
from g2vlm_ros.srv import LoadMap, SaveMap


def call(node: rclpy.node.Node, kind: type, name: str, request: object) -> object:
    """A service's response; TimeoutError where it is not there."""
    client = node.create_client(kind, f"/perception/{name}")
    if not client.wait_for_service(15.0):
        raise TimeoutError(f"/perception/{name} is not offered; is the node configured?")
    future = client.call_async(request)
    rclpy.spin_until_future_complete(node, future, timeout_sec=60.0)
    if not future.done():
        raise TimeoutError(f"/perception/{name} does not respond")
    return future.result()


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 where the map was saved and loaded."""
    path = str(Path((sys.argv[1:] if arguments is None else arguments)[0]).resolve())
    rclpy.init(args=[])
    node = rclpy.create_node("save_and_load_map")
    saved = call(node, SaveMap, "save_map", SaveMap.Request(path=path))
    print(f"saved {saved.points} points to {saved.path}" if saved.success else saved.error_msg)
    loaded = call(node, LoadMap, "load_map", LoadMap.Request(path=path, known_pose=True))
    print(f"loaded {loaded.points} points" if loaded.success else loaded.error_msg)
    node.destroy_node()
    rclpy.try_shutdown()
    return 0 if saved.success and loaded.success else 1


if __name__ == "__main__":
    raise SystemExit(main())
