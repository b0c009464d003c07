# SPDX-License-Identifier: Apache-2.0
"""Objects measured in the point map: where a region of an image lies, how large it is, how sure.

Everything is in the map frame (z up) and in map units, as in `point_map`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from g2vlm_ros.geometry.camera import depth_edges
from g2vlm_ros.images.preprocessing import PATCH_PX
from g2vlm_ros.query.point_map import PointMap, Region

EDGE_STEP = 0.1
"""Pixels at depth steps above this fraction are smeared by the network and left out."""
GAP_STEP = 0.08
"""A step in depth of this fraction parts a thing from what is behind it."""
TRIM = 0.02
"""Share of points cut off at each end of an extent."""
DEPTH_STD = 0.02
"""Relative error of a depth whose confidence is 1."""
DOUBT_STD = 0.05
"""What is added to it as the confidence falls to 0; for an unknown confidence half of it."""
PIXEL_REACH = 2
"""Pixels around a pixel that are looked at with it."""
FLOOR_CLEARANCE = 0.02
"""Points lower than this fraction of their depth over the floor are floor."""
LANDMARK_MARGIN = 0.2
"""So far, in fractions of the image, a place of known distance is from what is asked about."""
LAYER_DEPTH, MIN_LAYER = 1.25, 0.3
"""How deep a thing may be along the line of sight, in its width and at least, map units."""
NEARLY = 0.7
"""Share of the most points that a nearer layer must hold. These three were chosen on validation
homes."""
FRONT, BEHIND_SURFACE = 0.35, 0.25
"""Share of a thing's points that are nearer than its surface, and how far its middle lies behind
that, in its width. Not half of them: in the box of a lamp, a chair or a plant the wall behind it
fills much. In eight validation homes 52 of 98 objects lie within 0.3 m so, 44 of 99 by a half."""
MAX_SAMPLE = 4000
"""Most points that a thing keeps."""
FLAT = 0.9
"""A region with more floor than this share is a thing on the floor, like a rug."""


@dataclass(frozen=True)
class Object3D:
    """Something measured in the point map."""

    label: str
    points: np.ndarray
    """float64 (K, 3): its visible surface, at most MAX_SAMPLE points."""
    position: np.ndarray
    """float64 (3,): median of the surface."""
    centre: np.ndarray
    """float64 (3,): middle of the thing; of a side that no view shows, half of what it may be.
    `position` for a pixel."""
    size: np.ndarray
    """float64 (3,): longer and shorter horizontal extent, height; NaN for a pixel."""
    size_std: float
    yaw_rad: float
    """Of the longer horizontal extent about z."""
    covariance: np.ndarray
    """float64 (3, 3) of `centre` relative to the cameras, without that of the scale."""
    confidence: float
    """Median over its pixels; NaN where unknown."""
    visible: float
    """Share of the region's pixels that carry the thing."""
    cut_across: bool
    """Whether the left or right border of every image cuts it, so that it may be wider."""
    cut_upright: bool
    """Whether the upper or lower border does, so that it may be higher."""
    seen_from: np.ndarray
    """float64 (3,): the camera of the best view."""
    regions: tuple[Region, ...]
    source: str
    """Who found it: "request", "detection", "model" or "memory"."""
    trust: float = 1.0
    """How sure the finder was, 0..1."""
    across: float = float("nan")
    """How wide it looks from the camera of the best view, across the line of sight, at its
    distance; what is smeared along that line does not widen it. NaN where unknown."""
    memory_id: int = 0
    """Of the MapObject that it is, where the object memory gave it; else 0."""

    @property
    def pose(self) -> np.ndarray:
        """map_from_object float64 (4, 4): its middle, x along its longer side, z up."""
        c, s = np.cos(self.yaw_rad), np.sin(self.yaw_rad)
        pose = np.eye(4)
        pose[:2, :2], pose[:3, 3] = [[c, -s], [s, c]], self.centre
        return pose


def locate(points: PointMap, region: Region, label: str, source: str, trust: float = 1.0):
    """The Thing in a region, or None where the region holds no usable point."""
    rows, columns = _pixels(points, region)
    depth = points.depth[region.view, rows, columns]
    confidence = points.confidence[region.view, rows, columns]
    usable = _usable(points, region.view, rows, columns)
    if not usable.any():
        return None
    keep = usable & _foreground(points, region, rows, columns, usable)
    region_points = points.points[region.view][rows, columns][keep].astype(np.float64)
    confidences = confidence[keep & np.isfinite(confidence)]
    across, upright = _cut_by_border(points, region)
    camera = points.map_from_camera[region.view][:3, 3]
    step = float(np.median(depth[keep])) / max(points.size_px)
    thing = _shape(label, region_points, region.is_pixel, step, camera)
    sure = float(np.median(confidences)) if confidences.size else float("nan")
    covariance = _covariance(thing, region_points, sure, np.count_nonzero(keep), step)
    thing = replace(
        thing,
        across=float("nan") if region.is_pixel else _across(region_points, camera),
        covariance=covariance,
        confidence=sure,
        visible=float(keep.mean()),
        cut_across=across,
        cut_upright=upright,
        regions=(region,),
        source=source,
        trust=trust,
    )
    return thing if region.is_pixel else _completed(_on_floor(thing, points.floor_z))


