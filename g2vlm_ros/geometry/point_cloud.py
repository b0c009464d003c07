# SPDX-License-Identifier: Apache-2.0
"""Dense points as clouds: which pixels count, the bytes of a PointCloud2, PLY and CSV files.

A point is 20 bytes, little-endian: x, y, z (float32), rgb (0x00RRGGBB in the bits of a float32),
confidence (float32, NaN where unknown).
"""

from __future__ import annotations

import array
import csv
import glob
import io
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from g2vlm_ros.geometry.sim3 import quaternion_xyzw
from g2vlm_ros.kernels import packing
from g2vlm_ros.kernels.packing import count_points, pack_points

POINT_FIELDS = (("x", 0), ("y", 4), ("z", 8), ("rgb", 12), ("confidence", 16))
"""Name and byte offset of the float32 fields of a packed point."""
POINT_BYTES = 20

PLY_CHUNK = 1 << 18
"""Points that are written at once: their text takes some 20 MB."""


def valid_points(
    local_points: np.ndarray,
    confidence: np.ndarray,
    min_confidence: float = 0.0,
    edge_step: float = 0.0,
) -> np.ndarray:
    """bool (..., H, W): the pixels of a point map that belong into a cloud.

    `local_points` float32 (..., H, W, 3) in the optical frame, `confidence` float32 (..., H, W).
    Out go non-finite points, points not in front of the camera, those below `min_confidence`
    (an unknown, NaN confidence passes only when that is 0) and those at depth steps above the
    fraction `edge_step` (0 keeps them).
    """
    shape = local_points.shape
    keep = packing.valid_points(local_points.reshape(-1, *shape[-3:]), edge_step).reshape(
        shape[:-1]
    )
    return keep & (confidence >= min_confidence) if min_confidence > 0 else keep


