# SPDX-License-Identifier: Apache-2.0
"""Losses over time as a PNG, where matplotlib is installed."""

from __future__ import annotations

import json
from pathlib import Path

from g2vlm_ros.demo.train.train_state import CURVES

_BOOKKEEPING = ("stage", "steps", "windows", "seconds", "skipped")


def draw_curves(folder: Path) -> Path | None:
    """Writes curves.png beside curves.jsonl; None without anything to draw or to draw with."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    path = folder / CURVES
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    names = sorted({name for record in records for name in record} - set(_BOOKKEEPING))
    if not names:
        return None
    figure, panels = plt.subplots(2, -(-len(names) // 2), figsize=(14, 6), squeeze=False)
    for panel, name in zip(panels.flat, names, strict=False):
        points = [(r["windows"] / 1000, r[name]) for r in records if name in r]
        panel.plot(*zip(*points, strict=True))
        panel.set(title=name, xlabel="thousand windows", yscale="log")
    figure.tight_layout()
    figure.savefig(folder / "curves.png", dpi=80)
    plt.close(figure)
    return folder / "curves.png"
