# SPDX-License-Identifier: Apache-2.0
"""What the ONNX files beside a checkpoint's weights are, as the export wrote it down.

The graphs hold no weights: they point into the checkpoint's own weight files. So the manifest
names the state of those files that the graphs belong to, and the digest of each graph.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from g2vlm_ros.checkpoint.config import DINO_WINDOWS
from g2vlm_ros.checkpoint.digest import digest
from g2vlm_ros.records import UnfitError

MANIFEST = "onnx.manifest"
"""JSON, but not named so: what is made from a checkpoint is no part of it."""
FORMAT = 2
"""2: keys and values head-major in a buffer, the output matrix in a stage of its own."""
STAGES = ("encode_geometry", "geometry", "heads", "encode_semantics", "language", "next_token")
GLOBAL = "heads_global"
"""`heads` with the global points, which only training needs: a graph of its own."""
SCATTER_OPSET = 24
"""The first ONNX opset with TensorScatter, which TensorRT computes in place."""
CACHE_GRAPHS = ("store", "load")
"""Copies of keys and values inside a device, for ONNX Runtime alone."""


class ManifestError(UnfitError):
    """ONNX files are missing, damaged, of another checkpoint or not of the kind asked for."""


@dataclass(frozen=True)
class GraphFile:
    """One ONNX file."""

    file: str
    stage: str
    dtype: str
    """Arithmetic: float32, float16, bfloat16 or int8."""
    size: tuple[int, int] | None
    """Width and height of the images that it is fixed to; None when it takes any."""
    dino_windows: str | None
    """The attention windows that `encode_geometry` was traced with."""
    sha256: str
    inputs: dict[str, list]
    """Name -> [element type, sizes]; a size that is a name is free."""
    outputs: dict[str, list]
    weight_only: str | None = None
    """int8 or int4 where weights alone are stored so; the arithmetic stays `dtype`."""


@dataclass(frozen=True)
class Manifest:
    """All ONNX files of a folder."""

    weights: str
    """`digest` of the folder when they were made."""
    opset: int
    views: tuple[int, int]
    """Fewest and most views of a window."""
    graphs: tuple[GraphFile, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def read(folder: str | Path) -> Manifest:
        """Reads the manifest; ManifestError says what to run when there is none."""
        path = Path(folder) / MANIFEST
        if not path.exists():
            raise ManifestError(f"{folder} has no ONNX files; make them with `{command(folder)}`")
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if values.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            graphs = tuple(
                GraphFile(**{**graph, "size": graph["size"] and tuple(graph["size"])})
                for graph in values.pop("graphs")
            )
            views = tuple(values.pop("views"))
            return Manifest(**values, views=views, graphs=graphs)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ManifestError(
                f"{path} is damaged or of another version ({error}); run `{command(folder)}`"
            ) from error

    def write(self, folder: str | Path) -> None:
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1)
        (Path(folder) / MANIFEST).write_text(text + "\n", encoding="utf-8")

    def of(self, **properties: object) -> list[GraphFile]:
        """The graphs with these attributes, e.g. stage="heads", dtype="float32"."""
        return [g for g in self.graphs if all(getattr(g, k) == v for k, v in properties.items())]

    def check_weights(self, folder: str | Path) -> None:
        """Refuses graphs that were made for other weights or configurations."""
        if digest(folder) != self.weights:
            raise ManifestError(
                f"the ONNX files in {folder} were made for other weights or configuration files; "
                f"make them again with `{command(folder)}`"
            )


def has_all(folder: str | Path, dtype: str) -> bool:
    """Whether a folder has every graph of a dtype: all stages, any size, both kinds of windows."""
    try:
        manifest = Manifest.read(folder)
        manifest.check_weights(folder)
    except ManifestError:
        return False
    graphs = manifest.of(dtype=dtype, size=None, weight_only=None)
    present = {(graph.stage, graph.dino_windows) for graph in graphs}
    needed = {(stage, None) for stage in (*STAGES[1:], GLOBAL, *CACHE_GRAPHS)}
    return present >= needed | {(STAGES[0], windows) for windows in DINO_WINDOWS}


def command(folder: str | Path, *more: str) -> str:
    """What a user runs to make the ONNX files of a folder."""
    return " ".join(["python -m g2vlm_ros.export.export_onnx --checkpoint", str(folder), *more])


def check_graph(folder: str | Path, graph: GraphFile) -> Path:
    """The path of a graph; ManifestError when it is missing or is not what was written."""
    path = Path(folder) / graph.file
    if not path.exists():
        raise ManifestError(f"{path} is missing; run `{command(folder)}`")
    if hashlib.sha256(path.read_bytes()).hexdigest() != graph.sha256:
        raise ManifestError(f"{path} is damaged or was changed; run `{command(folder)}`")
    return path
