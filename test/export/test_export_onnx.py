# SPDX-License-Identifier: Apache-2.0
"""The exported graphs against torch, in both opsets, on a network that traces in seconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="tracing needs torch")
onnx = pytest.importorskip("onnx", reason="the export needs onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="running the graphs needs onnxruntime")
pytest.importorskip("onnxscript", reason="the export needs onnxscript")

from g2vlm_tests.marks import runs_opset_24  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from g2vlm_ros.checkpoint.config import ModelConfig  # noqa: E402
from g2vlm_ros.checkpoint.onnx_manifest import CACHE_GRAPHS, MANIFEST, STAGES, Manifest  # noqa: E402
from g2vlm_ros.checkpoint.prompt_layout import SpecialTokens, TokenCursor  # noqa: E402
from g2vlm_ros.export import stage_graphs  # noqa: E402
from g2vlm_ros.export.export_onnx import export, main  # noqa: E402
from g2vlm_ros.inference.backend import Backend  # noqa: E402
from g2vlm_ros.inference.onnx_backend import OnnxBackend  # noqa: E402
from g2vlm_ros.inference.torch_backend import TorchBackend  # noqa: E402
from g2vlm_ros.model.weights import empty_network  # noqa: E402

CONFIGS = {
    "text": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 48,
        "vocab_size": 64,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"mrope_section": [2, 3, 3]},
    },
    "vit": {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32},
    "dino": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 98,
        "patch_size": 14,
    },
    "decoder": {"blocks": 1, "heads": 4, "point_channels": 24, "camera_channels": 16},
}
OPTIONAL_KEYS = ("conf_head", "global_point_head")
GEOMETRY = ("local_points_u", "window_from_camera", "rotation9")
SPECIAL = SpecialTokens(2, 3, 0, 1, 4)


def make_checkpoint(
    folder: Path, keys: Sequence[str] = ("conf_head", "global_point_head")
) -> Path:
    """A random network with these optional heads, stored in bfloat16 as the released one."""
    folder.mkdir()
    for name, values in CONFIGS.items():
        (folder / f"{name}_config.json").write_text(json.dumps(values))
    generator = torch.Generator().manual_seed(0)
    network = empty_network(ModelConfig.read(folder), keys)
    save_file(
        {
            name: (0.3 * torch.randn(p.shape, generator=generator)).bfloat16()
            for name, p in network.state_dict().items()
        },
        folder / "model.safetensors",
    )
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with graphs of opset 20."""
    folder = make_checkpoint(tmp_path_factory.mktemp("opset20") / "mini")
    export(folder, views=(1, 8))
    return folder


def everything(stages: Backend, views: int, grid_hw: tuple[int, int]) -> dict[str, np.ndarray]:
    """Every result of every stage for `views` random images."""
    images = np.random.default_rng(views).integers(
        0, 256, (views, grid_hw[0] * 14, grid_hw[1] * 14, 3), dtype=np.uint8
    )
    cache, walk = stages.new_cache(), TokenCursor(SPECIAL)

    def logits(*segment_and_features: object) -> np.ndarray:
        segment, *features = segment_and_features
        return stages.logits(stages.language(segment, cache, *features))

    found = {"prompt": logits(walk.text([5, 6, 7]))}
    features = stages.encode_geometry(images)
    found["features"], found["descriptor"] = stages.fetch(features), stages.describe(features)
    hidden = stages.geometry(features, walk.geometry(views, grid_hw), cache)
    found["hidden"] = stages.fetch(hidden)
    raw = stages.heads(hidden, grid_hw)
    for name in (*GEOMETRY, "confidence"):
        found[name] = getattr(raw, name)
    semantic = stages.encode_semantics(images[0, :56, :84])
    found["semantic"] = stages.fetch(semantic)
    found["image"] = logits(walk.semantic((2, 3)), semantic)
    found["question"] = logits(walk.text([9, 10, 11, 12]))
    found["token"] = logits(walk.text([13]))
    return {name: np.asarray(value) for name, value in found.items()}


