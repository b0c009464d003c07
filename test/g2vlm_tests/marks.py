# SPDX-License-Identifier: Apache-2.0
"""Marks of tests that need what not every machine has."""

from __future__ import annotations

import importlib
import importlib.util

import pytest


def _version(package: str) -> tuple[int, int]:
    """(1, 23); (0, 0) where it is not installed."""
    if importlib.util.find_spec(package) is None:
        return 0, 0
    major, minor, *_ = importlib.import_module(package).__version__.split(".")
    return int(major), int(minor)


needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed: pip install tensorrt-rtx",
)
runs_opset_24 = pytest.mark.skipif(
    _version("onnxruntime") < (1, 25),
    reason="onnxruntime before 1.25 has not all of opset 24; Python 3.10 has 1.23",
)
