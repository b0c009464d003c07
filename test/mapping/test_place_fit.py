# SPDX-License-Identifier: Apache-2.0
"""The place of a window by features: its covariance is that of the errors that are made."""

from types import SimpleNamespace

import numpy as np
import pytest

from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.mapping import place_fit
from g2vlm_ros.mapping.place_fit import DEPTH_STD, PIXEL_STD, PlaceFit, fit_place
from g2vlm_ros.mapping.place_matching import FeatureMatches
from g2vlm_ros.records import ViewStd

FOCAL_PX = 300.0
TRUE = Sim3.exp(np.array([0.2, -0.1, 0.4, 1.0, 2.0, -0.5, 0.3]))


def fitted(rng, patches: int, per_patch: int = 3, std: ViewStd | None = None) -> PlaceFit:
    """Features that lie in so many patches of a view, those of one patch off by the same."""
    corners = np.stack(np.meshgrid(np.arange(-3, 4), np.arange(-2, 3)), -1).reshape(-1, 2) / 4
    centres = corners[rng.choice(len(corners), patches, replace=False)]
    pixels = np.repeat(centres, per_patch, axis=0)
    pixels = pixels + rng.uniform(-0.1, 0.1, pixels.shape)
    depths = rng.uniform(1.5, 4.0, len(pixels))
    local = np.column_stack([pixels, np.ones(len(pixels))]) * depths[:, None]
    off = np.repeat(rng.normal(size=(patches, 3)), per_patch, axis=0)
    matches = FeatureMatches(
        points=TRUE.apply(local),
        pixels=pixels + off[:, :2] * PIXEL_STD / FOCAL_PX,
        depths_u=depths * np.exp(DEPTH_STD * off[:, 2]),
        poses=np.tile(np.eye(4), (len(pixels), 1, 1)),
        keyframes=np.zeros(len(pixels), int),
        views=np.zeros(len(pixels), int),
        focal_px=FOCAL_PX,
    )
    window = SimpleNamespace(median_depth_u=2.7, view_std=std)
    return fit_place(TRUE, matches, window)


@pytest.mark.parametrize("patches", [10, 14, 30])
def test_few_patches_say_how_little_they_know(patches, monkeypatch) -> None:
    """Half of the squared errors lie below the median of chi square (0.907 of its degrees of
    freedom), or not far from it: fits to few patches made it 7 and 4."""
    monkeypatch.setattr(place_fit, "SYSTEMATIC", 1e-3 * place_fit.SYSTEMATIC)
    rng, normalised = np.random.default_rng(3), []
    for _ in range(50):
        fit = fitted(rng, patches)
        miss = (TRUE @ fit.map_from_window.inverse()).log()
        normalised.append(miss @ np.linalg.solve(fit.covariance, miss) / 7)
    assert 0.5 < np.median(normalised) < 2.0


def test_a_window_that_is_off_makes_its_place_unsure() -> None:
    """Both views are of the same network, and each is off by its own."""
    said = ViewStd(turn_rad=0.05, shift=0.06, scale=0.07)
    fits = [fitted(np.random.default_rng(3), 30, std=std) for std in (None, said)]
    before, after = (np.diag(fit.covariance)[[0, 6]] for fit in fits)
    np.testing.assert_allclose(after - before, [2 * 0.05**2 - 0.01**2, 2 * 0.07**2 - 0.02**2])
