# SPDX-License-Identifier: Apache-2.0
"""Writes config/perception.yaml and docs/parameters.md from g2vlm_ros/settings.py.

    python3 tools/write_parameters.py           # write them
    python3 tools/write_parameters.py --check   # exit code 1 where they are not up to date

Needs nothing but the standard library. `test/test_config.py` checks the same.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import Field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from g2vlm_ros.parameter_schema import default_of, parameters_of  # noqa: E402
from g2vlm_ros.settings import Settings  # noqa: E402

LINE_LENGTH = 100
YAML_HEAD = """\
# Every parameter of the node `perception`, with its default. Units are in the names.
# Written by tools/write_parameters.py; change g2vlm_ros/settings.py instead.
#
# Copy what you change into a file of your own and lay it over this one:
#   ros2 launch g2vlm_ros perception.launch.py params_file:=/path/mine.yaml
# Shipped overlays, by name: params_file:=cpu, desktop or jetson_orin; several: cpu,/path/mine.yaml
# Wrong values are refused at start with name, value and bound; unknown names are reported.
#
# QoS of inputs and outputs: qos_overrides./camera/image_raw.subscription.reliability: reliable
# and so on (the full topic name; policies history, depth, reliability, durability).

/**/perception:
  ros__parameters:
"""
MARKDOWN_HEAD = """\
<!-- Written by tools/write_parameters.py; change g2vlm_ros/settings.py instead. -->
# Parameters of `perception`

Names of groups are prefixes: `window.views`. [config/perception.yaml](../config/perception.yaml)
has them all with their defaults, for `params_file:=`. A wrong value is refused with name, value
and bound; unknown names in a file are reported. They change while the node is unconfigured. Units
are in the names: `_m` metres, `_s` seconds, `_px` pixels, `_mib` MiB.

QoS of inputs and outputs is overridden as ROS does it:
`qos_overrides./camera/image_raw.subscription.reliability: reliable` (the full topic name;
policies history, depth, reliability, durability).
"""


def sections() -> Iterator[tuple[str, str, list[tuple[str, Field]]]]:
    """(group, what it is about, its parameters): those without a group first."""
    groups: dict[str, list[tuple[str, Field]]] = {}
    for name, item in parameters_of(Settings):
        groups.setdefault(name.rpartition(".")[0], []).append((name, item))
    defaults = Settings()
    for group, items in groups.items():
        about = type(getattr(defaults, group)).__doc__ if group else "Inputs and reports."
        yield group, about, items


def bounds(item: Field) -> str:
    """What a value must be beside its type, in words; empty where that is all."""
    meta = item.metadata
    if meta["choices"]:
        return ", ".join(meta["choices"])
    return "" if meta["low"] is None else f"{meta['low']} to {meta['high']}"


def yaml_text() -> str:
    """config/perception.yaml."""
    lines = []
    for group, about, items in sections():
        indent = "    "
        if group:
            lines += [*_comment(about.split("\n\n")[0], indent), f"{indent}{group}:"]
            indent += "  "
        for name, item in items:
            label = "One of" if item.metadata["choices"] else "Bounds"
            limits = f" {label}: {bounds(item)}." if bounds(item) else ""
            lines += _comment(item.metadata["doc"] + limits, indent)
            lines += [f"{indent}{name.rpartition('.')[2]}: {json.dumps(default_of(item))}", ""]
    return YAML_HEAD + "\n".join(lines).rstrip() + "\n"


def markdown_text() -> str:
    """docs/parameters.md."""
    lines = [MARKDOWN_HEAD]
    for group, about, items in sections():
        lines += [f"## {group}.*" if group else "## Without a prefix", ""]
        lines += [" ".join(about.split()), ""]
        lines += ["| parameter | default | bounds | what |", "|---|---|---|---|"]
        for name, item in items:
            cells = f"`{name}`", f"`{json.dumps(default_of(item))}`", bounds(item)
            lines.append(f"| {' | '.join(cells)} | {_escaped(item.metadata['doc'])} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _comment(text: str, indent: str) -> list[str]:
    width = LINE_LENGTH - len(indent) - 2
    wrapped = textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)
    return [f"{indent}# {line}" for line in wrapped]


def _escaped(text: str) -> str:
    return text.replace("<", "\\<").replace("|", "\\|")


FILES = {"config/perception.yaml": yaml_text, "docs/parameters.md": markdown_text}


def main(arguments: list[str]) -> int:
    """Write the files, or say which are not up to date."""
    stale = []
    for name, text in FILES.items():
        path = ROOT / name
        if not path.exists() or path.read_text() != text():
            stale.append(name)
            if "--check" not in arguments:
                path.write_text(text())
    for name in stale:
        done = "is not up to date" if "--check" in arguments else "is written"
        print(f"{name} {done}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
