# SPDX-License-Identifier: Apache-2.0
"""Editing the live map: remove, keep, move or recolour what is inside a box, with undo.

The rule for what comes later: an edit holds until it is undone or `release` is called. Points of
later windows do not enter a removed box, nor the place something was moved from; after `keep` they
enter nowhere but in the box; in a recoloured box they take its colour. What was moved is not
removed by views that see through it, as it is not there in the world. Boxes follow the window that
saw most of their content when a loop closure moves it; an edit whose windows move is final, it
cannot be undone any more. Saving the map exports the edited scene; the rules are not saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from g2vlm_ros.dense_map.voxel_map import VoxelMap
from g2vlm_ros.geometry.sim3 import Sim3

MAX_RULES = 64
"""Edits that hold at once; every one costs every window, some 0.1 ms if it is in view."""
HISTORY_BYTES = 64 << 20
"""Memory for what undoing edits takes."""


class MapEditError(ValueError):
    """An edit that cannot be done; the message says why and what to do."""


@dataclass(frozen=True)
class OrientedBox:
    """An oriented box: centre (3,), half_size (3,) above 0, rotation map_from_box (3, 3)."""

    centre: np.ndarray
    half_size: np.ndarray
    rotation: np.ndarray

    def __post_init__(self) -> None:
        for name, shape in (("centre", (3,)), ("half_size", (3,)), ("rotation", (3, 3))):
            value = np.asarray(getattr(self, name), np.float64)
            if value.shape != shape or not np.isfinite(value).all():
                raise ValueError(f"box {name} is {value.tolist()}; it must be {shape} finite")
            object.__setattr__(self, name, value)
        if (self.half_size <= 0).any():
            raise ValueError(f"box half_size is {self.half_size.tolist()}; all must be above 0")
        if not np.abs(self.rotation @ self.rotation.T - np.eye(3)).max() < 1e-3:
            raise ValueError("box rotation is no rotation; orthonormalise it")

    def contains(self, points: np.ndarray) -> np.ndarray:
        """bool (n,): points (n, 3) inside or on the box."""
        lower, upper = self.bounds()
        inside = ((points >= lower) & (points <= upper)).all(1)
        near = np.flatnonzero(inside)
        local = (points[near].astype(np.float64) - self.centre) @ self.rotation
        inside[near] = (np.abs(local) <= self.half_size).all(1)
        return inside

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner (3,) of the axis-aligned box around it."""
        half = np.abs(self.rotation) @ self.half_size
        return self.centre - half, self.centre + half

    def moved(self, motion: Sim3) -> OrientedBox:
        """The box after a motion of the map."""
        return OrientedBox(
            motion.apply(self.centre),
            motion.scale * self.half_size,
            motion.rotation @ self.rotation,
        )


@dataclass(frozen=True)
class Edit:
    """One edit, what holds because of it, and what `undo` needs."""

    action: str
    box: OrientedBox
    changed: int
    """Voxels removed, moved or recoloured."""
    undoable: bool
    """False when what it changed does not fit into the history."""
    colour: np.ndarray | None = None
    target: OrientedBox | None = None
    """Where the box was moved to."""
    window: int | None = None
    """The window that the box follows."""
    windows: frozenset[int] = frozenset()
    before: tuple[np.ndarray, np.ndarray] | None = None
    """Keys and voxels that the edit changed, as they were."""
    keys_written: np.ndarray | None = None
    """Keys of the cells it wrote."""

    @property
    def nbytes(self) -> int:
        """Memory that undoing it takes."""
        return sum(each.nbytes for each in self.before) if self.before else 0


