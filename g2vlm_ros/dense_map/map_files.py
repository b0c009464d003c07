# SPDX-License-Identifier: Apache-2.0
"""Maps on disk: NPZ holds all of a map and can be continued, PLY and PCD are for other tools.

Files are written beside their name and take it when complete. What cannot be read is refused with
one sentence (MapFileError), and the map stays as it was.
"""

from __future__ import annotations

import json
import os
import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from g2vlm_ros.dense_map.map_changes import points_of, rgb_of
from g2vlm_ros.dense_map.voxel_grid import VOXEL, VoxelGrid
from g2vlm_ros.dense_map.voxel_map import VoxelMap
from g2vlm_ros.geometry.point_cloud import replaced, write_ply
from g2vlm_ros.records import ScaleState

FORMAT = "g2vlm_ros voxel map"
VERSION = 1
COLUMNS = ("position", "colour", "count", "confidence", "stamp_ns", "window")
"""What is kept of a voxel; revisions belong to the running map."""

MAX_OBJECT_BYTES = 64 << 20
"""Of the objects of a map: some 100 000."""
MAX_KEYFRAME_BYTES = 1 << 30
"""Of the keyframes of a map: some 10 000."""
MAX_META_BYTES = 1 << 20
"""Of the description of a map; ours has a kilobyte."""

_PCD_FIELDS = "x y z rgb confidence"


class MapFileError(ValueError):
    """A file that holds no map, a damaged one, or one that does not fit."""


@dataclass(frozen=True)
class MapInfo:
    """What the numbers of a saved map mean."""

    frame: str
    scale_state: ScaleState
    metres_per_unit: float
    """NaN when unknown."""
    objects: bytes = b""
    """What `query.object_memory` keeps with the map; of .npz files only."""
    keyframes: bytes = b""
    """`mapping.keyframe_files` of the map; of .npz files only."""


def save_map(path: str | os.PathLike, voxel_map: VoxelMap, info: MapInfo) -> int:
    """Save a map as its name says (.npz, .ply or .pcd); returns how many voxels.

    Corrections that wait are applied first. The map is locked only while it is copied.
    """
    ending = Path(path).suffix.lower()
    writers = {".npz": _write_npz, ".ply": _write_ply, ".pcd": _write_pcd}
    if ending not in writers:
        raise MapFileError(f"{path} ends in '{ending}'; a map is saved as .npz, .ply or .pcd")
    with voxel_map.lock:
        voxel_map.settle()
        ids, voxels = voxel_map.voxels()
        keys = voxel_map.keys(ids)
    writers[ending](path, keys, voxels, voxel_map.size, info)
    return len(voxels)


def load_map(path: str | os.PathLike, voxel_map: VoxelMap) -> MapInfo:
    """Put a saved map (.npz) in place of what `voxel_map` holds, to be continued.

    MapFileError when it is no map, damaged, of another voxel size or too large for the bound.
    The caller compares frame and scale with its own.
    """
    try:
        with _regular_file(path) as file, zipfile.ZipFile(file) as archive:
            meta = _read_meta(path, archive, voxel_map.max_voxels)
            keys, voxels = _read_voxels(path, archive, meta)
    except MapFileError:
        raise
    except (OSError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
        raise MapFileError(f"{path} is no map file or is damaged ({error})") from error
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise MapFileError(f"{path} is no map file or is damaged ({error})") from error
    if meta["voxel_size"] != voxel_map.size:
        raise MapFileError(
            f"{path} has voxels of {meta['voxel_size']}, this map of {voxel_map.size}; "
            "set the voxel size to the file's"
        )
    _check_voxels(path, keys, voxels, meta)
    try:
        voxel_map.replace_all(keys, voxels)
    except ValueError as error:
        raise MapFileError(f"{path} does not fit: {error}") from error
    unit = meta["metres_per_unit"]
    return MapInfo(
        meta["frame"], ScaleState(meta["scale_state"]), float("nan") if unit is None else unit
    )


def load_objects(path: str | os.PathLike) -> bytes:
    """`MapInfo.objects` of a saved map; empty for an older file, which has none.

    MapFileError when it is no map, damaged, or larger than MAX_OBJECT_BYTES.
    """
    return _load_bytes(path, "objects", MAX_OBJECT_BYTES)


def load_keyframes(path: str | os.PathLike) -> bytes:
    """`MapInfo.keyframes` of a saved map, as `load_objects`."""
    return _load_bytes(path, "keyframes", MAX_KEYFRAME_BYTES)


def _load_bytes(path: str | os.PathLike, name: str, max_bytes: int) -> bytes:
    try:
        with _regular_file(path) as file, zipfile.ZipFile(file) as archive:
            if f"{name}.npy" not in archive.namelist():
                return b""
            with archive.open(f"{name}.npy") as member:
                shape, _, dtype = _array_header(member)
                if dtype != np.uint8 or len(shape) != 1 or shape[0] > max_bytes:
                    raise MapFileError(f"{path} is damaged: its {name} are {dtype} {shape}")
                return member.read(shape[0])
    except MapFileError:
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise MapFileError(f"{path} is no map file or is damaged ({error})") from error


def _write_npz(
    path: str | os.PathLike, keys: np.ndarray, voxels: np.ndarray, size: float, info: MapInfo
) -> None:
    metric = np.isfinite(info.metres_per_unit)
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "voxel_size": size,
        "voxels": len(voxels),
        "frame": info.frame,
        "scale_state": int(info.scale_state),
        "metres_per_unit": info.metres_per_unit if metric else None,
    }
    columns = {name: np.ascontiguousarray(voxels[name]) for name in COLUMNS}
    with replaced(path) as file:
        np.savez(
            file,
            meta=np.array(json.dumps(meta)),
            objects=np.frombuffer(info.objects, np.uint8),
            keyframes=np.frombuffer(info.keyframes, np.uint8),
            keys=keys,
            **columns,
        )


