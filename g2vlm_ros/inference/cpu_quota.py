# SPDX-License-Identifier: Apache-2.0
"""How many threads this process can keep busy: the affinity mask and the container's quota.

A quota (docker --cpus=2) does not show in the mask: on a host of 64 cores 64 threads would share
the time of two, and wait for each other.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = CGROUP) -> int:
    """At least 1; a quota of 2.5 cores counts as 3."""
    cores = len(os.sched_getaffinity(0))
    quota = _quota(cgroup)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _quota(cgroup: Path) -> float | None:
    """Cores that the control group may use, version 2 or 1; None without a bound."""
    try:
        share, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            share = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        quota = int(share) / int(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return None
    return quota if quota > 0 else None
