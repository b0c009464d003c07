# SPDX-License-Identifier: Apache-2.0
"""Builds TensorRT engines from ONNX files, stage by stage, and verifies each one.

`python -m g2vlm_ros.export.build_engines --plan engines/plan.yaml --profile NAME --onnx DIR
[--out CACHE]` runs on the machine that will use the engines. What is there already and fits is not
built again, so an interrupted build goes on where it stopped. `--target 8.9` builds with
TensorRT-RTX for a GPU that is not here; such engines are verified when a node first loads them.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from g2vlm_ros.checkpoint.config import DINO_WINDOWS, ModelConfig
from g2vlm_ros.checkpoint.onnx_manifest import STAGES, GraphFile, Manifest, check_graph
from g2vlm_ros.export.build_plan import BuildPlan, Part
from g2vlm_ros.export.golden_cases import golden_name, load_network, make_golden_cases
from g2vlm_ros.export.trt_attention import (
    arranged,
    count_attentions,
    forbid_fusion,
    read_graph,
    ways_for,
)
from g2vlm_ros.export.trt_query_parts import whole_attentions
from g2vlm_ros.inference.tensorrt.cuda import Cuda, CudaError, open_cuda
from g2vlm_ros.inference.tensorrt.device_memory import DeviceMemory
from g2vlm_ros.inference.tensorrt.engine import Engine
from g2vlm_ros.inference.tensorrt.engine_metadata import (
    EngineError,
    EngineMetadata,
    Here,
    cached_engines,
    default_cache,
    engine_folder,
    file_name,
    map_file,
    prune,
)
from g2vlm_ros.inference.tensorrt.golden import read_golden, verify
from g2vlm_ros.inference.tensorrt.versions import (
    TensorRTVersion,
    check_precision,
    doubt,
    installed,
)

Progress = Callable[[str], None]
MAY_FUSE = ("fused", "per_view")
"""Ways of attention in which TensorRT may compute it by one kernel; where not, that is said."""


class BuildError(ValueError):
    """TensorRT did not make an engine, or none that computes right values."""


@dataclass(frozen=True)
class Machine:
    """What engines are built with and for."""

    version: TensorRTVersion
    here: Here
    cuda: Cuda | None
    """None when the GPU is not here: engines stay unverified."""

    @staticmethod
    def of(flavour: str, target: str | None) -> Machine:
        """This machine, or TensorRT-RTX for a compute capability such as "8.9"."""
        if target is not None:
            version = installed("rtx" if flavour == "auto" else flavour)
            gpu = f"sm{target.replace('.', '')}"
            return Machine(version, Here(gpu, target, version.label), None)
        cuda = open_cuda()
        version = installed(flavour, cuda.capability)
        here = Here(cuda.gpu, cuda.capability, version.label, cuda.driver)
        return Machine(version, here, cuda)

    @property
    def timings(self) -> str:
        """File of the kernel timings: they are of one TensorRT on one kind of GPU."""
        gpu = re.sub(r"[^a-z0-9]+", "-", self.here.gpu.lower()).strip("-")
        return f"tactics.{gpu}-{self.here.tensorrt}.timing"


def build(
    folder: Path,
    plan: BuildPlan,
    machine: Machine,
    cache: Path,
    stages: Sequence[str] = STAGES,
    progress: Progress = lambda line: None,
    dino_windows: str | None = None,
) -> list[EngineMetadata]:
    """Builds what is missing, stage by stage.

    dino_windows overrides the checkpoint's setting. Raises BuildError, PlanError, ManifestError,
    and UnfitError where the GPU has no such precision.
    """
    check_precision(plan.precision, machine.here.capability)
    if warning := doubt(machine.here.tensorrt):
        progress(f"warning: {warning}")
    manifest = Manifest.read(folder)
    manifest.check_weights(folder)
    out = engine_folder(cache, manifest.weights)
    out.mkdir(parents=True, exist_ok=True)
    windows = dino_windows or ModelConfig.read(folder).dino.windows
    engines = []
    for part in plan.engines(tuple(stages)):
        graph = plan.graph(manifest, part.stage, part.size, windows)
        check_graph(folder, graph)
        target = _wanted(machine, manifest, plan, graph, part)
        engine = _standing(out, target)
        if engine is not None:
            progress(f"{engine.file}: there already")
        else:
            engine = _build_verified(folder, out, plan, machine, graph, target, progress)
        engines.append(engine)
    return engines


def _wanted(
    machine: Machine,
    manifest: Manifest,
    plan: BuildPlan,
    graph: GraphFile,
    part: Part,
) -> EngineMetadata:
    """The record of an engine before it is built."""
    aligned = graph.dino_windows == "aligned"
    return EngineMetadata(
        file=file_name(graph.stage, part.size, aligned, machine.here, plan.precision, part.places),
        stage=graph.stage,
        precision=plan.precision,
        attention="",
        size=part.size,
        places=part.places,
        dino_windows=graph.dino_windows,
        weights=manifest.weights,
        onnx=graph.file,
        onnx_sha256=graph.sha256,
        engine_sha256="",
        engine_bytes=0,
        tensorrt=machine.here.tensorrt,
        gpu=machine.here.gpu,
        capability=machine.here.capability,
        driver=machine.here.driver,
        inputs=graph.inputs,
        outputs=graph.outputs,
        profiles=plan.profiles(graph, part, one=machine.version.name == "rtx"),
        golden=golden_name(graph, part.size, manifest.weights),
        golden_sha256=None,
        verified=None,
    )


def _standing(out: Path, target: EngineMetadata) -> EngineMetadata | None:
    """The engine that an earlier build made of the same things."""
    path = out / f"{target.file}.json"
    if not path.exists():
        return None
    try:
        old = EngineMetadata.read(path)
        old.load(out, "")
    except EngineError:
        return None
    same = ("onnx_sha256", "weights", "profiles", "tensorrt", "gpu", "precision")
    return old if all(getattr(old, name) == getattr(target, name) for name in same) else None


def _build_verified(
    folder: Path,
    out: Path,
    plan: BuildPlan,
    machine: Machine,
    graph: GraphFile,
    target: EngineMetadata,
    progress: Progress,
) -> EngineMetadata:
    """Builds with fused attention, then with ever safer ones until the values are right.

    Where TensorRT fuses nothing though it may, the engine is built once more with the scores of
    one view at a time, and the first one stays if that cannot be done.
    """
    model = read_graph(folder / graph.file)
    cut = graph.stage == "geometry" and whole_attentions(model.graph)
    views = plan.views[2] if cut else 1

    def built(way: str) -> EngineMetadata:
        return _built_and_kept(folder, out, plan, machine, model, views, target, way, progress)

    failures = []
    for way in ways_for(model, plan.precision):
        try:
            engine = built(way)
        except (BuildError, EngineError) as error:
            failures.append(f"{way} attention: {error}")
            progress(failures[-1])
            continue
        if way == "fused" and views > 1 and engine.unfused:
            progress(f"{engine.unfused}; building it again for one view at a time")
            try:
                engine = built("per_view")
            except (BuildError, EngineError) as error:
                progress(f"one view at a time: {error}; the engine with all at once stays")
        return engine
    for name in (target.file, f"{target.file}.part", f"{target.file}.json"):
        (out / name).unlink(missing_ok=True)
    raise BuildError(f"no usable engine of stage {graph.stage}: {'; '.join(failures)}")


def _built_and_kept(
    folder: Path,
    out: Path,
    plan: BuildPlan,
    machine: Machine,
    model: ModelProto,
    views: int,
    target: EngineMetadata,
    way: str,
    progress: Progress,
) -> EngineMetadata:
    """An engine with its attention in one way, in its place once its values are right."""
    start = time.monotonic()
    graph = arranged(model, way, plan.precision, target.places, views)
    engine = replace(target, attention=way, attentions=count_attentions(graph))
    partial = out / f"{engine.file}.part"
    build_engine(
        machine,
        graph.SerializeToString(),
        folder / str(engine.onnx),
        target.profiles,
        plan,
        partial,
        out / machine.timings,
        way,
        progress,
    )
    engine = _with_digests(folder, out, engine, partial)
    (out / engine.kernels).unlink(missing_ok=True)  # of the engine that was here before
    if machine.cuda is not None:
        engine = _verify(machine, out, engine, partial)
    (out / f"{engine.file}.json").unlink(missing_ok=True)
    partial.replace(out / engine.file)
    engine.write(out)
    for line in report_lines(engine, time.monotonic() - start):
        progress(line)
    return engine


def report_lines(engine: EngineMetadata, seconds: float) -> list[str]:
    """What is said of an engine that was built in so many seconds, warnings last."""
    verified = "not verified, its GPU is not here"
    if engine.verified is not None:
        verified = f"largest error {max(engine.verified.values()):.2g}"
    fused = ""
    if engine.fused_attentions is not None:
        fused = f" ({engine.fused_attentions} of {engine.attentions} by one kernel)"
    lines = [
        f"{engine.file}: {engine.engine_bytes / 1e6:.1f} MB, {seconds:.0f} s, "
        f"{engine.attention} attention{fused}, {verified}"
    ]
    if engine.unfused and engine.attention in MAY_FUSE:
        lines.append(f"warning: {engine.unfused}")
    if engine.attention == "decomposed" and engine.fused_attentions:
        # Marking for debugging is no promise: what is marked "may be" observable.
        lines.append(
            f"{engine.fused_attentions} attentions are fused though their scores were marked; "
            "what this engine computes is right on its golden values all the same"
        )
    return lines


def build_engine(
    machine: Machine,
    model: bytes,
    path: Path,
    profiles: list[dict[str, list[list[int]]]],
    plan: BuildPlan,
    target: Path,
    timings: Path,
    way: str = "fused",
    progress: Progress = lambda line: None,
) -> None:
    """Writes one serialised engine, made from a graph whose weights lie beside `path`.

    timings: kernel timings of earlier builds, gone on with. Raises BuildError, EngineError.
    """
    version, trt = machine.version, machine.version.trt
    logger = trt.Logger(trt.Logger.ERROR)
    builder = version.builder(logger)
    network = version.network(builder)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model, str(path)):
        errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise BuildError(f"{version.label} refuses {path.name}: {errors}")
    if way == "decomposed":
        forbid_fusion(network, trt.LayerType.SOFTMAX)
    config = version.builder_config(builder, plan.memory_gib, plan.level)
    for shapes in profiles:
        _add_profile(builder, config, shapes, path.name)
    if machine.cuda is None:
        version.set_target(config, machine.here.capability)
    config.progress_monitor = _monitor(trt, progress)
    if not version.load_timings(config, timings):
        progress(f"{timings.name} is damaged or of another machine; kernels are timed anew")
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BuildError(
            f"{version.label} could not build {path.name}; its messages are above. If memory ran "
            f"out, lower memory_gib ({plan.memory_gib}) or views in the plan"
        )
    target.write_bytes(memoryview(engine))
    version.save_timings(config, timings)


def _add_profile(builder: Any, config: Any, shapes: dict[str, list[list[int]]], name: str) -> None:
    profile = builder.create_optimization_profile()
    try:
        for input_name, bounds in shapes.items():
            profile.set_shape(input_name, *(tuple(shape) for shape in bounds))
        accepted = config.add_optimization_profile(profile) >= 0
    except RuntimeError as error:  # what the bindings make of a shape that TensorRT refuses
        raise BuildError(
            f"the shapes of the plan do not fit {name} ({error}): {shapes}"
        ) from error
    if not accepted:
        raise BuildError(f"the shapes of the plan do not fit {name}: {shapes}")


def _monitor(trt: Any, progress: Progress) -> Any:
    """Passes on the outermost phase of a build and how far it is, in tenths."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.phases[name] = steps

        def step_complete(self, name: str, step: int) -> bool:
            steps = self.phases.get(name, 0)
            if steps and 10 * (step + 1) // steps > 10 * step // steps:
                progress(f"  {name}: {10 * (step + 1) // steps * 10} %")
            return True

        def phase_finish(self, name: str) -> None:
            self.phases.pop(name, None)

    return Monitor()


