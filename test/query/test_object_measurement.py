# SPDX-License-Identifier: Apache-2.0
"""Regions of a known room are measured to within their stated error."""

import math

import numpy as np
import pytest
from g2vlm_tests.room import HEIGHT, WIDTH, box, camera, room

from g2vlm_ros.query import relations
from g2vlm_ros.query.object_measurement import (
    fuse,
    group,
    landmark,
    locate,
    map_covariance,
)
from g2vlm_ros.query.point_map import Region

CHAIR = box(3.0, 0.6)
TABLE = box(4.0, -0.9, size=(0.8, 1.2, 0.7))
LAMP = box(2.5, -0.2, size=(0.2, 0.2, 1.5))
THREE = [CHAIR, TABLE, LAMP]
AROUND = [camera(), camera(0.5, 1.5, yaw=-0.4), camera(1.0, -1.2, yaw=0.3)]


def things(boxes=THREE, poses=None, **options):
    """(PointMap, the Thing of each box) from all views."""
    points, regions = room(boxes, poses, **options)
    objects = []
    for k, each in enumerate(regions):
        objects.append(fuse([locate(points, r, f"thing {k}", "request") for r in each]))
    return points, objects


def test_boxes_lie_where_they_are_despite_background_in_the_region():
    points, objects = things(poses=AROUND)
    for thing, (low, high) in zip(objects, THREE, strict=True):
        assert np.abs(thing.centre - (low + high) / 2).max() < 0.12
        long, short, height = *sorted((high - low)[:2], reverse=True), (high - low)[2]
        assert thing.size[[0, 2]] == pytest.approx([long, height], abs=0.15)
        assert thing.size[1] < short + 0.1, "the back may be hidden"


def test_how_wide_a_thing_looks_is_across_the_line_of_sight():
    plank = box(3.0, 0.0, size=(1.6, 0.4, 0.8))
    _, (ahead,) = things([plank])
    assert ahead.across == pytest.approx(0.4, abs=0.12) and ahead.size[0] > 0.3
    _, (aside,) = things([box(3.0, 0.0, size=(0.4, 1.6, 0.8))])
    assert aside.across == pytest.approx(1.6, abs=0.15)


def test_a_pixel_gives_the_surface_under_it_and_no_size():
    points, regions = room([CHAIR])
    region = regions[0][0]
    u, v = (round((a + b) / 2) for a, b in zip(region.low_px, region.high_px, strict=True))
    thing = locate(points, Region(0, (u, v), (u, v)), "this", "request")
    assert np.linalg.norm(thing.position - points.points[0, v, u]) < 0.03
    assert np.isnan(thing.size).all()
    with pytest.raises(ValueError, match="box"):
        relations.extent(points, thing, "width")


def test_a_landmark_is_a_sure_pixel_apart_whose_distance_is_right():
    points, regions = room([CHAIR, TABLE])
    points.confidence[:] = 0.5
    points.confidence[0, 100, 120] = 0.9
    region = regions[0][0]
    mark, away = landmark(points, region)
    assert mark.is_pixel and mark.low_px == (120.0, 100.0)
    eye = points.map_from_camera[0][:3, 3]
    assert away == pytest.approx(np.linalg.norm(points.points[0, 100, 120] - eye), rel=1e-6)
    everywhere = Region(0, (0.0, 0.0), (WIDTH - 1.0, HEIGHT - 1.0))
    assert landmark(points, everywhere) is None


def test_a_region_without_points_has_no_thing_and_one_outside_is_an_error():
    points, regions = room([CHAIR])
    points.points.setflags(write=True)
    points.points[:] = np.nan
    assert locate(points, regions[0][0], "chair", "request") is None
    with pytest.raises(ValueError, match="outside"):
        locate(points, Region(0, (WIDTH, 0), (WIDTH + 5, 5)), "chair", "request")
    with pytest.raises(ValueError, match="outside"):
        locate(points, Region(1, (0, 0), (5, HEIGHT - 1)), "chair", "request")


def test_distances_and_headings_equal_the_truth():
    points, (chair, table, _) = things(poses=AROUND)
    eye = AROUND[-1][:3, 3]
    true = [(low + high) / 2 for low, high in THREE]
    assert relations.distance(points, chair).value == pytest.approx(
        np.linalg.norm(true[0] - eye), abs=0.1
    )
    assert relations.distance(points, chair, table).value == pytest.approx(
        np.linalg.norm(true[0] - true[1]), abs=0.15
    )
    bearing = math.atan2(*(true[0] - eye)[[1, 0]]) - 0.3
    assert relations.heading(points, chair).value == pytest.approx(bearing, abs=0.05)


@pytest.mark.parametrize("noise", [0.01, 0.03])
def test_stated_errors_cover_the_real_ones(noise):
    """Of many noisy rooms, most truths lie within two stated deviations, and not far within."""
    inside, sizes = 0, []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x, y = rng.uniform(2, 5), rng.uniform(-0.8, 0.8)
        deep = rng.uniform(0.1, 0.5)
        made = box(x, y, size=(deep, 0.5, 0.8))
        points, (thing,) = things([made], noise=noise, seed=seed, sure=np.exp(-noise / 0.05))
        objects = relations.distance(points, thing)
        true = np.linalg.norm([x, y, 0.4 - 1.2])
        inside += abs(objects.value - true) < 2 * objects.std
        sizes.append(objects.std / true)
    assert inside >= 50
    assert max(sizes) < 0.1, "errors are not stated so large that they say nothing"


def test_a_less_confident_point_map_states_larger_errors():
    points, regions = room([CHAIR])
    sure = locate(points, regions[0][0], "chair", "request")
    points.confidence[:] = 0.1
    unsure = locate(points, regions[0][0], "chair", "request")
    assert np.trace(unsure.covariance) > 2 * np.trace(sure.covariance)
    assert unsure.confidence == pytest.approx(0.1)