def worst(actual: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> float:
    """The largest ||got - want|| / ||want|| of all results."""
    assert actual.keys() == want.keys()
    errors = [np.linalg.norm(actual[k] - want[k]) / np.linalg.norm(want[k]) for k in want]
    return float(max(errors))


@pytest.mark.parametrize("grid_hw", [(4, 6), (7, 7), (9, 6)])
@pytest.mark.parametrize("views", [1, 2, 5, 8])
def test_one_file_takes_any_number_of_views_and_any_size(
    folder: Path, views: int, grid_hw: tuple[int, int]
) -> None:
    actual, want = (
        everything(kind.open(folder, device="cpu"), views, grid_hw)
        for kind in (OnnxBackend, TorchBackend)
    )
    assert actual["confidence"].shape == (views, grid_hw[0] * 14, grid_hw[1] * 14)
    assert worst(actual, want) < 2e-5


def test_a_checkpoint_without_the_training_only_head(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_checkpoint(tmp_path / "mini", keys=())
    export(folder, views=(1, 8), stages=["encode_geometry", "heads"])  # others have no such head
    stages = [kind.open(folder, device="cpu") for kind in (OnnxBackend, TorchBackend)]
    hidden = np.random.default_rng(0).normal(size=(2, 24, 32)).astype(np.float32)
    results = []
    for each, given in zip(stages, (hidden, torch.tensor(hidden)), strict=True):
        raw = each.heads(given, (4, 6))
        assert raw.confidence is None
        results.append({name: getattr(raw, name) for name in GEOMETRY})
        with pytest.raises(ValueError, match="global"):
            each.heads(given, (4, 6), global_points=True)
    assert worst(*results) < 2e-5
    assert main(["--checkpoint", str(folder), "--global-points"]) == 1
    assert "no global points head; export without --global-points" in capsys.readouterr().err


def run_geometry(path: Path) -> dict[str, np.ndarray]:
    """Outputs of a graph of the geometry stage on fixed random inputs."""
    random = np.random.default_rng(0)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    positions = TokenCursor(SPECIAL, position=5).geometry(3, (4, 6)).positions
    feeds = {
        "features": random.normal(size=(3, 24, 32)).astype(np.float32),
        "boundary_ids": np.tile(np.array([[0, 1]]), (3, 1)),
        "positions": positions,
        "past_keys": random.normal(size=(1, 1, 5, 16)).astype(np.float32),
        "past_values": random.normal(size=(1, 1, 5, 16)).astype(np.float32),
    }
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


@runs_opset_24
def test_opset_24_gives_the_same(folder: Path, tmp_path: Path) -> None:
    newer = Path(shutil.copytree(folder, tmp_path / "mini"))
    manifest = export(newer, opset=24, stages=["geometry"])
    assert manifest.opset == 24
    files = [graph.file for graph in manifest.graphs]
    assert files == ["store.onnx", "load.onnx", "geometry.onnx"]  # no mixture of opsets
    model = onnx.load(newer / "geometry.onnx", load_external_data=False)
    assert opset_of(newer / "geometry.onnx") == 24
    assert "Attention" in {node.op_type for node in model.graph.node}
    actual, want = run_geometry(newer / "geometry.onnx"), run_geometry(folder / "geometry.onnx")
    assert want["hidden"].shape == (3, 24, 32) and worst(actual, want) < 1e-5


def opset_of(path: Path) -> int:
    (opset,) = onnx.load(path, load_external_data=False).opset_import
    assert opset.domain == ""  # nothing but standard operators
    return opset.version


def test_files_are_graphs_that_point_into_the_checkpoint(folder: Path) -> None:
    for graph in Manifest.read(folder).graphs:
        path = folder / graph.file
        assert opset_of(path) == 20 and path.stat().st_size < 400_000
        if graph.stage in CACHE_GRAPHS:
            continue
        model = onnx.load(path, load_external_data=False)
        outside = [t for t in model.graph.initializer if t.external_data]
        assert {e.value for t in outside for e in t.external_data if e.key == "location"} == {
            "model.safetensors"
        }
        within = sum(len(t.raw_data) for t in model.graph.initializer)
        assert outside and within < 10_000
        assert b".py" not in path.read_bytes()  # no traces of the machine that exported
    assert not list(folder.glob("*.unfinished"))


def test_sizes_make_files_of_a_fixed_size_and_keep_the_others(
    folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folder, tmp_path / "mini"))
    before = Manifest.read(folder).graphs
    manifest = export(folder, stages=["encode_geometry"], sizes=[(84, 56)], dino_windows="aligned")
    assert manifest.graphs[:-1] == before
    fixed = manifest.graphs[-1]
    assert fixed.file == "encode_geometry.aligned.84x56.onnx"
    assert fixed.inputs == {"images": ["UINT8", ["views", 56, 84, 3]]}
    images = np.random.default_rng(0).integers(0, 256, (3, 56, 84, 3), dtype=np.uint8)
    backends = (
        kind.open(folder, device="cpu", dino_windows="aligned")
        for kind in (OnnxBackend, TorchBackend)
    )
    actual, want = (each.fetch(each.encode_geometry(images)) for each in backends)
    np.testing.assert_allclose(actual, want, atol=2e-5, rtol=2e-5)
    with pytest.raises(ValueError, match="70x56 pixels; .* take 84x56; run `.* --sizes 70x56`"):
        OnnxBackend.open(folder, "cpu", dino_windows="aligned").encode_geometry(images[:, :, :70])


def test_int8_stays_near_float32(folder: Path, tmp_path: Path) -> None:
    command = ["--checkpoint", str(folder), "--out", str(tmp_path), "--dtype", "int8"]
    assert main([*command, "--stages", "geometry"]) == 0
    path = tmp_path / "geometry.int8.onnx"
    model = onnx.load(path, load_external_data=False)
    assert "MatMulInteger" in {node.op_type for node in model.graph.node}
    assert 1e-4 < worst(run_geometry(path), run_geometry(folder / "geometry.onnx")) < 0.1


def test_the_position_table_is_resampled_as_in_training() -> None:
    table = torch.randn(1, 1 + 37 * 37, 6, generator=torch.Generator().manual_seed(0))
    embeddings = empty_embeddings(table)
    for grid_hw in ((37, 37), (28, 37), (6, 10), (51, 37), (60, 50), (1, 1)):
        actual = stage_graphs.patch_positions(table, grid_hw)
        torch.testing.assert_close(actual, embeddings.patch_positions(grid_hw), atol=2e-5, rtol=0)


def empty_embeddings(table: torch.Tensor):
    from g2vlm_ros.checkpoint.config import DinoConfig
    from g2vlm_ros.model.encoders import DinoEmbeddings

    embeddings = DinoEmbeddings(DinoConfig(6, 1, 1, 6, 4, 37, 1e-6, "released"))
    embeddings.position_embeddings = torch.nn.Parameter(table)
    return embeddings


def test_bad_checkpoints_and_options_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_checkpoint(tmp_path / "mini")
    (folder / "dino_config.json").write_text(json.dumps({**CONFIGS["dino"], "hidden_size": 32}))
    assert main(["--checkpoint", str(folder)]) == 1
    assert "does not fit its configuration files" in capsys.readouterr().err
    assert main(["--checkpoint", str(tmp_path / "nowhere")]) == 1
    for option in (["--sizes", "520x392"], ["--views", "8..1"], ["--opset", "23"]):
        with pytest.raises(SystemExit):
            main(["--checkpoint", str(folder), *option])
    assert not (folder / MANIFEST).exists()


def test_graphs_of_other_weights_are_dropped(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "mini"))
    assert [graph.stage for graph in export(other, stages=[]).graphs] == [*CACHE_GRAPHS, *STAGES]
    weights = load_file(other / "model.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, other / "model.safetensors")
    assert export(other, stages=[]).graphs == ()
