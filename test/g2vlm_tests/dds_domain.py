# SPDX-License-Identifier: Apache-2.0
"""A ROS domain of one's own on this machine, and Fast DDS as tests need it.

For test runs and for the commands beside them (`make fuzz`, `faults`, `soak`), which may run at
the same time. To be called before rclpy is imported; processes started afterwards inherit it.
"""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

from g2vlm_ros.ros.middleware import fastdds_profile

PROFILE = Path(__file__).with_name("fastdds.xml")
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
"""Of Fast DDS, by its former and its present name."""
PORT_OF_DOMAIN_0 = 22119
"""The TCP port on the loopback that holds domain 0; others follow it."""
DOMAINS = range(1, 102)
"""Up to 101 every DDS port is below Linux's ephemeral ones."""


def claim_domain() -> tuple[int, socket.socket]:
    """A ROS domain that no other run on this machine has, with the socket that holds it."""
    start = os.getpid() % len(DOMAINS)
    for domain in [*DOMAINS[start:], *DOMAINS[:start]]:
        claim = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            claim.bind(("127.0.0.1", PORT_OF_DOMAIN_0 + domain))
        except OSError:
            claim.close()
        else:
            return domain, claim
    raise RuntimeError(f"all ROS domains from 1 to {DOMAINS[-1]} are in use by other runs")


def profile() -> Path:
    """PROFILE, for Fast DDS 3 a copy in which an element has its name of that version."""
    if fastdds_profile(os.environ) == "fastdds.xml":
        return PROFILE
    newer = Path(tempfile.gettempdir()) / f"g2vlm_fastdds3_{os.getuid()}.xml"
    newer.write_text(PROFILE.read_text().replace("heartbeatPeriod", "heartbeat_period"))
    return newer


def isolate() -> socket.socket:
    """A domain of its own, discovery on this machine only; the socket that holds the domain."""
    domain, claim = claim_domain()
    os.environ["ROS_DOMAIN_ID"] = str(domain)
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    if os.environ.get("ROS_DISTRO") == "humble":  # later ones warn about it
        os.environ["ROS_LOCALHOST_ONLY"] = "1"
    for name in PROFILE_VARIABLES:
        os.environ[name] = str(profile())
    return claim
