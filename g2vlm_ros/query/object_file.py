# SPDX-License-Identifier: Apache-2.0
"""Objects of a map as JSON, as they lie in its file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.query.map_object import MAX_NAME, MapObject, transformed


class ObjectMemoryError(ValueError):
    """Saved objects that cannot be read."""


def to_bytes(objects: Sequence[MapObject]) -> bytes:
    """Objects as JSON."""
    rows = []
    for each in objects:
        row = asdict(each)
        for field in ("centre", "size", "covariance"):
            row[field] = row[field].ravel().tolist()
        rows.append(row)
    return json.dumps({"version": 1, "objects": rows}).encode()


def from_bytes(content: bytes, map_from_file: Sim3) -> list[MapObject]:
    """The objects of `to_bytes`, each checked; none of nothing.

    map_from_file, rigid: where the file's origin lies now. ObjectMemoryError says what is wrong.
    """
    return [transformed(each, map_from_file) for each in _read(content)] if content else []


def _read(content: bytes) -> list[MapObject]:
    try:
        document = json.loads(content)
        if document["version"] != 1:
            raise ObjectMemoryError(f"saved objects have version {document['version']}, not 1")
        objects = []
        for row in document["objects"]:
            numbers = {
                field: np.array(row[field], np.float64).reshape(shape)
                for field, shape in (("centre", 3), ("size", 3), ("covariance", (3, 3)))
            }
            colour = row["colour"]
            each = MapObject(
                **{
                    **row,
                    **numbers,
                    "id": int(row["id"]),
                    "label": str(row["label"])[:MAX_NAME],
                    "name": str(row["name"])[:MAX_NAME],
                    "box_px": tuple(float(corner) for corner in row["box_px"]),
                    "colour": None if colour is None else tuple(float(c) for c in colour),
                }
            )
            finite = [each.centre, each.size, each.covariance, each.yaw_rad, each.evidence]
            if not all(np.isfinite(value).all() for value in finite) or each.id < 1:
                raise ObjectMemoryError(f"saved object {each.id} is not finite")
            objects.append(each)
        return objects
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, ObjectMemoryError):
            raise
        raise ObjectMemoryError(f"saved objects are damaged: {error}") from error
