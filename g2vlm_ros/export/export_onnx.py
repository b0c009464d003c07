# SPDX-License-Identifier: Apache-2.0
"""Makes the ONNX files of a checkpoint: one graph per stage, no weights of their own.

`python -m g2vlm_ros.export.export_onnx --checkpoint DIR` writes `<stage>.onnx` and a manifest
beside the
weights. A graph is small: its weights are the tensors inside the checkpoint's safetensors files,
referred to by file, offset and length (ONNX external data), in the type they are stored in; a Cast
follows where the arithmetic is of another type. So weights exist once, whatever is exported, and
exporting reads none of them: its memory does not grow with the checkpoint.

With --out the checkpoint is copied there first. Images of any size and any number of views go
through one file; --sizes adds files fixed to a size, as engines like them. --weight-only adds a
language stage with its weights in 8 or 4 bits.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import resource
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from onnxscript.optimizer import fold_constants
from torch import Tensor, nn

from g2vlm_ros.checkpoint.config import DINO_WINDOWS, PATCH_PX, ModelConfig
from g2vlm_ros.checkpoint.digest import digest, weight_files
from g2vlm_ros.checkpoint.onnx_manifest import (
    GLOBAL,
    MANIFEST,
    SCATTER_OPSET,
    STAGES,
    GraphFile,
    Manifest,
    ManifestError,
)
from g2vlm_ros.export.cache_copies import ELEMENTS as CACHE_ELEMENTS
from g2vlm_ros.export.cache_copies import copying_graphs
from g2vlm_ros.export.int8 import quantise
from g2vlm_ros.export.kv_graphs import TRANSLATIONS
from g2vlm_ros.export.precision_study import near_overflow
from g2vlm_ros.export.stage_graphs import Graph, GraphModule, Shape, stage_graphs
from g2vlm_ros.export.weight_only import (
    MIN_OPSETS,
    WEIGHT_ONLY_STAGES,
    quantise_weights,
)
from g2vlm_ros.model.network import FLOAT32_PARTS, G2VLM
from g2vlm_ros.model.weights import StoredTensor, empty_network, misfits, stored_tensors

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.float32,  # traced so, then `int8.quantise`
}
ELEMENTS = {
    torch.float64: ir.DataType.DOUBLE,
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
}
OF_SIZE = ("encode_geometry", "heads", GLOBAL, "encode_semantics")
"""Stages that know the size of the images."""
EXAMPLE = {
    "views": 3,
    "height": 84,
    "width": 112,
    "rows": 6,
    "columns": 8,
    "patches": 48,
    "image_tokens": 12,
    "ids": 138,
    "tokens": 150,
    "cached": 7,
    "places": 200,
}
"""The sizes that free dimensions have while a graph is traced; they fit together."""

# --- tracing -------------------------------------------------------------------------------------


class _Traced(nn.Module):
    """A stage as a function of its weights and inputs, so that no weight is needed to trace it."""

    def __init__(self, network: G2VLM, graph: Graph):
        super().__init__()
        self.__dict__["stage"] = GraphModule(network, graph)  # hidden: its parameters are not ours

    def forward(self, weights: dict[str, Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
        named = {f"network.{name}": weight for name, weight in weights.items()}
        return torch.func.functional_call(self.stage, named, inputs)


def trace(
    network: G2VLM, graph: Graph, opset: int, dtype: torch.dtype, fixed: dict[str, int]
) -> ir.Model:
    """A stage as an ONNX model whose inputs are first the weights it uses, by their names.

    `network` may be on the meta device; `fixed` gives dimensions that are not to stay free.
    """
    sizes = {**EXAMPLE, **fixed}
    weights = {
        # A single zero, seen as often as needed: tracing looks at shapes only.
        name: torch.zeros(1, dtype=_weight_dtype(name, dtype)).expand(parameter.shape)
        for name, parameter in network.state_dict().items()
    }
    examples, free = [], []
    for element, shape in graph.inputs.values():
        example_shape = [sizes.get(n, n) for n in shape]
        examples.append(torch.zeros(example_shape, dtype=element))
        free.append({axis: torch.export.Dim.DYNAMIC for axis in _free_axes(shape, fixed)})
    # What the exporter has to say is about itself: deprecations, packages that it could also use.
    logging.getLogger("torch.onnx._internal.exporter").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Traced(network, graph),
            (weights, *examples),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=({name: None for name in weights}, tuple(free)),
            custom_translation_table=TRANSLATIONS if opset >= SCATTER_OPSET else None,
            # Its rewriter takes most of the time for nothing that a runtime does not do as well.
            optimize=False,
            verbose=False,
        )
    model = program.model
    _tidy(model)
    _name_values(model, list(weights), graph, fixed)
    return model


def _weight_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if name.split(".")[0] in FLOAT32_PARTS else dtype


def _free_axes(shape: Shape, fixed: dict[str, int]) -> list[int]:
    return [axis for axis, n in enumerate(shape) if isinstance(n, str) and n not in fixed]


def _tidy(model: ir.Model) -> None:
    fold_constants(model)
    for each in (
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
        # Stack traces of the machine that traced: most of the file, and nobody's business.
        passes.ClearMetadataAndDocStringPass(),
    ):
        each(model)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()


def _name_values(model: ir.Model, weights: list[str], graph: Graph, fixed: dict[str, int]) -> None:
    """Names of weights, inputs, outputs and free dimensions; drops weights that are not used."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    inputs = list(model.graph.inputs)
    for value, name in zip(inputs, [*weights, *graph.inputs], strict=True):
        value.name = name
    for value, (name, shape) in zip(model.graph.outputs, graph.outputs.items(), strict=True):
        if name in values:
            values[name].name = f"{name}_inside"
        value.name = name
        value.shape = ir.Shape([fixed.get(n, n) for n in shape])
    for name, (_, shape) in graph.inputs.items():
        next(v for v in inputs if v.name == name).shape = ir.Shape(
            [fixed.get(n, n) for n in shape]
        )
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = value.type = None
    for value in inputs:
        value.metadata_props.clear()
    for value in inputs[: len(weights)]:
        if not value.uses():
            model.graph.inputs.remove(value)


