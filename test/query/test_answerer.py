# SPDX-License-Identifier: Apache-2.0
"""Questions about a known room: found, measured, concluded, or honestly refused."""

import math
import re

import numpy as np
import pytest
from g2vlm_tests.known_room import BOXES, Model, ask, to_model
from g2vlm_tests.room import box, camera, room

from g2vlm_ros.query.answer_agreement import DISAGREEMENT
from g2vlm_ros.query.answerer import Answerer, prompts
from g2vlm_ros.query.grounding import NoLanguageError, OutOfTimeError
from g2vlm_ros.query.point_map import Region
from g2vlm_ros.query.question_parser import parse
from g2vlm_ros.query.question_plan import VIEWER, AnswerType, QuestionType
from g2vlm_ros.query.types import Abstention, Detection, Query, Reason, ReferenceFrame


def refused(*arguments, **options):
    with pytest.raises(Abstention) as caught:
        ask(*arguments, **options)
    return caught.value


def test_a_distance_is_measured_with_a_deviation_and_told():
    result = ask("How far is the red chair?")
    true = np.linalg.norm(np.mean(BOXES[0], axis=0) - [0, 0, 1.2])
    assert result.kind == AnswerType.NUMBER and result.number.unit == "m"
    assert abs(result.number.value - true) < 2 * result.number.std < 0.5
    assert f"{result.number.value:.2f} m" in result.text and result.things[0].label == "red chair"
    assert 0.3 < result.confidence <= 1 and any("point map" in step for step in result.steps)


@pytest.mark.parametrize(
    ("question", "value", "unit"),
    [
        ("How far apart are the red chair and the table?", math.dist((3, 0.7), (4, -0.9)), "m"),
        ("How tall is the lamp?", 1.5, "m"),
        ("How wide is the table?", 1.2, "m"),
        ("Turn how many degrees to face the red chair?", math.atan2(0.7, 3.0), "rad"),
        ("How many chairs are there?", 1, ""),
        ("How far is the table from the robot?", math.dist((4, -0.9, 0.35), (0, 0, 1.2)), "m"),
        ("How wide is the gap between the red chair and the lamp?", 0.45, "m"),
        ("How wide is the gap between the table and the lamp?", 1.1, "m"),
    ],
)
def test_numbers(question, value, unit):
    result = ask(question)
    assert result.kind == AnswerType.NUMBER and result.number.unit == unit
    assert result.number.value == pytest.approx(value, abs=0.2)


@pytest.mark.parametrize(
    ("question", "yes"),
    [
        ("Is the red chair to the left of the table?", True),
        ("Is the table in front of the red chair?", False),
        ("Is the lamp between the red chair and the table?", True),
        ("Is the lamp closer than the table?", True),
        ("Is the red chair behind me?", False),
        ("Is the red chair on the left?", True),
        ("Would a 0.3 m robot fit between the red chair and the lamp?", True),
        ("Would a 1.6 m robot fit between the red chair and the lamp?", False),
        ("Is there a lamp?", True),
        ("Is the table to the right of the lamp?", True),
        ("Is the lamp in front of the table?", True),
        ("Is the table behind the lamp?", True),
        ("Is the lamp above the table?", False),
        ("Is the table between the red chair and the lamp?", False),
    ],
)
def test_yes_and_no(question, yes):
    result = ask(question)
    assert result.kind == AnswerType.YES_NO and result.yes_no == yes
    assert result.text.startswith("Yes" if yes else "No")


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("Which is closer, the table or the lamp?", "The lamp is closer"),
        ("Is the red chair left or right of the table?", "left of the table"),
        ("What is nearest to you now?", "The lamp."),
        ("What is closest to the table?", "The lamp."),
        ("Where is the red chair now: left, right, in front or behind?", "in front of you"),
    ],
)
def test_words(question, words):
    result = ask(question)
    assert result.kind == AnswerType.TEXT and words in result.text and result.things


