# SPDX-License-Identifier: Apache-2.0
"""Keyframes as bytes, which a saved map keeps; checked before anything of them is believed.

Numbers that need no more are kept small: descriptors of features as bytes, points of surfaces as
halves. Lengths are metres, in the frame of the saved map.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from g2vlm_ros.geometry.registration import ViewSample
from g2vlm_ros.mapping.keyframes import SAVED_MAP, Keyframe, decoder
from g2vlm_ros.mapping.map_view import MapView
from g2vlm_ros.mapping.view_features import DESCRIPTOR_SIZE, ViewFeatures
from g2vlm_ros.mapping.view_images import FEATURE_WIDTH_PX
from g2vlm_ros.records import Frame

FORMAT, VERSION = "g2vlm_ros keyframes", 1
MAX_BYTES = 1 << 30
"""Largest that is read: some 10 000 keyframes."""
MAX_META_BYTES = 1 << 16
RAGGED = ("jpeg", "pixel", "feature", "feature_point", "sample_point", "sample_weight", "block")
"""Columns whose rows belong to keyframes by `counts`."""
DESCRIPTOR_UNIT = 255.0
"""Square roots of SIFT lie in 0..1."""


class KeyframeFileError(ValueError):
    """Keyframes that are damaged, or of another program, checkpoint or resolution."""


@dataclass(frozen=True)
class KeyframeOrigin:
    """What keyframes are of: others cannot be compared with them."""

    model: str
    """Name and digest of the checkpoint."""
    width_px: int
    """Of the views in the network."""


def to_bytes(
    map_views: Sequence[MapView], origin: KeyframeOrigin, max_bytes: int
) -> tuple[bytes, int]:
    """Views of one map in metres, and how many of them fit into so many bytes.

    Where not all do, those go whose neighbours in time are nearest.
    """
    selection = list(map_views)
    sizes = {id(v): _bytes_of(v) for v in selection}
    while selection and sum(sizes[id(v)] for v in selection) > max_bytes:
        orders = np.array([v.keyframe.order for v in selection])
        least = 1 + int(np.argmin(orders[2:] - orders[:-2])) if len(selection) > 2 else 0
        selection.pop(least)
    return (_packed(selection, origin), len(selection)) if selection else (b"", 0)


def from_bytes(content: bytes, origin: KeyframeOrigin) -> list[Keyframe]:
    """The keyframes of a saved map, oldest first, as views of window SAVED_MAP; [] for b"".

    KeyframeFileError where they are damaged, or of something else than `origin`.
    """
    if not content:
        return []
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(each.file_size for each in archive.infolist()) > MAX_BYTES:
                raise KeyframeFileError(f"the map's keyframes have more than {MAX_BYTES} bytes")
            _check_origin(archive, origin)
        with np.load(io.BytesIO(content), allow_pickle=False) as columns:
            return _unpacked({name: columns[name] for name in columns.files if name != "meta"})
    except KeyframeFileError:
        raise
    except (OSError, ValueError, KeyError, EOFError, IndexError, TypeError) as error:
        raise KeyframeFileError(f"the map's keyframes are damaged ({error})") from error
    except (zipfile.BadZipFile, zlib.error, MemoryError, RuntimeError) as error:
        raise KeyframeFileError(f"the map's keyframes are damaged ({error})") from error


def _bytes_of(map_view: MapView) -> int:
    keyframe = map_view.keyframe
    per_feature, per_sample = DESCRIPTOR_SIZE + 2 * 4 + 3 * 4, 3 * 2 + 2
    fixed = 4 * len(keyframe.descriptor) + 800
    return (
        len(keyframe.jpeg)
        + per_feature * len(keyframe.features)
        + per_sample * len(keyframe.sample.blocks)
        + fixed
    )


def _packed(map_views: Sequence[MapView], origin: KeyframeOrigin) -> bytes:
    keyframes = [v.keyframe for v in map_views]
    units = [v.map_from_window.scale for v in map_views]
    samples = [_local_sample(v) for v in map_views]
    ragged = {
        "jpeg": [np.frombuffer(k.jpeg, np.uint8) for k in keyframes],
        "pixel": [k.features.pixel.astype(np.float32) for k in keyframes],
        "feature": [
            np.rint(k.features.descriptor * DESCRIPTOR_UNIT).astype(np.uint8) for k in keyframes
        ],
        "feature_point": [
            (u * k.features.point_u).astype(np.float32)
            for k, u in zip(keyframes, units, strict=True)
        ],
        "sample_point": [s.astype(np.float16) for s in samples],
        "sample_weight": [
            np.rint(255 * np.clip(k.sample.weights, 0, 1)).astype(np.uint8) for k in keyframes
        ],
        "block": [k.sample.blocks.astype(np.uint8) for k in keyframes],
    }
    nothing = np.full((3, 3), np.nan)
    columns = {name: np.concatenate(rows) for name, rows in ragged.items()}
    columns |= {f"counts_{name}": np.array([len(r) for r in ragged[name]]) for name in RAGGED}
    columns |= {
        "pose": np.stack([v.map_from_camera for v in map_views]),
        "matrix": np.stack(
            [nothing if k.features.matrix is None else k.features.matrix for k in keyframes]
        ),
        "descriptor": np.stack([k.descriptor for k in keyframes]),
        "covariance": np.stack([k.covariance for k in keyframes]),
        "stamp_ns": np.array([k.frame.stamp_ns for k in keyframes]),
        "order": np.array([k.order for k in keyframes]),
        "camera": np.array([k.frame.camera for k in keyframes]),
        "frame_id": np.array([k.frame.frame_id for k in keyframes]),
    }
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "model": origin.model,
        "width_px": origin.width_px,
        "feature_width_px": FEATURE_WIDTH_PX,
    }
    file = io.BytesIO()
    np.savez(file, meta=np.array(json.dumps(meta)), **columns)
    return file.getvalue()


def _local_sample(map_view: MapView) -> np.ndarray:
    """float64 (n, 3): surfaces that a view shows, in metres in its optical frame."""
    pose = map_view.map_from_camera
    points = map_view.map_from_window.apply(map_view.keyframe.sample.points_u.astype(np.float64))
    return (points - pose[:3, 3]) @ pose[:3, :3]


def _check_origin(archive: zipfile.ZipFile, origin: KeyframeOrigin) -> None:
    if archive.getinfo("meta.npy").file_size > MAX_META_BYTES:
        raise KeyframeFileError("the map's keyframes are damaged: their description is too long")
    with archive.open("meta.npy") as member:
        meta = json.loads(str(np.lib.format.read_array(member, allow_pickle=False)))
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise KeyframeFileError("the map's keyframes are damaged: their description is none")
    if meta.get("version") != VERSION:
        raise KeyframeFileError(
            f"the map's keyframes are of version {meta.get('version')}; this program reads "
            f"version {VERSION}"
        )
    for name, ours, remedy in (
        ("model", origin.model, "load them with that checkpoint"),
        ("width_px", origin.width_px, "set model.image_width_px to that"),
        ("feature_width_px", FEATURE_WIDTH_PX, "save the map again with this program"),
    ):
        if meta.get(name) != ours:
            raise KeyframeFileError(
                f"the map's keyframes are of {name} {meta.get(name)!r}, this node's {ours!r}: "
                f"they cannot be compared; {remedy}, or say where the map lies (known_pose)"
            )


def _unpacked(columns: dict[str, np.ndarray]) -> list[Keyframe]:
    count = len(columns["pose"])
    _check(columns, count)
    parts = {
        name: np.split(columns[name], np.cumsum(columns[f"counts_{name}"])[:-1]) for name in RAGGED
    }
    youngest = int(columns["order"].max(initial=0))
    keyframes = []
    for i in range(count):
        pose, jpeg = columns["pose"][i], parts["jpeg"][i].tobytes()
        local = parts["sample_point"][i].astype(np.float64)
        sample = ViewSample(
            (local @ pose[:3, :3].T + pose[:3, 3]).astype(np.float32),
            pose[:3, 3].copy(),
            parts["sample_weight"][i].astype(np.float32) / 255,
            parts["block"][i].astype(np.int16),
        )
        matrix = columns["matrix"][i]
        features = partial(
            ViewFeatures,
            parts["pixel"][i].astype(np.float64),
            _unit_rows(parts["feature"][i]),
            parts["feature_point"][i].astype(np.float64),
            None if np.isnan(matrix).any() else matrix,
        )
        frame = Frame(
            int(columns["stamp_ns"][i]),
            str(columns["camera"][i]),
            str(columns["frame_id"][i]),
            decoder(jpeg),
        )
        keyframes.append(
            Keyframe(
                SAVED_MAP, frame, sample, pose, columns["descriptor"][i], features, jpeg,
                columns["covariance"][i], int(columns["order"][i]) - youngest - 1,
            )
        )  # fmt: skip
    return keyframes


def _unit_rows(stored: np.ndarray) -> np.ndarray:
    rows = stored.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1.0)


def _check(columns: dict[str, np.ndarray], count: int) -> None:
    """KeyframeFileError where types, shapes or numbers are not what keyframes have."""
    shapes = {
        "jpeg": (np.uint8, ()),
        "pixel": (np.float32, (2,)),
        "feature": (np.uint8, (DESCRIPTOR_SIZE,)),
        "feature_point": (np.float32, (3,)),
        "sample_point": (np.float16, (3,)),
        "sample_weight": (np.uint8, ()),
        "block": (np.uint8, ()),
        "pose": (np.float64, (4, 4)),
        "matrix": (np.float64, (3, 3)),
        "covariance": (np.float64, (6, 6)),
        "stamp_ns": (np.int64, ()),
        "order": (np.int64, ()),
    }
    damaged = KeyframeFileError
    for name, (dtype, shape) in shapes.items():
        column = columns[name]
        if column.dtype != dtype or column.shape[1:] != shape:
            raise damaged(
                f"the map's keyframes are damaged: '{name}' is {column.dtype} {column.shape}"
            )
        if name in RAGGED:
            counts = columns[f"counts_{name}"]
            fits = counts.shape == (count,) and counts.dtype == np.int64 and (counts >= 0).all()
            if not fits or counts.sum() != len(column):
                raise damaged(f"the map's keyframes are damaged: counts of '{name}' do not fit")
        elif len(column) != count:
            raise damaged(f"the map's keyframes are damaged: {len(column)} rows of '{name}'")
    for one, other in (("pixel", "feature"), ("pixel", "feature_point"), ("block", "sample_point"),
                       ("block", "sample_weight")):  # fmt: skip
        if not np.array_equal(columns[f"counts_{one}"], columns[f"counts_{other}"]):
            raise damaged(f"the map's keyframes are damaged: '{one}' and '{other}' do not fit")
    descriptor = columns["descriptor"]
    if descriptor.dtype != np.float32 or descriptor.ndim != 2 or len(descriptor) != count:
        raise damaged(f"the map's keyframes are damaged: 'descriptor' is {descriptor.shape}")
    numbers = ("pose", "descriptor", "pixel", "feature_point", "sample_point", "covariance")
    if not all(np.isfinite(columns[name]).all() for name in numbers):
        raise damaged("the map's keyframes are damaged: some numbers are not finite")
    turns = columns["pose"][:, :3, :3]
    if np.abs(turns @ turns.transpose(0, 2, 1) - np.eye(3)).max(initial=0.0) > 1e-3:
        raise damaged("the map's keyframes are damaged: a pose is none")
