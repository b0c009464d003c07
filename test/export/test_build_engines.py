# SPDX-License-Identifier: Apache-2.0
"""Building engines: the plan, the graphs against TensorRT's table and its parser, resuming.

TensorRT-RTX parses and builds without a GPU; those tests skip where it is not installed. Engines
that have to run do so on the STAND-IN of test/runtime.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import pytest
import yaml

pytest.importorskip("torch", reason="golden values are made by torch")
pytest.importorskip("onnxruntime", reason="graphs are run with onnxruntime")

import onnxruntime  # noqa: E402
import torch  # noqa: E402
from g2vlm_tests.built_engines import (  # noqa: E402
    GOLDEN,
    PLAN,
    Built,
    build_stand_ins,
    link_checkpoint,
    stand_in_build,
)
from g2vlm_tests.gpu_stand_in import StandInCuda, stand_in_version  # noqa: E402
from g2vlm_tests.marks import needs_rtx, runs_opset_24
from g2vlm_tests.onnx_files import without_hints
from safetensors.torch import load_file, save_file  # noqa: E402

from g2vlm_ros.checkpoint.config import ModelConfig  # noqa: E402
from g2vlm_ros.checkpoint.onnx_manifest import (  # noqa: E402
    CACHE_GRAPHS,
    MANIFEST,
    STAGES,
    Manifest,
    ManifestError,
)
from g2vlm_ros.export import build_engines as building  # noqa: E402
from g2vlm_ros.export.build_engines import BuildError, main  # noqa: E402
from g2vlm_ros.export.build_plan import BuildPlan, Part, PlanError  # noqa: E402
from g2vlm_ros.export.export_onnx import export  # noqa: E402
from g2vlm_ros.export.golden_cases import load_network, make_golden_cases  # noqa: E402
from g2vlm_ros.export.trt_attention import (  # noqa: E402
    arranged,
    count_attentions,
    read_graph,
    ways_for,
)
from g2vlm_ros.inference.tensorrt.engine_metadata import (  # noqa: E402
    EngineMetadata,
    cached_engines,
    prune,
)
from g2vlm_ros.inference.tensorrt.versions import TensorRTVersion  # noqa: E402
from g2vlm_ros.model.network import G2VLM  # noqa: E402
from g2vlm_ros.records import UnfitError  # noqa: E402

ENGINES = Path(__file__).parents[2] / "engines"
SHARED_PLAN = ENGINES / "plan.yaml"
SMALL = ("encode_geometry", "geometry", "encode_semantics", "language", "next_token")

# --- the plan ------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["jetson_orin", "jetson_orin_jetpack6", "desktop", "h200"])
def test_every_profile_of_the_plan_fits_the_graphs(profile: str) -> None:
    plan = BuildPlan.read(SHARED_PLAN, profile)
    manifest = Manifest.read(GOLDEN)
    for part in plan.engines(STAGES):
        graph = next(g for g in manifest.graphs if g.stage == part.stage)
        for shapes in plan.profiles(graph, part):
            assert set(shapes) == set(graph.inputs)
            for name, bounds in shapes.items():
                assert np.all(np.diff(np.array(bounds), axis=0) >= 0), (part, name, bounds)


def test_language_has_its_weights_once_where_memory_is_short() -> None:
    """At opset 24 a bucket is an engine, at opset 20 all are one; a data-centre GPU has room."""
    engines = {
        profile: BuildPlan.read(SHARED_PLAN, profile).engines(("language",))
        for profile in ("jetson_orin", "jetson_orin_jetpack6", "desktop", "h200")
    }
    assert {profile: len(parts) for profile, parts in engines.items()} == {
        "jetson_orin": 1,
        "jetson_orin_jetpack6": 1,
        "desktop": 1,
        "h200": 2,
    }


@needs_rtx
def test_tensorrt_writes_into_buffers_of_a_fixed_size_only(opset_24: Path) -> None:
    """Else one engine could have a profile per bucket, and its weights once."""
    code = (
        "import sys, tensorrt_rtx as trt\n"
        "network = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR)).create_network(1)\n"
        "parser = trt.OnnxParser(network, trt.Logger(trt.Logger.INTERNAL_ERROR))\n"
        "assert not parser.parse_from_file(sys.argv[1])\n"
        "print(parser.get_error(0).desc())\n"
    )
    path = str(opset_24 / "language.onnx")
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "The KV cache tensor must have a static sequence length dimension" in done.stdout


def test_token_counts_of_the_plan_belong_together() -> None:
    plan = BuildPlan.read(SHARED_PLAN, "desktop")
    graphs = {g.stage: g for g in Manifest.read(GOLDEN).graphs}
    (geometry,) = plan.profiles(graphs["geometry"], Part("geometry"))
    for (views, patches, _), (_, tokens) in zip(
        geometry["features"], geometry["positions"], strict=True
    ):
        assert tokens == views * (patches + 2)
    prefill, *decoding = plan.profiles(graphs["language"], Part("language"))
    assert [shapes["past_keys_0"][1][2] for shapes in decoding] == plan.buckets
    assert [shape[2] for shape in prefill["past_keys_0"]] == [32768] * 3
    decode = decoding[0]
    for i in range(3):
        ids, images = prefill["ids"][i][0], prefill["features"][i][0]
        assert prefill["positions"][i] == [3, ids + images] and prefill["reach"][i] == [
            ids + images
        ]
        assert decode["ids"][i] == [1] and decode["features"][i][0] == 0
    # Kernels are chosen for an image of 756x756, the heaviest use; also of a single profile.
    _, usual, largest = prefill["features"]
    assert usual[0] == largest[0] == 27 * 27
    assert plan.profiles(graphs["language"], Part("language"), one=True) == [prefill]
    fixed, one = plan.profiles(graphs["language"], Part("language", places=8192))
    for shapes in (fixed, one):
        assert {shape[2] for shape in shapes["past_keys_0"]} == {8192}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"views": [4, 1, 8]}, r"has views \[4, 1, 8\]; it must be smallest, usual and largest"),
        ({"views": [0, 1, 8]}, "from 1 up"),
        ({"sizes": [[518, 390]]}, r"has \[518, 390\] in sizes; .* multiples of 14"),
        ({"semantic_sizes": [[70, 70]]}, "multiples of 28"),
        ({"precision": "int3"}, "precision int3"),
        ({"colour": "blue"}, "missing or unknown keys: colour"),
        ({"buckets": [1024, 1000]}, r"buckets \[1024, 1000\]; they must be multiples of 64, the"),
        ({"buckets": [1000]}, "multiples of 64"),
    ],
)
def test_a_wrong_plan_is_refused(change: dict, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        BuildPlan.checked("test", PLAN | change)


def test_an_unknown_profile_and_a_wrong_opset(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="'orin' is not in .*; choose one of jetson_orin"):
        BuildPlan.read(SHARED_PLAN, "orin")
    plan = BuildPlan.checked("test", PLAN | {"opset": 24})
    with pytest.raises(PlanError, match="opset 20, the profile wants 24.*--opset 24"):
        plan.graph(Manifest.read(GOLDEN), "geometry", None, "released")


# --- TensorRT 10.3 by its table ------------------------------------------------------------------


def table() -> dict[str, tuple[set[str], str]]:
    lines = (ENGINES / "operators_trt10.csv").read_text().splitlines()
    rows = (line.split(",") for line in lines if not line.startswith("#"))
    return {name: (set(types.split()), rule) for name, types, rule in rows}


GRAPHS = sorted(
    GOLDEN / g.file for g in Manifest.read(GOLDEN).graphs if g.stage not in CACHE_GRAPHS
)


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.name)
def test_graphs_use_only_what_tensorrt_10_takes(path: Path) -> None:
    views = 8 if path.name == "geometry.onnx" else 1
    model = arranged(read_graph(path), "decomposed", "float32", views=views)
    model = onnx.shape_inference.infer_shapes(model)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    known, values = table(), {v.name: v.type.tensor_type for v in model.graph.value_info}
    constant = {i.name for i in model.graph.initializer}
    constant |= {n.output[0] for n in model.graph.node if n.op_type == "Constant"}
    wrong = []
    for node in model.graph.node:
        types, rule = known.get(node.op_type, (set(), "unsupported"))
        found = values.get(node.output[0])
        element = onnx.TensorProto.DataType.Name(found.elem_type) if found else None
        if not types or (element is not None and element.replace("INT32", "INT64") not in types):
            # Comparisons are cached_engines with the types that they compare, and give BOOL.
            if not (
                element == "BOOL" and node.op_type.startswith(("Less", "Greater", "Equal", "Is"))
            ):
                wrong.append(f"{node.name}: {node.op_type} in {element}")
        axes = {"Slice": 3, "Squeeze": 1, "Unsqueeze": 1}.get(node.op_type, 1)
        if rule == "axes:constant" and len(node.input) > axes and node.input[axes] not in constant:
            wrong.append(f"{node.name}: axes of {node.op_type} are computed")
        if rule == "input:static":
            shape = values[node.input[0]].shape
            if any(not d.HasField("dim_value") for d in shape.dim):
                wrong.append(f"{node.name}: {node.op_type} of a dynamic shape")
        if rule == "outputs:1" and len([o for o in node.output if o]) > 1:
            wrong.append(f"{node.name}: more than one output of {node.op_type}")
        if rule == "restricted":
            wrong.append(f"{node.name}: {node.op_type} is restricted")
    assert not wrong


# --- TensorRT-RTX, for real ----------------------------------------------------------------------


@pytest.fixture(
    scope="module", params=[(20, "float32"), (24, "bfloat16")], ids=lambda p: f"opset{p[0]}-{p[1]}"
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A folder with ONNX files, and its plan."""
    opset, precision = request.param
    plan = PLAN | {"opset": opset, "precision": precision}
    folder = link_checkpoint(tmp_path_factory.mktemp("onnx"))
    if opset != 20:
        export(folder, dtype=precision, opset=opset, stages=SMALL)
    return folder, plan


