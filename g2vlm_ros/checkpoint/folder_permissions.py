# SPDX-License-Identifier: Apache-2.0
"""Folders that others may write to: weights, engines and maps are believed as they are.

Digests stand beside what they describe, so they guard against damage, not against who may write.
"""

from __future__ import annotations

import stat
from pathlib import Path


def writable_by_others(folder: str | Path) -> Path | None:
    """What of a folder anybody on this machine may change; None where nothing is.

    That is the folder, a file in it, or a folder above from which it could be exchanged; not a
    folder such as /tmp, where the sticky bit leaves everybody's own alone.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        return None
    candidates = [folder]
    candidates += sorted(path for path in folder.iterdir() if not path.is_symlink())
    candidates += [path for path in folder.resolve().parents if not _mode(path) & stat.S_ISVTX]
    for path in candidates:
        if _mode(path) & stat.S_IWOTH:
            return path
    return None


def permission_warning(what: str, folder: str | Path) -> str:
    """A sentence with the remedy where a folder is open to others; empty where it is not."""
    path = writable_by_others(folder) if folder else None
    if path is None:
        return ""
    return (
        f"{what} {folder}: anybody on this machine may write to {path}, and what is there is "
        f"believed as a program is; run: chmod -R o-w {path}"
    )


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except OSError:
        return 0
