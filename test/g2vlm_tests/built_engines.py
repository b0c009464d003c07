# SPDX-License-Identifier: Apache-2.0
"""Engines of the reference checkpoint built and verified on the STAND-IN, for tests."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from g2vlm_tests.gpu_stand_in import StandInCuda, stand_in_version

from g2vlm_ros.checkpoint.onnx_manifest import MANIFEST, STAGES, Manifest
from g2vlm_ros.export import build_engines as building
from g2vlm_ros.export.build_plan import BuildPlan
from g2vlm_ros.export.export_onnx import export
from g2vlm_ros.export.golden_cases import load_network, make_golden_cases
from g2vlm_ros.inference.tensorrt.backend import TensorRTBackend
from g2vlm_ros.inference.tensorrt.engine_metadata import EngineMetadata, Here
from g2vlm_ros.inference.tensorrt.versions import TensorRTVersion

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "A"
SIZE = (140, 84)
PLAN = {
    "capability": "8.9",
    "opset": 20,
    "precision": "float32",
    "memory_gib": 1,
    "level": 3,
    "sizes": [SIZE],
    "semantic_sizes": [(84, 84)],
    "views": [1, 2, 8],
    "text_tokens": [1, 16, 64],
    "cached_tokens": [0, 64, 1024],
    "buckets": [256, 1024],
}
FILES = ("model.safetensors", "*_config.json", "*.onnx", MANIFEST)


@dataclass
class Built:
    cuda: StandInCuda
    version: TensorRTVersion
    checkpoint: Path
    cache: Path
    engines: list[EngineMetadata]

    def open(self, **options: Any) -> TensorRTBackend:
        return TensorRTBackend.on(
            self.cuda, self.version, self.checkpoint, engines=self.cache, **options
        )


def build_scattering(folder: Path) -> Built:
    """The same with a language stage of opset 24, which puts tokens into buffers itself.

    The other graphs stay those of opset 20, which ONNX Runtime does not mind.
    """
    checkpoint = link_checkpoint(folder / "checkpoint")
    newer = folder / "opset24"
    newer.mkdir()
    for pattern in ("model.safetensors", "*_config.json"):
        for path in checkpoint.glob(pattern):
            shutil.copyfile(path, newer / path.name)
    (language,) = export(newer, opset=24, stages=("language",)).graphs
    shutil.copyfile(newer / language.file, checkpoint / language.file)
    manifest = Manifest.read(checkpoint)
    graphs = tuple(language if g.stage == "language" else g for g in manifest.graphs)
    replace(manifest, opset=24, graphs=graphs).write(checkpoint)
    return build_from(checkpoint, folder / "cache", opset=24)


def link_checkpoint(folder: Path) -> Path:
    """A folder with the reference checkpoint and its ONNX files; golden values go there."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (path for pattern in FILES for path in GOLDEN.glob(pattern)):
        shutil.copyfile(path, folder / path.name)
    return folder


def stand_in_build(
    machine: Any,
    model: bytes,
    path: Path,
    profiles: Any,
    plan: Any,
    target: Path,
    timings: Path,
    way: str,
    *rest: Any,
) -> None:
    """In place of TensorRT's builder."""
    target.write_bytes(f"engine of {path} {way}".encode())


def build_stand_ins(folder: Path, twist: dict[str, float] | None = None, **changes: Any) -> Built:
    """Builds all stages with the real code around the stand-in."""
    checkpoint = link_checkpoint(folder / "checkpoint")
    return build_from(checkpoint, folder / "cache", twist, **changes)


def build_from(
    checkpoint: Path, cache: Path, twist: dict[str, float] | None = None, **changes: Any
) -> Built:
    """Builds from a folder with ONNX files."""
    cuda = StandInCuda()
    version = stand_in_version(cuda, twist)
    plan = BuildPlan.checked("test", PLAN | changes)
    make_golden_cases(checkpoint, plan, load_network(checkpoint), STAGES)
    machine = building.Machine(version, Here(cuda.gpu, cuda.capability, version.label), cuda)
    with mock.patch.object(building, "build_engine", stand_in_build):
        engines = building.build(checkpoint, plan, machine, cache)
    return Built(cuda, version, checkpoint, cache, engines)
