# SPDX-License-Identifier: Apache-2.0
"""A second process that computes gradients beside the training, on cores that are free.

The training publishes its weights after every step; the worker takes them, draws windows of its
own, and hands its gradients over, which the next step averages with its own; what it computes
before they are taken is added to those that come after. Neither waits for the other, so a
worker of low priority costs nothing on a busy machine. Two processes of one thread each also
do more than two threads: the network is small.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from g2vlm_ros.demo.train.config import STAGES, Config
from g2vlm_ros.demo.train.objectives import Objectives

_POLL_S = 0.01
_FULL, _STAGE, _STEP, _WINDOWS, _COUNT = range(5)
"""Places in the shared state: gradients are waiting, the training's stage, steps and windows, and
how many windows the waiting gradients are of."""


class Exchange:
    """What both processes share: flat weights, flat gradients, and counters."""

    def __init__(self, size: int):
        self.weights = torch.zeros(size).share_memory_()
        self.gradients = torch.zeros(size).share_memory_()
        self.state = torch.zeros(5, dtype=torch.int64).share_memory_()
        self.state[_STAGE] = -1

    def publish(self, parameters: list[nn.Parameter], stage: str, step: int, windows: int) -> None:
        """The weights of now, and where the training stands."""
        _flatten([parameter.detach() for parameter in parameters], self.weights)
        self.state[_STEP], self.state[_WINDOWS] = step, windows
        self.state[_STAGE] = STAGES.index(stage)

    def offer(self, gradients: list[Tensor], count: int) -> None:
        """Gradients of `count` windows, in the order of the parameters."""
        _flatten(gradients, self.gradients)
        self.state[_COUNT] = count
        self.state[_FULL] = 1

    def collect(self, parameters: list[nn.Parameter], count: int) -> int:
        """Averages waiting gradients into those of `count` windows; how many windows they are of.

        Parameters that neither side trained now are left alone.
        """
        if not self.state[_FULL]:
            return 0
        others = int(self.state[_COUNT])
        share = others / (count + others)
        theirs = self.gradients.split([parameter.numel() for parameter in parameters])
        for parameter, gradient in zip(parameters, theirs, strict=True):
            gradient = gradient.view_as(parameter)
            if parameter.grad is not None:
                parameter.grad.lerp_(gradient, share)
            elif bool(gradient.any()):
                parameter.grad = gradient * share
        self.state[_FULL] = 0
        return others


class GradientWorker:
    """The training's end: the process and what is exchanged with it."""

    def __init__(self, config: Config, folder: Path, cache: Path | None, module: nn.Module):
        self._parameters = list(module.parameters())
        self._exchange = Exchange(sum(parameter.numel() for parameter in self._parameters))
        self._process = mp.get_context("spawn").Process(
            target=_work, args=(config, folder, cache, self._exchange, os.getpid()), daemon=True
        )
        self._process.start()

    def publish(self, stage: str, step: int, windows: int) -> None:
        """Gives the gradient worker the weights of now and says where the training stands."""
        self._exchange.publish(self._parameters, stage, step, windows)

    def collect(self, count: int) -> int:
        """As `Exchange.collect`; RuntimeError where the gradient worker has died."""
        if not self._process.is_alive():
            raise RuntimeError(
                f"the gradient worker ended with status {self._process.exitcode}; its error is "
                "above; start again, the training continues where it was saved"
            )
        return self._exchange.collect(self._parameters, count)

    def close(self) -> None:
        """Ends the process."""
        self._process.terminate()
        self._process.join()


def _flatten(parts: list[Tensor], out: Tensor) -> None:
    for part, place in zip(parts, out.split([part.numel() for part in parts]), strict=True):
        place.copy_(part.flatten())


def _work(
    config: Config, folder: Path, cache: Path | None, exchange: Exchange, parent: int
) -> None:
    """The worker's end: weights in, gradients out, until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    objectives = Objectives(config, folder, "cpu", cache)
    parameters = list(objectives.all.parameters())
    batches = windows = 0
    while os.getppid() == parent:
        if exchange.state[_STAGE] < 0:
            time.sleep(_POLL_S)
            continue
        stage, step, windows_drawn = (int(exchange.state[i]) for i in (_STAGE, _STEP, _WINDOWS))
        with torch.no_grad():
            sizes = [parameter.numel() for parameter in parameters]
            for parameter, value in zip(parameters, exchange.weights.split(sizes), strict=True):
                parameter.copy_(value.view_as(parameter))
        batches += 1
        # The training itself draws from (seed, step).
        rng = np.random.default_rng([config.steps.seed, step, batches])
        count, loss, _ = objectives.backward(STAGES[stage], windows_drawn, rng)
        windows += count
        finite = bool(torch.isfinite(loss))
        if finite and exchange.state[_FULL]:
            continue
        if finite:
            exchange.offer([_gradient(parameter) / batches for parameter in parameters], windows)
        batches = windows = 0
        objectives.all.zero_grad(set_to_none=True)


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
