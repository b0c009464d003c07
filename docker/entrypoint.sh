#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# ROS and the workspace sourced, then the command. exec: signals reach it.
set -e
source "/opt/ros/$ROS_DISTRO/setup.bash"
source /ws/install/setup.bash
exec "$@"
