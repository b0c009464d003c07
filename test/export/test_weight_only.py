# SPDX-License-Identifier: Apache-2.0
"""The language stage with weights in 8 or 4 bits: what is stored, computed and refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="tracing needs torch")
onnx = pytest.importorskip("onnx", reason="the export needs onnx")
ir = pytest.importorskip("onnx_ir", reason="the export needs onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime", reason="running the graphs needs onnxruntime")
pytest.importorskip("onnxscript", reason="the export needs onnxscript")

from g2vlm_tests.built_engines import GOLDEN, PLAN, stand_in_build  # noqa: E402
from g2vlm_tests.gpu_stand_in import StandInCuda, stand_in_version  # noqa: E402
from g2vlm_tests.marks import needs_rtx, runs_opset_24  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from g2vlm_ros.checkpoint.config import ModelConfig  # noqa: E402
from g2vlm_ros.checkpoint.onnx_manifest import Manifest  # noqa: E402
from g2vlm_ros.checkpoint.prompt_layout import SpecialTokens, TokenCursor  # noqa: E402
from g2vlm_ros.export import build_engines as building  # noqa: E402
from g2vlm_ros.export import export_onnx as exporting  # noqa: E402
from g2vlm_ros.export.build_plan import BuildPlan, PlanError  # noqa: E402
from g2vlm_ros.export.export_onnx import copy_checkpoint, export, main  # noqa: E402
from g2vlm_ros.export.golden_cases import (  # noqa: E402
    Oracle,
    load_network,
    make_golden_cases,
    of_layers,
)
from g2vlm_ros.export.weight_only import BLOCK, dequantised, rounded  # noqa: E402
from g2vlm_ros.inference.decoding_state import first_state  # noqa: E402
from g2vlm_ros.inference.onnx_backend import open_session  # noqa: E402
from g2vlm_ros.inference.tensorrt.engine_metadata import Here  # noqa: E402
from g2vlm_ros.records import UnfitError  # noqa: E402

KINDS = ("int8", "int4")
DECODING = ("language", "next_token")
ARITHMETIC = {"FLOAT": torch.float32, "FLOAT16": torch.float16, "BFLOAT16": torch.bfloat16}


@pytest.fixture(scope="module", autouse=True)
def traced_once() -> Iterator[None]:
    """Traces a stage once for each arithmetic: its weights are rounded afterwards."""
    traces, original = {}, exporting.trace

    def trace(network: object, graph: object, opset: int, dtype: torch.dtype, fixed: dict):
        key = (dtype, *graph.inputs)
        if key not in traces:
            traces[key] = ir.to_proto(original(network, graph, opset, dtype, fixed))
        return ir.from_proto(traces[key])

    with mock.patch.object(exporting, "trace", trace):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference checkpoint with its language stage in whole and in rounded weights."""
    folder = tmp_path_factory.mktemp("weight_only")
    copy_checkpoint(GOLDEN, folder)
    for kind in (None, *KINDS):
        export(folder, opset=24, stages=DECODING, weight_only=kind)
    return folder


def graph_path(folder: Path, kind: str | None, stage: str = "language") -> Path:
    (graph,) = Manifest.read(folder).of(stage=stage, weight_only=kind)
    return folder / graph.file


@pytest.fixture(scope="module")
def case() -> dict[str, np.ndarray]:
    """Inputs of the language stage: a text behind a cache."""
    text, rng = ModelConfig.read(GOLDEN).text, np.random.default_rng(0)
    segment = TokenCursor(SpecialTokens(401, 402, 409, 410, 198), position=7).text(
        np.arange(20, 31)
    )
    past = rng.normal(size=(2, text.layers, text.kv_heads, 7, text.head_dim))
    return {
        "ids": segment.token_ids,
        "features": np.empty((0, text.hidden_size), np.float32),
        "reach": np.arange(11),
        "positions": segment.positions,
        **dict(zip(("past_keys", "past_values"), past.astype(np.float32), strict=True)),
    }


