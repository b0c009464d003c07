# SPDX-License-Identifier: Apache-2.0
"""The client of the spatial-query service, for planners and agents."""

from g2vlm_ros.ros.client.client import (
    AnswerImages,
    AsyncSpatialClient,
    SpatialClient,
    UnreachableError,
)

__all__ = ["AnswerImages", "AsyncSpatialClient", "SpatialClient", "UnreachableError"]