def test_what_the_border_cuts_has_a_lower_bound_in_that_direction_only():
    at_the_left = dict(names=["chest"], boxes=[box(3.5, 2.2)])
    wide, tall = (ask(f"How {word} is the chest?", **at_the_left) for word in ("wide", "tall"))
    assert " at least " in wide.text and wide.number.value < 0.5
    assert " at least " not in tall.text and tall.number.value == pytest.approx(0.8, abs=0.1)
    assert wide.confidence < tall.confidence


@pytest.mark.parametrize(
    "words, metres",
    [("0.8 metres.", 0.8), ("1.1 metres.", None), ("0.2 metres.", None), ("A red one.", None)],
)
def test_a_width_in_words_counts_where_the_images_allow_it(words, metres):
    """The table measures 1.2 m; what it looks like allows a little less, not a quarter."""
    question = "How wide is the table?"
    silent, result = ask(question), ask(question, Model(default=words))
    assert silent.number.value == pytest.approx(1.2, abs=0.15)
    if metres is None:
        assert result.number.value == silent.number.value and result.measured
    else:
        assert result.number.value == metres and np.isnan(result.number.std)
        assert "by the model's words" in result.text


@pytest.mark.parametrize(
    "words, metres",
    [("1.4 metres.", 1.4), ("0.9 metres.", None), ("0.4 metres.", None), ("A red one.", None)],
)
def test_a_height_in_words_counts_where_it_is_longer_than_what_is_seen(words, metres):
    """The table measures .8 m: others may hide some of it, but nothing makes it look taller."""
    question = "How tall is the table?"
    silent, made = ask(question), ask(question, Model(default=words))
    assert silent.number.value == pytest.approx(0.8, abs=0.1)
    if metres is None:
        assert made.number.value == silent.number.value and made.measured
    else:
        assert made.number.value == metres and "of it can be seen" in made.text


@pytest.mark.parametrize(
    "words, metres", [("It is 1.4 metres wide.", 1.4), ("About 10 centimetres.", None)]
)
def test_of_what_the_border_cuts_the_model_may_say_more_but_not_less(words, metres):
    question, shown = "How wide is the chest?", dict(names=["chest"], boxes=[box(3.5, 2.2)])
    bound, result = ask(question, **shown), ask(question, Model(default=words), **shown)
    if metres is None:
        assert " at least " in result.text and "disagree" in result.text
        assert result.confidence < bound.confidence
    else:
        assert result.number.value == metres and " at least " not in result.text
        assert result.confidence > bound.confidence and np.isnan(result.number.std)


def test_places_are_in_the_map_with_a_covariance():
    result = ask("Where is the red chair?", kind=AnswerType.POINT)
    assert np.abs(result.pose[:3, 3] - [3.0, 0.7, 0.4]).max() < 0.2
    assert np.array_equal(result.pose[:3, :3], np.eye(3))
    assert (np.linalg.eigvalsh(result.covariance) > 0).all()
    pose = ask("Where is the table?", kind=AnswerType.POSE).pose
    assert abs(pose[0, 0]) < 0.3, "x along the longer side, which lies in y"
    objects = ask("Find the chair.", kind=AnswerType.OBJECTS, names=["chair", "chair", "lamp"])
    assert objects.kind == AnswerType.OBJECTS and len(objects.things) == 2


def test_going_there_stops_before_the_thing_and_faces_it():
    result = ask("Go to the red chair")
    away = np.array([3.0, 0.7]) - result.pose[:2, 3]
    assert result.kind == AnswerType.POSE and 0.6 < np.linalg.norm(away) < 1.3
    assert result.pose[:2, 0] @ away / np.linalg.norm(away) > 0.99
    assert result.pose[2, 3] == 0


def test_where_would_i_be():
    result = ask("Where would I be if I went two metres forward and 1 m to the left?")
    assert result.pose[:2, 3] == pytest.approx([2.0, 1.0])
    turned = ask("Where would I be if I turned right and went 1.5 m ahead?")
    assert turned.pose[:2, 3] == pytest.approx([0.0, -1.5])


