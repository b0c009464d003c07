# SPDX-License-Identifier: Apache-2.0
"""Soak: the node as a process for a while; a camera, questions, subscribers that come and go.

`make soak MINUTES=n` writes soak_output/soak.json and soak.png: resident memory, threads,
descriptors and latency over time, and the slope of memory after the first fifth.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import cv2
import numpy as np
from g2vlm_ros.srv import SpatialQuery
from g2vlm_tests.dds_domain import isolate
from g2vlm_tests.faults.robot import robot
from sensor_msgs.msg import PointCloud2

PERIOD_S = 2.0
WARM_UP = 0.2
"""Share of the time that the slope leaves out: maps and caches fill."""
QUANTITIES = ("resident_mib", "threads", "descriptors", "latency_s")


def sample(pid: int) -> dict[str, float]:
    """Memory, threads and descriptors of a process, by /proc."""
    words = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return {
        "resident_mib": int(words["VmRSS"].split()[0]) / 1024,
        "threads": int(words["Threads"]),
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
    }


def soak(minutes: float) -> dict:
    """Samples over the time, and what they come to."""
    rows, answers = [], 0
    with robot() as it:
        if not (it.bring_up() and it.works()):
            raise RuntimeError("the node does not come up:\n" + it.said())
        start = time.monotonic()
        while time.monotonic() - start < 60 * minutes:
            subscription = it.node.create_subscription(
                PointCloud2, "/perception/map", lambda _: None, 1
            )
            question = SpatialQuery.Request(question="What do you see?", max_wait_s=5.0)
            response = it.call(SpatialQuery, "query", question, 10.0)
            answers += bool(response and response.success)
            it.node.destroy_subscription(subscription)
            row = {"seconds": time.monotonic() - start, "latency_s": it.status.latency_s}
            rows.append(row | sample(it.process.pid))
            time.sleep(PERIOD_S)
        windows = it.status.window_id
    warm = [row for row in rows if row["seconds"] >= WARM_UP * rows[-1]["seconds"]]
    hours = [row["seconds"] / 3600 for row in warm]
    resident = [row["resident_mib"] for row in warm]
    slope, half = slope_of(hours, resident), len(warm) // 2
    later = slope_of(hours[half:], resident[half:])
    return {
        "minutes": minutes,
        "windows": windows,
        "questions": len(rows),
        "answers": answers,
        "resident_mib_per_hour": slope,
        "resident_percent_per_hour": 100 * slope / resident[0],
        "resident_percent_per_hour_later_half": 100 * later / resident[half],
        "samples": rows,
    }


def slope_of(hours: list[float], values: list[float]) -> float:
    """Of the straight line through the values, per hour; NaN for fewer than three."""
    return float(np.polyfit(hours, values, 1)[0]) if len(values) > 2 else float("nan")


def plot(rows: list[dict], path: Path) -> None:
    """Each quantity over time, in a strip of its own, with its smallest and largest value."""
    width, height = 900, 130
    canvas = np.full((height * len(QUANTITIES), width, 3), 255, np.uint8)
    for strip, name in enumerate(QUANTITIES):
        values = np.array([row[name] for row in rows])
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        x = np.linspace(10, width - 10, len(values))
        y = height * (strip + 1) - 12 - (values - low) / max(high - low, 1e-9) * (height - 50)
        line = np.stack([x, np.nan_to_num(y)], axis=1).astype(np.int32)
        cv2.polylines(canvas, [line], False, (160, 80, 20), 1, cv2.LINE_AA)
        label = f"{name}: {low:.4g} to {high:.4g}"
        at = (10, height * strip + 20)
        cv2.putText(canvas, label, at, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    cv2.imwrite(str(path), canvas)


def main(arguments: list[str] | None = None) -> int:
    """Writes JSON and plot; exit code 1 where threads or descriptors grew all the time."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path("soak_output"))
    options = parser.parse_args(arguments)
    _claim = isolate()
    report = soak(options.minutes)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "soak.json").write_text(json.dumps(report, indent=1))
    plot(report["samples"], options.out / "soak.png")
    first, last = report["samples"][len(report["samples"]) // 5], report["samples"][-1]
    print(
        f"{report['windows']} windows, {report['answers']} of {report['questions']} answered; "
        f"memory {first['resident_mib']:.0f} to {last['resident_mib']:.0f} MiB, "
        f"threads {first['threads']} to {last['threads']}, "
        f"descriptors {first['descriptors']} to {last['descriptors']}; "
        f"slope after the first fifth {report['resident_percent_per_hour']:.1f} % of memory per "
        f"hour, in its later half {report['resident_percent_per_hour_later_half']:.1f} %"
    )
    grown = last["threads"] > first["threads"] + 4
    return int(grown or last["descriptors"] > first["descriptors"] + 8)


if __name__ == "__main__":
    raise SystemExit(main())
