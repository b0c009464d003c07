# SPDX-License-Identifier: Apache-2.0
"""What makes windows look different each time they are shown; nothing here waits for a device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from g2vlm_ros.demo.train.losses import GeometryTarget
from g2vlm_ros.model.layers import constant


def on_device(values: np.ndarray, device: str | torch.device) -> Tensor:
    """An array on a device. A GPU copies it from locked memory, so that the host goes on."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def mirrored(pixels: Tensor, target: GeometryTarget) -> tuple[Tensor, GeometryTarget]:
    """Left and right exchanged; poses follow."""
    sides = constant((-1.0, 1.0, 1.0, 1.0), torch.float32, pixels.device)
    poses = target.poses * sides[:, None] * sides
    depth, important = target.depth_m.flip(-1), target.important.flip(-1)
    return pixels.flip(-2), GeometryTarget(depth, important, poses)


def recoloured(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Each window's colour channels in a random order."""
    order = on_device(np.argsort(rng.random((len(pixels), 3)), axis=1), pixels.device)
    return pixels.gather(-1, order[:, None, None, None, :].expand_as(pixels))


def exposed(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Brightness and contrast of each window, and the noise of each pixel, vary a little."""
    count = len(pixels)
    levels = [
        rng.uniform(0.85, 1.15, count),
        rng.uniform(-10, 10, count),
        rng.uniform(0, 3, count),
    ]
    parts = on_device(np.stack(levels).astype(np.float32), pixels.device)
    gain, offset, sigma = parts[:, :, None, None, None, None]
    noise = torch.randn(pixels.shape, device=pixels.device)
    noisy = torch.addcmul(pixels.float() * gain + offset, noise, sigma)
    return noisy.round_().clamp_(0, 255).to(torch.uint8)
