# SPDX-License-Identifier: Apache-2.0
"""Finding: one thing that the doctor looked at, how it is, and what helps."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import Enum


class Level(str, Enum):
    """How bad a finding is. ERROR: the node cannot do its work like this."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    check: str
    """What was looked at, one word or two joined by underscores."""
    level: Level
    what: str
    """What was seen, in a sentence, with the values."""
    remedy: str = ""
    """What to do; empty only where all is well."""

    def __post_init__(self) -> None:
        if self.level is not Level.OK and not self.remedy:
            raise ValueError(f"finding '{self.check}' has no remedy")


def ok(check: str, what: str) -> Finding:
    """All is well."""
    return Finding(check, Level.OK, what)


def warning(check: str, what: str, remedy: str) -> Finding:
    """It works, worse than it could."""
    return Finding(check, Level.WARNING, what, remedy)


def error(check: str, what: str, remedy: str) -> Finding:
    """It cannot work."""
    return Finding(check, Level.ERROR, what, remedy)


def as_text(findings: Iterable[Finding]) -> str:
    """The findings for a reader: the worst first, remedies indented."""
    order = (Level.ERROR, Level.WARNING, Level.OK)
    lines = []
    for finding in sorted(findings, key=lambda each: order.index(each.level)):
        lines.append(f"{finding.level.value:<7} {finding.check}: {finding.what}")
        if finding.remedy:
            lines.append(f"        -> {finding.remedy}")
    return "\n".join(lines)


def as_json(findings: Iterable[Finding]) -> str:
    """The findings for a program: {"errors": n, "warnings": n, "findings": [...]}."""
    findings = list(findings)
    report = {
        "errors": sum(each.level is Level.ERROR for each in findings),
        "warnings": sum(each.level is Level.WARNING for each in findings),
        "findings": [asdict(each) for each in findings],
    }
    return json.dumps(report, indent=1, default=str)
