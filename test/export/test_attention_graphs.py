# SPDX-License-Identifier: Apache-2.0
"""Attention as the ONNX files have it equals attention as the torch backend has it.

Opset 20: grouped queries, past and new tokens apart. Opset 24: one node with a boolean mask. In
torch here; in ONNX Runtime on whole graphs, against each other and by the parity of golden set A.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the graphs are traced with torch")
onnx = pytest.importorskip("onnx", reason="the graphs are ONNX files")
onnxruntime = pytest.importorskip("onnxruntime", reason="graphs are run with onnxruntime")

from g2vlm_ros.checkpoint.onnx_manifest import MANIFEST, Manifest  # noqa: E402
from g2vlm_ros.export.export_onnx import export  # noqa: E402
from g2vlm_ros.export.stage_graphs import (  # noqa: E402
    HIDDEN_FROM_SIGHT,
    GroupedCache,
    TokenMajorCache,
    TwoPartCache,
)
from g2vlm_ros.export.trt_attention import arranged, count_attentions, read_graph  # noqa: E402
from g2vlm_ros.inference.onnx_backend import open_session  # noqa: E402
from g2vlm_ros.model.decoder import causal_mask  # noqa: E402
from g2vlm_ros.model.layers import attend  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "A"
HEADS, KV_HEADS, CHANNELS, LAYERS = 6, 2, 16, 3


def tokens(count: int, heads: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, heads, count, CHANNELS, generator=generator)


@pytest.mark.parametrize("cached", [0, 1, 37])
@pytest.mark.parametrize("new", [1, 9])
def test_every_form_of_attention_is_the_same(cached: int, new: int) -> None:
    past = [torch.randn(cached, LAYERS, KV_HEADS, CHANNELS) for _ in range(2)]
    q, keys, values = tokens(new, HEADS, 1), tokens(new, KV_HEADS, 2), tokens(new, KV_HEADS, 3)
    everything = [
        torch.cat((before[:, 1].transpose(0, 1)[None], here), dim=2)
        for before, here in zip(past, (keys, values), strict=True)
    ]
    visible = causal_mask(new, cached, q.device)
    added = torch.where(visible[:, cached:], 0.0, HIDDEN_FROM_SIGHT)
    want_all, want_causal = attend(q, *everything), attend(q, *everything, visible)
    for kind, mask, want in (
        (GroupedCache, None, want_all),
        (TwoPartCache, torch.zeros(new, new), want_all),
        (TwoPartCache, added, want_causal),
        (TokenMajorCache, visible, want_causal),
    ):
        cache = kind(*past)
        result = cache.attend(1, q, keys, values, mask)
        torch.testing.assert_close(result, want, atol=2e-6, rtol=1e-5)
        for given, kept in zip((keys, values), cache.new(), strict=True):
            assert torch.equal(kept[:, 0].transpose(0, 1), given[0])


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict]:
    """`geometry` and `language` of the reference checkpoint, opset 20 as kept, 24 exported."""
    folder = tmp_path_factory.mktemp("opset24")
    for pattern in ("model.safetensors", "*_config.json"):
        for path in GOLDEN.glob(pattern):
            shutil.copyfile(path, folder / path.name)
    export(folder, opset=24, stages=("geometry", "language"))
    assert Manifest.read(folder).opset == 24 and (folder / MANIFEST).exists()
    return {
        opset: {s: open_session(where / f"{s}.onnx", "cpu") for s in ("geometry", "language")}
        for opset, where in ((20, GOLDEN), (24, folder))
    }


def feeds(session: object, sizes: dict[str, int], vocabulary: int = 400) -> dict:
    rng = np.random.default_rng(0)
    arrays = {}
    for value in session.get_inputs():
        shape = [sizes.get(n, n) for n in value.shape]
        if value.name in ("ids", "boundary_ids"):
            arrays[value.name] = rng.integers(5, vocabulary, shape)
        elif value.name == "positions":
            arrays[value.name] = np.tile(np.arange(shape[1]) + sizes["cached"], (3, 1))
        elif value.name != "reach":
            arrays[value.name] = rng.normal(0, 1, shape).astype(np.float32)
    return arrays


@pytest.mark.parametrize("cached", [0, 200])
@pytest.mark.parametrize(
    ("stage", "sizes"),
    [
        ("geometry", {"views": 2, "patches": 12, "tokens": 28}),
        ("language", {"ids": 11, "image_tokens": 0, "tokens": 11}),
        ("language", {"ids": 2, "image_tokens": 9, "tokens": 11}),
        ("language", {"ids": 1, "image_tokens": 0, "tokens": 1}),
    ],
    ids=["views", "text", "image", "token"],
)
def test_both_opsets_compute_the_same(
    sessions: dict, stage: str, sizes: dict, cached: int
) -> None:
    sizes = {**sizes, "cached": cached}
    given = feeds(sessions[20][stage], sizes)
    if stage == "language":
        last = cached + sizes["tokens"] - 1
        text = np.arange(cached, last + 1)
        given["reach"] = np.full_like(text, last) if sizes["image_tokens"] else text
    old, new = (sessions[opset][stage].run(None, given) for opset in (20, 24))
    for a, b in zip(old, new, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def test_what_a_fused_kernel_could_compute_is_counted(sessions: dict) -> None:
    """Not the decoder at opset 20, where past and new tokens are apart."""
    counts = {
        path.name: count_attentions(read_graph(path)) for path in sorted(GOLDEN.glob("*.onnx"))
    }
    assert counts["language.onnx"] == 0 and counts["geometry.onnx"] == 2
    assert counts["encode_geometry.onnx"] == counts["encode_semantics.onnx"] == 2


def test_attention_of_two_parts_in_float32_differs_only_by_rounding() -> None:
    """All products of `language` around a softmax are widened, also those behind its parts."""
    model = onnx.load_from_string(
        arranged(read_graph(GOLDEN / "language.onnx"), "float32", "float16")
    )
    producer = {name: node for node in model.graph.node for name in node.output}
    softmaxes = [node for node in model.graph.node if node.op_type == "Softmax"]
    assert len(softmaxes) == 2
    for softmax in softmaxes:
        concat = producer[softmax.input[0]]
        assert concat.op_type == "Concat"
        below = [n for n in model.graph.node if softmax.output[0] in n.input]
        assert [n.op_type for n in below] == ["Slice", "Slice"]
        for part in below:
            (product,) = [n for n in model.graph.node if part.output[0] in n.input]
            assert product.op_type == "MatMul"
            values = producer[product.input[1]]
            assert values.op_type == "Cast" and values.attribute[0].i == onnx.TensorProto.FLOAT
            (narrowed,) = [n for n in model.graph.node if product.output[0] in n.input]
            assert narrowed.op_type == "Cast"
