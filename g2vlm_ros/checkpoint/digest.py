# SPDX-License-Identifier: Apache-2.0
"""A short name for the weights in use, cheap enough for every start."""

from __future__ import annotations

import hashlib
from pathlib import Path

BLOCK_BYTES = 1 << 20


def fingerprint(folder: str | Path) -> str:
    """``<folder name>@<8 hex digits>``: changes when a configuration or the weights change.

    Hashes the JSON files whole, and of each weight file its size with the first and last MiB (an
    18 GB checkpoint would take a minute to read). Raises ValueError when the folder is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"checkpoint folder '{folder}' does not exist; set model.checkpoint")
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        digest.update(path.name.encode())
        size = path.stat().st_size
        digest.update(str(size).encode())
        with path.open("rb") as file:
            if path.suffix == ".json":
                digest.update(file.read())
                continue
            digest.update(file.read(BLOCK_BYTES))
            file.seek(max(0, size - BLOCK_BYTES))
            digest.update(file.read(BLOCK_BYTES))
    return f"{folder.resolve().name}@{digest.hexdigest()[:8]}"
