# SPDX-License-Identifier: Apache-2.0
"""The adapter to ROS: nodes, messages, parameters."""

from g2vlm_ros.ros.end_signals import end_quietly_while_importing

end_quietly_while_importing()
