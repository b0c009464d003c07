# SPDX-License-Identifier: Apache-2.0
"""Pictures of a cloud, for people: splatted points from chosen sides, no graphics card needed."""

from __future__ import annotations

import cv2
import numpy as np

BACKGROUND = 24
HIGHEST_M, LOWEST_M = 0.3, 2.0
"""Above and below the cameras, what a picture by height shows: a room without its ceiling."""
PATH_COLOURS = ((255, 64, 64), (64, 220, 64))


def picture(
    points: np.ndarray, colours: np.ndarray, *paths: np.ndarray, size_px: int = 480
) -> np.ndarray:
    """uint8 (size, 2*size, 3) RGB: the cloud from above (x up, y left) and from the side.

    points: float (n, 3) in a z-up frame; colours: uint8 (n, 3) RGB; paths: float (m, 3) camera
    positions, drawn as lines, the first red, a second green. The farthest two percent of points
    are outside the frame.
    """
    good = np.isfinite(points).all(1)
    points, colours = points[good], colours[good]
    if not len(points):
        return np.full((size_px, 2 * size_px, 3), BACKGROUND, np.uint8)
    low, high = np.percentile(points, [1, 99], axis=0)
    middle, span = (low + high) / 2, max(float((high - low).max()), 1e-9) * 1.1
    top = np.array([[0.0, -1, 0], [-1, 0, 0], [0, 0, 1]])
    side = np.array([[1.0, 0, 0], [0, 0, -1], [0, -1, 0]])
    tiles = []
    for axes in (top, side):
        tiles.append(_splat((points - middle) @ axes.T / span, colours, size_px))
        for path, colour in zip(paths, PATH_COLOURS, strict=False):
            pixels = ((path - middle) @ axes.T / span)[:, :2] * size_px + size_px / 2
            line = np.clip(pixels, -1e4, 1e4).round().astype(np.int32)
            cv2.polylines(tiles[-1], [line], False, colour, 2, cv2.LINE_AA)
    return np.concatenate(tiles, axis=1)


def picture_by_height(points: np.ndarray, path: np.ndarray, size_px: int = 480) -> np.ndarray:
    """`picture` of a map in metres with the path of its cameras, the lowest points blue and the
    highest red; what lies above the cameras is left out, so that floors are seen from above.
    """
    below = points[:, 2] < path[:, 2].max() + HIGHEST_M
    height = points[below, 2] - (path[:, 2].min() - LOWEST_M)
    reach = HIGHEST_M + LOWEST_M + np.ptp(path[:, 2])
    level = np.clip(255 * height / reach, 0, 255).astype(np.uint8)
    colours = cv2.applyColorMap(level[:, None], cv2.COLORMAP_TURBO)[:, 0, ::-1]
    return picture(points[below], colours, path, size_px=size_px)


def _splat(unit: np.ndarray, colours: np.ndarray, size_px: int) -> np.ndarray:
    """Points in -0.5..0.5 (columns, rows, height) as 2x2 squares, the highest on top."""
    image = np.full((size_px, size_px, 3), BACKGROUND, np.uint8)
    order = np.argsort(unit[:, 2], kind="stable")
    pixel = ((unit[order, :2] + 0.5) * size_px).astype(np.int64)
    colour = colours[order]
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = pixel[:, 0] + dx, pixel[:, 1] + dy
        inside = (x >= 0) & (x < size_px) & (y >= 0) & (y < size_px)
        image[y[inside], x[inside]] = colour[inside]
    return image
