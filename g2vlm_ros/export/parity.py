# SPDX-License-Identifier: Apache-2.0
"""Compares a backend with reference values of the original code, array by array.

`python -m g2vlm_ros.export.parity --golden DIR [--backend torch] [--precision fp32]` runs every
case of DIR/cases.json from its image files through preprocessing, sequence and backend, and prints
one line per case and array: the largest error as a fraction of the tolerance. Exit code 1 if any
array misses. DIR is a checkpoint folder with `cases.json`, `meta.json` (tolerances), `images/` and
one safetensors file per case; nothing here knows the sizes of a particular set.

In lower precision `tolerance.LOWER_PRECISION` bounds the error and decoding is fed the reference's
tokens. With `--backend onnx` the graphs beside the weights are checked, or those of a copy of DIR
given by `--onnx`; where some are missing, all are made in a temporary folder first.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from g2vlm_ros.checkpoint.config import PATCH_PX
from g2vlm_ros.checkpoint.onnx_manifest import has_all
from g2vlm_ros.checkpoint.prompt_layout import (
    Segment,
    TokenCursor,
    chat_prefix,
    question_ids,
    reconstruction_prefix,
)
from g2vlm_ros.checkpoint.tokenizer import Tokenizer
from g2vlm_ros.export.tolerance import Line, Tolerances, compare
from g2vlm_ros.images.preprocessing import load_image, resize_views, semantic_image
from g2vlm_ros.inference.backend import BACKENDS, Backend, Cache, open_backend

DTYPES = {
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "int8": "int8",
    "w8": "float32",
    "w4": "float32",
}
WEIGHT_ONLY = {"w8": "int8", "w4": "int4"}
"""Float32, with the weights of the language stage in so many bits; for ONNX Runtime."""
TOKEN_TYPES = {"text": 0, "semantic": 1, "geometry": 2}

# --- running a case ------------------------------------------------------------------------------


class Run:
    """One case through a backend; `arrays` collects what it made, by the names of the set."""

    def __init__(self, stages: Backend, case: dict, tokenizer: Tokenizer, folder: Path):
        self.stages, self.case, self.tokenizer = stages, case, tokenizer
        self.images = [load_image(folder / "images" / f"{name}.png") for name in case["images"]]
        self.arrays: dict[str, np.ndarray] = {}
        self.cache: Cache = stages.new_cache()
        self.walk = TokenCursor(tokenizer.special)
        self.names = iter(stage["stage"] for stage in case["stages"])
        self.probe = Probe(stages, self.arrays)
        self.lengths: list[int] = []
        self.positions: list[int] = []

    def recon(self) -> None:
        """Prompt, geometry, heads."""
        self._text(reconstruction_prefix(self.tokenizer))
        hidden, grid_hw = self._views()
        self._keep_prefill()
        raw = self.stages.heads(hidden, grid_hw, global_points=True)
        rotation, translation = raw.window_from_camera[:, :3, :3], raw.window_from_camera[:, :3, 3]
        points = np.einsum("nij,nhwj->nhwi", rotation, raw.local_points_u)
        points += translation[:, None, None]
        maps = {
            "local_points": raw.local_points_u,
            "points": points,
            "global_points": raw.global_points_u,
        }
        for name, value in maps.items():
            self.arrays[f"out.{name}"] = value[None]
            self.arrays[f"stat.{name}"] = _statistics(value.astype(np.float64))
        self.arrays["out.camera_poses"] = raw.window_from_camera[None]
        self.arrays["camera_head.t"] = translation
        self.arrays["camera_head.rot9"] = raw.rotation9

    def chat(self, forced: np.ndarray | None) -> None:
        """Prompt, geometry, one semantic stage per image, question, greedy decoding."""
        self._text(chat_prefix(self.tokenizer))
        self._views()
        for index, image in enumerate(self.images):
            self._image(index, semantic_image(image, self.case["vit_pixel"]))
        self._text(question_ids(self.tokenizer, self.case["prompt"]))
        self._keep_prefill()
        stop = self.case.get("stop")
        if stop and forced is None:
            fed = [step.fed for step in self._decode(stop["eos_id"])]
            self.arrays["stop.input_ids"] = np.array(fed)
            self.arrays["stop.eos_id"] = np.array([stop["eos_id"]])
        steps = list(self._decode(self.case["eos_token"], forced))
        for name in ("logits", "next_ids", "kv_len_before", "position_ids"):
            self.arrays[f"decode.{name}"] = np.stack([getattr(step, name) for step in steps])
        self.arrays["decode.input_ids"] = np.array([step.fed for step in steps])
        hidden = [self.arrays.get(f"decode{i}.hidden") for i in range(len(steps))]
        if hidden[0] is not None:
            self.arrays["decode.hidden"] = np.concatenate(hidden)

    def _text(self, ids: np.ndarray) -> None:
        segment = self.walk.text(ids)
        self._begin(segment)
        self.stages.language(segment, self.cache)
        self._end()

    def _views(self) -> tuple[Any, tuple[int, int]]:
        views = resize_views(self.images, self.case["target_width"])
        grid_hw = (views.shape[1] // PATCH_PX, views.shape[2] // PATCH_PX)
        for index, image in enumerate(self.images):
            self.arrays[f"input.image{index}"] = image
        self.arrays["pre.resized_u8"] = views
        self.probe.geometry_pixels(views)
        features = self.stages.encode_geometry(views)
        self.arrays["dino2llm.out"] = self.stages.fetch(features)
        self.arrays["dino.cu_seqlens"] = _window_bounds(self.stages, len(views), grid_hw)
        segment = self.walk.geometry(len(views), grid_hw)
        name = self._begin(segment)
        hidden = self.stages.geometry(features, segment, self.cache)
        # Where the inside is hidden, only the patches come out; the boundaries stay NaN.
        rows = self.stages.fetch(hidden)
        full = np.full((segment.length, rows.shape[-1]), np.nan, np.float32)
        full[segment.image_slots] = rows.reshape(-1, rows.shape[-1])
        self.arrays.setdefault(f"{name}.hidden", full)
        self._end()
        return hidden, grid_hw

    def _image(self, index: int, image: np.ndarray) -> None:
        rows, cols = image.shape[0] // PATCH_PX, image.shape[1] // PATCH_PX
        merge = self.stages.config.vision.merge
        self.arrays[f"vit{index}.resized_u8"] = image
        self.arrays[f"vit{index}.grid_thw"] = np.array([[1, rows, cols]])
        self.probe.semantic_pixels(index, image)
        features = self.stages.encode_semantics(image)
        self.arrays[f"vit{index}.out"] = self.stages.fetch(features)
        segment = self.walk.semantic((rows // merge, cols // merge))
        self._begin(segment)
        self.stages.language(segment, self.cache, features)
        self._end()

    def _begin(self, segment: Segment) -> str:
        name = next(self.names, "unexpected_stage")
        types = np.full(segment.length, TOKEN_TYPES[segment.kind], np.int8)
        types[segment.slots] = TOKEN_TYPES["text"]
        self.arrays[f"{name}.token_ids"] = segment.token_ids
        self.arrays[f"{name}.token_positions_in_stage"] = segment.slots
        self.arrays[f"{name}.token_type"] = types
        self.arrays[f"{name}.position_ids"] = segment.positions
        self.probe.stage = name
        return name

    def _end(self) -> None:
        self.lengths.append(self.cache.length)
        self.positions.append(self.walk.position)

    def _keep_prefill(self) -> None:
        self.arrays["kv_len_after_stage"] = np.array(self.lengths)
        self.arrays["next_position_after_stage"] = np.array(self.positions)
        self.probe.cache(self.cache)

    def _decode(self, end_id: int, forced: np.ndarray | None = None) -> Iterator[Step]:
        cache, walk = (
            self.cache.fork(),
            TokenCursor(self.walk.special, position=self.walk.position),
        )
        token = self.tokenizer.special.newline
        for index in range(self.case["max_length"]):
            self.probe.stage = f"decode{index}"
            segment, before = walk.text([token]), cache.length
            logits = self.stages.logits(self.stages.language(segment, cache))
            step = Step(token, before, segment.positions[:, 0], logits, int(logits.argmax()))
            yield step
            token = (
                step.next_ids if forced is None else int(forced[min(index + 1, len(forced) - 1)])
            )
            if token == end_id:
                return


@dataclass(frozen=True)
class Step:
    """One step of decoding."""

    fed: int
    kv_len_before: int
    position_ids: np.ndarray
    logits: np.ndarray
    next_ids: int


class Probe:
    """Looks inside the torch backend by hooks; for other backends it does nothing."""

    def __init__(self, stages: Backend, arrays: dict[str, np.ndarray]):
        self.stage = ""
        self.arrays = arrays
        self.network = getattr(stages, "network", None)
        self.handles: list[Any] = []
        if self.network is None:
            return
        self._record(self.network.dino_model, lambda: "dino.patch_tokens")
        for name in ("point_decoder", "camera_decoder", "global_points_decoder"):
            self._record(getattr(self.network, name), lambda name=name: f"{name}.out")
        trunk = self.network.language_model.model
        self._record(trunk, lambda: f"{self.stage}.hidden")
        for index, layer in enumerate(trunk.layers):
            self._record(layer, lambda index=index: f"{self.stage}.layer{index}_out")
        self.handles.append(
            trunk.layers[0].register_forward_pre_hook(
                lambda _, inputs: self._keep(f"{self.stage}.inputs_embeds", inputs[0])
            )
        )

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()

    def geometry_pixels(self, views: np.ndarray) -> None:
        if self.network is not None:
            from g2vlm_ros.model.encoders import IMAGENET_MEAN, IMAGENET_STD, normalise

            pixels = _array(normalise(_tensor(views), IMAGENET_MEAN, IMAGENET_STD))
            self.arrays["pre.pixel_values"] = pixels.transpose(0, 3, 1, 2)

    def semantic_pixels(self, index: int, image: np.ndarray) -> None:
        if self.network is not None:
            rows = self.network.vit_model.rows(_tensor(image))
            self.arrays[f"vit{index}.pixel_values"] = _array(rows)

    def cache(self, cache: Cache) -> None:
        if self.network is not None:
            for index in range(len(self.network.language_model.model.layers)):
                for name, value in zip(("key", "value"), cache.layer(index), strict=True):
                    self.arrays[f"kv.{name}{index}"] = _array(value)[0].transpose(1, 0, 2)

    def _record(self, module: Any, name: Callable[[], str]) -> None:
        hook = module.register_forward_hook(lambda _, __, result: self._keep(name(), result))
        self.handles.append(hook)

    def _keep(self, name: str, value: Any) -> None:
        in_order = getattr(value, "in_order", None)
        self.arrays[name] = _array(in_order()[0] if in_order else value)


def _statistics(x: np.ndarray) -> np.ndarray:
    return np.array([x.mean(), np.abs(x).mean(), x.min(), x.max(), x.std()])


def _window_bounds(stages: Backend, views: int, grid_hw: tuple[int, int]) -> np.ndarray:
    dino = stages.config.dino
    extra = 1 + dino.registers if dino.windows == "aligned" else 0
    return np.arange(views + 1) * (grid_hw[0] * grid_hw[1] + extra)


def _array(x: Any) -> np.ndarray:
    """numpy from a tensor of torch, or from what is numpy already."""
    if hasattr(x, "detach"):
        return x.detach().float().cpu().numpy()
    return np.asarray(x)


def _tensor(x: np.ndarray) -> Any:
    import torch

    return torch.tensor(x)


# --- the command ---------------------------------------------------------------------------------


def check(
    folder: Path, backend: str = "torch", precision: str = "fp32", onnx: Path | None = None
) -> Iterator[Line]:
    """Runs all cases that are in the folder and yields one line per array.

    onnx: a copy of the folder's checkpoint with ONNX files, for the backend of that name.
    """
    with TemporaryDirectory() as scratch:
        checkpoint, dtype, bits = onnx or folder, DTYPES[precision], WEIGHT_ONLY.get(precision)
        if bits and backend != "onnx":
            raise ValueError(f"precision {precision} is for the backend onnx, not {backend}")
        # Beside a stage with whole weights the runtime passes the other one by.
        if backend == "onnx" and (bits or not has_all(checkpoint, dtype)):
            from g2vlm_ros.export.export_onnx import export_all  # needs torch

            checkpoint = export_all(checkpoint, Path(scratch), dtype, bits)
        yield from _check(folder, checkpoint, backend, precision)


def _check(folder: Path, checkpoint: Path, backend: str, precision: str) -> Iterator[Line]:
    if not (folder / "cases.json").is_file():
        raise ValueError(
            f"{folder} holds no reference vectors (cases.json); test/data/golden/A does"
        )
    cases = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    present = [case for case in cases if (folder / f"{case['case']}.safetensors").exists()]
    if not present:
        raise ValueError(f"{folder} has no file of any case in cases.json; give a complete set")
    tolerances, tokenizer = Tolerances(meta, precision), Tokenizer.open(folder)
    opened: dict[str, Backend] = {}
    for case in present:
        named = case.get("dino_windows", "upstream")
        windows = "aligned" if named.startswith("aligned") else "released"
        if windows not in opened:
            opened[windows] = open_backend(
                backend, checkpoint, dtype=DTYPES[precision], dino_windows=windows
            )
        golden = load_file(folder / f"{case['case']}.safetensors")
        yield from _check_case(opened[windows], case, tokenizer, folder, golden, tolerances)


def _check_case(
    stages: Backend,
    case: dict,
    tokenizer: Tokenizer,
    folder: Path,
    golden: dict[str, np.ndarray],
    tolerances: Tolerances,
) -> Iterator[Line]:
    run = Run(stages, case, tokenizer, folder)
    half = tolerances.half is not None
    try:
        if case["kind"] == "recon":
            run.recon()
        else:
            run.chat(golden["decode.input_ids"] if half else None)
    except (ValueError, ArithmeticError) as error:
        yield Line(case["case"], "*", np.inf, str(error))
        return
    finally:
        run.probe.close()
    if half:
        for name in ("stop.input_ids", "stop.eos_id", "decode.next_ids"):
            golden.pop(name, None)
    yield from compare(case["case"], run.arrays, golden, tolerances, run.probe.network is not None)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--golden", metavar="DIR", required=True, type=Path)
    parser.add_argument("--backend", default="torch", help=f"one of {', '.join(BACKENDS)}")
    parser.add_argument("--precision", default="fp32", choices=DTYPES)
    parser.add_argument("--onnx", metavar="DIR", type=Path, help="a copy of the set with graphs")
    options = parser.parse_args(arguments)
    lines: list[Line] = []
    try:
        for line in check(options.golden, options.backend, options.precision, options.onnx):
            print(line, flush=True)
            lines.append(line)
    except ImportError as error:
        print(f"error: {error}; install it, or give another --backend", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    worst = max(lines, key=lambda line: line.fraction)
    misses = sum(line.missed for line in lines)
    print(
        f"{len(lines)} arrays, {misses} missed; largest fraction of tolerance "
        f"{worst.fraction:.4g} at {worst.case} {worst.array}"
    )
    return 1 if misses else 0


if __name__ == "__main__":
    raise SystemExit(main())
