# SPDX-License-Identifier: Apache-2.0
"""Maps on disk: NPZ holds all of a map and can be continued, PLY and PCD are for other tools.

Files are written beside their name and take it when complete. What cannot be read is refused with
one sentence (MapFileError), and the map stays as it was.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from g2vlm_ros.dense_map.map_changes import POINT, points_of, rgb_of
from g2vlm_ros.dense_map.voxel_grid import VOXEL, VoxelGrid
from g2vlm_ros.dense_map.voxel_map import VoxelMap
from g2vlm_ros.geometry.point_cloud import _replacing as replacing
from g2vlm_ros.geometry.point_cloud import write_ply
from g2vlm_ros.records import ScaleState

FORMAT = "g2vlm_ros voxel map"
VERSION = 1
COLUMNS = ("position", "colour", "count", "confidence", "stamp_ns", "window")
"""What is kept of a voxel; revisions belong to the running map."""

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
        with np.load(path, allow_pickle=False) as file:
            meta = _checked_meta(path, json.loads(str(file["meta"])))
            keys = file["keys"]
            columns = {name: file[name] for name in COLUMNS}
    except FileNotFoundError as error:
        raise MapFileError(f"there is no map file {path}") from error
    except (OSError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise MapFileError(f"{path} is no map file or is damaged ({error})") from error
    except (ValueError, TypeError, AttributeError) as error:
        if isinstance(error, MapFileError):
            raise
        raise MapFileError(f"{path} is no map file or is damaged ({error})") from error
    if meta["voxel_size"] != voxel_map.size:
        raise MapFileError(
            f"{path} has voxels of {meta['voxel_size']}, this map of {voxel_map.size}; "
            "set the voxel size to the file's"
        )
    voxels = _checked_voxels(path, keys, columns, meta)
    try:
        voxel_map.replace_all(keys, voxels)
    except ValueError as error:
        raise MapFileError(f"{path} does not fit: {error}") from error
    unit = meta["metres_per_unit"]
    return MapInfo(
        meta["frame"], ScaleState(meta["scale_state"]), float("nan") if unit is None else unit
    )


def read_pcd(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points float32 (n, 3), colours uint8 (n, 3), confidence float32 (n,) of a saved PCD.

    Reads the layout that `save_map` writes; MapFileError for any other or a truncated file.
    """
    header, _, body = Path(path).read_bytes().partition(b"\nDATA binary\n")
    size, rest = divmod(len(body), POINT.itemsize)
    wanted = _pcd_header(size).encode().partition(b"\nDATA binary\n")[0]
    lines = [line for line in header.split(b"\n") if not line.startswith(b"#")]
    if rest or b"\n".join(lines) != wanted:
        raise MapFileError(f"{path} is no complete PCD file as save_map writes it")
    rows = np.frombuffer(body, POINT)
    points = np.stack([rows[name] for name in "xyz"], axis=-1)
    colours = np.stack([rows["rgb"] >> shift & 255 for shift in (16, 8, 0)], axis=-1)
    return points, colours.astype(np.uint8), rows["confidence"].copy()


def _write_npz(
    path: str | os.PathLike, keys: np.ndarray, voxels: np.ndarray, size: float, info: MapInfo
) -> None:
    known = np.isfinite(info.metres_per_unit)
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "voxel_size": size,
        "voxels": len(voxels),
        "frame": info.frame,
        "scale_state": int(info.scale_state),
        "metres_per_unit": info.metres_per_unit if known else None,
    }
    columns = {name: np.ascontiguousarray(voxels[name]) for name in COLUMNS}
    with replacing(path) as file:
        np.savez(file, meta=np.array(json.dumps(meta)), keys=keys, **columns)


def _write_ply(
    path: str | os.PathLike, keys: np.ndarray, voxels: np.ndarray, size: float, info: MapInfo
) -> None:
    write_ply(path, voxels["position"], rgb_of(voxels), voxels["confidence"])


def _write_pcd(
    path: str | os.PathLike, keys: np.ndarray, voxels: np.ndarray, size: float, info: MapInfo
) -> None:
    with replacing(path) as file:
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


def _checked_meta(path: str | os.PathLike, meta: dict) -> dict:
    if meta.get("format") != FORMAT:
        raise MapFileError(f"{path} holds no voxel map; give one that this program saved")
    if meta["version"] != VERSION:
        raise MapFileError(
            f"{path} is of version {meta['version']}; this program reads version {VERSION}"
        )
    ScaleState(meta["scale_state"])
    return meta


def _checked_voxels(
    path: str | os.PathLike, keys: np.ndarray, columns: dict[str, np.ndarray], meta: dict
) -> np.ndarray:
    """VOXEL (n,) of the columns, or MapFileError when they are not those of a map."""
    size = meta["voxels"]
    wanted = {name: (VOXEL[name].base, (size, *VOXEL[name].shape)) for name in COLUMNS}
    wanted["keys"] = (np.dtype("<i8"), (size,))
    for name, (dtype, shape) in wanted.items():
        got = keys if name == "keys" else columns[name]
        if got.dtype != dtype or got.shape != shape:
            raise MapFileError(f"{path} is damaged: '{name}' is {got.dtype} {got.shape}")
    voxels = np.zeros(size, VOXEL)
    for name, column in columns.items():
        voxels[name] = column
    off = np.abs(voxels["position"] - VoxelGrid.centres_of(keys, meta["voxel_size"]))
    reach = 0.501 * meta["voxel_size"] + 1e-6 * np.abs(voxels["position"])
    sane = (off <= reach).all() and (voxels["count"] > 0).all()
    sane &= ((voxels["confidence"] > 0) & (voxels["confidence"] <= 1.001)).all()
    if not sane or len(np.unique(keys)) != size:
        raise MapFileError(f"{path} is damaged: its voxels contradict each other")
    return voxels
