# SPDX-License-Identifier: Apache-2.0
"""A slice of `make fuzz` with the same inputs in every run."""

from __future__ import annotations

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is missing; `make test` installs it")

from g2vlm_tests import fuzz  # noqa: E402

EXAMPLES = 25
NAMES = (
    "pictures, JPEG",
    "pictures, PNG",
    "parameters",
    "checkpoint config",
    "ONNX manifest",
    "index of weights",
    "engine plan",
    "model answers",
    "questions",
    "map files",
)
ROS_NAMES = ("Image", "CompressedImage", "depth Image", "CameraInfo", "Transform")
ROS_NAMES += ("calibration YAML",)


@pytest.mark.parametrize("name", NAMES)
def test_a_door_takes_or_refuses(name):
    fuzz.escapes({door.name: door for door in fuzz.doors()}[name], EXAMPLES)


def test_weights_are_taken_or_refused():
    pytest.importorskip("torch", reason="torch is missing")
    fuzz.escapes(fuzz.torch_doors()[0], EXAMPLES)


@pytest.mark.ros
@pytest.mark.parametrize("name", ROS_NAMES)
def test_a_message_is_taken_or_refused(name):
    fuzz.escapes({door.name: door for door in fuzz.ros_doors()}[name], EXAMPLES)


def test_every_door_is_in_the_slice():
    assert {door.name for door in fuzz.doors()} == set(NAMES)


def test_a_fault_is_not_taken_for_a_refusal():
    from hypothesis import strategies as st

    door = fuzz.Door("a broken one", st.integers(), lambda number: 1 / (number - number))
    with pytest.raises(ZeroDivisionError):
        fuzz.escapes(door, 5)


def test_a_number_beyond_a_float_is_no_number():
    """Found by make fuzz: 1e999 in a model's answer was an OverflowError."""
    from g2vlm_ros.query.answer_parser import length

    assert length("1e999 metres") is None
    assert length("2.5e1 metres").value == 25.0
