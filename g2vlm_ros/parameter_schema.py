# SPDX-License-Identifier: Apache-2.0
"""What a parameter is: a dataclass field with documentation, bounds and a check.

A settings class has such fields, or groups of them in nested settings classes, whose names become
prefixes: ``window.views``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any


class SettingError(ValueError):
    """A setting that is unknown, of the wrong type or outside its bounds."""


@dataclass(frozen=True)
class NameRule:
    """What a name of ROS may look like."""

    pattern: re.Pattern[str]
    sentence: str
    """Follows "it must be"."""


MAX_NAME = 200
"""Characters: DDS takes 247 of a topic, and namespace and /image_raw/compressed come on top."""
_TOKEN = "[A-Za-z_][A-Za-z0-9_]*"
TOPIC = NameRule(
    re.compile(f"(~/|/)?{_TOKEN}(/{_TOKEN})*"),
    "a ROS name: parts of letters, digits and _ that do not begin with a digit, joined by /",
)
FRAME = NameRule(
    re.compile(r"[^/\s\x00-\x1f\x7f][^\s\x00-\x1f\x7f]*"),
    "a tf frame: no spaces, and no / at the beginning",
)
FRAME_SUFFIX = NameRule(re.compile(r"[^\s\x00-\x1f\x7f]*"), "the end of a tf frame: no spaces")


def parameter(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    name: NameRule | None = None,
    former: str = "",
) -> Any:
    """A dataclass field with its documentation and bounds (inclusive).

    name: the rule that a text, or every entry of a list, keeps to; an empty text stands for none.
    former: what the parameter was called in the same group before, to say so where a file has it.
    """
    meta = {
        "doc": doc,
        "low": low,
        "high": high,
        "choices": choices,
        "name": name,
        "former": former,
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=meta)
    return field(default=default, metadata=meta)


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"window.views": 2} of {"window": {"views": 2}}, as parameter files nest names."""
    values: dict[str, Any] = {}
    for name, value in tree.items():
        inside = isinstance(value, Mapping)
        values |= flattened(value, f"{prefix}{name}.") if inside else {prefix + name: value}
    return values


def parameters_of(kind: type) -> Iterator[tuple[str, Field]]:
    """Every parameter of a settings class as (dotted name, field), in order of declaration."""
    for item in fields(kind):
        if item.metadata:
            yield item.name, item
        else:
            for leaf in fields(item.default_factory):
                yield f"{item.name}.{leaf.name}", leaf


def former_names(kind: type) -> dict[str, str]:
    """{"map.old": "map.new"}: names that parameters had before."""
    names = {}
    for name, item in parameters_of(kind):
        if item.metadata["former"]:
            group, dot, _ = name.rpartition(".")
            names[f"{group}{dot}{item.metadata['former']}"] = name
    return names


def build(kind: type, values: Mapping[str, Any]) -> Any:
    """An instance of a settings class from dotted names; SettingError as `check` raises it."""
    parameters = dict(parameters_of(kind))
    former = former_names(kind)
    for name in values:
        if name in former:
            raise SettingError(f"setting '{name}' is called '{former[name]}' now; rename it")
        if name not in parameters:
            raise SettingError(f"unknown setting '{name}'; known: {', '.join(sorted(parameters))}")
    groups: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        group, _, leaf = name.rpartition(".")
        groups.setdefault(group, {})[leaf] = check(name, parameters[name], value)
    top = groups.pop("", {})
    types = {item.name: item.default_factory for item in fields(kind) if not item.metadata}
    return kind(**top, **{name: types[name](**leaves) for name, leaves in groups.items()})


def default_of(item: Field) -> Any:
    """The default value of a parameter."""
    return item.default if item.default is not MISSING else item.default_factory()


def check(name: str, item: Field, value: Any) -> Any:
    """The value in the parameter's type, or SettingError naming value, bound and remedy."""
    meta, default = item.metadata, default_of(item)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(default, list) and isinstance(value, tuple):
        value = list(value)
    if type(value) is not type(default):
        raise SettingError(
            f"{name} is {value!r} ({type(value).__name__}); it must be a {type(default).__name__}"
        )
    if isinstance(default, list) and not all(isinstance(entry, str) for entry in value):
        raise SettingError(f"{name} is {value!r}; it must be a list of strings")
    if meta["choices"] and value not in meta["choices"]:
        raise SettingError(f"{name} is {value!r}; it must be one of {', '.join(meta['choices'])}")
    low, high = meta["low"], meta["high"]
    if low is not None and not low <= value <= high:
        raise SettingError(f"{name} is {value}; it must lie in {low} to {high}")
    if meta["name"] is not None:
        _check_name(name, meta["name"], value)
    return value


def _check_name(name: str, rule: NameRule, value: str | list[str]) -> None:
    for entry in value if isinstance(value, list) else [value]:
        if len(entry) > MAX_NAME:
            raise SettingError(
                f"{name} has a name of {len(entry)} characters; at most {MAX_NAME} are taken"
            )
        if entry and not rule.pattern.fullmatch(entry):
            raise SettingError(f"{name} has {entry!r}; it must be {rule.sentence}")
