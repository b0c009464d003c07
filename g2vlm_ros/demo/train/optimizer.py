# SPDX-License-Identifier: Apache-2.0
"""Muon for matrices, AdamW for the rest: one optimiser whose state is a flat dict of tensors.

Muon (K. Jordan, 2024) replaces the momentum of a matrix by its nearest semi-orthogonal matrix, so
all directions of a layer learn at the same speed. Newton-Schulz iterations find it without an SVD;
matrices of one shape are done together. All parameters that a stage trains lie in one buffer and
their gradients in another, so a step is a few operations, and none of them waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from g2vlm_ros.demo.train.batched_model import stage_of, stages_trained

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
_ALIGN = 64
"""Parameters begin at multiples of so many floats, as a GPU reads them."""
_MUON_DECAY, _ADAM_DECAYS, _ADAM_EPS = 0.95, (0.9, 0.99), 1e-8


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


@dataclass(frozen=True)
class _Matrices:
    """Matrices of one shape: their weights, gradients and momenta, (K, m, n) each."""

    weights: Tensor
    gradients: Tensor
    momenta: Tensor
    factor: float


class _Part:
    """The parameters of one stage (`stage_of`) in one buffer, the matrices last."""

    def __init__(self, named: list[tuple[str, nn.Parameter]], semantic_factor: float):
        self.state: dict[str, Tensor] = {}
        device = named[0][1].device
        grouped: dict[tuple[int, ...], list[tuple[str, nn.Parameter]]] = {}
        others = []
        for name, parameter in named:
            if parameter.ndim == 2 and not any(part in name for part in _NO_MUON):
                grouped.setdefault(tuple(parameter.shape), []).append((name, parameter))
            else:
                others.append((name, parameter))
        self._named = others + [pair for group in grouped.values() for pair in group]
        sizes = [self._room(parameter) for _, parameter in others]
        self._adam = sum(sizes)
        total = self._adam + sum(len(g) * m * n for (m, n), g in grouped.items())
        self.weights, self.gradients = torch.zeros(2, total, device=device)
        self._first, self._second = torch.zeros(2, self._adam, device=device)
        self._factor = torch.full((self._adam,), semantic_factor, device=device)
        at = 0
        for (name, parameter), size in zip(others, sizes, strict=True):
            place = slice(at, at + parameter.numel())
            self._move(parameter, place)
            for kind, values in (("first", self._first), ("second", self._second)):
                self.state[f"{kind}.{name}"] = values[place].view(parameter.shape)
            if stage_of(name) == "geometry":
                gentle = any(part in name for part in _GENTLE)
                self._factor[place] = _GENTLE_FACTOR if gentle else 1.0
            at += size
        self._groups = []
        for shape, group in grouped.items():
            geometry = stage_of(group[0][0]) == "geometry"
            self._groups.append(
                self._stacked(at, shape, group, 1.0 if geometry else semantic_factor)
            )
            at += len(group) * shape[0] * shape[1]

    @staticmethod
    def _room(parameter: nn.Parameter) -> int:
        return -(-parameter.numel() // _ALIGN) * _ALIGN

    def _move(self, parameter: nn.Parameter, place: slice) -> None:
        self.weights[place] = parameter.detach().flatten()
        parameter.data = self.weights[place].view(parameter.shape)

    def _stacked(
        self, at: int, shape: tuple[int, ...], group: list[tuple[str, nn.Parameter]], factor: float
    ) -> _Matrices:
        block = slice(at, at + len(group) * shape[0] * shape[1])
        for _, parameter in group:
            self._move(parameter, slice(at, at + parameter.numel()))
            at += parameter.numel()
        stack = (len(group), *shape)
        momenta = torch.zeros(stack, device=self.weights.device)
        for (name, _), momentum in zip(group, momenta, strict=True):
            self.state[f"momentum.{name}"] = momentum
        weights, gradients = (part[block].view(stack) for part in (self.weights, self.gradients))
        return _Matrices(weights, gradients, momenta, factor)

    def gather(self) -> None:
        """Gradients that came elsewhere are taken into the buffer, where the next ones come."""
        first = self.weights.data_ptr()
        for _, parameter in self._named:
            at = (parameter.data_ptr() - first) // self.weights.element_size()
            gradient = self.gradients[at : at + parameter.numel()].view(parameter.shape)
            if parameter.grad is None:
                parameter.grad = gradient
            elif parameter.grad.data_ptr() != gradient.data_ptr():
                gradient.copy_(parameter.grad)
                parameter.grad = gradient

    def step(
        self, muon_rate: Tensor, adam_rate: Tensor, decay: float, good: Tensor, count: Tensor
    ) -> None:
        """One update; rates are 0 where the step is not `good` (0 or 1), and nothing moves."""
        self._step_adam(adam_rate, decay, good, count)
        for group in self._groups:
            group.momenta.lerp_(group.gradients, (1 - _MUON_DECAY) * good)
            ahead = group.gradients.lerp(group.momenta, _MUON_DECAY)
            # A GPU is faster with all at once, a CPU with one after the other.
            together = ahead.is_cuda
            change = orthogonal(ahead) if together else torch.stack([*map(orthogonal, ahead)])
            # Updates of all shapes get the root mean square that AdamW's have.
            grow = 0.2 * max(ahead.shape[1:]) ** 0.5
            rate = muon_rate * group.factor
            group.weights.mul_(1.0 - rate * decay).sub_(change * (rate * grow))

    def _step_adam(self, rate: Tensor, decay: float, good: Tensor, count: Tensor) -> None:
        gradient, weights = self.gradients[: self._adam], self.weights[: self._adam]
        slow, slower = _ADAM_DECAYS
        self._first.lerp_(gradient, (1 - slow) * good)
        self._second.mul_(1 - (1 - slower) * good)
        self._second.addcmul_(gradient, gradient, value=1 - slower)
        # Before the first good step the moments are zero, and so is what divides them.
        bias, second_bias = (
            (1.0 - beta**count).clamp(min=1 - beta).float() for beta in (slow, slower)
        )
        size = (self._second / second_bias).sqrt_().add_(_ADAM_EPS)
        weights.mul_(1.0 - rate * decay)
        weights.sub_((self._first / size).mul_(self._factor).mul_(rate / bias))


class Optimizer:
    """Steps the parameters of a module that a stage trains; rates are given at each step.

    The module's parameters move into buffers of the optimiser: it must be on its device already.
    """

    def __init__(self, module: nn.Module, weight_decay: float, semantic_factor: float = 1.0):
        """semantic_factor: on both rates for the semantic expert, its encoder and its words."""
        self._decay = weight_decay
        named: dict[str, list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in module.named_parameters():
            named.setdefault(stage_of(name), []).append((name, parameter))
        self._parts = {stage: _Part(some, semantic_factor) for stage, some in named.items()}
        self.state = {name: part for p in self._parts.values() for name, part in p.state.items()}
        device = next(iter(self._parts.values())).weights.device
        self._count = torch.zeros((), dtype=torch.float64, device=device)
        self._skipped = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def count(self) -> int:
        """Updates so far; reading it waits for the device, as reading `skipped` does."""
        return int(self._count)

    @count.setter
    def count(self, value: int) -> None:
        self._count.fill_(value)

    @property
    def skipped(self) -> int:
        """Steps that were left out, since their loss or gradient was not finite."""
        return int(self._skipped)

    @torch.no_grad()
    def step(
        self, stage: str, loss: Tensor, muon_rate: float, adam_rate: float, clip: float
    ) -> None:
        """One update of what the stage trains from the gradients, which are cleared.

        Gradients longer than `clip` together are shortened. Where they or the loss are not finite
        nothing changes but `skipped`.
        """
        parts = [self._parts[name] for name in stages_trained(stage)]
        for part in parts:
            part.gather()
        norms = [torch.linalg.vector_norm(part.gradients) for part in parts]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        fine = torch.isfinite(norm) & torch.isfinite(loss)
        good = fine.float()
        self._count += good
        self._skipped += 1 - good
        share = torch.where(fine, (clip / (norm + 1e-6)).clamp(max=1.0), 0.0)
        for part in parts:
            part.gradients.nan_to_num_(0.0, 0.0, 0.0).mul_(share)
            part.step(muon_rate * good, adam_rate * good, self._decay, good, self._count)
        for part in self._parts.values():
            part.gradients.zero_()
