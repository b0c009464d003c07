# SPDX-License-Identifier: Apache-2.0
"""Masked pixels stay out of the map and are not followed."""

from __future__ import annotations

import numpy as np
import pytest
from g2vlm_tests.walk_views import walk_views

from g2vlm_ros.dense_map.dense_map import DenseMap
from g2vlm_ros.evaluation.stand_in import StandInErrors, StandInPerception
from g2vlm_ros.mapping.camera_tracker import tracking_reference
from g2vlm_ros.pipeline import MappingPipeline
from g2vlm_ros.records import Frame
from g2vlm_ros.settings import Settings

MASK = np.zeros((60, 80), bool)
MASK[:, :40] = True
"""The left half, at another size than the image's."""


def mapped(mask):
    views, settings = walk_views(), Settings()
    live = MappingPipeline(StandInPerception(views, StandInErrors()), settings)
    dense_map, update = DenseMap(settings), None
    for view in views:
        ignored = None if mask is None else lambda: mask
        live.offer(
            Frame(view.stamp_ns, "camera", "optical", view.image, view.intrinsics, ignored=ignored)
        )
        if (new := live.step()) is not None:
            update = new
            dense_map.add(update)
    return update, dense_map


@pytest.fixture(scope="module")
def runs():
    return {name: mapped(mask) for name, mask in
            (("plain", None), ("half", MASK), ("all", np.ones((60, 80), bool)))}  # fmt: skip


def test_masked_pixels_stay_out_of_the_map(runs) -> None:
    plain, half, everything = (len(runs[name][1].points()) for name in ("plain", "half", "all"))
    assert everything == 0
    assert 0 < half < 0.8 * plain


def test_masked_pixels_have_no_confidence_and_are_not_followed(runs) -> None:
    update, _ = runs["half"]
    columns = update.result.confidence.shape[2]
    left = update.result.confidence[:, :, : columns // 2 - 2]
    assert (left == 0).all() and (update.result.confidence[:, :, columns // 2 + 2 :] > 0).any()
    reference = tracking_reference(update, update.window.newest)
    width = reference.points.shape[1]
    assert np.isnan(reference.points[:, : width // 2 - 2]).all()
    assert np.isfinite(reference.points[:, width // 2 + 2 :]).all()
