"""What a question costs: the first and the second on a window, against the plain order of work.

In the plain order every question starts from the images, as upstream's code does; `Perception.ask`
computes the window's part once. Counted in tokens and timed, in one run, on held-out homes; with
engines/demo where it is there, else with the golden checkpoint, whose words mean nothing.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.query import DEMO, opened, windows
from benchmarks.record import record
from g2vlm_ros.perception import Perception

GOLDEN = Path(__file__).parents[1] / "test" / "data" / "golden" / "A"
LEAST_SAVING = 5.0
"""How many times fewer tokens the second question must compute, or the benchmark fails."""


def cost(perception: Perception, count: int) -> dict[str, Any]:
    """Medians over windows of the tokens computed and the time before the first word."""
    booked: dict[str, list[tuple[int, float, int, float]]] = defaultdict(list)
    for window in windows("heldout", count, 2):
        first, second = (qa.question for qa in window.questions[:2])
        shared = perception.scene(list(window.images))
        for name, scene, question in (
            ("first", shared, first), ("second", shared, second),
            ("second_plain", perception.scene(list(window.images)), second),
        ):  # fmt: skip
            answer = perception.ask(scene, question)
            decode = answer.stage_times_s["decode"]
            before = sum(answer.stage_times_s.values()) - decode
            booked[name].append((answer.prefill_tokens, before, len(answer.token_ids) + 1, decode))
    made: dict[str, Any] = {"backend": perception.backend, "windows": count}
    for name, rows in booked.items():
        tokens, before, words, decode = np.array(rows, float).T
        made[name] = {
            "prefill_tokens": float(np.median(tokens)),
            "ms_to_first_token": round(1000 * float(np.median(before)), 2),
            "tokens_per_s": round(float(words.sum() / decode.sum()), 1),
        }
    plain, second = made["second_plain"], made["second"]
    for key in ("prefill_tokens", "ms_to_first_token"):
        made[f"saved_{key}"] = round(plain[key] / second[key], 1)
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run, record, print; exit code 1 where the second question saves too little."""
    parser = argparse.ArgumentParser(prog="question_cost", description=__doc__.split("\n")[0])
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--checkpoint", type=Path, default=DEMO if DEMO.exists() else GOLDEN)
    parser.add_argument("--width", type=int, default=112, help="of its views, pixels")
    parser.add_argument("--semantic", type=int, default=112, help="side of its semantic images")
    chosen = parser.parse_args(arguments)
    perception = opened(chosen.checkpoint, chosen.width, chosen.semantic)
    result = {"checkpoint": chosen.checkpoint.name, **cost(perception, chosen.windows)}
    print(record("question_cost", result))
    for name, row in result.items():
        print(f"{name:25s} {row}")
    return int(result["saved_prefill_tokens"] < LEAST_SAVING)


if __name__ == "__main__":
    raise SystemExit(main())
