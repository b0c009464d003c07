# SPDX-License-Identifier: Apache-2.0
"""What `make demo` says of its drive: what was received, how right it was, every question."""

from __future__ import annotations

import json
from pathlib import Path

CLOUD, POSE = "/perception/points", "/perception/pose"
SUMMARY = {
    "trajectory_error_m": "trajectory error m",
    "depth_abs_rel": "relative depth error",
    "map_accuracy_m": "map accuracy m",
}
"""Of the accuracy in the report, what the last line says, in words."""


def write(report: dict, out: Path) -> None:
    """Leave report.json."""
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")


def show_drive(report: dict, out: Path) -> bool:
    """Print what was received and how right it was; False where nothing was."""
    clouds, poses = report["received"].get(CLOUD, 0), report["received"].get(POSE, 0)
    print(f"received over DDS: {clouds} clouds, {poses} poses of {report['frames_in']} frames")
    for name, value in report.get("accuracy", {}).items():
        print(f"  {name:34} {value}")
    if report["questions"]:
        _show_questions(report["questions"], report["answers"], out)
    return bool(clouds and poses)


def drive_summary(report: dict) -> str:
    """One line about the drive."""
    accuracy = report.get("accuracy", {})
    parts = [
        f"{words} {accuracy[key]}"
        for key, words in SUMMARY.items()
        if accuracy.get(key) is not None
    ]
    if report["questions"]:
        right = sum(each["verdict"] == "right" for each in report["questions"])
        parts.append(f"{right} of {len(report['questions'])} answers right")
    return f"drive: {report['windows']} windows" + "".join(f", {part}" for part in parts)


def _show_questions(questions: list[dict], answers: dict, out: Path) -> None:
    """Print them with how many were right by kind, and leave questions.md."""
    lines = ["| question | answer | truth | |", "|---|---|---|---|"]
    for a in questions:
        lines.append(f"| {a['question']} | {a['answer']} | {a['truth']} | {a['verdict']} |")
        print(f"  {a['question']} {a['answer']} (truth: {a['truth']}; {a['verdict']})")
    lines += [
        "",
        "| kind | asked | right | lower bounds that hold | right without looking |",
        "|---|---|---|---|---|",
    ]
    rows = answers["by_kind"]
    total = {key: sum(row[key] for row in rows.values()) for key in next(iter(rows.values()))}
    for kind, row in (*rows.items(), ("all", total)):
        counts = row["asked"], row["right"], row["bounds"], row["blind"]
        lines.append(f"| {kind} | {' | '.join(map(str, counts))} |")
        print(
            "  {:10s} {:3d} asked, {:3d} right, {:2d} true lower bounds; blind {:3d}".format(
                kind, *counts
            )
        )
    if "calibration_error" in answers:
        lines += ["", "| confidence | right | answers |", "|---|---|---|"]
        lines += [
            f"| {c['confidence']} | {c['right']} | {c['count']} |" for c in answers["calibration"]
        ]
        print(f"  confidence is {answers['calibration_error']:.2f} off the share of right answers")
    (out / "questions.md").write_text("\n".join(lines) + "\n")