@needs_rtx
@pytest.mark.parametrize("capability", ["8.6", "8.9", "12.0"])
def test_tensorrt_rtx_builds_the_small_stages(
    exported: tuple, capability: str, tmp_path: Path
) -> None:
    folder, plan = exported
    names = _build_with_rtx(folder, plan, capability, SMALL, tmp_path)
    language = len(plan["buckets"]) if plan["opset"] == 24 else 1
    assert len(names) == len(SMALL) - 1 + language
    for record in (r for _, r in cached_engines(tmp_path / "cache")):
        assert record.capability == capability and record.verified is None
        # A second profile would store the weights of most products again.
        assert len(record.profiles) == 1
        assert (tmp_path / "cache").joinpath(names[0]).parent.exists()


@needs_rtx
@pytest.mark.parametrize(("opset", "precision"), [(20, "float16"), (24, "bfloat16")])
def test_an_engine_of_language_is_as_large_as_its_weights(
    opset: int, precision: str, tmp_path: Path
) -> None:
    """A decoding profile of its own made RTX keep most matrices twice (476 MB for 284)."""
    folder = wide_checkpoint(tmp_path / "onnx")
    export(folder, dtype=precision, opset=opset, stages=("language",))
    weights = 2 * sum(
        tensor.numel()
        for name, tensor in load_file(folder / "model.safetensors").items()
        if name.startswith("language_model.model.layers.") and "_moe_geo" not in name
    )
    plan = PLAN | {"opset": opset, "precision": precision}
    _build_with_rtx(folder, plan, "8.9", ("language",), tmp_path)
    sizes = [path.stat().st_size for path, _ in cached_engines(tmp_path / "cache")]
    assert sizes and max(sizes) < 1.15 * weights


