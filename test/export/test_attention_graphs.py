# SPDX-License-Identifier: Apache-2.0
"""Attention as the ONNX files have it equals attention as the torch backend has it.

Opset 20: grouped queries, past and new tokens apart. Opset 24: new tokens scattered into buffers,
one node with a boolean mask. In torch here; in ONNX Runtime on whole graphs, against each other
and by the parity of golden set A.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the graphs are traced with torch")
onnx = pytest.importorskip("onnx", reason="the graphs are ONNX files")
onnxruntime = pytest.importorskip("onnxruntime", reason="graphs are run with onnxruntime")

from g2vlm_tests.built_engines import link_checkpoint  # noqa: E402
from g2vlm_tests.marks import runs_opset_24  # noqa: E402
from g2vlm_tests.onnx_files import without_hints  # noqa: E402

from g2vlm_ros.export.golden_cases import load_network  # noqa: E402
from g2vlm_ros.export.kv_graphs import (  # noqa: E402
    HIDDEN_FROM_SIGHT,
    CompactCache,
    ScatteredCache,
    TwoPartCache,
)
from g2vlm_ros.export.trt_attention import arranged, count_attentions, read_graph  # noqa: E402
from g2vlm_ros.export.trt_query_parts import whole_attentions  # noqa: E402
from g2vlm_ros.inference.decoding_state import first_state  # noqa: E402
from g2vlm_ros.inference.onnx_backend import open_session  # noqa: E402
from g2vlm_ros.model.decoder import causal_mask  # noqa: E402
from g2vlm_ros.model.layers import attend  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "A"
HEADS, KV_HEADS, CHANNELS, LAYERS = 6, 2, 16, 3
MAX_VIEWS, HEADS_OF_GOLDEN = 4, 4


def tokens(count: int, heads: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, heads, count, CHANNELS, generator=generator)


@pytest.mark.parametrize("cached", [0, 1, 37])
@pytest.mark.parametrize("new", [1, 9])
def test_every_form_of_attention_is_the_same(cached: int, new: int) -> None:
    """Compact past tokens, and buffers with free places, whose content counts for nothing."""
    free = 5 if new == 1 else 13
    buffers = [torch.randn(1, KV_HEADS, cached + free, CHANNELS) for _ in range(2 * LAYERS)]
    past = [torch.cat(buffers[side::2])[:, :, :cached] for side in range(2)]
    q, keys, values = tokens(new, HEADS, 1), tokens(new, KV_HEADS, 2), tokens(new, KV_HEADS, 3)
    everything = [
        torch.cat((before[1, None], here), dim=2)
        for before, here in zip(past, (keys, values), strict=True)
    ]
    causal = causal_mask(new, cached, q.device)
    want_all, want_causal = attend(q, *everything), attend(q, *everything, causal)
    for one_node in (False, True):
        cache = CompactCache(*past, one_node)
        close(cache.attend(1, q, keys, values, None), want_all)
        assert all(map(torch.equal, cache.new(), (keys, values)))
    places, stored = torch.arange(cached + free), torch.tensor([cached])
    beyond = torch.where(places < cached, 0.0, HIDDEN_FROM_SIGHT)
    for mask, want in (
        (torch.zeros(new, new), want_all),
        (torch.where(causal[:, cached:], 0.0, HIDDEN_FROM_SIGHT), want_causal),
    ):
        two_part = TwoPartCache(buffers, beyond)
        close(two_part.attend(1, q, keys, values, mask), want)
        assert all(map(torch.equal, two_part.written(), (keys, values)))
    scattered = ScatteredCache(buffers, stored)
    reach = cached + torch.arange(new)
    close(scattered.attend(1, q, keys, values, places <= reach[:, None]), want_causal)
    for buffer, new_buffer, new_tokens in zip(
        buffers[2:4], scattered.written(), (keys, values), strict=True
    ):
        assert torch.equal(new_buffer[:, :, cached : cached + new], new_tokens)
        assert torch.equal(new_buffer[:, :, :cached], buffer[:, :, :cached])


def close(result: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(result, want, atol=2e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def sessions(opset_24: Path) -> dict[int, dict]:
    """`geometry` and `language` of the reference checkpoint, opset 20 as kept, 24 exported."""
    return {
        opset: {s: open_session(where / f"{s}.onnx", "cpu") for s in ("geometry", "language")}
        for opset, where in ((20, GOLDEN), (24, opset_24))
    }


def feeds(session: object, sizes: dict[str, int], vocabulary: int = 400) -> dict:
    """Random inputs; in buffers a third of the places is free."""
    rng = np.random.default_rng(0)
    sizes = {**sizes, "places": sizes["cached"] + sizes["tokens"] + 64}
    arrays = {}
    for value in session.get_inputs():
        shape = [sizes.get(n, n) for n in value.shape]
        if value.name in ("ids", "boundary_ids"):
            arrays[value.name] = rng.integers(5, vocabulary, shape)
        elif value.name == "positions":
            arrays[value.name] = np.tile(np.arange(shape[1]) + sizes["cached"], (3, 1))
        elif value.name == "stored":
            arrays[value.name] = np.array([sizes["cached"]])
        elif value.name != "reach":
            arrays[value.name] = rng.normal(0, 1, shape).astype(np.float32)
    return arrays


@runs_opset_24
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
    tokens = sizes["tokens"]
    if stage == "language":
        text = np.arange(tokens)
        given["reach"] = np.full_like(text, tokens - 1) if sizes["image_tokens"] else text
    old, new = (outputs(sessions[opset][stage], given) for opset in (20, 24))
    assert all(np.isfinite(array).all() for array in old.values())
    if stage == "language":  # the buffers of each layer, in which the new tokens stand
        layers = range(old["keys"].shape[0])
        place = slice(cached, cached + tokens)
        for side in ("keys", "values"):
            new[side] = np.concatenate([new.pop(f"{side}_{i}")[:, :, place] for i in layers])
    assert old.keys() == new.keys()
    for name in old:
        np.testing.assert_allclose(old[name], new[name], atol=1e-5, rtol=1e-5)


def outputs(session: object, given: dict) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, given), strict=True))


@runs_opset_24
@pytest.mark.parametrize("cached", [0, 200])
def test_free_places_and_the_size_of_a_buffer_change_nothing(sessions: dict, cached: int) -> None:
    """Today's way: a past without free places, as the torch network has it."""
    session = sessions[20]["language"]
    given = feeds(session, {"ids": 3, "image_tokens": 0, "tokens": 3, "cached": cached})
    given["reach"] = np.arange(3)
    want = outputs(session, given)
    exact = {n: a[:, :, :cached] if n.startswith("past_") else a for n, a in given.items()}
    other = {n: 1e3 * a if n.startswith("past_") else a for n, a in given.items()}
    for name in (n for n in given if n.startswith("past_")):
        other[name][:, :, :cached] = given[name][:, :, :cached]
    for variant in (exact, other):
        for name, array in outputs(session, variant).items():
            np.testing.assert_allclose(array, want[name], atol=1e-5, rtol=1e-5)