def attach_weights(model: ir.Model, graph: Graph, stored: dict[str, StoredTensor]) -> None:
    """Turns the weight inputs of a traced stage into external data inside the weight files."""
    for value in [v for v in model.graph.inputs if v.name not in graph.inputs]:
        tensor = stored[value.name]
        element, dtype = ELEMENTS[tensor.dtype], value.dtype
        model.graph.inputs.remove(value)
        if element != dtype:
            cast = ir.node("Cast", [value], {"to": dtype})
            cast.outputs[0].name = f"{value.name}:{dtype.name.lower()}"
            value.replace_all_uses_with(cast.outputs[0])
            cast.replace_input_with(0, value)
            model.graph.insert_before(model.graph[0], cast)
        value.dtype = element
        value.const_value = ir.ExternalTensor(
            tensor.file.name,
            tensor.offset,
            tensor.bytes,
            element,
            shape=ir.Shape(tensor.shape),
            name=value.name,
            base_dir=tensor.file.parent,
        )
        model.graph.register_initializer(value)


# --- a folder ------------------------------------------------------------------------------------


def export(
    folder: Path,
    *,
    dtype: str = "float32",
    opset: int = 20,
    views: tuple[int, int] = (1, 32),
    sizes: Sequence[tuple[int, int]] = (),
    semantic_sizes: Sequence[tuple[int, int]] = (),
    dino_windows: str | None = None,
    global_points: bool = False,
    weight_only: str | None = None,
    stages: Sequence[str] = STAGES,
    progress: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Writes the graphs of a checkpoint folder beside its weights, one stage after the other.

    sizes are (width, height) in pixels; without any, one file takes all sizes. weight_only, int8
    or int4, is how the weights of the language stage are stored. Files that an earlier export made
    for the same weights and opset stay. Raises ConfigError, CheckpointError, ManifestError.
    """
    config = ModelConfig.read(folder)
    if dino_windows is not None:
        config = replace(config, dino=replace(config.dino, windows=dino_windows))
    stored = stored_tensors(folder)
    network = empty_network(config, stored).eval()
    if problems := misfits(stored, network):
        raise ManifestError(f"{folder} does not fit its configuration files: {problems[0]}")
    if global_points and not network.global_points:
        raise ManifestError(f"{folder} has no global points head; export without --global-points")
    if weight_only is not None and (dtype == "int8" or opset < MIN_OPSETS[weight_only]):
        raise ManifestError(
            f"{weight_only} weights need opset {MIN_OPSETS[weight_only]} and arithmetic in "
            f"floats, not opset {opset} in {dtype}; change --opset or --dtype"
        )
    manifest = _earlier(folder, digest(folder), opset, views)
    if dtype == "float16":
        for line in near_overflow(folder, manifest.weights):
            progress(line)
    if "geometry" in stages and dtype in CACHE_ELEMENTS:
        manifest = _with_cache_copies(folder, config, dtype, manifest)
    stages = [*stages, *([GLOBAL] if global_points else [])]
    for graph_file in _plan(stages, dtype, sizes, semantic_sizes, weight_only, config):
        start = time.monotonic()
        graph = stage_graphs(config, DTYPES[dtype], network.confidence, opset)[graph_file.stage]
        fixed = _fixed(graph_file.size)
        model = trace(network, graph, opset, DTYPES[dtype], fixed)
        attach_weights(model, graph, stored)
        data = folder / f"{graph_file.file}.data"
        if dtype == "int8":
            quantise(model, data)
        elif graph_file.weight_only:
            quantise_weights(model, graph_file.weight_only, ELEMENTS[DTYPES[dtype]], data)
        model.producer_name, model.graph.name = "g2vlm_ros", graph_file.stage
        graph_file = _write(folder, graph_file, ir.to_proto(model))
        manifest = _with_file(manifest, graph_file)
        manifest.write(folder)
        kilobytes = (folder / graph_file.file).stat().st_size / 1e3
        seconds = time.monotonic() - start
        progress(
            f"{graph_file.file}: {len(model.graph)} nodes, {kilobytes:.0f} kB, {seconds:.0f} s"
        )
    return manifest


def _with_file(manifest: Manifest, graph_file: GraphFile) -> Manifest:
    """The manifest with one file more, in place of an older one of that name."""
    others = tuple(g for g in manifest.graphs if g.file != graph_file.file)
    return replace(manifest, graphs=(*others, graph_file))


def _with_cache_copies(
    folder: Path, config: ModelConfig, dtype: str, manifest: Manifest
) -> Manifest:
    """Writes the graphs that copy keys and values inside a device; the manifest with them."""
    for stage, model in copying_graphs(config.text, dtype).items():
        name = f"{stage}.onnx" if dtype == "float32" else f"{stage}.{dtype}.onnx"
        graph_file = GraphFile(name, stage, dtype, None, None, "", {}, {})
        manifest = _with_file(manifest, _write(folder, graph_file, model))
    manifest.write(folder)
    return manifest


def _earlier(folder: Path, weights: str, opset: int, views: tuple[int, int]) -> Manifest:
    """The manifest to go on with: the folder's own, unless it is of something else."""
    versions = {name: version(name) for name in ("torch", "onnx", "onnxscript")}
    fresh = Manifest(weights, opset, views, (), versions)
    if (folder / MANIFEST).exists():
        try:
            old = Manifest.read(folder)
        except ManifestError:
            return fresh
        if (old.weights, old.opset) == (weights, opset):
            return replace(fresh, graphs=old.graphs)
    return fresh


def _plan(
    stages: Sequence[str],
    dtype: str,
    sizes: Sequence[tuple[int, int]],
    semantic_sizes: Sequence[tuple[int, int]],
    weight_only: str | None,
    config: ModelConfig,
) -> Iterator[GraphFile]:
    for stage in stages:
        only = weight_only if stage in WEIGHT_ONLY_STAGES else None
        windows = config.dino.windows if stage == "encode_geometry" else None
        all_sizes = semantic_sizes if stage == "encode_semantics" else sizes
        for size in all_sizes if stage in OF_SIZE and all_sizes else [None]:
            parts = [
                stage,
                "" if dtype == "float32" else dtype,
                f"weights_{only}" if only else "",
                "aligned" if windows == "aligned" else "",
                f"{size[0]}x{size[1]}" if size else "",
                "onnx",
            ]
            name = ".".join(part for part in parts if part)
            yield GraphFile(name, stage, dtype, size, windows, "", {}, {}, only)


def _fixed(size: tuple[int, int] | None) -> dict[str, int]:
    if size is None:
        return {}
    width, height = size
    rows, columns = height // PATCH_PX, width // PATCH_PX
    return {"height": height, "width": width, "rows": rows, "columns": columns}


def _write(folder: Path, graph_file: GraphFile, model: onnx.ModelProto) -> GraphFile:
    """Saves and checks one graph; it replaces an older one only when it is good."""
    path = folder / graph_file.file
    unfinished = path.with_name(path.name + ".unfinished")
    data = model.SerializeToString()
    unfinished.write_bytes(data)
    try:
        onnx.checker.check_model(str(unfinished), full_check=True)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return replace(
        graph_file,
        sha256=hashlib.sha256(data).hexdigest(),
        inputs=_described(model.graph.input),
        outputs=_described(model.graph.output),
    )


def _described(values: Sequence[onnx.ValueInfoProto]) -> dict[str, list]:
    """Name -> element type and sizes, as a manifest has them."""
    types = {value.name: value.type.tensor_type for value in values}
    return {
        name: [
            onnx.TensorProto.DataType.Name(each.elem_type),
            [d.dim_param or d.dim_value for d in each.shape.dim],
        ]
        for name, each in types.items()
    }


def export_all(source: Path, target: Path, dtype: str, weight_only: str | None = None) -> Path:
    """A copy of a checkpoint in `target` with every graph of a dtype, as `has_all` counts them."""
    copy_checkpoint(source, target)
    opset = MIN_OPSETS.get(weight_only, 20)
    how = {"dtype": dtype, "opset": opset, "weight_only": weight_only}
    first, *others = DINO_WINDOWS
    export(target, **how, global_points=True, dino_windows=first)
    for windows in others:
        export(target, **how, dino_windows=windows, stages=STAGES[:1])
    return target


def copy_checkpoint(source: Path, target: Path) -> None:
    """The files that a backend needs: weights, configurations, tokenizer."""
    target.mkdir(parents=True, exist_ok=True)
    for path in [*weight_files(source), *source.glob("*.json"), *source.glob("merges.txt")]:
        if not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)


