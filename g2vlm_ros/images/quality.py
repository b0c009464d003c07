# SPDX-License-Identifier: Apache-2.0
"""Images that say nothing: a covered, blurred or frozen camera, before the network sees them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import cv2
import numpy as np

from g2vlm_ros.records import DropReason

SMALL_PX = 160
"""Images are judged at this width; a smaller one as it is."""
FLAT = 2.0
"""Standard deviation of brightness (0..255) below which an image shows nothing."""
COVERED = 0.15
"""Contrast, as a fraction of what the camera usually shows, of a covered lens that is dark too."""
BLURRED = 0.2
"""Sharpness as a fraction of what the camera usually shows."""
FROZEN_RUN = 3
"""Identical images in a row, after the first, that make a camera frozen."""
USUAL = 15
MIN_USUAL = 5
"""Images remembered per camera, and how many it takes to know what is usual."""

MEAN_OF_CHANNELS = np.full((1, 3), 1 / 3, np.float32)


@dataclass
class _Usual:
    """What a camera has shown lately."""

    last: np.ndarray | None = None
    repeats: int = 0
    lately: deque[tuple[float, float, float]] = field(default_factory=lambda: deque(maxlen=USUAL))

    def verdict(self, brightness: float, contrast: float, sharpness: float) -> DropReason | None:
        """What is wrong with an image that is not flat, by comparison."""
        if len(self.lately) < MIN_USUAL:
            return None
        bright, strong, sharp = np.median(np.array(self.lately), axis=0)
        if contrast < COVERED * strong and brightness < 0.3 * bright:
            return DropReason.COVERED
        return DropReason.BLURRED if sharpness < BLURRED * sharp else None


class ImageQualityFilter:
    """Judges each image by what its camera usually shows; a change of exposure is no fault."""

    def __init__(self) -> None:
        self._cameras: dict[str, _Usual] = {}

    def fault(self, camera: str, image: np.ndarray) -> DropReason | None:
        """COVERED, BLURRED, FROZEN, or None for an image that can be used.

        image: uint8 (h, w, 3). Ask once per image, in order of time.
        """
        usual = self._cameras.setdefault(camera, _Usual())
        small = thumbnail(image)
        same = usual.last is not None and np.array_equal(small, usual.last)
        usual.last, usual.repeats = small, usual.repeats + 1 if same else 0
        grey = cv2.transform(small.astype(np.float32), MEAN_OF_CHANNELS)
        brightness, contrast = _mean_and_deviation(grey)
        # Divided by the brightness, so that sharpness does not follow the exposure.
        _, edges = _mean_and_deviation(cv2.Laplacian(grey, cv2.CV_32F))
        sharpness = edges / max(brightness, 1.0)
        if usual.repeats >= FROZEN_RUN:
            return DropReason.FROZEN
        if contrast < FLAT:
            return DropReason.COVERED
        verdict = usual.verdict(brightness, contrast, sharpness)
        # What lasts becomes usual: a dim or plain room must not be refused for ever.
        usual.lately.append((brightness, contrast, sharpness))
        return verdict


def thumbnail(image: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) at most SMALL_PX wide; the same object where it is."""
    if image.shape[1] <= SMALL_PX:
        return image
    size = (SMALL_PX, max(1, round(image.shape[0] * SMALL_PX / image.shape[1])))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _mean_and_deviation(image: np.ndarray) -> tuple[float, float]:
    mean, deviation = cv2.meanStdDev(image)
    return float(mean[0, 0]), float(deviation[0, 0])
