# SPDX-License-Identifier: Apache-2.0
"""A saved map in which everything is there twice: two homes alike, which no view tells apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.mapping.keyframes import Keyframe


def doubled(keyframes: Sequence[Keyframe], shift_m: float) -> list[Keyframe]:
    """The keyframes of a saved map, and the same ones again so far along its x axis."""
    aside = Sim3(1.0, np.eye(3), np.array([shift_m, 0.0, 0.0]))
    copies = [
        replace(
            keyframe,
            window_from_camera=aside.apply_pose(keyframe.window_from_camera),
            sample=replace(
                keyframe.sample,
                points_u=aside.apply(keyframe.sample.points_u),
                centre_u=aside.apply(keyframe.sample.centre_u),
            ),
        )
        for keyframe in keyframes
    ]
    return [*keyframes, *copies]
