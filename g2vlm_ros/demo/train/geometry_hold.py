# SPDX-License-Identifier: Apache-2.0
"""Language training under which the geometry stays: weights move where the geometry does not look.

The views read keys and values that the semantic expert makes of their prompt and of the tokens at
their borders. A matrix W of that expert gives them the same after W + D wherever D x = 0 for all
the states x that it gets on the way to the geometry. Those states fill few directions, so D is
confined to the others: the null space of their covariance (S. Wang et al., arXiv 2103.07113).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from g2vlm_ros.demo.train.attention import PlainAttention
from g2vlm_ros.demo.train.batched_model import BatchedModel, stage_of

ENERGY = 2e-3
"""Share of the states' energy that may lie in the free directions together. Of the demo checkpoint
134 to 173 of 192 are free in the first layer then, and 840 steps moved depth by 0.002 % at most on
the mean of a window."""


@dataclass(frozen=True)
class _Held:
    """A parameter that the geometry reads, as it was when the hold began."""

    parameter: nn.Parameter
    start: Tensor
    free: Tensor
    """Orthonormal columns (inputs, K) that changes of a matrix keep to; of a table bool (rows, 1),
    true where a row may move; of all else false."""

    def project(self, change: Tensor) -> Tensor:
        """The part of a change that the geometry does not notice."""
        if self.free.dtype == torch.bool:
            return change * self.free
        return change @ self.free @ self.free.T


class GeometryHold:
    """Confines what a language step does, so that points and poses come out as before."""

    def __init__(self, trainee: BatchedModel, windows: Iterable[Tensor], energy: float = ENERGY):
        """windows: images uint8 (B, N, H, W, 3) to learn from what the geometry reads."""
        language = trainee.network.language_model
        linears = {
            f"{name}.weight": module
            for name, module in language.named_modules()
            if isinstance(module, nn.Linear)
        }
        gradients, covariances = _geometry_reads(trainee, linears, windows)
        self._held = []
        for name, parameter in language.named_parameters():
            if name not in gradients:
                continue
            if name in covariances:
                free = free_directions(covariances[name], energy).to(parameter.dtype)
            elif "embed_tokens" in name:
                free = (gradients[name] == 0).all(1, keepdim=True)
            else:
                free = torch.zeros((), dtype=torch.bool, device=parameter.device)
            self._held.append(_Held(parameter, parameter.detach().clone(), free))

    @torch.no_grad()
    def project_gradients(self) -> None:
        """To be called before the optimiser steps, which scales what is left of the gradients."""
        for held in self._held:
            if held.parameter.grad is not None:
                held.parameter.grad.copy_(held.project(held.parameter.grad))

    @torch.no_grad()
    def project_weights(self) -> None:
        """To be called after the optimiser has stepped: momenta and weight decay stray as well."""
        for held in self._held:
            change = held.parameter - held.start
            held.parameter.copy_(held.start + held.project(change))


def free_directions(covariance: Tensor, energy: float) -> Tensor:
    """Orthonormal columns (C, K) for as many directions of least energy as have `energy` of all.

    covariance: (C, C), the sum of x x^T over the states x.
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    share = values.clamp(min=0).cumsum(0) / values.clamp(min=0).sum()
    return vectors[:, share < energy].float()


def _geometry_reads(
    trainee: BatchedModel, linears: dict[str, nn.Linear], windows: Iterable[Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """How much the geometry reads of the language, as points and as a dialogue are prompted.

    Sums of absolute gradients by parameter, of those that are read; and covariances of what those
    of `linears` get on the way.
    """
    language = {
        name: parameter
        for name, parameter in trainee.network.language_model.named_parameters()
        if stage_of(f"language_model.{name}") == "language"
    }
    needed = {name: parameter.requires_grad for name, parameter in language.items()}
    gradients: dict[str, Tensor] = {}
    covariances: dict[str, Tensor] = {}
    hooks = [
        linears[name].register_forward_pre_hook(_collector(name, covariances))
        for name in language.keys() & linears.keys()
    ]
    try:
        for parameter in language.values():
            parameter.requires_grad_(True)
        for images in windows:
            with PlainAttention(), torch.enable_grad():
                # Not the squares: the final norm leaves their sum as it is.
                total = sum(trainee.patches(prompt, images).sum() for prompt in trainee.prefixes)
            parts = torch.autograd.grad(total, list(language.values()), allow_unused=True)
            for name, gradient in zip(language, parts, strict=True):
                if gradient is not None and bool(gradient.any()):
                    gradients[name] = gradients.get(name, 0) + gradient.abs()
    finally:
        for hook in hooks:
            hook.remove()
        for name, parameter in language.items():
            parameter.requires_grad_(needed[name])
    return gradients, {name: covariances[name] for name in gradients if name in covariances}


def _collector(name: str, covariances: dict[str, Tensor]) -> Callable:
    """A hook that adds up the covariance of what a linear layer gets."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].detach().flatten(0, -2).double()
        covariances[name] = covariances.get(name, 0) + rows.T @ rows

    return hook
