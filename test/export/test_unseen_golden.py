# SPDX-License-Identifier: Apache-2.0
"""Parity on a set that nobody has seen: other sizes, names, images, strides and tolerances.

The set is in the format of the reference set and is made here by our own torch path on random
weights. So this shows that the command takes any such set and that ONNX Runtime agrees with torch
on it; agreement with the original code is what the reference set shows.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the set is made by torch")
pytest.importorskip("onnxruntime", reason="the set is checked with onnxruntime")
pytest.importorskip("onnxscript", reason="the export needs onnxscript")

from safetensors.numpy import save_file  # noqa: E402

from g2vlm_ros.checkpoint.config import ModelConfig  # noqa: E402
from g2vlm_ros.checkpoint.tokenizer import Tokenizer  # noqa: E402
from g2vlm_ros.export.parity import Run, main  # noqa: E402
from g2vlm_ros.inference.torch_backend import TorchBackend  # noqa: E402
from g2vlm_ros.model.weights import empty_network  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "A"
CONFIGS = {
    "text": {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "intermediate_size": 160,
        "vocab_size": 600,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
    },
    "vit": {"depth": 1, "embed_dim": 48, "num_heads": 2, "hidden_size": 128},
    "dino": {
        "hidden_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "image_size": 70,
        "patch_size": 14,
        "num_register_tokens": 1,
    },
    "decoder": {"blocks": 1, "heads": 4, "point_channels": 128, "camera_channels": 64},
}
IMAGES = {"wide": (130, 70), "tall": (60, 100), "grey": (90, 90)}
"""Width and height."""
CASES = [
    {
        "case": "five_views",
        "kind": "recon",
        "images": ["wide", "tall", "grey", "wide", "tall"],
        "target_width": 84,
    },
    {
        "case": "one_view",
        "kind": "recon",
        "images": ["tall"],
        "target_width": 56,
        "dino_windows": "aligned (repaired)",
    },
    {
        "case": "dialogue",
        "kind": "chat",
        "images": ["grey", "wide", "tall"],
        "target_width": 70,
        "vit_pixel": 60,
        "prompt": "\nWhere is the door?",
        "eos_token": 402,
        "max_length": 4,
    },
]
STRIDED = {"dino2llm.out": (1, 3), "s1_geo.hidden": (0, 2)}
"""Arrays of the first case that are stored thinned out: axis and stride."""


def names_of_stages(case: dict) -> list[dict]:
    kinds = ["text", "geo"]
    if case["kind"] == "chat":
        kinds += ["vit"] * len(case["images"]) + ["text"]
    return [{"stage": f"s{index}_{kind}"} for index, kind in enumerate(kinds)]


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unseen")
    for name, values in CONFIGS.items():
        (folder / f"{name}_config.json").write_text(json.dumps(values))
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        shutil.copy(GOLDEN / name, folder)
    write_weights(folder)
    rng = np.random.default_rng(3)
    (folder / "images").mkdir()
    for name, (width, height) in IMAGES.items():
        coarse = rng.integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        image.save(folder / "images" / f"{name}.png")
    cases = [{**case, "stages": names_of_stages(case)} for case in CASES]
    (folder / "cases.json").write_text(json.dumps(cases))
    meta = json.loads((GOLDEN / "meta.json").read_text())
    rules = {name: {"atol": 2e-4, "rtol": 2e-4} for name in ("intermediates", "stats")}
    meta["tolerances"] |= {
        **rules,
        "logits": {"atol": 3e-4, "rtol": 1e-4},
        "point_maps": {"rule": "||a - ref||_2 <= 2e-4 * (1 + ||ref||_2) per 3-vector"},
    }
    (folder / "meta.json").write_text(json.dumps({"tolerances": meta["tolerances"]}))
    for case in cases:
        save_file(golden(folder, case), folder / f"{case['case']}.safetensors")
    return folder


def write_weights(folder: Path) -> None:
    """Random ones in two shards, of a size at which activations neither fade nor grow."""
    network = empty_network(ModelConfig.read(folder), ["global_point_head"])
    rng, shards = np.random.default_rng(2), ({}, {})
    for index, (name, parameter) in enumerate(network.state_dict().items()):
        noise = rng.normal(size=parameter.shape)
        if parameter.ndim < 2:
            value = 0.1 * noise + (0.0 if name.endswith("bias") else 1.0)
        else:
            value = noise / np.sqrt(parameter[0].numel())
        if name.startswith("point_head"):
            value *= 0.3  # depth is the exponential of what it gives
        shards[index % 2][name] = value.astype(np.float16)
    for index, shard in enumerate(shards):
        save_file(shard, folder / f"model-{index + 1:05}-of-00002.safetensors")
    where = {
        name: f"model-{index + 1:05}-of-00002.safetensors"
        for index, shard in enumerate(shards)
        for name in shard
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def golden(folder: Path, case: dict) -> dict[str, np.ndarray]:
    windows = "aligned" if "dino_windows" in case else "released"
    stages = TorchBackend.open(folder, "cpu", "float32", windows)
    run = Run(stages, case, Tokenizer.open(folder), folder)
    run.recon() if case["kind"] == "recon" else run.chat(None)
    run.probe.close()
    arrays = {k: v for k, v in run.arrays.items() if not re.match(r"decode\d", k)}
    for name, (axis, stride) in STRIDED.items() if case["case"] == "five_views" else ():
        arrays[name] = arrays[name].take(range(0, arrays[name].shape[axis], stride), axis)
    return {name: np.ascontiguousarray(value) for name, value in arrays.items()}


def fractions(lines: Iterator[str]) -> dict[tuple[str, str], float]:
    rows = (line.split() for line in lines if len(line.split()) in (4, 5))
    return {(words[0], words[1]): float(words[2]) for words in rows if words[3] in ("ok", "MISS")}


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_every_array_of_an_unseen_set_is_within_tolerance(
    unseen: Path, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--golden", str(unseen), "--backend", backend]) == 0
    rows = fractions(iter(capsys.readouterr().out.splitlines()))
    assert {case for case, _ in rows} == {case["case"] for case in CASES}
    results = {"out.points", "out.local_points", "out.camera_poses", "out.global_points"}
    for case in ("five_views", "one_view"):
        assert results <= {array for name, array in rows if name == case}
    assert {("dialogue", "decode.next_ids"), *(("five_views", name) for name in STRIDED)} <= {
        *rows
    }
    assert max(rows.values()) < 1
