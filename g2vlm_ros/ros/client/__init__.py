# SPDX-License-Identifier: Apache-2.0
"""The client of the spatial-query service, for planners and agents."""

from g2vlm_ros.ros.client.answer_images import AnswerImages
from g2vlm_ros.ros.client.client import AsyncSpatialClient, SpatialClient
from g2vlm_ros.ros.client.errors import PictureMissedError, UnreachableError

__all__ = [
    "AnswerImages",
    "AsyncSpatialClient",
    "PictureMissedError",
    "SpatialClient",
    "UnreachableError",
]
