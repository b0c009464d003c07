# SPDX-License-Identifier: Apache-2.0
"""Digest of a checkpoint folder: which weights and configuration these are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from g2vlm_ros.records import UnfitError

CONFIGS = ("text_config.json", "vit_config.json", "dino_config.json", "decoder_config.json")
INDEX = "model.safetensors.index.json"
BLOCK_BYTES = 1 << 20
"""Read at both ends of a weight file: an 18 GB checkpoint would take a minute to read whole."""


def model_version(folder: str | Path) -> str:
    """``<folder name>@<first 8 hex digits of the digest>``, as the node publishes it.

    Raises UnfitError when the folder or its weights are missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UnfitError(f"checkpoint folder '{folder}' does not exist; set model.checkpoint")
    return f"{folder.resolve().name}@{digest(folder)[:8]}"


def digest(folder: str | Path) -> str:
    """64 hex digits that change when the weights or the configuration of a checkpoint change.

    Hashes the configuration files whole, and of each weight file its size with the first and last
    BLOCK_BYTES. Raises UnfitError when a weight file is missing.
    """
    folder, sha = Path(folder), hashlib.sha256()
    for path in [folder / name for name in CONFIGS]:
        sha.update(path.read_bytes() if path.exists() else b"-")
    for path in weight_files(folder):
        size = path.stat().st_size
        sha.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            sha.update(file.read(BLOCK_BYTES))
            file.seek(max(0, size - BLOCK_BYTES))
            sha.update(file.read(BLOCK_BYTES))
    return sha.hexdigest()


def weight_files(folder: str | Path) -> list[Path]:
    """The weight files of a checkpoint folder: one, or the shards of its index.

    Raises UnfitError when one is missing or the index cannot be read.
    """
    folder, names = Path(folder), ["model.safetensors"]
    if (index := folder / INDEX).exists():
        try:
            shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted({Path(name).name for name in shard_of.values()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UnfitError(f"{index} is not a weight index; copy it again") from error
    absent = [name for name in names if not (folder / name).exists()]
    if absent:
        raise UnfitError(f"{folder} lacks {', '.join(absent)}; complete the download")
    return [folder / name for name in names]
