"""Tangent vectors of similarities: small motions as seven numbers, and how frames change them."""

from __future__ import annotations

import cv2
import numpy as np

from g2vlm_ros.core.geometry import Similarity


def exponential(tangent: np.ndarray) -> Similarity:
    """The similarity of a tangent (7,): rotation vector, translation and log scale apart."""
    rotation, _ = cv2.Rodrigues(np.asarray(tangent[:3], dtype=np.float64))
    return Similarity(float(np.exp(tangent[6])), rotation, np.array(tangent[3:6], dtype=float))


def logarithm(similarity: Similarity) -> np.ndarray:
    """The tangent float64 (7,) of a similarity, the inverse of `exponential`."""
    vector, _ = cv2.Rodrigues(similarity.rotation)
    return np.concatenate([vector[:, 0], similarity.translation, [np.log(similarity.scale)]])


def adjoint(similarity: Similarity) -> np.ndarray:
    """(7, 7): T exponential(d) = exponential(adjoint(T) d) T to first order in d."""
    matrix = np.zeros((7, 7))
    matrix[:3, :3] = similarity.rotation
    matrix[3:6, :3] = cross_matrix(similarity.translation) @ similarity.rotation
    matrix[3:6, 3:6] = similarity.scale * similarity.rotation
    matrix[3:6, 6] = -similarity.translation
    matrix[6, 6] = 1.0
    return matrix


def cross_matrix(vector: np.ndarray) -> np.ndarray:
    """(3, 3): cross_matrix(a) @ b = a x b."""
    x, y, z = vector
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
