# SPDX-License-Identifier: Apache-2.0
"""Averages of two checkpoints: the weights between, and nothing that would not load."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from g2vlm_ros.demo.train.average import CONFIG_FILES, INPUT_SIZES, main, mean_weights
from g2vlm_ros.demo.train.export_checkpoint import TOKENIZER_FILES, WEIGHTS


def checkpoint(folder, value):
    folder.mkdir()
    for name in (*CONFIG_FILES, *TOKENIZER_FILES, INPUT_SIZES):
        (folder / name).write_text(f"the {name} of both")
    weights = {"a": torch.full((2, 3), value), "b": torch.tensor([value, -value])}
    save_file({name: weight.half() for name, weight in weights.items()}, folder / WEIGHTS)
    return folder


def test_an_average_lies_between_and_is_a_whole_checkpoint(tmp_path):
    first, second = checkpoint(tmp_path / "first", 1.0), checkpoint(tmp_path / "second", 3.0)
    main([str(first), str(second), "--share", "0.25", "--out", str(tmp_path / "mean")])
    weights = load_file(tmp_path / "mean" / WEIGHTS)
    assert weights["a"].dtype == torch.float16 and weights["a"].tolist() == [[1.5] * 3] * 2
    assert weights["b"].tolist() == [1.5, -1.5]
    names = {path.name for path in (tmp_path / "mean").iterdir()}
    assert names == {path.name for path in first.iterdir()}


def test_an_average_may_take_the_place_of_the_first(tmp_path):
    first, second = checkpoint(tmp_path / "first", 1.0), checkpoint(tmp_path / "second", 3.0)
    main([str(first), str(second), "--out", str(first)])
    assert load_file(first / WEIGHTS)["b"].tolist() == [2.0, -2.0]


def test_what_is_of_another_architecture_is_refused(tmp_path, capsys):
    one = {"a": torch.zeros(2), "b": torch.zeros(3)}
    for other in ({"a": torch.zeros(2)}, {"a": torch.zeros(2), "b": torch.zeros(1)}):
        with pytest.raises(ValueError, match="b is not of one shape"):
            mean_weights(one, other, 0.5)
    with pytest.raises(ValueError, match="share is 1.5"):
        mean_weights(one, one, 1.5)
    first, second = checkpoint(tmp_path / "first", 1.0), checkpoint(tmp_path / "second", 3.0)
    (second / "vocab.json").write_text("other words")
    with pytest.raises(SystemExit):
        main([str(first), str(second), "--out", str(tmp_path / "mean")])
    assert "vocab.json differs" in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()
