# SPDX-License-Identifier: Apache-2.0
"""Calibration files as ROS's camera_calibration and camera_info_manager write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from sensor_msgs.msg import CameraInfo

MATRICES = {"camera_matrix": 9, "rectification_matrix": 9, "projection_matrix": 12}
MODELS = {"plumb_bob": (5,), "rational_polynomial": (8, 12, 14), "equidistant": (4,)}
"""Distortion models of sensor_msgs, and how many coefficients each may have."""


def read_camera_info(path: str | Path) -> CameraInfo:
    """The CameraInfo of a calibration YAML file (camera_calibration_parsers' format).

    FileNotFoundError, or ValueError naming what is missing or of the wrong size.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"camera_info is {path}, which does not exist")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no calibration; it needs image_width, camera_matrix, ...")
    model = content.get("distortion_model")
    if not isinstance(model, str) or model not in MODELS:
        raise ValueError(
            f"{path} has distortion_model {model!r}; it must be one of {list(MODELS)}"
        )
    k, r, p = (_numbers(path, content, name, (size,)) for name, size in MATRICES.items())
    if not (k[0] > 0 and k[4] > 0):
        raise ValueError(f"{path} has focal lengths {k[0]}, {k[4]}; they must be above 0")
    return CameraInfo(
        width=_size(path, content, "image_width"),
        height=_size(path, content, "image_height"),
        distortion_model=model,
        d=_numbers(path, content, "distortion_coefficients", MODELS[model]),
        k=k,
        r=r,
        p=p,
    )


def _size(path: Path, content: dict, name: str) -> int:
    value = content.get(name)
    if type(value) is not int or not 0 < value < 2**31:
        raise ValueError(
            f"{path} has {name} {value!r}; it must be a whole number of pixels above 0"
        )
    return value


def _numbers(path: Path, content: dict, name: str, sizes: tuple[int, ...]) -> list[float]:
    matrix = content.get(name)
    try:
        data = np.array(matrix["data"], dtype=np.float64)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} has no {name} with numbers in data") from error
    if data.ndim != 1 or len(data) not in sizes or not np.isfinite(data).all():
        expected = " or ".join(map(str, sizes))
        raise ValueError(
            f"{path} has {name} {data.tolist()}; it must be {expected} finite numbers"
        )
    return data.tolist()
