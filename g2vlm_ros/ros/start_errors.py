# SPDX-License-Identifier: Apache-2.0
"""Where ROS cannot start: one sentence with the remedy instead of a traceback."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rclpy._rclpy_pybind11 import RCLError

WITHOUT_PLUGINS = "doesn't have the security libraries"
"""What Fast DDS says where it was compiled without SECURITY, as the wheels of PyPI are."""


REMEDIES = {
    "initialize logging": "set ROS_LOG_DIR to a folder that may be written to",
    "DOMAIN_ID": "ROS_DOMAIN_ID is a number from 0 to 101, the same on all machines",
}
"""By words of rcl's reason."""


class StartError(RuntimeError):
    """No context or node of ROS can be made, why, and what helps."""


class SecurityError(StartError):
    """ROS_SECURITY_ENABLE is true and no secure participant can be made, and why."""


def enabled() -> bool:
    """Whether the environment asks for SROS2, by rcl's own rule."""
    return os.environ.get("ROS_SECURITY_ENABLE") == "true"


@contextmanager
def start_errors() -> Iterator[None]:
    """Around the making of a context or a node: StartError, where SROS2 is on SecurityError."""
    try:
        with warnings.catch_warnings():
            if enabled():  # rclpy warns of what it could not take back of a node never made
                warnings.simplefilter("ignore", RuntimeWarning)
            yield
    except RCLError as error:
        if enabled():
            raise SecurityError(security_sentence(str(error))) from None
        raise StartError(sentence(str(error))) from None


def cause_of(reason: str) -> str:
    """What rcl says, without the places in its sources."""
    return reason.splitlines()[0].split(", at /")[0]


def sentence(reason: str) -> str:
    """Why ROS does not start, and where it is known what helps."""
    remedies = [remedy for word, remedy in REMEDIES.items() if word in reason]
    return "; ".join(["ROS cannot start: " + cause_of(reason), *remedies[:1]])


def security_sentence(reason: str) -> str:
    """Why there is no secure participant, and what to do."""
    if WITHOUT_PLUGINS in reason:
        return (
            "ROS_SECURITY_ENABLE is true but this Fast DDS was built without security plugins, as "
            "the wheels of PyPI are: use ROS from apt, or unset it to run without access control"
        )
    return (
        "ROS_SECURITY_ENABLE is true but the keystore does not fit "
        f"({cause_of(reason)}); docs/security.md "
        "says how to make one"
    )
