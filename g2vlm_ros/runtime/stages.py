"""The stages of the network as every backend offers them, and the door to the backends.

A reconstruction: `encode_geometry`, `language` (the prompt), `geometry`, `heads`. A question goes
on with `language` for each semantic image and for the text, then token by token. Features and
hidden states are opaque and stay on the device; only numpy goes in and comes out.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from g2vlm_ros.core.config import ModelConfig
from g2vlm_ros.core.datatypes import RawGeometry
from g2vlm_ros.core.sequence import Segment

Features = Any
"""What a backend's encoders and trunk return; only the same backend can read it."""

BACKENDS = {"torch": ("g2vlm_ros.runtime.torch_stages", "TorchStages")}
"""Name of a backend -> module and class; imported when opened, so each needs only its own."""


class Cache(Protocol):
    """The keys and values of the tokens so far."""

    length: int

    def fork(self) -> Cache:
        """A cache with the same content; appending to one never changes the other."""


class Stages(Protocol):
    """One network on one device. A result with NaN or infinity raises NonFiniteError(stage)."""

    config: ModelConfig
    backend: str
    """What runs, for people: backend, device and precision."""

    def encode_geometry(self, images: np.ndarray) -> Features:
        """uint8 (N, H, W, 3) RGB, sides multiples of 14: geometric tokens (N, P, C)."""

    def encode_semantics(self, image: np.ndarray) -> Features:
        """uint8 (H, W, 3) RGB, sides multiples of 28: semantic tokens of one image (T, C)."""

    def new_cache(self) -> Cache:
        """An empty cache."""

    def geometry(self, features: Features, segment: Segment, cache: Cache) -> Features:
        """Appends a geometry segment with all views; hidden states (N, P, C) for the heads."""

    def heads(
        self, hidden: Features, grid_hw: tuple[int, int], global_points: bool = False
    ) -> RawGeometry:
        """Points and poses from the hidden states; grid_hw are the patches of a view."""

    def language(
        self, segment: Segment, cache: Cache, features: Features | None = None
    ) -> np.ndarray:
        """Appends a text segment, or a semantic one with its features.

        Returns float32 (vocabulary,) logits after the last token.
        """


def open_stages(backend: str, folder: str | Path, **options: Any) -> Stages:
    """Opens a checkpoint folder with a backend; options are those of the backend's `open`."""
    if backend not in BACKENDS:
        raise ValueError(f"backend '{backend}' is not there; choose one of {', '.join(BACKENDS)}")
    module, name = BACKENDS[backend]
    return getattr(import_module(module), name).open(folder, **options)