def test_disagreement_is_said_and_costs_confidence():
    agree = ask("How far is the red chair?", Model(default="It is about 3.2 meters away."))
    alone = ask("How far is the red chair?")
    differ = ask("How far is the red chair?", Model(default="It is about 8 meters away."))
    assert differ.number == agree.number == alone.number, "the number comes from geometry"
    assert differ.confidence < alone.confidence == agree.confidence
    assert "disagree" in differ.text and "8 meters" in differ.text
    assert "disagree" not in agree.text


def test_what_hangs_over_another_is_above_it():
    boxes = [box(3.0, 0.0, size=(0.4, 1.0, 0.3), z=1.5), box(3.0, 0.1)]
    names = ["shelf", "bench"]
    assert ask("Is the shelf above the bench?", names=names, boxes=boxes).yes_no
    assert not ask("Is the shelf below the bench?", names=names, boxes=boxes).yes_no


def test_measures_go_back_into_the_dialogue_and_the_model_concludes():
    question = "How far is the red chair?"
    model = Model({"Measured:": "So it is out of my reach."}, default="Quite near.")
    result = ask(question, model)
    prompt_text = model.asked[-1][0]
    assert prompt_text.startswith("Measured: The red chair is 3.") and prompt_text.endswith(
        question
    )
    assert "Told this, the model concludes: 'So it is out of my reach.'." in result.steps
    assert result.confidence == ask(question).confidence and "disagree" not in result.text
    agreeing = Model(default="About 3.2 meters.")
    ask(question, agreeing)
    assert [prompt for prompt, _ in agreeing.asked] == [question], "nothing is left to conclude"


def test_a_conclusion_against_the_measure_counts_as_disagreement_once():
    question = "Is the red chair to the left of the table?"
    alone = ask(question).confidence
    late = ask(question, Model({"Measured:": "No."}, default="Hard to say."))
    both = ask(question, Model(default="No."))
    won = ask(question, Model({"Measured:": "Yes, it is."}, default="No."))
    for result in (late, both, won):
        assert result.yes_no and result.confidence == pytest.approx(DISAGREEMENT * alone)
        assert "The model's own words disagree: 'No.'" in result.text
    assert any("concludes: 'Yes, it is.'" in step for step in won.steps)


def test_no_time_to_conclude_costs_no_answer():
    result = ask("How far is the red chair?", Model({"Measured:": None}, default="Near."))
    assert result.number is not None and any("to conclude" in step for step in result.steps)


def test_a_free_question_about_space_is_asked_with_the_measures_of_what_it_names():
    model = Model(default="Yes, it would.")
    result = ask("Could the lamp stand on the table?", model)
    prompt_text = model.asked[-1][0]
    assert (
        prompt_text.startswith("Measured: The table is at ") and "The lamp is at 2." in prompt_text
    )
    assert prompt_text.endswith(
        "0.15 meters wide and 1.48 high. Could the lamp stand on the table?"
    )
    assert {thing.label for thing in result.things} == {"lamp", "table"}
    assert result.text == "Yes, it would." and result.confidence == -1
    ask("What colour is the table?", model)
    assert model.asked[-1] == ("What colour is the table?", ()), "no measure helps there"
    ask("Could the lamp stand on the table?", model, metric=False)
    assert model.asked[-1][0] == "Could the lamp stand on the table?"


@pytest.mark.parametrize(
    ("question", "says", "field", "value"),
    [
        ("What colour is the sofa?", "It is red.", "text", "It is red."),
        ("How many sofas are there?", "There are two sofas.", "number", 2.0),
        ("How many sofas are there?", "2.", "number", 2.0),
        ("Is there a sofa?", "Yes.", "yes_no", True),
        ("Do you see a sofa?", "No.", "yes_no", False),
        ("Is there a sofa?", "There is no sofa.", "yes_no", False),
    ],
)
def test_words_alone_answer_what_is_not_measured(question, says, field, value):
    model = Model(default=says)
    result = ask(question, model, names=[])
    actual = getattr(result, field)
    assert (actual.value if field == "number" else actual) == value
    assert result.confidence == -1 and [prompt for prompt, _ in model.asked] == [question]


