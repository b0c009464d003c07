# SPDX-License-Identifier: Apache-2.0
"""Prints the licences of every installed dependency that requirements/ pins, as a table.

    .venv/bin/python tools/licences.py

What a package says of itself in its metadata: License-Expression, else License, else classifiers.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_LENGTH = 60
"""A licence field that holds the whole text is cut to its first line."""


def pinned() -> list[str]:
    """Names in requirements/, each once."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "requirements").glob("*.txt")))
    return sorted(set(re.findall(r"^([A-Za-z0-9._-]+)==", text, re.MULTILINE)), key=str.lower)


def licence(name: str) -> str:
    """What a package's metadata says; empty where it is not installed."""
    try:
        fields = metadata(name)
    except PackageNotFoundError:
        return ""
    stated = fields.get("License-Expression") or fields.get("License")
    if not stated or stated == "UNKNOWN":
        marks = [c.split(" :: ")[-1] for c in fields.get_all("Classifier", []) if "License" in c]
        stated = ", ".join(marks) or "not stated"
    return stated.splitlines()[0][:MAX_LENGTH]


def main() -> int:
    print("| package | licence |\n|---|---|")
    for name in pinned():
        if stated := licence(name):
            print(f"| {name} | {stated} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