def _with_digests(folder: Path, out: Path, engine: EngineMetadata, path: Path) -> EngineMetadata:
    """The record of the engine at `path`; its golden values are put beside the engines."""
    golden = folder / str(engine.golden)
    if not golden.exists():
        raise BuildError(
            f"{golden.name} is not in {folder}; make it where torch is installed with `python -m "
            "g2vlm_ros.export.golden_cases` and copy it there"
        )
    shutil.copyfile(golden, out / golden.name)
    data = map_file(path)
    return replace(
        engine,
        engine_bytes=len(data),
        engine_sha256=hashlib.sha256(data).hexdigest(),
        golden_sha256=hashlib.sha256(golden.read_bytes()).hexdigest(),
    )


def _verify(machine: Machine, out: Path, metadata: EngineMetadata, path: Path) -> EngineMetadata:
    """Runs the engine at `path` on its golden values; the record with their errors."""
    try:
        with machine.cuda.active():
            device = DeviceMemory(machine.cuda)
            try:
                data = map_file(path)
                engine = Engine(machine.version, device, metadata, data, out)
                del data
                errors = verify(engine, device, read_golden(out, metadata))
                engine.save_kernels()
                fused = engine.fused_attentions
            finally:
                device.close()
    except CudaError as error:
        raise BuildError(f"{metadata.file} could not be tried: {error}") from error
    return replace(metadata, verified=errors, fused_attentions=fused)


