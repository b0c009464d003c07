# SPDX-License-Identifier: Apache-2.0
"""Configuration files: what they give and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from g2vlm_ros.checkpoint.config import ConfigError, ModelConfig

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "A"
FILES = ("text", "vit", "dino")


def values() -> dict[str, dict]:
    return {name: json.loads((GOLDEN / f"{name}_config.json").read_text()) for name in FILES}


def config(changes: dict[str, dict]) -> ModelConfig:
    changed = values()
    for file, keys in changes.items():
        for key, value in keys.items():
            changed[file].pop(key) if value is None else changed[file].update({key: value})
    return ModelConfig.from_dicts(*(changed[name] for name in FILES))


def test_reads_the_sizes() -> None:
    read = ModelConfig.read(GOLDEN)
    assert read == config({})
    assert (read.text.head_dim, read.text.kv_heads, read.text.mrope_section) == (16, 2, (2, 3, 3))
    assert (read.dino.table_side, read.dino.registers) == (37, 4)
    assert (read.decoder.blocks, read.decoder.point_channels) == (5, 1024)


def test_windows_are_released_unless_the_file_says_aligned() -> None:
    assert config({}).dino.windows == "released"
    assert config({"dino": {"attention_windows": "aligned"}}).dino.windows == "aligned"
    with pytest.raises(ConfigError, match="'sideways'"):
        config({"dino": {"attention_windows": "sideways"}})


def test_keys_that_hugging_face_leaves_out_have_its_defaults() -> None:
    read = config({"dino": {"num_register_tokens": None, "layer_norm_eps": None}})
    assert (read.dino.registers, read.dino.eps) == (4, 1e-6)


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("text", "hidden_size", None, "no key hidden_size"),
        ("text", "hidden_size", "64", "integer above 0"),
        ("text", "num_hidden_layers", 0, "integer above 0"),
        ("text", "num_key_value_heads", 3, "multiple"),
        ("text", "model_type", "llama", "only 'qwen2_vl'"),
        ("text", "rope_scaling", {"mrope_section": [2, 2, 2]}, "half the head size, 8"),
        ("text", "rope_scaling", None, "half the head size, 8"),
        ("vit", "hidden_size", 32, "only 64"),
        ("dino", "use_swiglu_ffn", True, "only False"),
        ("dino", "patch_size", 16, "only 14"),
        ("text", "num_hidden_layers", 10**9, "at most 1000"),
        ("text", "vocab_size", 10**30, "at most 1000000"),
        ("text", "rope_scaling", "mrope", "rope_scaling is 'mrope'; it must be an object"),
        ("text", "rope_theta", float("nan"), "number above 0"),
        ("text", "language_trained", "false", "'false'; it must be true or false"),
        ("vit", "mlp_ratio", float("inf"), "at most 1e\\+09"),
        ("vit", "mlp_ratio", 1e-9, "mlp_ratio"),
    ],
)
def test_what_we_do_not_build_is_refused(file: str, key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config({file: {key: value}})


def test_decoder_sizes_can_differ_from_the_released_ones() -> None:
    dicts = [values()[name] for name in FILES]
    small = ModelConfig.from_dicts(*dicts, {"blocks": 2, "heads": 4}).decoder
    assert (small.blocks, small.heads, small.camera_channels) == (2, 4, 512)
    with pytest.raises(ConfigError, match="the decoders: width 64 over 3 heads"):
        ModelConfig.from_dicts(*dicts, {"heads": 3})


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="text_config.json is missing"):
        ModelConfig.read(tmp_path)
    (tmp_path / "text_config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        ModelConfig.read(tmp_path)
    with pytest.raises(ConfigError, match="not a folder"):
        ModelConfig.read(tmp_path / "nowhere")