def test_a_silent_model_says_so_whatever_else_is_seen():
    def silent(prompt, marks):
        raise NoLanguageError

    points, _ = room(BOXES)
    lamp = Detection(Region(0, (1.0, 1.0), (9.0, 9.0)), "lamp", 0.9)
    for question in ("How far is the sofa?", "Is there a sofa?", "What colour is the lamp?"):
        with pytest.raises(NoLanguageError):
            Answerer(points, Query(question, detections=(lamp,)), silent, to_model).answer()


def test_the_region_of_the_request_comes_first():
    result = ask("How far is this?", names=[], use=[1])
    assert result.number.value == pytest.approx(math.dist((4, -0.9, 0.35), (0, 0, 1.2)), abs=0.25)
    assert "request" in result.things[0].source
    apart = ask("How far apart are this and the lamp?", use=[0])
    assert {thing.label for thing in apart.things} == {"marked place", "lamp"}


def test_the_models_own_place_is_used_when_nothing_else_is_there():
    _, regions = room(BOXES)
    (low, high) = regions[0][0].low_px, regions[0][0].high_px
    u, v = (low[0] + high[0]) / 2, (low[1] + high[1]) / 2
    model = Model({"Where in": f"It is in frame 1, pixel ({u:.0f}, {v:.0f})."})
    result = ask("How far is the red chair?", model, names=[])
    assert (
        result.number.value == pytest.approx(3.0, abs=0.3) and result.things[0].source == "model"
    )
    assert result.confidence < ask("How far is the red chair?").confidence
    lost = Model({"Where in": "It is in frame 1, pixel (900, 900)."}, default="2 meters")
    assert ask("How far is the red chair?", lost, names=[]).confidence == -1


def test_a_model_that_never_learned_to_point_is_not_asked_to():
    """Its answer to that would say nothing; what it says to the question itself stands."""
    points, _ = room(BOXES)
    model = Model({"Where in": "It is not visible."}, default="It is to your left.")
    question = Query("In which direction is the red chair from the newest view?")
    result = Answerer(points, question, model, None).answer()
    assert result.text == "It is to your left." and result.confidence == -1
    with pytest.raises(Abstention, match="sees no red chair"):
        Answerer(points, question, model, to_model).answer()


def test_words_alone_are_marked_as_not_calibrated():
    result = ask("How far is the sofa?", Model(default="About two and a half metres."), names=[])
    assert result.number.value == 2.5 and math.isnan(result.number.std) and result.confidence == -1
    assert any("words alone" in step for step in result.steps)


@pytest.mark.parametrize(
    ("question", "options", "reason", "words"),
    [
        (
            "How far is the sofa?",
            {"model": Model(default="There is no sofa.")},
            "NOT_VISIBLE",
            "sofa",
        ),
        ("How far is the chair?", {"names": ["chair", "chair"]}, "AMBIGUOUS", "2 things"),
        ("How far is the chair?", {"metric": False}, "NO_GEOMETRY", "scale"),
        ("Where is the chair?", {"metric": False}, "NO_GEOMETRY", "scale"),
        ("How far is the sofa?", {"names": []}, "AMBIGUOUS", "no number"),
        ("Where is the sofa?", {"names": []}, "NOT_VISIBLE", "region"),
        ("How far is the table?", {"kind": AnswerType.YES_NO}, "INVALID_REQUEST", "YES_NO"),
        ("What colour is the table?", {"kind": AnswerType.POINT}, "INVALID_REQUEST", "POINT"),
        (
            "Can the robot pass between the table and the lamp?",
            {},
            "INVALID_REQUEST",
            "robot_width",
        ),
        ("How far is the table?", {"min_confidence": 0.99}, "AMBIGUOUS", "min_confidence"),
        ("What is there?", {"min_confidence": 0.1}, "AMBIGUOUS", "not calibrated"),
        (
            "Is the lamp left of the table?",
            {"reference": ReferenceFrame.OBJECT},
            "AMBIGUOUS",
            "faces",
        ),
    ],
)
def test_what_is_not_known_is_not_answered(question, options, reason, words):
    caught = refused(question, **options)
    assert caught.reason is Reason[reason] and words in str(caught)


