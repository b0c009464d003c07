# SPDX-License-Identifier: Apache-2.0
"""Writes the interface package tf2_msgs, which PyPI lacks, from the definitions in rosbags.

python tools/tf2_msgs.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from rosbags.typesys import Stores, get_typestore

CMAKE = """cmake_minimum_required(VERSION 3.16)
project(tf2_msgs)
find_package(ament_cmake REQUIRED)
find_package(geometry_msgs REQUIRED)
find_package(rosidl_default_generators REQUIRED)
rosidl_generate_interfaces(${PROJECT_NAME} msg/TFMessage.msg DEPENDENCIES geometry_msgs)
ament_package()
"""
PACKAGE = """<package format="3">
  <name>tf2_msgs</name>
  <version>0.36.0</version>
  <description>The message of /tf, for machines whose ROS comes from PyPI.</description>
  <maintainer email="nobody@example.com">generated</maintainer>
  <license>BSD-3-Clause</license>
  <buildtool_depend>ament_cmake</buildtool_depend>
  <depend>geometry_msgs</depend>
  <member_of_group>rosidl_interface_packages</member_of_group>
  <export><build_type>ament_cmake</build_type></export>
</package>
"""


def main() -> None:
    folder = Path(sys.argv[1])
    # The definition comes with those of the types it uses, set apart by a line of equal signs.
    definition, _ = get_typestore(Stores.ROS2_JAZZY).generate_msgdef("tf2_msgs/msg/TFMessage")
    (folder / "msg").mkdir(parents=True, exist_ok=True)
    (folder / "msg" / "TFMessage.msg").write_text(definition.split("=====", 1)[0])
    (folder / "CMakeLists.txt").write_text(CMAKE)
    (folder / "package.xml").write_text(PACKAGE)


if __name__ == "__main__":
    main()
