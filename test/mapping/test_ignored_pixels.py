# SPDX-License-Identifier: Apache-2.0
"""Masked pixels stay out of the map and are not followed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from g2vlm_tests.walk_views import walk_views

from g2vlm_ros.dense_map.dense_map import DenseMap
from g2vlm_ros.evaluation.stand_in import StandInErrors, StandInPerception
from g2vlm_ros.mapping.ignored_pixels import united, with_ignored
from g2vlm_ros.mapping.tracking_template import tracking_reference
from g2vlm_ros.mapping.view_images import FEATURE_WIDTH_PX, ViewImage
from g2vlm_ros.mapping.view_tracks import TrackedViews, follow_corners
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


def test_masked_pixels_refine_no_pose() -> None:
    """What moves in the masked half would drag the poses along."""
    views = walk_views()[:8:2]
    perception = StandInPerception(views, StandInErrors(turn=0.5, shift=0.01, depth=0.02))
    result = perception.reconstruct(range(len(views)))
    frames = [
        Frame(view.stamp_ns, "camera", "optical", view.image, ignored=lambda: MASK)
        for view in views
    ]
    masked = with_ignored(result, frames)
    half = result.colours.shape[2] // 2
    colours = result.colours.copy()
    for view in range(len(views)):
        colours[view, :, : half - 4] = np.roll(colours[0, :, : half - 4], 3 * view, axis=1)
    dragged, held = replace(result, colours=colours), replace(masked, colours=colours)
    images = [ViewImage(view) for view in colours]
    poses = result.window_from_camera.astype(np.float64)
    for window, some in ((dragged, True), (held, False)):
        tracked = TrackedViews(window, images)
        tracks = follow_corners(tracked, poses)
        left = tracks.source_px[:, 0] < tracked.size[0] // 2 - 4
        assert left.any() == some
    known = tracked.flows
    assert known, "of pairs that were searched before the masks came, masked tracks are left out"
    unmasked = TrackedViews(dragged, images)
    follow_corners(unmasked, poses)
    late = follow_corners(TrackedViews(held, images, unmasked.flows), poses)
    assert (late.source_px[:, 0] > tracked.size[0] // 2 - 4).all()


def test_masks_go_with_keyframes_into_loops() -> None:
    views = walk_views()
    asked, settings = [], Settings.from_flat({"map.loop_gap_windows": 2})
    perception = StandInPerception(views, StandInErrors())
    live = MappingPipeline(perception, settings)
    for view in views:
        live.offer(Frame(view.stamp_ns, "camera", "optical", view.image, ignored=lambda: MASK))
        while live.step() is not None:
            asked = live.map_views()
    assert asked
    for each in asked:
        mask = each.keyframe.frame.ignored()
        assert (
            mask[:, : mask.shape[1] // 2 - 2].all() and not mask[:, mask.shape[1] // 2 + 2 :].any()
        )
        pixels = each.keyframe.features.pixel
        assert (pixels[:, 0] > FEATURE_WIDTH_PX // 2 - 4).all()


def test_masks_of_several_sizes_are_united() -> None:
    one, other = np.zeros((4, 6), bool), np.zeros((8, 12), bool)
    one[0, 0] = other[7, 11] = True
    both = united([lambda: one, lambda: None, lambda: other])
    assert both.shape == (8, 12) and both[:2, :2].all() and both[7, 11] and both.sum() <= 10
    assert united([lambda: None]) is None