def wide_checkpoint(folder: Path) -> Path:
    """A checkpoint of random weights whose matrices are what an engine consists of."""
    folder.mkdir()
    for path in GOLDEN.glob("*_config.json"):
        shutil.copyfile(path, folder / path.name)
    text = json.loads((GOLDEN / "text_config.json").read_text())
    text |= {
        "hidden_size": 768,
        "intermediate_size": 4096,
        "num_attention_heads": 12,
        "num_hidden_layers": 1,
    }
    text["rope_scaling"] = {"type": "mrope", "mrope_section": [8, 12, 12]}
    (folder / "text_config.json").write_text(json.dumps(text))
    vision = json.loads((GOLDEN / "vit_config.json").read_text())
    (folder / "vit_config.json").write_text(json.dumps(vision | {"hidden_size": 768}))
    network = G2VLM(ModelConfig.read(folder)).to(torch.bfloat16)
    save_file(dict(network.state_dict()), folder / "model.safetensors")
    return folder


@needs_rtx
def test_tensorrt_rtx_parses_every_graph() -> None:
    """In a process of its own: a graph that the parser dislikes may end it."""
    code = (
        "import sys, tensorrt_rtx as trt\n"
        "log = trt.Logger(trt.Logger.ERROR)\n"
        "for path in sys.argv[1:]:\n"
        "    network = trt.Builder(log).create_network(1)\n"
        "    parser = trt.OnnxParser(network, log)\n"
        "    assert parser.parse_from_file(path), (path, parser.get_error(0).desc())\n"
        "    assert network.num_outputs >= 1\n"
    )
    paths = [str(path) for path in GRAPHS]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@needs_rtx
