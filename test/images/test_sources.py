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
    assert source.stamps == "times in the file names"


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


def test_a_picture_with_damaged_pixels_is_left_out_and_named(tmp_path, caplog):
    noise = np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "b.jpg")
    data = (tmp_path / "b.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(data[: len(data) // 2])
    source = open_source(write(tmp_path, "a.png", "c.png"))
    assert source.length == 3 and [stamp for _, stamp in source] == [0, 2_000_000_000]
    assert "b.jpg is left out" in caplog.text and "is damaged" in caplog.text


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
    assert source.length == 9 and source.stamps == "the video's own times"
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


@pytest.mark.parametrize("name", ["9999999999999999999", "5000000000.5"])
def test_numbers_beyond_the_time_of_ros_are_no_stamps(tmp_path, name):
    source = open_source(write(tmp_path, f"{name}.png"))
    assert source.stamps == "1 Hz by default" and source.stamps_ns == (0,)


def test_names_in_nanoseconds_are_stamps(tmp_path):
    stamps = [1_700_000_000_000_000_000 + k * 100_000_000 for k in range(4)]
    write(tmp_path, *(f"{stamp}.png" for stamp in stamps))
    assert [stamp for _, stamp in open_source(tmp_path)] == stamps


def test_numbers_of_ten_digits_are_no_stamps(tmp_path):
    write(tmp_path, "1700000000.png", "1700000001.png")
    assert [stamp for _, stamp in open_source(tmp_path)] == [0, 1_000_000_000]


def test_photographs_stand_upright(tmp_path):
    picture = Image.fromarray(np.zeros((48, 64, 3), np.uint8))
    picture.paste((255, 0, 0), (0, 32, 16, 48))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=exif, quality=95)
    ((image, _),) = open_source(tmp_path)
    assert image.shape == (64, 48, 3)
    assert image[4, 4, 0] > 200 and image[4, 4, 1] < 60, "the red corner is at the top left"


class FakeVideo:
    """What OpenCV says of a screen recording: 1000 Hz by its container, real times by frame."""

    TIMES_MS = (0.0, 3000.0, 3033.0, 3066.0)

    def __init__(self, _path):
        self._index = -1

    def isOpened(self):  # noqa: N802
        return True

    def grab(self):
        self._index += 1
        return self._index < len(self.TIMES_MS)

    def retrieve(self):
        return True, np.zeros((4, 4, 3), np.uint8)

    def get(self, what):
        return {
            cv2.CAP_PROP_FPS: 1000.0,
            cv2.CAP_PROP_FRAME_COUNT: 3067.0,
            cv2.CAP_PROP_POS_MSEC: self.TIMES_MS[max(0, self._index)],
        }[what]

    def release(self):
        pass


def test_a_video_is_played_by_the_times_of_its_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", FakeVideo)
    (tmp_path / "screen.mkv").write_bytes(b"x")
    source = open_source(tmp_path / "screen.mkv")
    assert source.length is None, "3067 is no count of frames"
    assert [stamp for _, stamp in source] == [0, 3_000_000_000, 3_033_000_000, 3_066_000_000]
    given = open_source(tmp_path / "screen.mkv", rate_hz=10)
    assert [stamp for _, stamp in given] == [0, 100_000_000, 200_000_000, 300_000_000]
