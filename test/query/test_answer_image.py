# SPDX-License-Identifier: Apache-2.0
"""The picture of an answer shows the right view, marks in the right places, and words."""

from types import SimpleNamespace

import numpy as np
import pytest
from g2vlm_tests.known_room import ask

from g2vlm_ros.query import answer_image
from g2vlm_ros.query.point_map import Region
from g2vlm_ros.query.prompts import COLOURS, Mark
from g2vlm_ros.query.question_plan import AnswerType
from g2vlm_ros.query.types import Result


def identity(region: Region):
    return (*region.low_px, *region.high_px)


def thing(label, *views):
    return SimpleNamespace(
        label=label, regions=[Region(v, (9.0, 9.0), (20.0, 20.0)) for v in views]
    )


def test_as_few_views_as_show_everything_are_shown():
    result = ask("How far apart are the red chair and the table?")
    (view,) = answer_image.views_of(result, 0)
    marks = answer_image.marks_of(result, view, identity)
    assert [label for _, label in marks] == ["red chair", "table"]
    assert len({mark.colour for mark, _ in marks}) == 2
    for things, views in (
        ((), [3]),  # nothing seen: the newest view
        ((thing("a", 0, 1), thing("b", 1, 2)), [1]),
        ((thing("a", 0), thing("b", 2), thing("c", 2)), [2, 0]),
        ((thing("a", 0, 1),), [1]),
    ):
        assert answer_image.views_of(Result(AnswerType.TEXT, "Hm.", things=things), 3) == views


@pytest.mark.parametrize("size", [(84, 112), (720, 1280)])
def test_marks_keep_their_place_in_an_image_of_any_size(size):
    image = np.zeros((*size, 3), np.uint8)
    u, v = size[1] * 0.25, size[0] * 0.5
    drawn = answer_image.draw([(image, [(Mark(0, (u, v), (u, v), "green"), "table")])], [])
    assert drawn.dtype == np.uint8 and drawn.shape[1:] == (640, 3)
    height = round(640 * size[0] / size[1])
    plates = np.argwhere((drawn[:height] == COLOURS["green"]).all(-1))
    scale = 640 / size[1]
    row, column = (v + 0.5) * scale - 0.5, (u + 0.5) * scale - 0.5
    mark = plates[plates[:, 0] > row - 9]
    assert mark.mean(0) == pytest.approx((row, column), abs=1)
    assert len(plates) > 2 * len(mark), "a plate for the label above it"


def test_words_of_every_alphabet_and_length_are_written():
    image = np.zeros((84, 112, 3), np.uint8)
    short = answer_image.draw([(image, [])], ["Q: How far?"])
    long = answer_image.draw([(image, [])] * 2, ["Q: " + "椅子 ± ° " * 60])
    assert long.shape[0] > short.shape[0] + 480 + 40, "two views, and more lines"
    result = ask("How far is the red chair?")
    lines = answer_image.lines_of("How far?", result, metric=True)
    assert lines[:2] == ["Q: How far?", f"A: {result.text}"] and "red chair at (" in lines[2]
    assert not any(" at (" in line for line in answer_image.lines_of("", result, metric=False))
