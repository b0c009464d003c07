# SPDX-License-Identifier: Apache-2.0
"""Frames from files: order, stamps, selection, and what is left out is said."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from g2vlm_ros.images.sources import open_source


def write(folder: Path, *names: str) -> Path:
    """Images whose red channel tells their place in `names`."""
    for index, name in enumerate(names):
        image = np.full((6, 8, 3), 7, np.uint8)
        image[..., 0] = 10 * index
        Image.fromarray(image).save(folder / name)
    return folder


def places(source) -> list[int]:
    return [int(image[0, 0, 0]) // 10 for image, _ in source]


def stamps(source) -> list[int]:
    return [stamp_ns for _, stamp_ns in source]


def test_folders_come_in_natural_order(tmp_path):
    source = open_source(write(tmp_path, "v2.png", "v10.png", "v1.png", "V3.png"), rate_hz=4)
    assert places(source) == [2, 0, 3, 1]
    assert stamps(source) == [0, 250_000_000, 500_000_000, 750_000_000]
    assert source.length == 4 and source.skipped == () and source.stamps == "4 Hz as given"
    image, _ = next(iter(source))
    assert image.shape == (6, 8, 3) and image.dtype == np.uint8
    assert places(source) == places(source)


def test_seconds_in_names_become_exact_stamps_in_order_of_time(tmp_path):
    write(tmp_path, "47_999.5.png", "47_999.12.png", "47_74735.839.png")
    source = open_source(tmp_path, rate_hz=30)
    assert places(source) == [1, 0, 2]
    assert stamps(source) == [999_120_000_000, 999_500_000_000, 74_735_839_000_000]
    assert source.stamps == "seconds in the file names"


def test_seconds_need_no_id(tmp_path):
    source = open_source(write(tmp_path, "1305031102.175304.png", "1305031102.211214.png"))
    assert stamps(source) == [1305031102175304000, 1305031102211214000]


@pytest.mark.parametrize(
    "names",
    [
        ("a_1.5.png", "b_1.7.png"),  # two recordings
        ("a_1.5.png", "a_1.50.png"),  # the same time twice
        ("a_1.5.png", "a_2.png"),  # a number, not seconds
        ("0001.png", "0002.png"),
    ],
)
def test_other_names_take_the_default_rate_and_say_so(tmp_path, names):
    source = open_source(write(tmp_path, *names))
    assert stamps(source) == [0, 1_000_000_000]
    assert source.stamps == "1 Hz by default"


def test_what_is_left_out_is_said(tmp_path):
    write(tmp_path, "a.png", ".hidden.png")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "fake.jpg").write_text("x")
    (tmp_path / "more").mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "depth.png")
    source = open_source(tmp_path)
    assert source.length == 1
    reasons = dict(line.split(": ", 1) for line in source.skipped)
    assert set(reasons) == {".hidden.png", "notes.txt", "fake.jpg", "more", "depth.png"}
    assert "not a readable image" in reasons["fake.jpg"]
    assert "pixel format" in reasons["depth.png"]


def test_selection_keeps_the_stamps_of_the_whole(tmp_path):
    write(tmp_path, *(f"{i}.png" for i in range(9)))
    source = open_source(tmp_path, start=1, stride=3, count=2, rate_hz=10)
    assert (places(source), source.length) == ([1, 4], 2)
    assert stamps(source) == [100_000_000, 400_000_000]


def test_a_single_image_is_a_source(tmp_path):
    source = open_source(write(tmp_path, "one.png") / "one.png")
    assert (source.length, stamps(source)) == (1, [0])


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none does not exist"):
        open_source(tmp_path / "none")
    (tmp_path / "readme.md").write_text("x")
    with pytest.raises(ValueError, match=r"no readable image \(left out: readme\.md"):
        open_source(tmp_path)
    (tmp_path / "broken.png").write_text("x")
    with pytest.raises(ValueError, match=r"broken\.png is not a readable image"):
        open_source(tmp_path / "broken.png")


def test_damaged_pixels_stop_the_iteration_by_name(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "b.jpg")
    data = (tmp_path / "b.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"b\.jpg is damaged"):
        list(open_source(write(tmp_path, "a.png")))


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"start": -1}, "start -1"),
        ({"stride": 0}, "stride 0"),
        ({"count": 0}, "count 0"),
        ({"start": 1}, "has 1 frames"),
        ({"rate_hz": 0.0}, "rate_hz is 0.0"),
        ({"rate_hz": float("nan")}, "rate_hz is nan"),
    ],
)
def test_senseless_selections_are_refused(tmp_path, selection, message):
    with pytest.raises(ValueError, match=message):
        open_source(write(tmp_path, "a.png"), **selection)


@pytest.fixture(scope="module", params=[("avi", "MJPG"), ("mp4", "mp4v")], ids=lambda p: p[0])
def video(request, tmp_path_factory) -> Path:
    """Nine red frames at 8 Hz, 20 levels brighter each time."""
    suffix, codec = request.param
    path = tmp_path_factory.mktemp("video") / f"red.{suffix}"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 8.0, (64, 48))
    if not writer.isOpened():
        pytest.skip(f"this OpenCV cannot write {codec}")
    for index in range(9):
        writer.write(np.full((48, 64, 3), (0, 0, 40 + 20 * index), np.uint8))
    writer.release()
    return path


def red_places(source) -> list[int]:
    means = [image.mean(axis=(0, 1)) for image, _ in source]
    assert all(r > 30 and g < 12 and b < 12 for r, g, b in means)
    return [round((r - 40) / 20) for r, _, _ in means]


def test_videos_come_in_rgb_with_their_own_rate(video):
    source = open_source(video)
    assert source.length == 9 and source.stamps == "the video's frame rate"
    assert red_places(source) == list(range(9))
    assert stamps(source) == [index * 125_000_000 for index in range(9)]


def test_videos_are_selected_like_folders(video):
    source = open_source(video, start=2, stride=3, count=2, rate_hz=2)
    assert (red_places(source), source.length) == ([2, 5], 2)
    assert stamps(source) == [1_000_000_000, 2_500_000_000]
    assert open_source(video, start=7, stride=5).length == len(stamps(open_source(video, 7, 5)))
    with pytest.raises(ValueError, match="start is 9 but .* has 9 frames"):
        open_source(video, start=9)


def test_files_that_are_no_video_are_refused(tmp_path):
    (tmp_path / "noise.mp4").write_bytes(b"no video at all" * 50)
    with pytest.raises(ValueError, match=r"noise\.mp4 cannot be read as a video"):
        open_source(tmp_path / "noise.mp4")
