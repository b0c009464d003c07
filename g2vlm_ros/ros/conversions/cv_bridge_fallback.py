# SPDX-License-Identifier: Apache-2.0
"""cv_bridge, for image encodings that `images.decoding` does not know.

cv_bridge's compiled part ends the process where it was built for another numpy, so it is imported
here only after a child process has shown that it loads and converts.
"""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache
from typing import Any

import numpy as np
from sensor_msgs.msg import Image

from g2vlm_ros.images.decoding import ImageError
from g2vlm_ros.records import DropReason

TRIAL = """
import numpy
from cv_bridge import CvBridge
message = CvBridge().cv2_to_imgmsg(numpy.zeros((2, 2, 3), numpy.uint16), "bgr16")
assert CvBridge().imgmsg_to_cv2(message, "rgb8").shape == (2, 2, 3)
"""
TRIAL_S = 30.0


@lru_cache(maxsize=1)
def usable_bridge() -> Any | None:
    """A CvBridge; None where it is not installed, or where a child process died of it."""
    try:
        trial = subprocess.run(
            [sys.executable, "-c", TRIAL], capture_output=True, timeout=TRIAL_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if trial.returncode != 0:
        return None
    from cv_bridge import CvBridge

    return CvBridge()


def decode(message: Image) -> np.ndarray:
    """uint8 (H, W, 3) RGB by cv_bridge; ImageError where it cannot, either."""
    try:
        return usable_bridge().imgmsg_to_cv2(message, "rgb8")
    except Exception as error:  # cv_bridge lets C++ exceptions of several types through
        raise ImageError(DropReason.UNDECODABLE, f"cv_bridge cannot decode it: {error}") from error