def test_the_error_of_the_scale_reaches_lengths_and_the_map_but_no_angle():
    exact, (thing,) = things([CHAIR])
    rough, (same,) = things([CHAIR], scale_std=0.1)
    a, b = (relations.distance(p, t) for p, t in ((exact, thing), (rough, same)))
    assert b.std == pytest.approx(math.hypot(a.std, 0.1 * a.value))
    assert np.trace(map_covariance(rough, same)) > np.trace(map_covariance(exact, thing))
    assert relations.heading(rough, same) == relations.heading(exact, thing)


def test_without_metres_lengths_are_refused_and_comparisons_are_not():
    points, (chair, table, lamp) = things(scale=3.7, metric=False)
    for ask in (
        lambda: relations.distance(points, chair),
        lambda: relations.distance(points, chair, table),
        lambda: relations.extent(points, chair, "height"),
        lambda: relations.gap(points, chair, table),
    ):
        with pytest.raises(relations.ScaleError, match="scale is not known"):
            ask()
    assert relations.closer(points, lamp, table).value
    assert relations.nearest(points, [table, chair, lamp])[0] is lamp
    metric, (same, *_) = things()
    assert relations.heading(points, chair).value == pytest.approx(
        relations.heading(metric, same).value, abs=1e-4
    )


def test_left_and_front_depend_on_whose_they_are():
    points, (chair, table, _) = things()
    assert relations.lies(points, chair, "left", table, None).value
    assert relations.lies(points, chair, "front", table, None).value, "nearer to the viewer"
    facing_us = relations.object_axes(table, np.array([-1.0, 0.0]))
    assert relations.lies(points, chair, "right", table, facing_us).value
    assert relations.lies(points, chair, "front", table, facing_us).value
    assert relations.lies(points, chair, "behind", table, relations.world_axes()).value
    turned = np.eye(4)
    turned[:2, :2] = [[-1, 0], [0, -1]]
    assert relations.lies(points, chair, "right", table, relations.world_axes(turned)).value


def test_opposite_claims_are_opposite():
    points, (chair, table, _) = things()
    for word, other in (("left", "right"), ("front", "behind"), ("above", "below")):
        for axes in (None, relations.world_axes()):
            a = relations.lies(points, chair, word, table, axes)
            b = relations.lies(points, table, word, chair, axes)
            c = relations.lies(points, chair, other, table, axes)
            if word != "above":
                assert a.value != b.value and a.value != c.value
            assert a.probability >= 0.5


def test_above_needs_to_be_over_it():
    shelf, under = box(3.0, 0.0, size=(0.4, 1.0, 0.3), z=1.5), box(3.0, 0.1)
    points, (high, low, beside) = things([shelf, under, box(3.0, -1.5)])
    assert relations.lies(points, high, "above", low, None).value
    assert not relations.lies(points, low, "above", high, None).value
    assert relations.lies(points, low, "below", high, None).value
    assert not relations.lies(points, high, "above", beside, None).value


def test_between():
    row = [box(3.0, 1.2), box(3.0, 0.0), box(3.2, -1.2)]
    points, (first, middle, last) = things(row)
    assert relations.between(points, middle, first, last).value
    assert not relations.between(points, first, middle, last).value


@pytest.mark.parametrize("width", [0.5, 0.9, 1.4])
def test_the_gap_between_two_boxes(width):
    pair = [box(3.0, width / 2 + 0.25), box(3.0, -width / 2 - 0.25)]
    points, (left, right) = things(pair)
    free = relations.gap(points, left, right)
    assert free.value == pytest.approx(width, abs=0.08)
    assert relations.fits(points, 0.5 * width, left, right)[0].value
    assert not relations.fits(points, 1.6 * width, left, right)[0].value


def test_something_in_the_gap_narrows_it():
    pair = [box(3.0, 1.0), box(3.0, -1.0)]
    post = box(3.0, 0.2, size=(0.2, 0.1, 1.0))
    points, (left, right, _) = things([*pair, post])
    assert relations.gap(points, left, right).value < 1.1


@pytest.mark.parametrize(("yaw", "word"), [(0.0, "front"), (-0.6, "left"), (0.6, "right")])
def test_whereabouts(yaw, word):
    points, (thing,) = things([box(3.0, 0.0)], poses=[camera(yaw=yaw * 0.9)])
    assert relations.whereabouts(points, thing)[0] == word


def test_what_was_seen_before_is_behind_after_a_turn():
    points, objects = things([CHAIR], poses=[camera(), camera(yaw=math.pi)])
    word, sure = relations.whereabouts(points, objects[0])
    assert word == "behind" and sure > 0.9


def test_sightings_in_several_views_are_one_thing_each():
    points, regions = room(THREE, AROUND)
    sightings = [
        locate(points, region, "thing", "detection") for each in regions for region in each
    ]
    assert len(sightings) > 3
    assert len(group(sightings)) == 3
    assert len(group(sightings[::-1])) == 3


def test_going_moves_the_robot_along_its_own_front():
    points, _ = room([CHAIR], [camera(1.0, 2.0, yaw=math.pi / 2)])
    pose = relations.moved(points, 2.0, 0.5)
    assert pose[:3, 3] == pytest.approx([0.5, 4.0, 1.2])
    turned = relations.moved(points, 1.0, 0.0, turn_rad=-math.pi / 2)
    assert turned[:3, 3] == pytest.approx([2.0, 2.0, 1.2])
    assert np.linalg.det(turned[:3, :3]) == pytest.approx(1)