def landmark(points: PointMap, region: Region) -> tuple[Region, float] | None:
    """A pixel of a region's view whose distance from its camera is well known, and that distance.

    In map units. It lies apart from the region; of equally sure ones it is the most central. None
    where no such pixel is left.
    """
    width, height = points.size_px
    rows, columns = (part.ravel() for part in np.mgrid[:height, :width])
    good = _usable(points, region.view, rows, columns)
    good &= (columns > 1) & (columns < width - 2) & (rows > 1) & (rows < height - 2)
    margin = LANDMARK_MARGIN * max(width, height)
    (left, top), (right, bottom) = region.low_px, region.high_px
    beside = np.clip(columns, left, right) - columns, np.clip(rows, top, bottom) - rows
    good &= np.hypot(*beside) >= margin
    if not good.any():
        return None
    sure = np.nan_to_num(points.confidence[region.view, rows, columns], nan=0.0)
    aside = np.hypot(columns - width / 2, rows - height / 2) / max(width, height)
    best = int(np.argmax(np.where(good, sure - 0.1 * aside, -np.inf)))
    place = points.points[region.view, rows[best], columns[best]]
    away = float(np.linalg.norm(place - points.map_from_camera[region.view][:3, 3]))
    at = (float(columns[best]), float(rows[best]))
    return Region(region.view, at, at), away


def fuse(things: Sequence[Object3D]) -> Object3D:
    """One thing of what several views show of it; their errors are taken as one error."""
    if len(things) == 1:
        return things[0]
    bottom = min(thing.centre[2] - thing.size[2] / 2 for thing in things)
    sized = [thing for thing in things if np.isfinite(thing.size).all()]
    parts = sized or list(things)
    together = np.concatenate([thing.points for thing in parts])
    best = max(parts, key=lambda thing: thing.visible * thing.trust)
    shape = _shape(best.label, together, not sized, 0.0, best.seen_from)
    thing = replace(
        shape,
        size_std=max(thing.size_std for thing in parts),
        across=best.across,
        covariance=best.covariance,
        confidence=best.confidence,
        visible=best.visible,
        cut_across=all(t.cut_across for t in parts),
        cut_upright=all(t.cut_upright for t in parts),
        regions=tuple(r for t in parts for r in t.regions),
        source=best.source,
        trust=best.trust,
    )
    return _completed(_on_floor(thing, bottom)) if sized else thing


def group(things: Sequence[Object3D]) -> list[Object3D]:
    """The different things among sightings in several views, each fused, best first.

    Sightings are of one thing when their boxes overlap in the map, or nearly touch within their
    errors; two sightings in one view are two things.
    """
    groups: list[list[Object3D]] = []
    for thing in sorted(things, key=lambda t: -t.visible * t.trust):
        for members in groups:
            views = {region.view for member in members for region in member.regions}
            new = all(region.view not in views for region in thing.regions)
            if new and any(_same_place(thing, member) for member in members):
                members.append(thing)
                break
        else:
            groups.append([thing])
    return [fuse(members) for members in groups]


def compact(thing: Object3D) -> Object3D:
    """The thing without points that lie farther apart along the line of sight than it looks wide.

    The network smears the edges of things along that line, towards what is behind them, and
    through legs and leaves the wall is seen. Kept is the nearest layer that is about as deep as
    the thing is wide and holds nearly as many points as any such layer does. The middle along that
    line is BEHIND_SURFACE of the width behind the front of all points.
    """
    ray = (thing.position - thing.seen_from)[:2]
    reach = float(np.linalg.norm(ray))
    if not thing.across > 0 or reach < 1e-6 or not np.isfinite(thing.size).all():
        return thing
    along = (thing.points - thing.seen_from)[:, :2] @ (ray / reach)
    order = np.sort(along)
    depth = max(LAYER_DEPTH * thing.across, MIN_LAYER)
    counts = np.searchsorted(order, order + depth, side="right") - np.arange(len(order))
    start = order[np.argmax(counts >= NEARLY * counts.max())]
    points_inside = thing.points[(along >= start) & (along <= start + depth)]
    centre, size, yaw = _box(points_inside)
    layer = _completed(replace(thing, points=points_inside, centre=centre, size=size, yaw_rad=yaw))
    to_middle = float(np.quantile(along, FRONT)) + BEHIND_SURFACE * thing.across
    shift = to_middle - float((layer.centre - thing.seen_from)[:2] @ ray) / reach
    return replace(layer, centre=layer.centre + np.append(shift * ray / reach, 0.0))