@runs_opset_24
def test_the_next_token_and_its_state(sessions: dict) -> None:
    head = open_session(GOLDEN / "next_token.onnx", "cpu")
    network = load_network(GOLDEN)
    width = network.config.text.hidden_size
    hidden = np.random.default_rng(1).normal(size=(1, width)).astype(np.float32)
    state = first_state(token=3, position=40, stored=17)
    fed = {"hidden": hidden, **{n: state[n] for n in ("positions", "stored", "recent")}}
    results = outputs(head, fed)
    with torch.inference_mode():
        logits = network.logits(torch.tensor(hidden)).numpy()
    np.testing.assert_allclose(results["logits"], logits, atol=1e-5, rtol=1e-5)
    assert results["next_ids"] == results["next_recent"][-1] == logits.argmax()
    assert results["next_stored"] == 18 and np.all(results["next_positions"] == 41)
    broken = outputs(head, fed | {"hidden": np.full_like(hidden, np.nan)})
    assert broken["next_ids"] == 0 and broken["next_recent"][-1] == -1


@runs_opset_24
def test_attention_one_view_at_a_time_is_the_same(sessions: dict, tmp_path: Path) -> None:
    """Scores exist of at most one view's queries, whatever the number of views is."""
    folder = link_checkpoint(tmp_path / "checkpoint")
    graph = read_graph(folder / "geometry.onnx")
    model = arranged(graph, "decomposed", "float32", views=MAX_VIEWS)
    layers = count_attentions(graph)
    assert count_attentions(model) == MAX_VIEWS * layers == MAX_VIEWS * 2
    scores = [n.output[0] for n in model.graph.node if n.op_type == "Softmax"]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in scores)
    onnx.save(without_hints(model), folder / "parts.onnx")
    parts = open_session(folder / "parts.onnx", "cpu")
    for views, patches, cached in ((1, 12, 0), (2, 13, 200), (MAX_VIEWS, 12, 7), (3, 10, 1)):
        tokens = views * (patches + 2)
        sizes = {"views": views, "patches": patches, "tokens": tokens, "cached": cached}
        inputs = feeds(sessions[20]["geometry"], sizes)
        want, results = outputs(sessions[20]["geometry"], inputs), outputs(parts, inputs)
        for name in want:
            np.testing.assert_allclose(results[name], want[name], atol=1e-5, rtol=1e-5)
        group = HEADS_OF_GOLDEN // results["keys"].shape[1]
        for name in scores:
            heads, rows, columns = results[name].shape[1:]
            assert (heads, columns) == (results["keys"].shape[1], cached + tokens)
            assert rows <= group * (patches + 2)


def test_attention_of_one_node_stays_whole(opset_24: Path) -> None:
    model = read_graph(opset_24 / "geometry.onnx")
    assert not whole_attentions(model.graph)
    assert count_attentions(arranged(model, "float32", "bfloat16", views=MAX_VIEWS)) == 2


@runs_opset_24
def test_what_a_fused_kernel_could_compute_is_counted(sessions: dict) -> None:
    """Not the decoder at opset 20, where past and new tokens are apart."""
    counts = {
        path.name: count_attentions(read_graph(path)) for path in sorted(GOLDEN.glob("*.onnx"))
    }
    assert counts["language.onnx"] == 0 and counts["geometry.onnx"] == 2
    assert counts["encode_geometry.onnx"] == counts["encode_semantics.onnx"] == 2


def test_attention_of_two_parts_in_float32_differs_only_by_rounding() -> None:
    """All products of `language` around a softmax are widened, also those behind its parts."""
    model = arranged(read_graph(GOLDEN / "language.onnx"), "float32", "float16")
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
