# SPDX-License-Identifier: Apache-2.0
"""A place seen again from aside is known by its features, and the drift since then goes."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from g2vlm_tests.places import HEIGHT_PX, WIDTH_PX, pass_by, pipeline, pose_error, world_from_map

from g2vlm_ros.datasets.sequence import SequenceFrame
from g2vlm_ros.demo.sim.camera import lens, world_from_camera
from g2vlm_ros.demo.sim.home_builder import build_home
from g2vlm_ros.demo.sim.renderer import render
from g2vlm_ros.demo.sim.splits import home_seed
from g2vlm_ros.evaluation.stand_in import StandInErrors, StandInPerception
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.mapping import revisits
from g2vlm_ros.mapping.loop_closure import LoopDetector
from g2vlm_ros.mapping.relocalisation import SURE_INLIERS, Place

ERRORS = StandInErrors(turn=1.0, shift=0.015, depth=0.04, seed=2)
ROUND, VIEWS = 22, 31
GAP = 8


@cache
def orbit() -> tuple[SequenceFrame, ...]:
    """Around the largest room of a validation home at eye height, and on: the second time on a
    smaller ellipse, turned by 20 degrees, so that no view comes back."""
    home = build_home(home_seed("validation", 1))
    x0, y0, x1, y1 = max((room.rectangle for room in home.rooms), key=_area)
    phase = 2 * np.pi * np.arange(VIEWS) / ROUND
    later = np.clip((np.arange(VIEWS) - ROUND + 4) / 4, 0, 1)
    size = np.array([x1 - x0, y1 - y0]) * (0.3 - 0.1 * later)[:, None]
    ellipse = size * np.stack([np.cos(phase), np.sin(phase)], 1)
    place = np.column_stack([ellipse + [(x0 + x1) / 2, (y0 + y1) / 2], np.full(VIEWS, 1.45)])
    yaw = np.arctan2(size[:, 1] * np.cos(phase), -size[:, 0] * np.sin(phase))
    poses = world_from_camera(place, yaw - np.deg2rad(20) * (1 - later), 0.25)
    camera, index = lens(WIDTH_PX, HEIGHT_PX), np.zeros(VIEWS, np.int64)
    views = render([home], index, poses, np.zeros(VIEWS), camera)
    images, depths = np.array(views.images), np.asarray(views.depth_m)
    return tuple(
        SequenceFrame(10**9 * (i + 1), "camera", images[i].copy, poses[i], camera, depths[i].copy)
        for i in range(VIEWS)
    )


def _area(rectangle) -> float:
    x0, y0, x1, y1 = rectangle
    return (x1 - x0) * (y1 - y0)


def go_round(monkeypatch, find=None):
    """Updates of a drive whose network joins no old and new views; its counts of loops."""
    monkeypatch.setattr(LoopDetector, "detect", lambda *_: None)
    if find is not None:
        monkeypatch.setattr(revisits.RevisitSearch, "find", find)
    perception = StandInPerception(orbit(), ERRORS, WIDTH_PX)
    live = pipeline(perception, map__loop_closure=True, map__loop_gap_windows=GAP)
    return pass_by(live, orbit()), live.counts().loops


def test_a_place_seen_from_aside_takes_the_drift_out(monkeypatch):
    """Though the network joins no old and new views."""
    updates, loops = go_round(monkeypatch)
    closure = next(i for i, u in enumerate(updates) if u.placement.loop_closed)
    assert loops["closed"] >= 1 and updates[closure].window.id > GAP
    assert updates[closure].placement.corrections, "windows between moved"
    alone, _ = go_round(monkeypatch, find=lambda *_: None)

    def error_m(drive):
        return pose_error(drive[closure], orbit(), world_from_map(drive, orbit()))[0]

    assert error_m(updates) < 0.6 * error_m(alone)


@pytest.mark.parametrize(
    ("inliers", "off", "believed"),
    [
        (30, 0.1, True),
        (30, 1.5, False),
        (SURE_INLIERS, 1.5, True),
        (10, 0.1, False),
        (SURE_INLIERS, 0.001, False),
    ],
)
def test_few_features_are_believed_where_the_map_expects_them_and_news_alone(
    monkeypatch, inliers, off, believed
):
    """off: of the found place from the expected one, in ranges of the view."""
    answers = []

    def places(near, result, views, newest):
        reach = float(np.median(result.local_points_u[newest, ..., 2]))
        window = current[0]
        accuracy = (0.01 * reach * window.scale) ** 2 * np.eye(7)
        aside = Sim3(1.0, np.eye(3), np.array([off * reach * window.scale, 0.0, 0.0]))
        place = Place(
            aside @ window, near[0].keyframe, inliers, 0.9, 0.9, accuracy, np.eye(4)
        )  # fmt: skip
        return [place]

    current, find = [], revisits.RevisitSearch.find

    def watched(self, mapped, slam, keyframes):
        current[:] = [mapped.placement.map_from_window]
        self.clear()
        place = find(self, mapped, slam, keyframes)
        answers.append(place)
        return None

    monkeypatch.setattr(revisits, "find_places_of", places)
    go_round(monkeypatch, watched)
    assert any(answers) is believed


def test_a_search_that_found_nothing_waits_and_a_closure_waits_longer(monkeypatch):
    """So that a robot that stays near an old place does not search with each window."""
    tries = []

    def nothing(near, result, views, newest):
        tries.append(1)
        return []

    monkeypatch.setattr(revisits, "find_places_of", nothing)
    updates, _ = go_round(monkeypatch)
    assert 1 <= len(tries) <= 1 + (len(updates) - GAP) // revisits.RETRY_WINDOWS
    search = revisits.RevisitSearch(GAP)
    search.closed(5)
    late = replace(updates[0], window=replace(updates[0].window, id=5 + GAP - 1))
    no_map_is_looked_at = None
    assert search.find(late, no_map_is_looked_at, []) is None
