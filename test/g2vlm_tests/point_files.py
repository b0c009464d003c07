# SPDX-License-Identifier: Apache-2.0
"""PLY and PCD files read by their own headers, as a viewer reads them, to test what was saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np

PLY_TYPES = {"float": "<f4", "uchar": "u1"}
PCD_TYPES = {("F", "4"): "<f4", ("U", "4"): "<u4"}


def read_ply(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Points float32 (n, 3), colours uint8 (n, 3), confidence float32 (n,) or None."""
    header, _, body = Path(path).read_bytes().partition(b"end_header\n")
    magic, form, vertices, *properties = header.decode().splitlines()
    assert (magic, form) == ("ply", "format binary_little_endian 1.0")
    fields = [line.split()[1:] for line in properties]
    dtype = np.dtype([(name, PLY_TYPES[kind]) for kind, name in fields])
    rows = np.frombuffer(body, dtype)
    assert vertices == f"element vertex {len(rows)}"
    points = np.stack([rows[axis] for axis in "xyz"], -1)
    colours = np.stack([rows[name] for name in ("red", "green", "blue")], -1)
    return points, colours, rows["confidence"] if "confidence" in dtype.names else None


def read_pcd(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points float32 (n, 3), colours uint8 (n, 3), confidence float32 (n,)."""
    head, _, body = Path(path).read_bytes().partition(b"DATA binary\n")
    lines = [line.split() for line in head.decode().splitlines() if not line.startswith("#")]
    header = {key: values for key, *values in lines}
    kinds = zip(header["TYPE"], header["SIZE"], strict=True)
    dtype = np.dtype([(n, PCD_TYPES[k]) for n, k in zip(header["FIELDS"], kinds, strict=True)])
    rows = np.frombuffer(body, dtype)
    assert [str(len(rows))] == header["POINTS"]
    points = np.stack([rows[axis] for axis in "xyz"], -1)
    rgb = rows["rgb"].view(np.uint32)
    colours = np.stack([rgb >> shift & 255 for shift in (16, 8, 0)], -1)
    return points, colours.astype(np.uint8), rows["confidence"]
