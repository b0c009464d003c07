# SPDX-License-Identifier: Apache-2.0
"""Compares arrays with those of a reference set, by the tolerances of its meta.json.

In fp32 the tolerances are the set's own. Lower precision cannot meet them; there an array's error
is ||a - ref|| / ||ref||, bounded by LOWER_PRECISION.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

LOWER_PRECISION = {"bf16": 0.1, "fp16": 0.02, "int8": 0.15, "w8": 0.04, "w4": 0.4}
"""Bound of ||a - ref|| / ||ref|| per array. The random weights of the sets amplify rounding."""
ONLY_INSIDE = re.compile(
    r"dino\.patch_tokens|.*pixel_values|.*\.inputs_embeds|.*\.layer\d+_out|.*_text\.hidden"
    r"|.*_vit\.hidden|decode\.hidden|kv\..*|\w+_decoder\.out"
)
"""Arrays that lie inside a backend's engines: compared where the backend lets one look."""


@dataclass(frozen=True)
class Line:
    """The result for one array of one case."""

    case: str
    array: str
    fraction: float
    """Largest error as a fraction of the tolerance; infinite when it cannot be compared."""
    note: str = ""

    @property
    def missed(self) -> bool:
        return not self.fraction <= 1.0

    def __str__(self) -> str:
        verdict = "MISS" if self.missed else "ok"
        line = f"{self.case:40} {self.array:36} {self.fraction:10.4g} {verdict} {self.note}"
        return line.rstrip()


class Tolerances:
    """The rules of a set's meta.json."""

    def __init__(self, meta: dict, precision: str):
        rules = meta["tolerances"]
        self.rules = {name: rules[name] for name in ("intermediates", "logits", "stats")}
        self.rules["pixel_values"] = rules["pixel_values"]
        bound = re.search(r"<=\s*([\d.eE+-]+)\s*\*\s*\(1", rules["point_maps"]["rule"])
        if bound is None:
            raise ValueError(f"meta.json has an unknown point_maps rule: {rules['point_maps']}")
        self.point_bound = float(bound[1])
        self.half = LOWER_PRECISION.get(precision)

    def fraction(self, name: str, output: np.ndarray, reference: np.ndarray) -> float:
        """The largest error of an array as a fraction of its tolerance."""
        if not np.issubdtype(reference.dtype, np.floating):
            return 0.0 if np.array_equal(output, reference) else np.inf
        output, reference = output.astype(np.float64), reference.astype(np.float64)
        if not np.isfinite(output).all():
            return np.inf
        if "pixel_values" in name:
            return self._worst("pixel_values", output, reference)
        if self.half is not None:
            return float(
                np.linalg.norm(output - reference)
                / (np.linalg.norm(reference) * self.half + 1e-12)
            )
        if name.startswith(("out.points", "out.local_points")):
            error = np.linalg.norm(output - reference, axis=-1)
            return float(
                (error / (1 + np.linalg.norm(reference, axis=-1))).max() / self.point_bound
            )
        special = {"decode.logits": "logits"}.get(name, "intermediates")
        return self._worst("stats" if name.startswith("stat.") else special, output, reference)

    def _worst(self, rule: str, output: np.ndarray, reference: np.ndarray) -> float:
        bound = self.rules[rule]["atol"] + self.rules[rule]["rtol"] * np.abs(reference)
        return float((np.abs(output - reference) / bound).max())


def compare(
    case: str,
    outputs: dict[str, np.ndarray],
    golden: dict[str, np.ndarray],
    tolerances: Tolerances,
    looks_inside: bool,
) -> Iterator[Line]:
    """One line per array of the set."""
    for name, reference in golden.items():
        full_name = re.sub(r"_(strided|row\d+)$", "", name)
        if full_name not in outputs:
            if looks_inside or not ONLY_INSIDE.fullmatch(full_name):
                yield Line(case, name, np.inf, "nothing to compare with")
            continue
        pairs = list(_candidates(name, outputs[full_name], reference))
        if not pairs:
            shapes = f"{outputs[full_name].shape} does not give {reference.shape}"
            yield Line(case, name, np.inf, shapes)
            continue
        yield Line(case, name, min(tolerances.fraction(name, *pair) for pair in pairs))


def _candidates(
    name: str, outputs: np.ndarray, reference: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Our array cut as the stored one is.

    Large arrays are stored subsampled. Not every stride is listed in cases.json, so all strides
    that give the stored shape are tried; only the right one can match.
    """
    if row := re.search(r"_row(\d+)$", name):
        outputs = outputs[:, :, int(row[1])]
    if outputs.ndim != reference.ndim:
        return
    axes = [axis for axis in range(outputs.ndim) if outputs.shape[axis] != reference.shape[axis]]
    longest = max((outputs.shape[axis] for axis in axes), default=1)
    for stride in range(1, longest + 1):
        if all(-(-outputs.shape[axis] // stride) == reference.shape[axis] for axis in axes):
            steps = (stride if axis in axes else 1 for axis in range(outputs.ndim))
            cut = outputs[tuple(slice(None, None, step) for step in steps)]
            rows = _seen_rows(name, cut)
            yield cut[rows], reference[rows]
        if not axes:
            return


def _seen_rows(name: str, outputs: np.ndarray) -> np.ndarray | slice:
    """Rows that a backend gave: without a look inside, the boundary tokens of geometry are NaN."""
    if not name.endswith("_geo.hidden"):
        return slice(None)
    return ~np.isnan(outputs).all(axis=-1)
