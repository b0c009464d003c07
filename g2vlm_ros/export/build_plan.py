# SPDX-License-Identifier: Apache-2.0
"""engines/plan.yaml: what engines are built for, and the shapes that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from g2vlm_ros.checkpoint.config import PATCH_PX
from g2vlm_ros.checkpoint.onnx_manifest import SCATTER_OPSET, GraphFile, Manifest
from g2vlm_ros.export.weight_only import MIN_OPSETS, WEIGHT_ONLY_STAGES

Range = tuple[int, int, int]
"""Smallest, usual and largest."""
PRECISIONS = ("float32", "float16", "bfloat16")
SIZED = ("encode_geometry", "heads", "heads_global", "encode_semantics")
RANGES = {"views": 1, "text_tokens": 1, "cached_tokens": 0}
"""Name -> smallest value that makes sense."""
MIN_PLACES = 64
"""Of a buffer: the parts of layers and heads then begin at multiples of 256 bytes, as TensorRT
wants them, whatever the number of channels."""


class Part(NamedTuple):
    """One engine of a plan."""

    stage: str
    size: tuple[int, int] | None = None
    """Width and height of its images, for stages that know them."""
    places: int | None = None
    """Of the buffers of keys and values, where those are built in."""


class PlanError(ValueError):
    """The plan is not well formed or does not fit the ONNX files."""


@dataclass(frozen=True)
class BuildPlan:
    """One profile of the plan: a kind of machine."""

    capability: str
    """Compute capability of the GPU that it is meant for, as "8.7"."""
    opset: int
    precision: str
    memory_gib: float
    """Working memory that the builder may use for trying kernels."""
    level: int
    """Optimisation level of the builder (TensorRT; RTX has none)."""
    sizes: list[tuple[int, int]]
    """Widths and heights of the views in pixels; one set of engines each."""
    semantic_sizes: list[tuple[int, int]]
    views: Range
    text_tokens: Range
    cached_tokens: Range
    """Before the views of a window: they follow a short prompt, or examples."""
    buckets: list[int]
    """Places of the buffers of keys and values, in which a whole conversation lies. With opset 24
    each size is a language engine of its own, weights and all."""
    weight_only: str | None = None
    """int8 or int4 for the weights of the language stage; may be left out."""

    @staticmethod
    def read(path: Path, profile: str) -> BuildPlan:
        """One profile of a plan file. Raises PlanError."""
        try:
            profiles = yaml.safe_load(path.read_text(encoding="utf-8"))["profiles"]
        except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
            raise PlanError(f"{path} is no plan ({error}); see engines/plan.yaml") from error
        if not isinstance(profiles, dict):
            raise PlanError(f"{path} has no profiles; see engines/plan.yaml")
        if profile not in profiles:
            profile_names = ", ".join(map(str, profiles))
            raise PlanError(f"profile '{profile}' is not in {path}; choose one of {profile_names}")
        try:
            return BuildPlan.checked(profile, profiles[profile])
        except (TypeError, KeyError, AttributeError) as error:
            raise PlanError(f"profile {profile} of {path} is damaged ({error})") from error

    @staticmethod
    def checked(profile: str, values: dict[str, Any]) -> BuildPlan:
        names = {field.name for field in fields(BuildPlan)}
        if set(values) | {"weight_only"} != names:
            wrong = ", ".join(sorted((set(values) | {"weight_only"}) ^ names))
            raise PlanError(f"profile {profile} has missing or unknown keys: {wrong}")
        values = dict(values)
        if values["precision"] not in PRECISIONS:
            raise PlanError(
                f"profile {profile} has precision {values['precision']}; it must be one of "
                + ", ".join(PRECISIONS)
            )
        if (kind := values.get("weight_only")) is not None and kind not in MIN_OPSETS:
            raise PlanError(
                f"profile {profile} has weight_only {kind}; it must be one of "
                + ", ".join(MIN_OPSETS)
            )
        for name, floor in RANGES.items():
            values[name] = _checked_range(profile, name, values[name], floor)
        values["buckets"] = _checked_buckets(profile, values["buckets"])
        for name, multiple in (("sizes", PATCH_PX), ("semantic_sizes", 2 * PATCH_PX)):
            values[name] = [tuple(size) for size in values[name]]
            for size in values[name]:
                if len(size) != 2 or min(size) < multiple or any(n % multiple for n in size):
                    raise PlanError(
                        f"profile {profile} has {list(size)} in {name}; it must be width and "
                        f"height in multiples of {multiple} pixels"
                    )
        return BuildPlan(**values)

    def engines(self, stages: tuple[str, ...]) -> list[Part]:
        """The engines to build."""
        return [part for stage in stages for part in self._parts(stage)]

    def _parts(self, stage: str) -> list[Part]:
        if stage == "language" and self.opset >= SCATTER_OPSET:
            return [Part(stage, places=places) for places in self.buckets]
        if stage not in SIZED:
            return [Part(stage)]
        sizes = self.semantic_sizes if stage == "encode_semantics" else self.sizes
        return [Part(stage, size) for size in sizes]

    def graph(
        self, manifest: Manifest, stage: str, size: tuple[int, int] | None, windows: str
    ) -> GraphFile:
        """The ONNX file for an engine: one fixed to the size before one that takes any."""
        if manifest.opset != self.opset:
            raise PlanError(
                f"the ONNX files are of opset {manifest.opset}, the profile wants {self.opset}; "
                f"export again with `--opset {self.opset}`"
            )
        weight_only = self.weight_only if stage in WEIGHT_ONLY_STAGES else None
        properties = {"dino_windows": windows} if stage == "encode_geometry" else {}
        graphs = manifest.of(
            stage=stage, dtype=self.precision, weight_only=weight_only, **properties
        )
        for candidate in (size, None):
            for graph in graphs:
                if graph.size == candidate:
                    return graph
        of = f" for {size[0]}x{size[1]}" if size else ""
        more = f" --weight-only {weight_only}" if weight_only else ""
        raise PlanError(
            f"there is no {self.precision} ONNX file of stage {stage}{of}; export it with "
            f"`--dtype {self.precision} --stages {stage}{more}`"
        )

    def profiles(
        self, graph: GraphFile, part: Part, one: bool = False
    ) -> list[dict[str, list[list[int]]]]:
        """Optimisation profiles: input -> smallest, usual and largest shape.

        one: a single profile per engine. TensorRT-RTX would keep the weights of a second one
        again (248 MB became 496 for a stack of MLPs), and chooses kernels per shape anyway.
        Raises PlanError when the graph has a dimension that the plan says nothing about.
        """
        free = self._free(part)
        return [_shapes(graph, sizes) for sizes in (free[:1] if one else free)]

    def _free(self, part: Part) -> list[dict[str, Range]]:
        """The free dimensions of a stage, once per optimisation profile."""
        stage, size, places = part
        if stage == "geometry":
            patches = _ordered([w * h // PATCH_PX**2 for w, h in self.sizes])
            tokens = tuple(v * (p + 2) for v, p in zip(self.views, patches, strict=True))
            cached = self.cached_tokens
            return [{"views": self.views, "patches": patches, "tokens": tokens, "cached": cached}]
        if stage == "language":
            return self._language_shapes(places)
        if stage == "next_token":
            return [{}]
        width, height = size
        rows, columns = height // PATCH_PX, width // PATCH_PX
        fixed = {"height": height, "width": width, "rows": rows, "columns": columns}
        return [{"views": self.views, **{name: (n, n, n) for name, n in fixed.items()}}]

    def _language_shapes(self, places: int | None) -> list[dict[str, Range]]:
        """Texts and images behind a buffer of any size, then one token behind each size."""
        merged = [w * h // (2 * PATCH_PX) ** 2 for w, h in self.semantic_sizes]
        # Kernels are chosen for the usual shape: its heaviest use is an image of a question.
        largest = max(merged, default=0)
        images = (0, largest, largest)
        tokens = tuple(i + t for i, t in zip(images, self.text_tokens, strict=True))
        prefill = {"ids": self.text_tokens, "image_tokens": images, "tokens": tokens}
        one, none = (1, 1, 1), (0, 0, 0)
        decode = {"ids": one, "image_tokens": none, "tokens": one}
        sizes = self.buckets if places is None else [places]
        any_size = (sizes[0], sizes[len(sizes) // 2], sizes[-1])
        return [
            {**prefill, "places": any_size},
            *({**decode, "places": (n, n, n)} for n in sizes),
        ]


def _checked_buckets(profile: str, values: Any) -> list[int]:
    buckets = [int(n) for n in values]
    if not buckets or buckets != sorted(set(buckets)) or any(n % MIN_PLACES for n in buckets):
        raise PlanError(
            f"profile {profile} has buckets {values}; they must be multiples of {MIN_PLACES}, "
            "the smallest first"
        )
    return buckets


def _checked_range(profile: str, name: str, values: Any, floor: int) -> Range:
    try:
        low, usual, high = (int(n) for n in values)
    except (TypeError, ValueError) as error:
        raise PlanError(
            f"profile {profile} has {name} {values}; it must be smallest, usual and largest"
        ) from error
    if not floor <= low <= usual <= high:
        raise PlanError(
            f"profile {profile} has {name} {[low, usual, high]}; it must be smallest, "
            f"usual and largest, from {floor} up"
        )
    return low, usual, high


def _shapes(graph: GraphFile, free: dict[str, Range]) -> dict[str, list[list[int]]]:
    """Least, usual and largest shape of each input; PlanError for a dimension without a range."""
    shapes = {}
    for name, (_, sizes) in graph.inputs.items():
        least: list[int] = []
        usual: list[int] = []
        largest: list[int] = []
        for size in sizes:
            if isinstance(size, str) and size not in free:
                raise PlanError(
                    f"{graph.file} has the dimension {size}, which the plan does not know"
                )
            bounds = free[size] if isinstance(size, str) else (size, size, size)
            least.append(bounds[0])
            usual.append(bounds[1])
            largest.append(bounds[2])
        shapes[name] = [least, usual, largest]
    return shapes


def _ordered(values: list[int]) -> Range:
    return min(values), values[0], max(values)
