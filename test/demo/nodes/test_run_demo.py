# SPDX-License-Identifier: Apache-2.0
"""The demo as a newcomer runs it: a process of its own, real DDS, files left behind."""

import importlib
import json
import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("torch", reason="the golden checkpoint runs on the torch backend here")

from g2vlm_tests.dds_domain import PROFILE_VARIABLES  # noqa: E402
from g2vlm_tests.harness import GOLDEN  # noqa: E402

FRAMES = GOLDEN.parents[1] / "frames"


def start(out, *arguments):
    environment = {**os.environ, "ROS_LOG_DIR": str(out / "log")}
    # As a newcomer has it: inside the demo's process its large images need the shortcut that the
    # tests' profile turns off; over UDP, best-effort, fragments of them get lost.
    for name in PROFILE_VARIABLES:
        environment.pop(name, None)
    command = [sys.executable, "-m", "g2vlm_ros.demo.nodes.run_demo", "--out", str(out)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*command, *arguments], text=True, env=environment, **pipes)


def run(out, *arguments):
    process = start(out, *arguments)
    output, errors = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def test_demo_leaves_a_report_of_what_was_received(tmp_path):
    result = run(
        tmp_path,
        "--images",
        str(FRAMES),
        "--checkpoint",
        str(GOLDEN),
        "--width",
        "56",
        "--backend",
        "torch",
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["frames_in"] == 12 and report["windows"] >= 1 and report["drive_complete"]
    assert report["received"]["/perception/points"] >= 1
    assert report["received"]["/perception/pose"] == report["frames_used"]
    assert report["latency_ms"]["p50"] > 0 and "heads" in report["stage_ms"]
    rows = (tmp_path / "poses.csv").read_text().splitlines()
    assert len(rows) == 1 + report["frames_used"]
    for name in ("map.ply", "map.png"):
        assert (tmp_path / name).stat().st_size > 100


def test_demo_says_what_is_missing(tmp_path):
    result = run(tmp_path, "--images", str(tmp_path / "nowhere"))
    assert result.returncode == 2 and "nowhere does not exist" in result.stderr


def test_a_drive_through_a_home_is_judged(tmp_path):
    """The shipped checkpoint on a held-out home: better than knowing nothing, on every count."""
    result = run(tmp_path, "--legs", "3", "--home", "2", "--drive-only")
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    accuracy = report["accuracy"]
    assert report["scale_state"] == "METRIC" and accuracy["frames"] >= 4
    # A wall of constant depth is off by about 0.3.
    assert accuracy["depth_abs_rel"] < 0.25 and accuracy["depth_metric_abs_rel"] < 0.4
    for name in ("map.ply", "map.png", "depth.png"):
        assert (tmp_path / name).stat().st_size > 1000
    for asked in report["questions"]:
        assert asked["answer"] and asked["truth"] and asked["kind"]
        assert asked["verdict"] in ("right", "wrong", "bound")
    if not report["questions"]:
        pytest.skip("this machine was too busy to ask anything during the drive")
    rows = report["answers"]["by_kind"]
    assert sum(row["asked"] for row in rows.values()) == len(report["questions"])
    assert report["language_trained"]
    right = [a for a in report["questions"] if a["verdict"] == "right" and a["confidence"] > 0]
    assert (tmp_path / "answer.png").exists() == bool(right)
    assert "| all |" in (tmp_path / "questions.md").read_text()


def test_a_drive_that_is_cut_short_is_called_so(tmp_path):
    small = ["--checkpoint", str(GOLDEN), "--width", "56", "--backend", "torch"]
    slow = ["--rate-hz", "0.5", "--limit-s", "8"]
    result = run(tmp_path, "--images", str(FRAMES), *small, *slow)
    assert "the drive is cut short: 8 s are over" in result.stderr
    assert "Traceback" not in result.stderr
    assert json.loads((tmp_path / "report.json").read_text())["drive_complete"] is False
    assert result.stderr.count("windows") < 10, "no line five times a second in a log"


def test_a_drive_that_is_interrupted_ends_in_order_with_a_report(tmp_path):
    small = ["--checkpoint", str(GOLDEN), "--width", "56", "--backend", "torch", "--rate-hz", "1"]
    process = start(tmp_path, "--images", str(FRAMES), *small, "--limit-s", "60")
    while "windows" not in (line := process.stderr.readline()):
        assert line, "it ended by itself"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert "cut short: interrupted" in errors and "Traceback" not in errors, errors
    assert json.loads((tmp_path / "report.json").read_text())["drive_complete"] is False


@pytest.mark.parametrize("demo", ["run_demo", "run_memory_demo"])
@pytest.mark.parametrize(
    ("argument", "value", "words"),
    [
        ("--home", "abc", "'abc' must be a whole number from 0"),
        ("--home", "-3", "'-3' must be a whole number from 0"),
        ("--home", "1.5", "'1.5' must be a whole number from 0"),
        ("--legs", "1", "'1' must be a whole number from 2 to 1000"),
        ("--split", "test", "invalid choice: 'test'"),
        ("--out", "/dev/null", "/dev/null cannot be a folder"),
        ("--checkpoint", "/nowhere", "/nowhere does not exist"),
    ],
)
def test_an_argument_that_means_nothing_is_one_sentence(demo, argument, value, words, capsys):
    parse = importlib.import_module(f"g2vlm_ros.demo.nodes.{demo}").parse
    with pytest.raises(SystemExit) as end:
        parse([f"{argument}={value}"])
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and words in lines[-1]
    assert len(lines) == 1 and "usage" not in lines[0], "make has other arguments"


def test_what_holds_no_pictures_is_one_sentence(tmp_path, monkeypatch):
    from g2vlm_ros.demo.nodes import run_demo

    monkeypatch.setattr(run_demo, "prepare_environment", lambda: None)
    (tmp_path / "notes.txt").write_text("no picture")
    for images in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(SystemExit, match="make demo: .* (no readable image|as a video)"):
            run_demo.main(["--images", str(images), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    "found_off, arguments, code, halves",
    [
        ((0.1, 1.0), [], 0, ["drive", "memory"]),
        (None, [], 1, ["drive", "memory"]),
        ((0.1, 1.0), ["--drive-only"], 0, ["drive"]),
    ],
)
def test_after_the_drive_another_process_has_to_find_itself(
    found_off, arguments, code, halves, tmp_path, monkeypatch, capsys
):
    """Both halves in a row, in one report and one summary; what they do is tested with each."""
    from g2vlm_ros.demo.nodes import run_demo, run_memory_demo

    order, drive = [], {"received": {"/perception/points": 3, "/perception/pose": 9}}
    drive |= {"frames_in": 12, "windows": 3, "questions": []}
    memory = {"things": 2, "file_mib": 1.0, "found_off": found_off, "answers": []}
    monkeypatch.setattr(run_demo, "prepare_environment", lambda: None)
    monkeypatch.setattr(run_demo, "run", lambda *_: order.append("drive") or dict(drive))
    monkeypatch.setattr(
        run_memory_demo,
        "run",
        lambda options, _: order.append("memory") or memory | {"out": str(options.out)},
    )
    assert run_demo.main(["--out", str(tmp_path), *arguments]) == code
    assert order == halves
    report = json.loads((tmp_path / "report.json").read_text())
    assert ("memory" in report) is (len(halves) == 2)
    if len(halves) == 2:
        assert report["memory"]["out"] == str(tmp_path / "memory")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(f"see {tmp_path}")
    assert [line.split(":")[0] for line in lines[-1 - len(halves) : -1]] == halves
