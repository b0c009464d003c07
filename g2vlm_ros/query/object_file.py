# SPDX-License-Identifier: Apache-2.0
"""Objects and rooms of a map as JSON, as they lie in its file."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from g2vlm_ros.dense_map.rooms import Room
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.query.likelihoods import MAX_EVIDENCE
from g2vlm_ros.query.map_object import MAX_NAME, MapObject, transformed

VERSION = 2
MAX_LENGTH_M = 1e6
"""Farther from the map's origin nothing is drawn or driven to."""
MAX_COUNT = (1 << 31) - 1
"""Of ids, sightings and seconds: MapObject.msg has 32 bits, and ids go on counting."""
OF_THE_MAP = ("map_id", "window_id", "room", "room_name")
"""Fields that a file does not keep: they are of the map that it is loaded into."""


class ObjectMemoryError(ValueError):
    """Saved objects that cannot be read."""


def to_bytes(objects: Sequence[MapObject], rooms: Sequence[Room] = ()) -> bytes:
    """Objects and rooms as JSON."""
    rows = []
    for each in objects:
        row = asdict(each)
        for field in ("centre", "size", "covariance"):
            row[field] = row[field].ravel().tolist()
        row["seen_from"] = None if each.seen_from is None else each.seen_from.tolist()
        row["picture"] = base64.b64encode(each.picture).decode()
        for field in OF_THE_MAP:
            del row[field]
        rows.append(row)
    document = {"version": VERSION, "objects": rows, "rooms": [asdict(room) for room in rooms]}
    return json.dumps(document).encode()


def from_bytes(content: bytes, map_from_file: Sim3) -> tuple[list[MapObject], list[Room]]:
    """The objects and rooms of `to_bytes`, each checked; none of nothing.

    map_from_file, rigid: where the file's origin lies now. ObjectMemoryError says what is wrong.
    """
    if not content:
        return [], []
    try:
        document = json.loads(content)
        if document["version"] != VERSION:
            raise ObjectMemoryError(
                f"saved objects have version {document['version']}, not {VERSION}"
            )
        objects = [_object(row) for row in document["objects"]]
        rooms = [_room(row) for row in document["rooms"]]
        _check_ids("object", [each.id for each in objects])
        _check_ids("room", [room.id for room in rooms])
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, ObjectMemoryError):
            raise
        raise ObjectMemoryError(f"saved objects are damaged: {error}") from error
    return (
        [transformed(each, map_from_file) for each in objects],
        [_moved(room, map_from_file) for room in rooms],
    )


def _check_ids(kind: str, ids: list[int]) -> None:
    if len(set(ids)) < len(ids):
        raise ObjectMemoryError(f"two saved {kind}s have one id")


def _room(row: dict[str, Any]) -> Room:
    x, y = _numbers(row, "middle", 2).tolist()
    area_m2 = float(_numbers(row, "area_m2", (), low=0.0, high=MAX_LENGTH_M**2))
    return Room(_whole(row, "id", 1), (x, y), area_m2, _text(row, "name"))


def _moved(room: Room, map_from_file: Sim3) -> Room:
    x, y, _ = map_from_file.apply(np.array([[*room.middle, 0.0]]))[0]
    return replace(room, middle=(float(x), float(y)))


def _object(row: dict[str, Any]) -> MapObject:
    colour, camera = row["colour"], row["seen_from"]
    label = _text(row, "label")
    if not label:
        raise ObjectMemoryError("a saved object has no label")
    return MapObject(
        id=_whole(row, "id", 1),
        label=label,
        name=_text(row, "name"),
        centre=_numbers(row, "centre", 3),
        size=_numbers(row, "size", 3, low=0.0),
        yaw_rad=float(_numbers(row, "yaw_rad", ())),
        covariance=_covariance(row),
        map_id=0,
        window_id=0,
        first_seen_ns=_stamp(row, "first_seen_ns"),
        last_seen_ns=_stamp(row, "last_seen_ns"),
        camera=_text(row, "camera"),
        box_px=tuple(_numbers(row, "box_px", 4).tolist()),
        colour=None if colour is None else tuple(_numbers(row, "colour", 3, 0.0, 1.0).tolist()),
        evidence=float(_numbers(row, "evidence", (), -MAX_EVIDENCE, MAX_EVIDENCE)),
        sightings=_whole(row, "sightings"),
        misses=_whole(row, "misses"),
        overlooked=_whole(row, "overlooked"),
        asked=_flag(row, "asked", False),
        detected=_flag(row, "detected", True),
        look_again=_flag(row, "look_again", False),
        moved=_flag(row, "moved", False),
        seen_from=None if camera is None else _numbers(row, "seen_from", 3),
        picture=base64.b64decode(row["picture"], validate=True),
        picture_ns=_stamp(row, "picture_ns"),
        picture_px=float(_numbers(row, "picture_px", (), 0.0, MAX_LENGTH_M**2)),
    )


def _numbers(
    row: dict[str, Any],
    field: str,
    shape: int | tuple[int, ...],
    low: float = -MAX_LENGTH_M,
    high: float = MAX_LENGTH_M,
) -> np.ndarray:
    """float64 of a shape, each within bounds."""
    values = np.array(row[field], np.float64).reshape(shape)
    if not ((values >= low) & (values <= high)).all():
        raise ObjectMemoryError(f"saved {field} is {row[field]}; it must be {low:g} to {high:g}")
    return values


def _covariance(row: dict[str, Any]) -> np.ndarray:
    covariance = _numbers(row, "covariance", (3, 3), high=MAX_LENGTH_M**2)
    symmetric = np.allclose(covariance, covariance.T)
    if not symmetric or np.linalg.eigvalsh(covariance)[0] <= 0:
        raise ObjectMemoryError(f"saved covariance {row['covariance']} is none of a place")
    return covariance


def _whole(row: dict[str, Any], field: str, low: int = 0, high: int = MAX_COUNT) -> int:
    value = row[field]
    if type(value) is not int or not low <= value <= high:
        raise ObjectMemoryError(
            f"saved {field} is {value!r}; it must be a whole number of {low} to {high}"
        )
    return value


def _stamp(row: dict[str, Any], field: str) -> int:
    return _whole(row, field, high=MAX_COUNT * 10**9)


def _flag(row: dict[str, Any], field: str, default: bool) -> bool:
    """A field that older files may lack."""
    value = row.get(field, default)
    if not isinstance(value, bool):
        raise ObjectMemoryError(f"saved {field} is {value!r}; it must be true or false")
    return value


def _text(row: dict[str, Any], field: str) -> str:
    """Without what no message can carry: control characters, halves of characters."""
    value = row[field]
    if not isinstance(value, str):
        raise ObjectMemoryError(f"saved {field} is {value!r}; it must be a text")
    return "".join(c for c in value[:MAX_NAME] if c.isprintable()).strip()
