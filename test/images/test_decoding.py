# SPDX-License-Identifier: Apache-2.0
"""Raw and compressed images against pictures whose pixels are known."""

from __future__ import annotations

import array
import io

import cv2
import numpy as np
import pytest
from PIL import Image

from g2vlm_ros.images import decoding
from g2vlm_ros.images.decoding import (
    ImageError,
    check,
    check_compressed,
    decode,
    decode_compressed,
)

H, W = 6, 8
COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "teal": (20, 150, 120)}


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (H, W, 3), dtype=np.uint8)


def mosaic(pattern: str, rgb: tuple[int, int, int], height: int = H, width: int = W) -> np.ndarray:
    """What a sensor with a 2x2 `pattern` such as "rggb" records of one colour."""
    value = dict(zip("rgb", rgb, strict=True))
    out = np.empty((height, width), np.uint8)
    for index, letter in enumerate(pattern):
        out[index // 2 :: 2, index % 2 :: 2] = value[letter]
    return out


def bt601(rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    """Y, U, V of a colour: BT.601, limited range, written out from the standard."""
    r, g, b = (value / 255 for value in rgb)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return (
        round(16 + 219 * y),
        round(128 + 112 * (b - y) / 0.886),
        round(128 + 112 * (r - y) / 0.701),
    )


def yuv_bytes(encoding: str, rgb: tuple[int, int, int]) -> np.ndarray:
    """One colour in a YUV encoding, as rows of bytes."""
    y, u, v = bt601(rgb)
    packed = {"uyvy": (u, y, v, y), "yuyv": (y, u, y, v)}
    packed |= {"yuv422": packed["uyvy"], "yuv422_yuy2": packed["yuyv"]}
    if encoding in packed:
        return np.tile(np.array(packed[encoding], np.uint8), (H, W // 2))
    chroma = (u, v) if encoding == "nv12" else (v, u)
    luma = np.full((H, W), y, np.uint8)
    return np.vstack([luma, np.tile(np.array(chroma, np.uint8), (H // 2, W // 2))])


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8"])
def test_colour_orders_come_back_as_rgb(encoding, picture):
    order = ["rgba".index(letter) for letter in encoding[:-1]]
    with_alpha = np.dstack([picture, np.full((H, W), 7, np.uint8)])
    raw = np.ascontiguousarray(with_alpha[..., order])
    actual = decode(raw.tobytes(), encoding, W, H, raw.strides[0])
    np.testing.assert_array_equal(actual, picture)


def test_grey_becomes_three_equal_channels(picture):
    grey = np.ascontiguousarray(picture[..., 0])
    actual = decode(grey.tobytes(), "mono8", W, H, W)
    np.testing.assert_array_equal(actual, np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize(("order", "big"), [("<u2", False), (">u2", True)])
def test_sixteen_bits_are_rounded_to_eight_like_cv_bridge(order, big):
    values = np.array([[0, 128, 129, 257, 385, 386, 65406, 65407, 65535]], order)
    actual = decode(values.tobytes(), "mono16", 9, 1, 18, big)
    np.testing.assert_array_equal(actual[0, :, 0], [0, 0, 1, 1, 1, 2, 254, 255, 255])


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_a_mosaicked_colour_comes_back_as_that_colour(pattern, colour):
    raw = mosaic(pattern, COLOURS[colour])
    actual = decode(raw.tobytes(), f"bayer_{pattern}8", W, H, W)
    np.testing.assert_array_equal(actual, np.broadcast_to(COLOURS[colour], (H, W, 3)))


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv", "nv12", "nv21"])
def test_a_yuv_colour_comes_back_within_rounding(encoding, colour):
    raw = yuv_bytes(encoding, COLOURS[colour])
    actual = decode(raw.tobytes(), encoding, W, H, raw.shape[1])
    assert actual.shape == (H, W, 3)
    assert np.abs(actual.astype(int) - COLOURS[colour]).max() <= 3


def test_every_encoding_is_known_to_these_tests_and_reads_padded_rows():
    rng = np.random.default_rng(2)
    for encoding, layout in decoding.ENCODINGS.items():
        rows, row_bytes = H * 3 // 2 if layout.half_chroma else H, W * layout.pixel_bytes
        tight = rng.integers(0, 256, (rows, row_bytes), dtype=np.uint8)
        padded = np.full((rows, row_bytes + 6), 99, np.uint8)
        padded[:, :row_bytes] = tight
        expected = decode(tight.tobytes(), encoding, W, H, row_bytes)
        actual = decode(array.array("B", padded.tobytes()), encoding, W, H, row_bytes + 6)
        np.testing.assert_array_equal(actual, expected, err_msg=encoding)
        assert actual.dtype == np.uint8 and actual.shape == (H, W, 3)


def test_rgb8_is_a_read_only_view_of_the_message(picture):
    data = array.array("B", picture.tobytes())
    actual = decode(data, "rgb8", W, H, 3 * W)
    assert np.shares_memory(actual, np.frombuffer(data, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        actual[0, 0, 0] = 1


@pytest.mark.parametrize(
    ("reason", "words", "args"),
    [
        ("encoding", "32FC1", ("32FC1", 8, 6, 32, 192)),
        ("encoding", "rgb8, bgr8", ("", 8, 6, 24, 144)),
        ("size", "0x6", ("rgb8", 0, 6, 24, 144)),
        ("size", "8x0", ("rgb8", 8, 0, 24, 0)),
        ("size", "needs 24", ("rgb8", 8, 6, 23, 138)),
        ("size", "even", ("yuv422", 7, 6, 14, 84)),
        ("size", "even", ("nv12", 8, 5, 8, 60)),
        ("size", "at least 3", ("bayer_rggb8", 8, 2, 8, 16)),
        ("size", "has 144", ("rgb8", 8, 6, 24, 145)),
        ("truncated", "143 bytes.* has 144", ("rgb8", 8, 6, 24, 143)),
        ("truncated", "48 bytes.* has 72", ("nv12", 8, 6, 8, 48)),
        ("size", "bound of 1000 px", ("rgb8", 100_000, 100_000, 300_000, 0)),
    ],
)
def test_a_header_that_does_not_fit_is_refused_with_its_reason(reason, words, args):
    with pytest.raises(ImageError, match=words) as caught:
        check(*args, max_px=1000)
    assert caught.value.reason == reason


def test_a_header_that_fits_passes():
    check("nv12", 8, 6, 10, 90, max_px=48)


def test_decode_refuses_what_check_refuses():
    with pytest.raises(ImageError, match="has 144") as caught:
        decode(bytes(100), "rgb8", 8, 6, 24)
    assert caught.value.reason == "truncated"


def encoded(picture: np.ndarray, extension: str) -> bytes:
    """A file that OpenCV writes, fed as compressed_image_transport feeds it (BGR)."""
    bgr = picture[..., ::-1] if picture.ndim == 3 else picture
    return cv2.imencode(extension, np.ascontiguousarray(bgr))[1].tobytes()


@pytest.mark.parametrize(
    "format", ["png", "", "rgb8; png compressed bgr8", "bgr8; png compressed bgr8"]
)
def test_png_is_lossless_rgb(format, picture):
    np.testing.assert_array_equal(decode_compressed(encoded(picture, ".png"), format), picture)


@pytest.mark.parametrize("format", ["jpeg", "jpg", "", "rgb8; jpeg compressed bgr8"])
def test_jpeg_keeps_the_colour(format):
    flat = np.broadcast_to(np.uint8(COLOURS["teal"]), (32, 48, 3))
    actual = decode_compressed(array.array("B", encoded(flat, ".jpg")), format)
    assert actual.shape == (32, 48, 3)
    assert np.abs(actual.astype(int) - flat).max() <= 4


def test_a_codec_fed_with_rgb_is_undone(picture):
    swapped = encoded(picture[..., ::-1], ".png")
    actual = decode_compressed(swapped, "rgb8; png compressed rgb8")
    np.testing.assert_array_equal(actual, picture)


def test_a_mosaic_in_a_grey_png_is_demosaicked():
    file = encoded(mosaic("gbrg", COLOURS["red"]), ".png")
    actual = decode_compressed(file, "bayer_gbrg8; png compressed ")
    np.testing.assert_array_equal(actual, np.broadcast_to(COLOURS["red"], (H, W, 3)))
    plain = decode_compressed(file, "mono8; png compressed ")
    assert (plain[..., 0] == plain[..., 2]).all()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_png_modes_become_rgb_and_lose_alpha(mode, picture):
    source = Image.fromarray(picture).convert(mode)
    file = io.BytesIO()
    source.save(file, "PNG")
    actual = decode_compressed(file.getvalue(), "png")
    np.testing.assert_array_equal(actual, np.asarray(source.convert("RGB")))


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_png_is_scaled_to_eight(channels, picture):
    wide = picture.astype(np.uint16) * 257
    actual = decode_compressed(encoded(wide if channels == 3 else wide[..., 0], ".png"), "png")
    expected = picture if channels == 3 else np.repeat(picture[..., :1], 3, axis=2)
    np.testing.assert_array_equal(actual, expected)


def test_the_orientation_tag_does_not_turn_the_pixels():
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 32)).save(file, "JPEG", exif=exif)
    assert decode_compressed(file.getvalue(), "jpeg").shape == (32, 48, 3)


def test_a_thumbnail_inside_does_not_hide_a_missing_end():
    photo = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    inner = encoded(photo[:16, :16], ".jpg")
    outer = encoded(photo, ".jpg")
    segment = b"\xff\xe1" + (len(inner) + 2).to_bytes(2, "big") + inner
    whole = outer[:2] + segment + outer[2:]
    assert decode_compressed(whole, "jpeg").shape == (64, 64, 3)
    with pytest.raises(ImageError, match="no end"):
        check_compressed(whole[: len(whole) - 300], "jpeg")


@pytest.mark.parametrize("extension", [".jpg", ".png"])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.97])
def test_truncated_files_are_refused(extension, keep):
    photo = np.random.default_rng(4).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = encoded(photo, extension)
    with pytest.raises(ImageError) as caught:
        check_compressed(file[: int(len(file) * keep)], "jpeg")
    assert caught.value.reason == "truncated"


def test_trailing_padding_of_a_camera_is_accepted():
    flat = np.full((16, 16, 3), 90, np.uint8)
    assert decode_compressed(encoded(flat, ".jpg") + bytes(512), "jpeg").shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("reason", "words", "data", "format"),
    [
        ("encoding", "depth", b"\x89PNG", "16UC1; compressedDepth png"),
        ("encoding", "h264", b"\x00\x00\x00\x01", "h264"),
        ("encoding", "tiff", b"II*\x00", "rgb8; tiff compressed bgr8"),
        ("undecodable", "nothing", b"", "jpeg"),
        ("undecodable", "01020304", b"\x01\x02\x03\x04\x05", "png"),
    ],
)
def test_other_codecs_and_rubbish_are_refused(reason, words, data, format):
    with pytest.raises(ImageError, match=words) as caught:
        check_compressed(data, format)
    assert caught.value.reason == reason


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_the_bound_on_pixels_is_read_from_the_file(extension):
    file = encoded(np.zeros((40, 30, 3), np.uint8), extension)
    check_compressed(file, "", max_px=1200)
    with pytest.raises(ImageError, match="30x40 px is above the bound of 1199") as caught:
        check_compressed(file, "", max_px=1199)
    assert caught.value.reason == "size"


def test_damaged_png_data_is_undecodable():
    file = bytearray(
        encoded(np.random.default_rng(5).integers(0, 256, (32, 32, 3), np.uint8), ".png")
    )
    file[len(file) // 2 : len(file) // 2 + 64] = b"\x55" * 64
    with pytest.raises(ImageError) as caught:
        decode_compressed(bytes(file), "png")
    assert caught.value.reason == "undecodable"