class MapEditor:
    """Edits a `VoxelMap` and keeps later windows from undoing that. Thread-safe as the map.

    `history`: most edits that can be undone; `history_bytes`: most memory for it. An edit that
    does not fit is done all the same, says so, and ends what can be undone.
    """

    def __init__(self, voxel_map: VoxelMap, history: int = 16, history_bytes: int = HISTORY_BYTES):
        self._map = voxel_map
        self._history, self._history_bytes = history, history_bytes
        self._edits: list[Edit] = []
        voxel_map.rules = self

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edits that hold, oldest first."""
        return tuple(self._edits)

    def remove(self, box: OrientedBox) -> Edit:
        """Remove what is inside the box."""
        with self._map.lock:
            self._check_room()
            ids, voxels = self._inside(box)
            return self._take_out("remove", box, ids, voxels)

    def keep(self, box: OrientedBox) -> Edit:
        """Remove everything outside the box."""
        with self._map.lock:
            self._check_room()
            self._map.settle()
            ids, voxels = self._map.voxels()
            outside = np.flatnonzero(~box.contains(voxels["position"]))
            return self._take_out("keep", box, ids[outside], voxels[outside])

    def move(self, box: OrientedBox, motion: Sim3) -> Edit:
        """Move what is inside the box; `motion` maps where it is to where it shall be.

        MapEditError, and no change, where part of it would lie beyond the map's range.
        """
        with self._map.lock:
            self._check_room()
            ids, voxels = self._inside(box)
            keys = self._map.keys(ids)
            positions = motion.apply(voxels["position"].astype(np.float64))
            target = self._map.keys_at(positions)
            beyond = int((target < 0).sum())
            if beyond:
                raise MapEditError(
                    f"{beyond} of {len(ids)} voxels would lie 2**20 voxel edges "
                    f"({self._map.size * 2**20:.0f} map units) or more from the origin; choose a "
                    "nearer target"
                )
            there = self._map.find(target)
            hidden = np.setdiff1d(there[there >= 0], ids)
            before = (
                np.concatenate([keys, self._map.keys(hidden)]),
                np.concatenate([voxels, self._map.take(hidden)]),
            )
            self._map.remove(ids)
            new_ids = self._map.merge(positions, voxels)
            edit = Edit("move", box, len(ids), True, target=box.moved(motion))
            return self._remember(edit, before, new_ids, voxels)

    def recolour(self, box: OrientedBox, rgb: tuple[int, int, int]) -> Edit:
        """Give all inside the box one colour (0..255 each)."""
        colour = np.array(rgb)
        if colour.shape != (3,) or not ((colour >= 0) & (colour <= 255)).all():
            raise ValueError(f"colour is {rgb}; it must be three numbers of 0 to 255")
        with self._map.lock:
            self._check_room()
            ids, voxels = self._inside(box)
            keys = self._map.keys(ids)
            painted = voxels.copy()
            painted["colour"] = colour * 256
            self._map.put(keys, painted)
            edit = Edit("recolour", box, len(ids), True, colour=colour.astype(np.uint8))
            return self._remember(edit, (keys, voxels), keys, voxels)

    def undo(self) -> Edit:
        """Take the last edit back: its cells become what they were, its rule ends.

        What later windows added to these cells is lost. ValueError when nothing can be undone.
        """
        with self._map.lock:
            if not self._edits or not self._edits[-1].undoable:
                why = f"the last one ({self._edits[-1].action}) is final" if self._edits else ""
                raise ValueError(f"there is no edit to undo; {why or 'none was keys_written'}")
            edit = self._edits[-1]
            slots = self._map.find(edit.keys_written)
            self._map.remove(slots[slots >= 0])
            self._map.put(*edit.before)
            self._edits.pop()
            return edit

    def move_to(self, voxel_map: VoxelMap) -> None:
        """Guard another map in the same frame from now on; edits until now become final."""
        with self._map.lock:
            self._map.rules, voxel_map.rules = None, self
            self._map = voxel_map
            self._edits = [_final(edit) for edit in self._edits]

    def release(self) -> None:
        """End the rules of all edits: what was removed may come back. They become final."""
        with self._map.lock:
            self._edits.clear()

    def admit(self, points: np.ndarray, colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which points (n, 3) may enter the map, bool (n,), and their colours (MapRules)."""
        keep = np.ones(len(points), bool)
        for edit in self._edits:
            inside = edit.box.contains(points)
            if edit.action == "keep":
                keep &= inside
            elif edit.action == "recolour":
                colours = np.where(inside[:, None], edit.colour, colours)
            else:
                keep &= ~inside
        return keep, colours

    def shields(self, points: np.ndarray) -> np.ndarray:
        """bool (n,): points (n, 3) that free space must not remove (MapRules)."""
        shielded = np.zeros(len(points), bool)
        for edit in self._edits:
            if edit.target is not None:
                shielded |= edit.target.contains(points)
        return shielded

    def correct(self, moves: Mapping[int, Sim3]) -> None:
        """Boxes go where their windows go (MapRules)."""
        for i, edit in enumerate(self._edits):
            if edit.window in moves:
                motion = moves[edit.window]
                target = edit.target.moved(motion) if edit.target else None
                edit = replace(edit, box=edit.box.moved(motion), target=target)
            if edit.windows & moves.keys():
                edit = _final(edit)
            self._edits[i] = edit

    def clear(self) -> None:
        """The map was reset: no edit holds any more (MapRules)."""
        self._edits.clear()

    def _check_room(self) -> None:
        """MapEditError when as many edits hold as may."""
        if len(self._edits) >= MAX_RULES:
            raise MapEditError(
                f"{len(self._edits)} edits hold already, and each costs every window; undo some, "
                "or end the rules of all (RELEASE)"
            )

    def _inside(self, box: OrientedBox) -> tuple[np.ndarray, np.ndarray]:
        self._map.settle()
        ids, voxels = self._map.voxels(*box.bounds())
        inside = np.flatnonzero(box.contains(voxels["position"]))
        return ids[inside], voxels[inside]

    def _take_out(
        self, action: str, box: OrientedBox, ids: np.ndarray, voxels: np.ndarray
    ) -> Edit:
        before = (self._map.keys(ids), voxels)
        self._map.remove(ids)
        return self._remember(Edit(action, box, len(ids), True), before, before[0], voxels)

    def _remember(
        self,
        edit: Edit,
        before: tuple[np.ndarray, np.ndarray],
        keys_written: np.ndarray,
        of: np.ndarray,
    ) -> Edit:
        windows, sizes = np.unique(of["window"], return_counts=True)
        if len(windows):
            edit = replace(
                edit,
                window=int(windows[sizes.argmax()]),
                windows=frozenset(windows.tolist()),
            )
        edit = replace(edit, before=before, keys_written=keys_written)
        if edit.nbytes > self._history_bytes:
            edit = _final(edit)
        self._edits.append(edit)
        self._forget_oldest()
        return edit

    def _forget_oldest(self) -> None:
        """Older edits become final, so that the rest fits into the history."""
        room, edits = self._history_bytes, 0
        for i in reversed(range(len(self._edits))):
            room -= self._edits[i].nbytes
            edits += 1
            if room < 0 or edits > self._history or not self._edits[i].undoable:
                self._edits[: i + 1] = [_final(edit) for edit in self._edits[: i + 1]]
                return


def _final(edit: Edit) -> Edit:
    return replace(edit, undoable=False, before=None, keys_written=None)
