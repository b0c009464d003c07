# SPDX-License-Identifier: Apache-2.0
"""Videos as browsers, screen recorders and telephones write them, muxed here into real files."""

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")

from g2vlm_ros.images.sources import open_source  # noqa: E402

WIDTH, HEIGHT = 64, 48
UNKNOWN_SIZE = b"\x01" + 7 * b"\xff"
"""Of an EBML element whose writer did not know how long it becomes: a live recording."""


def picture(number):
    """uint8 (HEIGHT, WIDTH, 3) BGR: a red corner at the top left, grey of its number elsewhere."""
    bgr = np.full((HEIGHT, WIDTH, 3), 40 + 2 * number, np.uint8)
    bgr[: HEIGHT // 4, : WIDTH // 4] = (0, 0, 255)
    return bgr


def element(identifier, payload):
    """An EBML element: its identifier in hexadecimal, its size in eight bytes, its payload."""
    if isinstance(payload, int):
        payload = payload.to_bytes(8, "big")
    elif isinstance(payload, str):
        payload = payload.encode()
    return bytes.fromhex(identifier) + (1 << 56 | len(payload)).to_bytes(8, "big") + payload


def matroska(path, times_ms, document="matroska"):
    """Write JPEG frames at these times: no rate, no duration, no index, sizes unknown."""
    video = element("E0", element("B0", WIDTH) + element("BA", HEIGHT))
    track = element("D7", 1) + element("73C5", 1) + element("83", 1) + element("86", "V_MJPEG")
    head = b"".join(
        (
            element("1A45DFA3", element("4282", document) + element("4287", 4)),
            bytes.fromhex("18538067") + UNKNOWN_SIZE,
            element("1549A966", element("2AD7B1", 1_000_000)),
            element("1654AE6B", element("AE", track + video)),
        )
    )
    clusters = []
    for number, time_ms in enumerate(times_ms):
        jpeg = cv2.imencode(".jpg", picture(number))[1].tobytes()
        cluster = bytes.fromhex("1F43B675") + UNKNOWN_SIZE + element("E7", time_ms)
        clusters.append(cluster + element("A3", b"\x81\x00\x00\x80" + jpeg))
    path.write_bytes(head + b"".join(clusters))


def mp4(path, count=10, rate_hz=30.0):
    """Write an MPEG-4 file of frames at a constant rate."""
    writer = cv2.VideoWriter(
        str(path.with_name("temporary.mp4")),
        cv2.VideoWriter_fourcc(*"mp4v"),
        rate_hz,
        (WIDTH, HEIGHT),
    )
    for number in range(count):
        writer.write(picture(number))
    writer.release()
    path.with_name("temporary.mp4").rename(path)


@pytest.mark.parametrize(
    ("name", "times_ms"),
    [
        ("browser.webm", [33 * k for k in range(90)]),
        ("screen recorder.mkv", [0, *(3000 + 33 * k for k in range(30))]),
        ("one.mkv", [0]),
    ],
)
def test_frames_come_at_the_times_of_the_container(tmp_path, name, times_ms):
    matroska(tmp_path / name, times_ms)
    stamps = [stamp for _, stamp in open_source(tmp_path / name)]
    assert len(stamps) == len(times_ms)
    assert np.abs(np.array(stamps) * 1e-6 - times_ms).max() <= 1.0


def test_a_name_in_capitals_with_blanks_and_umlauts_is_a_video(tmp_path):
    mp4(tmp_path / "UPPER CASE ü.MP4")
    stamps = [stamp for _, stamp in open_source(tmp_path / "UPPER CASE ü.MP4")]
    assert np.diff(stamps) * 1e-9 == pytest.approx(np.full(9, 1 / 30), abs=1e-3)


def test_a_telephone_held_upright_gives_upright_frames(tmp_path):
    """Its sensor lies on its side; the header of the track says how to turn what it saw."""
    path = tmp_path / "telephone.mp4"
    mp4(path)
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    quarter_turn = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, HEIGHT << 16, 0, 1 << 30], ">i4")
    content[matrix : matrix + 36] = quarter_turn.tobytes()
    path.write_bytes(content)
    rgb, _ = next(iter(open_source(path)))
    assert rgb.shape == (WIDTH, HEIGHT, 3)
    red = (rgb[..., 0] > 150) & (rgb[..., 1] < 90)
    assert red[:8, -8:].all() and not red[:8, :8].any(), "the corner went with the picture"


@pytest.mark.parametrize("cut", [0, 30, 2000])
def test_a_video_that_was_cut_off_plays_what_is_there_or_says_so(tmp_path, cut):
    path = tmp_path / "cut.mkv"
    matroska(path, [33 * k for k in range(30)])
    path.write_bytes(path.read_bytes()[:cut])
    if cut == 2000:
        stamps = [stamp for _, stamp in open_source(path)]
        assert 1 <= len(stamps) < 30 and stamps == sorted(stamps)
    else:
        with pytest.raises(ValueError, match="cut.mkv"):
            list(open_source(path))
