# SPDX-License-Identifier: Apache-2.0
"""Writes docs/results.md, and the table of results in README.md, from the JSON of benchmarks.

    python3 tools/write_results.py           # write them
    python3 tools/write_results.py --check   # exit code 1 where they are not up to date

A number in these tables is read from a file that a command wrote, or names the commit at which
somebody measured it. Needs only the standard library. `test/test_readme.py` checks the same.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "benchmarks/results"
SCORES = "engines/demo/scores.json"
START, END = "<!-- results: written by tools/write_results.py -->\n", "<!-- end of results -->"


@dataclass(frozen=True)
class Result:
    """One row: a quantity, its value as a template, where its numbers are, the command."""

    quantity: str
    value: str
    """str.format template of the names in `numbers`."""
    command: str
    numbers: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Name -> (JSON file, path of keys in it, separated by dots)."""
    commit: str = ""
    """Where no file has the numbers: the commit at which they were measured."""
    on_the_front_page: bool = False


def demo(**paths: str) -> dict[str, tuple[str, str]]:
    return {name: (SCORES, path) for name, path in paths.items()}


def benchmark(name: str, **paths: str) -> dict[str, tuple[str, str]]:
    file = f"{RESULTS}/{name}.json"
    return {key: (file, f"result.{path}") for key, path in paths.items()}


OFFICE_ERRORS = ("none", "0.5/1/3", "1/1.5/4", "2/1/2", "3/1/2", "1.5/2/5")
"""Degrees, per cent of shift and of depth: the first rows of `benchmarks sequence`, in order."""


def office() -> Result:
    """Real pixels: how far the trajectory is off at each error of the stand-in."""
    places = {f"ate_{i}": f"rows.{i}.worst_ate_sim3_m" for i in range(len(OFFICE_ERRORS))}
    places["ate_0"] = "rows.0.refined.ate_sim3_m"
    return Result(
        "real pixels, an office, 17 m: trajectory off; the truth stands in for the network with "
        f"errors of {', '.join(OFFICE_ERRORS)} (degrees / % of shift / % of depth), the "
        "worst of three draws",
        ", ".join(f"{{{name}:.3f}}" for name in places) + " m",
        "python -m benchmarks sequence --seeds 0 1 2",
        benchmark("sequence", **places),
        on_the_front_page=True,
    )


