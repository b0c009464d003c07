# SPDX-License-Identifier: Apache-2.0
"""`make demo-memory` as a newcomer runs it: two processes, one file between them."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("onnxruntime", reason="the demo's checkpoint runs on ONNX Runtime")

from g2vlm_tests.dds_domain import PROFILE_VARIABLES  # noqa: E402


def test_a_new_process_finds_itself_and_remembers(tmp_path):
    environment = {**os.environ, "ROS_LOG_DIR": str(tmp_path / "log")}
    for name in PROFILE_VARIABLES:
        environment.pop(name, None)
    command = [sys.executable, "-m", "g2vlm_ros.demo.nodes.run_memory_demo", "--out"]
    command += [str(tmp_path), "--split", "validation", "--home", "2", "--legs", "3"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    second = json.loads((tmp_path / "return.json").read_text())
    assert second["localised"][0] == "LOST by saved_map"
    assert "LOCALISED by keyframe" in second["localised"]
    metres, degrees = second["found_off"]
    assert metres < 0.5 and degrees < 15, "of a way too short to lay the map on the home well"
    assert (tmp_path / "memory.png").stat().st_size > 1000
    remembered = [each for each in second["answers"] if each["remembered"]]
    if not remembered:
        pytest.skip("this machine was too busy to see a thing three times")
    for each in remembered:
        assert each["off_m"] < 2.5 * each["std_m"] < 1.5, "further off than the answer says"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--home", "-1"], "--home: '-1' must be a whole number from 0"),
        (["--home", "kitchen"], "--home: 'kitchen' must be a whole number from 0"),
        (["--split", "kitchen"], "--split: invalid choice: 'kitchen'"),
        (["--legs", "1"], "--legs: '1' must be a whole number from 2"),
        (["--checkpoint", "nowhere"], "nowhere does not exist"),
        ([], "has no drive.json; run the session 'drive' there first"),
    ],
)
def test_a_session_by_hand_is_refused_with_a_sentence(arguments, sentence, tmp_path, capsys):
    from g2vlm_ros.demo.nodes import memory_session

    with pytest.raises(SystemExit) as end:
        memory_session.main(["return", str(tmp_path), "--checkpoint", str(tmp_path), *arguments])
    assert end.value.code == 2 and sentence in capsys.readouterr().err
