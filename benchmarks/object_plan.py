# SPDX-License-Identifier: Apache-2.0
"""A plan of a simulated home with what is remembered of it: true things grey, objects coloured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from g2vlm_ros.demo.sim.home import STRUCTURE, Home
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.query.map_object import MapObject

PX_PER_M, MARGIN_M = 90.0, 0.4
WALL, THING, DARK, RED = (40, 40, 40), (205, 205, 205), (60, 60, 60), (50, 50, 220)
"""BGR."""
CORNERS = np.array([(-0.5, -0.5, 0.0), (0.5, -0.5, 0.0), (0.5, 0.5, 0.0), (-0.5, 0.5, 0.0)])


def write_plan(path: Path, home: Home, home_from_map: Sim3, objects: Sequence[MapObject]) -> None:
    """Draw and write an image; north up, a red line from an object to where its thing is."""
    rooms = np.array([room.rectangle for room in home.rooms])
    low, high = rooms[:, :2].min(0) - MARGIN_M, rooms[:, 2:].max(0) + MARGIN_M
    width, height = np.ceil((high - low) * PX_PER_M).astype(int)
    image = np.full((height, width, 3), 255, np.uint8)

    def pixel(place: np.ndarray) -> tuple[int, int]:
        u, v = (np.asarray(place)[:2] - low) * PX_PER_M
        return round(float(u)), round(float(height - v))

    for rectangle in rooms:
        cv2.rectangle(image, pixel(rectangle[:2]), pixel(rectangle[2:]), WALL, 2)
    for item in home.items:
        if item.name not in STRUCTURE:
            x0, y0, x1, y1 = item.footprint()
            cv2.rectangle(image, pixel((x0, y0)), pixel((x1, y1)), THING, cv2.FILLED)
    for each in objects:
        outline = home_from_map.apply(each.centre + (CORNERS * each.size) @ each.axes.T)
        colour = tuple(255.0 * c for c in reversed(each.colour or (0.5, 0.5, 0.5)))
        points = np.array([pixel(corner) for corner in outline], np.int32)
        cv2.polylines(image, [points], True, DARK, 4, cv2.LINE_AA)
        cv2.polylines(image, [points], True, colour, 2, cv2.LINE_AA)
        place = home_from_map.apply(each.centre[None])[0]
        alike = [item.centre_m for item in home.items if item.name == each.label]
        if alike:
            nearest = min(alike, key=lambda centre: float(np.linalg.norm(centre - place)))
            cv2.line(image, pixel(place), pixel(nearest), RED, 2, cv2.LINE_AA)
        u, v = pixel(place)
        text = each.name or each.label
        cv2.putText(
            image, text, (u + 4, v - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.4, DARK, 1, cv2.LINE_AA
        )
    if not cv2.imwrite(str(path), image):
        raise OSError(f"{path} cannot be written; use a file ending like .png in an open folder")
