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
from g2vlm_ros.query.map_object import MAX_NAME, MapObject, transformed

VERSION = 2
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
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, ObjectMemoryError):
            raise
        raise ObjectMemoryError(f"saved objects are damaged: {error}") from error
    return (
        [transformed(each, map_from_file) for each in objects],
        [_moved(room, map_from_file) for room in rooms],
    )


def _room(row: dict[str, Any]) -> Room:
    x, y = (float(value) for value in row["middle"])
    room = Room(int(row["id"]), (x, y), float(row["area_m2"]), str(row["name"])[:MAX_NAME])
    if not np.isfinite((x, y, room.area_m2)).all() or room.id < 1:
        raise ObjectMemoryError(f"saved room {room.id} is not finite")
    return room


def _moved(room: Room, map_from_file: Sim3) -> Room:
    x, y, _ = map_from_file.apply(np.array([[*room.middle, 0.0]]))[0]
    return replace(room, middle=(float(x), float(y)))


def _object(row: dict[str, Any]) -> MapObject:
    numbers = {
        field: np.array(row[field], np.float64).reshape(shape)
        for field, shape in (("centre", 3), ("size", 3), ("covariance", (3, 3)))
    }
    colour, camera = row["colour"], row["seen_from"]
    each = MapObject(
        **{
            **row,
            **numbers,
            "id": int(row["id"]),
            "label": str(row["label"])[:MAX_NAME],
            "name": str(row["name"])[:MAX_NAME],
            "box_px": tuple(float(corner) for corner in row["box_px"]),
            "colour": None if colour is None else tuple(float(c) for c in colour),
            "seen_from": None if camera is None else np.array(camera, np.float64).reshape(3),
            "picture": base64.b64decode(row["picture"], validate=True),
            "map_id": 0,
            "window_id": 0,
        }
    )
    finite = [each.centre, each.size, each.covariance, each.yaw_rad, each.evidence]
    finite += [] if each.seen_from is None else [each.seen_from]
    if not all(np.isfinite(value).all() for value in finite) or each.id < 1:
        raise ObjectMemoryError(f"saved object {each.id} is not finite")
    return each
