# SPDX-License-Identifier: Apache-2.0
"""Sim(3): similarity transforms with their Lie algebra, rotations as quaternions.

Transforms are named ``a_from_b``: they map coordinates in b to coordinates in a.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from transforms3d.quaternions import mat2quat, quat2mat

ZUP_FROM_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
"""Rotation from optical axes (x right, y down, z forward) to x forward, y left, z up (REP-103)."""


@dataclass(frozen=True)
class Sim3:
    """p -> scale * rotation @ p + translation, the seven degrees of freedom between two windows.

    rotation: float64 (3, 3), determinant +1. translation: float64 (3,), unit of the target.
    """

    scale: float
    rotation: np.ndarray
    translation: np.ndarray

    @classmethod
    def identity(cls) -> Sim3:
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

    def __matmul__(self, other: Sim3) -> Sim3:
        """Composition: (a_from_b @ b_from_c) is a_from_c."""
        return Sim3(
            self.scale * other.scale,
            orthonormal(self.rotation @ other.rotation),
            self.apply(other.translation),
        )

    def inverse(self) -> Sim3:
        """b_from_a of this a_from_b."""
        rotation = self.rotation.T
        return Sim3(1.0 / self.scale, rotation, -(rotation @ self.translation) / self.scale)

    @classmethod
    def exp(cls, tangent: np.ndarray) -> Sim3:
        """The similarity of a tangent (7,): rotation vector, translation and log scale apart."""
        rotation, _ = cv2.Rodrigues(np.asarray(tangent[:3], dtype=np.float64))
        return cls(float(np.exp(tangent[6])), rotation, np.array(tangent[3:6], dtype=float))

    def log(self) -> np.ndarray:
        """The tangent float64 (7,), the inverse of `exp`."""
        vector, _ = cv2.Rodrigues(self.rotation)
        return np.concatenate([vector[:, 0], self.translation, [np.log(self.scale)]])

    def adjoint(self) -> np.ndarray:
        """(7, 7): T exp(d) = exp(T.adjoint() d) T to first order in d."""
        matrix = np.zeros((7, 7))
        matrix[:3, :3] = self.rotation
        matrix[3:6, :3] = cross_matrix(self.translation) @ self.rotation
        matrix[3:6, 3:6] = self.scale * self.rotation
        matrix[3:6, 6] = -self.translation
        matrix[6, 6] = 1.0
        return matrix


def orthonormal(matrix: np.ndarray) -> np.ndarray:
    """The rotation (3, 3) next to a matrix that is one but for rounding.

    `inverse` transposes, so that a product with an inverse doubles what rounding has added to its
    factors: without this, poses that are corrected some fifty times are no rotations any more. One
    step of Newton's iteration for the polar factor squares the error.
    """
    return 1.5 * matrix - 0.5 * matrix @ (matrix.T @ matrix)


def cross_matrix(vector: np.ndarray) -> np.ndarray:
    """(3, 3): cross_matrix(a) @ b = a x b."""
    x, y, z = vector
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])


def cross_matrices(vectors: np.ndarray) -> np.ndarray:
    """(n, 3, 3): `cross_matrix` of each of vectors (n, 3)."""
    matrices = np.zeros((len(vectors), 3, 3))
    for i, j, k in ((2, 1, 0), (0, 2, 1), (1, 0, 2)):
        matrices[:, i, j], matrices[:, j, i] = vectors[:, k], -vectors[:, k]
    return matrices


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
