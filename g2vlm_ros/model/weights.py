# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: a folder in Hugging Face style to a network, strictly and without a second copy.

Weights come from `model.safetensors`, or from the shards that `model.safetensors.index.json`
lists; never from pickle files. Every key must be known and every parameter must be there; the
confidence head and the training-only global points head may be absent, but not in part.

`python -m g2vlm_ros.model.weights --check DIR` prints what a folder holds and whether it fits,
from the headers alone.
"""

from __future__ import annotations

import argparse
import json
import mmap
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from g2vlm_ros.checkpoint.config import ConfigError, ModelConfig
from g2vlm_ros.model.network import FLOAT32_PARTS, G2VLM

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZER = "tokenizer.json"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
UNUSED = {
    "dino_model.embeddings.mask_token": "masks patches in DINOv2's own training, never here",
}
"""Keys of the released checkpoint that no computation reads, with the reason."""

OPTIONAL = {"confidence": "conf_", "global_points": "global_point"}
"""Heads of `G2VLM` that a checkpoint may lack, with what their keys begin with."""


class CheckpointError(ValueError):
    """The folder's weights are missing, damaged or belong to another network."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the file."""

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def load(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    dino_windows: str | None = None,
) -> G2VLM:
    """The network of a folder, in evaluation mode.

    dino_windows overrides the folder's setting. Peak memory is one copy of the weights plus one
    tensor: the file is mapped, and pages that had to be converted are given back at once. Raises
    ConfigError or CheckpointError.
    """
    if not dtype.is_floating_point:
        raise CheckpointError(f"dtype {dtype} is not a float type; use float32 or bfloat16")
    config = ModelConfig.read(folder)
    if dino_windows is not None:
        config = replace(config, dino=replace(config.dino, windows=dino_windows))
    tensors = stored_tensors(folder)
    network = empty_network(config, tensors)
    problems = misfits(tensors, network)
    if problems:
        raise CheckpointError(
            f"{folder} does not fit its configuration files: {'; '.join(problems)}; "
            "take weights and configuration of one download"
        )
    parameters = {name: stored for name, stored in tensors.items() if name not in UNUSED}
    network.load_state_dict(
        _read(parameters, torch.device(device), dtype), strict=True, assign=True
    )
    return network.requires_grad_(False).eval()


def empty_network(config: ModelConfig, keys: Iterable[str]) -> G2VLM:
    """The network on the meta device, with each optional head that one of the keys belongs to."""
    keys = list(keys)
    has = {
        option: any(key.startswith(prefix) for key in keys) for option, prefix in OPTIONAL.items()
    }
    with torch.device("meta"):
        return G2VLM(config, **has)


def stored_tensors(folder: str | Path) -> dict[str, StoredTensor]:
    """What the weight files of a folder hold, by name, from their headers."""
    folder = Path(folder)
    if (folder / INDEX).exists():
        return _sharded(folder)
    if (folder / WEIGHTS).exists():
        return _header(folder / WEIGHTS)
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder} has only pickle weights ({_some(pickles)}), which can run code when read; "
            f"convert them to {WEIGHTS}"
        )
    raise CheckpointError(
        f"{folder} has neither {WEIGHTS} nor {INDEX}; give the folder of a complete download"
    )


def misfits(tensors: dict[str, StoredTensor], network: G2VLM) -> list[str]:
    """One sentence per way in which stored tensors differ from what the network needs."""
    needed = {name: tuple(p.shape) for name, p in network.state_dict().items()}
    missing = [name for name in needed if name not in tensors]
    left_over = [name for name in tensors if name not in needed and name not in UNUSED]
    shapes = [
        f"{name} is {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in needed.items()
        if name in tensors and tensors[name].shape != shape
    ]
    problems = []
    if len(missing) > len(needed) // 2:
        problems.append("these are not the weights of a G2VLM model")
    for what, names in (
        ("missing", missing),
        ("left over", left_over),
        ("of another shape", shapes),
    ):
        if names:
            problems.append(f"{len(names)} {what} ({_some(names)})")
    return problems