def pack(
    points: np.ndarray,
    colours: np.ndarray,
    confidence: np.ndarray,
    valid: np.ndarray,
    *,
    views: Sequence[int] | None = None,
    poses: np.ndarray | None = None,
    scale: float = 1.0,
    stride_px: int = 1,
    min_confidence: float = 0.0,
    organised: bool = False,
    out: array.array | None = None,
) -> array.array:
    """The bytes of a PointCloud2, in the `array('B')` that rclpy messages hold.

    points float32 (N, ..., 3), colours uint8 (N, ..., 3) RGB, confidence float32 (N, ...), valid
    bool (N, ...): N views, of which `views` (all by default) are packed one after the other, of
    each every `stride_px`-th row and column. Dense (the default) leaves out points that are
    invalid or below min_confidence; organised keeps them, with x, y and z NaN. With `poses`
    (V, 4, 4), points of the i-th view become ``poses[i] @ (scale * point)``: from the camera's
    frame and unit to the cloud's. `out` is filled and returned, resized if need be: fresh memory
    costs more than the packing.
    """
    _check_maps(points, colours, confidence, valid)
    if stride_px < 1:
        raise ValueError(f"stride_px is {stride_px}; it must be at least 1")
    index = range(points.shape[0]) if views is None else list(views)
    affine = affines(len(index), poses, scale).astype(np.float32)
    flat = points.ndim != 4  # not an image: a line of points
    size = (points.shape[0], 1, -1) if flat else points.shape[:3]
    maps = (points.reshape(*size, 3), colours.reshape(*size, 3))
    maps = (*maps, confidence.reshape(size), valid.reshape(size))
    if organised:
        rows, columns = (-(-length // stride_px) for length in maps[3].shape[1:])
        count = len(index) * rows * columns
    else:
        count = count_points(maps[2], maps[3], index, stride_px, min_confidence)
    data = sized(count * POINT_BYTES, out)
    if data:
        pack_points(
            *maps,
            index,
            affine,
            np.frombuffer(data, np.uint8),
            stride=stride_px,
            min_confidence=min_confidence,
            organised=organised,
        )
    return data


def sized(size: int, reused: array.array | None) -> array.array:
    """Bytes with any content: `reused` cut or grown to `size` bytes, or a new array."""
    data = array.array("B") if reused is None else reused
    if not data:
        data.append(0)
        data *= size  # touches new memory once; frombytes would twice
    elif len(data) < size:
        data.frombytes(bytes(size - len(data)))
    del data[size:]
    return data


def affines(views: int, poses: np.ndarray | None = None, scale: float = 1.0) -> np.ndarray:
    """float64 (N, 3, 4) that scale and then pose points."""
    poses = np.broadcast_to(np.eye(4), (views, 4, 4)) if poses is None else np.asarray(poses)
    if poses.shape != (views, 4, 4):
        raise ValueError(f"poses are {poses.shape}; they must be ({views}, 4, 4), one per view")
    affine = poses[:, :3].astype(np.float64)
    affine[..., :3] *= scale
    return affine


def _check_maps(
    points: np.ndarray, colours: np.ndarray, confidence: np.ndarray, valid: np.ndarray
) -> None:
    shape = points.shape[:-1]
    layout = {
        "points": (points, np.float32, (*shape, 3)),
        "colours": (colours, np.uint8, (*shape, 3)),
        "confidence": (confidence, np.float32, shape),
        "valid": (valid, np.bool_, shape),
    }
    for name, (actual, dtype, expected) in layout.items():
        if (
            actual.dtype != dtype
            or actual.shape != expected
            or actual.ndim < (len(expected) - len(shape) + 1)
        ):
            raise ValueError(
                f"{name} is {actual.dtype} {actual.shape}; it must be {np.dtype(dtype)} {expected}"
            )


def write_ply(
    path: str | os.PathLike,
    points: np.ndarray,
    colours: np.ndarray,
    confidence: np.ndarray | None = None,
) -> None:
    """A binary little-endian PLY of points (..., 3), colours uint8 (..., 3), confidence (...).

    Written by chunks into a file beside `path` that takes its name when complete.
    """
    dtype = _ply_dtype(confidence is not None)
    columns = [*points.reshape(-1, 3).T, *colours.reshape(-1, 3).T]
    if confidence is not None:
        columns.append(confidence.reshape(-1))
    lengths = {len(column) for column in columns}
    if len(lengths) != 1:
        raise ValueError(
            f"points, colours and confidence have {sorted(lengths)} entries; it must be one number"
        )
    size = lengths.pop()
    with replaced(path) as file:
        file.write(_ply_header(dtype, size).encode("ascii"))
        for start in range(0, size, PLY_CHUNK):
            part = slice(start, start + PLY_CHUNK)
            rows = np.empty(len(columns[0][part]), dtype)
            for name, column in zip(dtype.names, columns, strict=True):
                rows[name] = column[part]
            file.write(rows.tobytes())


def _ply_dtype(with_confidence: bool) -> np.dtype:
    fields = [(name, "<f4") for name in ("x", "y", "z")]
    fields += [(name, "u1") for name in ("red", "green", "blue")]
    return np.dtype(fields + [("confidence", "<f4")] * with_confidence)


def _ply_header(dtype: np.dtype, size: int) -> str:
    kinds = {"f": "float", "u": "uchar"}
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {size}"]
    lines += [f"property {kinds[dtype[name].kind]} {name}" for name in dtype.names]
    return "\n".join([*lines, "end_header", ""])


def write_poses_csv(
    path: str | os.PathLike, poses: Iterable[tuple[int, str, str, np.ndarray]]
) -> None:
    """A CSV of camera poses: (stamp_ns, camera, frame, frame_from_camera (4, 4)) each.

    Columns: stamp_s and stamp_nanosec (integer seconds and the rest), camera, frame,
    x, y, z (unit of the poses), qx, qy, qz, qw (ROS order).
    """
    names = "stamp_s stamp_nanosec camera frame x y z qx qy qz qw".split()
    with replaced(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        for stamp_ns, camera, frame, pose in poses:
            seconds, rest = divmod(int(stamp_ns), 1_000_000_000)
            numbers = [*pose[:3, 3], *quaternion_xyzw(pose[:3, :3])]
            writer.writerow([seconds, rest, camera, frame, *(f"{n:.9g}" for n in numbers)])
        text.detach()


STALE_S = 3600.0
"""Age of an unfinished file beside another's name from which on nobody is writing it any more."""


@contextmanager
def replaced(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A new file that becomes `path` when the block ends well, and else disappears.

    It is made beside `path` under a name nobody else has (O_EXCL, no link is followed), is on the
    disk before it takes its name, and gets the rights of a file that it takes the place of. What
    killed processes left of earlier ones is removed.
    """
    target = Path(path)
    prefix = f".{target.name[:100]}."
    _remove_stale(target.parent, prefix)
    partial = target.parent / f"{prefix}{secrets.token_hex(8)}.part"
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    descriptor = os.open(partial, flags, 0o666)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            if target.is_file():
                os.fchmod(descriptor, stat.S_IMODE(target.stat().st_mode))
            os.fsync(descriptor)
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _remove_stale(folder: Path, prefix: str) -> None:
    """Remove unfinished files of a name that are older than STALE_S."""
    for left in folder.glob(f"{glob.escape(prefix)}{'?' * 16}.part"):
        try:
            if time.time() - left.lstat().st_mtime > STALE_S:
                left.unlink()
        except OSError:  # gone already, or not ours to remove
            continue
