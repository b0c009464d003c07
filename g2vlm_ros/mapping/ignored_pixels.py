# SPDX-License-Identifier: Apache-2.0
"""Pixels that somebody says to ignore, people above all: nothing is believed of them.

They are not valid and their confidence is 0, so that they neither enter clouds, map and occupancy
nor carve rays, join windows, or are followed between windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from g2vlm_ros.records import Frame, Reconstruction


def without_ignored(result: Reconstruction, frames: Sequence[Frame]) -> Reconstruction:
    """The window with confidence 0 where the masks of its frames are set; the same object where
    none is. Masks have any size; a pixel of the window counts as set where any of its share is."""
    masks = [None if frame.ignored is None else frame.ignored() for frame in frames]
    if all(mask is None for mask in masks):
        return result
    confidence = result.confidence.copy()
    ignored = np.zeros(confidence.shape, bool)
    rows, columns = confidence.shape[1:]
    for view, mask in enumerate(masks):
        if mask is not None:
            share = cv2.resize(
                mask.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA
            )
            ignored[view] = share > 0
    confidence[ignored] = 0.0
    geometry = replace(result.geometry, pack=None)
    return replace(result, geometry=geometry, confidence=confidence, ignored=ignored)
