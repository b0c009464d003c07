# SPDX-License-Identifier: Apache-2.0
"""What an engine file is, as the build wrote it down beside it, and the folder of engines.

An engine fits one TensorRT version on one kind of GPU, and one state of one ONNX file. Whatever
does not fit is refused with the command that builds what does; nothing is built here.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from g2vlm_ros.records import UnfitError

FORMAT = 3
"""3: keys and values in buffers with places, the output matrix in an engine of its own."""


class EngineError(UnfitError):
    """An engine is missing, damaged, or made for something else."""


@dataclass(frozen=True)
class EngineMetadata:
    """One engine; JSON beside it, as `<engine file>.json`."""

    file: str
    stage: str
    precision: str
    attention: str
    """"fused", "per_view", "decomposed" or "float32", as it was asked for: see
    `export.trt_attention`."""
    size: tuple[int, int] | None
    """Width and height of the images it is for; None when the stage knows none."""
    dino_windows: str | None
    weights: str
    """`checkpoint.digest` of the checkpoint."""
    onnx: str
    onnx_sha256: str
    engine_sha256: str
    engine_bytes: int
    tensorrt: str
    """Which TensorRT and its version, as in the file name."""
    gpu: str
    """Name of the GPU, or its compute capability where it was not there."""
    capability: str
    driver: str | None
    inputs: dict[str, list]
    """Name -> [element type, sizes]; a size that is a name is free."""
    outputs: dict[str, list]
    profiles: list[dict[str, list[list[int]]]]
    """Per optimisation profile: input -> smallest, usual and largest shape."""
    golden: str | None
    """File with golden inputs and outputs, beside the engine."""
    golden_sha256: str | None
    verified: dict[str, float] | None
    """Error of each golden output after the build; None when the GPU was not there."""
    attentions: int | None = None
    """In how many places the graph computes attention."""
    fused_attentions: int | None = None
    """In how many of them one kernel does it; None where the engine does not tell."""
    places: int | None = None
    """Of the buffers of keys and values, where the engine is for one size of them (opset 24)."""

    @staticmethod
    def read(path: Path) -> EngineMetadata:
        """Reads a record; EngineError when it is damaged."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            size = values.pop("size")
            return EngineMetadata(**values, size=size and tuple(size))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineError(f"{path} is damaged or of another version ({error})") from error

    def write(self, folder: Path) -> None:
        """Writes the record; the engine counts from then on."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"
        partial = folder / f"{self.file}.json.part"
        partial.write_text(text, encoding="utf-8")
        partial.replace(folder / f"{self.file}.json")

    def places_for(self, tokens: int) -> int | None:
        """The size of the buffers for so many tokens; None where the engine takes none so large.

        An engine for many sizes reads those from its profiles, one profile for each.
        """
        if self.places is not None:
            return self.places if tokens <= self.places else None
        sizes = {shape[2] for each in self.profiles for shape in each.get("past_keys_0", ())}
        return min((size for size in sizes if size >= tokens), default=None)

    @property
    def kernels(self) -> str:
        """File in which TensorRT-RTX keeps what it compiles while the engine runs."""
        return f"{self.file}.jit"

    @property
    def unfused(self) -> str:
        """That attention is slow in this engine, as a sentence; empty where it is not known."""
        if not self.attentions or self.fused_attentions is None or self.precision == "float32":
            return ""  # there are no fused kernels in float32
        if self.fused_attentions >= self.attentions:
            return ""
        return (
            f"{self.file} computes {self.attentions - self.fused_attentions} of "
            f"{self.attentions} attentions without a fused kernel: right, but slower and with "
            "more working memory"
        )

    def load(self, folder: Path, remedy: str) -> mmap.mmap:
        """The engine, mapped and not copied; EngineError when it is not what was built."""
        path = folder / self.file
        if not path.exists():
            raise EngineError(f"{path} is missing; run `{remedy}`")
        size = path.stat().st_size
        if size != self.engine_bytes:
            raise EngineError(
                f"{path} has {size} bytes instead of {self.engine_bytes}; run `{remedy}`"
            )
        data = map_file(path)
        if hashlib.sha256(data).hexdigest() != self.engine_sha256:
            raise EngineError(f"{path} is damaged or was changed; run `{remedy}`")
        return data

    def check_fits(self, here: Here, onnx_sha256: str, weights: str, remedy: str) -> None:
        """Refuses an engine of another GPU, TensorRT, ONNX file or checkpoint."""
        for what, actual, expected in (
            ("GPU", self.gpu_or(here), here.gpu),
            ("compute capability", self.capability, here.capability),
            ("TensorRT", self.tensorrt, here.tensorrt),
            ("ONNX file", self.onnx_sha256[:12], onnx_sha256[:12]),
            ("checkpoint", self.weights[:12], weights[:12]),
        ):
            if actual != expected:
                raise EngineError(
                    f"{self.file} was built for {what} {actual}, here it is {expected}; "
                    f"run `{remedy}`"
                )

    def gpu_or(self, here: Here) -> str:
        """The GPU it was built on; one built elsewhere for a capability fits every such GPU."""
        return here.gpu if self.gpu == f"sm{self.capability.replace('.', '')}" else self.gpu


def map_file(path: Path) -> mmap.mmap:
    """A file as memory that the system may drop again; EngineError when it is empty."""
    with path.open("rb") as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise EngineError(f"{path} is empty; build it again") from error


@dataclass(frozen=True)
class Here:
    """What engines must fit on this machine."""

    gpu: str
    capability: str
    tensorrt: str
    driver: str | None = None


def file_name(
    stage: str,
    size: tuple[int, int] | None,
    aligned: bool,
    here: Here,
    precision: str,
    places: int | None = None,
) -> str:
    """`<stage>.<gpu>-trt<version>-<precision>.engine`, image size or places after the stage."""
    parts = [stage, "aligned" if aligned else "", f"{size[0]}x{size[1]}" if size else ""]
    parts.append(f"{places}places" if places else "")
    gpu = re.sub(r"[^a-z0-9]+", "-", here.gpu.lower()).strip("-")
    return ".".join(p for p in parts if p) + f".{gpu}-{here.tensorrt}-{precision}.engine"


def default_cache() -> Path:
    """Where engines are kept unless a folder is named: the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "g2vlm_ros" / "engines"