@pytest.mark.parametrize("as_one_node", [False, True])
def test_every_way_of_attention_builds(as_one_node: bool, tmp_path: Path) -> None:
    path = tmp_path / "attention.onnx"
    onnx.save(attention_graph(as_one_node), path)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from g2vlm_ros.export.trt_attention import arranged, read_graph, ways_for\n"
        "from g2vlm_ros.export.build_engines import Machine, build_engine\n"
        "from g2vlm_ros.export.build_plan import BuildPlan\n"
        f"plan = BuildPlan.checked('test', {PLAN!r})\n"
        "path = Path(sys.argv[1])\n"
        "model, machine = read_graph(path), Machine.of('rtx', '8.9')\n"
        "for way in ways_for(model, 'float16'):\n"
        "    data = arranged(model, way, 'float16').SerializeToString()\n"
        "    target = path.with_suffix('.engine')\n"
        "    build_engine(machine, data, path, [], plan, target, path, way)\n"
        "    print(way, target.stat().st_size)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    ways = [line.split()[0] for line in done.stdout.splitlines()]
    assert ways == list(ways_for(read_graph(path), "float16"))


@needs_rtx
def test_a_gpu_that_rtx_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = link_checkpoint(tmp_path / "onnx")
    with pytest.raises(AssertionError, match=r"does not build for compute capability 9\.0"):
        _build_with_rtx(folder, PLAN, "9.0", ("language",), tmp_path)