ROWS = {
    "Real pixels": (office(),),
    "The network": (
        Result(
            "the network against the original's reference vectors, fp32",
            "all 313 arrays within tolerance, the worst at 0.17 of it",
            "python -m g2vlm_ros.export.parity --golden test/data/golden/A",
            commit="c869de8",
            on_the_front_page=True,
        ),
        Result(
            "torch, 155 M parameters, 4 views: processor time over an eager original",
            "{time:.2f}",
            "python -m benchmarks model",
            benchmark("model", time="float32_time_over_eager"),
        ),
        Result(
            "the same: peak memory of the process over eager",
            "{memory:.2f}",
            "python -m benchmarks model",
            benchmark("model", memory="float32_process_peak_over_eager"),
        ),
        Result(
            "ONNX Runtime fp32 over eager torch, 4 views, small model and 155 M",
            "{small:.1f} and {middle:.1f} times as fast",
            "python -m benchmarks backends",
            benchmark(
                "backends",
                small="small.onnx float32.views.4.times_faster_than_eager",
                middle="middle.onnx float32.views.4.times_faster_than_eager",
            ),
        ),
        Result(
            "exporting all stages of the released size: time, peak memory",
            "{seconds:.0f} s, {memory:.0f} MB",
            "python -m benchmarks.export_size",
            benchmark("export_size", seconds="export_s", memory="peak_memory_mb"),
        ),
    ),
    "The demo checkpoint on 200 held-out homes": (
        Result(
            "depth error of the demo checkpoint, 200 homes, 4 views",
            "{relative:.1%}, metric {metric:.1%}",
            "make eval",
            demo(relative="geometry.4.abs_rel", metric="geometry.4.metric_abs_rel"),
            on_the_front_page=True,
        ),
        Result(
            "depth error on things, 4 views",
            "{things:.0%}",
            "make eval",
            demo(things="geometry.4.objects_abs_rel"),
        ),
        Result(
            "rotation between views, by the network and as published",
            "{raw:.2f}° and {refined:.2f}°",
            "make eval",
            demo(raw="geometry.4.rotation_deg", refined="geometry.4.refined_rotation_deg"),
        ),
        Result(
            "points, by the network and as published",
            "{raw:.2f} m and {refined:.2f} m",
            "make eval",
            demo(raw="geometry.4.points_m", refined="geometry.4.refined_points_m"),
        ),
    ),
    "Maps": (
        Result(
            "six drives of the demo: way, one map each",
            "{way:.0f} m in {maps} maps",
            "python -m benchmarks demo_map",
            benchmark("demo_map", way="mean.whole_way_m", maps="mean.maps"),
        ),
        Result(
            "lost in a saved map, another day, held-out homes: places found within .25 m and 5°, "
            "found elsewhere",
            "{right} of {places}, {wrong}",
            "python -m benchmarks relocalisation",
            benchmark(
                "relocalisation",
                right="places.right",
                places="places.places",
                wrong="places.wrong",
            ),
            on_the_front_page=True,
        ),
        Result(
            "the same on real pixels (office, stand-in for the network), where views overlap",
            "{right} of {places}, {wrong}",
            "python -m benchmarks relocalisation",
            benchmark(
                "relocalisation",
                right="office.overlapping.right",
                places="office.overlapping.places",
                wrong="office.overlapping.wrong",
            ),
        ),
        Result(
            "six drives of the demo: trajectory and map points",
            "{trajectory:.2f} m and {points:.2f} m off",
            "python -m benchmarks demo_map",
            benchmark(
                "demo_map",
                trajectory="mean.whole_trajectory_error_m",
                points="mean.map_accuracy_m",
            ),
            on_the_front_page=True,
        ),
        Result(
            "the same where windows share views: ours, the network's poses chained",
            "{ours:.2f} m, {chained:.2f} m",
            "python -m benchmarks demo_map",
            benchmark("demo_map", ours="mean.trajectory_error_m", chained="mean.chained_error_m"),
        ),
        Result(
            "squared errors over published covariances (1 is right): position, rotation",
            "{position:.2f}, {rotation:.2f}",
            "python -m benchmarks demo_map",
            benchmark("demo_map", position="mean.nees_position", rotation="mean.nees_rotation"),
        ),
        Result(
            "placing a window at window 600 over at 60 (limit 1.1)",
            "**{ratio:.2f}**",
            "python -m benchmarks alignment",
            benchmark("alignment", ratio="long_drive.ratio_600_to_60"),
        ),
        Result(
            "half an hour of driving: memory gained over the second half",
            "{growth:.1f} MiB",
            "python -m benchmarks drive",
            benchmark("drive", growth="resident_growth_second_half_mib"),
        ),
    ),
    "Things in the map": (
        Result(
            "held-out homes 3, 5 and 8: confirmed objects within 0.3 m of their thing, and things "
            "shown in three views that are confirmed there; second objects of a thing",
            "**{precision:.0%}** and **{recall:.0%}**, {duplicates:.0f}",
            "python -m benchmarks objects --homes 3 5 8",
            benchmark(
                "objects",
                precision="mean.precision",
                recall="mean.recall",
                duplicates="mean.duplicates",
            ),
        ),
        Result(
            "one search by words among 1 000 objects (limit 50 ms)",
            "{find:.2f} ms",
            "python -m benchmarks objects --homes 3 5 8",
            benchmark("objects", find="find_ms"),
        ),
        Result(
            "remembered things that were taken away or moved, their places shown again: noticed "
            "within a minute; things that stayed and are said to be gone",
            "**{noticed:.0%}** of {went:.0f}, {false_gone:.0%} of {stay:.0f}",
            "python -m benchmarks objects --homes 3 5 8",
            benchmark(
                "objects",
                noticed="mean.noticed",
                went="mean.went",
                false_gone="mean.false_gone",
                stay="mean.stay",
            ),
        ),
    ),
    "Questions": (
        Result(
            "questions about held-out homes, the model's words alone",
            "{right:.0%} right, best blind guess {blind:.0%}",
            "python -m benchmarks query",
            benchmark("query", right="model.all_kinds", blind="blind.all_kinds"),
            on_the_front_page=True,
        ),
        Result(
            "the same, measured in the checkpoint's own points where possible",
            "{right:.0%}",
            "python -m benchmarks query",
            benchmark("query", right="own_points.all_kinds"),
        ),
        Result(
            "questions worded otherwise than rules and training",
            "**{right:.0%} right**, {geometry:.0%} by geometry alone",
            "python -m benchmarks query",
            benchmark(
                "query", right="both_other_words.all_kinds", geometry="other_words.all_kinds"
            ),
            on_the_front_page=True,
        ),
        Result(
            "first token of a first and of a second question on a window",
            "{first:.0f} ms and {second:.0f} ms",
            "python -m benchmarks question_cost",
            benchmark(
                "question_cost",
                first="first.ms_to_first_token",
                second="second.ms_to_first_token",
            ),
        ),
        Result(
            "first words of an answer beside windows, median and 95 % (goal {goal:.0f} ms)",
            "{p50:.0f} and {p95:.0f} ms",
            "python -m benchmarks first_token",
            benchmark("first_token", p50="p50_ms", p95="p95_ms", goal="goal_ms"),
        ),
        Result(
            "a goal of the action acknowledged, 95 % (beside a working device)",
            "{rest:.0f} ms ({work:.0f} ms)",
            "python -m benchmarks question_cost",
            benchmark(
                "question_cost",
                rest="goal_acknowledged.resting.p95_ms",
                work="goal_acknowledged.working.p95_ms",
            ),
        ),
    ),
    "Cost": (
        Result(
            "a window of 4 views at 518×392 outside the network (goal {goal:.0f} ms)",
            "{all:.0f} ms of one core, {ratio:.1f} times less than before the kernels",
            "python -m benchmarks overhead",
            benchmark("overhead", all="processor_ms.all", goal="goal_ms", ratio="base_over_ours"),
            on_the_front_page=True,
        ),
        Result(
            "fusing the four views into a map: ours, Open3D's VoxelBlockGrid",
            "{ours:.0f} ms, {open3d:.0f} ms",
            "python -m benchmarks overhead",
            benchmark("overhead", ours="peers.fusion_ms.ours", open3d="peers.fusion_ms.open3d"),
        ),
        Result(
            "one endless drive: processor time of a window around window 600 and 6 000 over that "
            "around 60; allocated more in each thousand windows",
            "{some:.2f}, {many:.2f}; {mib:.1f} MiB",
            "python -m benchmarks growth --windows 6000",
            benchmark(
                "growth",
                some="growth.over_first_mark.600",
                many="growth.over_first_mark.6000",
                mib="growth.mib_per_1000_windows.allocated",
            ),
        ),
        Result(
            "PointCloud2 of 8 × 518 × 392 points over a plain memcpy",
            "{ratio:.1f}",
            "python -m benchmarks messages",
            benchmark("messages", ratio="cloud.ratios.ours_to_memcpy"),
        ),
        Result(
            "four 1280×720 cameras at 30 Hz: cores of the node, frames lost before it",
            "{cores:.1f}, {lost} of {sent}",
            "python -m benchmarks stream",
            benchmark(
                "stream",
                cores="node_cpu_cores",
                lost="frames_lost_before_the_node",
                sent="frames_sent",
            ),
        ),
    ),
}
HEAD = """\
<!-- Written by tools/write_results.py from the JSON files; measure again instead of editing. -->
# Results

Two shared CPU cores (AMD EPYC), other work beside most runs; date, machine and versions stand in
each file of [benchmarks/results](../benchmarks/results). `make bench` measures all again, then
`python3 tools/write_results.py` writes this page. What the benchmarks compare with:
[benchmarks/README.md](../benchmarks/README.md). Bold: worse than the goal, or than one would
like.
`make eval` is of the demo checkpoint as it is now (224×168); files dated before 2026-11-28 of
it (`drive`, `model`) are of the one before it (112×84).
"""


