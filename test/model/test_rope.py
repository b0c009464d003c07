# SPDX-License-Identifier: Apache-2.0
"""Rotary positions against reference values at the head sizes of the released model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from g2vlm_ros.model.rope import (
    decoder_angles,
    rotate,
    rotate_decoder,
    trunk_angles,
    vision_angles,
)

UNIT = load_file(Path(__file__).parents[1] / "data" / "golden" / "A" / "unit.safetensors")
CPU = torch.device("cpu")


def close(actual: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(actual, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("head_dim", [8, 96])
def test_decoder_rotation(head_dim: int) -> None:
    angles = decoder_angles((5, 7), head_dim, CPU)
    close(rotate_decoder(UNIT[f"rope2d_{head_dim}.in"], angles), UNIT[f"rope2d_{head_dim}.out"])


def test_trunk_rotation() -> None:
    angles = trunk_angles(UNIT["mrope_128.position_ids"], (16, 24, 24), 1e6)
    close(rotate(UNIT["mrope_128.q"], angles), UNIT["mrope_128.q_out"])
    close(rotate(UNIT["mrope_128.k"], angles), UNIT["mrope_128.k_out"])


def test_vision_rotation() -> None:
    angles = vision_angles((6, 8), 80, merge=2, device=CPU)
    close(angles, UNIT["vit_rope_80.angles"])
    for name in ("q", "k"):
        actual = rotate(UNIT[f"vit_rope_80.{name}"].transpose(0, 1), angles).transpose(0, 1)
        close(actual, UNIT[f"vit_rope_80.{name}_out"])


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 32, dtype=torch.float64)
    steps = torch.arange(40).expand(3, -1)
    angles = trunk_angles(steps, (4, 6, 6), 100.0).double()
    turned_q, turned_k = rotate(q.expand(40, -1), angles), rotate(k.expand(40, -1), angles)
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm().expand(40))
    products = turned_q @ turned_k.T
    torch.testing.assert_close(products[5, 3], products[37, 35], atol=1e-4, rtol=1e-4)
    assert abs(products[5, 3] - products[5, 4]) > 1e-3


def test_each_axis_moves_its_own_section() -> None:
    base = trunk_angles(torch.zeros(3, 1, dtype=torch.int64), (2, 3, 3), 100.0)
    for axis, section in enumerate((slice(0, 2), slice(2, 5), slice(5, 8))):
        positions = torch.zeros(3, 1, dtype=torch.int64)
        positions[axis] = 7
        changed = (trunk_angles(positions, (2, 3, 3), 100.0) != base)[0]
        assert changed[section].all() and changed.sum() == section.stop - section.start


def test_half_precision_keeps_its_dtype_but_turns_in_float32() -> None:
    x = torch.randn(100, 32, dtype=torch.bfloat16)
    angles = trunk_angles(torch.arange(3000, 3100).expand(3, -1), (4, 6, 6), 1e4)
    turned = rotate(x, angles)
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned, rotate(x.float(), angles).bfloat16())
