# SPDX-License-Identifier: Apache-2.0
"""Questions about what the views show are not answered from memory."""

import pytest

from g2vlm_ros.query.grounding import of_views_alone


@pytest.mark.parametrize(
    "question, alone",
    [
        ("Is a picture in these views?", True),
        ("In which direction is the window from the newest view?", True),
        ("Is the sofa left or right in the newest view's frame?", True),
        ("Where is the television now: left, right, in front or behind?", True),
        ("Where did you see the chair?", False),
        ("Where is the cup?", False),
        ("How far is the window?", False),
    ],
)
def test_a_question_that_names_the_views_or_now_is_about_them_alone(question, alone):
    assert of_views_alone(question) is alone
