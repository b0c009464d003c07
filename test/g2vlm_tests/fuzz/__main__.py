# SPDX-License-Identifier: Apache-2.0
"""`make fuzz MINUTES=n`: the time shared among the doors, and a table of what came out."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from g2vlm_tests.dds_domain import isolate
from g2vlm_tests.fuzz.door import Door, escapes, scratch
from g2vlm_tests.fuzz.file_doors import doors, torch_doors
from g2vlm_tests.fuzz.remote_doors import remote_doors
from g2vlm_tests.minutes import minutes

MAX_EXAMPLES = 20_000
"""Of one door: quick ones leave their time to the slow ones."""


@dataclass
class Row:
    """What became of one door."""

    door: str
    examples: int = 0
    seconds: float = 0.0
    outcome: str = "taken or refused"
    faults: int = 0


def tried(door: Door, share_s: float, seed: int) -> Row:
    """Batches until the time is over, or one lets something out."""
    row, start = Row(door.name), time.monotonic()
    while time.monotonic() - start < share_s and row.examples < MAX_EXAMPLES:
        try:
            escapes(door, door.batch, seed)
        except Exception as error:
            line = (str(error).splitlines() or [""])[0][:80]
            row.outcome, row.faults = f"**{type(error).__name__}: {line}** (seed {seed})", 1
            break
        row.examples, seed = row.examples + door.batch, seed + 1
    row.seconds = round(time.monotonic() - start, 1)
    return row


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 where something came out of a door that is no refusal."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--minutes", type=minutes, default=2.0, help="of all doors together")
    parser.add_argument("--seed", type=int, default=None, help="to begin with; else the clock's")
    parser.add_argument("--only", default="", help="doors whose name holds this")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    options = parser.parse_args(arguments)
    _claim = isolate()
    # Decoders in C complain of every damaged picture; Python still says what it has to.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    logging.disable(logging.WARNING)
    from g2vlm_tests.fuzz.message_doors import ros_doors
    from g2vlm_tests.fuzz.request_doors import AskedNode, request_doors
    from g2vlm_tests.fuzz.robot_doors import robot_doors

    seed = int(time.time()) if options.seed is None else options.seed
    rows: list[Row] = []
    print(f"| {'door':<24} | examples | seconds | what came out |\n|---|---|---|---|")
    node = AskedNode()
    try:
        everything = [*doors(), *torch_doors(), *remote_doors(), *ros_doors(), *robot_doors()]
        everything += request_doors(node)
        chosen = [door for door in everything if options.only in door.name]
        if not chosen:
            parser.error(f"no door has {options.only!r} in its name")
        end = time.monotonic() + 60 * options.minutes
        for left, door in zip(range(len(chosen), 0, -1), chosen, strict=True):
            row = tried(door, (end - time.monotonic()) / left, seed)
            rows.append(row)
            line = f"| {row.door:<24} | {row.examples:8d} | {row.seconds:7.1f} | {row.outcome} |"
            print(line, flush=True)
    finally:
        node.close()
        shutil.rmtree(scratch(), ignore_errors=True)
    total, faults = sum(row.examples for row in rows), sum(row.faults for row in rows)
    print(f"\n{total} examples in {len(rows)} doors, {faults} faults")
    if options.out:
        report = {"date": time.strftime("%Y-%m-%d"), "seed": seed, "examples": total}
        report["doors"] = [asdict(row) for row in rows]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1))
    return int(faults > 0)


if __name__ == "__main__":
    raise SystemExit(main())
