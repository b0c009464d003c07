# SPDX-License-Identifier: Apache-2.0
"""`make gpu`: everything that only a GPU can show, in one command; results/gpu.json.

`python -m benchmarks.gpu [--skip engines real_size] [--views 1 2 4 8] [--seconds 480]` runs, each
in a process of its own so that one failure costs one line, and within a limit of time:
  floors        measured matrix product rate and copy bandwidth, the limits of everything else
  parity        the reference checkpoint on the GPU against its golden values, per backend and type
  packing       the kernels that pack point clouds, against numpy
  lost_context  an illegal address, and what our error says of it
  decoding      a token by three designs: growing cache, fixed shapes, fixed shapes as a CUDA graph
  real_size     a random network of the released size (4.5 B parameters, made on the device, never
                written): our torch path in bfloat16 and the original's structure, for 1 to 8 views
                at 518x392 and 252x196; prefill of the language stage
  training      the demo's training on the GPU for half a minute
  engines       builds TensorRT engines of the reference checkpoint and runs parity on them
What is not installed, does not run or takes too long is said in the result and fails nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.eager_reference import EagerReference
from benchmarks.record import record
from g2vlm_ros.checkpoint.config import PATCH_PX, ModelConfig
from g2vlm_ros.checkpoint.onnx_manifest import GLOBAL, STAGES
from g2vlm_ros.checkpoint.prompt_layout import SpecialTokens, TokenCursor, text_segment
from g2vlm_ros.inference.backend import Backend
from g2vlm_ros.inference.torch_backend import TorchBackend
from g2vlm_ros.inference.torch_cache import TorchCache
from g2vlm_ros.inference.torch_decoding import TokenDecoder, bucket
from g2vlm_ros.model.network import FLOAT32_PARTS, G2VLM

GOLDEN = Path(__file__).parents[1] / "test" / "data" / "golden" / "A"
PLAN = Path(__file__).parents[1] / "engines" / "plan.yaml"
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
LANGUAGE_GB, CACHE_BYTES = 3.1, 28_672
"""What a decoding step reads: the language stage in bfloat16, and each cached token."""
TERAFLOP = {1: 4.3, 2: 9.0, 4: 19.4, 8: 44.7}
"""Of a window at 518x392 without the global head, computed from the layers."""
SPECIAL = SpecialTokens(2, 3, 0, 1, 4)
PROMPT = np.arange(10, 21)
LIMITS_S = {
    "floors": 30,
    "parity": 120,
    "packing": 40,
    "lost_context": 30,
    "decoding": 60,
    "real_size": 120,
    "training": 60,
    "engines": 480,
}
"""The parts in their order, and how long each may take; all together within --seconds."""
CACHED = (4163, 8315)
"""Tokens behind a prompt and 4 or 8 views at 518x392."""
PRECISIONS = {"bf16": "bfloat16", "fp16": "float16"}

# --- measuring -----------------------------------------------------------------------------------


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


# --- real size -----------------------------------------------------------------------------------


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


def real_size(
    config: ModelConfig, device: str, views: list[int], sizes: tuple = SIZES
) -> Iterator[dict[str, Any]]:
    """One result per size, number of views and implementation; then the language stage."""
    network = random_network(config, device)
    yield {"what": "parameters", "millions": sum(p.numel() for p in network.parameters()) / 1e6}
    stages = TorchBackend(network)
    for width, height in sizes:
        for count in views:
            images = _images(count, width, height)
            runs = {
                "ours": lambda images=images: ours(stages, images),
                "eager": lambda images=images: eager(network, images, device),
            }
            for name, make in runs.items():
                line = {"what": name, "size": [width, height], "views": count}
                with _told(line):
                    line["seconds"] = seconds(make(), device)
                    if (width, height) == SIZES[0] and count in TERAFLOP:
                        line["tflop_per_s"] = TERAFLOP[count] / line["seconds"]
                yield line
    yield from language(stages, device, sizes[0], views)


def language(
    stages: TorchBackend, device: str, size: tuple[int, int], views: list[int]
) -> Iterator[dict[str, Any]]:
    """Prefill of an image and of a question, and decoding, behind windows of each size."""
    width, height = size
    semantic = stages.encode_semantics(_images(1, *SEMANTIC)[0])
    merge = PATCH_PX * stages.config.vision.merge
    yield {
        "what": "encode_semantics",
        "seconds": seconds(lambda: stages.encode_semantics(_images(1, *SEMANTIC)[0]), device),
    }
    for count in views:
        cache, walk = stages.new_cache(), TokenCursor(SPECIAL)
        stages.language(walk.text(PROMPT), cache)
        features = stages.encode_geometry(_images(count, width, height))
        grid_hw = (height // PATCH_PX, width // PATCH_PX)
        stages.geometry(features, walk.geometry(count, grid_hw), cache)
        image = walk.semantic((SEMANTIC[1] // merge, SEMANTIC[0] // merge))
        line = {"what": "language", "views": count, "cached": cache.length}
        line["image_prefill_s"] = seconds(
            lambda cache=cache, image=image: stages.language(image, cache.fork(), semantic), device
        )
        question = walk.text(np.arange(20, 84))
        line["text_prefill_s"] = seconds(
            lambda cache=cache, question=question: stages.language(question, cache.fork()), device
        )
        yield line


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
    network: G2VLM, device: str, lengths: Sequence[int], steps: int = 16
) -> Iterator[dict[str, Any]]:
    """Seconds per token behind caches of these lengths, by each design."""
    for length in lengths:
        designs = {"growing cache": TorchBackend(network, fixed_shapes=False)}
        if device == "cuda":
            designs["fixed shapes, CUDA graph"] = TorchBackend(network, fixed_shapes=True)
        for name, stages in designs.items():
            line = {"what": name, "cached": length}
            with _told(line), torch.inference_mode():
                cache = filled_cache(stages, length)

                def run(stages: TorchBackend = stages, cache: TorchCache = cache) -> None:
                    fork = cache.fork()
                    for _ in range(steps):
                        stages.language(text_segment([30], fork.length), fork)

                line["s_per_token"] = seconds(run, device, rounds=3, warm_up=1) / steps
                line["fell_back"] = name != "growing cache" and not stages.fixed_shapes
            yield line
        line = {"what": "fixed shapes, no graph", "cached": length}
        with _told(line), torch.inference_mode():
            stages = TorchBackend(network, fixed_shapes=False)
            cache = filled_cache(stages, length)
            decoder = TokenDecoder(network, cache, bucket(length + steps), capture=False)
            token, place = (torch.full(n, 30, device=device) for n in ((1,), (3, 1)))

            inputs = (decoder, token, place, cache)
            line["s_per_token"] = (
                seconds(lambda inputs=inputs: _steps(*inputs, steps), device, 3, 1) / steps
            )
        yield line


def _steps(
    decoder: TokenDecoder, token: Tensor, place: Tensor, cache: TorchCache, steps: int
) -> None:
    fork = cache.fork()
    for _ in range(steps):
        decoder.step(token, place, fork)


def lost_context() -> Iterator[dict[str, Any]]:
    """Writes to an address that nobody has; ends with a process whose context is lost."""
    from g2vlm_ros.inference.tensorrt.cuda import DeviceLostError, open_cuda
    from g2vlm_ros.records import UnfitError

    cuda = open_cuda()
    source = 'extern "C" __global__ void write_anywhere(int* place) { *place = 1; }'
    line: dict[str, Any] = {"what": f"illegal address over {cuda.backend}", "recognised": False}
    with _told(line), cuda.active():
        kernel = cuda.function(cuda.compile(source), "write_anywhere")
        stream = cuda.stream()
        try:
            cuda.launch(kernel, 1, 1, (np.uint64(8),), stream)
            cuda.synchronize(stream)
        except DeviceLostError as error:
            line |= {"recognised": True, "says": str(error)}
    yield line
    again = {"what": "a new context in the same process", "possible": True}
    try:
        with open_cuda().active():
            pass
    except (UnfitError, DeviceLostError) as error:
        again |= {"possible": False, "says": str(error)}
    yield again


def training(device: str = "cuda", minutes: float = 0.5) -> dict[str, Any]:
    """The demo's first stage of training, from nothing."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "g2vlm_ros.demo.train", "--out", f"{folder}/run"]
        command += ["--stage", "geometry", "--minutes", str(minutes), "--device", device]
        done = subprocess.run(command, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return {"what": f"training on {device}", "passed": not done.returncode, "says": lines[-3:]}


def _images(views: int, width: int, height: int) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (views, height // 14, width // 14, 3))
    return coarse.astype(np.uint8).repeat(14, axis=1).repeat(14, axis=2)


# --- parity and engines --------------------------------------------------------------------------


def parity(folder: Path, backend: str, precision: str) -> dict[str, Any]:
    """The parity command on the GPU, as a line."""
    command = [
        sys.executable,
        "-m",
        "g2vlm_ros.export.parity",
        "--golden",
        str(folder),
        "--backend",
        backend,
        "--precision",
        precision,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    error = done.stderr.strip().splitlines()[-1:] if done.returncode else []
    return {
        "what": f"{backend} {precision}",
        "passed": not done.returncode,
        "says": " ".join([last, *error]),
    }


def engines(precision: str) -> Iterator[dict[str, Any]]:
    """Exports, builds and checks the reference checkpoint with whatever TensorRT is here."""
    import yaml

    from g2vlm_ros.export.export_onnx import export
    from g2vlm_ros.inference.tensorrt.versions import installed

    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    flavour = installed(capability=capability)
    version = tuple(int(n) for n in flavour.version.split(".")[:2])
    opset = 24 if flavour.name == "rtx" or version >= (10, 15) else 20
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "A"
        shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("*.onnx", "*.manifest"))
        half = PRECISIONS[precision]
        export(folder, dtype=half, opset=opset, global_points=True)
        aligned = ("--stages", "encode_geometry", "--dino-windows", "aligned")
        export(folder, dtype=half, opset=opset, stages=aligned[1:2], dino_windows=aligned[3])
        plan = yaml.safe_load(PLAN.read_text())["profiles"]["desktop"] | {
            "opset": opset,
            "precision": PRECISIONS[precision],
            "capability": capability,
            "sizes": [[518, 392], [140, 112], [140, 84], [112, 154], [112, 84]],
            "semantic_sizes": [[756, 756], [112, 112], [84, 84]],
        }
        profiles = {"gpu": plan, "int4": plan | {"weight_only": "int4"}}
        (Path(name) / "plan.yaml").write_text(yaml.safe_dump({"profiles": profiles}))
        command = [
            sys.executable,
            "-m",
            "g2vlm_ros.export.build_engines",
            "--plan",
            f"{name}/plan.yaml",
            "--onnx",
            str(folder),
        ]
        runs = [("--profile", "gpu", "--stages", *STAGES, GLOBAL), ("--profile", "gpu", *aligned)]
        if opset == 24:  # this one is only verified; the golden set is of whole weights
            export(folder, dtype=half, opset=opset, stages=["language"], weight_only="int4")
            runs.append(("--profile", "int4", "--stages", "language", "--out", f"{name}/int4"))
        for more in runs:
            start = time.monotonic()
            done = subprocess.run([*command, *more], capture_output=True, text=True)
            lines = (done.stdout + done.stderr).strip().splitlines()
            yield {
                "what": f"build {more[1]} with {flavour.label}",
                "passed": not done.returncode,
                "seconds": time.monotonic() - start,
                "says": [x for x in lines if ".engine" in x or "error" in x or "warning" in x],
            }
        yield parity(folder, "tensorrt", precision)


# --- all of it -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _told(line: dict[str, Any]) -> Iterator[None]:
    """What goes wrong inside becomes part of the line."""
    try:
        yield
    except Exception as error:  # any backend may fail in any way: that is a result
        line["failed"] = f"{type(error).__name__}: {str(error)[:300]}"


def serve(part: str, views: list[int]) -> None:
    """One part in this process; a line of JSON per result."""
    results: Iterator[dict[str, Any]]
    if part == "floors":
        results = iter([floors()])
    elif part == "parity":
        pairs = [("torch", p) for p in ("fp32", "bf16", "fp16")] + [("onnx", "fp32")]
        results = (parity(GOLDEN, *pair) for pair in pairs)
    elif part == "decoding":
        config = ModelConfig.from_dicts(RELEASED["text"], RELEASED["vit"], RELEASED["dino"])
        results = decoding(random_network(config, "cuda"), "cuda", CACHED)
    elif part == "lost_context":
        results = lost_context()
    elif part == "training":
        results = iter([training()])
    elif part == "engines":
        results = (line for precision in PRECISIONS for line in engines(precision))
    elif part == "packing":
        from benchmarks.overhead import packing
        from g2vlm_ros.inference.tensorrt.cuda import open_cuda
        from g2vlm_ros.inference.tensorrt.device_memory import DeviceMemory

        cuda = open_cuda()
        with cuda.active():
            lines = list(packing(DeviceMemory(cuda), SIZES[0], views))
        results = iter(lines)
    else:
        config = ModelConfig.from_dicts(RELEASED["text"], RELEASED["vit"], RELEASED["dino"])
        results = real_size(config, "cuda", views)
    for line in results:
        print(json.dumps(line), flush=True)


def summary(parts: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The goals of the engines, as far as they were measured."""
    floor = next((x for x in parts.get("floors", []) if "matmul_tflop_per_s" in x), None)
    runs = {
        (x["what"], *x["size"], x["views"]): x
        for x in parts.get("real_size", [])
        if "size" in x and "seconds" in x
    }
    ratios: dict[str, Any] = {}
    for key, line in runs.items():
        peer = runs.get(("eager", *key[1:]))
        if key[0] != "eager" and peer:
            name = f"{key[0]} over eager, {key[3]} views at {key[1]}x{key[2]}"
            ratios[name] = peer["seconds"] / line["seconds"]
        if floor and "tflop_per_s" in line:
            name = f"{key[0]}, {key[3]} views, of the matrix product rate"
            ratios[name] = line["tflop_per_s"] / floor["matmul_tflop_per_s"]
    for line in parts.get("decoding", []):
        if floor and "s_per_token" in line:
            read_gb = LANGUAGE_GB + CACHE_BYTES * line["cached"] / 1e9
            least = read_gb / floor["copy_gb_per_s"]
            name = f"{line['what']} behind {line['cached']} tokens, of the bandwidth"
            ratios[name] = least / line["s_per_token"]
    return ratios


def run_part(part: str, views: list[int], limit_s: float) -> list[dict[str, Any]]:
    """The results of a part in a process of its own, which ends with its children at the limit."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", part, "--views"]
    process = subprocess.Popen(
        [*command, *map(str, views)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    failure = ""
    try:
        out, error = process.communicate(timeout=limit_s)
        if process.returncode:
            failure = (error.strip().splitlines() or ["no message"])[-1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
        failure = f"stopped after {limit_s:.0f} s"
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return [*lines, {"failed": failure[:300]}] if failure else lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--skip", nargs="*", default=[], choices=LIMITS_S)
    parser.add_argument("--views", nargs="*", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=480, help="for all parts together")
    parser.add_argument("--part", choices=LIMITS_S, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part:
        serve(options.part, options.views)
        return 0
    if not torch.cuda.is_available():
        print(
            "error: torch finds no CUDA GPU here; run this on a machine with one", file=sys.stderr
        )
        return 1
    end = time.monotonic() + options.seconds
    parts: dict[str, list[dict[str, Any]]] = {}
    for part in (name for name in LIMITS_S if name not in options.skip):
        print(f"== {part}", flush=True)
        limit_s = min(LIMITS_S[part], end - time.monotonic())
        if limit_s <= 0:
            parts[part] = [{"failed": f"no time left of {options.seconds:.0f} s"}]
        else:
            parts[part] = run_part(part, options.views, limit_s)
        print(json.dumps(parts[part], indent=1), flush=True)
    gpu = {
        "name": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "memory_gib": torch.cuda.get_device_properties(0).total_memory / 2**30,
    }
    print(record("gpu", {"gpu": gpu, **parts, "summary": summary(parts)}).name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
