# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: the real 2B layout, strictness, damaged folders, memory."""

from __future__ import annotations

import ast
import gzip
import json
import shutil
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from g2vlm_ros.checkpoint.config import ModelConfig
from g2vlm_ros.model.weights import (
    UNUSED,
    CheckpointError,
    describe,
    empty_network,
    load,
    main,
    parameters_per_part,
)

DATA = Path(__file__).parents[1] / "data" / "golden"
GOLDEN = DATA / "A"

REAL_TEXT = {
    "model_type": "qwen2_vl",
    "hidden_size": 1536,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8960,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}
REAL_VIT = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "hidden_size": 1536}
REAL_DINO = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 518,
    "patch_size": 14,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A writable copy of the reference checkpoint."""
    for path in GOLDEN.glob("*.json"):
        shutil.copy(path, tmp_path)
    shutil.copy(GOLDEN / "model.safetensors", tmp_path)
    return tmp_path


def test_real_configuration_has_exactly_the_released_keys_and_sizes() -> None:
    lines = gzip.decompress((DATA / "real_keys.txt.gz").read_bytes()).decode().splitlines()
    released = {name: ast.literal_eval(shape) for name, shape in (x.split("\t") for x in lines)}
    network = empty_network(ModelConfig.from_dicts(REAL_TEXT, REAL_VIT, REAL_DINO), released)
    ours = {name: tuple(p.shape) for name, p in network.state_dict().items()}
    assert len(released) == 1947
    assert {name: shape for name, shape in released.items() if name not in UNUSED} == ours
    parts = parameters_per_part({name: prod(shape) for name, shape in released.items()})
    assert round(sum(parts.values()) / 1e9, 2) == 4.54
    assert {name: round(count / 1e9, 3) for name, count in parts.items()} == {
        "language_model embed_tokens": 0.233,
        "language_model semantic": 1.31,
        "language_model geometric": 1.31,
        "language_model lm_head": 0.233,
        "dino_model": 0.304,
        "dino2llm": 0.002,
        "vit_model": 0.665,
        "point_decoder": 0.143,
        "point_head": 0.001,
        "camera_decoder": 0.142,
        "camera_head": 0.002,
        "global_points_decoder": 0.19,
        "global_point_head": 0.001,
    }


def test_loads_every_value_in_the_dtype_asked_for() -> None:
    stored = load_file(GOLDEN / "model.safetensors")
    for name, parameter in load(GOLDEN).state_dict().items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, stored[name].float())
    half = load(GOLDEN, dtype=torch.bfloat16).state_dict()
    wide = {name.split(".")[0] for name, p in half.items() if p.dtype == torch.float32}
    assert wide == {"point_head", "camera_head", "global_point_head"}


def test_sharded_folder_loads_the_same(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    names = sorted(stored)
    shards = {"a.safetensors": names[:200], "b.safetensors": names[200:]}
    for file, keys in shards.items():
        save_file({key: stored[key] for key in keys}, folder / file)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {key: file for file, keys in shards.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    one, many = load(GOLDEN).state_dict(), load(folder).state_dict()
    assert all(torch.equal(one[name], many[name]) for name in one)
    (folder / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of 2 shards \(b.safetensors\)"):
        load(folder)


def test_confidence_head_is_built_when_its_keys_are_there(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    for name in [name for name in stored if name.startswith("point_decoder.")]:
        stored[name.replace("point_", "conf_", 1)] = stored[name].clone()
    stored["conf_head.proj.weight"] = stored["point_head.proj.weight"][:196].clone()
    stored["conf_head.proj.bias"] = stored["point_head.proj.bias"][:196].clone()
    save_file(stored, folder / "model.safetensors")
    assert load(folder).confidence
    del stored["conf_head.proj.bias"]
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing \(conf_head.proj.bias\)"):
        load(folder)


def test_the_global_points_head_may_be_absent_but_not_in_part(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    head = [name for name in stored if name.startswith("global_point")]
    without = {name: value for name, value in stored.items() if name not in head}
    save_file(without, folder / "model.safetensors")
    assert set(load(folder).state_dict()) == set(without) - set(UNUSED)
    assert describe(folder)[1]
    save_file({**without, head[0]: stored[head[0]]}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{len(head) - 1} missing \(global_point"):
        load(folder)


def test_missing_left_over_and_misshapen_keys_are_named(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    del stored["dino2llm.bias"]
    stored["point_head.extra"] = torch.zeros(1)
    stored["camera_head.fc_t.bias"] = torch.zeros(4)
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        load(folder)
    for part in (
        "1 missing (dino2llm.bias)",
        "1 left over (point_head.extra)",
        "1 of another shape (camera_head.fc_t.bias is [4], not [3])",
    ):
        assert part in str(error.value)


def test_weights_of_another_model_are_called_so(folder: Path) -> None:
    save_file({"model.layers.0.weight": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="not the weights of a G2VLM model"):
        load(folder)


@pytest.mark.parametrize("keep", [4, 200, 5_000_000])
def test_truncated_file_is_refused(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"download it again"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [("pytorch_model.bin", "only pickle weights"), ("notes.txt", "complete download")],
)
def test_folder_without_safetensors_is_refused(folder: Path, name: str, message: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_integer_weights_are_refused(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    stored["dino2llm.bias"] = stored["dino2llm.bias"].to(torch.int8)
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="dtype I8"):
        load(folder)


def test_check_command_reports_without_loading(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--check", str(folder)]) == 0
    assert "4.71 M in 411 tensors" in capsys.readouterr().out
    (folder / "tokenizer.json").unlink()
    lines, fits = describe(folder)
    assert not fits and "tokenizer.json is missing" in lines[-1]
    assert main(["--check", str(folder / "nowhere")]) == 1
    assert "error:" in capsys.readouterr().out


MEASURE = """
import sys, torch
from g2vlm_ros.model.weights import load
def resident(field):
    status = open("/proc/self/status").read().split(field + ":")[1]
    return int(status.split()[0]) * 1024
load(sys.argv[1])
open("/proc/self/clear_refs", "w").write("5")
before = resident("VmRSS")
network = load(sys.argv[2], dtype=getattr(torch, sys.argv[3]))
total = sum(p.sum(dtype=torch.float64).item() for p in network.parameters())
weights = sum(p.numel() * p.element_size() for p in network.parameters())
arenas = 8 << 20  # what allocator and interpreter hold, whatever is loaded
print((resident("VmHWM") - before - arenas) / weights)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_is_one_copy_of_the_weights(tmp_path: Path, dtype: str) -> None:
    for path in GOLDEN.glob("*_config.json"):
        shutil.copy(path, tmp_path)
    text = json.loads((GOLDEN / "text_config.json").read_text())
    text |= {"hidden_size": 256, "num_hidden_layers": 12, "intermediate_size": 3072}
    text |= {"rope_scaling": {"mrope_section": [8, 12, 12]}}
    vit = json.loads((GOLDEN / "vit_config.json").read_text()) | {"hidden_size": 256}
    (tmp_path / "text_config.json").write_text(json.dumps(text))
    (tmp_path / "vit_config.json").write_text(json.dumps(vit))
    network = empty_network(ModelConfig.read(tmp_path), [])
    state = {name: torch.ones(p.shape) for name, p in network.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    command = [sys.executable, "-c", MEASURE, str(GOLDEN), str(tmp_path), dtype]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(result.stdout) < 1.1
