# SPDX-License-Identifier: Apache-2.0
"""Masks of what moves by its label: boxes of the detector's topic, people above all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from g2vlm_ros.ros.inputs.detections import DetectionBox, Detections


class LabelMasks:
    """Gives a frame the boxes of its detections that have one of some labels, as a mask.

    A detector is slower than its camera: boxes are looked up when a window needs them.
    """

    def __init__(self, detections: Detections, labels: str):
        """labels: with commas between; case does not matter."""
        self._detections = detections
        self._labels = {label.strip().casefold() for label in labels.split(",")} - {""}

    def of(
        self, stamp_ns: int, frame_id: str, size: tuple[int, int]
    ) -> Callable[[], np.ndarray | None]:
        """What `Frame.ignored` of a frame is; size: width and height of its image."""
        return lambda: self._mask(self._detections.boxes(stamp_ns, frame_id), size)

    def _mask(self, boxes: list[DetectionBox], size: tuple[int, int]) -> np.ndarray | None:
        """bool (height, width); None where no box has one of the labels."""
        ignored = [box.corners for box in boxes if box.label.casefold() in self._labels]
        if not ignored:
            return None
        mask = np.zeros(size[::-1], bool)
        for left, top, right, bottom in ignored:
            rows = slice(max(int(np.floor(top)), 0), max(int(np.ceil(bottom)) + 1, 0))
            columns = slice(max(int(np.floor(left)), 0), max(int(np.ceil(right)) + 1, 0))
            mask[rows, columns] = True
        return mask
