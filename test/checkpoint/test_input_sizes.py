# SPDX-License-Identifier: Apache-2.0
"""A checkpoint says which image sizes it was trained on; settings that leave them open follow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from g2vlm_ros.checkpoint.config import ConfigError
from g2vlm_ros.checkpoint.input_sizes import FILE, InputSizes
from g2vlm_ros.perception import untrained_sizes, with_input_sizes
from g2vlm_ros.settings import Settings

DEMO = Path(__file__).parents[2] / "engines" / "demo"


def settings(folder, width_px=0, semantic_px=0):
    return Settings.from_flat(
        {
            "model.checkpoint": str(folder),
            "model.image_width_px": width_px,
            "query.semantic_width_px": semantic_px,
        }
    )


def sizes(resolved):
    return resolved.model.image_width_px, resolved.query.semantic_width_px


def test_what_is_written_is_read(tmp_path):
    InputSizes(224, 168).write(tmp_path)
    assert InputSizes.read(tmp_path) == InputSizes(224, 168)


def test_open_sizes_become_the_checkpoints_and_set_ones_stay(tmp_path):
    InputSizes(224, 168).write(tmp_path)
    assert sizes(with_input_sizes(settings(tmp_path))) == (224, 168)
    assert sizes(with_input_sizes(settings(tmp_path, 112))) == (112, 168)
    assert sizes(with_input_sizes(settings(tmp_path, 0, 252))) == (224, 252)


def test_without_a_file_they_are_those_of_the_released_weights(tmp_path):
    assert sizes(with_input_sizes(settings(tmp_path))) == (518, 768)
    assert sizes(with_input_sizes(settings(""))) == (518, 768)
    assert untrained_sizes(settings(tmp_path, 252)) == ()


def test_untrained_sizes_are_named_with_the_remedy(tmp_path):
    InputSizes(224, 168).write(tmp_path)
    assert untrained_sizes(settings(tmp_path)) == ()
    assert untrained_sizes(settings(tmp_path, 224, 168)) == ()
    (sentence,) = untrained_sizes(settings(tmp_path, 112))
    assert "image_width_px is 112" in sentence and "trained at 224" in sentence
    assert "set it to 0" in sentence


def test_the_demo_checkpoint_says_its_sizes():
    assert InputSizes.read(DEMO) is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "must be a JSON object of image_width_px, semantic_width_px"),
        (json.dumps({"image_width_px": 224}), "must be a JSON object"),
        (json.dumps({"image_width_px": 225, "semantic_width_px": 168}), "multiple of 14"),
        (json.dumps({"image_width_px": "224", "semantic_width_px": 168}), "whole number"),
        (json.dumps({"image_width_px": 224, "semantic_width_px": 14}), "from 28 to 2072"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, message):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ConfigError, match=message):
        InputSizes.read(tmp_path)
