# SPDX-License-Identifier: Apache-2.0
"""The command line on a small generated sequence, and on the office where it lies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from g2vlm_tests import posed_sequences as small
from g2vlm_tests.office import office

from g2vlm_ros.evaluate import main

KEYS = {
    "ate_sim3_m",
    "ate_se3_m",
    "path_m",
    "maps",
    "loops",
    "scale_error",
    "covariance_ratio",
    "cpu_ms_per_window",
    "rpe_m_per_m",
    "map_accuracy_m",
    "map_completeness",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return small.write_hololens(tmp_path_factory.mktemp("sequence"), small.drive(20))


def figures(capsys, *arguments: str) -> dict:
    assert main([*arguments, "--rate", str(small.RATE), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_exact_geometry_gives_back_the_trajectory(folder, tmp_path, capsys) -> None:
    result = figures(capsys, str(folder), "--stand-in", "", "--out", str(tmp_path))
    assert KEYS <= result.keys()
    assert result["maps"] == 1 and result["ate_sim3_m"] < 0.02
    assert result["ate_se3_m"] is None and result["scale_error"] is None, "no metres, none told"
    assert result["map_accuracy_m"] < 0.05 and result["map_completeness"] > 0.8
    assert json.loads((tmp_path / "result.json").read_text()) == result
    track = np.loadtxt(tmp_path / "trajectory.txt")
    truth = np.loadtxt(tmp_path / "truth.txt")
    assert track.shape == truth.shape == (result["views_per_map"][0], 8)
    np.testing.assert_array_equal(track[:, 0], truth[:, 0])
    for name in ("map.ply", "map.png", "map_by_height.png"):
        assert (tmp_path / name).stat().st_size > 1000


def test_odometry_brings_metres(folder, capsys) -> None:
    result = figures(capsys, str(folder), "--stand-in", "", "--odometry")
    assert result["scale_state"] == "METRIC"
    assert abs(result["scale_error"]) < 0.05 and result["ate_se3_m"] < 0.1


def test_errors_of_the_network_show(folder, capsys) -> None:
    right, wrong = (
        figures(capsys, str(folder), "--stand-in", errors, "--set", "map.refine_poses=false")
        for errors in ("", "turn=3,shift=0.03,depth=0.05")
    )
    assert wrong["rpe_deg_per_m"] > 3 * right["rpe_deg_per_m"] > 0
    assert wrong["frames"] == right["frames"] == 20


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--stand-in", "turns=1"), "--stand-in has 'turns=1'"),
        (("--stand-in", "", "--rate", "0"), "must be above 0"),
        (("--stand-in", "", "--cameras", "left"), "has no camera left"),
        (("--stand-in", "", "--set", "map.refine_poses"), "NAME=VALUE"),
        (("--checkpoint", "nowhere"), "nowhere"),
    ],
)
def test_bad_input_ends_with_one_sentence(folder, arguments, sentence, capsys) -> None:
    assert main([str(folder), *arguments]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_a_sequence_without_depth_has_no_stand_in(tmp_path, capsys) -> None:
    folder = small.write_euroc(tmp_path, small.drive())
    assert main([str(folder), "--stand-in", ""]) == 2
    assert "frames without depth" in capsys.readouterr().err


def test_pictures_without_depth_are_left_out_for_the_stand_in(tmp_path, capsys) -> None:
    folder = small.write_hololens(tmp_path, small.drive())
    (folder / "depth" / "00005.png").unlink()
    result = figures(capsys, str(folder), "--stand-in", "")
    assert result["frames"] == 11
    assert any("1 pictures without depth" in note for note in result["notes"])


def test_the_office(capsys) -> None:
    """Real pixels: a map of one piece."""
    assert main([str(office()), "--stand-in", "every=4", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["maps"] == 1 and result["views"] == 56
    assert result["path_m"] == pytest.approx(17.0, abs=0.5)
