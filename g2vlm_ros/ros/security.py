# SPDX-License-Identifier: Apache-2.0
"""SROS2 switched on where it cannot be: one sentence with the remedy instead of a traceback."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rclpy._rclpy_pybind11 import RCLError

WITHOUT_PLUGINS = "doesn't have the security libraries"
"""What Fast DDS says where it was compiled without SECURITY, as the wheels of PyPI are."""


class SecurityError(RuntimeError):
    """ROS_SECURITY_ENABLE is true and no secure participant can be made, and why."""


def enabled() -> bool:
    """Whether the environment asks for SROS2, by rcl's own rule."""
    return os.environ.get("ROS_SECURITY_ENABLE") == "true"


@contextmanager
def security_errors() -> Iterator[None]:
    """Around the making of a context or a node: SecurityError where SROS2 is what fails."""
    try:
        with warnings.catch_warnings():
            if enabled():  # rclpy warns of what it could not take back of a node never made
                warnings.simplefilter("ignore", RuntimeWarning)
            yield
    except RCLError as error:
        if not enabled():
            raise
        raise SecurityError(sentence(str(error))) from None


def sentence(reason: str) -> str:
    """Why there is no secure participant, and what to do."""
    if WITHOUT_PLUGINS in reason:
        return (
            "ROS_SECURITY_ENABLE is true but this Fast DDS was built without security plugins, as "
            "the wheels of PyPI are: use ROS from apt, or unset it to run without access control"
        )
    cause = reason.splitlines()[0].split(", at /")[0]
    return (
        f"ROS_SECURITY_ENABLE is true but the keystore does not fit ({cause}); docs/security.md "
        "says how to make one"
    )
