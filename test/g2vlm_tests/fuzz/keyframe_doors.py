# SPDX-License-Identifier: Apache-2.0
"""Doors of the keyframes in a saved map: their bytes damaged, and their columns altered."""

from __future__ import annotations

import io
import json
import zipfile
from functools import partial

import numpy as np
from g2vlm_tests.fuzz.door import Door, damaged
from hypothesis import strategies as st

from g2vlm_ros.geometry.registration import ViewSample
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.mapping.keyframe_files import KeyframeOrigin, from_bytes, to_bytes
from g2vlm_ros.mapping.keyframes import SAVED_MAP, Keyframe, compressed, decoder
from g2vlm_ros.mapping.map_view import MapView
from g2vlm_ros.mapping.view_features import ViewFeatures, match_features
from g2vlm_ros.records import Frame

ORIGIN = KeyframeOrigin("checkpoint@01234567", 32)
NUMBERS = (0, -1, 255, 2**40, -(2**63), np.nan, np.inf, 1e308)
KINDS = ("<f8", "<f4", "<f2", "<i8", "|u1", "|b1", "<U3", "|S2", "<c16")


def keyframe_doors() -> list[Door]:
    """Damaged as bytes, where checksums find most; and whole archives of wrong columns."""
    content = two_keyframes()
    return [
        Door("keyframes of map files", damaged(content), enter),
        Door("columns of keyframes", st.lists(CHANGES, min_size=1, max_size=3), altered_columns),
    ]


def two_keyframes() -> bytes:
    """A file of two small views."""
    rng, views = np.random.default_rng(0), []
    for number in range(2):
        image = rng.integers(0, 255, (24, 32, 3), np.uint8)
        jpeg = compressed(image, 32)
        features = partial(
            ViewFeatures,
            rng.uniform(0, 24, (20, 2)),
            rng.uniform(0, 1, (20, 128)).astype(np.float32),
            rng.normal(size=(20, 3)),
            np.diag([28.0, 28.0, 1.0]),
        )
        sample = ViewSample(
            rng.normal(size=(30, 3)).astype(np.float32),
            np.zeros(3),
            np.ones(30, np.float32),
            np.zeros(30, np.int16),
        )
        keyframe = Keyframe(
            SAVED_MAP,
            Frame(number + 1, "camera", "optical", decoder(jpeg)),
            sample,
            np.eye(4),
            np.ones(8, np.float32) / np.sqrt(8).astype(np.float32),
            features,
            jpeg,
            order=number,
        )
        views.append(MapView(keyframe, Sim3.identity()))
    content, _ = to_bytes(views, ORIGIN, 1 << 20)
    return content


COLUMNS = dict(np.load(io.BytesIO(two_keyframes()), allow_pickle=False))
CHANGES = st.tuples(
    st.sampled_from(sorted(COLUMNS)),
    st.sampled_from(("number", "kind", "shape", "shorter", "longer", "gone", "huge", "meta")),
    st.integers(0, 2**16),
)


def enter(content: bytes) -> None:
    """Read keyframes, and use what they hold as a search does."""
    keyframes = from_bytes(content, ORIGIN)
    for keyframe in keyframes:
        points = MapView(keyframe, Sim3.identity()).points()
        matches = match_features(keyframe.features, keyframes[0].features)
        if not np.isfinite(points[matches[:, 0]]).all():
            raise AssertionError("a point of a keyframe is not finite")
        keyframe.frame.decode()


def altered_columns(changes: list[tuple[str, str, int]]) -> None:
    """Enter with a sound archive of columns that are not what keyframes have."""
    columns: dict[str, np.ndarray] = dict(COLUMNS)
    for name, kind, number in changes:
        column = _altered(columns.pop(name), kind, number) if name in columns else None
        if column is not None:
            columns[name] = column
    enter(_archive(columns, {name for name, kind, _ in changes if kind == "huge"}))


def _altered(column: np.ndarray, kind: str, number: int) -> np.ndarray | None:
    if kind == "gone":
        return None
    if kind == "meta":
        return np.array(json.dumps({"version": number, "format": "x" * number}))
    column = column.copy()
    if kind == "number" and column.dtype.kind in "fiu" and column.size:
        value = np.float64(NUMBERS[number % len(NUMBERS)])
        with np.errstate(all="ignore"):
            column.flat[number % column.size] = value.astype(column.dtype)
    elif kind == "kind":
        dtype = np.dtype(KINDS[number % len(KINDS)])
        return np.zeros(column.shape, dtype)
    elif kind == "shape":
        return column.reshape(-1) if number % 2 else column[None]
    elif kind == "shorter" and column.ndim:
        return column[: number % (len(column) + 1)]
    elif kind == "longer" and column.ndim:
        return np.concatenate([column, column[: 1 + number % max(len(column), 1)]])
    return column


def _archive(columns: dict[str, np.ndarray], huge: set[str]) -> bytes:
    """Of columns, some of which promise far more in their header than they hold."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, column in columns.items():
            header = np.lib.format.header_data_from_array_1_0(column)
            if name in huge:
                header["shape"] = (2**31, 4)
            member = io.BytesIO()
            np.lib.format.write_array_header_1_0(member, header)
            archive.writestr(f"{name}.npy", member.getvalue() + column.tobytes())
    return content.getvalue()
