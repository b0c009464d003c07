"""Rigid and similarity transforms, pinhole rays, intrinsics from a point map, depth edges.

Pixel convention of the whole package: the centre of the top-left pixel is (0, 0), as in OpenCV
and ROS. Transforms are named ``a_from_b``: they map coordinates in b to coordinates in a.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from transforms3d.quaternions import mat2quat, quat2mat

from g2vlm_ros.core.datatypes import Intrinsics

ZUP_FROM_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
"""Rotation from optical axes (x right, y down, z forward) to x forward, y left, z up (REP-103)."""


@dataclass(frozen=True)
class Similarity:
    """p -> scale * rotation @ p + translation, the seven degrees of freedom between two windows.

    rotation: float64 (3, 3), determinant +1. translation: float64 (3,), unit of the target.
    """

    scale: float
    rotation: np.ndarray
    translation: np.ndarray

    @classmethod
    def identity(cls) -> Similarity:
        """The transform that changes nothing."""
        return cls(1.0, np.eye(3), np.zeros(3))

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Map points (..., 3); the dtype of `points` is kept."""
        linear = (self.scale * self.rotation).astype(points.dtype)
        return points @ linear.T + self.translation.astype(points.dtype)

    def apply_pose(self, pose: np.ndarray) -> np.ndarray:
        """Map a rigid pose (..., 4, 4): the origin moves as a point, the axes only turn."""
        mapped = np.array(pose, dtype=np.float64)
        mapped[..., :3, :3] = self.rotation @ mapped[..., :3, :3]
        mapped[..., :3, 3] = self.apply(mapped[..., :3, 3])
        return mapped

    def __matmul__(self, other: Similarity) -> Similarity:
        """Composition: (a_from_b @ b_from_c) is a_from_c."""
        return Similarity(
            self.scale * other.scale,
            self.rotation @ other.rotation,
            self.apply(other.translation),
        )

    def inverse(self) -> Similarity:
        """b_from_a of this a_from_b."""
        rotation = self.rotation.T
        return Similarity(1.0 / self.scale, rotation, -(rotation @ self.translation) / self.scale)


def project(points: np.ndarray, camera: Intrinsics) -> np.ndarray:
    """Pixels (..., 2) of optical-frame points (..., 3); NaN behind the camera."""
    z = np.where(points[..., 2] > 0, points[..., 2], np.nan)
    return np.stack(
        [
            camera.fx_px * points[..., 0] / z + camera.cx_px,
            camera.fy_px * points[..., 1] / z + camera.cy_px,
        ],
        axis=-1,
    )


def unproject(pixels: np.ndarray, depth: np.ndarray, camera: Intrinsics) -> np.ndarray:
    """Optical-frame points (..., 3) of pixels (..., 2) at z = `depth` (...)."""
    x = (pixels[..., 0] - camera.cx_px) / camera.fx_px * depth
    y = (pixels[..., 1] - camera.cy_px) / camera.fy_px * depth
    return np.stack([x, y, np.broadcast_to(depth, x.shape)], axis=-1)


def intrinsics_from_points(local_points: np.ndarray) -> Intrinsics:
    """The pinhole camera that explains a point map (H, W, 3) best, by least squares.

    u = fx * x/z + cx and v = fy * y/z + cy are linear in the four unknowns. Raises ValueError
    when the rays of the map do not spread as a camera's do (focal length not above 0).
    """
    height, width, _ = local_points.shape
    step = max(1, min(height, width) // 64)
    sample = local_points[::step, ::step].astype(np.float64)
    rows, columns = np.mgrid[0:height:step, 0:width:step]
    rays = sample[..., :2] / sample[..., 2:]
    fx, cx = _fit_line(rays[..., 0], columns)
    fy, cy = _fit_line(rays[..., 1], rows)
    return Intrinsics(fx, fy, cx, cy, width, height)


def _fit_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and offset of the least-squares line y = slope * x + offset over finite pairs."""
    good = np.isfinite(x)
    x, y = x[good], y[good]
    if x.size < 2:
        return np.nan, np.nan
    centred = x - x.mean()
    variance = float((centred * centred).sum())
    slope = float((centred * y).sum()) / variance if variance > 0 else np.nan
    return slope, float(y.mean() - slope * x.mean())


def depth_edges(depth: np.ndarray, relative_step: float) -> np.ndarray:
    """bool (..., H, W): pixels whose depth differs from a 4-neighbour by more than the step.

    The network smears surfaces across such edges; `relative_step` is a fraction of the nearer
    depth (0.1 = 10 %).
    """
    edges = np.zeros(depth.shape, dtype=bool)
    for first, second in (
        ((..., slice(None, -1)), (..., slice(1, None))),
        ((..., slice(None, -1), slice(None)), (..., slice(1, None), slice(None))),
    ):
        a, b = depth[first], depth[second]
        step = np.abs(a - b) > relative_step * np.minimum(a, b)
        edges[first] |= step
        edges[second] |= step
    return edges


def quaternion_xyzw(rotation: np.ndarray) -> np.ndarray:
    """Unit quaternion float64 (4,), in ROS order x, y, z, w with w >= 0, of a rotation (3, 3).

    ValueError when the matrix is not a rotation to within a thousandth.
    """
    rotation = np.asarray(rotation, dtype=np.float64)
    error = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if not error < 1e-3 or np.linalg.det(rotation) < 0:
        raise ValueError(
            f"matrix {rotation.tolist()} is no rotation; orthonormalise it before converting"
        )
    return np.roll(mat2quat(rotation), -1)


def rotation_from_xyzw(quaternion: np.ndarray) -> np.ndarray:
    """Rotation float64 (3, 3) of a quaternion (4,) in ROS order x, y, z, w, of any length.

    ValueError when it is zero or not finite, which stands for no rotation at all.
    """
    quaternion = np.asarray(quaternion, dtype=np.float64)
    if not 1e-6 < np.linalg.norm(quaternion) < np.inf:
        raise ValueError(
            f"quaternion {quaternion.tolist()} must be finite and not zero; "
            "no orientation is (0, 0, 0, 1)"
        )
    return quat2mat(np.roll(quaternion, 1))