def number(file: str, path: str) -> Any:
    """The value at a path of keys; alternatives separated by |, the first that is there."""
    root = json.loads((ROOT / file).read_text())
    for alternative in path.split("|"):
        value: Any = root
        prefix = "result." if path.startswith("result.") else ""
        keys = alternative if alternative.startswith(prefix) else prefix + alternative
        for key in keys.split("."):
            if isinstance(value, list):
                value = value[int(key)] if int(key) < len(value) else None
            else:
                value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            return value
    raise KeyError(f"{file} has no {path}; measure again or mend tools/write_results.py")


def cells(result: Result) -> tuple[str, str, str, str]:
    """Quantity, value, command and source."""
    values = {name: number(*place) for name, place in result.numbers.items()}
    files = sorted({Path(file).name for file, _ in result.numbers.values()})
    source = ", ".join(files) or f"commit {result.commit}"
    return (
        result.quantity.format(**values),
        result.value.format(**values),
        f"`{result.command}`",
        source,
    )


def page() -> str:
    """docs/results.md."""
    parts = [HEAD]
    for title, rows in ROWS.items():
        parts.append(f"\n## {title}\n\n| quantity | value | command | from |\n|---|---|---|---|\n")
        parts += ["| " + " | ".join(cells(row)) + " |\n" for row in rows]
    return "".join(parts)


def front_page(text: str) -> str:
    """README.md with the table of results up to date."""
    rows = [row for group in ROWS.values() for row in group if row.on_the_front_page]
    lines = ["\n| what | result | command |", "|---|---|---|"]
    lines += ["| " + " | ".join(cells(row)[:3]) + " |" for row in rows]
    table = "\n".join(lines) + "\n\n"
    return re.sub(
        f"{re.escape(START)}.*?{re.escape(END)}",
        lambda _: START + table + END,
        text,
        flags=re.DOTALL,
    )


def main(arguments: list[str]) -> int:
    """Exit code 1 with --check where a file is not what it should be."""
    readme = ROOT / "README.md"
    files = {ROOT / "docs" / "results.md": page(), readme: front_page(readme.read_text())}
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path} is not up to date; run python3 tools/write_results.py")
        return int(bool(stale))
    for path, text in files.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
