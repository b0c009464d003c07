# SPDX-License-Identifier: Apache-2.0
"""Which of our files of settings a Fast DDS reads: an element has another name since version 3."""

from __future__ import annotations

from collections.abc import Mapping

WITH_FASTDDS_2 = ("", "humble", "jazzy")
"""ROS_DISTRO of those that have it; unset where ROS comes from PyPI's wheels of Jazzy."""


def fastdds_profile(environment: Mapping[str, str]) -> str:
    """The name in config/; Fast DDS takes nothing at all of a file with an element it lacks."""
    second = environment.get("ROS_DISTRO", "") in WITH_FASTDDS_2
    return "fastdds.xml" if second else "fastdds3.xml"
