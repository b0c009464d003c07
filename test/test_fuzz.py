# SPDX-License-Identifier: Apache-2.0
"""A slice of `make fuzz` with the same inputs in every run, and what it has found so far."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is missing; `make test` installs it")

from g2vlm_tests.fuzz import door as fuzzing  # noqa: E402
from g2vlm_tests.fuzz import file_doors  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

EXAMPLES, FEW = 8, 2
"""Of each door; few where one takes tens of milliseconds."""
SLOW_BATCH = 100
"""Doors with smaller batches than this are slow."""


def tried(door):
    fuzzing.escapes(door, FEW if door.batch < SLOW_BATCH else EXAMPLES)


def test_files_pictures_and_words_are_taken_or_refused():
    doors = file_doors.doors()
    assert len(doors) >= 30
    for door in doors:
        tried(door)


def test_weights_are_taken_or_refused():
    pytest.importorskip("torch", reason="torch is missing")
    for door in file_doors.torch_doors():
        tried(door)


def test_visitors_and_both_ends_of_a_server_are_taken_or_refused():
    pytest.importorskip("websockets", reason="the viewer's library is missing")
    pytest.importorskip("onnxruntime", reason="the server's backend here is onnx")
    from g2vlm_tests.fuzz.remote_doors import remote_doors

    for door in remote_doors():
        tried(door)


@pytest.mark.ros
def test_messages_bytes_recordings_and_agents_are_taken_or_refused():
    from g2vlm_tests.fuzz.message_doors import ros_doors
    from g2vlm_tests.fuzz.robot_doors import robot_doors

    doors = [*ros_doors(), *robot_doors()]
    assert len(doors) >= 25
    for door in doors:
        tried(door)


@pytest.mark.ros
def test_every_request_gets_a_code_or_an_answer():
    pytest.importorskip("torch", reason="the golden checkpoint runs on the torch backend here")
    from g2vlm_tests.fuzz.request_doors import AskedNode, request_doors

    node = AskedNode()
    try:
        doors = {door.name: door for door in request_doors(node)}
        assert len(doors) == 8
        # Goals go over DDS, which `make fuzz` waits for and a quick test should not.
        del doors["~/AnswerSpatialQuery"]
        for door in doors.values():
            fuzzing.escapes(door, EXAMPLES if door.batch >= SLOW_BATCH else 3)
    finally:
        node.close()


def test_a_fault_is_not_taken_for_a_refusal():
    door = fuzzing.Door("a broken one", st.integers(), lambda number: 1 / (number - number))
    with pytest.raises(ZeroDivisionError):
        fuzzing.escapes(door, 5)


@pytest.mark.ros
def test_an_unforeseen_exception_behind_a_service_is_a_fault():
    from g2vlm_ros.srv import GetPoints
    from g2vlm_tests.fuzz.request_doors import check

    from g2vlm_ros.ros.service_errors import Codes, refuse

    response = GetPoints.Response()
    refuse(response, Codes.UNKNOWN, "KeyError: 'x'")
    with pytest.raises(AssertionError, match="KeyError"):
        check(response)


# Found by make fuzz --------------------------------------------------------------------------


def test_a_number_beyond_a_float_is_no_number():
    """1e999 in a model's answer was an OverflowError."""
    from g2vlm_ros.query.answer_parser import length

    assert length("1e999 metres") is None
    assert length("2.5e1 metres").value == 25.0


@pytest.mark.parametrize("added", [[{}], 3, [{"content": [], "id": 1}], [{"content": "a"}]])
def test_added_tokens_of_another_shape_are_refused(added):
    """They were KeyError and TypeError at configure."""
    from g2vlm_ros.checkpoint.tokenizer import Tokenizer, TokenizerError

    document = json.loads((fuzzing.GOLDEN / "tokenizer.json").read_text())
    with pytest.raises(TokenizerError, match="added token|not a usable"):
        Tokenizer({**document, "added_tokens": added}, "tokenizer.json")


@pytest.mark.ros
def test_a_distortion_model_that_is_a_list_is_refused(tmp_path):
    """It was a TypeError of the look-up."""
    from g2vlm_ros.ros.replay.calibration import read_camera_info

    path = tmp_path / "camera.yaml"
    path.write_text("distortion_model: [plumb_bob]\n")
    with pytest.raises(ValueError, match="distortion_model"):
        read_camera_info(path)


def test_stamps_beyond_64_bits_are_refused(tmp_path):
    """They were an OverflowError of numpy's, and Infinity one of int's."""
    from g2vlm_tests.posed_sequences import write_tum

    from g2vlm_ros.datasets.open_sequence import open_sequence
    from g2vlm_ros.datasets.sequence import SequenceError

    folder = write_tum(tmp_path, file_doors.tiny_drive())
    lines = (folder / "groundtruth.txt").read_text()
    for stamp in ("1e30", "Infinity", "NaN"):
        (folder / "groundtruth.txt").write_text(f"{lines}{stamp} 0 0 0 0 0 0 1\n")
        with pytest.raises(SequenceError, match="stamp|seconds"):
            open_sequence(folder)


def test_a_recording_whose_metadata_is_no_recording_is_refused(tmp_path):
    """rosbags lets out whatever its parsers meet, such as a TypeError here."""
    from g2vlm_ros.datasets.open_sequence import open_sequence

    folder = file_doors.write_bag(tmp_path, file_doors.tiny_drive(), mcap=True)
    metadata = folder / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("version: 9", "version: {}", 1))
    with pytest.raises(ValueError, match="recording"):
        open_sequence(folder)


@pytest.mark.parametrize("text", ["-1", "0", "nan", "inf", "abc", "1e9"])
def test_a_time_in_which_nothing_could_be_tried_is_refused(text, capsys):
    """`make fuzz MINUTES=-1` said that nothing was found."""
    from g2vlm_tests.fuzz.__main__ import main

    with pytest.raises(SystemExit) as end:
        main([f"--minutes={text}"])
    assert end.value.code == 2 and f"{text!r} must be a number" in capsys.readouterr().err
