# SPDX-License-Identifier: Apache-2.0
"""Which stages bear half precision or INT8: each one lowered alone, measured against float32.

`python -m g2vlm_ros.export.precision_study --checkpoint DIR [--images FOLDER]` prints a table and
the
largest activation of every stage, and writes both into the folder as `precision.report` (JSON),
which the export reads: float16 ends at 65504, and a stage that comes near is named. Runs in torch,
on one case: a prompt, two views, an image for a question, a decoding step.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from g2vlm_ros.checkpoint.digest import digest
from g2vlm_ros.checkpoint.onnx_manifest import STAGES
from g2vlm_ros.export.build_plan import BuildPlan
from g2vlm_ros.export.golden_cases import Arrays, Chain, Oracle, load_network, of_layers
from g2vlm_ros.export.weight_only import MAX
from g2vlm_ros.images.preprocessing import load_image, resize_views, semantic_image
from g2vlm_ros.model.network import FLOAT32_PARTS, G2VLM
from g2vlm_ros.records import UnfitError

REPORT = "precision.report"
LOWERED = {"bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.float32}
"""Precision -> type of what is not rounded to integers."""
FLOAT16_MOST, HEADROOM = 65504.0, 4.0
"""Activations of other images may be this much larger than those that were measured."""
DEPTH, ANGLE, LOGITS = "depth, relative", "angle, degrees", "logits, of their spread"
Case = dict[str, list[tuple[Arrays, Arrays]]]


class LoweredOracle(Oracle):
    """Runs one stage in another precision, the others in float32; their borders are float32."""

    def __init__(self, network: G2VLM, lowered: G2VLM, stage: str, dtype: torch.dtype):
        super().__init__(network, "float32")
        self.lowered, self.stage, self.dtype = lowered, stage, dtype

    def run(self, stage: str, **inputs: np.ndarray) -> tuple[Arrays, Arrays]:
        if stage != self.stage:
            return super().run(stage, **inputs)
        arrays = of_layers(inputs) if stage == "language" else inputs
        exact_inputs = {name: torch.tensor(array) for name, array in arrays.items()}
        narrow = {
            n: x.to(self.dtype) if x.is_floating_point() else x for n, x in exact_inputs.items()
        }
        graph = self._graphs[stage]
        with torch.inference_mode():
            results = graph.run(self.lowered, *(narrow[name] for name in graph.inputs))
        outputs = (x.float().numpy() for x in results)
        return inputs, dict(zip(graph.outputs, outputs, strict=True))


class PhotoChain(Chain):
    """A chain of all stages over photographs; without any, over random blocks."""

    def __init__(self, oracle: Oracle, plan: BuildPlan, size: tuple[int, int], photos: list):
        super().__init__(oracle, plan, size)
        self.photos = photos

    def _images(self, views: int, width: int, height: int) -> np.ndarray:
        if not self.photos:
            return super()._images(views, width, height)
        if (width, height) == self.size:
            return resize_views(self.photos[:views], width)
        return semantic_image(self.photos[0], width)[None]


def lowered_network(network: G2VLM, name: str) -> G2VLM:
    """The same weights in bfloat16 or float16, or with the rounding of `export.int8`."""
    lowered = copy.deepcopy(network)
    for part, child in lowered.named_children():
        if part in FLOAT32_PARTS:
            continue
        if name != "int8":
            child.to(LOWERED[name])
            continue
        modules = [child] if isinstance(child, nn.Linear) else child.modules()
        for module in (m for m in modules if isinstance(m, nn.Linear)):
            scale = module.weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
            module.weight.data = (module.weight / scale).round() * scale
            module.register_forward_pre_hook(lambda _, inputs: (fake_quantize_uint8(inputs[0]),))
    return lowered


def fake_quantize_uint8(x: Tensor) -> Tensor:
    """As ONNX DynamicQuantizeLinear: the range of the tensor, zero included, in 255 steps."""
    if not x.numel():
        return x
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-12)
    zero = (-low / scale).round()
    return (((x / scale).round() + zero).clamp(0, 255) - zero) * scale


class ActivationMaxima:
    """Hooks that keep the largest absolute value that goes into or comes out of any module.

    Only first inputs: masks come later. Scores inside fused attention are not seen.
    """

    def __init__(self, network: G2VLM):
        self.stage = ""
        """At work now; whoever runs a stage sets it."""
        self.results: dict[str, tuple[float, str]] = {}
        """Stage -> largest value and the module that has it."""
        self._handles = [
            module.register_forward_hook(partial(self._look, name))
            for name, module in network.named_modules()
        ]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _look(self, name: str, _: nn.Module, inputs: tuple, output: object) -> None:
        for x in (*inputs[:1], output):
            if isinstance(x, Tensor) and x.is_floating_point() and x.numel():
                value = float(x.abs().max())
                if not value <= self.results.get(self.stage, (-1.0, ""))[0]:
                    self.results[self.stage] = (value, name)


class WatchedOracle(Oracle):
    """Float32, with the maxima of every stage kept."""

    def __init__(self, network: G2VLM, maxima: ActivationMaxima):
        super().__init__(network, "float32")
        self.maxima = maxima

    def run(self, stage: str, **inputs: np.ndarray) -> tuple[Arrays, Arrays]:
        self.maxima.stage = stage
        return super().run(stage, **inputs)


def measure(folder: Path, photos: list, size: tuple[int, int], semantic_px: int) -> dict:
    """The report: `errors` {precision: {stage: {what: value}}} and `maxima`, for these weights."""
    network = load_network(folder).cpu()
    plan = _plan(size, semantic_px)

    def run(oracle: Oracle) -> Case:
        chain = PhotoChain(oracle, plan, size, photos)
        chain.geometry()
        chain.questions(plan.semantic_sizes[0])
        return chain.cases

    maxima = ActivationMaxima(network)
    exact = run(WatchedOracle(network, maxima))
    maxima.close()
    errors: dict[str, dict[str, dict[str, float]]] = {}
    for precision, dtype in LOWERED.items():
        lowered = lowered_network(network, precision)
        for stage in STAGES:
            results = run(LoweredOracle(network, lowered, stage, dtype))
            errors.setdefault(precision, {})[stage] = compare(results, exact)
    for kind in MAX:
        with contextlib.suppress(UnfitError):  # sizes that int4 has no blocks for
            results = run(Oracle(network, "float32", kind))
            errors[f"{kind} weights"] = {"language": compare(results, exact)}
    return {
        "weights": digest(folder),
        "size": size,
        "photographs": len(photos),
        "maxima": {stage: maxima.results[stage] for stage in STAGES},
        "errors": errors,
    }


def compare(outputs: Case, reference: Case) -> dict[str, float]:
    """Errors of depth (median), of the poses' angles (largest), of the logits (largest)."""
    (_, mine), (_, exact) = outputs["heads"][0], reference["heads"][0]
    depth, true_depth = mine["local_points"][..., 2], exact["local_points"][..., 2]
    off = np.linalg.norm((mine["poses"] - exact["poses"])[:, :3, :3], axis=(1, 2)) / np.sqrt(8)
    logits = [
        np.abs(a["logits"] - b["logits"]).max() / b["logits"].std()
        for (_, a), (_, b) in zip(outputs["next_token"], reference["next_token"], strict=True)
    ]
    return {
        DEPTH: _number(np.median(np.abs(depth / true_depth - 1))),
        ANGLE: _number(np.degrees(2 * np.arcsin(np.minimum(off, 1))).max()),
        LOGITS: _number(max(logits)),
    }


