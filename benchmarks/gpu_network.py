# SPDX-License-Identifier: Apache-2.0
"""What `make gpu` measures on random networks: windows, prefill, decoding; the card's limits.

The network of the released size has 4.5 B parameters, which are made on the device and never
written.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.eager_reference import EagerReference
from g2vlm_ros.checkpoint.config import PATCH_PX, ModelConfig
from g2vlm_ros.checkpoint.prompt_layout import SpecialTokens, TokenCursor
from g2vlm_ros.inference.backend import Backend
from g2vlm_ros.inference.kv_buffer import bucket
from g2vlm_ros.inference.torch_backend import TorchBackend
from g2vlm_ros.inference.torch_cache import TorchCache
from g2vlm_ros.inference.torch_decoding import TokenDecoder
from g2vlm_ros.inference.torch_graphs import MAX_DEVIATION, Recorder, StageGraphs
from g2vlm_ros.model.fusion import with_fused_parts
from g2vlm_ros.model.network import FLOAT32_PARTS, G2VLM

RELEASED = {
    "text": {
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "vocab_size": 151936,
        "rms_norm_eps": 1e-6,
    },
    "vit": {"depth": 32, "embed_dim": 1280, "num_heads": 16, "hidden_size": 1536},
    "dino": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 518,
        "patch_size": 14,
    },
}
SIZES = ((518, 392), (252, 196))
SEMANTIC = (756, 756)
TERAFLOP = {1: 4.3, 2: 9.0, 4: 19.4, 8: 44.7}
"""Of a window at 518x392 without the global head, computed from the layers."""
SPECIAL = SpecialTokens(2, 3, 0, 1, 4)
PROMPT = np.arange(10, 21)


@contextlib.contextmanager
def caught(line: dict[str, Any]) -> Iterator[None]:
    """What goes wrong inside becomes part of the line."""
    try:
        yield
    except Exception as error:  # any backend may fail in any way: that is a result
        line["failed"] = f"{type(error).__name__}: {str(error)[:300]}"


def seconds(run: Callable[[], Any], device: str, rounds: int = 7, warm_up: int = 3) -> float:
    """Median time of a call that has warmed up, all work of the device included."""
    times = []
    for index in range(warm_up + rounds):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        if index >= warm_up:
            times.append(time.perf_counter() - start)
    return float(np.median(times))


def floors(device: str = "cuda", side: int = 8192) -> dict[str, Any]:
    """Measured matrix product rate in bfloat16 and copy bandwidth (read and write counted)."""
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    product = seconds(lambda: a @ a, device)
    block = torch.empty(side * side * 4, dtype=torch.uint8, device=device)
    copy = seconds(lambda: block.clone(), device)
    return {
        "matmul_tflop_per_s": 2 * side**3 / product / 1e12,
        "copy_gb_per_s": 2 * block.numel() / copy / 1e9,
    }


# --- windows -------------------------------------------------------------------------------------


def random_network(config: ModelConfig, device: str) -> G2VLM:
    """A network of random bfloat16 weights, made on the device; last parts in float32."""
    with torch.device("meta"):
        network = G2VLM(config)
    network = network.to(torch.bfloat16)
    for name in FLOAT32_PARTS:
        if hasattr(network, name):
            getattr(network, name).float()
    network = network.to_empty(device=device).eval()
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in network.named_parameters():
        if parameter.ndim < 2:
            nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
        else:
            parameter.data.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    network.point_head.proj.weight.data.mul_(0.3)  # depth is the exponential of what it gives
    return network.requires_grad_(False)


class EagerOnDevice(EagerReference):
    """The original's structure on any device by autocast, its last parts in float32."""

    def __init__(self, network: G2VLM):
        self.config = network.config
        self.weights = dict(network.named_parameters())
        table = "dino_model.embeddings.position_embeddings"
        self.weights[table] = self.weights[table].float()  # no antialiased resize in bfloat16

    def _heads(self, hidden: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            return super()._heads(hidden.float(), grid)

    def _decoder(self, name: str, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return super()._decoder(name, x, *rest, **named).float()

    def _layer_norm(self, name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
        weight, bias = (self.weights[f"{name}.{part}"].float() for part in ("weight", "bias"))
        return F.layer_norm(x.float(), weight.shape, weight, bias, eps)


def ours(stages: Backend, images: np.ndarray) -> Callable[[], Any]:
    views, height, width, _ = images.shape
    grid_hw = (height // PATCH_PX, width // PATCH_PX)

    def reconstruct() -> Any:
        cache, walk = stages.new_cache(), TokenCursor(SPECIAL)
        stages.language(walk.text(PROMPT), cache)
        features = stages.encode_geometry(images)
        hidden = stages.geometry(features, walk.geometry(views, grid_hw), cache)
        return stages.heads(hidden, grid_hw)

    return reconstruct


def eager(network: G2VLM, images: np.ndarray, device: str) -> Callable[[], Any]:
    peer, walk = EagerOnDevice(network), TokenCursor(SPECIAL)
    grid_hw = (images.shape[1] // PATCH_PX, images.shape[2] // PATCH_PX)
    segments = (walk.text(PROMPT), walk.geometry(len(images), grid_hw))
    positions = np.concatenate([s.positions for s in segments], axis=1)

    def reconstruct() -> Any:
        with torch.device(device), torch.autocast(device, torch.bfloat16), torch.no_grad():
            given = (torch.tensor(x, device=device) for x in (images, PROMPT, positions))
            return {name: x.float().cpu() for name, x in peer.reconstruct(*given).items()}

    return reconstruct


@dataclass(frozen=True)
class Designs:
    """How the designs that are compared are made: on a GPU, or as far as a CPU goes."""

    device: str
    compiler: str
    """Of small parts: torch's own, or one that only traces them."""
    record: Recorder | None
    """In the place of CUDA graphs; None for those."""

    @staticmethod
    def of(device: str) -> Designs:
        if device == "cuda":
            return Designs(device, "inductor", None)
        return Designs(device, "eager", run_again)

    def recorded(self, network: G2VLM) -> TorchBackend:
        """Windows as graphs, which are compared with what is not recorded before they count."""
        bound = MAX_DEVIATION[network.dino2llm.weight.dtype]
        return TorchBackend(
            network, fixed_shapes=True, graphs=StageGraphs(bound, record=self.record)
        )

    def fused(self, network: G2VLM) -> G2VLM:
        return with_fused_parts(network, self.compiler)


def run_again(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """A `Recorder` on a CPU."""
    run()
    return run


def windows(
    network: G2VLM, designs: Designs, views: list[int], sizes: tuple = SIZES
) -> Iterator[dict[str, Any]]:
    """One result per size, number of views and implementation."""
    yield {"what": "parameters", "millions": sum(p.numel() for p in network.parameters()) / 1e6}
    stages, device = TorchBackend(network), designs.device
    runs: dict[str, Callable[[np.ndarray], Callable[[], Any]]] = {
        "ours": lambda images: ours(stages, images),
        "eager": lambda images: eager(network, images, device),
        "ours as CUDA graphs": lambda images: ours(designs.recorded(network), images),
    }
    yield from _windows(runs, device, views, sizes)


def fused(
    network: G2VLM,
    designs: Designs,
    views: list[int],
    sizes: tuple,
    lengths: Sequence[int],
    steps: int,
) -> Iterator[dict[str, Any]]:
    """Tokens, then windows, with small parts compiled; the first of each waits for that."""
    parts = designs.fused(network)
    name = "fixed shapes, CUDA graph, small parts fused"
    for length in lengths:
        yield _tokens(name, TorchBackend(parts, fixed_shapes=True), designs, length, steps)
    what = "ours as CUDA graphs, small parts fused"
    runs = {what: lambda images: ours(designs.recorded(parts), images)}
    yield from _windows(runs, designs.device, views, sizes)


def _windows(
    runs: dict[str, Callable[[np.ndarray], Callable[[], Any]]],
    device: str,
    views: list[int],
    sizes: tuple,
) -> Iterator[dict[str, Any]]:
    for (width, height), count in itertools.product(sizes, views):
        images = random_images(count, width, height)
        for name, make in runs.items():
            line = {"what": name, "size": [width, height], "views": count}
            with caught(line):
                line["seconds"] = seconds(make(images), device)
                if (width, height) == SIZES[0] and count in TERAFLOP:
                    line["tflop_per_s"] = TERAFLOP[count] / line["seconds"]
            yield line


def language(
    network: G2VLM,
    device: str,
    size: tuple[int, int],
    views: list[int],
    semantic_size: tuple[int, int],
) -> Iterator[dict[str, Any]]:
    """The image encoder; prefill of an image and of a question behind windows of each size."""
    stages = TorchBackend(network)
    (image,) = random_images(1, *semantic_size)
    line: dict[str, Any] = {"what": "encode_semantics"}
    with caught(line):
        line["seconds"] = seconds(lambda: stages.encode_semantics(image), device)
    yield line
    for count in views:
        line = {"what": "language", "views": count}
        with caught(line):
            line |= _prefill(stages, device, random_images(count, *size), image)
        yield line


def _prefill(
    stages: TorchBackend, device: str, images: np.ndarray, image: np.ndarray
) -> dict[str, Any]:
    count, height, width, _ = images.shape
    grid_hw = (height // PATCH_PX, width // PATCH_PX)
    cache, walk = stages.new_cache(), TokenCursor(SPECIAL)
    stages.language(walk.text(PROMPT), cache)
    features = stages.encode_geometry(images)
    stages.geometry(features, walk.geometry(count, grid_hw), cache)
    merge = PATCH_PX * stages.config.vision.merge
    square = walk.semantic((image.shape[0] // merge, image.shape[1] // merge))
    semantic, question = stages.encode_semantics(image), walk.text(np.arange(20, 84))
    times = {
        "image_prefill_s": lambda: stages.language(square, cache.fork(), semantic),
        "text_prefill_s": lambda: stages.language(question, cache.fork()),
    }
    return {"cached": cache.length, **{n: seconds(run, device) for n, run in times.items()}}


def filled_cache(stages: TorchBackend, tokens: int) -> TorchCache:
    """A cache of random keys and values."""
    text, weight = stages.config.text, stages.network.dino2llm.weight
    shape = (1, text.kv_heads, tokens, text.head_dim)
    cache = stages.new_cache()
    for layer in range(text.layers):
        keys, values = (torch.randn(shape, device=weight.device).to(weight.dtype) for _ in "kv")
        cache.extend(layer, keys, values)
    return cache


def decoding(
    network: G2VLM, designs: Designs, lengths: Sequence[int], steps: int = 16
) -> Iterator[dict[str, Any]]:
    """Seconds per token behind caches of these lengths, by each design."""
    for length in lengths:
        for name, fixed in (("growing cache", False), ("fixed shapes, CUDA graph", True)):
            stages = TorchBackend(network, fixed_shapes=fixed)
            yield _tokens(name, stages, designs, length, steps)
        line = {"what": "fixed shapes, no graph", "cached": length}
        with caught(line), torch.inference_mode():
            cache = filled_cache(TorchBackend(network), length)
            decoder = TokenDecoder(network, cache, bucket(length + steps), capture=False)

            def run_steps(decoder: TokenDecoder = decoder, cache: TorchCache = cache) -> None:
                decoder.start(30, cache.length, cache)
                for _ in range(steps):
                    decoder.step()
                decoder.newest(1)

            line["s_per_token"] = seconds(run_steps, designs.device, 3, 1) / steps
        yield line


def _tokens(
    name: str, stages: TorchBackend, designs: Designs, length: int, steps: int
) -> dict[str, Any]:
    """Seconds per token of an answer behind so many cached tokens."""
    line: dict[str, Any] = {"what": name, "cached": length}
    fixed = stages.fixed_shapes
    with caught(line), torch.inference_mode():
        cache = filled_cache(stages, length)

        def answer() -> None:
            fork = cache.fork()
            with contextlib.closing(stages.decode(30, fork.length, fork)) as tokens:
                for _ in range(steps):
                    next(tokens)

        line["s_per_token"] = seconds(answer, designs.device, rounds=3, warm_up=1) / steps
        line["fell_back"] = fixed and not stages.fixed_shapes
    return line


def random_images(views: int, width: int, height: int) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (views, height // 14, width // 14, 3))
    return coarse.astype(np.uint8).repeat(14, axis=1).repeat(14, axis=2)
