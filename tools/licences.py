# SPDX-License-Identifier: Apache-2.0
"""Writes docs/licences.md: the licence of every installed dependency that requirements/ pins.

    .venv/bin/python tools/licences.py

What a package says of itself in its metadata: License-Expression, else License, else classifiers.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ROOT / ".venv" / ".setup" / "wheels"
"""Of requirements/side_by_side.txt, a folder for each."""
PAGE = ROOT / "docs" / "licences.md"
HEAD = """# Licences of dependencies

Written by `.venv/bin/python tools/licences.py` from what `make test` installs; each package keeps its own licence. [NOTICE](../NOTICE) has the rest.
"not stated": the wheel's metadata is silent (the ROS wheels among them; their upstream packages are under Apache-2.0 or BSD, see each).

| package | licence |
|---|---|
"""  # noqa: E501
MAX_LENGTH = 60
"""A licence field that holds the whole text is cut to its first line."""


def pinned() -> list[str]:
    """Names in requirements/, each once."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "requirements").glob("*.txt")))
    return sorted(set(re.findall(r"^([A-Za-z0-9._-]+)==", text, re.MULTILINE)), key=str.lower)


def licence(name: str) -> str:
    """What a package's metadata says; empty where it is not installed."""
    side_by_side = [str(folder) for folder in WHEELS.glob("*")]
    package = next(iter(distributions(name=name, path=[*sys.path, *side_by_side])), None)
    if package is None:
        return ""
    fields = package.metadata
    stated = fields.get("License-Expression") or fields.get("License")
    if not stated or stated == "UNKNOWN":
        marks = [c.split(" :: ")[-1] for c in fields.get_all("Classifier", []) if "License" in c]
        stated = ", ".join(marks) or "not stated"
    return stated.splitlines()[0][:MAX_LENGTH]


def main() -> int:
    rows = [f"| {name} | {stated} |\n" for name in pinned() if (stated := licence(name))]
    PAGE.write_text(HEAD + "".join(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
