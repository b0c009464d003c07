# SPDX-License-Identifier: Apache-2.0
"""A sighting: an object that a window shows, with place, error, colour and picture.

Lengths are metres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from g2vlm_ros.query.context import ViewSelection
from g2vlm_ros.query.object_measurement import Object3D, compact, map_covariance
from g2vlm_ros.query.point_map import PointMap

ALONG_STD_M, FAR_STD_PER_M = 0.15, 0.03
"""Error of a distance that all points of a thing share, and what it is over the square of the
distance: windows place the same wall differently. Measured on validation homes."""
BEARING_STD = 0.06
"""Error of the direction to a thing, radians: that of the headings of the cameras in the map.
Measured on validation homes."""
CUT_STD_M = 0.4
"""How far the middle of a thing that a border cuts is from that of its part."""
BORDER_PX = 4.0
"""A detector's box that ends so near to the border of the image is cut by it, model pixels."""
PICTURE_EDGE_PX = 160
"""Longer edge of a picture at most: some 5 kB."""
PICTURE_MARGIN = 0.15
"""Of the box's size, around it."""
PICTURE_QUALITY = 80
"""JPEG."""


@dataclass(frozen=True)
class Sighting:
    """An object that a window shows, with where and when."""

    thing: Object3D
    covariance: np.ndarray
    """float64 (3, 3) in the map."""
    stamp_ns: int
    camera: str
    box_px: tuple[float, float, float, float]
    colour: tuple[float, float, float] | None
    image: np.ndarray
    """uint8 (h, w, 3) RGB: the view that `box_px` lies in."""

    @property
    def area_px(self) -> float:
        """Of its box."""
        u0, v0, u1, v1 = self.box_px
        return (u1 - u0) * (v1 - v0)


def sightings_of(selection: ViewSelection, things: Sequence[Object3D]) -> list[Sighting]:
    """Objects measured in some views of a window as sightings, each by its newest view."""
    points, sightings = selection.points, []
    for thing in things:
        thing = _cut_at_borders(points, compact(thing))
        if not thing.regions or not np.isfinite(thing.centre).all():
            continue
        region = max(thing.regions, key=lambda r: selection.frames[r.view].stamp_ns)
        frame = selection.frames[region.view]
        corners, image = selection.corners(region), selection.image(region.view)
        sightings.append(
            Sighting(
                thing,
                _sighting_covariance(points, thing),
                frame.stamp_ns,
                frame.camera,
                corners,
                mean_colour(image, corners),
                image,
            )
        )
    return sightings


def _cut_at_borders(points: PointMap, thing: Object3D) -> Object3D:
    """The thing, cut where all boxes around it end at a border of their images."""
    width, height = points.size_px
    across, upright = [], []
    for region in thing.regions:
        (left, top), (right, bottom) = region.low_px, region.high_px
        across.append(left < BORDER_PX or right > width - 1 - BORDER_PX)
        upright.append(top < BORDER_PX or bottom > height - 1 - BORDER_PX)
    return replace(
        thing,
        cut_across=bool(across) and all(across),
        cut_upright=bool(upright) and all(upright),
    )


def _sighting_covariance(points: PointMap, thing: Object3D) -> np.ndarray:
    """float64 (3, 3) of its centre in the map, for a thing of which a part may be hidden.

    Depths far away are too short together, which no scatter of points shows. What the border of
    the image cuts has its middle somewhere beyond it.
    """
    covariance = map_covariance(points, thing)
    ray = thing.centre - thing.seen_from
    distance = float(np.linalg.norm(ray))
    ray = ray / max(distance, 1e-9)
    along = ALONG_STD_M**2 + (FAR_STD_PER_M * distance**2) ** 2
    aside = (BEARING_STD * distance) ** 2
    covariance = covariance + aside * np.eye(3) + (along - aside) * np.outer(ray, ray)
    if thing.cut_across:
        across = np.array([-ray[1], ray[0], 0.0])
        covariance = covariance + CUT_STD_M**2 * np.outer(across, across)
    if thing.cut_upright:
        covariance = covariance + np.diag([0.0, 0.0, CUT_STD_M**2])
    return covariance


def mean_colour(image: np.ndarray, corners: Sequence[float]) -> tuple[float, float, float] | None:
    """Mean RGB of the inner half of a box, 0..1."""
    u0, v0, u1, v1 = corners
    du, dv = (u1 - u0) / 4, (v1 - v0) / 4
    height, width = image.shape[:2]
    rows = slice(max(0, round(v0 + dv)), min(height, round(v1 - dv) + 1))
    columns = slice(max(0, round(u0 + du)), min(width, round(u1 - du) + 1))
    patch = image[rows, columns]
    if not patch.size:
        return None
    red, green, blue = (patch.reshape(-1, 3).mean(0) / 255.0).tolist()
    return red, green, blue


def picture_of(sighting: Sighting) -> bytes:
    """JPEG of what a box shows, a little around it included; empty outside the image."""
    u0, v0, u1, v1 = sighting.box_px
    du, dv = PICTURE_MARGIN * (u1 - u0), PICTURE_MARGIN * (v1 - v0)
    height, width = sighting.image.shape[:2]
    rows = slice(max(0, round(v0 - dv)), min(height, round(v1 + dv) + 1))
    columns = slice(max(0, round(u0 - du)), min(width, round(u1 + du) + 1))
    patch = sighting.image[rows, columns]
    if not patch.size:
        return b""
    scale = min(1.0, PICTURE_EDGE_PX / max(patch.shape[:2]))
    size = [max(1, round(scale * edge)) for edge in (patch.shape[1], patch.shape[0])]
    small = cv2.resize(patch, size, interpolation=cv2.INTER_AREA)
    quality = [cv2.IMWRITE_JPEG_QUALITY, PICTURE_QUALITY]
    _, jpeg = cv2.imencode(".jpg", small[..., ::-1], quality)
    return jpeg.tobytes()
