# SPDX-License-Identifier: Apache-2.0
"""Muon for matrices, AdamW for the rest: one optimiser whose state is a flat dict of tensors.

Muon (K. Jordan, 2024) replaces the momentum of a matrix by its nearest semi-orthogonal matrix, so
all directions of a layer learn at the same speed. Newton-Schulz iterations find it without an SVD;
matrices of one shape are done together.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from g2vlm_ros.demo.train.batched_model import stage_of

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic a x + b x^3 + c x^5 that drives singular values towards 1."""
_NO_MUON = (
    "embed_tokens",
    "lm_head",
    "point_head",
    "camera_head",
    "patch_embed",
    "embeddings",
    "place.",
    "names.",
    "where.",
    "what.",
    "camera_decoder.linear_out",
)
"""Tables, first and last layers, which have no business being orthogonal."""

_GENTLE, _GENTLE_FACTOR = ("camera_head", "camera_decoder.linear_out"), 0.5
"""Parts with a lower rate of AdamW: at the full one the units of the ReLU layers die."""


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """(..., m, n) to about semi-orthogonal, on a GPU computed in bfloat16."""
    a, b, c = _NEWTON_SCHULZ
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    flip = x.shape[-2] > x.shape[-1]
    x = x.transpose(-1, -2) if flip else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(-1, -2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.transpose(-1, -2) if flip else x).to(matrices.dtype)


class Optimizer:
    """Steps all parameters of a module; learning rates are given at each step."""

    def __init__(self, module: nn.Module, weight_decay: float, semantic_factor: float = 1.0):
        """semantic_factor: on both rates for the semantic expert, its encoder and its words."""
        self.decay, self.semantic_factor = weight_decay, semantic_factor
        self.count = 0
        self._matrices: dict[tuple[int, ...], list[tuple[str, nn.Parameter]]] = {}
        self._others: list[tuple[str, nn.Parameter]] = []
        for name, parameter in module.named_parameters():
            if parameter.ndim == 2 and not any(part in name for part in _NO_MUON):
                self._matrices.setdefault(tuple(parameter.shape), []).append((name, parameter))
            else:
                self._others.append((name, parameter))
        self.state: dict[str, Tensor] = {}
        for group in self._matrices.values():
            self.state |= {f"momentum.{name}": torch.zeros_like(p) for name, p in group}
        for name, p in self._others:
            self.state |= {
                f"first.{name}": torch.zeros_like(p),
                f"second.{name}": torch.zeros_like(p),
            }

    def _rate_factor(self, name: str) -> float:
        if stage_of(name) != "geometry":
            return self.semantic_factor
        return _GENTLE_FACTOR if any(part in name for part in _GENTLE) else 1.0

    @torch.no_grad()
    def step(self, muon_rate: float, adam_rate: float) -> None:
        """One update from the gradients, which are cleared; parameters without one stay."""
        self.count += 1
        for group in self._matrices.values():
            self._muon([(n, p) for n, p in group if p.grad is not None], muon_rate)
        self._adam([(n, p) for n, p in self._others if p.grad is not None], adam_rate)
        for group in (*self._matrices.values(), self._others):
            for _, parameter in group:
                parameter.grad = None

    def _muon(self, group: list[tuple[str, nn.Parameter]], rate: float) -> None:
        if not group:
            return
        momenta = [self.state[f"momentum.{name}"] for name, _ in group]
        gradients = [p.grad for _, p in group]
        torch._foreach_lerp_(momenta, gradients, 0.05)
        ahead = [g.lerp(m, 0.95) for g, m in zip(gradients, momenta, strict=True)]
        # A GPU is faster with all at once, a CPU with one after the other.
        update = orthogonal(torch.stack(ahead)) if ahead[0].is_cuda else map(orthogonal, ahead)
        # Updates of all shapes get the root mean square that AdamW's have.
        grow = 0.2 * max(ahead[0].shape) ** 0.5
        for (name, parameter), change in zip(group, update, strict=True):
            own = rate * self._rate_factor(name)
            parameter.mul_(1.0 - own * self.decay).add_(change, alpha=-own * grow)

    def _adam(self, group: list[tuple[str, nn.Parameter]], rate: float) -> None:
        if not group:
            return
        parameters, gradients = [p for _, p in group], [p.grad for _, p in group]
        first = [self.state[f"first.{name}"] for name, _ in group]
        second = [self.state[f"second.{name}"] for name, _ in group]
        torch._foreach_lerp_(first, gradients, 0.1)
        torch._foreach_mul_(second, 0.99)
        torch._foreach_addcmul_(second, gradients, gradients, 0.01)
        size = torch._foreach_sqrt(torch._foreach_div(second, 1.0 - 0.99**self.count))
        torch._foreach_add_(size, 1e-8)
        step = torch._foreach_div(first, size)
        torch._foreach_mul_(step, [self._rate_factor(name) for name, _ in group])
        torch._foreach_mul_(parameters, 1.0 - rate * self.decay)
        torch._foreach_add_(parameters, step, alpha=-rate / (1.0 - 0.9**self.count))
