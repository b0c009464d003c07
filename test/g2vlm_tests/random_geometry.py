# SPDX-License-Identifier: Apache-2.0
"""Random rotations and similarities."""

import numpy as np

from g2vlm_ros.geometry.sim3 import Sim3


def random_rotation(rng):
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q


def random_sim3(rng):
    return Sim3(float(rng.uniform(0.2, 5)), random_rotation(rng), rng.normal(size=3))
