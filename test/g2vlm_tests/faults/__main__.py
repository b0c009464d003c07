# SPDX-License-Identifier: Apache-2.0
"""`make faults`: what breaks on robots, done to the node as a real process.

Prints a table: what was done, what is expected, what was seen; and writes it as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from g2vlm_tests.dds_domain import isolate
from g2vlm_tests.faults import inputs, processes, requests
from g2vlm_tests.faults.robot import CHECKPOINT, ROOT, Case, Robot, Seen, robot

TABLE = (
    "| done | expected | seen | as expected | seconds |",
    "|---|---|---|---|---|",
)
PAGE = """# What breaks, and what the node does then

Written by `make faults`, last on {date}: **{good} of {cases} as expected**. The node is a real
process with the demo checkpoint on ONNX Runtime, on two shared CPU cores. "Goes on" means that two
more windows were published within two minutes by the same process. The camera's views are noise
that does not fit together, so maps start over by themselves here. The network that fails is the
real node with a fault in front of its network (`test/g2vlm_tests/faults/saboteur.py`).

Not done: a GPU that is really lost, a power cut, transforms on
/tf that jump (only /tf_static is listened to).
"""


def on_one_node(cases: Iterable[Case], **arguments: object) -> Iterator[tuple[Case, Seen, float]]:
    """Cases in turn on one process; a new one where a case has ended it."""
    with robot(**arguments) as it:
        if not (it.bring_up() and it.works()):
            raise RuntimeError("the node does not come up:\n" + it.said())
        for case in cases:
            if it.process.poll() is not None:
                it.start()
                it.bring_up()
                it.works()
            yield tried(case, it)


def tried(case: Case, *robots: Robot) -> tuple[Case, Seen, float]:
    start = time.monotonic()
    try:
        seen = case.run(*robots)
    except Exception as error:  # the table shows it, the other cases are still tried
        seen = Seen(f"{type(error).__name__}: {error}"[:100], False)
    seconds = time.monotonic() - start
    for it in robots if not seen.fine else ():
        print(f"not as expected: {case.done}\n{it.account()}", file=sys.stderr, flush=True)
    return case, seen, seconds


def everything(only: str) -> Iterator[tuple[Case, Seen, float]]:
    """All cases whose description holds `only`."""

    def chosen(cases: Iterable[Case]) -> list[Case]:
        return [case for case in cases if only in case.done]

    on_node = chosen([*inputs.CASES, *requests.CASES, *processes.RUNNING])
    if on_node:
        copy = Path(os.environ.get("TMPDIR", "/tmp")) / f"g2vlm_checkpoint_{os.getpid()}"
        shutil.copytree(CHECKPOINT, copy)
        try:
            yield from on_one_node(on_node, checkpoint=copy)
        finally:
            shutil.rmtree(copy)
    if sabotaged := chosen(processes.SABOTEUR):
        yield from on_one_node(sabotaged, module="g2vlm_tests.faults.saboteur")
    for case in chosen(processes.STARTS):
        yield tried(case)


def row_of(case: Case, seen: Seen, seconds: float) -> dict[str, object]:
    """What the table says of a case; places of this machine are left out."""
    text = seen.seen.replace(str(ROOT), ".").replace("|", "/").replace("\n", " ")
    text = re.sub(r"/tmp/[\w.]+", "…", text)
    return {
        "done": case.done,
        "expected": case.expected,
        "seen": text,
        "fine": seen.fine,
        "seconds": round(seconds, 1),
    }


def line_of(row: dict[str, object]) -> str:
    """A row as Markdown."""
    verdict = "yes" if row["fine"] else "**no**"
    words = (row["done"], row["expected"], row["seen"], verdict, f"{row['seconds']:.0f}")
    return f"| {' | '.join(words)} |"


def page(report: dict[str, object]) -> str:
    """docs/faults.md."""
    rows = report["cases"]
    good = sum(row["fine"] for row in rows)
    lines = [PAGE.format(date=report["date"], good=good, cases=len(rows)), *TABLE]
    return "\n".join([*lines, *map(line_of, rows)]) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 where something else than expected was seen."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    parser.add_argument("--page", type=Path, help="write the table as a page")
    parser.add_argument("--only", default="", help="cases whose description holds this")
    options = parser.parse_args(arguments)
    _claim = isolate()
    rows = []
    print("\n".join(TABLE))
    for result in everything(options.only):
        rows.append(row_of(*result))
        print(line_of(rows[-1]), flush=True)
    failed = sum(not row["fine"] for row in rows)
    print(f"\n{len(rows) - failed} of {len(rows)} as expected")
    report = {"date": time.strftime("%Y-%m-%d"), "cases": rows}
    if options.out:
        options.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    if options.page:
        options.page.write_text(page(report))
    return int(failed > 0 or not rows)


if __name__ == "__main__":
    raise SystemExit(main())
