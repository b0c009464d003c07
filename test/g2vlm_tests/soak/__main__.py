# SPDX-License-Identifier: Apache-2.0
"""Soak: the node as a process for a while; a camera, questions, subscribers that come and go.

`make soak MINUTES=n` lets a robot drive the same round through a home, first until the map and
what else is bounded are full, then for n minutes; writes soak_output/soak.json and soak.png:
memory, threads, descriptors and latency over time. Every half minute the robot stands for a
moment: what is resident then is what the node holds, and no window that is being worked on. Fails
where the part of it that is the node's own rises by more than MAX_PERCENT of it an hour, where
the samples are off by more than MAX_BLIND_PERCENT, or where threads or descriptors grow.
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
from g2vlm_tests.minutes import minutes
from g2vlm_tests.soak.round_trip import ROUND_S, RoundTripRobot
from g2vlm_tests.soak.trend import BLOCKS, trend_of
from sensor_msgs.msg import PointCloud2

from g2vlm_ros.ros.heap import PERIOD_S as PERIOD_OF_TRIM_S

PERIOD_S = 2.0
DRIVE_S = 30.0
STAND_S = PERIOD_OF_TRIM_S + 2.0
"""The robot drives so long, and stands until the node has given freed memory back."""
WARM_UP_S = 3 * ROUND_S
"""The warm-up lasts so long, until the map is whole, and until the node keeps the places of as
many windows as it may: some kilobytes each, with the ground that their views saw free."""
MAX_WARM_UP_S = 1800.0
JUDGED = "anonymous_mib"
"""What the node has allocated. The rest of what is resident are pages of files, which the kernel
takes and gives as it likes (8 MiB at once in one soak)."""
MAX_PERCENT = 1.0
"""Growth of it an hour that is allowed, of all that is resident."""
MAX_BLIND_PERCENT = 10.0
"""Half of the 95 % interval, at most."""
MAX_MORE_THREADS, MAX_MORE_DESCRIPTORS = 4, 8
"""A subscriber or a question that is there at the last sample and was not at the first."""
PARAMETERS = {
    "window.views": "2",
    "window.overlap": "1",
    "window.min_gap_s": "0.25",
    "map.loop_closure": "true",
    "map.graph_windows": "16",
    "map.path_length": "500",
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
            f"{row['windows_kept']} windows kept after {MAX_WARM_UP_S:.0f} s; the machine is busy"
        )
    return row["seconds"] >= warm_up_s and row["windows_kept"] >= row["max_windows"]


class Soak:
    """The node at work, and samples of it over time."""

    def __init__(self, accounts: Path | None = None):
        """accounts: where the node is to say every ten seconds what each of its stores holds."""
        module = {}
        if accounts is not None:
            os.environ["G2VLM_ACCOUNTS"] = str(accounts.absolute())
            module["module"] = "g2vlm_tests.soak.accounted_node"
        self._robot = RoundTripRobot(parameters=PARAMETERS, **module)
        self._ends: Counter[str] = Counter()
        self.rows: list[dict[str, float]] = []

    def run(self, minutes: float, warm_up_s: float) -> dict[str, Any]:
        """The samples, and what they come to."""
        try:
            if not (self._robot.bring_up() and self._robot.works()):
                raise RuntimeError("the node does not come up:\n" + self._robot.said())
            self._start = time.monotonic()
            while not (self.rows and warm(self.rows[-1], warm_up_s)):
                self._drive_and_stand()
            warm_from, stops = self.rows[-1]["seconds"], 1
            while self.rows[-1]["seconds"] < warm_from + 60 * minutes or stops < BLOCKS:
                self._drive_and_stand()
                stops += 1
        finally:
            self._robot.close()
        return report(minutes, warm_from, self.rows, self._ends)

    def _drive_and_stand(self) -> None:
        stand_from = time.monotonic() + DRIVE_S
        while time.monotonic() < stand_from:
            self._ends[visit(self._robot, sum(self._ends.values()))] += 1
            self._sample(standing=False)
            time.sleep(PERIOD_S)
        self._robot.standing = True
        self._robot.rests()
        time.sleep(STAND_S)
        self._sample(standing=True)
        self._robot.standing = False

    def _sample(self, standing: bool) -> None:
        status = self._robot.status
        row = {
            "seconds": round(time.monotonic() - self._start, 2),
            "standing": standing,
            "window": status.window_id,
            "map": status.map_id,
            "windows_kept": self._robot.windows_kept,
            "max_windows": self._robot.max_windows,
            "latency_s": round(status.latency_s, 3),
        }
        self.rows.append(row | sample(self._robot.process.pid))


def report(
    minutes: float, warm_from: float, rows: list[dict[str, float]], ends: Counter[str]
) -> dict[str, Any]:
    """What the samples come to; memory is that of the robot when it stood."""
    later = [row for row in rows if row["seconds"] >= warm_from]
    stood = [row for row in later if row["standing"]]
    seconds = [row["seconds"] for row in stood]
    trends = {
        name: trend_of(seconds, [row[name] for row in stood]).as_json()
        for name in ("resident_mib", "anonymous_mib")
    }
    return {
        "minutes": minutes,
        "warm_up_s": warm_from,
        "windows": rows[-1]["window"],
        "windows_after_warm_up": rows[-1]["window"] - later[0]["window"],
        "maps": max(row["map"] for row in rows) + 1,
        "questions": sum(ends.values()),
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


def growth_percent(report: dict[str, Any]) -> tuple[float, float]:
    """Growth of what is JUDGED, in per cent of all that is resident an hour; half of its 95 %."""
    trend, resident = report["trends"][JUDGED], report["trends"]["resident_mib"]["start"]
    return 100 * trend["per_hour"] / resident, 100 * trend["plus_minus"] / resident


def verdict(report: dict[str, Any]) -> str:
    """One sentence, or one for each promise that was broken."""
    percent, error = growth_percent(report)
    if report["broken"]:
        return "\n".join(report["broken"])
    if percent + error > MAX_PERCENT:
        return (
            f"no growth was seen; {report['minutes']:g} minutes exclude only more than "
            f"{percent + error:.1f} % an hour"
        )
    return f"every promise was kept: growth is below {MAX_PERCENT:g} % an hour (95 %)"


def broken_promises(report: dict[str, Any]) -> list[str]:
    """A sentence for each promise that these samples do not show to be kept."""
    broken = []
    percent, error = growth_percent(report)
    if percent - error > MAX_PERCENT:
        broken.append(f"memory grows by {percent:.2f} +- {error:.2f} % an hour (95 %)")
    elif error > MAX_BLIND_PERCENT:
        broken.append(
            f"{percent:.2f} +- {error:.2f} % an hour (95 %) tells nothing of growth, at most +- "
            f"{MAX_BLIND_PERCENT:g}: the machine is busy, or MINUTES too few"
        )
    for name, more in (("threads", MAX_MORE_THREADS), ("descriptors", MAX_MORE_DESCRIPTORS)):
        first, last = report[name]
        if last > first + more:
            broken.append(f"{name} grow: {first} to {last}")
    if report["ends"].get(NO_RESPONSE):
        broken.append(f"{report['ends'][NO_RESPONSE]} questions had no response")
    return broken


def as_text(result: dict[str, Any]) -> str:
    """JSON with a sample on each line."""
    head = json.dumps(result | {"samples": []}, indent=1)
    samples = ",\n  ".join(json.dumps(row) for row in result["samples"])
    return head.replace('"samples": []', f'"samples": [\n  {samples}\n ]') + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Writes JSON and plot, prints a table; exit code 1 where a promise is not seen to be kept."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=minutes, default=10.0, help="after the warm-up")
    parser.add_argument("--warm-up-s", type=float, default=WARM_UP_S)
    parser.add_argument(
        "--accounts", action="store_true", help="write what each store holds to accounts.jsonl"
    )
    parser.add_argument("--out", type=Path, default=Path("soak_output"))
    options = parser.parse_args(arguments)
    _claim = isolate()
    options.out.mkdir(parents=True, exist_ok=True)
    accounts = options.out / "accounts.jsonl" if options.accounts else None
    result = Soak(accounts).run(options.minutes, options.warm_up_s)
    result["broken"] = broken_promises(result)
    (options.out / "soak.json").write_text(as_text(result))
    plot(result["samples"], options.out / "soak.png")
    print(f"| {'after the warm-up':<32} | |\n|---|---|")
    rows = {"minutes": result["minutes"], "windows": result["windows_after_warm_up"]}
    rows |= {"questions by their end": result["ends"]}
    for name, trend in result["trends"].items():
        rows[f"{name} at the start"] = f"{trend['start']:.1f}"
        rows[f"{name}, % an hour (95 %)"] = (
            f"{trend['percent_per_hour']:.2f} +- {trend['percent_plus_minus']:.2f}"
        )
    rows |= {name: result[name] for name in ("threads", "descriptors")}
    for name, value in rows.items():
        print(f"| {name:<32} | {value} |")
    print("\n" + verdict(result))
    return int(bool(result["broken"]))


if __name__ == "__main__":
    raise SystemExit(main())