def _sharded(folder: Path) -> dict[str, StoredTensor]:
    try:
        shard_of = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        shards = sorted({Path(name).name for name in shard_of.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / INDEX} is not a weight index; copy it again") from error
    absent = [name for name in shards if not (folder / name).exists()]
    if absent:
        raise CheckpointError(
            f"{folder} lacks {len(absent)} of {len(shards)} shards ({_some(absent)}); "
            "complete the download"
        )
    tensors: dict[str, StoredTensor] = {}
    for name in shards:
        tensors |= _header(folder / name)
    lost = [key for key in shard_of if key not in tensors]
    if lost:
        raise CheckpointError(
            f"{INDEX} lists {len(lost)} tensors that no shard holds ({_some(lost)}); "
            "index and shards are of different downloads"
        )
    return tensors


def _header(path: Path) -> dict[str, StoredTensor]:
    """Parses a safetensors header: its length as 8 bytes, then JSON, then the data."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ValueError("the header does not fit into the file")
            entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        tensors = {name: _stored(path, 8 + length, entry) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a complete safetensors file ({error}); download it again"
        ) from error
    expected = max((t.offset + t.bytes for t in tensors.values()), default=0)
    if size < expected:
        raise CheckpointError(
            f"{path} is truncated: {size} of {expected} bytes; download it again"
        )
    return tensors


def _stored(path: Path, data_start: int, entry: dict) -> StoredTensor:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"dtype {entry['dtype']} is none of {', '.join(DTYPES)}")
    begin, end = entry["data_offsets"]
    shape = tuple(int(n) for n in entry["shape"])
    tensor = StoredTensor(path, DTYPES[entry["dtype"]], shape, data_start + begin)
    if begin < 0 or end - begin != tensor.bytes:
        raise ValueError(f"a tensor of {tensor.bytes} bytes has {end - begin} bytes of data")
    return tensor


def _read(
    tensors: dict[str, StoredTensor], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """All tensors on the device; those that already fit stay in the mapped file."""
    state = {}
    for file in {stored.file for stored in tensors.values()}:
        with file.open("rb") as opened:
            # Private pages: the file cannot change through them.
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        for name, stored in tensors.items():
            if stored.file == file:
                kept_wide = name.split(".")[0] in FLOAT32_PARTS
                target = torch.promote_types(dtype, torch.float32) if kept_wide else dtype
                state[name] = _tensor(mapped, stored, device, target)
    return state


def _tensor(
    mapped: mmap.mmap, stored: StoredTensor, device: torch.device, dtype: torch.dtype
) -> Tensor:
    count = prod(stored.shape)
    source = torch.frombuffer(mapped, dtype=stored.dtype, count=count, offset=stored.offset)
    result = source.to(device, dtype)
    if result is not source:
        page = mmap.PAGESIZE
        first = -(-stored.offset // page) * page
        last = (stored.offset + stored.bytes) // page * page
        if last > first and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED, first, last - first)
    return result.reshape(stored.shape)


def describe(folder: str | Path) -> tuple[list[str], bool]:
    """What a folder holds, as lines of text, and whether it can be loaded."""
    config = ModelConfig.read(folder)
    tensors = stored_tensors(folder)
    network = empty_network(config, tensors)
    text, dino, vision = config.text, config.dino, config.vision
    lines = [
        f"trunk    {text.layers} layers x {text.hidden_size}, {text.heads} heads, "
        f"{text.kv_heads} key/value heads, vocabulary {text.vocab_size}",
        f"DINOv2   {dino.layers} layers x {dino.hidden_size}, {dino.heads} heads, "
        f"windows {dino.windows}",
        f"vision   {vision.depth} layers x {vision.embed_dim}, {vision.heads} heads",
        "",
    ]
    lines += _table(tensors) + [""]
    problems = misfits(tensors, network)
    if not (Path(folder) / TOKENIZER).exists():
        problems.append(f"{TOKENIZER} is missing, so there are no prompts and no answers")
    verdict = [f"does not fit: {problem}" for problem in problems] or ["fits"]
    unused = [f"not used: {key} ({why})" for key, why in UNUSED.items() if key in tensors]
    return lines + unused + verdict, not problems


def parameters_per_part(sizes: dict[str, int]) -> dict[str, int]:
    """Sums sizes by part: the first name of a key, the trunk split into its two experts."""
    parts: dict[str, int] = {}
    for name, size in sizes.items():
        part = name.split(".")[0]
        if part == "language_model":
            part = _trunk_part(name)
        parts[part] = parts.get(part, 0) + size
    return parts


def _trunk_part(name: str) -> str:
    if "embed_tokens" in name or "lm_head" in name:
        return "language_model " + name.split(".")[-2]
    geometric = "_moe_geo" in name or ".ls1." in name or ".ls2." in name
    return "language_model geometric" if geometric else "language_model semantic"


def _table(tensors: dict[str, StoredTensor]) -> list[str]:
    sizes, types, size_bytes = {}, set(), 0
    for name, tensor in tensors.items():
        sizes[name] = prod(tensor.shape)
        types.add(str(tensor.dtype).removeprefix("torch."))
        size_bytes += tensor.bytes
    counts = parameters_per_part(sizes)
    lines = [f"{part:30} {count / 1e6:10.2f} M" for part, count in counts.items()]
    lines.append(
        f"{'total':30} {sum(counts.values()) / 1e6:10.2f} M in {len(tensors)} tensors, "
        f"{size_bytes / 1e9:.2f} GB, {', '.join(sorted(types))}"
    )
    return lines


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Says what a checkpoint folder holds.")
    parser.add_argument("--check", metavar="DIR", required=True, type=Path)
    folder = parser.parse_args(arguments).check
    try:
        lines, fits = describe(folder)
    except (ConfigError, CheckpointError) as error:
        lines, fits = [f"error: {error}"], False
    print("\n".join(lines))
    return 0 if fits else 1


if __name__ == "__main__":
    raise SystemExit(main())