def _build_with_rtx(
    folder: Path, plan: dict, capability: str, stages: tuple, out: Path
) -> list[str]:
    """Runs the build command in a process of its own; names of the engines."""
    text = yaml.safe_dump({"profiles": {"test": json.loads(json.dumps(plan))}})
    (out / "plan.yaml").write_text(text)
    arguments = [
        "--plan",
        str(out / "plan.yaml"),
        "--profile",
        "test",
        "--onnx",
        str(folder),
        "--out",
        str(out / "cache"),
        "--target",
        capability,
        "--stages",
        *stages,
    ]
    code = (
        "import sys\nfrom g2vlm_ros.export.build_engines import main\n"
        f"sys.exit(main({arguments!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return [record.file for _, record in cached_engines(out / "cache")]


# --- attention -----------------------------------------------------------------------------------


def attention_graph(as_one_node: bool) -> onnx.ModelProto:
    """float16 attention of 2 heads over 6 tokens with a mask, as an old or a new export has it."""
    half, helper = onnx.TensorProto.FLOAT16, onnx.helper
    scale = helper.make_tensor("", half, [], [0.25])
    names = {"q": [1, 2, 6, 32], "k": [1, 2, 6, 32], "v": [1, 2, 6, 32], "mask": [6, 6]}
    inputs = [helper.make_tensor_value_info(name, half, shape) for name, shape in names.items()]
    outputs = [helper.make_tensor_value_info("y", half, [1, 2, 6, 32])]
    if as_one_node:
        nodes = [helper.make_node("Attention", ["q", "k", "v", "mask"], ["y"], scale=0.25)]
    else:
        nodes = [
            helper.make_node("Constant", [], ["scale"], value=scale),
            helper.make_node("Constant", [], ["shape"], value_ints=[1, 2, 6, 6]),
            helper.make_node("Mul", ["q", "scale"], ["scaled"]),
            helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
            helper.make_node("MatMul", ["scaled", "kt"], ["scores"]),
            helper.make_node("Add", ["mask", "scores"], ["masked"]),
            helper.make_node("Softmax", ["masked"], ["weights"], axis=-1),
            helper.make_node("Reshape", ["weights", "shape"], ["same"]),
            helper.make_node("MatMul", ["same", "v"], ["y"]),
        ]
    graph = helper.make_graph(nodes, "attention", inputs, outputs)
    opset = helper.make_opsetid("", 24 if as_one_node else 20)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10)


@pytest.mark.parametrize("as_one_node", [False, pytest.param(True, marks=runs_opset_24)])
def test_float32_attention_differs_only_by_rounding(as_one_node: bool) -> None:
    model = attention_graph(as_one_node)
    wide = arranged(model, "float32", "float16")
    onnx.checker.check_model(without_hints(wide), full_check=True)
    inferred = onnx.shape_inference.infer_shapes(wide, strict_mode=True)
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    heart = [n for n in wide.graph.node if n.op_type in ("MatMul", "Softmax", "Attention", "Add")]
    assert {types[node.output[0]] for node in heart} == {onnx.TensorProto.FLOAT}
    rng = np.random.default_rng(0)
    feeds = {
        i.name: rng.normal(size=[d.dim_value for d in i.type.tensor_type.shape.dim]).astype(
            np.float16
        )
        for i in model.graph.input
    }
    actual = onnxruntime.InferenceSession(without_hints(wide).SerializeToString()).run(
        None, feeds
    )[0]
    q, k, v, mask = (feeds[name].astype(np.float64) for name in ("q", "k", "v", "mask"))
    scores = np.exp(0.25 * q @ k.swapaxes(-1, -2) + mask)
    want = scores / scores.sum(-1, keepdims=True) @ v
    assert actual.dtype == np.float16
    np.testing.assert_allclose(actual, want, atol=2e-3)


def test_the_ways_of_a_graph() -> None:
    old, new = attention_graph(False), attention_graph(True)
    assert ways_for(old, "float16") == ("fused", "decomposed", "float32")
    assert ways_for(old, "float32") == ("fused", "decomposed")
    assert ways_for(new, "bfloat16") == ("fused", "float32")
    assert ways_for(new, "float32") == ("fused",)


# --- proving, resuming, pruning ------------------------------------------------------------------


def test_a_gpu_without_bfloat16_is_refused_before_anything_is_built(
    built: Built, tmp_path: Path
) -> None:
    machine = replace(stand_in_machine(built), here=building.Here("RTX 2080", "7.5", "rtx1.7"))
    plan = BuildPlan.checked("test", PLAN | {"precision": "bfloat16"})
    with pytest.raises(UnfitError, match="compute capability 7.5 .GeForce 20.* has no bfloat16"):
        building.build(built.checkpoint, plan, machine, tmp_path)
    assert not list(tmp_path.iterdir())