def _write_ply(
    path: str | os.PathLike, keys: np.ndarray, voxels: np.ndarray, size: float, info: MapInfo
) -> None:
    write_ply(path, voxels["position"], rgb_of(voxels), voxels["confidence"])


def _write_pcd(
    path: str | os.PathLike, keys: np.ndarray, voxels: np.ndarray, size: float, info: MapInfo
) -> None:
    with replaced(path) as file:
        scale = info.scale_state.name.lower()
        file.write(f"# frame {info.frame!r}, lengths {scale}, voxels of {size}\n".encode())
        file.write(_pcd_header(len(voxels)).encode())
        file.write(memoryview(points_of(voxels)).cast("B"))


def _pcd_header(size: int) -> str:
    lines = [
        "VERSION 0.7",
        f"FIELDS {_PCD_FIELDS}",
        "SIZE 4 4 4 4 4",
        "TYPE F F F U F",
        "COUNT 1 1 1 1 1",
        f"WIDTH {size}",
        "HEIGHT 1",
        "VIEWPOINT 0 0 0 1 0 0 0",
        f"POINTS {size}",
        "DATA binary",
    ]
    return "\n".join([*lines, ""])


def _regular_file(path: str | os.PathLike) -> BinaryIO:
    """The file, opened for reading; MapFileError for devices, pipes and folders, at once."""
    try:
        # Without O_NONBLOCK, opening a pipe would wait for somebody to write into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise MapFileError(f"there is no map file {path}") from error
    except OSError as error:
        raise MapFileError(f"{path} cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise MapFileError(f"{path} is no regular file; give a map that this program saved")
    return open(descriptor, "rb")


def _read_meta(path: str | os.PathLike, archive: zipfile.ZipFile, max_voxels: int) -> dict:
    """What the file says of itself, checked before anything large is read."""
    with archive.open("meta.npy") as member:
        _, _, dtype = _array_header(member)
        if dtype.kind != "U" or dtype.itemsize > MAX_META_BYTES:
            raise MapFileError(f"{path} holds no voxel map; give one that this program saved")
        meta = json.loads(member.read(dtype.itemsize).decode("utf-32-le").rstrip("\0"))
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise MapFileError(f"{path} holds no voxel map; give one that this program saved")
    if meta.get("version") != VERSION:
        raise MapFileError(
            f"{path} is of version {meta.get('version')}; this program reads version {VERSION}"
        )
    kinds = {"voxel_size": (int, float), "voxels": int, "frame": str, "scale_state": int}
    kinds["metres_per_unit"] = (int, float, type(None))
    for name, kind in kinds.items():
        if name not in meta or not isinstance(meta[name], kind) or isinstance(meta[name], bool):
            raise MapFileError(f"{path} is damaged: its '{name}' is {meta.get(name)!r}")
    ScaleState(meta["scale_state"])
    if not 0 < meta["voxel_size"] < np.inf:
        raise MapFileError(f"{path} is damaged: its 'voxel_size' is {meta['voxel_size']}")
    if not 0 <= meta["voxels"] <= max_voxels:
        raise MapFileError(
            f"{path} has {meta['voxels']} voxels and does not fit: the map's memory holds "
            f"{max_voxels}; raise its memory bound"
        )
    return meta


def _read_voxels(
    path: str | os.PathLike, archive: zipfile.ZipFile, meta: dict
) -> tuple[np.ndarray, np.ndarray]:
    """Keys int64 (n,) and VOXEL (n,); nothing is read whose type or size is not as it must be."""
    size = meta["voxels"]
    voxels = np.zeros(size, VOXEL)
    layout = {name: (VOXEL[name].base, (size, *VOXEL[name].shape)) for name in COLUMNS}
    layout["keys"] = (np.dtype("<i8"), (size,))
    for name, (dtype, shape) in layout.items():
        with archive.open(f"{name}.npy") as member:
            header = _array_header(member)
            if header != (shape, False, dtype):
                raise MapFileError(f"{path} is damaged: '{name}' is {header[2]} {header[0]}")
            count = int(np.prod(shape))
            column = np.frombuffer(member.read(count * dtype.itemsize), dtype).reshape(shape)
        if name == "keys":
            keys = column
        else:
            voxels[name] = column
    return keys, voxels


def _array_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, memory order and type of a .npy file as np.savez writes it."""
    if np.lib.format.read_magic(member) != (1, 0):
        raise ValueError("an array of another version of the format")
    return np.lib.format.read_array_header_1_0(member)


def _check_voxels(
    path: str | os.PathLike, keys: np.ndarray, voxels: np.ndarray, meta: dict
) -> None:
    """MapFileError for voxels that are not in their cells, or not what a map has."""
    off = np.abs(voxels["position"] - VoxelGrid.centres_of(keys, meta["voxel_size"]))
    reach = 0.501 * meta["voxel_size"] + 1e-6 * np.abs(voxels["position"])
    sane = (off <= reach).all() and (voxels["count"] > 0).all()
    sane &= ((voxels["confidence"] > 0) & (voxels["confidence"] <= 1.001)).all()
    if not sane or len(np.unique(keys)) != len(keys):
        raise MapFileError(f"{path} is damaged: its voxels contradict each other")
