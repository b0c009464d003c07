# SPDX-License-Identifier: Apache-2.0
"""What real cameras do to pictures: motion blur, a rolling shutter, exposure that hunts,
vignetting, noise that grows in the dark. Seeded; all of it is off by default.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from g2vlm_ros.demo.sim.renderer import render
from g2vlm_ros.demo.sim.scenes import SimulatedScene
from g2vlm_ros.evaluation.stand_in import parse_numbers
from g2vlm_ros.records import Intrinsics

INSTANTS = 7
"""Renderings over the time of one picture, of which rows and exposures are made."""
TARGET = 0.45
"""Mean brightness that the exposure aims at."""
HUNTING_LAG = 0.5
"""Share of the error that one picture mends: below 1 it comes late, and the noise keeps it off."""
GAIN_RANGE = (0.4, 8.0)


@dataclass(frozen=True)
class CameraFlaws:
    """How bad a camera is; zeros are a perfect one."""

    exposure_s: float = 0.0
    """What moves meanwhile is blurred."""
    readout_s: float = 0.0
    """From the first row to the last (rolling shutter); the stamp is that of the middle row."""
    noise: float = 0.0
    """Deviation at middle brightness and gain 1, 0..1: photons, so darker pictures have more."""
    hunting: float = 0.0
    """Deviation of the logarithm of the gain by which each picture misses the right exposure."""
    vignetting: float = 0.0
    """Share of the light that the corners lose."""
    dim: float = 0.0
    """Share of all light that is missing; the gain makes up for it, with noise."""
    seed: int = 0

    @classmethod
    def parse(cls, text: str) -> CameraFlaws:
        """Of "exposure_s=0.02,noise=0.02"; ValueError names what is not understood."""
        values = parse_numbers(cls, text, "--flaws")
        for name in ("vignetting", "dim"):
            if values.get(name, 0.0) >= 1:
                raise ValueError(
                    f"--flaws has {name}={values[name]:g}; it must be a share below 1"
                )
        return cls(**values)


TYPICAL = CameraFlaws(0.02, 0.025, 0.02, 0.15, 0.3, 0.5)
"""A webcam in a living room in the evening."""


class FlawedCamera:
    """Takes the pictures of a walk one after the other; the exposure remembers the last one."""

    def __init__(self, scene: SimulatedScene, camera: Intrinsics, flaws: CameraFlaws):
        self._scene, self._camera, self._flaws = scene, camera, flaws
        self._rng = np.random.default_rng([scene.home.seed, flaws.seed, 7])
        self._gain = 1.0

    def picture(self, time_s: float) -> np.ndarray:
        """uint8 (h, w, 3) at a time of the walk."""
        light = self._exposed(time_s) * (1 - self._flaws.dim) * self._vignette()
        self._gain *= (TARGET / max(float(light.mean() * self._gain), 1e-3)) ** HUNTING_LAG
        self._gain = float(np.clip(self._gain, *GAIN_RANGE))
        adapts = bool(self._flaws.hunting or self._flaws.dim)
        gain = self._gain * np.exp(self._flaws.hunting * self._rng.normal()) if adapts else 1.0
        if self._flaws.noise:
            # Photons: the variance grows with the light, and the gain amplifies what is there.
            spread = self._flaws.noise * np.sqrt((light + 0.02) / 0.5)
            light = light + spread * self._rng.normal(size=light.shape)
        return np.clip(np.rint(255 * gain * light), 0, 255).astype(np.uint8)

    def _exposed(self, time_s: float) -> np.ndarray:
        """float64 (h, w, 3) in 0..1: each row over its own exposure."""
        flaws, rows = self._flaws, self._camera.height_px
        span_s = flaws.exposure_s + flaws.readout_s
        count = INSTANTS if span_s > 0 else 1
        offsets_s = np.linspace(-span_s / 2, span_s / 2, count) if count > 1 else np.zeros(1)
        poses = np.stack([pose_at(self._scene, time_s + offset) for offset in offsets_s])
        times_s, scene = time_s + offsets_s, self._scene
        views = render(scene.homes, scene.home_index(times_s), poses, times_s, self._camera)
        images = np.asarray(views.images, np.float64) / 255
        middle_s = ((np.arange(rows) + 0.5) / rows - 0.5) * flaws.readout_s
        step_s = span_s / max(count - 1, 1)
        half_s = max(flaws.exposure_s, step_s) / 2
        away_s = np.abs(offsets_s[None] - middle_s[:, None])
        # The nearest instants weigh fully, those at the ends of the exposure by what is inside.
        weights = np.clip((half_s + step_s / 2 - away_s) / max(step_s, 1e-9), 0, 1)
        if count == 1:
            weights = np.ones((rows, 1))
        weights /= weights.sum(1, keepdims=True)
        return np.einsum("rk,krwc->rwc", weights, images)

    def _vignette(self) -> np.ndarray:
        rows, columns = self._camera.height_px, self._camera.width_px
        y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
        return (1 - self._flaws.vignetting * (x**2 + y**2) / 2)[..., None]


def pose_at(scene: SimulatedScene, time_s: float) -> np.ndarray:
    """world_from_camera (4, 4) between the steps of the walk, its ends beyond them."""
    times, poses = scene.walk.time_s, scene.walk.world_from_camera
    after = int(np.clip(np.searchsorted(times, time_s), 1, len(times) - 1))
    share = np.clip((time_s - times[after - 1]) / (times[after] - times[after - 1]), 0.0, 1.0)
    start, end = poses[after - 1], poses[after]
    pose = start.copy()
    vector, _ = cv2.Rodrigues(start[:3, :3].T @ end[:3, :3])
    pose[:3, :3] = start[:3, :3] @ cv2.Rodrigues(share * vector)[0]
    pose[:3, 3] = (1 - share) * start[:3, 3] + share * end[:3, 3]
    return pose
