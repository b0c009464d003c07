# SPDX-License-Identifier: Apache-2.0
"""nav_msgs/Odometry of what is followed between windows."""

from __future__ import annotations

import numpy as np
from nav_msgs.msg import Odometry
from std_msgs.msg import Header

from g2vlm_ros.mapping.continuous_odometry import OdometryEstimate
from g2vlm_ros.ros.conversions import geometry

UNKNOWN_VARIANCE = 1e6
"""(m/s)^2 and (rad/s)^2 of a twist that nothing measured."""


def odometry_message(header: Header, child_frame_id: str, estimate: OdometryEstimate) -> Odometry:
    """The pose in the frame of the header; the twist in the child's axes."""
    message = Odometry(header=header, child_frame_id=child_frame_id)
    message.pose.pose = geometry.pose_message(estimate.odom_from_camera)
    message.pose.covariance = estimate.covariance.ravel()
    twist, covariance = estimate.twist, estimate.twist_covariance
    if twist is None or covariance is None:
        twist, covariance = np.zeros(6), UNKNOWN_VARIANCE * np.eye(6)
    for part, values in (
        (message.twist.twist.linear, twist[:3]),
        (message.twist.twist.angular, twist[3:]),
    ):
        part.x, part.y, part.z = map(float, values)
    message.twist.covariance = covariance.ravel()
    return message
