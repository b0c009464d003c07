"""What changed in a map: counts, and what is new since a revision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from g2vlm_ros.geometry.point_cloud import POINT_BYTES, POINT_FIELDS
from g2vlm_ros.kernels.voxels import pack_voxels

POINT = np.dtype([(name, "<u4" if name == "rgb" else "<f4") for name, _ in POINT_FIELDS])
"""A packed point of `cloud`, 20 bytes: x, y, z, rgb (0x00RRGGBB), confidence."""


CHANGED_POINT = np.dtype(POINT.descr + [("id", "<i4")])
"""A row of `change_rows`, 24 bytes: a packed point, and the id of its voxel."""
EVERYTHING = -1
"""The id of a row that says: forget all voxels."""


def rgb_of(voxels: np.ndarray) -> np.ndarray:
    """uint8 (n, 3): the colours of VOXEL records, rounded."""
    return (voxels["colour"] + np.uint16(128) >> 8).astype(np.uint8)


def points_of(voxels: np.ndarray) -> np.ndarray:
    """POINT (n,): VOXEL records as packed points; free slots (count 0) are left out."""
    points = np.empty(len(voxels), POINT)
    return points[: pack_voxels(voxels, None, points)]


@dataclass(frozen=True)
class MapCounts:
    """What happened since the start, in points (first three) and voxels."""

    integrated: int = 0
    out_of_range: int = 0
    """Points not finite or more than 2**20 voxels from the origin."""
    screened: int = 0
    """Points that an edit keeps out."""
    carved: int = 0
    """Removed because newer views saw through them."""
    evicted: int = 0
    """Removed because memory was short."""
    replaced: int = 0
    """Placed anew after corrections."""
    refused: int = 0
    """Voxels for which not even eviction made room: a window larger than the map."""


@dataclass(frozen=True)
class ChangeSet:
    """What turns the map of revision `since` into that of `revision`."""

    since: int
    revision: int
    start_over: bool
    """The map was reset or loaded in between: drop everything first."""
    ids: np.ndarray
    """int32 (n,): voxels that came or changed. An id is a voxel's own while it lives."""
    voxels: np.ndarray
    """VOXEL (n,): as they are now."""
    removed: np.ndarray
    """int32 (m,): ids that hold no voxel now; some may never have been known to a receiver."""
    ids_end: int
    """All ids are below this."""

    @property
    def added(self) -> np.ndarray:
        """bool (n,): voxels that came after `since`; the others were only updated."""
        return self.voxels["born"] > self.since

    @property
    def nbytes(self) -> int:
        """Bytes to publish it: an id and a point each, and the removed ids."""
        return len(self.ids) * (4 + POINT_BYTES) + len(self.removed) * 4


def change_rows(change: ChangeSet) -> np.ndarray:
    """CHANGED_POINT (n,), to be applied in order: `~/map_updates`.

    A row with a finite position sets the voxel of its id; one with NaN removes it, and with the id
    EVERYTHING, which only the first row has, all of them.
    """
    removed_ids = change.removed
    if change.start_over:
        removed_ids = np.concatenate([[EVERYTHING], removed_ids]).astype(np.int32)
    rows = np.zeros(len(removed_ids) + len(change.ids), CHANGED_POINT)
    removed, present = rows[: len(removed_ids)], rows[len(removed_ids) :]
    for axis in "xyz":
        removed[axis] = np.nan
    removed["id"] = removed_ids
    pack_voxels(change.voxels, change.ids, present)
    return rows
