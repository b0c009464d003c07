# SPDX-License-Identifier: Apache-2.0
"""What a server's reply must be before anything of it is used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from g2vlm_ros.inference.stage_service import Arrays

IDS, REALS = "iu", "f"
"""numpy's kinds of token ids, and of what a network computes."""
LAYOUT: dict[str, dict[str, tuple[str, int]]] = {
    "encode_geometry": {"descriptor": (REALS, 2)},
    "fetch": {"values": (REALS, 0)},
    "heads": {
        "local_points_u": (REALS, 4),
        "window_from_camera": (REALS, 3),
        "rotation9": (REALS, 2),
    },
    "decode": {"ids": (IDS, 1)},
}
"""Stage -> array that it must give -> kind and number of axes; 0 for any."""
ALL_LOGITS = {"logits": (REALS, 1)}
TOP_LOGITS = {"top_ids": (IDS, 1), "top_logits": (REALS, 1)}
"""Of stage logits, as the request says."""
OPTIONAL = {"confidence": (REALS, 3), "global_points_u": (REALS, 4)}
"""Of heads, where the network has them."""


class ReplyError(ValueError):
    """A reply that no StageService gives; says what is wrong with it."""


def check_header(reply: Mapping[str, Any]) -> None:
    """ReplyError where what is said beside the arrays is not of the kind."""
    if "error" in reply:
        sound = all(isinstance(reply.get(name), str) for name in ("error", "message"))
        if not sound or not isinstance(reply.get("stage", ""), str):
            raise ReplyError("a reply's error has no words")
        return
    times_s = reply.get("times_s")
    sound = isinstance(times_s, dict) and all(
        isinstance(each, (int, float)) and math.isfinite(each) for each in times_s.values()
    )
    if not sound:
        raise ReplyError(f"a reply's times_s is {str(times_s)[:80]}")


def results_by_step(stages: Sequence[str], results: Arrays, vocabulary: int) -> list[Arrays]:
    """The arrays of each step by their own names; ReplyError as `check_result`."""
    by_step: list[Arrays] = [{} for _ in stages]
    for name, array in results.items():
        index, _, own_name = name.partition(".")
        if not index.isdecimal() or int(index) >= len(stages):
            raise ReplyError(f"'{name[:80]}' is of none of {len(stages)} steps")
        by_step[int(index)][own_name] = array
    for stage, arrays in zip(stages, by_step, strict=True):
        check_result(stage, arrays, vocabulary)
    return by_step


def check_result(stage: str, arrays: Arrays, vocabulary: int) -> None:
    """ReplyError where the arrays of a stage's result are not those that it gives.

    vocabulary: how many tokens there are; ids lie below it. How sizes of geometry fit together
    is checked by RawGeometry.
    """
    layout = layout_of(stage, arrays)
    if set(arrays) != set(layout):
        raise ReplyError(f"stage {stage} gave {sorted(arrays)}, not {sorted(layout)}")
    for name, (kinds, axes) in layout.items():
        array = arrays[name]
        if array.dtype.kind not in kinds or (axes and array.ndim != axes):
            raise ReplyError(f"'{name}' of stage {stage} is {array.dtype} {array.shape}")
        if kinds == IDS and not (array.size and 0 <= array.min() <= array.max() < vocabulary):
            raise ReplyError(f"'{name}' of stage {stage} holds no ids of {vocabulary} tokens")
    if stage == "logits":
        ids = len(arrays["top_ids"]) if "top_ids" in arrays else vocabulary
        logits = len(arrays["top_logits" if "top_ids" in arrays else "logits"])
        if logits != ids:
            raise ReplyError(f"stage logits gave {logits} logits of {ids} ids")


def layout_of(stage: str, arrays: Arrays) -> dict[str, tuple[str, int]]:
    """What a stage gives, where there are several ways the one that these arrays are."""
    if stage == "heads":
        return LAYOUT[stage] | {name: OPTIONAL[name] for name in OPTIONAL if name in arrays}
    if stage == "logits":
        return ALL_LOGITS if "logits" in arrays else TOP_LOGITS
    return LAYOUT.get(stage, {})