def test_kernel_timings_belong_to_one_tensorrt_and_gpu(built: Built) -> None:
    machine = stand_in_machine(built)
    assert machine.timings == "tactics.stand-in-gpu-trt10.3.0.timing"
    assert replace(machine, here=replace(machine.here, tensorrt="trt10.16")).timings != (
        machine.timings
    )


def test_a_plan_says_how_much_each_stage_finds_in_the_cache() -> None:
    """On Orin the scores of `geometry` at its largest stay below 2^31."""
    for profile in ("jetson_orin", "jetson_orin_jetpack6"):
        plan = BuildPlan.read(SHARED_PLAN, profile)
        width, height = plan.sizes[0]
        tokens = plan.views[2] * (width * height // 14**2 + 2)
        assert 12 * tokens * (tokens + plan.cached_tokens[2]) < 2**31
        assert tokens + 8 * (27 * 27 + 2) < plan.buckets[-1], "a question about all of the views"
    with pytest.raises(
        PlanError, match=r"cached_tokens \[5, 1, 2\]; .* smallest, usual and large"
    ):
        BuildPlan.checked("test", PLAN | {"cached_tokens": [5, 1, 2]})


def test_wrong_attention_is_built_again_more_safely(tmp_path: Path) -> None:
    built = build_stand_ins(tmp_path, twist={"fused": 0.3})
    assert {record.attention for record in built.engines} == {"decomposed"}
    assert all(max(record.verified.values()) < 2e-3 for record in built.engines)


def test_attention_that_is_fused_in_spite_of_its_marks_is_said(built: Built) -> None:
    record = replace(built.engines[0], attention="decomposed", attentions=4)
    for fused, lines in ((0, 1), (2, 2), (None, 1)):
        report = building.report_lines(replace(record, fused_attentions=fused), 1.0)
        assert len(report) == lines
    report = building.report_lines(replace(record, fused_attentions=2), 1.0)
    assert report[-1].startswith("2 attentions are fused though their scores were marked")


def half_geometry(folder: Path) -> tuple[Path, BuildPlan]:
    """A checkpoint with `geometry` in float16, its golden values, and the plan for it."""
    checkpoint = link_checkpoint(folder / "checkpoint")
    export(checkpoint, dtype="float16", stages=("geometry",))
    plan = BuildPlan.checked("test", PLAN | {"precision": "float16"})
    make_golden_cases(checkpoint, plan, load_network(checkpoint), ("geometry",))
    return checkpoint, plan


def test_attention_that_is_not_fused_is_built_one_view_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no scores of all views exist; where that cannot be built the first engine stays."""
    checkpoint, plan = half_geometry(tmp_path)
    cuda = StandInCuda()
    version, lines = stand_in_version(cuda), []
    machine = building.Machine(version, building.Here(cuda.gpu, "8.9", version.label), cuda)
    counts: dict[str, int] = {}

    def build_counting(machine: object, model: bytes, *rest: object) -> None:
        way = rest[5]
        counts[way] = count_attentions(onnx.load_from_string(model))
        if way in refused_ways:
            raise BuildError("no room")
        stand_in_build(machine, model, *rest)

    def engine_of(cache: Path) -> EngineMetadata:
        counts.clear()
        with mock.patch.object(building, "build_engine", build_counting):
            (engine,) = building.build(
                checkpoint, plan, machine, cache, ("geometry",), lines.append
            )
        folder, record = cached_engines(cache)[0]
        assert record == engine and not list(folder.glob("*.part"))
        assert f"{engine.attention}".encode() in (folder / engine.file).read_bytes()
        engine.load(folder, "")
        return engine

    refused_ways: tuple[str, ...] = ()
    engine = engine_of(tmp_path / "in_parts")
    assert counts == {"fused": 2, "per_view": 2 * 8}
    assert (engine.attention, engine.attentions) == ("per_view", 16)
    (line,) = [line for line in lines if line.endswith("building it again for one view at a time")]
    assert "computes 2 of 2 attentions without a fused kernel" in line
    assert lines[-1].startswith("warning: ") and "16 of 16" in lines[-1]
    refused_ways = ("per_view",)
    assert engine_of(tmp_path / "whole").attention == "fused"
    assert lines[-1] == "one view at a time: no room; the engine with all at once stays"
    refused_ways = ("fused",)  # scores of all views at once may be more than TensorRT takes
    assert engine_of(tmp_path / "safer").attention == "decomposed"
    assert counts == {"fused": 2, "decomposed": 16}
    refused_ways = ()
    monkeypatch.setattr(TensorRTVersion, "fused_attentions", lambda *_: 2)
    assert engine_of(tmp_path / "fused").attention == "fused" and counts == {"fused": 2}


@needs_rtx
def test_tensorrt_rtx_builds_attention_one_view_at_a_time(tmp_path: Path) -> None:
    """Also with its scores in float32."""
    folder = link_checkpoint(tmp_path / "onnx")
    export(folder, dtype="float16", stages=("geometry",))
    few_views = PLAN | {"views": [1, 2, 3]}  # each is an attention of its own
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from g2vlm_ros.checkpoint.onnx_manifest import Manifest\n"
        "from g2vlm_ros.export.trt_attention import arranged, read_graph\n"
        "from g2vlm_ros.export.build_engines import Machine, build_engine\n"
        "from g2vlm_ros.export.build_plan import BuildPlan, Part\n"
        f"plan = BuildPlan.checked('test', {few_views!r})\n"
        "machine, folder = Machine.of('rtx', '8.9'), Path(sys.argv[1])\n"
        "(graph,) = Manifest.read(folder).of(stage='geometry', dtype='float16')\n"
        "path, target = folder / graph.file, folder / 'engine'\n"
        "profiles = plan.profiles(graph, Part('geometry'), one=True)\n"
        "for way in ('fused', 'per_view', 'float32'):\n"
        "    model = arranged(read_graph(path), way, 'float16', views=plan.views[2])\n"
        "    build_engine(machine, model.SerializeToString(), path, profiles, plan, target,\n"
        "                 path, way)\n"
        "    print(target.stat().st_size)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.split()) == 3


def test_an_engine_that_stays_wrong_is_refused(tmp_path: Path) -> None:
    twist = {way: 0.3 for way in ("fused", "decomposed", "float32")}
    with pytest.raises(
        BuildError, match="no usable engine of stage encode_geometry: fused.*is off"
    ):
        build_stand_ins(tmp_path, twist=twist)
    assert not list(tmp_path.rglob("*.engine"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build_stand_ins(tmp_path_factory.mktemp("built"))


def again(built: Built, **changes: object) -> int:
    """Builds once more; how many engines were made."""
    plan, machine = BuildPlan.checked("test", PLAN | changes), stand_in_machine(built)
    with mock.patch.object(building, "build_engine", side_effect=stand_in_build) as build_mock:
        building.build(built.checkpoint, plan, machine, built.cache)
    return build_mock.call_count


def test_what_is_there_is_not_built_again(built: Built) -> None:
    assert again(built) == 0
    folder, record = cached_engines(built.cache)[0]
    (folder / record.file).write_bytes(b"cut")
    assert again(built) == 1
    (folder / f"{record.file}.json").unlink()
    assert again(built) == 1
    assert again(built, views=[1, 2, 4]) == 3  # encoder, trunk and heads; no question needs views
    assert again(built) == 3


def stand_in_machine(built: Built) -> building.Machine:
    here = building.Here(built.cuda.gpu, built.cuda.capability, built.version.label)
    return building.Machine(built.version, here, built.cuda)


def test_a_build_that_fails_goes_on_where_it_stopped(built: Built, tmp_path: Path) -> None:
    plan, machine = BuildPlan.checked("test", PLAN), stand_in_machine(built)

    def without_heads(machine: object, model: bytes, path: Path, *rest: object) -> bytes:
        if path.name.startswith("heads"):
            raise BuildError("TensorRT could not build it")
        return stand_in_build(machine, model, path, *rest)

    with mock.patch.object(building, "build_engine", side_effect=without_heads):
        with pytest.raises(BuildError, match="no usable engine of stage heads: fused attention"):
            building.build(built.checkpoint, plan, machine, tmp_path)
    before = [record.stage for _, record in cached_engines(tmp_path)]
    assert sorted(before) == ["encode_geometry", "geometry"]
    with mock.patch.object(building, "build_engine", side_effect=stand_in_build) as build_mock:
        building.build(built.checkpoint, plan, machine, tmp_path)
    assert build_mock.call_count == len(STAGES) - len(before)


def test_out_of_memory_while_building_is_one_sentence(built: Built, tmp_path: Path) -> None:
    """TensorRT answers with None and a message in its own log."""
    trt = mock.MagicMock(IProgressMonitor=type("Monitor", (), {}), __version__="10.3.0")
    builder = trt.Builder.return_value
    builder.create_builder_config.return_value.add_optimization_profile.return_value = 0
    builder.build_serialized_network.return_value = None
    machine = replace(stand_in_machine(built), version=TensorRTVersion("tensorrt", trt))
    with pytest.raises(BuildError, match=r"memory ran out, lower memory_gib \(1\) or views"):
        building.build(built.checkpoint, BuildPlan.checked("test", PLAN), machine, tmp_path)
    assert not list(tmp_path.rglob("*.engine"))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("heads.onnx", "heads.onnx is damaged or was changed; run `.*export.onnx"),
        ("model.safetensors", "were made for other weights or configuration files"),
        (MANIFEST, "is damaged or of another version"),
    ],
)
def test_damaged_and_stale_onnx_files_are_not_built(
    built: Built, tmp_path: Path, file: str, message: str
) -> None:
    folder = Path(shutil.copytree(built.checkpoint, tmp_path / "onnx"))
    data = bytearray((folder / file).read_bytes())
    data[len(data) // 2 if file == "heads.onnx" else -2] ^= 1
    (folder / file).write_bytes(data)
    plan, machine = BuildPlan.checked("test", PLAN), stand_in_machine(built)
    with mock.patch.object(building, "build_engine", side_effect=stand_in_build):
        with pytest.raises(ManifestError, match=message):
            building.build(folder, plan, machine, tmp_path / "cache", stages=["heads"])
    assert cached_engines(tmp_path / "cache") == []


def test_file_names_and_the_list(built: Built, capsys: pytest.CaptureFixture) -> None:
    assert main(["--list", "--out", str(built.cache)]) == 0
    shown = capsys.readouterr().out
    assert "encode_geometry.140x84.stand-in-gpu-trt10.3.0-float32.engine" in shown
    assert shown.count("fused attention  verified") == len(built.engines)


def test_prune_keeps_what_it_is_told(tmp_path: Path) -> None:
    old = build_stand_ins(tmp_path)
    weights = old.engines[0].weights
    assert prune(old.cache, {weights}) == []
    (tmp_path / "cache" / "0123" / "notes").mkdir(parents=True)
    gone = prune(old.cache, set())
    assert len([p for p in gone if p.suffix == ".engine"]) == len(old.engines)
    assert [p.name for p in old.cache.iterdir()] == ["0123"]  # nothing of ours in it


def test_the_command_explains_itself(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--plan", str(SHARED_PLAN), "--profile", "desktop", "--onnx", str(tmp_path)]
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("error: ")