def fed(case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The case as the graph takes it: buffers of each layer, with room for the new tokens."""
    arrays = of_layers(case)
    room = [(0, 0), (0, 0), (0, len(case["ids"])), (0, 0)]
    return {
        name: np.pad(array, room) if "_keys_" in name or "_values_" in name else array
        for name, array in arrays.items()
        if name not in ("past_keys", "past_values")
    }


def hidden(path: Path, case: dict[str, np.ndarray]) -> np.ndarray:
    return open_session(path, "cpu").run(["hidden"], fed(case))[0]


def logits(folder: Path, kind: str | None, case: dict[str, np.ndarray]) -> np.ndarray:
    """Through both stages."""
    state = first_state(0, 0, 0)
    del state["ids"]
    inputs = {"hidden": hidden(graph_path(folder, kind), case), **state}
    return open_session(graph_path(folder, kind, "next_token"), "cpu").run(["logits"], inputs)[0]


@runs_opset_24
@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_computes_with_exactly_the_rounded_weights(
    folder: Path, case: dict[str, np.ndarray], kind: str
) -> None:
    """Every DequantizeLinear, run by ONNX Runtime, against integers and scales made anew."""
    state = {"hidden": np.ones((1, 64), np.float32), **first_state(0, 0, 0)}
    del state["ids"]
    names, values = [], []
    for stage, inputs in zip(DECODING, (fed(case), state), strict=True):
        model = onnx.load(graph_path(folder, kind, stage))
        nodes = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
        for node in nodes:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(node.output[0]))
        session = onnxruntime.InferenceSession(model.SerializeToString())
        values += session.run([node.output[0] for node in nodes], inputs)
        names += [node.input[0] for node in nodes]
    weights = load_file(folder / "model.safetensors")
    layers = ModelConfig.read(folder).text.layers
    assert len(set(names)) == len(names) == 7 * layers + 1  # q, k, v, o, gate, up, down; lm_head
    for stored, value in zip(names, values, strict=True):
        name, own = stored.split(":")
        assert own == ("int8" if "lm_head" in name else kind)
        integers, scales = rounded(name, weights[name].astype(np.float32).T, own, "FLOAT")
        assert np.array_equal(value, dequantised(integers, scales))


@runs_opset_24
@pytest.mark.parametrize(("kind", "least", "most"), [("int8", 1e-3, 0.04), ("int4", 0.04, 0.4)])
def test_logits_lose_what_is_said_and_equal_the_oracle(
    folder: Path, case: dict[str, np.ndarray], kind: str, least: float, most: float
) -> None:
    want, actual = (logits(folder, k, case) for k in (None, kind))
    assert least < np.linalg.norm(actual - want) / np.linalg.norm(want) < most
    oracle = Oracle(load_network(folder), "float32", kind)
    whole = Oracle(oracle.network, "float32")  # whose weights the other one has not touched
    state = first_state(0, 0, 0)
    del state["ids"]
    for each, result in ((oracle, actual), (whole, want)):
        _, outputs = each.run("language", **case)
        _, outputs = each.run("next_token", hidden=outputs["hidden"], **state)
        np.testing.assert_allclose(outputs["logits"], result, atol=1e-4)


def test_a_graph_gets_smaller(folder: Path) -> None:
    sizes = [
        sum(Path(f"{graph_path(folder, kind, s)}.data").stat().st_size for s in DECODING)
        for kind in KINDS
    ]
    weights = load_file(folder / "model.safetensors")
    names = [n for n in weights if n.startswith("language_model.model.layers.")]
    count = sum(weights[n].size for n in names if weights[n].ndim == 2 and "_moe_geo" not in n)
    head = weights["language_model.lm_head.weight"].size
    assert count + head < sizes[0] < 1.1 * (count + head)
    assert sizes[1] < head * 1.1 + count * (0.5 + 4 / BLOCK) + 1


@pytest.mark.parametrize("element", ARITHMETIC)
def test_rounding_is_to_the_nearest_and_scales_are_of_the_arithmetic(element: str) -> None:
    matrix = np.random.default_rng(0).normal(size=(2 * BLOCK, 5)).astype(np.float32)
    matrix[:BLOCK, 0] = 0
    for kind, groups in (("int8", 1), ("int4", 2)):
        integers, scales = rounded("w", matrix, kind, element)
        assert integers.dtype == np.int8 and scales.shape == (groups, 5)
        narrow = torch.tensor(scales).to(ARITHMETIC[element]).float().numpy()
        assert np.array_equal(scales, narrow)
        step = scales.repeat(len(matrix) // groups, axis=0)
        error = np.abs(dequantised(integers, scales) - matrix)
        # Half a step, and what the largest value loses by a scale that was rounded down.
        assert (error <= 0.5 * step * (1 + 1e-6) + np.abs(matrix) * 2**-8).all()
        assert not dequantised(integers, scales)[:BLOCK, 0].any()


def test_what_cannot_be_stored_so_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UnfitError, match="w has 96 inputs, int4 needs a multiple of 64; use int8"):
        rounded("w", np.ones((96, 2), np.float32), "int4", "FLOAT")
    for option in (
        ["--opset", "20", "--weight-only", "int4"],
        ["--dtype", "int8", "--opset", "24", "--weight-only", "int8"],
    ):
        assert main(["--checkpoint", str(folder), *option]) == 1
        assert "change --opset or --dtype" in capsys.readouterr().err


def test_the_plan_takes_the_stage_that_it_names(folder: Path) -> None:
    manifest = Manifest.read(folder)
    for kind in (None, *KINDS):
        plan = BuildPlan.checked("test", PLAN | {"opset": 24, "weight_only": kind})
        assert plan.graph(manifest, "language", None, "released").weight_only == kind
    half = BuildPlan.checked(
        "test", PLAN | {"opset": 24, "weight_only": "int4", "precision": "float16"}
    )
    with pytest.raises(PlanError, match="--dtype float16 --stages language --weight-only int4"):
        plan = half.graph(manifest, "language", None, "released")
    with pytest.raises(PlanError, match="has weight_only int3; it must be one of int8, int4"):
        BuildPlan.checked("test", PLAN | {"weight_only": "int3"})


@runs_opset_24
def test_an_engine_is_verified_for_its_arithmetic_not_the_rounding(
    folder: Path, tmp_path: Path
) -> None:
    """Golden values are of the rounded weights: on the STAND-IN it passes the bound of float32."""
    plan = BuildPlan.checked("test", PLAN | {"opset": 24, "weight_only": "int4"})
    make_golden_cases(folder, plan, load_network(folder), ("language",))
    cuda = StandInCuda()
    version = stand_in_version(cuda)
    machine = building.Machine(version, Here(cuda.gpu, cuda.capability, version.label), cuda)
    with mock.patch.object(building, "build_engine", stand_in_build):
        records = building.build(folder, plan, machine, tmp_path, stages=["language"])
    assert {record.onnx for record in records} == {"language.weights_int4.onnx"}
    assert [record.places for record in records] == plan.buckets
    assert max(max(record.verified.values()) for record in records) < 2e-3


@needs_rtx
@pytest.mark.parametrize("kind", KINDS)
def test_tensorrt_rtx_builds_the_stage(folder: Path, kind: str, tmp_path: Path) -> None:
    """Parsed and built for an RTX 40, in a process of its own, in bfloat16 as the plan has it."""
    copy_checkpoint(folder, tmp_path)
    manifest = export(tmp_path, dtype="bfloat16", opset=24, stages=["language"], weight_only=kind)
    plan = PLAN | {"opset": 24, "precision": "bfloat16", "weight_only": kind}
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from g2vlm_ros.export.trt_attention import arranged, read_graph\n"
        "from g2vlm_ros.export.build_engines import Machine, build_engine\n"
        "from g2vlm_ros.export.build_plan import BuildPlan, Part\n"
        "from g2vlm_ros.checkpoint.onnx_manifest import Manifest\n"
        "import json\n"
        "folder, plan = Path(sys.argv[1]), BuildPlan.checked('test', json.loads(sys.argv[2]))\n"
        "graph = plan.graph(Manifest.read(folder), 'language', None, 'released')\n"
        "path = folder / graph.file\n"
        "model = arranged(read_graph(path), 'fused', plan.precision, 1024).SerializeToString()\n"
        "shapes = plan.profiles(graph, Part('language', places=1024))\n"
        "target = folder / 'engine'\n"
        "machine = Machine.of('rtx', '8.9')\n"
        "build_engine(machine, model, path, shapes, plan, target, folder / 'none')\n"
        "print(target.stat().st_size)\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path), json.dumps(plan)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert manifest.graphs[0].weight_only == kind and int(done.stdout.split()[-1]) > 10_000
