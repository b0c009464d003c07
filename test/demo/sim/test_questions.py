# SPDX-License-Identifier: Apache-2.0
"""Answers against a second, simpler computation from the rendered arrays."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.sim.question_metrics import Baselines, correct, right_lengths
from g2vlm_ros.demo.sim.questions import (
    KINDS,
    MIN_SHARE,
    QuestionAnswer,
    ask,
    direction_word,
    shares,
    truth,
)
from g2vlm_ros.demo.sim.scenes import make_clips, make_scene

SEEDS = tuple(range(0, 45, 3))


@pytest.fixture(scope="module")
def windows():
    scenes = [make_scene(seed) for seed in SEEDS]
    clips = make_clips(scenes, 4, lens(112, 84), samples=1)
    poses, times = clips.world_from_camera(), clips.time_s()
    questions = []
    for i, scene in enumerate(scenes):
        facts = truth(scene.home, shares(clips.items[i]), poses[i], times[i])
        answers = ask(facts, np.random.default_rng(i), 24)
        questions.append(
            (scene.home, clips.items[i], clips.depth_m[i], poses[i], times[i], answers)
        )
    return questions


def answers_of(windows, kind):
    for home, items, depth, poses, times, answers in windows:
        for qa in answers:
            if qa.kind == kind:
                yield home, items, depth, poses, times, qa


def shown(home, items):
    """Name -> items that fill enough of some view."""
    share = {i.id: max((view == i.id).mean() for view in items) for i in home.items}
    return [i for i in home.items if share[i.id] >= MIN_SHARE and i.colour]


def named(home, items, phrase):
    """The one item that a phrase fits."""
    matches = [i for i in shown(home, items) if phrase in (i.name, f"{i.colour} {i.name}")]
    assert len(matches) == 1, phrase
    return matches[0]


def test_all_kinds_are_asked_and_no_question_twice(windows):
    kinds = Counter(qa.kind for *_, answers in windows for qa in answers)
    assert set(kinds) == set(KINDS)
    for *_, answers in windows:
        assert len({qa.question for qa in answers}) == len(answers)


def test_exists_and_absent(windows):
    for home, items, *_, qa in answers_of(windows, "exists"):
        phrase = re.search(r"\ban? (.*?)(?: in these views)?\?", qa.question)[1]
        there = any(phrase in (i.name, f"{i.colour} {i.name}") for i in shown(home, items))
        assert qa.answer == ("Yes." if there else "No.")
    for home, items, *_, qa in answers_of(windows, "absent"):
        name = re.search(r"There is no (.*)\.", qa.answer)[1]
        ids = [i.id for i in home.items if i.name == name]
        assert name in qa.question and not np.isin(items, ids).any()


def test_count_and_colour(windows):
    for home, items, *_, qa in answers_of(windows, "count"):
        plural = re.search(r"(\w+)(?: are there| do you see)?[?.]", qa.question)[1]
        single = {"shelves": "shelf", "boxes": "box"}.get(plural, plural[:-1])
        assert qa.answer == f"{sum(i.name == single for i in shown(home, items))}."
    for home, items, *_, qa in answers_of(windows, "colour"):
        matches = [i for i in shown(home, items) if re.search(rf"\b{i.name}\b", qa.question)]
        assert [f"It is {i.colour}." for i in matches] == [qa.answer]


def phrase_in(home, items, question):
    phrases = {p for i in shown(home, items) for p in (i.name, f"{i.colour} {i.name}")}
    return max((p for p in phrases if re.search(rf"\b{p}\b", question)), key=len)


def test_distance_agrees_with_depth(windows):
    checked = 0
    for home, items, depth, _, _, qa in answers_of(windows, "distance"):
        item = named(home, items, phrase_in(home, items, qa.question))
        sentence = float(re.search(r"[\d.]+(?= metres)", qa.answer)[0])
        rows, columns = np.nonzero(items[-1] == item.id)
        camera = lens(112, 84)
        z = depth[-1][rows, columns]
        surface = z * np.hypot(
            np.hypot(
                (columns - camera.cx_px) / camera.fx_px, (rows - camera.cy_px) / camera.fy_px
            ),
            1,
        )
        radius = np.linalg.norm(item.size_m) / 2
        assert surface.min() - radius - 0.06 < sentence < surface.max() + radius + 0.06
        checked += 1
    assert checked > 5


def test_directions_agree_with_pixels(windows):
    for home, items, _, poses, times, qa in answers_of(windows, "direction"):
        item = named(home, items, phrase_in(home, items, qa.question))
        middle = item.centre_m + item.offset_m(times[-1])
        forward, right = poses[-1][:3, 2], poses[-1][:3, 0]
        ahead = (middle - poses[-1][:3, 3]) @ forward
        aside = (middle - poses[-1][:3, 3]) @ right
        if "front" in qa.answer:
            assert ahead > 0 and abs(aside) < ahead
        elif "behind" in qa.answer:
            assert ahead < 0
        else:
            assert ("right" in qa.answer) == (aside > 0)


def test_beside_and_closer(windows):
    for home, items, *_, qa in answers_of(windows, "beside"):
        x, y = re.search(
            r"is the (.*?) (?:left|to the left).* of the (.*?)(?: now)?\?", qa.question, re.I
        ).groups()
        u = [np.nonzero(items[-1] == named(home, items, p).id)[1].mean() for p in (x, y)]
        if abs(u[0] - u[1]) > 25:
            assert qa.answer == ("Right." if u[0] > u[1] else "Left.")
    for home, items, _, poses, times, qa in answers_of(windows, "closer"):
        near = re.fullmatch(r"The (.*)\.", qa.answer)[1]
        matches = [p for p in re.findall(r"the ((?:\w+ )?\w+?)(?= or |\?| closer)", qa.question)]
        eye = poses[-1][:3, 3]
        distance = {}
        for phrase in matches:
            if phrase == "camera":
                continue
            item = named(home, items, phrase)
            distance[phrase] = np.linalg.norm(item.centre_m + item.offset_m(times[-1]) - eye)
        assert len(distance) == 2 and min(distance, key=distance.get) == near


def test_fits_is_decided_by_the_gap(windows):
    for home, items, *_, qa in answers_of(windows, "fits"):
        width = float(re.search(r"([\d.]+) metres", qa.question)[1])
        x, y = re.search(r"between the (.*?) and the (.*?)(?: wider.*)?\?", qa.question).groups()
        a, b = (np.array(named(home, items, p).footprint()) for p in (x, y))
        dx = max(a[0] - b[2], b[0] - a[2], 0.0)
        dy = max(a[1] - b[3], b[1] - a[3], 0.0)
        assert qa.answer == ("Yes." if np.hypot(dx, dy) > width else "No.")
        low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
        low, high = np.minimum(low, high), np.maximum(low, high)
        inside = (home.obstacles()[:, :2] < high) & (home.obstacles()[:, 2:] > low)
        assert not inside.all(1).any(), "something stands in the way"


def test_direction_words_have_clear_borders():
    assert direction_word(0.0) == "in front"
    assert direction_word(np.deg2rad(60)) == "right"
    assert direction_word(np.deg2rad(-60)) == "left"
    assert direction_word(np.pi) == "behind"
    assert direction_word(np.deg2rad(16)) is None


def test_scoring():
    assert correct("distance", "2.2 metres.", "2.0 metres.")
    assert not correct("distance", "2.6 metres.", "2.0 metres.")
    assert not correct("distance", "far", "2.0 metres.")
    assert correct("colour", "it is Red", "It is red.")
    assert correct("list", "I see a bed and a box.", "I see a bed, a box and a lamp.")
    assert not correct("list", "I see a bed.", "I see a box, a bed and a lamp.")
    with pytest.raises(ValueError, match="'taste'"):
        correct("taste", "", "")


def test_right_lengths_are_those_that_count_as_right():
    assert right_lengths("0.3 metres.") == ["0.2 metres.", "0.3 metres.", "0.4 metres."]
    assert right_lengths("0.1 metres.") == ["0.1 metres.", "0.2 metres."]
    assert right_lengths("2.0 metres.") == [
        f"{tenths / 10:.1f} metres." for tenths in range(16, 25)
    ]
    for kind in ("distance", "size"):
        assert all(correct(kind, length, "3.7 metres.") for length in right_lengths("3.7 metres."))
    with pytest.raises(ValueError, match="must be a length"):
        right_lengths("Yes.")


def test_baselines_read_only_the_question():
    training = [QuestionAnswer("exists", "Is there a bed?", "Yes.")] * 3
    training += [QuestionAnswer("exists", "Is there a lamp?", "No.")] * 4
    baselines = Baselines(training)
    assert baselines.majority("exists") == "No."
    assert baselines.blind("exists", "Is there a bed?") == "Yes."
    assert baselines.blind("exists", "Is there a box?") == "No."


def test_words_are_read_without_the_kind():
    question = "What colour is the lamp?"
    training = [QuestionAnswer("absent", question, "There is no lamp.")] * 3
    training += [QuestionAnswer("colour", question, "It is red.")] * 2
    baselines = Baselines(training)
    assert baselines.blind("colour", question) == "It is red."
    assert baselines.words(question) == "There is no lamp."
    assert baselines.words("How wide is the lamp?") == ""