def test_comparisons_need_no_metres():
    result = ask("Which is closer, the table or the lamp?", metric=False, scale=2.5)
    assert "lamp is closer" in result.text
    assert ask("Is the red chair left of the table?", metric=False).yes_no
    words = ask("How far is the lamp?", Model(default="2 m"), metric=False, kind=AnswerType.TEXT)
    assert words.number is None and any("not measured" in step for step in words.steps)


def test_left_depends_on_whose_left_it_is():
    towards = Model({"Which way": "It faces towards the camera."})
    question = "Is the red chair to the left of the table?"
    assert ask(question).yes_no
    assert not ask(question, towards, reference=ReferenceFrame.OBJECT).yes_no
    behind = np.diag([-1.0, -1.0, 1.0, 1.0])
    world = dict(reference=ReferenceFrame.WORLD)
    assert ask(question, **world).yes_no
    assert not ask(question, target_from_map=behind, **world).yes_no


def test_a_model_out_of_time_does_not_stop_what_geometry_can_tell():
    silent = Model({"": None})
    result = ask("How far is the red chair?", silent)
    assert result.number is not None and any("no time" in step for step in result.steps)
    with pytest.raises(OutOfTimeError):
        ask("How far is the red chair?", Model({"": None}), names=[])


def test_a_question_about_a_marked_place_is_drawn_and_told():
    mark = prompts.Mark(0, (10.0, 10.0), (40.0, 40.0), "blue")
    model = Model(default="It is a chair.")
    result = ask("What is this?", model, names=[], use=[0], marks=(mark,))
    prompt, marks = model.asked[-1]
    assert result.text == "It is a chair." and marks == (mark,)
    assert "the object at the blue box" in prompt and "(blue box) is at 3." in prompt
    assert "this" not in prompt.split("Measured")[-1].split("?")[0].split("meters.")[-1]


def test_a_box_around_what_the_question_names_needs_no_mark():
    """The mark would be a second image to encode, and says nothing that the name does not."""
    blue = prompts.Mark(0, (10.0, 10.0), (40.0, 40.0), "blue")
    red = prompts.Mark(0, (70.0, 10.0), (70.0, 10.0), "red")
    known = (prompts.Reference(red, 2.6),)
    for question, pixel, marked in (
        ("How far is the red chair?", False, False),
        ("How far is this?", False, True),
        ("How far is it?", False, True),
        ("How far is the red chair?", True, True),
    ):
        mark = prompts.Mark(0, blue.low_px, blue.low_px, "blue") if pixel else blue
        prompt, marks = Query(question, marks=(mark,), landmarks=known).prompt()
        assert marks == ((mark, red) if marked else ())
        assert prompt.startswith("The red point is at 2.60 meters.") == marked


def test_marks_are_drawn_where_they_are_and_nowhere_else():
    image = np.zeros((60, 80, 3), np.uint8)
    drawn = prompts.draw(image, [prompts.Mark(0, (20.0, 30.0), (20.0, 30.0), "red")])
    assert tuple(drawn[30, 20]) == prompts.COLOURS["red"] and not image.any()
    assert not drawn[:, 40:].any() and not drawn[:20].any()
    with pytest.raises(ValueError, match="mauve"):
        prompts.Mark(0, (1.0, 1.0), (1.0, 1.0), "mauve")


def test_a_known_reference_is_told_before_the_question():
    blue = prompts.Mark(0, (5.0, 5.0), (5.0, 5.0), "blue")
    red = prompts.Mark(0, (9.0, 5.0), (9.0, 5.0), "red")
    text = prompts.about_marks("How far is this?", [blue], [prompts.Reference(red, 2.6, "table")])
    assert text == (
        "The table (red point) is at 2.60 meters. How far is the object at the blue point?"
    )