def _ensure_golden_cases(
    folder: Path, plan: BuildPlan, stages: Sequence[str], progress: Progress, windows: str
) -> None:
    """Makes golden values where torch is installed; without it they must be there."""
    manifest = Manifest.read(folder)
    names = [
        golden_name(
            plan.graph(manifest, part.stage, part.size, windows), part.size, manifest.weights
        )
        for part in plan.engines(tuple(stages))
    ]
    if all((folder / name).exists() for name in names):
        return
    try:
        network = load_network(folder, windows)
    except ImportError:
        return
    make_golden_cases(folder, plan, network, tuple(stages), progress)


# --- the command ---------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", type=Path, default=Path("engines/plan.yaml"))
    parser.add_argument("--profile", help="of the plan, as desktop")
    parser.add_argument("--onnx", metavar="DIR", type=Path, help="checkpoint with ONNX files")
    parser.add_argument("--out", metavar="CACHE", type=Path, default=default_cache())
    parser.add_argument("--stages", nargs="+", default=STAGES)
    parser.add_argument("--dino-windows", choices=DINO_WINDOWS, help="default: the checkpoint's")
    parser.add_argument("--flavour", default="auto", help="auto, tensorrt or rtx")
    parser.add_argument("--target", help="compute capability of a GPU that is not here, e.g. 8.9")
    parser.add_argument("--list", action="store_true", help="show the engines in the cache")
    removed = "remove the engines of all checkpoints but that of --onnx"
    parser.add_argument("--prune", action="store_true", help=removed)
    options = parser.parse_args(arguments)
    try:
        if options.list:
            _list(options.out)
        elif options.prune:
            keep = {Manifest.read(options.onnx).weights} if options.onnx else set()
            for path in prune(options.out, keep):
                print(f"removed {path}")
        elif options.onnx is None or options.profile is None:
            parser.error("--profile and --onnx are needed to build")
        else:
            _build(options)
    except (OSError, ValueError, CudaError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _build(options: argparse.Namespace) -> None:
    def show(line: str) -> None:
        print(line, flush=True)

    plan = BuildPlan.read(options.plan, options.profile)
    machine = Machine.of(options.flavour, options.target)
    if machine.here.capability != plan.capability:
        show(
            f"profile {options.profile} is meant for compute capability {plan.capability}, "
            f"this is {machine.here.capability}"
        )
    windows = options.dino_windows or ModelConfig.read(options.onnx).dino.windows
    check_precision(plan.precision, machine.here.capability)
    _ensure_golden_cases(options.onnx, plan, options.stages, show, windows)
    engines = build(options.onnx, plan, machine, options.out, options.stages, show, windows)
    show(f"{len(engines)} engines in {engine_folder(options.out, engines[0].weights)}")


def _list(cache: Path) -> None:
    versions = set()
    for folder, engine in cached_engines(cache):
        size = f"{engine.engine_bytes / 1e6:.1f} MB"
        verified = "verified" if engine.verified is not None else "not verified"
        print(f"{folder / engine.file}  {size}  {engine.attention} attention  {verified}")
        if engine.unfused and engine.attention in MAY_FUSE:
            print(f"  {engine.unfused}")
        versions.add(engine.tensorrt)
    for warning in filter(None, map(doubt, sorted(versions))):
        print(f"warning: {warning}")


if __name__ == "__main__":
    raise SystemExit(main())
