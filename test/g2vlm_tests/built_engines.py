# SPDX-License-Identifier: Apache-2.0
"""Engines of the reference checkpoint built and proven on the STAND-IN, for tests."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from g2vlm_tests.gpu_stand_in import StandInCuda, stand_in_flavour

from g2vlm_ros.checkpoint.onnx_manifest import MANIFEST, STAGES
from g2vlm_ros.export import build_engines as building
from g2vlm_ros.export.build_plan import BuildPlan
from g2vlm_ros.export.golden_cases import load_network, make_proofs
from g2vlm_ros.inference.tensorrt.backend import TensorRTBackend
from g2vlm_ros.inference.tensorrt.engine_metadata import EngineRecord, Here
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
}
FILES = ("model.safetensors", "*_config.json", "*.onnx", MANIFEST)


@dataclass
class Built:
    cuda: StandInCuda
    flavour: TensorRTVersion
    checkpoint: Path
    cache: Path
    records: list[EngineRecord]

    def open(self, **options: Any) -> TensorRTBackend:
        return TensorRTBackend.on(
            self.cuda, self.flavour, self.checkpoint, engines=self.cache, **options
        )


def link_checkpoint(folder: Path) -> Path:
    """A folder with the reference checkpoint and its ONNX files, where proofs can be put."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (path for pattern in FILES for path in GOLDEN.glob(pattern)):
        shutil.copyfile(path, folder / path.name)
    return folder


def stand_in_build(machine: Any, model: bytes, path: Path, *rest: Any) -> bytes:
    """In place of TensorRT's builder."""
    return f"engine of {path} {rest[3]}".encode()


def build_stand_ins(folder: Path, twist: dict[str, float] | None = None, **changes: Any) -> Built:
    """Builds all stages with the real code around the stand-in."""
    cuda = StandInCuda()
    flavour = stand_in_flavour(cuda, twist)
    checkpoint = link_checkpoint(folder / "checkpoint")
    plan = BuildPlan.checked("test", PLAN | changes)
    make_proofs(checkpoint, plan, load_network(checkpoint), STAGES)
    machine = building.Machine(flavour, Here(cuda.gpu, cuda.capability, flavour.label), cuda)
    with mock.patch.object(building, "build_engine", stand_in_build):
        records = building.build(checkpoint, plan, machine, folder / "cache")
    return Built(cuda, flavour, checkpoint, folder / "cache", records)
