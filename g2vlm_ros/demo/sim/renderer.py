# SPDX-License-Identifier: Apache-2.0
"""Batched ray casting: many views of many homes at once, on numpy or torch.

Rays are d = R (x, y, 1), so the distance along them is the depth z itself. The image is cut into
tiles; a solid is tested only against the tiles that its bounding box can touch (support planes of
the tile borders), which keeps the work near what is visible. Colours are taken on a lattice of two
samples per pixel and filtered by a tent, depth and ids at the exact pixel centres.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from g2vlm_ros.demo.sim.array_backend import Arrays
from g2vlm_ros.demo.sim.furniture import BOX, CYLINDER, ELLIPSOID
from g2vlm_ros.demo.sim.home import Home
from g2vlm_ros.demo.sim.scene_arrays import Tables, intersect, local_frame, tables
from g2vlm_ros.demo.sim.shading import shade
from g2vlm_ros.records import Intrinsics

FAR_M = 40.0
"""Depth where a ray leaves the home, which a closed home does not allow."""
_TILE = 16
CPU_CHUNK, DEVICE_CHUNK = 512, 1 << 18
"""Pairs of a tile and a solid intersected at once: what stays in the cache, what fills a GPU."""


@dataclass(frozen=True)
class RenderedViews:
    """N rendered views; arrays of the backend that rendered them."""

    images: Any
    """uint8 (N, H, W, 3) RGB."""
    depth_m: Any
    """float32 (N, H, W): z in the optical frame, exact at pixel centres."""
    items: Any
    """uint8 (N, H, W): id of the item seen, 0 for nothing."""


@dataclass(frozen=True)
class _Grid:
    """Where rays go: rows and columns of tiles over a lattice of samples."""

    rows: int
    columns: int
    ray_x: Any
    """float32 (columns * TILE,): x of a ray with z = 1."""
    ray_y: Any
    edge_x: Any
    """float32 (columns + 1,): ray x of the tile borders."""
    edge_y: Any


def render(
    homes: Sequence[Home],
    home_index: np.ndarray,
    world_from_camera: np.ndarray,
    time_s: np.ndarray,
    camera: Intrinsics,
    arrays: Arrays | None = None,
    samples: int = 2,
) -> RenderedViews:
    """Renders N views: home_index int (N,), world_from_camera (N, 4, 4), time_s (N,).

    samples: 2 filters two samples per pixel and axis, 1 takes one and shows jagged edges.
    """
    arrays = arrays or Arrays()
    arrays_of_homes = tables(homes, arrays)
    return render_tables(
        arrays_of_homes, home_index, world_from_camera, time_s, camera, arrays, samples
    )


def render_tables(
    scenes: Tables,
    home_index: np.ndarray,
    world_from_camera: np.ndarray,
    time_s: np.ndarray,
    camera: Intrinsics,
    arrays: Arrays,
    samples: int = 2,
) -> RenderedViews:
    """`render` of homes that are tables of the same backend already."""
    grid = _grid(camera, samples, arrays)
    scene = arrays.asarray(np.asarray(home_index, np.int64))
    pose, time = arrays.asarray(world_from_camera), arrays.asarray(time_s)
    depth, solid = _cast(arrays, scenes, grid, scene, pose, time)
    colour = shade(arrays, scenes, scene, pose, time, (grid.ray_x, grid.ray_y), depth, solid)
    return _views(arrays, scenes, scene, camera, samples, colour, depth, solid)


def _grid(camera: Intrinsics, samples: int, arrays: Arrays) -> _Grid:
    """The lattice has a sample at every pixel centre and samples - 1 between two."""
    if samples not in (1, 2):
        raise ValueError(f"samples is {samples}; it must be 1 or 2")
    rays, edges, tiles = [], [], []
    for count, focal, centre in (
        (camera.width_px, camera.fx_px, camera.cx_px),
        (camera.height_px, camera.fy_px, camera.cy_px),
    ):
        needed = count if samples == 1 else 2 * count + 1
        cells = -(-needed // _TILE)
        first = 0.0 if samples == 1 else -0.5
        place = first + np.arange(cells * _TILE) / samples
        border = first + (np.arange(cells + 1) * _TILE - 0.5) / samples
        rays.append(arrays.asarray((place - centre) / focal))
        edges.append(arrays.asarray((border - centre) / focal))
        tiles.append(cells)
    return _Grid(tiles[1], tiles[0], *rays, *edges)


def centres(scenes: Tables, scene: Any, time: Any, arrays: Arrays) -> Any:
    """Where the solids of each view are at its time, float32 (N, K, 3)."""
    travel = scenes.travel[scene]
    swing = arrays.sin(travel[..., 3] * time[:, None])
    return scenes.centre[scene] + travel[..., :3] * swing[..., None]


def _cast(
    arrays: Arrays, scenes: Tables, grid: _Grid, scene: Any, pose: Any, time: Any
) -> tuple[Any, Any]:
    """Depth float32 and solid int64 (N, rows * TILE, columns * TILE); solid -1 is nothing."""
    views, tiles, rays = len(scene), grid.rows * grid.columns, _TILE * _TILE
    relative = centres(scenes, scene, time, arrays) - pose[:, None, :3, 3]
    visible = _visible(arrays, scenes, grid, scene, pose, relative)
    rank = arrays.cumsum(visible * 1, axis=1) - 1
    view, k, row, column = arrays.nonzero(visible)
    rank = rank[view, k, row, column]
    tile = (view * grid.rows + row) * grid.columns + column
    kind = scenes.shape[scene[view], k]
    depth = arrays.full((views * tiles, rays), FAR_M)
    solid = arrays.full((views * tiles, rays), -1)
    direction = _directions(arrays, grid, pose)
    chunk = CPU_CHUNK if arrays.device in (None, "cpu") else DEVICE_CHUNK
    for shape, pairs in pairs_by_rank_and_shape(arrays, rank, kind):
        for first in range(0, len(pairs), chunk):
            pair = pairs[first : first + chunk]
            n, at, here = view[pair], k[pair], tile[pair]
            frame = scenes.turn[scene[n], at], scenes.half[scene[n], at]
            back = relative[n, at]
            origin = local_frame(tuple(-back[:, axis, None] for axis in range(3)), *frame)
            ahead = local_frame(tuple(part[here] for part in direction), *frame)
            distance = intersect(arrays, shape, origin, ahead, FAR_M)
            best = depth[here]
            nearer = distance < best
            depth[here] = arrays.where(nearer, distance, best)
            solid[here] = arrays.where(nearer, at[:, None], solid[here])
    return _untile(grid, depth), _untile(grid, solid)


def pairs_by_rank_and_shape(arrays: Arrays, rank: Any, kind: Any) -> Iterator[tuple[int, Any]]:
    """(shape, pairs) one after the other: pairs of one rank and shape, by rank.

    Pairs of one rank have different tiles, so each group can be written at once. They are sorted
    once, so that a GPU is waited for once and not for every group.
    """
    shapes = (BOX, CYLINDER, ELLIPSOID)
    key = len(shapes) * rank
    for place, shape in enumerate(shapes):
        key = key + place * (kind == shape)
    order = arrays.stable_order(key)
    ends = arrays.numpy(arrays.cumsum(arrays.bincount(key), 0)).tolist()
    for group, (first, end) in enumerate(itertools.pairwise([0, *ends])):
        if end > first:
            yield shapes[group % len(shapes)], order[first:end]


def _visible(
    arrays: Arrays, scenes: Tables, grid: _Grid, scene: Any, pose: Any, relative: Any
) -> Any:
    """bool (N, K, rows, columns): tiles that the bounding box of a solid can touch."""
    turn, half = scenes.turn[scene], scenes.half[scene]
    c, s, zero = turn[..., 0], turn[..., 1], turn[..., 0] * 0
    sides = arrays.stack(
        [
            arrays.stack([c * half[..., 0], s * half[..., 0], zero], -1),
            arrays.stack([-s * half[..., 1], c * half[..., 1], zero], -1),
            arrays.stack([zero, zero, half[..., 2]], -1),
        ],
        -2,
    )
    rotation = pose[:, None, :3, :3]
    middle = relative[..., None, :] @ rotation
    sides = sides @ rotation
    ahead = middle[..., 0, 2] + abs(sides[..., 2]).sum(-1) > 0
    inside = []
    for axis, edge in ((0, grid.edge_x), (1, grid.edge_y)):
        distance = middle[..., axis] - edge * middle[..., 2]
        reach = abs(sides[..., axis, None] - edge * sides[..., 2, None]).sum(-2)
        inside.append((distance + reach > 0)[..., :-1] & (distance - reach < 0)[..., 1:])
    columns, rows = inside
    in_view = ahead & (scenes.shape[scene] >= 0)
    return in_view[..., None, None] & rows[..., :, None] & columns[..., None, :]


def _directions(arrays: Arrays, grid: _Grid, pose: Any) -> tuple[Any, Any, Any]:
    """World directions, three arrays (N * tiles, TILE * TILE)."""
    x = grid.ray_x.reshape(1, 1, grid.columns, 1, _TILE)
    y = grid.ray_y.reshape(1, grid.rows, 1, _TILE, 1)
    turn = pose[:, :3, :3].reshape(-1, 9, 1, 1, 1, 1)
    parts = (turn[:, 3 * i] * x + turn[:, 3 * i + 1] * y + turn[:, 3 * i + 2] for i in range(3))
    return tuple(part.reshape(-1, _TILE * _TILE) for part in parts)


def _untile(grid: _Grid, values: Any) -> Any:
    cut = values.reshape(-1, grid.rows, grid.columns, _TILE, _TILE)
    cut = cut.swapaxes(2, 3)
    return cut.reshape(-1, grid.rows * _TILE, grid.columns * _TILE)


def _views(
    arrays: Arrays,
    scenes: Tables,
    scene: Any,
    camera: Intrinsics,
    samples: int,
    colour: Any,
    depth: Any,
    solid: Any,
) -> RenderedViews:
    height, width = camera.height_px, camera.width_px
    if samples == 1:
        at = (slice(None), slice(0, height), slice(0, width))
        colour = colour[at]
    else:
        at = (slice(None), slice(1, 2 * height, 2), slice(1, 2 * width, 2))
        for axis, count in ((1, height), (2, width)):
            lattice = [slice(None)] * 4
            taps = []
            for first in range(3):
                lattice[axis] = slice(first, first + 2 * count - 1, 2)
                taps.append(colour[tuple(lattice)])
            colour = 0.25 * (taps[0] + taps[2]) + 0.5 * taps[1]
    depth, solid = depth[at], solid[at]
    ids = scenes.item[scene[:, None, None], arrays.clip(solid, 0, None)]
    ids = arrays.where(solid >= 0, ids, arrays.full((), 0))
    pixels = arrays.clip(colour * 255.0 + 0.5, 0, 255)
    small = np.uint8 if arrays.device is None else arrays.uint8
    if arrays.device is None:
        return RenderedViews(pixels.astype(small), np.ascontiguousarray(depth), ids.astype(small))
    return RenderedViews(pixels.to(small), depth.contiguous(), ids.to(small))
