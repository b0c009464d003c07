# SPDX-License-Identifier: Apache-2.0
"""The judgement of `make soak`: growth is found, noise is not taken for it, nor the reverse."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from g2vlm_tests.soak import __main__ as soak  # noqa: E402
from g2vlm_tests.soak.__main__ import MAX_MORE_THREADS, broken_promises  # noqa: E402
from g2vlm_tests.soak.round_trip import there_and_back  # noqa: E402
from g2vlm_tests.soak.trend import trend_of  # noqa: E402

SECONDS = np.arange(0, 600, 2.5)


def memory(per_hour: float, noise: float, seed: int = 0) -> np.ndarray:
    """MiB over SECONDS from 300 on."""
    rng = np.random.default_rng(seed)
    return 300 + per_hour * SECONDS / 3600 + noise * rng.normal(size=len(SECONDS))


def test_a_straight_line_is_found_without_doubt():
    trend = trend_of(SECONDS, memory(6.0, 0.0))
    assert trend.per_hour == pytest.approx(6.0, rel=1e-3)
    assert trend.plus_minus < 0.01
    assert trend.percent_per_hour == pytest.approx(2.0, rel=0.01)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    inside = 0
    for seed in range(200):
        trend = trend_of(SECONDS, memory(3.0, 1.0, seed))
        inside += abs(trend.per_hour - 3.0) <= trend.plus_minus
    assert 180 <= inside <= 198


def test_a_spike_moves_the_slope_little():
    values = memory(0.0, 0.1)
    values[-3] += 100
    assert abs(trend_of(SECONDS, values).per_hour) < 1.0


def test_too_few_samples_are_an_error():
    with pytest.raises(ValueError, match="samples"):
        trend_of([0, 1, 2], [1, 2, 3])


def test_memory_counts_while_the_robot_stands_and_after_the_warm_up():
    """Windows that are being worked on, and a map that is being made, are no growth."""
    rows = [
        {
            "seconds": 10.0 * k,
            "standing": k % 2 == 0,
            "window": 30 * k,
            "map": 0,
            "threads": 40,
            "descriptors": 20,
            "resident_mib": 300.0 - 0.1 * k,
            "anonymous_mib": 200.0 + (0 if k % 2 == 0 else k) - 10 * max(0, 20 - k),
        }
        for k in range(80)
    ]
    result = soak.report(10.0, 200.0, rows, Counter(answered=5))
    assert result["trends"]["anonymous_mib"]["per_hour"] == 0 and not broken_promises(result)
    assert result["trends"]["anonymous_mib"]["start"] == 200 and result["questions"] == 5
    assert json.loads(soak.as_text(result)) == result


def report(per_hour: float, noise: float, **changes: object) -> dict:
    trend = trend_of(SECONDS, memory(per_hour, noise)).as_json()
    trends = {"resident_mib": trend, "anonymous_mib": trend}
    lasting = {"threads": [40, 40], "descriptors": [20, 21], "ends": {"answered": 3}}
    result = {"minutes": 10, "trends": trends, **lasting, **changes}
    return result | {"broken": broken_promises(result)}


def test_what_breaks_a_promise():
    assert report(1.0, 0.02)["broken"] == []
    assert "grows" in report(9.0, 0.02)["broken"][0]
    assert "tells nothing" in report(6.0, 80.0)["broken"][0]
    more = [40, 40 + MAX_MORE_THREADS + 1]
    assert report(1.0, 0.02, threads=more)["broken"] == ["threads grow: 40 to 45"]
    silent = {"answered": 3, "no response": 1}
    assert "no response" in report(1.0, 0.02, ends=silent)["broken"][0]


def test_the_verdict_says_what_the_minutes_can_tell():
    assert "below 1 % an hour" in soak.verdict(report(1.0, 0.02))
    assert "10 minutes exclude only more than" in soak.verdict(report(10.0, 5.0))
    assert soak.verdict(report(9.0, 0.02)).startswith("memory grows")


@pytest.mark.parametrize(("seconds", "windows", "over"), [(300, 528, True), (300, 527, False)])
def test_the_warm_up_lasts_until_no_more_windows_can_be_kept(seconds, windows, over):
    row = {"seconds": seconds, "windows_kept": windows, "max_windows": 528}
    assert soak.warm(row, 100.0) is over
    with pytest.raises(RuntimeError, match=f"{windows} windows"):
        soak.warm(row | {"seconds": 1801}, 100.0)


def test_the_way_back_stands_at_neither_end():
    assert [there_and_back(4, step) for step in range(8)] == [0, 1, 2, 3, 2, 1, 0, 1]
