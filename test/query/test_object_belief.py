# SPDX-License-Identifier: Apache-2.0
"""What windows say of a remembered object, by stated likelihoods, and whose a sighting is then."""

import dataclasses
import math

import numpy as np
import pytest
from g2vlm_tests.object_drive import CHAIR, TABLE, Drive
from g2vlm_tests.room import box

from g2vlm_ros.query import likelihoods
from g2vlm_ros.query.map_object import ObjectState

BLUE = (0, 0, 255)


def drive_past_the_chair(windows=4):
    drive = Drive()
    for _ in range(windows):
        drive.see([CHAIR, TABLE], ["chair", "table"])
    return drive


def state_of(drive, label):
    return {each.label: each.state for each in drive.memory.objects()}[label]


def windows_until_gone(drive, boxes, names, most=12, **options):
    for window in range(1, most + 1):
        drive.see(boxes, names, **options)
        if state_of(drive, "chair") not in (ObjectState.PRESENT, ObjectState.UNCERTAIN):
            return window
    return None


def test_a_surface_of_another_colour_where_the_detector_is_silent_is_another_thing():
    """Something stands in the chair's place: no ray passes, and still it is noticed at once."""
    crate = CHAIR
    drive = drive_past_the_chair()
    assert windows_until_gone(drive, [crate, TABLE], ["", "table"], paint=BLUE) == 2


def test_a_surface_of_its_colour_is_most_likely_it_and_the_detector_overlooks_it():
    drive = drive_past_the_chair()
    assert windows_until_gone(drive, [CHAIR, TABLE], ["", "table"], most=4) is None


def test_no_single_window_takes_what_was_sure_to_gone():
    drive = drive_past_the_chair()
    gone_after = windows_until_gone(drive, [TABLE], ["table"], paint=BLUE)
    assert gone_after == 2, "seen through, silent and of another colour, all at once"


def test_another_of_its_kind_that_came_since_speaks_for_a_move():
    """One silent window each, with or without a chair that was first seen after the old one."""
    beliefs = []
    for first_seen_ns in (1, 10**15):
        drive = drive_past_the_chair()
        chair, table = drive.memory.objects()
        other = dataclasses.replace(
            chair, id=7, centre=chair.centre + (0.0, 9.0, 0.0), first_seen_ns=first_seen_ns
        )
        drive.memory.replace_all([chair, table, other], 0)
        drive.see([CHAIR, TABLE], ["", "table"], paint=(204, 0, 0))
        beliefs.append(drive.memory.objects()[0].evidence)
    assert beliefs[1] - beliefs[0] == pytest.approx(likelihoods.SUCCESSOR)


def test_a_sighting_aside_is_of_what_is_sure_and_not_of_what_views_have_missed():
    (chair, table) = drive_past_the_chair().memory.objects()
    aside = [box(3.0, 1.35), TABLE]
    sightings = []
    for misses, evidence in ((0, 4.0), (3, -1.0)):
        drive = drive_past_the_chair()
        covariance = np.eye(3) * 0.1**2
        changed = dataclasses.replace(
            chair, covariance=covariance, misses=misses, evidence=evidence
        )
        drive.memory.replace_all([changed, table], 0)
        drive.see(aside, ["chair", "table"])
        sightings.append(drive.memory.objects()[0].sightings)
    assert sightings == [chair.sightings + 1, chair.sightings]


def test_one_look_at_its_place_brings_back_what_was_gone():
    drive = drive_past_the_chair()
    chair, table = drive.memory.objects()
    drive.memory.replace_all([dataclasses.replace(chair, misses=3, evidence=-4.0), table], 0)
    drive.see([CHAIR, TABLE], ["chair", "table"])
    assert state_of(drive, "chair") == ObjectState.PRESENT


@pytest.mark.parametrize(
    "sightings, overlooked, miss", [(3, 0, 0.2), (50, 0, likelihoods.MIN_MISS), (4, 4, 0.5)]
)
def test_silence_says_the_more_the_surer_the_object_was_shown(sightings, overlooked, miss):
    assert likelihoods.silence(sightings, overlooked) == pytest.approx(math.log(miss))


@pytest.mark.parametrize("distance, sign", [(0.05, 1), (0.2, 0), (0.5, -1), (math.nan, 0)])
def test_a_colour_says_something_where_it_is_clear(distance, sign):
    assert np.sign(likelihoods.colour(distance)) == sign
