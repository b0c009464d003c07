# SPDX-License-Identifier: Apache-2.0
"""Marks of tests that need what not every machine has."""

from __future__ import annotations

import importlib.util

import pytest

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed: pip install tensorrt-rtx",
)
