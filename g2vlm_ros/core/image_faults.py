"""Images that say nothing: a covered, blurred or frozen camera, noticed before the network runs."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import cv2
import numpy as np

SMALL_PX = (160, 120)
FLAT = 2.0
"""Standard deviation of brightness (0..255) below which an image shows nothing."""
COVERED = 0.15
"""Contrast, as a fraction of what the camera usually shows, of a covered lens that is dark too."""
BLURRED = 0.1
"""Sharpness as a fraction of what the camera usually shows."""
FROZEN_RUN = 3
"""Identical images in a row, after the first, that make a camera frozen."""
USUAL = 15
LEAST_USUAL = 5
"""Good images remembered per camera, and how many it takes to know what is usual."""


@dataclass
class _Usual:
    """What a camera has shown lately."""

    last: np.ndarray | None = None
    repeats: int = 0
    good: deque[tuple[float, float, float]] = field(default_factory=lambda: deque(maxlen=USUAL))


class ImageJudge:
    """Judges each image by what its camera usually shows; a change of exposure is no fault."""

    def __init__(self) -> None:
        self._cameras: dict[str, _Usual] = {}

    def fault(self, camera: str, image: np.ndarray) -> str | None:
        """ "covered", "blurred", "frozen", or None for an image that can be used.

        image: uint8 (h, w, 3). Ask once per image, in order of time.
        """
        usual = self._cameras.setdefault(camera, _Usual())
        small = cv2.resize(image, SMALL_PX, interpolation=cv2.INTER_AREA)
        same = usual.last is not None and np.array_equal(small, usual.last)
        usual.last, usual.repeats = small, usual.repeats + 1 if same else 0
        grey = small.mean(-1).astype(np.float32)
        brightness, contrast = float(grey.mean()), float(grey.std())
        # Divided by the contrast, so that sharpness does not follow the exposure.
        sharpness = float(cv2.Laplacian(grey, cv2.CV_32F).std()) / max(contrast, 1e-3)
        if usual.repeats >= FROZEN_RUN:
            return "frozen"
        if contrast < FLAT:
            return "covered"
        if len(usual.good) >= LEAST_USUAL:
            bright, strong, sharp = np.median(np.array(usual.good), axis=0)
            if contrast < COVERED * strong and brightness < 0.3 * bright:
                return "covered"
            if sharpness < BLURRED * sharp:
                return "blurred"
        usual.good.append((brightness, contrast, sharpness))
        return None
