# SPDX-License-Identifier: Apache-2.0
"""What is remembered against what the newest views show, by belief."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from g2vlm_tests.room import box, camera, room

from g2vlm_ros.query import recall
from g2vlm_ros.query.answerer import Answerer
from g2vlm_ros.query.labels import KIND_ONLY, label_fit, unknown_attributes
from g2vlm_ros.query.map_object import MapObject
from g2vlm_ros.query.object_association import fuse, merge, new_object
from g2vlm_ros.query.object_sightings import Sighting, sightings_of
from g2vlm_ros.query.point_map import Region
from g2vlm_ros.query.types import Abstention, Query, Reason

CHAIR, TABLE = box(3.0, 0.7), box(4.0, -0.9, size=(0.8, 1.2, 0.7))
AWAY = box(-3.0, 1.0)
"""Behind the camera."""
SECOND_NS = 1_000_000_000
SURE, DOUBTED = 4.0, 0.4
"""Evidence of what a detector saw often, and of what the model pointed at once."""


def remembered(place, number=1, evidence=SURE, label="chair", seen_s=10):
    low, high = place
    return MapObject(
        id=number,
        label=label,
        centre=(low + high) / 2,
        size=high - low,
        yaw_rad=0.0,
        covariance=np.eye(3) * 0.05**2,
        map_id=0,
        window_id=1,
        first_seen_ns=SECOND_NS,
        last_seen_ns=seen_s * SECOND_NS,
        evidence=evidence,
        sightings=3,
    )


def middle(region):
    return np.add(region.low_px, region.high_px) / 2


def answer(question, memory, words="", at=(), poses=None, unseen="Somewhere.", **fields):
    """words: the model's own; at: numbers of the boxes (0 chair, 1 table) that it points at, one
    for each view. Of none it says `unseen`."""
    points, regions = room([CHAIR, TABLE], poses)

    def says(prompt, marks):
        if not prompt.startswith("Where in"):
            return words
        sides = [(view, middle(regions[which][view])) for view, which in enumerate(at)]
        places = [f"frame {view + 1}, pixel ({u:.0f}, {v:.0f})" for view, (u, v) in sides]
        return "; ".join(places) or unseen

    def to_model(place):
        u, v, *_ = place.pixels(*points.size_px)
        return Region(place.view or 0, (u, v), (u, v))

    query = Query(question, memory=tuple(memory), now_ns=70 * SECOND_NS, **fields)
    return Answerer(points, query, says, to_model).answer()


def off(result, place):
    return float(np.linalg.norm(result.things[0].centre - np.mean(place, axis=0)))


def test_the_newest_window_answers_where_the_thing_is_in_it():
    result = answer("Where is the chair?", [remembered(AWAY)], "Over there.", at=[0])
    assert result.remembered is None and off(result, CHAIR) < 0.5
    assert result.things[0].trust == pytest.approx(0.6)


def test_a_place_that_the_memory_knows_is_surer_than_pointing_alone():
    alone = answer("Where is the chair?", [], "Over there.", at=[0])
    both = answer("Where is the chair?", [remembered(CHAIR)], "Over there.", at=[0])
    assert both.remembered is None and off(both, CHAIR) < 0.5
    assert both.confidence > alone.confidence + 0.2


@pytest.mark.parametrize("evidence, views, kept", [(SURE, 1, True), (DOUBTED, 2, False)])
def test_in_one_view_the_surer_of_memory_and_pointing_counts(evidence, views, kept):
    """The chair is remembered where it stands; the model points at the table for it."""
    poses = [camera(), camera(0.2, 0.1)][:views]
    memory = [remembered(CHAIR, evidence=evidence)]
    result = answer("Where is the chair?", memory, "Over there.", [1] * views, poses)
    assert (result.remembered is not None) is kept
    assert off(result, CHAIR if kept else TABLE) < 0.7
    assert ("its place is in view" in result.text) is kept


def test_what_the_views_do_not_show_is_remembered_unless_it_is_gone():
    result = answer("Where is the chair?", [remembered(AWAY)], "There is no chair.")
    assert result.remembered is not None and off(result, AWAY) < 0.01
    assert result.text.endswith("In no view now; the chair was seen 1 minute ago.")
    for memory in ([remembered(AWAY, evidence=-4.0)], []):
        with pytest.raises(Abstention) as refusal:
            answer("Where is the chair?", memory, "There is no chair.")
        assert refusal.value.reason is Reason.NOT_VISIBLE


@pytest.mark.parametrize(
    "question, words, from_memory",
    [
        ("In which direction is the chair?", "It is to your left.", False),
        ("In which direction is the chair?", "There is no chair.", True),
        ("In which direction is the chair?", "Chairs are for sitting.", True),
        ("How far is the chair?", "3 metres.", False),
        ("How far is the chair?", "It is not visible.", True),
        ("How far is the chair?", "Some way off.", True),
        ("Is there a chair?", "Yes.", False),
        ("Is there a chair?", "No.", True),
    ],
)
def test_words_about_a_thing_in_view_come_before_what_is_remembered_elsewhere(
    question, words, from_memory
):
    result = answer(question, [remembered(AWAY)], words)
    assert (result.remembered is not None) is from_memory


def test_a_model_that_does_not_see_what_it_talks_of_leaves_it_to_the_memory():
    memory = [remembered(AWAY)]
    result = answer("How far is the chair?", memory, "3 metres.", unseen="It is not visible.")
    assert result.remembered is not None


def test_what_is_remembered_in_these_views_is_measured_though_the_model_gives_no_place():
    result = answer("How far is the chair?", [remembered(CHAIR)], "2.9 metres.")
    assert result.measured and result.number.value == pytest.approx(3.2, abs=0.3)


def test_words_have_no_confidence_that_could_be_asked_for():
    result = answer("How far is the chair?", [remembered(AWAY)], "3 metres.", min_confidence=0.5)
    assert result.remembered is not None and result.confidence > 0.5


@pytest.mark.parametrize(
    "question, there",
    [
        ("Is there a chair?", True),
        ("Is a chair in these views?", False),
        ("Do you see a chair?", False),
    ],
)
def test_whether_there_is_one_in_these_views_is_no_matter_of_memory(question, there):
    assert answer(question, [remembered(AWAY)], "No.").yes_no is there


def test_several_that_are_believed_alike_are_named_with_place_and_age():
    memory = [remembered(AWAY), remembered(box(-4.0, -1.0), 2, label="red chair", seen_s=40)]
    with pytest.raises(Abstention) as refusal:
        answer("Where is the chair?", memory, "There is no chair.")
    assert refusal.value.reason is Reason.AMBIGUOUS
    for part in ("(-3.00, 1.00, 0.40), seen 1 minute ago", "(-4.00, -1.00, 0.40), seen 30 s ago"):
        assert part in str(refusal.value)


@pytest.mark.parametrize("rival", [DOUBTED, -1.0])
def test_of_several_the_one_that_is_clearly_surer_is_meant(rival):
    memory = [remembered(AWAY), remembered(box(-4.0, -1.0), 2, evidence=rival)]
    result = answer("Where is the chair?", memory, "There is no chair.")
    assert result.remembered.id == 1


def test_of_several_the_one_in_view_is_meant():
    memory = [remembered(AWAY), remembered(CHAIR, 2)]
    assert answer("Where is the chair?", memory, "Over there.").remembered.id == 2


def test_a_place_is_in_view_by_its_surface_and_not_by_the_floor_at_its_feet():
    points, _ = room([CHAIR, TABLE])
    taken_away, _ = room([TABLE])
    assert recall.in_view(points, remembered(CHAIR))
    assert not recall.in_view(taken_away, remembered(CHAIR))
    assert not recall.in_view(points, remembered(AWAY))


def seen_at(x, stamp_ns, size=(0.5, 0.5, 0.8)):
    """A sighting with a deviation of 0.3 m."""
    thing = remembered(CHAIR).as_object3d()
    thing = dataclasses.replace(
        thing, centre=np.array([x, 0.0, 0.0]), size=np.array(size), source="detection"
    )
    image, corners = np.zeros((120, 160, 3), np.uint8), (10.0, 10.0, 20.0, 20.0)
    return Sighting(thing, np.eye(3) * 0.3**2, stamp_ns, "camera", corners, None, image)


@pytest.mark.parametrize("order", [(0.4, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.4)])
def test_all_sightings_of_an_object_weigh_alike_whichever_came_first(order):
    thing = new_object(1, seen_at(order[0], 1), 0, 1)
    for k, x in enumerate(order[1:]):
        thing = fuse(thing, seen_at(x, k + 2), 1)
    assert thing.centre[0] == pytest.approx(0.1, abs=0.01)
    assert thing.covariance[0, 0] == pytest.approx(0.3**2 * 3 / 4, rel=0.05), "four say 4/3"


@pytest.mark.parametrize(
    "poses, belief", [([camera()], 0.6), ([camera(), camera(0.2, 0.1)], 0.69)]
)
def test_what_the_model_points_at_is_remembered_as_surely_as_its_views_agree(poses, belief):
    result = answer("Where is the chair?", [], "Over there.", [0] * len(poses), poses)
    points, _ = room([CHAIR, TABLE], poses)
    frames = [SimpleNamespace(camera="camera", stamp_ns=k + 1) for k in range(len(poses))]
    selection = SimpleNamespace(
        points=points,
        frames=frames,
        image=lambda view: np.zeros((120, 160, 3), np.uint8),
        corners=lambda region: (*region.low_px, *region.high_px),
    )
    (sighting,) = sightings_of(selection, result.things)
    assert new_object(1, sighting, 0, 1).belief == pytest.approx(belief, abs=0.01)


def test_a_sliver_behind_a_door_frame_does_not_say_where_the_middle_is():
    """Seen twice 0.2 m wide and surely, then once whole, 1.6 m wide and 0.6 m aside."""
    sliver, whole = np.array([0.2, 0.2, 0.7]), np.array([1.6, 0.6, 0.7])
    thing = new_object(1, seen_at(0.6, 1, sliver), 0, 1)
    thing = fuse(thing, seen_at(0.6, 2, sliver), 1)
    thing = fuse(thing, seen_at(0.0, 3, whole), 1)
    assert thing.centre[0] < 0.35, "two slivers weigh less than one whole sighting"
    assert thing.centre[0] ** 2 < 2 * thing.covariance[0, 0]


def test_a_part_that_was_taken_for_another_thing_does_not_move_or_shrink_it():
    wardrobe = new_object(1, seen_at(0.0, 1, np.array([1.6, 0.6, 0.7])), 0, 1)
    wardrobe = dataclasses.replace(wardrobe, sightings=9)
    part = new_object(2, seen_at(0.5, 5, np.array([0.2, 0.2, 0.3])), 0, 2)
    both = merge(part, wardrobe)
    assert (both.id, both.sightings, both.last_seen_ns) == (1, 10, 5)
    assert both.size == pytest.approx(wardrobe.size) and both.centre[0] < 0.2


def painted(label, number=1, place=AWAY):
    return remembered(place, number, label=label)


@pytest.mark.parametrize(
    "question, words",
    [
        ("Is there a yellow television?", "No."),
        ("Where is the yellow television?", "There is no yellow television."),
        ("When did you last see the yellow television?", ""),
        ("Which room is the yellow television in?", ""),
    ],
)
def test_a_thing_of_unknown_colour_answers_for_no_colour(question, words):
    with pytest.raises(Abstention) as refusal:
        answer(question, [painted("television")], words)
    assert refusal.value.reason is Reason.AMBIGUOUS
    assert "the colour of what is remembered is not known: the television at" in str(refusal.value)


def test_what_the_wording_leaves_open_or_the_label_tells_needs_no_doubt():
    assert answer("Is there a television?", [painted("television")], "No.").yes_no
    assert answer("Is there a yellow television?", [painted("yellow television")], "No.").yes_no
    assert not answer("Is there a yellow television?", [painted("red television")], "No.").yes_no
    assert answer("Is there a yellow television?", [painted("television")], "Yes.").yes_no, (
        "the model sees its colour in the views"
    )


def test_a_count_says_what_may_be_meant_as_well():
    memory = [painted("red chair"), painted("chair", 2), painted("blue chair", 3)]
    result = answer("How many red chairs have you seen?", memory)
    assert result.number.value == 1
    assert "There may be more: the colour of what is remembered is not known" in result.text
    assert result.text.count("chair at") == 1


def test_a_thing_in_no_known_room_is_not_said_to_be_in_none():
    table = dataclasses.replace(painted("table"), room=2, room_name="kitchen")
    question = "Is there a cup in the kitchen?"
    with pytest.raises(Abstention, match="no cup is known to be in the kitchen, but the room"):
        answer(question, [table, painted("cup", 2)])
    hall = dataclasses.replace(painted("cup", 2), room=3)
    assert answer(question, [table, hall]).yes_no is False


@pytest.mark.parametrize(
    "phrase, label, unknown",
    [
        ("red chair", "chair", {"colour": "red"}),
        ("red chair", "wooden chair", {"colour": "red"}),
        ("big red chair", "red chair", {"size": "big"}),
        ("chair", "red chair", {}),
    ],
)
def test_what_a_label_does_not_tell_is_unknown(phrase, label, unknown):
    assert unknown_attributes(phrase, label) == unknown
    assert label_fit(phrase, label) == (KIND_ONLY if unknown else 1.0)


@pytest.mark.parametrize("label", ["blue chair", "red table", "dark blue chair"])
def test_another_colour_or_kind_is_no_match_at_all(label):
    assert label_fit("red chair", label) == 0.0
