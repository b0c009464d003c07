# SPDX-License-Identifier: Apache-2.0
"""Lower precision stage by stage: errors where they must be, overflow found and said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the measurement runs in torch")
pytest.importorskip("onnxscript", reason="the export needs onnxscript")
onnxruntime = pytest.importorskip("onnxruntime", reason="DynamicQuantizeLinear is its")

from onnx import TensorProto, helper  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from g2vlm_ros.checkpoint.digest import digest  # noqa: E402
from g2vlm_ros.checkpoint.onnx_manifest import STAGES  # noqa: E402
from g2vlm_ros.export.precision_study import (  # noqa: E402
    ANGLE,
    DEPTH,
    LOGITS,
    LOWERED,
    REPORT,
    fake_quantize_uint8,
    main,
    measure,
    near_overflow,
)

DATA = Path(__file__).parents[1] / "data"
GOLDEN = DATA / "golden" / "A"


@pytest.fixture(scope="module")
def report() -> dict:
    return measure(GOLDEN, [], (84, 56), 56)


def test_a_stage_only_spoils_what_depends_on_it(report: dict) -> None:
    for precision in LOWERED:
        stages = report["errors"][precision]
        assert list(stages) == list(STAGES)
        assert stages["encode_geometry"][DEPTH] > 0 and stages["geometry"][ANGLE] > 0
        assert stages["heads"][DEPTH] > 0 and stages["heads"][LOGITS] == 0
        assert stages["encode_semantics"][DEPTH] == stages["encode_semantics"][ANGLE] == 0
        assert stages["encode_semantics"][LOGITS] > 0


def test_masks_do_not_count_as_activations(report: dict) -> None:
    assert list(report["maxima"]) == list(STAGES)
    assert all(0 < value < 1e4 for value, _ in report["maxima"].values())


def test_fewer_bits_are_worse(report: dict) -> None:
    errors = report["errors"]
    for stage in ("geometry", "heads"):
        half, brain, byte = (errors[p][stage][DEPTH] for p in ("float16", "bfloat16", "int8"))
        assert half < brain < 0.1 and half < byte < 0.3


def test_weights_in_fewer_bits_cost_words_more_than_geometry(report: dict) -> None:
    """Geometry sees the language stage only through its prompt."""
    byte, nibble = (report["errors"][f"{kind} weights"]["language"] for kind in ("int8", "int4"))
    assert 0 < byte[LOGITS] < nibble[LOGITS] < 2
    assert 0 < byte[DEPTH] < byte[LOGITS] and nibble[DEPTH] < nibble[LOGITS]


def test_rounding_is_that_of_onnx() -> None:
    x = np.random.default_rng(0).normal(0.3, 2, (7, 5)).astype(np.float32)
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "scale", "zero"])
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)]
    kinds = (("y", TensorProto.UINT8, x.shape), ("scale", 1, ()), ("zero", TensorProto.UINT8, ()))
    outputs = [helper.make_tensor_value_info(*kind) for kind in kinds]
    model = helper.make_model(
        helper.make_graph([node], "g", values, outputs),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    y, scale, zero = session.run(None, {"x": x})
    want = (y.astype(np.float32) - zero) * scale
    np.testing.assert_allclose(fake_quantize_uint8(torch.tensor(x)), want, atol=1e-6)


def test_overflow_is_found_and_said_by_the_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in [*GOLDEN.glob("*_config.json"), GOLDEN / "model.safetensors"]:
        shutil.copy(path, tmp_path)
    assert "is unknown; find out with" in near_overflow(tmp_path, digest(tmp_path))[0]
    weights = load_file(tmp_path / "model.safetensors")
    weights["dino2llm.bias"] = torch.full_like(weights["dino2llm.bias"], 6e4)
    save_file(weights, tmp_path / "model.safetensors")
    options = ["--checkpoint", str(tmp_path), "--size", "84x56", "--semantic-size", "56"]
    assert main([*options, "--images", str(DATA / "frames")]) == 0
    shown = capsys.readouterr().out
    assert "| `geometry` in float16 |" in shown and "`dino2llm`" in shown
    report = json.loads((tmp_path / REPORT).read_text())
    assert report["photographs"] == 2
    lines = near_overflow(tmp_path, digest(tmp_path))
    assert any(line.startswith("encode_geometry has activations of 6") for line in lines)
    assert main(["--checkpoint", str(tmp_path / "nowhere")]) == 1
