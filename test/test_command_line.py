# SPDX-License-Identifier: Apache-2.0
"""The command line without ROS: what it writes and says, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from g2vlm_tests.point_files import read_ply

from g2vlm_ros import __main__
from g2vlm_ros.records import RawGeometry, Reconstruction
from g2vlm_ros.settings import Settings

GOLDEN = Path(__file__).parent / "data" / "golden" / "A"


@pytest.fixture
def checkpoint():
    pytest.importorskip("torch", reason="torch is missing: the backend under test needs it")
    return str(GOLDEN)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        coarse = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (64, 48), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{number}.png"), image)
    return str(folder)


def run(*arguments, width=56):
    return __main__.main([*map(str, arguments), "--backend", "torch", "--width", str(width)])


def test_cloud_poses_and_answers(images, checkpoint, tmp_path, capsys):
    ply, csv = tmp_path / "scene.ply", tmp_path / "poses.csv"
    code = run(
        images,
        "--checkpoint",
        checkpoint,
        "--out",
        ply,
        "--poses",
        csv,
        "--question",
        "How far?",
        "--question",
        "How many?",
        "--json",
    )
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert code == 0 and report["views"] == 3
    points, colours, confidence = read_ply(ply)
    assert len(points) == report["points"] > 0
    assert np.isfinite(points).all() and confidence is not None
    assert len(colours) == len(points)
    rows = [line.split(",") for line in csv.read_text().splitlines()]
    assert len(rows) == 4 and rows[0][:4] == ["stamp_s", "stamp_nanosec", "camera", "frame"]
    assert [row[0] for row in rows[1:]] == ["0", "1", "2"], "images come at 1 Hz by default"
    assert [item["question"] for item in report["answers"]] == ["How far?", "How many?"]
    assert all(isinstance(item["answer"], str) for item in report["answers"])
    assert "[5/5] answering 'How many?'" in printed.err


def test_cloud_is_coloured_and_lies_in_the_map(tmp_path):
    """A wall 2 units ahead: x = 2 in a z-up map whose origin is the first camera."""
    v, u = np.mgrid[0:4, 0:6].astype(np.float32)
    wall = np.stack([(u - 2.5) / 3, (v - 1.5) / 3, np.full_like(u, 2)], -1)[None].repeat(2, 0)
    poses = np.eye(4, dtype=np.float32)[None].repeat(2, 0)
    poses[1, 0, 3] = 0.5
    window_from_first = np.array([[0, -1, 0, 3], [1, 0, 0, 4], [0, 0, 1, 5], [0, 0, 0, 1.0]])
    poses = (window_from_first @ poses).astype(np.float32)
    raw = RawGeometry(wall, poses, poses[:, :3, :3].reshape(2, 9))
    colours = np.random.default_rng(0).integers(0, 255, (2, 4, 6, 3), dtype=np.uint8)
    confidence = np.full((2, 4, 6), 0.9, np.float32)
    confidence[0, 0, 0] = 0.1
    result = Reconstruction(raw, colours, confidence, (None, None), {})
    settings = Settings.from_flat({"cloud.min_confidence": 0.5})
    ply, csv = tmp_path / "a.ply", tmp_path / "a.csv"
    assert __main__.write_results(result, (0, 5), settings, ply, csv) == 47
    points, written, _ = read_ply(ply)
    np.testing.assert_array_equal(written, colours.reshape(-1, 3)[1:])
    np.testing.assert_allclose(points[:, 0], 2, atol=1e-6)
    np.testing.assert_allclose(points[:23, 1], -wall[0, ..., 0].ravel()[1:], atol=1e-6)
    np.testing.assert_allclose(points[:23, 2], -wall[0, ..., 1].ravel()[1:], atol=1e-6)
    second = [float(cell) for cell in csv.read_text().splitlines()[2].split(",")[4:7]]
    np.testing.assert_allclose(second, [0, -0.5, 0], atol=1e-6)


def test_questions_alone_write_nothing(images, checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(images, "--checkpoint", checkpoint, "--views", 1, "--question", "How far?") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    assert "Q: How far?\nA: " in capsys.readouterr().out


def test_min_confidence_leaves_points_out(images, checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counts = []
    for least in ("0", "1"):
        assert run(images, "--checkpoint", checkpoint, "--min-confidence", least) == 0
        counts.append(len(read_ply(tmp_path / "scene.ply")[0]))
    assert counts[0] > counts[1]


def test_same_views_give_the_same_bytes(images, checkpoint, tmp_path, capsys):
    written = []
    for name in ("a.ply", "b.ply"):
        assert run(images, "--checkpoint", checkpoint, "--views", 2, "--out", tmp_path / name) == 0
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize(("length", "views"), [(3, 8), (8, 8), (20, 8), (100, 8), (50, 1)])
def test_views_are_spread_evenly(tmp_path, length, views):
    for number in range(length):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((8, 8, 3), number, np.uint8))
    frames = __main__.read_views(tmp_path, views)
    numbers = [int(image[0, 0, 0]) for image, _ in frames]
    assert len(numbers) == min(length, views)
    assert [stamp_ns for _, stamp_ns in frames] == [n * 1_000_000_000 for n in numbers]
    if views > 1:
        gaps = np.diff(numbers)
        assert gaps.min() >= 1 and gaps.max() <= gaps.mean() * 1.5
        assert numbers[0] == 0 and numbers[-1] >= length * 0.95 - 1


def test_many_views_are_warned_about_only_with_a_question(images, tmp_path, capsys):
    for number in range(3, 10):
        Path(images, f"{number}.png").write_bytes(Path(images, "0.png").read_bytes())
    for question, warned in (([], False), (["--question", "How far?"], True)):
        run(images, "--checkpoint", tmp_path, "--views", 9, *question)
        assert ("warning: 9 views" in capsys.readouterr().err) == warned


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"source": "nowhere"}, "nowhere does not exist"),
        ({"--checkpoint": "missing_dir"}, "missing_dir"),
        ({"--views": "0"}, "--views is 0"),
        ({"--min-confidence": "2"}, "0.0 to 1.0"),
        ({"--out": "no/such/folder/a.ply"}, "make the folder first"),
        ({"--out": "."}, "is a folder"),
        ({"--out": "scene.obj"}, "clouds are written as .ply"),
        ({"--width": "57"}, "multiple of 14"),
        ({"--backend": "abacus"}, "abacus"),
        ({"--question": "  "}, "question is empty"),
    ],
)
def test_refused_in_one_sentence(images, checkpoint, tmp_path, capsys, monkeypatch, change, word):
    monkeypatch.chdir(tmp_path)
    options = {"--checkpoint": checkpoint, "--backend": "torch", "--width": "56"}
    options.update(change)
    source = options.pop("source", images)
    code = __main__.main([source, *(part for pair in options.items() for part in pair)])
    last = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and last.startswith("error: ") and word in last


def test_folder_without_images_is_refused(tmp_path, capsys):
    assert run(tmp_path, "--checkpoint", GOLDEN) == 2
    assert "no readable image" in capsys.readouterr().err


def test_missing_backend_package_is_one_sentence(images, tmp_path, capsys, monkeypatch):
    def fail(_settings):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(__main__.Perception, "open", fail)
    assert run(images, "--checkpoint", tmp_path) == 2
    assert "No module named 'torch'; install it" in capsys.readouterr().err


def test_the_module_runs_as_a_command(tmp_path):
    command = [sys.executable, "-m", "g2vlm_ros", str(tmp_path), "--checkpoint", str(GOLDEN)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "no readable image" in done.stderr
