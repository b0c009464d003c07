# SPDX-License-Identifier: Apache-2.0
"""The geometric heads: rotations, pixel order, confidence."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from g2vlm_ros.checkpoint.config import ModelConfig
from g2vlm_ros.model.heads import PixelHead, local_points, nearest_rotation, poses
from g2vlm_ros.model.network import G2VLM

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "A"
UNIT = load_file(GOLDEN / "unit.safetensors")


def by_svd(rotation9: torch.Tensor) -> torch.Tensor:
    m = torch.nn.functional.normalize(rotation9.double().unflatten(-1, (3, 3)), dim=-1)
    u, _, vt = torch.linalg.svd(m)
    u = u * torch.cat((torch.ones(len(m), 2), torch.det(u @ vt)[:, None]), -1)[:, None]
    return u @ vt


def test_rotation_agrees_with_the_reference() -> None:
    actual = nearest_rotation(UNIT["svd.rot9"])
    torch.testing.assert_close(actual, UNIT["svd.R"], atol=1e-4, rtol=1e-4)


def test_rotation_agrees_with_float64_svd_also_for_reflections_and_half_turns() -> None:
    torch.manual_seed(0)
    raw = torch.randn(4000, 9)
    half_turns = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]]).diag_embed().flatten(1)
    raw = torch.cat((raw, half_turns, -half_turns + 0.3 * torch.randn(3, 9)))
    m = torch.nn.functional.normalize(raw.double().unflatten(-1, (3, 3)), dim=-1)
    s = torch.linalg.svdvals(m)
    gap = s[:, 1] + torch.det(m).sign() * s[:, 2]
    error = (nearest_rotation(raw) - by_svd(raw)).abs().amax((1, 2))
    assert (torch.det(m) < 0).sum() > 1000
    assert error[gap > 0.1].max() < 1e-5
    assert error[gap > 0.01].max() < 5e-5


def test_rotation_is_proper_whatever_comes_in() -> None:
    vector = torch.tensor([1.0, -2.0, 0.5])
    raw = torch.stack(
        (
            torch.zeros(9),
            torch.ones(9),
            -torch.eye(3).flatten(),
            vector.repeat(3),
            1e20 * torch.ones(9),
        )
    )
    r = nearest_rotation(raw)
    torch.testing.assert_close(r @ r.mT, torch.eye(3).expand(5, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.det(r), torch.ones(5), atol=1e-5, rtol=0)


def test_poses_are_rigid_transforms() -> None:
    torch.manual_seed(1)
    translation = torch.randn(4, 3)
    transform = poses(translation, torch.randn(4, 9))
    assert torch.equal(transform[:, :3, 3], translation)
    assert torch.equal(transform[:, 3], torch.tensor([0.0, 0, 0, 1]).expand(4, 4))


def test_points_lie_on_their_rays_in_front_of_the_camera() -> None:
    raw = torch.tensor([[0.5, -0.25, 1.0], [0.5, -0.25, -20.0]])
    points = local_points(raw)
    assert (points[:, 2] > 0).all()
    torch.testing.assert_close(points[:, :2] / points[:, 2:], raw[:, :2])


def test_pixels_of_a_patch_stay_in_their_patch() -> None:
    head = PixelHead(1, channels=3).requires_grad_(False)
    head.proj.weight.zero_()
    head.proj.bias.copy_(torch.arange(588.0))
    image = head(torch.zeros(2, 6, 1), (2, 3))
    assert image.shape == (2, 28, 42, 3)
    # channel c, row r, column k of every patch is output c * 196 + r * 14 + k
    assert image[1, 14 + 5, 28 + 9].tolist() == [5 * 14 + 9, 196 + 5 * 14 + 9, 392 + 5 * 14 + 9]


def test_confidence_head_gives_a_probability_per_pixel() -> None:
    torch.manual_seed(2)
    network = G2VLM(ModelConfig.read(GOLDEN), confidence=True).requires_grad_(False)
    geometry = network.heads(torch.randn(2, 6, 64), (2, 3))
    assert geometry.confidence.shape == (2, 28, 42)
    assert 0 < geometry.confidence.min() < geometry.confidence.max() < 1
    assert geometry.global_points is None