def test_every_wording_of_the_simulated_home_has_its_plan():
    from g2vlm_ros.demo.sim import questions

    expected = {
        "exists": QuestionType.EXISTS,
        "count": QuestionType.COUNT,
        "nearest": QuestionType.NEAREST,
        "direction": QuestionType.WHERE,
        "beside": QuestionType.SIDE,
        "distance": QuestionType.DISTANCE,
        "size": QuestionType.SIZE,
        "fits": QuestionType.FITS,
        "closer": QuestionType.CLOSER,
        "list": QuestionType.TALK,
        "colour": QuestionType.TALK,
    }
    rng, seen = np.random.default_rng(0), set()
    for truth in _truths():
        for result in questions.ask(truth, rng, 200):
            if result.kind in expected:
                seen.add(result.kind)
                assert parse(result.question).question_type is expected[result.kind], (
                    result.question
                )
    assert len(seen) > 8


def _truths():
    from g2vlm_ros.demo.sim.camera import lens
    from g2vlm_ros.demo.sim.questions import shares, truth
    from g2vlm_ros.demo.sim.scenes import make_clips, make_scene

    scenes = [make_scene(seed) for seed in (5, 6)]
    clips = make_clips(scenes, 3, lens(112, 84), samples=1)
    for k, scene in enumerate(scenes):
        steps = clips.steps[k]
        walk = scene.walk
        yield truth(
            scene.home, shares(clips.items[k]), walk.world_from_camera[steps], walk.time_s[steps]
        )


@pytest.mark.parametrize(
    ("question", "things"),
    [
        ("How far away are you from the wall?", ("wall",)),
        ("Is the chair behind me?", ("chair", VIEWER)),
        ("How far is it from the chair to the table?", ("chair", "table")),
        ("Which chair is nearest to the door?", ("chair", "door")),
    ],
)
def test_names_come_out_bare(question, things):
    assert parse(question).things == things


def test_views_behind_the_newest_still_count():
    """Seen in the first view, asked after a turn to the right: it is to the left now."""
    poses = [camera(), camera(yaw=-math.pi / 2)]
    result = ask("Where is the red chair now: left, right, in front or behind?", poses=poses)
    assert "to your left" in result.text


@pytest.mark.parametrize(
    ("question", "asks", "things"),
    [
        ("Tell me how far away the red chair is.", QuestionType.DISTANCE, ("red chair",)),
        ("How many metres is it to the table?", QuestionType.DISTANCE, ("table",)),
        (
            "How many metres are there between the table and the lamp?",
            QuestionType.DISTANCE,
            ("table", "lamp"),
        ),
        ("At what distance do you see the lamp?", QuestionType.DISTANCE, ("lamp",)),
        ("How far is it to the lamp, answer in metres.", QuestionType.DISTANCE, ("lamp",)),
        ("What is the red chair\u2019s height?", QuestionType.SIZE, ("red chair",)),
        ("Give me the width of the table.", QuestionType.SIZE, ("table",)),
        ("How many centimetres wide is the table?", QuestionType.SIZE, ("table",)),
        (
            "Which of the two is nearer, the table or the lamp?",
            QuestionType.CLOSER,
            ("table", "lamp"),
        ),
        (
            "Between the table and the lamp, which one is closer?",
            QuestionType.CLOSER,
            ("table", "lamp"),
        ),
        (
            "Is there enough room for something 0.7 metres wide between the table and the lamp?",
            QuestionType.FITS,
            ("table", "lamp"),
        ),
        ("On which side of the table is the lamp?", QuestionType.SIDE, ("lamp", "table")),
        ("On which side of you is the lamp?", QuestionType.WHERE, ("lamp",)),
        ("What number of chairs can you see?", QuestionType.COUNT, ("chairs",)),
        ("Does the room have a lamp?", QuestionType.EXISTS, ("lamp",)),
        ("How many metres?", QuestionType.TALK, ()),
    ],
)
def test_planners_may_say_it_in_many_ways(question, asks, things):
    plan = parse(question)
    assert (plan.question_type, tuple(re.sub("^an? ", "", thing) for thing in plan.things)) == (
        asks,
        things,
    )
