# SPDX-License-Identifier: Apache-2.0
"""Rooms of floors that are known: cut at doors, kept while they grow, named, saved."""

import numpy as np
import pytest

from g2vlm_ros.dense_map.occupancy import FREE, OCCUPIED, UNKNOWN, Occupancy
from g2vlm_ros.dense_map.rooms import MAX_DOOR_M, RoomMap, segment

CELL = 0.05


def flat(door_m=0.9, size_m=(10.0, 4.0), wall_x=6.0):
    """Two rooms beside each other, a doorway in the middle of their wall; (grid, walls)."""
    columns, rows = (round(edge / CELL) for edge in size_m)
    grid = Occupancy(np.full((rows, columns), FREE, np.int8), CELL, -1.0, 2.0)
    y = np.arange(rows) * CELL + CELL / 2
    y = y[np.abs(y - size_m[1] / 2) > door_m / 2]
    wall = np.concatenate([np.stack([np.full_like(y, wall_x + k * CELL), y], -1) for k in (0, 1)])
    return grid, wall + (-1.0, 2.0)


def test_a_floor_is_cut_at_its_doorway():
    rooms = RoomMap()
    rooms.update(*flat())
    large, small = sorted(rooms.rooms(), key=lambda room: -room.area_m2)
    assert (large.area_m2, small.area_m2) == pytest.approx((24.0, 16.0), abs=0.6)
    assert large.middle[0] < 5.0 < small.middle[0]
    places = np.array([(0.0, 4.0), (8.0, 4.0), (-1.3, 4.0), (30.0, 4.0)])
    ids = [None if room is None else room.id for room in rooms.at(places)]
    assert ids == [large.id, small.id, large.id, None], "a thing in the wall is of the room by it"


def test_an_opening_wider_than_a_door_is_no_door():
    rooms = RoomMap()
    rooms.update(*flat(door_m=MAX_DOOR_M + 0.4))
    assert len(rooms.rooms()) == 1


def test_furniture_does_not_cut_a_room():
    grid, wall = flat()
    data = grid.data.copy()
    data[20:40, 20:110] = OCCUPIED
    rooms = RoomMap()
    rooms.update(Occupancy(data, CELL, grid.origin_x, grid.origin_y), wall)
    assert len(rooms.rooms()) == 2, "a table is in the way, but no wall"


def test_rooms_keep_id_and_name_while_the_map_grows():
    grid, wall = flat()
    seen = grid.data.copy()
    seen[:, 130:] = UNKNOWN
    rooms = RoomMap()
    rooms.update(Occupancy(seen, CELL, grid.origin_x, grid.origin_y), wall)
    (first,) = rooms.rooms()
    rooms.rename(first.id, "kitchen")
    rooms.update(grid, wall)
    kitchen, other = rooms.rooms()
    assert (kitchen.id, kitchen.name, kitchen.title) == (first.id, "kitchen", "kitchen")
    assert other.name == "" and other.title == f"room {other.id}"
    # A grid that begins elsewhere, as it does when more is seen.
    wider = np.full((grid.data.shape[0], grid.data.shape[1] + 40), UNKNOWN, np.int8)
    wider[:, 40:] = grid.data
    rooms.update(Occupancy(wider, CELL, grid.origin_x - 40 * CELL, grid.origin_y), wall)
    assert [room.id for room in rooms.rooms()] == [kitchen.id, other.id]
    with pytest.raises(KeyError):
        rooms.rename(99, "nowhere")


def test_saved_rooms_take_their_floors_when_the_map_is_there():
    rooms = RoomMap()
    rooms.update(*flat())
    rooms.rename(rooms.rooms()[1].id, "hall")
    saved = list(rooms.rooms())
    fresh = RoomMap()
    fresh.restore(saved)
    assert fresh.at(np.array([(8.0, 4.0)])) == [None], "no floor yet"
    fresh.update(*flat())
    assert fresh.rooms() == tuple(saved)
    fresh.clear()
    assert fresh.rooms() == ()


def test_a_niche_is_no_room_and_nothing_is_none():
    grid = Occupancy(np.full((20, 20), FREE, np.int8), CELL, 0.0, 0.0)
    assert not segment(grid, np.zeros((0, 2))).any()
    assert RoomMap().at(np.zeros((3, 2))) == [None] * 3
