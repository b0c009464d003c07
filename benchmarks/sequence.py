# SPDX-License-Identifier: Apache-2.0
"""Real pixels: a recorded office with true depth and poses, spoilt like a network's, as input.

`python -m g2vlm_ros.evaluate` over the office at several errors of the stand-in, each with and
without `map.refine_poses`. The frames may not be distributed: the folder is taken from
G2VLM_SEQUENCES or ../shared/data, and without it the benchmark says so and measures nothing.
`--every 4` is the hard case: views about 0.3 m apart. One seed is one draw of the errors; the rows
are of the first one, and the others show what is chance.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.record import record
from g2vlm_ros.datasets.open_sequence import open_sequence
from g2vlm_ros.datasets.sequence import PosedSequence, SequenceFrame
from g2vlm_ros.evaluate import SequenceRun
from g2vlm_ros.evaluation.stand_in import StandInErrors, StandInPerception
from g2vlm_ros.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
NAME = "hololens_office"
ERRORS = (
    "",
    "turn=0.5,shift=0.01,depth=0.03",
    "turn=1,shift=0.015,depth=0.04",
    "turn=2,shift=0.01,depth=0.02",
    "turn=3,shift=0.01,depth=0.02",
    "turn=1.5,shift=0.02,depth=0.05",
    "turn=3,shift=0.05,depth=0.08,blur=2",
)
KEPT = (
    "ate_sim3_m",
    "ate_rotation_deg",
    "rpe_m_per_m",
    "rpe_deg_per_m",
    "path_m",
    "maps",
    "views_per_map",
    "loops",
    "map_accuracy_m",
    "map_completeness",
    "covariance_ratio",
    "nees_rotation",
    "cpu_ms_per_window",
)


def office() -> Path | None:
    """Its folder, or None."""
    folder = os.environ.get("G2VLM_SEQUENCES")
    places = [Path(folder)] if folder else []
    places += [above / "shared" / "data" for above in (ROOT.parent, ROOT.parents[1])]
    return next((p / NAME for p in places if (p / NAME / "poses.txt").is_file()), None)


def _both(
    sequence: PosedSequence, frames: Sequence[SequenceFrame], text: str, seed: int
) -> dict[str, Any]:
    """Figures with and without refinement."""
    figures, errors = {}, replace(StandInErrors.parse(text), seed=seed)
    for name, refine in (("refined", True), ("as_said", False)):
        settings = Settings.from_flat({"cameras": ["camera"], "map.refine_poses": refine})
        run = SequenceRun(sequence, StandInPerception(frames, errors), settings, frames)
        run.play()
        results = run.results()
        figures[name] = {key: results.get(key) for key in KEPT}
    return figures


def main() -> int:
    """Measure and record; fails where an exact stand-in is spoilt."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--every", type=int, default=4, help="take every n-th frame")
    parser.add_argument("--errors", nargs="*", default=ERRORS, help="as --stand-in of evaluate")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="of the errors; rows are of the first"
    )
    options = parser.parse_args()
    folder = office()
    if folder is None:
        print(f"skipped: no {NAME} in G2VLM_SEQUENCES or ../shared/data; it is not distributed")
        return 0
    sequence, rows = open_sequence(folder), []
    frames, (first, *others) = sequence.frames[:: options.every], options.seeds
    for text in options.errors:
        row = {"errors": text or "none"} | _both(sequence, frames, text, first)
        if text:  # no errors are the same with every seed
            row["others"] = [
                {"seed": seed} | _both(sequence, frames, text, seed) for seed in others
            ]
            ates = [each["refined"]["ate_sim3_m"] for each in (row, *row["others"])]
            row["worst_ate_sim3_m"] = max(ates)
        print(row, flush=True)
        rows.append(row)
    about = {"sequence": NAME, "every": options.every, "seeds": options.seeds}
    print(record("sequence", {**about, "rows": rows}))
    exact = rows[0]["refined"]["ate_sim3_m"] if rows[0]["errors"] == "none" else 0.0
    return exact > 0.02


if __name__ == "__main__":
    raise SystemExit(main())
