# SPDX-License-Identifier: Apache-2.0
"""Images resized as Pillow does (resize.cpp)."""

from __future__ import annotations

import numpy as np

from g2vlm_ros.kernels.checks import call, check_in_place, i64, input_array, positive, shape_of


def resize_lanczos(image: np.ndarray, width: int, height: int, out: np.ndarray) -> None:
    """Resize uint8 (h, w, 3) into uint8 (height, width, 3), byte for byte as Pillow 13."""
    rows, columns, _ = shape_of(image, "image", (None, None, 3))
    image = input_array(image, "image", np.uint8, (rows, columns, 3))
    check_in_place(out, "out", np.uint8, (positive(height, "height"), positive(width, "width"), 3))
    positive(rows * columns, "pixels of the image")
    call("resize_lanczos", None, image, i64(rows), i64(columns), out, i64(height), i64(width))
