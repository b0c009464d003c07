# SPDX-License-Identifier: Apache-2.0
"""engines/README.md names tests for bad input; they must be there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tests_that_the_table_of_bad_input_names_exist() -> None:
    text = (ROOT / "engines" / "README.md").read_text().split("## Bad input")[1]
    named = set(re.findall(r"\btest_\w+\b(?!\.py)", text))
    files = [
        path for room in ("export", "inference") for path in (ROOT / "test" / room).rglob("*.py")
    ]
    there = set(
        re.findall(r"^def (test_\w+)", "".join(p.read_text() for p in files), re.MULTILINE)
    )
    assert len(named) > 15 and named <= there, named - there
    for path in re.findall(r"([\w/]+/test_\w+\.py)", text):
        assert (ROOT / "test" / path).exists(), path
