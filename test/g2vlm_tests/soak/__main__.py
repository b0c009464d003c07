# SPDX-License-Identifier: Apache-2.0
"""Soak: the node as a process for a while; a camera, questions, subscribers that come and go.

`make soak MINUTES=n` lets a robot drive the same round through a home, first until the map and
what else is bounded are full, then for n minutes; writes soak_output/soak.json and
soak.png: memory, threads, descriptors and latency over time. Fails where resident memory rises by
more than MAX_PERCENT an hour, or where threads or descriptors grow.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from g2vlm_ros.srv import SpatialQuery
from g2vlm_tests.dds_domain import isolate
from g2vlm_tests.soak.round_trip import ROUND_S, RoundTripRobot
from g2vlm_tests.soak.trend import trend_of
from sensor_msgs.msg import PointCloud2

PERIOD_S = 2.0
WARM_UP_S = 3 * ROUND_S
WARM_UP_WINDOWS = 500
"""The warm-up lasts so long and so many windows, whichever is later on the machine: the first
round makes the map, in the others its parts get the sizes they keep (after 200 windows memory
still rose, after 400 no longer)."""
MAX_WARM_UP_S = 1800.0
MAX_PERCENT = 1.0
"""Growth of resident memory an hour that is allowed."""
MAX_MORE_THREADS, MAX_MORE_DESCRIPTORS = 4, 8
"""A subscriber or a question that is there at the last sample and was not at the first."""
PARAMETERS = {
    "window.views": "2",
    "window.overlap": "1",
    "window.min_gap_s": "0.25",
    "map.loop_closure": "true",
    "map.graph_windows": "32",
    "map.keyframes": "32",
    "voxel.memory_mib": "16",
    "query.windows": "1",
    "query.dialogues": "1",
}
"""Two views a window: more windows in the time, for what would grow with each. The bounds are met
in the warm-up; those of config/perception.yaml take hours. What is held for questions comes
and goes with them (3 windows and 4 conversations, each with up to 3 scenes of 15 MiB), so that no
ten minutes could tell growth from it."""
QUESTIONS = (
    "What do you see?",
    "How far is the chair?",
    "Where is the table?",
    "Is there a plant?",
)
NO_RESPONSE = "no response"
STRIPS = ("resident_mib", "anonymous_mib", "threads", "descriptors", "latency_s")
MEMORY = {
    "resident_mib": "VmRSS",
    "anonymous_mib": "RssAnon",
    "file_mib": "RssFile",
    "shared_mib": "RssShmem",
}
"""Of a sample, and as /proc calls it."""


def sample(pid: int) -> dict[str, float]:
    """Memory, threads and descriptors of a process, by /proc."""
    words = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    memory = {name: int(words[key].split()[0]) / 1024 for name, key in MEMORY.items()}
    return {
        **{name: round(mib, 2) for name, mib in memory.items()},
        "threads": int(words["Threads"]),
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
    }


def visit(it: RoundTripRobot, number: int) -> str:
    """A subscriber comes, a question is asked, the subscriber goes; how the question ended."""
    subscription = it.node.create_subscription(PointCloud2, "/perception/map", lambda _: None, 1)
    question = QUESTIONS[number % len(QUESTIONS)]
    request = SpatialQuery.Request(question=question, dialogue=f"{number // 3}", max_wait_s=5.0)
    response = it.call(SpatialQuery, "query", request, 10.0)
    it.node.destroy_subscription(subscription)
    if response is None:
        return NO_RESPONSE
    return "answered" if response.success else str(response.error_code)


def warm(row: dict[str, float], warm_up_s: float) -> bool:
    """Whether the warm-up is over; RuntimeError where it takes too long for the machine."""
    if row["seconds"] > MAX_WARM_UP_S:
        raise RuntimeError(
            f"{row['window']} windows in {MAX_WARM_UP_S:.0f} s; the machine is busy"
        )
    return row["seconds"] >= warm_up_s and row["window"] >= WARM_UP_WINDOWS


def soak(minutes: float, warm_up_s: float) -> dict[str, Any]:
    """Samples over the time, and what they come to."""
    rows: list[dict[str, float]] = []
    ends: Counter[str] = Counter()
    it = RoundTripRobot(parameters=PARAMETERS)
    try:
        if not (it.bring_up() and it.works()):
            raise RuntimeError("the node does not come up:\n" + it.said())
        start, warm_from = time.monotonic(), None
        while warm_from is None or rows[-1]["seconds"] < warm_from + 60 * minutes:
            ends[visit(it, len(rows))] += 1
            row = {
                "seconds": round(time.monotonic() - start, 2),
                "window": it.status.window_id,
                "map": it.status.map_id,
                "latency_s": round(it.status.latency_s, 3),
            }
            rows.append(row | sample(it.process.pid))
            if warm_from is None and warm(row, warm_up_s):
                warm_from = row["seconds"]
            time.sleep(PERIOD_S)
    finally:
        it.close()
    later = [row for row in rows if row["seconds"] >= warm_from]
    seconds = [row["seconds"] for row in later]
    trends = {
        name: trend_of(seconds, [row[name] for row in later]).as_json()
        for name in ("resident_mib", "anonymous_mib")
    }
    return {
        "minutes": minutes,
        "warm_up_s": warm_from,
        "windows": rows[-1]["window"],
        "windows_after_warm_up": rows[-1]["window"] - later[0]["window"],
        "questions": len(rows),
        "ends": dict(ends),
        "threads": [later[0]["threads"], later[-1]["threads"]],
        "descriptors": [later[0]["descriptors"], later[-1]["descriptors"]],
        "trends": trends,
        "samples": rows,
    }


def plot(rows: list[dict[str, float]], path: Path) -> None:
    """Each quantity over time, in a strip of its own, with its smallest and largest value."""
    width, height = 900, 130
    canvas = np.full((height * len(STRIPS), width, 3), 255, np.uint8)
    for strip, name in enumerate(STRIPS):
        values = np.array([row[name] for row in rows])
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        x = np.linspace(10, width - 10, len(values))
        y = height * (strip + 1) - 12 - (values - low) / max(high - low, 1e-9) * (height - 50)
        line = np.stack([x, np.nan_to_num(y)], axis=1).astype(np.int32)
        cv2.polylines(canvas, [line], False, (160, 80, 20), 1, cv2.LINE_AA)
        label = f"{name}: {low:.4g} to {high:.4g}"
        corner = (10, height * strip + 20)
        cv2.putText(
            canvas, label, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA
        )
    cv2.imwrite(str(path), canvas)


def broken_promises(report: dict[str, Any]) -> list[str]:
    """A sentence for each promise that these samples do not show to be kept."""
    broken = []
    trend = report["trends"]["resident_mib"]
    percent, error = trend["percent_per_hour"], trend["percent_plus_minus"]
    if percent + error > MAX_PERCENT:
        verdict = "grows" if percent - error > MAX_PERCENT else "cannot be told from growth"
        broken.append(
            f"resident memory {verdict}: {percent:.2f} +- {error:.2f} % an hour, at most "
            f"{MAX_PERCENT:g} with 95 % confidence"
        )
    for name, more in (("threads", MAX_MORE_THREADS), ("descriptors", MAX_MORE_DESCRIPTORS)):
        first, last = report[name]
        if last > first + more:
            broken.append(f"{name} grow: {first} to {last}")
    if report["ends"].get(NO_RESPONSE):
        broken.append(f"{report['ends'][NO_RESPONSE]} questions had no response")
    return broken


def main(arguments: list[str] | None = None) -> int:
    """Writes JSON and plot, prints a table; exit code 1 where a promise is not seen to be kept."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="after the warm-up")
    parser.add_argument("--warm-up-s", type=float, default=WARM_UP_S)
    parser.add_argument("--out", type=Path, default=Path("soak_output"))
    options = parser.parse_args(arguments)
    _claim = isolate()
    report = soak(options.minutes, options.warm_up_s)
    report["broken"] = broken_promises(report)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "soak.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(report["samples"], options.out / "soak.png")
    print(f"| {'after the warm-up':<32} | |\n|---|---|")
    rows = {"minutes": report["minutes"], "windows": report["windows_after_warm_up"]}
    rows |= {"questions by their end": report["ends"]}
    for name, trend in report["trends"].items():
        rows[f"{name} at the start"] = f"{trend['start']:.1f}"
        rows[f"{name}, % an hour (95 %)"] = (
            f"{trend['percent_per_hour']:.2f} +- {trend['percent_plus_minus']:.2f}"
        )
    rows |= {name: report[name] for name in ("threads", "descriptors")}
    for name, value in rows.items():
        print(f"| {name:<32} | {value} |")
    print("\n" + ("\n".join(report["broken"]) or "every promise was kept"))
    return int(bool(report["broken"]))


if __name__ == "__main__":
    raise SystemExit(main())
