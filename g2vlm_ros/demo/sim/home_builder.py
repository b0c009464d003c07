# SPDX-License-Identifier: Apache-2.0
"""Builds a home from a seed: lays out rooms and doorways, raises walls, places furniture."""

from __future__ import annotations

import numpy as np

from g2vlm_ros.demo.sim import furniture, materials
from g2vlm_ros.demo.sim.furniture import BOX
from g2vlm_ros.demo.sim.home import (
    DOOR_CLEAR_M,
    DOOR_HEIGHT_M,
    DOOR_WIDTH_M,
    STRUCTURE,
    WALL_M,
    Door,
    Home,
    Item,
    Rectangle,
    Room,
    Solid,
    overlaps,
)
from g2vlm_ros.demo.sim.materials import Material


def build_home(seed: int, attempt: int = 0) -> Home:
    """The home of a seed, the same on every machine; `attempt` counts refurnishings."""
    return _Builder(seed, attempt).home()


class _Builder:
    def __init__(self, seed: int, attempt: int):
        self.seed = seed
        self.rng = np.random.default_rng([seed, 1, attempt])
        self.rooms: list[Room] = []
        self.doors: list[Door] = []
        self.items: list[Item] = []
        self.solids: list[Solid] = []
        self.shared = {
            "wood": materials.wood(self.rng),
            "white": materials.plain(self.rng, "white"),
            "dark": materials.plain(self.rng, "black"),
            "green": materials.paint(self.rng, "green"),
        }

    def home(self) -> Home:
        self._lay_out()
        for index in range(len(self.rooms)):
            self._build_room(index)
        for index in range(len(self.rooms)):
            self._furnish(index)
        return Home(
            self.seed, tuple(self.rooms), tuple(self.doors), tuple(self.items), tuple(self.solids)
        )

    # --- rooms -----------------------------------------------------------------------------------

    def _lay_out(self) -> None:
        rng = self.rng
        height = rng.uniform(2.4, 2.8)
        self._add_room((0.0, 0.0, *rng.uniform(3.0, 6.0, 2)), height)
        count = rng.integers(1, 4)
        for _ in range(12):
            if len(self.rooms) == count:
                break
            host = int(rng.integers(len(self.rooms)))
            rectangle, door = self._attach(host)
            if not any(
                overlaps(rectangle, room.rectangle, 2 * WALL_M - 1e-6) for room in self.rooms
            ):
                self.doors.append(door)
                self._add_room(rectangle, height)

    def _add_room(self, rectangle: Rectangle, height: float) -> None:
        rng = self.rng
        x0, y0, x1, y1 = rectangle
        middle = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
        middle += rng.uniform(-0.25, 0.25, 2) * (x1 - x0, y1 - y0)
        light = np.array([*middle, height - 0.15])
        self.rooms.append(Room(rectangle, height, light, rng.uniform(0.8, 1.1)))

    def _attach(self, host: int) -> tuple[Rectangle, Door]:
        """A new room beside the host and the doorway between them."""
        rng = self.rng
        x0, y0, x1, y1 = self.rooms[host].rectangle
        low, high = np.array([x0, y0]), np.array([x1, y1])
        axis, positive = int(rng.integers(2)), bool(rng.integers(2))
        along = 1 - axis
        size = rng.uniform(3.0, 6.0, 2)
        new_low = np.empty(2)
        gap = 2 * WALL_M
        new_low[axis] = high[axis] + gap if positive else low[axis] - gap - size[axis]
        need = DOOR_WIDTH_M + 0.5
        new_low[along] = rng.uniform(low[along] - size[along] + need, high[along] - need)
        new_high = new_low + size
        shared = max(low[along], new_low[along]), min(high[along], new_high[along])
        centre = np.empty(2)
        centre[axis] = high[axis] + WALL_M if positive else low[axis] - WALL_M
        centre[along] = rng.uniform(shared[0] + need / 2, shared[1] - need / 2)
        rectangle = (new_low[0], new_low[1], new_high[0], new_high[1])
        return rectangle, Door((host, len(self.rooms)), centre, axis)

    def _build_room(self, index: int) -> None:
        rng, room = self.rng, self.rooms[index]
        x0, y0, x1, y1 = room.rectangle
        t, height = WALL_M, room.height_m
        middle, size = room.middle, np.array([x1 - x0, y1 - y0])
        half = np.array([*(size / 2 + t), t / 2])
        for name, z, material in (
            ("floor", -t / 2, materials.floor(rng)),
            ("ceiling", height + t / 2, materials.ceiling(rng)),
        ):
            item = self._structure(name, index, np.array([*middle, z]), 2 * half)
            self._solid(BOX, np.array([*middle, z]), half, 0.0, material, item)
        centre = np.array([*middle, height / 2])
        item = self._structure("wall", index, centre, np.array([*size, height]))
        accent = materials.wall(rng)
        common = materials.wall(rng)
        special = int(rng.integers(8))
        for side, (axis, positive) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
            material = accent if side == special else common
            self._wall(index, axis, bool(positive), material, item)

    def _wall(self, index: int, axis: int, positive: bool, material: Material, item: int) -> None:
        """One wall of a room, with gaps where doorways are."""
        room = self.rooms[index]
        x0, y0, x1, y1 = room.rectangle
        low, high = np.array([x0, y0]), np.array([x1, y1])
        along, t = 1 - axis, WALL_M
        plane = high[axis] + t / 2 if positive else low[axis] - t / 2
        gaps = sorted(
            door.centre_m[along]
            for door in self.doors
            if index in door.rooms
            and door.axis == axis
            and abs(door.centre_m[axis] - (high[axis] + t if positive else low[axis] - t)) < 1e-6
        )
        edges = [low[along] - t]
        for centre in gaps:
            edges += [centre - DOOR_WIDTH_M / 2, centre + DOOR_WIDTH_M / 2]
        edges.append(high[along] + t)
        pieces = [(a, b, 0.0) for a, b in zip(edges[::2], edges[1::2], strict=True)]
        pieces += [(c - DOOR_WIDTH_M / 2, c + DOOR_WIDTH_M / 2, DOOR_HEIGHT_M) for c in gaps]
        for a, b, bottom in pieces:
            centre, half = np.empty(3), np.empty(3)
            centre[axis], half[axis] = plane, t / 2
            centre[along], half[along] = (a + b) / 2, (b - a) / 2
            centre[2], half[2] = (bottom + room.height_m) / 2, (room.height_m - bottom) / 2
            self._solid(BOX, centre, half, 0.0, material, item)

    def _structure(self, name: str, room: int, centre: np.ndarray, size: np.ndarray) -> int:
        self.items.append(
            Item(len(self.items) + 1, name, "", room, centre, size, 0.0, np.zeros(3))
        )
        return len(self.items)

    def _solid(
        self,
        shape: int,
        centre: np.ndarray,
        half: np.ndarray,
        yaw: float,
        material: Material,
        item: int,
    ) -> None:
        self.solids.append(Solid(shape, centre, half, yaw, material, item))

    # --- furniture -------------------------------------------------------------------------------

    def _furnish(self, index: int) -> None:
        rng, room = self.rng, self.rooms[index]
        x0, y0, x1, y1 = room.rectangle
        area = (x1 - x0) * (y1 - y0)
        kept_free = [self._door_zone(door, room) for door in self.doors if index in door.rooms]
        occupied: list[Rectangle] = []
        names = list(furniture.AT_WALL)
        for _ in range(int(rng.integers(2, 4 + area // 8))):
            self._try_at_wall(index, names[rng.integers(len(names))], kept_free, occupied)
        names = list(furniture.ON_FLOOR)
        for _ in range(int(rng.integers(2, 5 + area // 6))):
            self._try_on_floor(index, names[rng.integers(len(names))], kept_free, occupied)
        if rng.random() < 0.35:
            self._try_moving(index, kept_free, occupied)
        for _ in range(int(rng.integers(1, 5))):
            self._try_on_wall(index)

    def _door_zone(self, door: Door, room: Room) -> Rectangle:
        reach = np.full(2, DOOR_WIDTH_M / 2 + 0.15)
        reach[door.axis] = DOOR_CLEAR_M / 2
        centre = door.before(room, WALL_M + DOOR_CLEAR_M / 2)
        return (*(centre - reach), *(centre + reach))

    def _place(
        self,
        name: str,
        parts: list[furniture.Part],
        index: int,
        position: np.ndarray,
        yaw: float,
        travel: np.ndarray | None = None,
    ) -> Item:
        """Adds a thing with its solids; position (3,) is where its own origin goes."""
        rng = self.rng
        low = np.min([np.subtract(p.centre, p.half) for p in parts], axis=0)
        high = np.max([np.add(p.centre, p.half) for p in parts], axis=0)
        turn = _turn(yaw)
        colours = ("white", "blue") if name == "window" else tuple(materials.COLOURS)
        colour = colours[rng.integers(len(colours))]
        looks = {"main": materials.paint(rng, colour), **self.shared}
        travel = np.zeros(3) if travel is None else travel
        item = Item(
            len(self.items) + 1,
            name,
            colour,
            index,
            position + turn @ ((low + high) / 2),
            high - low,
            yaw,
            travel,
            float(rng.uniform(6.0, 14.0)),
        )
        self.items.append(item)
        for part in parts:
            centre, half = position + turn @ np.array(part.centre), np.array(part.half)
            self._solid(part.shape, centre, half, yaw, looks[part.role], item.id)
        return item

    def _try_at_wall(self, index: int, name: str, kept_free: list, occupied: list) -> None:
        rng = self.rng
        parts = furniture.AT_WALL[name](rng)
        half_x, half_y = _reach(parts)
        for _ in range(6):
            axis, positive = int(rng.integers(2)), bool(rng.integers(2))
            position, yaw = self._against_wall(index, axis, positive, half_x, half_y + 0.02)
            if position is not None and self._free(
                position, half_x, half_y, yaw, kept_free, occupied
            ):
                item = self._place(name, parts, index, np.array([*position, 0.0]), yaw)
                occupied.append(item.footprint())
                return

    def _against_wall(
        self, index: int, axis: int, positive: bool, half_x: float, depth: float
    ) -> tuple[np.ndarray | None, float]:
        """A random place (2,) along a wall, its back to it; None when the wall is too short."""
        x0, y0, x1, y1 = self.rooms[index].rectangle
        low, high = np.array([x0, y0]), np.array([x1, y1])
        along = 1 - axis
        if high[along] - low[along] < 2 * half_x + 0.1:
            return None, 0.0
        position = np.empty(2)
        position[axis] = high[axis] - depth if positive else low[axis] + depth
        position[along] = self.rng.uniform(low[along] + half_x + 0.05, high[along] - half_x - 0.05)
        # The back of a thing is its +y side: turn +y towards the wall.
        yaw = {(1, True): 0.0, (1, False): np.pi, (0, True): -np.pi / 2, (0, False): np.pi / 2}
        return position, yaw[axis, positive]

    def _free(
        self,
        position: np.ndarray,
        half_x: float,
        half_y: float,
        yaw: float,
        kept_free: list,
        occupied: list,
    ) -> bool:
        c, s = abs(np.cos(yaw)), abs(np.sin(yaw))
        reach = np.array([c * half_x + s * half_y, s * half_x + c * half_y])
        mine = (*(position - reach), *(position + reach))
        return not any(overlaps(mine, other) for other in kept_free) and not any(
            overlaps(mine, other, 0.08) for other in occupied
        )

    def _spot(self, index: int, reach: float) -> np.ndarray | None:
        x0, y0, x1, y1 = self.rooms[index].rectangle
        margin = reach + 0.1
        if min(x1 - x0, y1 - y0) < 2 * margin:
            return None
        return self.rng.uniform((x0 + margin, y0 + margin), (x1 - margin, y1 - margin))

    def _try_on_floor(self, index: int, name: str, kept_free: list, occupied: list) -> None:
        rng = self.rng
        parts = furniture.ON_FLOOR[name](rng)
        half_x, half_y = _reach(parts)
        yaw = float(rng.integers(4) * np.pi / 2 + rng.uniform(-0.4, 0.4))
        for _ in range(6):
            spot = self._spot(index, float(np.hypot(half_x, half_y)))
            if spot is not None and self._free(spot, half_x, half_y, yaw, kept_free, occupied):
                item = self._place(name, parts, index, np.array([*spot, 0.0]), yaw)
                occupied.append(item.footprint())
                if name == "table" and rng.random() < 0.6:
                    self._put_on_top(index, item)
                return

    def _put_on_top(self, index: int, table: Item) -> None:
        rng = self.rng
        name = list(furniture.ON_TOP)[rng.integers(len(furniture.ON_TOP))]
        parts = furniture.ON_TOP[name](rng)
        if name != "vase":
            parts = [_shrunk(part, 0.5) for part in parts]
        top = table.centre_m + np.array([0.0, 0.0, table.size_m[2] / 2])
        top[:2] += rng.uniform(-0.15, 0.15, 2)
        self._place(name, parts, index, top, float(rng.uniform(0, 6.28)))

    def _try_moving(self, index: int, kept_free: list, occupied: list) -> None:
        rng = self.rng
        name = list(furniture.MOVING)[rng.integers(len(furniture.MOVING))]
        parts = furniture.MOVING[name](rng)
        half_x, half_y = _reach(parts)
        travel = np.zeros(3)
        travel[rng.integers(2)] = rng.uniform(0.3, 0.8)
        for _ in range(8):
            spot = self._spot(index, float(half_x + np.abs(travel).max()))
            if spot is None:
                continue
            if self._free(spot, half_x + travel[0], half_y + travel[1], 0.0, kept_free, occupied):
                item = self._place(name, parts, index, np.array([*spot, 0.0]), 0.0, travel)
                occupied.append(item.footprint())
                return

    def _try_on_wall(self, index: int) -> None:
        rng = self.rng
        name = list(furniture.ON_WALL)[rng.integers(len(furniture.ON_WALL))]
        parts = furniture.ON_WALL[name](rng)
        half_x, half_y = _reach(parts)
        for _ in range(4):
            axis, positive = int(rng.integers(2)), bool(rng.integers(2))
            position, yaw = self._against_wall(index, axis, positive, half_x, half_y * 0.3)
            if position is None:
                continue
            mine = (*(position - half_x), *(position + half_x))
            doors = [tuple(np.tile(door.centre_m, 2)) for door in self.doors]
            tall = [
                item.footprint()
                for item in self.items
                if item.room == index
                and item.name not in STRUCTURE
                and item.centre_m[2] + item.size_m[2] / 2 > 0.95
            ]
            if any(overlaps(mine, door, 0.6) for door in doors):
                continue
            if not any(overlaps(mine, other) for other in tall):
                self._place(name, parts, index, np.array([*position, 0.0]), yaw)
                return


def _turn(yaw: float) -> np.ndarray:
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _reach(parts: list[furniture.Part]) -> tuple[float, float]:
    """Half extents in x and y of a box around the origin that holds all parts."""
    x = max(abs(p.centre[0]) + p.half[0] for p in parts)
    y = max(abs(p.centre[1]) + p.half[1] for p in parts)
    return x, y


def _shrunk(part: furniture.Part, factor: float) -> furniture.Part:
    centre = tuple(factor * c for c in part.centre)
    return part._replace(centre=centre, half=tuple(factor * h for h in part.half))