def _number(value: float) -> float:
    """Two digits and a bit; not a number means as wrong as can be."""
    return float(f"{value:.3g}") if np.isfinite(value) else float("inf")


def _plan(size: tuple[int, int], semantic_px: int) -> BuildPlan:
    """What a chain asks a plan for; nothing is built."""
    return BuildPlan.checked(
        "sensitivity",
        {
            "capability": "",
            "opset": 20,
            "precision": "float32",
            "memory_gib": 1,
            "level": 3,
            "sizes": [size],
            "semantic_sizes": [(semantic_px, semantic_px)],
            "views": [2, 2, 2],
            "text_tokens": [1, 11, 11],
            "cached_tokens": [0, 0, 0],
            "buckets": [64],
        },
    )


def near_overflow(folder: Path, weights: str) -> list[str]:
    """A warning per stage that `export.sensitivity` found near the end of float16.

    Without a report of these weights there is one sentence that says how to make it.
    """
    path = folder / REPORT
    report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if report.get("weights") != weights:
        return [
            "whether activations fit float16 is unknown; find out with `python -m "
            f"g2vlm_ros.export.precision_study --checkpoint {folder}`"
        ]
    return [
        f"{stage} has activations of {value:.3g} in {module}, float16 ends at {FLOAT16_MOST:.3g}; "
        "use bfloat16"
        for stage, (value, module) in report["maxima"].items()
        if not value < FLOAT16_MOST / HEADROOM
    ]


def table(report: dict) -> str:
    """The report as Markdown."""
    lines = [f"| precision of one stage | {DEPTH} | {ANGLE} | {LOGITS} |", "|---|---|---|---|"]
    for precision, stages in report["errors"].items():
        for stage, row in stages.items():
            values = " | ".join(f"{row[what]:.2g}" for what in (DEPTH, ANGLE, LOGITS))
            lines.append(f"| `{stage}` in {precision} | {values} |")
    lines += ["", "| stage | largest activation | in |", "|---|---|---|"]
    for stage, (value, module) in report["maxima"].items():
        lines.append(f"| `{stage}` | {value:.4g} | `{module}` |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", metavar="DIR", required=True, type=Path)
    parser.add_argument("--images", metavar="FOLDER", type=Path, help="default: random blocks")
    parser.add_argument("--size", default="252x196", help="of a view, WIDTHxHEIGHT in pixels")
    parser.add_argument("--semantic-size", type=int, default=252, help="of a question's image")
    options = parser.parse_args(arguments)
    folder = options.checkpoint
    try:
        paths = sorted(options.images.glob("*.[jp][pn]g"))[:2] if options.images else []
        photos = [load_image(path) for path in paths]
        width, height = (int(n) for n in options.size.split("x"))
        if photos:
            height = resize_views(photos, width).shape[1]
        report = measure(folder, photos, (width, height), options.semantic_size)
        (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
