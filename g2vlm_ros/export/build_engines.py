# SPDX-License-Identifier: Apache-2.0
"""Builds TensorRT engines from ONNX files, stage by stage, and lets each one prove itself.

`python -m g2vlm_ros.export.build_engines --plan engines/plan.yaml --profile NAME --onnx DIR
[--out CACHE]`
runs on the machine that will use the engines. What is there already and fits is not built again,
so an interrupted build goes on where it stopped. `--target 8.9` builds with TensorRT-RTX for a GPU
that is not here; such engines prove themselves when a node first loads them.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from g2vlm_ros.checkpoint.config import DINO_WINDOWS, ModelConfig
from g2vlm_ros.checkpoint.onnx_manifest import STAGES, GraphFile, Manifest, check_graph
from g2vlm_ros.export.build_plan import BuildPlan
from g2vlm_ros.export.golden_cases import load_network, make_proofs, proof_name
from g2vlm_ros.export.trt_attention import arranged, forbid_fusion, read_graph, ways_for
from g2vlm_ros.inference.tensorrt.cuda import Cuda, CudaError, open_cuda
from g2vlm_ros.inference.tensorrt.device_memory import DeviceMemory
from g2vlm_ros.inference.tensorrt.engine import Engine, prove, read_proof
from g2vlm_ros.inference.tensorrt.engine_metadata import (
    EngineError,
    EngineRecord,
    Here,
    default_cache,
    engine_folder,
    file_name,
    listed,
    prune,
)
from g2vlm_ros.inference.tensorrt.versions import TensorRTVersion, installed

Progress = Callable[[str], None]


class BuildError(ValueError):
    """TensorRT did not make an engine, or none that computes right values."""


@dataclass(frozen=True)
class Machine:
    """What engines are built with and for."""

    flavour: TensorRTVersion
    here: Here
    cuda: Cuda | None
    """None when the GPU is not here: engines stay unproven."""

    @staticmethod
    def of(flavour: str, target: str | None) -> Machine:
        """This machine, or TensorRT-RTX for a compute capability such as "8.9"."""
        if target is not None:
            chosen = installed("rtx" if flavour == "auto" else flavour)
            gpu = f"sm{target.replace('.', '')}"
            return Machine(chosen, Here(gpu, target, chosen.label), None)
        cuda = open_cuda()
        chosen = installed(flavour, cuda.capability)
        here = Here(cuda.gpu, cuda.capability, chosen.label, cuda.driver)
        return Machine(chosen, here, cuda)


def build(
    folder: Path,
    plan: BuildPlan,
    machine: Machine,
    cache: Path,
    stages: Sequence[str] = STAGES,
    progress: Progress = lambda line: None,
    dino_windows: str | None = None,
) -> list[EngineRecord]:
    """Builds what is missing, stage by stage. Raises BuildError, PlanError, ManifestError.

    dino_windows overrides the checkpoint's setting.
    """
    manifest = Manifest.read(folder)
    manifest.check_weights(folder)
    out = engine_folder(cache, manifest.weights)
    out.mkdir(parents=True, exist_ok=True)
    windows = dino_windows or ModelConfig.read(folder).dino.windows
    made = []
    for stage, size in plan.engines(tuple(stages)):
        graph = plan.graph(manifest, stage, size, windows)
        check_graph(folder, graph)
        wanted = _wanted(machine, manifest, plan, graph, size)
        if (done := _standing(out, wanted)) is not None:
            progress(f"{done.file}: there already")
        else:
            done = _build_proven(folder, out, plan, machine, graph, wanted, progress)
        made.append(done)
    return made


def _wanted(
    machine: Machine,
    manifest: Manifest,
    plan: BuildPlan,
    graph: GraphFile,
    size: tuple[int, int] | None,
) -> EngineRecord:
    """The record of an engine before it is built."""
    aligned = graph.dino_windows == "aligned"
    return EngineRecord(
        file=file_name(graph.stage, size, aligned, machine.here, plan.precision),
        stage=graph.stage,
        precision=plan.precision,
        attention="",
        size=size,
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
        profiles=plan.profiles(graph, size),
        proof=proof_name(graph, size, manifest.weights),
        proof_sha256=None,
        proven=None,
    )


def _standing(out: Path, wanted: EngineRecord) -> EngineRecord | None:
    """The engine that an earlier build made of the same things."""
    path = out / f"{wanted.file}.json"
    if not path.exists():
        return None
    try:
        old = EngineRecord.read(path)
        old.load(out, "")
    except EngineError:
        return None
    same = ("onnx_sha256", "weights", "profiles", "tensorrt", "gpu", "precision")
    return old if all(getattr(old, name) == getattr(wanted, name) for name in same) else None


def _build_proven(
    folder: Path,
    out: Path,
    plan: BuildPlan,
    machine: Machine,
    graph: GraphFile,
    wanted: EngineRecord,
    progress: Progress,
) -> EngineRecord:
    """Builds with fused attention, then with ever safer ones until the values are right."""
    model = read_graph(folder / graph.file)
    failures = []
    for way in ways_for(model, plan.precision):
        start = time.monotonic()
        try:
            data = build_engine(
                machine,
                arranged(model, way, plan.precision),
                folder / graph.file,
                wanted.profiles,
                plan,
                out / "tactics.timing",
                way,
                progress,
            )
            record = _keep(folder, out, replace(wanted, attention=way), data)
            if machine.cuda is not None:
                record = replace(record, proven=_prove(machine, out, record, data))
        except (BuildError, EngineError) as error:
            failures.append(f"{way} attention: {error}")
            progress(failures[-1])
            continue
        record.write(out)
        proven = "not proven, its GPU is not here"
        if record.proven is not None:
            proven = f"largest error {max(record.proven.values()):.2g}"
        seconds = time.monotonic() - start
        progress(f"{record.file}: {len(data) / 1e6:.1f} MB, {seconds:.0f} s, {way}, {proven}")
        return record
    (out / wanted.file).unlink(missing_ok=True)
    raise BuildError(f"no usable engine of stage {graph.stage}: {'; '.join(failures)}")


def build_engine(
    machine: Machine,
    model: bytes,
    path: Path,
    profiles: list[dict[str, list[list[int]]]],
    plan: BuildPlan,
    timing: Path,
    way: str = "fused",
    progress: Progress = lambda line: None,
) -> bytes:
    """One serialised engine from a graph whose weights lie beside `path`."""
    flavour, trt = machine.flavour, machine.flavour.trt
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    if builder is None:
        raise BuildError(f"{flavour.label} cannot build here; is there an NVIDIA driver?")
    network = flavour.network(builder)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model, str(path)):
        errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise BuildError(f"{flavour.label} refuses {path.name}: {errors}")
    if way == "decomposed":
        forbid_fusion(network, trt.LayerType.SOFTMAX)
    config = flavour.builder_config(builder, plan.memory_gib, plan.level)
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name, bounds in shapes.items():
            profile.set_shape(name, *(tuple(shape) for shape in bounds))
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(f"the shapes of the plan do not fit {path.name}: {shapes}")
    if machine.cuda is None:
        flavour.set_target(config, machine.here.capability)
    config.progress_monitor = _monitor(trt, progress)
    flavour.load_timings(config, timing)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BuildError(
            f"{flavour.label} could not build {path.name}; its messages are above. If memory ran "
            f"out, lower memory_gib ({plan.memory_gib}) or views in the plan"
        )
    flavour.save_timings(config, timing)
    return bytes(memoryview(engine))


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


def _keep(folder: Path, out: Path, record: EngineRecord, data: bytes) -> EngineRecord:
    """Writes the engine and its golden values; without a record they do not count yet."""
    partial = out / f"{record.file}.part"
    partial.write_bytes(data)
    partial.replace(out / record.file)
    proof = folder / str(record.proof)
    if not proof.exists():
        raise BuildError(
            f"{proof.name} is not in {folder}; make it where torch is installed with `python -m "
            "g2vlm_ros.export.golden_cases` and copy it there"
        )
    shutil.copyfile(proof, out / proof.name)
    return replace(
        record,
        engine_bytes=len(data),
        engine_sha256=hashlib.sha256(data).hexdigest(),
        proof_sha256=hashlib.sha256(proof.read_bytes()).hexdigest(),
    )


def _prove(machine: Machine, out: Path, record: EngineRecord, data: bytes) -> dict[str, float]:
    device = DeviceMemory(machine.cuda)
    try:
        engine = Engine(machine.flavour, device, record, data)
        return prove(engine, device, read_proof(out, record))
    except CudaError as error:
        raise BuildError(f"{record.file} could not be tried: {error}") from error
    finally:
        device.close()


def _ensure_proofs(
    folder: Path, plan: BuildPlan, stages: Sequence[str], progress: Progress, windows: str
) -> None:
    """Makes golden values where torch is installed; without it they must be there."""
    manifest = Manifest.read(folder)
    names = [
        proof_name(plan.graph(manifest, *engine, windows), engine[1], manifest.weights)
        for engine in plan.engines(tuple(stages))
    ]
    if all((folder / name).exists() for name in names):
        return
    try:
        network = load_network(folder, windows)
    except ImportError:
        return
    make_proofs(folder, plan, network, tuple(stages), progress)


# --- the command ---------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", type=Path, default=Path("engines/plan.yaml"))
    parser.add_argument("--profile", help="of the plan: jetson_orin, desktop, h200")
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
    _ensure_proofs(options.onnx, plan, options.stages, show, windows)
    made = build(options.onnx, plan, machine, options.out, options.stages, show, windows)
    show(f"{len(made)} engines in {engine_folder(options.out, made[0].weights)}")


def _list(cache: Path) -> None:
    for folder, record in listed(cache):
        size = f"{record.engine_bytes / 1e6:.1f} MB"
        proven = "proven" if record.proven is not None else "not proven"
        print(f"{folder / record.file}  {size}  {record.attention} attention  {proven}")


if __name__ == "__main__":
    raise SystemExit(main())