# --- the command ---------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", metavar="DIR", required=True, type=Path)
    parser.add_argument("--out", metavar="DIR", type=Path, help="default: the checkpoint itself")
    parser.add_argument("--views", type=_views, default=(1, 32), help="as 1..8")
    parser.add_argument("--sizes", type=_size_list, default=(), help="as 518x392,252x196; any")
    parser.add_argument("--semantic-sizes", type=_size_list, default=(), help="as 756x756; any")
    parser.add_argument("--opset", type=int, default=20, choices=(20, 24))
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--dino-windows", choices=DINO_WINDOWS, help="default: the checkpoint's")
    parser.add_argument("--global-points", action="store_true", help="the training-only head too")
    parser.add_argument("--weight-only", choices=MIN_OPSETS, help="of the language stage")
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    options = vars(parser.parse_args(arguments))
    folder, out = options.pop("checkpoint"), options.pop("out")
    try:
        if out is not None and out.resolve() != folder.resolve():
            copy_checkpoint(folder, out)
            folder = out
        export(folder, **options, progress=lambda line: print(line, flush=True))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"written to {folder}; peak memory {peak:.0f} MB")
    return 0


def _views(text: str) -> tuple[int, int]:
    first, _, last = text.partition("..")
    fewest, most = int(first), int(last or first)
    if not 1 <= fewest <= most:
        raise argparse.ArgumentTypeError(f"{text} is not a range such as 1..8")
    return fewest, most


def _size_list(text: str) -> tuple[tuple[int, int], ...]:
    if text == "any":
        return ()
    sizes = tuple(tuple(int(n) for n in part.split("x")) for part in text.split(","))
    for size in sizes:
        in_patches = min(size) >= PATCH_PX and all(side % PATCH_PX == 0 for side in size)
        if len(size) != 2 or not in_patches:
            raise argparse.ArgumentTypeError(
                f"{text} is not WIDTHxHEIGHT in multiples of {PATCH_PX}"
            )
    return sizes


if __name__ == "__main__":
    raise SystemExit(main())
