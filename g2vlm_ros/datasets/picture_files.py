# SPDX-License-Identifier: Apache-2.0
"""Pictures, depth images, tables and calibrations in files, for all readers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from g2vlm_ros.datasets.sequence import SequenceError
from g2vlm_ros.geometry.sim3 import rotation_from_xyzw
from g2vlm_ros.images.preprocessing import load_image
from g2vlm_ros.records import Intrinsics


def text(path: Path) -> str:
    """What a text file holds; SequenceError where it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SequenceError(f"{path} is no text in UTF-8") from error


def pinhole(path: Path, matrix: Sequence[float], size: Sequence[int]) -> Intrinsics:
    """The camera of fx, fy, cx, cy and (width, height); SequenceError names the file."""
    try:
        return Intrinsics(*(float(number) for number in matrix), *(int(n) for n in size))
    except ValueError as error:
        raise SequenceError(f"{path}: {error}") from error


def numbers(path: Path, columns: int, what: str, separator: str | None = None) -> np.ndarray:
    """float64 (n, columns) of a text table, `#` comments; SequenceError names the line."""
    if not path.is_file():
        raise SequenceError(f"{path} is missing; it holds {what}")
    rows = []
    for count, line in enumerate(text(path).splitlines(), 1):
        words = line.split("#")[0].split(separator)
        if not "".join(words).strip():
            continue
        try:
            row = [float(word) for word in words if word.strip()]
        except ValueError:
            row = []
        if len(row) < columns:
            raise SequenceError(
                f"{path}, line {count}: expected {columns} numbers ({what}), found "
                f"{line.strip()[:60]!r}"
            )
        rows.append(row[:columns])
    return np.array(rows, dtype=np.float64).reshape(-1, columns)


def document(path: Path, what: str) -> dict[str, Any]:
    """A JSON object; SequenceError where the file is missing or holds something else."""
    if not path.is_file():
        raise SequenceError(f"{path} is missing; it holds {what}")
    try:
        content = json.loads(text(path))
    except ValueError as error:
        raise SequenceError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise SequenceError(f"{path} holds no JSON object; it should hold {what}")
    return content


def pose(translation: np.ndarray, quaternion_xyzw: np.ndarray) -> np.ndarray:
    """float64 (4, 4), NaN where a number is not finite; ValueError for a quaternion that is no
    rotation."""
    if not np.isfinite([*translation, *quaternion_xyzw]).all():
        return np.full((4, 4), np.nan)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_from_xyzw(quaternion_xyzw)
    matrix[:3, 3] = translation
    return matrix


def colour_loader(path: Path, undistort: Undistortion | None = None) -> Callable[[], np.ndarray]:
    """Reads a picture as uint8 (h, w, 3) RGB when it is called."""
    return partial(_colour, path, undistort)


def _colour(path: Path, undistort: Undistortion | None) -> np.ndarray:
    image = load_image(path)
    return image if undistort is None else undistort(image)


def depth_loader(path: Path, metres: float) -> Callable[[], np.ndarray]:
    """Reads a depth image of whole numbers of `metres` as float32 (h, w) when it is called."""
    return partial(_depth, path, metres)


def _depth(path: Path, metres: float) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None or image.ndim != 2:
        raise SequenceError(f"{path} cannot be read as a depth image of one channel")
    depth_m = image.astype(np.float32) * np.float32(metres)
    return np.where(np.isfinite(depth_m), depth_m, 0)


def mask_loader(path: Path) -> Callable[[], np.ndarray]:
    """Reads a mask as bool (h, w), set where the picture is not black, when it is called."""
    return partial(_mask, path)


def _mask(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise SequenceError(f"{path} cannot be read as a mask")
    return image != 0


class Undistortion:
    """Removes lens distortion: a picture as a pinhole of the same matrix would see it."""

    def __init__(self, camera: Intrinsics, coefficients: np.ndarray, fisheye: bool):
        """coefficients: OpenCV's k1 k2 p1 p2 (k3 ...), or k1..k4 of its fisheye model."""
        matrix, size = camera.matrix(), (camera.width_px, camera.height_px)
        tables = cv2.fisheye if fisheye else cv2
        self._maps = tables.initUndistortRectifyMap(
            matrix, np.asarray(coefficients, np.float64), np.eye(3), matrix, size, cv2.CV_16SC2
        )
        self._shape = size[::-1]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        if image.shape[:2] != self._shape:
            return image  # Whoever compares it with its calibration says so.
        return cv2.remap(image, *self._maps, cv2.INTER_LINEAR)