def map_covariance(points: PointMap, thing: Object3D) -> np.ndarray:
    """float64 (3, 3) of the centre in the map: the thing's own, the camera's, and the scale's.

    That of a remembered object is in the map already.
    """
    if not thing.regions:
        return thing.covariance
    view = thing.regions[0].view
    ray = thing.centre - points.map_from_camera[view][:3, 3]
    covariance = thing.covariance + points.scale_std**2 * np.outer(ray, ray)
    if points.pose_covariance is not None:
        covariance = covariance + points.pose_covariance[view]
    return covariance


def _pixels(points: PointMap, region: Region) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns (n,) of the model pixels in a region."""
    width, height = points.size_px
    reach = PIXEL_REACH if region.is_pixel else 0
    left, top = (int(np.rint(c)) - reach for c in region.low_px)
    right, bottom = (int(np.rint(c)) + reach for c in region.high_px)
    if (
        not 0 <= region.view < len(points.points)
        or right < 0
        or bottom < 0
        or (left >= width or top >= height)
    ):
        raise ValueError(
            f"region {region} lies outside the {len(points.points)} views of {width}x{height} "
            "model pixels"
        )
    rows, columns = np.mgrid[
        max(top, 0) : min(bottom, height - 1) + 1, max(left, 0) : min(right, width - 1) + 1
    ]
    return rows.ravel(), columns.ravel()


def _usable(points: PointMap, view: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """bool (n,): pixels with a finite point before the camera; edges only if all else fails."""
    good = np.isfinite(points.points[view, rows, columns]).all(-1)
    good &= points.depth[view, rows, columns] > 0
    top, bottom = max(0, rows.min() - 1), rows.max() + 2
    left, right = max(0, columns.min() - 1), columns.max() + 2
    edges = depth_edges(points.depth[view, top:bottom, left:right], EDGE_STEP)
    clean = good & ~edges[rows - top, columns - left]
    return clean if clean.any() else good


def _foreground(
    points: PointMap, region: Region, rows: np.ndarray, columns: np.ndarray, usable: np.ndarray
) -> np.ndarray:
    """bool (n,): the pixels of the thing: one layer of depth, the one that fills the middle.

    Around a pixel, those as deep as it is.
    """
    depth = points.depth[region.view, rows, columns]
    if region.is_pixel:
        away = (rows - region.low_px[1]) ** 2 + (columns - region.low_px[0]) ** 2
        depth_here = depth[np.argmin(np.where(usable, away, np.inf))]
        return usable & (
            np.abs(np.log(np.where(usable, depth, depth_here) / depth_here)) < GAP_STEP
        )
    high = usable & ~_floor(points, region.view, rows, columns)
    candidates = high if high[usable].mean() > 1 - FLAT else usable
    index = np.flatnonzero(candidates)
    order = index[np.argsort(depth[index], kind="stable")]
    layer = np.concatenate([[0], np.cumsum(np.diff(np.log(depth[order])) > GAP_STEP)])
    centre = (np.add(region.low_px, region.high_px) / 2)[::-1]
    half = np.maximum(np.subtract(region.high_px, region.low_px) / 2, PIXEL_REACH)[::-1]
    away = (np.stack([rows, columns], -1)[order] - centre) / half
    weight = np.bincount(layer, np.exp(-2 * (away**2).sum(-1)))
    keep = np.zeros(len(rows), bool)
    keep[order[layer == int(np.argmax(weight))]] = True
    return keep


def _across(points: np.ndarray, camera: np.ndarray) -> float:
    """Horizontal extent of points (n, 3) across the line of sight, at their median distance."""
    away = points[:, :2] - camera[:2]
    front = np.median(away, axis=0)
    distance = float(np.linalg.norm(front))
    if distance < 1e-6:
        return float("nan")
    bearing = np.arctan2(front[0] * away[:, 1] - front[1] * away[:, 0], away @ front)
    low, high = np.quantile(bearing, [TRIM, 1 - TRIM])
    return float(2 * distance * np.tan(min(high - low, np.pi / 2) / 2)) / (1 - 2 * TRIM)


def _floor(points: PointMap, view: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """bool (n,): pixels that show the floor; none where the floor is not known."""
    if not np.isfinite(points.floor_z):
        return np.zeros(len(rows), bool)
    height = points.points[view, rows, columns, 2] - points.floor_z
    return height < FLOOR_CLEARANCE * points.depth[view, rows, columns]


def _cut_by_border(points: PointMap, region: Region) -> tuple[bool, bool]:
    """Whether a box touches the left or right border of its image, and the upper or lower one."""
    width, height = points.size_px
    (left, top), (right, bottom) = region.low_px, region.high_px
    if region.is_pixel:
        return False, False
    return left < 1 or right > width - 2, top < 1 or bottom > height - 2


def _shape(
    label: str, cloud: np.ndarray, is_pixel: bool, step: float, camera: np.ndarray
) -> Object3D:
    """Place and extents of points (n, 3); what is not known yet is left empty."""
    position = np.median(cloud, axis=0)
    size, centre, yaw = np.full(3, np.nan), position, 0.0
    if not is_pixel:
        centre, size, yaw = _box(cloud)
    sample = cloud[:: -(-len(cloud) // MAX_SAMPLE)]
    nothing = np.zeros((3, 3))
    return Object3D(
        label,
        sample,
        position,
        centre,
        size,
        2 * step,
        yaw,
        nothing,
        float("nan"),
        0.0,
        False,
        False,
        camera,
        (),
        "",
    )


def _box(cloud: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """(centre, size, yaw) of the upright box around points, their ends trimmed."""
    flat = np.ascontiguousarray(cloud[:, :2] - cloud[:, :2].mean(0), np.float32)
    hull = cv2.convexHull(flat).reshape(-1, 2)
    _, (a, b), degrees = cv2.minAreaRect(hull)
    yaw = np.deg2rad(degrees) + (0.0 if a >= b else np.pi / 2)
    axes = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
    along = np.concatenate([cloud[:, :2] @ axes.T, cloud[:, 2:]], axis=1)
    low, high = np.quantile(along, [TRIM, 1 - TRIM], axis=0)
    middle, size = (low + high) / 2, (high - low) / (1 - 2 * TRIM)
    centre = np.array([*(middle[:2] @ axes), middle[2]])
    if size[1] > size[0]:
        size, yaw = size[[1, 0, 2]], yaw + np.pi / 2
    return centre, size, float((yaw + np.pi / 2) % np.pi - np.pi / 2)


def _on_floor(thing: Object3D, floor_z: float) -> Object3D:
    """The thing reaching down to the floor, if it ends in the strip that was taken for floor."""
    bottom = thing.centre[2] - thing.size[2] / 2
    strip = 2 * FLOOR_CLEARANCE * float(np.linalg.norm(thing.centre - thing.seen_from))
    if not 0 < bottom - floor_z < strip:
        return thing
    size, centre = thing.size.copy(), thing.centre.copy()
    size[2] += bottom - floor_z
    centre[2] -= (bottom - floor_z) / 2
    return replace(thing, size=size, centre=centre)


def _completed(thing: Object3D) -> Object3D:
    """The thing with its middle moved behind the surface that is seen.

    Its depth lies anywhere between what is seen and what it is wide, evenly probable.
    """
    ray = (thing.centre - thing.seen_from)[:2]
    reach = float(np.linalg.norm(ray))
    if reach < 1e-6:
        return thing
    ray = ray / reach
    along = np.quantile(thing.points[:, :2] @ ray, [TRIM, 1 - TRIM])
    across = np.quantile(thing.points[:, :2] @ [-ray[1], ray[0]], [TRIM, 1 - TRIM])
    hidden = max(0.0, float(np.diff(across)[0] - np.diff(along)[0]))
    shift = np.array([*ray, 0.0])
    covariance = thing.covariance + (hidden / (4 * np.sqrt(3))) ** 2 * np.outer(shift, shift)
    return replace(thing, centre=thing.centre + hidden / 4 * shift, covariance=covariance)


def _covariance(
    thing: Object3D, cloud: np.ndarray, sure: float, pixels: int, step: float
) -> np.ndarray:
    """Depth error along the ray, a pixel across it, and the scatter of independent patches."""
    ray = thing.position - thing.seen_from
    distance = max(float(np.linalg.norm(ray)), 1e-9)
    doubt = 0.5 if np.isnan(sure) else 1.0 - min(max(sure, 0.0), 1.0)
    along = np.outer(ray, ray) / distance**2
    covariance = (distance * (DEPTH_STD + DOUBT_STD * doubt)) ** 2 * along
    covariance += step**2 * (np.eye(3) - along)
    if len(cloud) > 1:
        covariance += np.cov(cloud.T) / max(1.0, pixels / PATCH_PX**2) * (pixels > PATCH_PX**2)
    return covariance


def _same_place(a: Object3D, b: Object3D) -> bool:
    reach = np.sqrt(np.trace(a.covariance + b.covariance))
    low_a, high_a = np.quantile(a.points, [TRIM, 1 - TRIM], axis=0)
    low_b, high_b = np.quantile(b.points, [TRIM, 1 - TRIM], axis=0)
    apart = np.maximum(np.maximum(low_a - high_b, low_b - high_a), 0.0)
    return float(np.linalg.norm(apart)) < reach
