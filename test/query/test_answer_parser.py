# SPDX-License-Identifier: Apache-2.0
"""The model's prose becomes a value exactly where it gives one."""

import math

import pytest

from g2vlm_ros.query import answer_parser
from g2vlm_ros.query.point_parser import pointed

METRES = {
    "about two and a half metres": 2.5,
    "The printer is about 2.0 meters from the observer.": 2.0,
    "1,5 m": 1.5,
    "0,750 m": 0.75,
    "30 cm": 0.3,
    "2 feet": 0.6096,
    "5'6\"": 1.6764,
    "5 ft 6 in": 1.6764,
    "1 m 20 cm": 1.2,
    "half a metre": 0.5,
    "three quarters of a metre": 0.75,
    "a metre and a half": 1.5,
    "1 1/2 m": 1.5,
    "2½ metres": 2.5,
    "one point five meters": 1.5,
    "one hundred and twenty-five centimetres": 1.25,
    "a 2-metre gap": 2.0,
    "12,345.6 mm": 12.3456,
    "1.234,5 mm": 1.2345,
    "2 m (6.6 feet)": 2.0,
    "2.3metres.": 2.3,
}


@pytest.mark.parametrize(("text", "metres"), METRES.items())
def test_lengths_come_out_in_metres(text, metres):
    quantity = answer_parser.length(text)
    assert quantity.value == pytest.approx(metres) and quantity.unit == "m" and quantity.text


@pytest.mark.parametrize("value", [0.05, 0.3, 1.0, 2.75, 12.5, 118.0])
@pytest.mark.parametrize(
    ("name", "metres"),
    [
        ("m", 1),
        ("metres", 1),
        ("cm", 0.01),
        ("mm", 0.001),
        ("feet", 0.3048),
        ("inches", 0.0254),
        ("km", 1000),
    ],
)
def test_written_lengths_are_read_back(value, name, metres):
    for number in (f"{value:g}", f"{value:.3f}", f"{value:.2f}".replace(".", ",")):
        for sentence in (
            "It is {} {} away.",
            "About {} {}",
            "the sofa, roughly {} {} wide, is red",
        ):
            quantity = answer_parser.length(sentence.format(number, name))
            assert quantity.value == pytest.approx(value * metres, rel=1e-9)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "!!!!!",
        "far away",
        "less than 2 m",
        "at least 3 metres",
        "no more than 2 m",
        "-2 m",
        "minus 2 m",
        "not 2 metres",
        "2 m or maybe 5 m",
        "2 or 3 metres",
        "1,500 mm",
        "a few metres",
        "in 2 minutes",
        "The table is 2 m and the chair 3 m away.",
        "I cannot tell, maybe 2 metres",
        "There is no chair.",
        "2.5",
    ],
)
def test_no_length_is_made_up(text):
    assert answer_parser.length(text) is None


def test_a_range_is_its_middle_with_a_spread():
    quantity = answer_parser.length("between 2 and 3 metres")
    assert (quantity.value, quantity.spread) == (2.5, 0.5)


def test_a_bare_number_counts_where_the_question_named_the_unit():
    assert answer_parser.length("About 250.", default_unit="cm").value == pytest.approx(2.5)
    assert answer_parser.length("3 chairs", default_unit="m") is None
    with pytest.raises(ValueError, match="parsec"):
        answer_parser.length("2", default_unit="parsec")


@pytest.mark.parametrize(
    ("text", "degrees"),
    [
        ("turn 90° left", 90),
        ("thirty degrees", 30),
        ("half a turn", 180),
        ("1.5 rad", 85.94),
        ("left", None),
        ("30 degrees or 60 degrees", None),
        ("30 to 60 degrees", 45),
    ],
)
def test_angles_come_out_in_radians(text, degrees):
    quantity = answer_parser.angle(text)
    if degrees is None:
        assert quantity is None
    else:
        assert math.degrees(quantity.value) == pytest.approx(degrees, abs=0.01)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3.", 3),
        ("There are three chairs.", 3),
        ("None.", 0),
        ("no chairs", 0),
        ("There is a chair", 1),
        ("I see no chairs.", 0),
        ("The one on the left", None),
        ("a few", None),
        ("2 metres", None),
        ("two chairs and one table", None),
        ("2.5", None),
        ("", None),
        ("at least 2", None),
    ],
)
def test_counts(text, number):
    quantity = answer_parser.count(text)
    assert (quantity and quantity.value) == number if number is not None else quantity is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Yes.", True),
        ("No, it is on the left", False),
        ("yes, no problem", True),
        ("It is.", True),
        ("It does not fit.", False),
        ("It would fit", True),
        ("There is a chair", True),
        ("There is no chair", False),
        ("it isn't", False),
        ("maybe", None),
        ("Yes and no", None),
        ("I do not know", None),
        ("Yes. No.", None),
        ("I cannot tell whether it is", None),
        ("the red chair", None),
        ("", None),
    ],
)
def test_yes_and_no(text, value):
    quantity = answer_parser.yes_no(text)
    assert (quantity and quantity.value) == value if value is not None else quantity is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("to the left, behind", ("left", "behind")),
        ("It is to your right.", ("right",)),
        ("right behind you", ("behind",)),
        ("It is in front of you.", ("front",)),
        ("not left but right", ("right",)),
        ("on top of the table", ("above",)),
        ("left or right", ()),
        ("that's right", ()),
        ("left of A, right of B", ()),
        ("I cannot see it on the left", ()),
    ],
)
def test_directions(text, words):
    quantity = answer_parser.directions(text)
    assert (quantity.words if quantity else ()) == words


@pytest.mark.parametrize(
    ("text", "absent"),
    [
        ("There is no sofa.", True),
        ("I cannot see a sofa", True),
        ("The sofa is not visible", True),
        ("It is 2 m away", False),
        ("I don't know", False),
        ("There is no more than one sofa", False),
    ],
)
def test_absence_is_told_from_ignorance(text, absent):
    assert answer_parser.says_absent(text) == absent


def test_boxes_in_thousandths():
    text = (
        "Frame 2: <|object_ref_start|>the chair<|object_ref_end|>"
        "<|box_start|>(100,200),(300,400)<|box_end|>"
    )
    (place,) = pointed(text)
    assert place.view == 1 and place.label == "the chair" and place.thousandths
    assert place.pixels(640, 480) == pytest.approx((63.5, 95.5, 191.5, 191.5))


@pytest.mark.parametrize(
    ("text", "view", "corners"),
    [
        ("frame 2, pixel (120, 80)", 1, (120, 80, 120, 80)),
        ("pixel 120 80 in frame 3", 2, (120, 80) * 2),
        ("box (1, 2, 30, 40) in image 1", 0, (1, 2, 30, 40)),
        ("at pixel (5.5, 6)", None, (5.5, 6) * 2),
    ],
)
def test_pixels_in_prose(text, view, corners):
    (place,) = pointed(text)
    assert place.view == view and place.pixels(640, 480) == corners


@pytest.mark.parametrize(
    "text",
    [
        "",
        "it is at 2, 3 m",
        "at 2.0 meters",
        "frame 0, pixel (1, 2)",
        "pixel (-1, 3)",
        "<|box_start|>(10,20),(5,4)<|box_end|>",
        "<|box_start|>(10,20)<|box_end|>",
        "<|box_start|>(10,20),(1500,40)<|box_end|>",
        "frame 2",
    ],
)
def test_no_place_is_made_up(text):
    assert pointed(text) == ()


def test_a_pixel_outside_the_image_is_none():
    assert pointed("pixel (700, 80)")[0].pixels(640, 480) is None