def engine_folder(cache: Path, weights: str) -> Path:
    """The engines of one checkpoint state."""
    return cache / weights[:16]


def read_folder(folder: Path) -> tuple[list[EngineMetadata], list[str]]:
    """The engines of a folder, and why the other records in it cannot be read."""
    engines, problems = [], []
    for path in sorted(folder.glob("*.engine.json")):
        try:
            engines.append(EngineMetadata.read(path))
        except EngineError as error:
            problems.append(str(error))
    return engines, problems


def cached_engines(cache: Path) -> list[tuple[Path, EngineMetadata]]:
    """Every engine in the cache, of all checkpoints, with its folder."""
    folders = sorted(p for p in cache.glob("*") if p.is_dir())
    return [(folder, engine) for folder in folders for engine in read_folder(folder)[0]]


def prune(cache: Path, keep: set[str]) -> list[Path]:
    """Removes the engines of all checkpoint states but `keep`; returns what is gone.

    Only files that a build makes are touched.
    """
    folders, removed = {engine_folder(cache, weights) for weights in keep}, []
    for folder in sorted(p for p in cache.glob("*") if p.is_dir() and p not in folders):
        for pattern in (
            "*.engine",
            "*.engine.json",
            "*.golden.npz",
            "*.jit",
            "*.part",
            "*.timing",
        ):
            for path in folder.glob(pattern):
                path.unlink()
                removed.append(path)
        if not any(folder.iterdir()):
            folder.rmdir()
    return removed


def build_command(folder: str | Path, cache: str | Path | None = None) -> str:
    """What a user runs to build engines from a folder with ONNX files."""
    command = "python -m g2vlm_ros.export.build_engines --plan engines/plan.yaml --profile NAME"
    return f"{command} --onnx {folder}" + (f" --out {cache}" if cache else "")
